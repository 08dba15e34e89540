"""Non-convex regression on a matrix, and gradient noise whose mean is zero but whose sign is not: for methods that orthogonalise."""

from __future__ import annotations

import torch
from torch import Tensor

from atlas.optim.orthogonal import polar


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device=generator.device)


class LogRegression:
    """f(W) = mean_i log(1 + (<A_i, W> - b_i)^2), b_i = <A_i, W*>, W (m, n); S problems at once, gradients in closed form.

    A and W* have standard normal entries; `start` is W* plus normal entries of standard deviation `distance`.
    """

    def __init__(
        self,
        problems: int,
        shape: tuple[int, int],
        measurements: int,
        generator: torch.Generator,
        distance: float = 0.02,
    ) -> None:
        self.shape = shape
        self.A = normal(generator, problems, measurements, shape[0] * shape[1])
        self.solution = normal(generator, problems, *shape)
        self.start = self.solution + distance * normal(generator, problems, *shape)

    def residual(self, W: Tensor) -> Tensor:
        """(..., S, m, n) -> (..., S, measurements)."""
        return torch.einsum("skp,...sp->...sk", self.A, (W - self.solution).flatten(-2))

    def loss(self, W: Tensor) -> Tensor:
        """(..., S, m, n) -> (..., S)."""
        return self.residual(W).square().log1p().mean(-1)

    def gradient(self, W: Tensor) -> Tensor:
        """(..., S, m, n) -> (..., S, m, n)."""
        r = self.residual(W)
        return torch.einsum("skp,...sk->...sp", self.A, 2 * r / (1 + r**2) / r.shape[-1]).unflatten(
            -1, self.shape
        )


class SkewedNoise:
    """z N0, N0 orthogonal, z = 3 with probability 0.1 and -1/3 otherwise, plus a little Gaussian: unbiased, E||noise||_F^2 = scale^2.

    Its usual sign is the wrong one, so the orthogonal factor (the sign, the direction) of a small gradient plus noise is biased.
    """

    def __init__(
        self, problems: int, shape: tuple[int, int], scale: float, generator: torch.Generator
    ) -> None:
        self.scale = scale
        self.N0 = polar(normal(generator, problems, *shape)) / shape[1] ** 0.5

    def __call__(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """shape: (..., S, m, n)."""
        u = torch.rand(shape[:-2], generator=generator, dtype=torch.float64, device=self.N0.device)
        z = torch.where(u < 0.1, 2.7, -0.3) / 0.9
        gaussian = normal(generator, *shape)
        return (
            self.scale
            * (z[..., None, None] * self.N0 + 0.1 * gaussian / (shape[-2] * shape[-1]) ** 0.5)
            / 1.005
        )
