"""Linear models, many problems at once: least squares and logistic regression with loss, gradient, Hessian and exact minimum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LinearModel(ABC):
    """f(x) = mean_i l(<a_i, x>, b_i) + ridge ||x||^2 / 2 of S problems. A: (S, n, d), b: (S, n), x: (S, d)."""

    A: Tensor
    b: Tensor
    ridge: float = 0.0
    largest: ClassVar[float]  # the largest second derivative of l in its first argument

    @abstractmethod
    def of(self, t: Tensor) -> Tensor:
        """l(t_i, b_i). t: (S, n)."""

    @abstractmethod
    def slope(self, t: Tensor) -> Tensor:
        """The derivative of l by t."""

    @abstractmethod
    def curvature(self, t: Tensor) -> Tensor:
        """The second derivative of l by t."""

    def predictions(self, x: Tensor) -> Tensor:
        return torch.einsum("snd,sd->sn", self.A, x)

    def loss(self, x: Tensor) -> Tensor:
        """(S, d) -> (S,)."""
        return self.of(self.predictions(x)).mean(1) + self.ridge / 2 * x.square().sum(1)

    def gradient(self, x: Tensor) -> Tensor:
        """(S, d) -> (S, d)."""
        return torch.einsum("snd,sn->sd", self.A, self.slope(self.predictions(x))) / self.A.shape[1] + self.ridge * x  # fmt: skip

    def hessian(self, x: Tensor, block: Tensor | None = None) -> Tensor:
        """(S, d, d), or its rows and columns in block (S, k): (S, k, k)."""
        return self._squares(self.curvature(self.predictions(x)), block)

    def hessian_bound(self, block: Tensor | None = None) -> Tensor:
        """A matrix that no Hessian exceeds (in the order of symmetric matrices): (S, d, d) or (S, k, k)."""
        return self._squares(torch.full_like(self.b, self.largest), block)

    def coordinate_bounds(self) -> Tensor:
        """The diagonal of `hessian_bound`: Lipschitz constants L_i of the partial derivatives. (S, d)."""
        return self.largest * self.A.square().mean(1) + self.ridge

    def minimum(self, iterations: int = 100) -> Tensor:
        """The minimiser (S, d) by Newton's method with halved steps, to rounding; the Hessian must be regular there.

        Raises ValueError if a problem has none (separable classes without a ridge) or the iterations are too few.
        """
        x = torch.zeros_like(self.A[:, 0])
        best = self.gradient(x).norm(dim=1)
        small = 1e-10 * best
        for _ in range(iterations):
            direction = torch.linalg.solve(self.hessian(x), self.gradient(x))
            step, loss = torch.ones_like(best), self.loss(x)
            for _ in range(40):
                tried = x - step.unsqueeze(1) * direction
                worse = self.loss(tried) > loss + 1e-15 * loss.abs()
                if not worse.any():
                    break
                step = torch.where(worse, step / 2, step)
            size = self.gradient(tried).norm(dim=1)
            done = (best <= small) & (size > best / 2)  # what is left is rounding
            if done.all():
                return x
            x = torch.where(done.unsqueeze(1), x, tried)
            best = torch.where(done, best, size)
        raise ValueError("no minimum found: does it exist?")

    def _squares(self, weights: Tensor, block: Tensor | None) -> Tensor:
        A = self.A if block is None else self.A.gather(2, block.unsqueeze(1).expand(-1, self.A.shape[1], -1))
        H = A.mT @ (A * weights.unsqueeze(-1)) / A.shape[1]
        return H + self.ridge * torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)


class LeastSquares(LinearModel):
    """l(t, b) = (t - b)^2 / 2."""

    largest = 1.0

    def of(self, t: Tensor) -> Tensor:
        return (t - self.b).square() / 2

    def slope(self, t: Tensor) -> Tensor:
        return t - self.b

    def curvature(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class Logistic(LinearModel):
    """l(t, b) = log(1 + exp(-b t)), classes b = -1 and 1."""

    largest = 0.25

    def of(self, t: Tensor) -> Tensor:
        return F.softplus(-self.b * t)

    def slope(self, t: Tensor) -> Tensor:
        return -self.b * torch.sigmoid(-self.b * t)

    def curvature(self, t: Tensor) -> Tensor:
        return torch.sigmoid(t) * torch.sigmoid(-t)
