"""The worst-case Lipschitz functions against their definition and a closed form."""

from __future__ import annotations

import math

import pytest
import torch

from atlas.problems.lipschitz import last_iterate_gap


def by_definition(steps: torch.Tensor, b: torch.Tensor) -> float:
    """The same with the vectors h_i written out."""
    T = len(steps)
    h = torch.zeros(T + 1, T, dtype=torch.float64)
    for i in range(T + 1):
        for j in range(i):
            h[i, j] = 1 / (8 * (T - j))
        if i < T:
            h[i, i] = -b[i]
    assert h.norm(dim=1).max() <= math.sqrt(1 / 4 + math.pi**2 / 384)
    x = torch.zeros(T, dtype=torch.float64)
    for eta in steps:
        values = h @ x
        active = next(i for i in range(T + 1) if values[i] >= values.max() - 1e-12)
        x = x - eta * h[active]
    return float((h @ x).max())


@pytest.mark.parametrize("T", [1, 7, 20])
def test_prefix_sums_against_the_vectors(T: int) -> None:
    t = torch.arange(1, T + 1, dtype=torch.float64)
    for steps in (t.rsqrt(), torch.full((T,), 0.3, dtype=torch.float64), (T - t + 1) / T**1.5):
        for b in ((t / T).sqrt() / 2, torch.full((T,), 0.5, dtype=torch.float64)):
            assert last_iterate_gap(steps, b) == pytest.approx(by_definition(steps, b), rel=1e-12)


def test_constant_steps_have_a_closed_form() -> None:
    """x_j = eta (1/2 - (T-j) a_j) at the end, and the last piece is active: eta (3 H + H2) / 64 with harmonic numbers H, H2."""
    T, eta = 100, 0.2
    H, H2 = (sum(1 / k**power for k in range(1, T + 1)) for power in (1, 2))
    steps, half = (torch.full((T,), value, dtype=torch.float64) for value in (eta, 0.5))
    assert last_iterate_gap(steps, half) == pytest.approx(eta * (3 * H + H2) / 64, rel=1e-12)
