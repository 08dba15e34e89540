"""Online linear losses: regret against counting by hand, and the published behaviour of gradient descent and of Adam."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atlas.problems.online import PeriodicLinear, average_regret, rare_large

F64 = torch.float64


def stay(x: Tensor, g: Tensor, t: int, memory: None) -> Tensor:
    return x


def test_regret_of_staying_by_hand() -> None:
    """Losses 4x, -x, -x, 4x, ... at x = 1/2: sums 2, 1.5, 1, 3, ...; the best point is always -1, with sums -4, -3, -2, -6, ..."""
    problem = rare_large(torch.tensor(4.0, dtype=F64))
    regret = average_regret(problem, stay, torch.tensor(0.5, dtype=F64), None, (1, 2, 3, 4, 301))
    assert regret.tolist() == pytest.approx([6.0, 4.5 / 2, 3 / 3, 9 / 4, (100 + 2 + 204) / 301])


def test_best_point_is_that_of_a_grid() -> None:
    slopes = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    problem = PeriodicLinear(slopes, radius=2.0)
    grid = torch.linspace(-2, 2, 101, dtype=F64)
    for T in range(1, 13):
        total = sum(problem.slope(t) for t in range(1, T + 1))
        torch.testing.assert_close(problem.least(T), (total * grid[:, None]).amin(0))


def test_gradient_descent_keeps_the_bound_of_its_theory() -> None:
    """Zinkevich 2003, theorem 1: with steps 1 / sqrt(t) the regret is at most (2r)^2 sqrt(T) / 2 + (sqrt(T) - 1/2) max c^2."""
    C, horizons = torch.tensor([3.0, 4.0, 8.0], dtype=F64), (1, 10, 100, 1000)
    descent = lambda x, g, t, memory: x - g / t**0.5
    regret = average_regret(rare_large(C), descent, torch.ones(3, dtype=F64), None, horizons)
    for T, value in zip(horizons, regret * torch.tensor(horizons)[:, None], strict=True):
        assert (value <= 2 * T**0.5 + (T**0.5 - 0.5) * C**2).all()
    assert (regret[-1] < 0.1 * regret[0]).all()


def test_adam_goes_to_the_worst_point() -> None:
    """arXiv 1904.09237, theorem 1: beta_1 = 0, beta_2 = 1 / (1 + C^2); its regret is 2 (C - 2) / 3 a round."""
    C = torch.tensor([3.0, 4.0], dtype=F64)
    beta = 1 / (1 + C**2)

    def adam(x: Tensor, g: Tensor, t: int, v: Tensor) -> Tensor:
        v.mul_(beta).add_((1 - beta) * g**2)
        return x - 0.5 * g / (t * v).sqrt()

    x = -torch.ones(2, dtype=F64)
    regret = average_regret(rare_large(C), adam, x, torch.zeros_like(x), (4000,))
    torch.testing.assert_close(regret[0], 2 * (C - 2) / 3, atol=0.1, rtol=0)


def test_learners_that_leave_the_interval_are_projected() -> None:
    seen = []
    away = lambda x, g, t, memory: seen.append(float(x)) or x + 5
    average_regret(PeriodicLinear(torch.ones(1)), away, torch.zeros(()), None, (3,))
    assert seen == [0.0, 1.0, 1.0]
