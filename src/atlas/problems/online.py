"""Online convex optimization: losses that come one after the other, and the regret of a learner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atlas.run import Loop, plain


@dataclass(frozen=True)
class PeriodicLinear:
    """f_t(x) = c_t x on [-radius, radius], t = 1, 2, ...; the slopes c_t repeat with a period. slopes: (period, *batch)."""

    slopes: Tensor
    radius: float = 1.0

    def slope(self, t: int) -> Tensor:
        return self.slopes[(t - 1) % len(self.slopes)]

    def project(self, x: Tensor) -> Tensor:
        return x.clamp(-self.radius, self.radius)

    def least(self, T: int) -> Tensor:
        """min over x of f_1(x) + ... + f_T(x): (*batch)."""
        full, rest = divmod(T, len(self.slopes))
        return -self.radius * (full * self.slopes.sum(0) + self.slopes[:rest].sum(0)).abs()


def rare_large(C: Tensor) -> PeriodicLinear:
    """Slope C in the first of every three rounds and -1 in the others (arXiv 1904.09237, theorem 1). C: (*batch).

    For C > 2 the best x is -1. Adam with beta_1 = 0, beta_2 = 1 / (1 + C^2) and steps alpha / sqrt(t) goes to 1, where its regret
    is 2 (C - 2) / 3 a round.
    """
    return PeriodicLinear(torch.stack([C, -torch.ones_like(C), -torch.ones_like(C)]))


def average_regret(
    problem: PeriodicLinear, learner: Callable[..., Tensor], x: Tensor, memory: Any, horizons: tuple[int, ...], loop: Loop = plain
) -> Tensor:  # fmt: skip
    """(f_1(x_1) + ... + f_T(x_T) - min_x (f_1(x) + ... + f_T(x))) / T for every horizon T: (horizons, *x.shape).

    x_1 = x and x_{t+1} = projection of learner(x_t, gradient of f_t, t, memory), which writes its memory in place.
    """
    state = {"x": x, "memory": memory, "loss": torch.zeros_like(x)}
    state["regret"] = torch.full((len(horizons), *x.shape), torch.nan, dtype=x.dtype, device=x.device)
    place = {T: i for i, T in enumerate(horizons)}
    for t in (step + 1 for step in loop(max(horizons), state)):
        g = problem.slope(t).expand(x.shape)
        state["loss"] += g * state["x"]
        state["x"] = problem.project(learner(state["x"], g, t, state["memory"]))
        if t in place:
            state["regret"][place[t]] = (state["loss"] - problem.least(t)) / t
    return state["regret"]
