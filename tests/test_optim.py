"""Optimizers against torch.optim, choices of step sizes against counting by hand."""

from __future__ import annotations

import pytest
import torch
from pytorch_optimizer import DiffGrad

from atlas.optim.baselines import adam, diffgrad, sgd
from atlas.optim.tuning import best_on_average, best_on_others, chosen, first_below, trailing_mean


def follow(optimizer, gradients: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Where a torch optimizer goes on given gradients (T, P)."""
    p = start.clone().requires_grad_()
    algorithm = optimizer([p])
    for g in gradients:
        p.grad = g.clone()
        algorithm.step()
    return p.detach()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sgd_of_a_batch_is_torchs_one_by_one() -> None:
    rates, gradients, start = torch.tensor([0.1, 0.01]).double(), random(20, 2, 3, 5), random(3, 5, seed=1)
    theta, m = start.expand(2, 3, 5).clone(), torch.zeros(2, 3, 5, dtype=torch.float64)
    for g in gradients:
        sgd(theta, g.clone(), m, rates[:, None, None], momentum=0.8, weight_decay=0.02)
    for i, rate in enumerate(rates.tolist()):
        alone = follow(
            lambda p, rate=rate: torch.optim.SGD(p, rate, momentum=0.8, weight_decay=0.02),
            gradients[:, i],
            start,
        )
        torch.testing.assert_close(theta[i], alone, atol=1e-13, rtol=0)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_of_a_batch_is_torchs_one_by_one(decay: float) -> None:
    rates, gradients, start = torch.tensor([0.1, 0.01]).double(), random(20, 2, 3, 5), random(3, 5, seed=1)
    theta, m, v = (torch.zeros(2, 3, 5, dtype=torch.float64) for _ in range(3))
    theta += start
    for t, g in enumerate(gradients, 1):
        adam(theta, g, m, v, t, rates[:, None, None], betas=(0.8, 0.95), decoupled_decay=decay)
    for i, rate in enumerate(rates.tolist()):
        alone = follow(
            lambda p, rate=rate: torch.optim.AdamW(p, rate, betas=(0.8, 0.95), weight_decay=decay),
            gradients[:, i],
            start,
        )
        torch.testing.assert_close(theta[i], alone, atol=1e-13, rtol=0)


def test_diffgrad_of_a_batch_is_that_of_pytorch_optimizer_one_by_one() -> None:
    """In float64 with eps = 0: the package divides by sqrt(v) + eps, the paper by the square root of the corrected v plus eps.
    The package adds 1e-15 to v, which is what is left of the difference."""
    rates, gradients, start = torch.tensor([0.1, 0.01]).double(), random(20, 2, 3, 5), random(3, 5, seed=1)
    theta, previous, m, v = (torch.zeros(2, 3, 5, dtype=torch.float64) for _ in range(4))
    theta += start
    for t, g in enumerate(gradients, 1):
        diffgrad(theta, g, previous, m, v, t, rates[:, None, None], betas=(0.8, 0.95), eps=0.0)
    for i, rate in enumerate(rates.tolist()):
        alone = follow(
            lambda p, rate=rate: DiffGrad(p, rate, betas=(0.8, 0.95), eps=0.0), gradients[:, i], start
        )
        torch.testing.assert_close(theta[i], alone, atol=1e-10, rtol=0)


def test_a_rate_is_chosen_on_the_other_seeds() -> None:
    losses = torch.tensor([[1.0, 1.0, 9.0], [2.0, 2.0, 2.0], [0.0, torch.nan, 0.0]])
    # seeds 0 and 1 see the 9 of rate 0; seed 1 does not see its own NaN at rate 2
    assert best_on_others(losses).tolist() == [1, 2, 0]
    assert chosen(losses, best_on_others(losses))[0] == 2.0
    with pytest.raises(ValueError, match="at least two"):
        best_on_others(losses[:, :1])


def test_the_best_on_average_at_the_end_has_not_failed() -> None:
    losses = torch.tensor(
        [[[1.0, 3.0], [1.0, 3.0]], [[9.0, 2.0], [9.0, 2.0]], [[0.0, 1.0], [0.0, torch.nan]]]
    )
    assert int(best_on_average(losses[..., -1])) == 1


def test_first_below_and_trailing_mean() -> None:
    curve = torch.tensor([[4.0, 2.0, 1.0, 3.0], [4.0, 4.0, 4.0, 4.0]])
    assert first_below(curve, torch.tensor([2.0, 3.0])).tolist() == [1, 4]
    assert first_below(curve, 4.0).tolist() == [0, 0]
    assert trailing_mean(curve, 2)[0].tolist() == [4.0, 3.0, 1.5, 2.0]
