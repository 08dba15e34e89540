"""Fair choices of step sizes: on seeds other than those reported."""

from __future__ import annotations

import torch
from torch import Tensor


def best_on_others(losses: Tensor) -> Tensor:
    """For every seed the step size with the least mean loss on all the other seeds. losses: (rates, S); returns (S,) indices.

    A rate that failed (NaN, infinite) on one of the others is not chosen, unless all have.
    """
    R, S = losses.shape
    if S < 2:
        raise ValueError("choosing a step size on other seeds needs at least two seeds")
    losses = losses.nan_to_num(nan=torch.inf, posinf=torch.inf)
    own = torch.eye(S, dtype=torch.bool, device=losses.device)
    others = losses.unsqueeze(1).expand(R, S, S).masked_fill(own, 0.0).sum(-1)
    return others.argmin(0)


def best_on_average(losses: Tensor) -> Tensor:
    """The step size with the least mean loss over seeds kept for tuning. losses: (..., rates, S); returns (...) indices.

    A rate with a NaN is not chosen, unless all have one.
    """
    return losses.mean(-1).nan_to_num(nan=torch.inf).argmin(-1)


def chosen(values: Tensor, index: Tensor) -> Tensor:
    """The values of the rate chosen for every seed. values: (rates, S, ...), index: (S,); returns (S, ...)."""
    return values[index, torch.arange(len(index), device=values.device)]


def trailing_mean(curve: Tensor, window: int) -> Tensor:
    """Mean of the last `window` values (of all, while there are fewer). curve: (..., T)."""
    total = torch.nn.functional.pad(curve.cumsum(-1), (window, 0))
    count = torch.arange(1, curve.shape[-1] + 1, device=curve.device).clamp(max=window)
    return (total[..., window:] - total[..., :-window]) / count


def first_below(curve: Tensor, target: Tensor | float) -> Tensor:
    """The first place at which a curve is at most `target`; its length if it never is. curve: (..., T), target: (...)."""
    target = torch.as_tensor(target, device=curve.device).unsqueeze(-1)
    hit = curve <= target
    return torch.where(hit.any(-1), hit.int().argmax(-1), curve.shape[-1])
