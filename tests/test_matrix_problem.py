"""The matrix problem against autograd and known answers; its noise against its moments."""

import pytest
import torch

from atlas.optim.orthogonal import polar
from atlas.problems.matrix import LogRegression, SkewedNoise


def problem(distance: float = 0.1) -> LogRegression:
    return LogRegression(2, (4, 3), 10, torch.Generator().manual_seed(0), distance)


def test_loss_and_gradient() -> None:
    p = problem()
    torch.testing.assert_close(p.loss(p.solution), torch.zeros(2, dtype=torch.float64))
    assert float((p.start - p.solution).std()) == pytest.approx(0.1, rel=0.3)
    W = p.start.expand(3, 2, 4, 3).clone().requires_grad_()
    by_hand = sum(
        torch.log1p((p.A[1, i].view(4, 3) * (W[2, 1] - p.solution[1])).sum() ** 2) / 10 for i in range(10)
    )
    assert p.loss(W)[2, 1].item() == pytest.approx(by_hand.item())
    expected = torch.autograd.grad(p.loss(W).sum(), W)[0]
    torch.testing.assert_close(p.gradient(W.detach()), expected)


def test_skewed_noise_is_unbiased_with_the_wrong_sign() -> None:
    noise = SkewedNoise(2, (4, 3), 2.0, torch.Generator().manual_seed(0))
    sample = noise(torch.Size((20000, 2, 4, 3)), torch.Generator().manual_seed(1))
    assert sample.mean(0).abs().max() < 0.03
    assert float(sample.flatten(-2).square().sum(-1).mean()) == pytest.approx(4, rel=0.05)
    # the mean orthogonal factor is P(z > 0) - P(z < 0) = -0.8 times that of N0
    torch.testing.assert_close(polar(sample).mean(0), -0.8 * polar(noise.N0), rtol=0, atol=0.03)
