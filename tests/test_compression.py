"""Compressors against their known errors, error feedback against what it promises, bits against counting by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atlas.federated import compression as c


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squared_error(compress: c.Compressor, u: Tensor) -> Tensor:
    """||C(u) - u||^2 / ||u||^2."""
    return (compress(u) - u).square().sum(-1) / u.square().sum(-1)


def test_signs_by_hand() -> None:
    u = torch.tensor([3.0, -4.0, 0.0, 1.0])
    assert c.scaled_sign(u).tolist() == [2.0, -2.0, 2.0, 2.0]
    torch.testing.assert_close(c.scaled_sign(u, norm=2), torch.tensor([1.0, -1, 1, 1]) * math.sqrt(26) / 2)


@pytest.mark.parametrize("norm", [1, 2])
def test_signs_keep_the_magnitude(norm: int) -> None:
    u = normal(5, 7)
    torch.testing.assert_close(
        torch.linalg.vector_norm(c.scaled_sign(u, norm), norm, -1), torch.linalg.vector_norm(u, norm, -1)
    )


def test_the_error_of_signs() -> None:
    """For the mean of |u_j| it is 1 - ||u||_1^2 / (d ||u||_2^2), for the length 2 (1 - ||u||_1 / (sqrt(d) ||u||_2))."""
    u = normal(4, 100_000)
    assert squared_error(c.scaled_sign, u).tolist() == pytest.approx([1 - 2 / math.pi] * 4, abs=0.01)
    length = squared_error(lambda u: c.scaled_sign(u, norm=2), u)
    assert length.tolist() == pytest.approx([2 - 2 * math.sqrt(2 / math.pi)] * 4, abs=0.01)
    one = torch.eye(1, 100, dtype=torch.float64)  # a single entry: the mean is still a contraction
    assert squared_error(c.scaled_sign, one).item() == pytest.approx(1 - 1 / 100)
    assert squared_error(lambda u: c.scaled_sign(u, norm=2), one).item() == pytest.approx(2 - 2 / 10)


def test_the_mean_is_the_best_scale() -> None:
    u = normal(50, 9)
    for scale in (0.5, 0.9, 1.1):
        assert (
            squared_error(c.scaled_sign, u) < squared_error(lambda u, s=scale: s * c.scaled_sign(u), u)
        ).all()


def test_top_k_keeps_the_largest_and_is_contractive_with_k_over_d() -> None:
    u = torch.tensor([[3.0, -4.0, 1.0, 0.5]])
    assert c.top_k(u, 2).tolist() == [[3.0, -4.0, 0.0, 0.0]]
    assert (squared_error(lambda u: c.top_k(u, 3), normal(100, 10)) <= 1 - 0.3).all()
    same = squared_error(lambda u: c.top_k(u, 3), torch.ones(10, dtype=torch.float64))
    assert same.item() == pytest.approx(1 - 0.3)  # the worst case
    torch.testing.assert_close(c.top_k(u, 4), c.identity(u))


def test_blocks_are_compressed_one_by_one() -> None:
    u = normal(3, 6)
    found = c.by_blocks(c.scaled_sign, [2, 4])(u)
    torch.testing.assert_close(found, torch.cat([c.scaled_sign(u[:, :2]), c.scaled_sign(u[:, 2:])], -1))
    assert c.by_blocks(lambda u: c.top_k(u, 1), [2, 4])(u).count_nonzero(-1).tolist() == [2, 2, 2]


COMPRESSORS = {
    "sign": c.scaled_sign,
    "sign, length": lambda u: c.scaled_sign(u, norm=2),
    "top-k": lambda u: c.top_k(u, 2),
    "identity": c.identity,
}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_error_feedback_loses_nothing(name: str) -> None:
    """The sum of what was sent and the last error are the sum of what was meant."""
    meant, error, total = normal(200, 3, 20), torch.zeros(3, 20, dtype=torch.float64), 0.0
    for u in meant:
        sent, error = c.with_feedback(u, error, COMPRESSORS[name])
        total = total + sent
    torch.testing.assert_close(total + error, meant.sum(0), atol=1e-10, rtol=0)
    if name == "identity":
        assert error.abs().max() == 0


def test_the_error_of_a_contraction_stays_bounded() -> None:
    """||e|| <= 2 sqrt(1 - alpha) / alpha max ||u||, whatever is sent; here with alpha = k/d = 1/4."""
    error, largest = torch.zeros(8, dtype=torch.float64), 0.0
    for u in normal(500, 8) + 1.0:
        _, error = c.with_feedback(u, error, lambda u: c.top_k(u, 2))
        largest = max(largest, float(u.norm()))
        assert error.norm() <= 2 * math.sqrt(1 - 0.25) / 0.25 * largest


def test_bits_by_hand() -> None:
    assert c.dense_bits(1000) == 32_000 and c.dense_bits(1000, value=16) == 16_000
    assert c.sign_bits(1000) == 1032 and c.sign_bits(1000, blocks=4, value=16) == 1064
    assert c.top_k_bits(1024, 10) == 420 and c.top_k_bits(1025, 10) == 430  # places of 10 and of 11 bits
    assert c.top_k_bits(1, 1, value=16) == 16
