"""Which clients take part in a round."""

from __future__ import annotations

import torch
from torch import Tensor


def without_replacement(pool: Tensor, n: int, seeds: int, generator: torch.Generator) -> Tensor:
    """n different clients of `pool` (m,), drawn for every seed: (seeds, n)."""
    order = torch.rand(seeds, len(pool), generator=generator, device=pool.device).argsort(-1)
    return pool[order[:, :n]]


def of_clients(values: Tensor, chosen: Tensor) -> Tensor:
    """What belongs to the chosen clients. values: (..., N, d), chosen: (..., n); returns (..., n, d)."""
    return values.gather(-2, chosen.unsqueeze(-1).expand(*chosen.shape, values.shape[-1]))
