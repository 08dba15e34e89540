"""Lipschitz functions on which the last iterate of subgradient descent is bad."""

from __future__ import annotations

import torch
from torch import Tensor


def last_iterate_gap(steps: Tensor, b: Tensor) -> float:
    """f(x_{T+1}) of subgradient descent from 0 with the given steps on a function of Harvey et al. (arXiv 1812.05217, section 3).

    f(x) = max_i <h_i, x>, i = 1..T+1, h_i = (a_1, ..., a_{i-1}, -b_i, 0, ...), a_j = 1/(8(T-j+1)), b_{T+1} = 0; min f = f(0) = 0.
    With b_j proportional to 1/eta_j, at most 1/2, it is built against the steps eta_j; ||h_i||^2 <= 1/4 + pi^2/384.
    The oracle returns h_i of the smallest active i. O(T) a step by prefix sums. steps, b: (T,).
    """
    T = len(steps)
    a = 1 / (8 * (T - torch.arange(1, T + 1, dtype=steps.dtype) + 1))
    x = torch.zeros_like(steps)

    def pieces() -> Tensor:
        before = torch.cat([x.new_zeros(1), (a * x).cumsum(0)])
        return before - torch.cat([b * x, x.new_zeros(1)])

    for eta in steps:
        values = pieces()
        i = int(torch.nonzero(values >= values.max())[0])
        x[:i] -= eta * a[:i]
        if i < T:
            x[i] += eta * b[i]
    return float(pieces().max())
