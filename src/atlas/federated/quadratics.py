"""Clients with quadratic losses that differ, and a smooth non-convex term that they share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Quadratics:
    """f_i(x) = sum_j a_ij (x_j - b_ij)^2 / 2 + ripple x_j^2 / (1 + x_j^2); f = mean of the f_i.

    a, b: (..., N, d) for N clients in d dimensions. The clients' curvatures differ, without which local steps would have no bias.
    The second derivative of the shared term lies within [-ripple/2, 2 ripple].
    """

    a: Tensor
    b: Tensor
    ripple: float = 0.0

    def gradients(self, x: Tensor) -> Tensor:
        """grad f_i(x_i) of every client at its own point. x: broadcasts against (..., N, d)."""
        g = self.a * (x - self.b)
        if self.ripple:
            g += 2 * self.ripple * x / (1 + x.square()).square()
        return g

    def gradient(self, x: Tensor) -> Tensor:
        """grad f(x). x: (..., d)."""
        return self.gradients(x.unsqueeze(-2)).mean(-2)

    @property
    def smoothness(self) -> float:
        """A common smoothness constant of all f_i."""
        return float(self.a.max()) + 2 * self.ripple


def draw(
    shape: tuple[int, ...],
    curvature: tuple[float, float],
    spread: float | Tensor,
    ripple: float,
    generator: torch.Generator,
) -> Quadratics:
    """a uniform in `curvature`, b_i = 1 + spread * N(0, I). shape: (..., N, d); spread broadcasts against it."""
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    low, high = curvature
    return Quadratics(low + (high - low) * uniform, 1 + spread * normal, ripple)
