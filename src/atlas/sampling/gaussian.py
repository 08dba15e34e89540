"""Normal laws through affine steps with Gaussian noise, without sampling: moments, stationary laws, Wasserstein distance.

Leading dimensions (...) are batches; float64 throughout.

>>> step = affine(langevin, n=2, m=2, batch=(10,))  # langevin(x, xi) moves x by a gradient step and noise
>>> distance = wasserstein2(target, step.stationary())  # (10,)

A step that is drawn at random from several ones is linear in the moments up to the second, not in the law: average the
matrices `on_moments()` of the candidates and use `stationary_moments`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """mean: (..., n), covariance: (..., n, n). Also the first two moments of a law that is not normal."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Affine:
    """The step x -> A x + b + N(0, Q). A, Q: (..., n, n), b: (..., n)."""

    A: Tensor
    b: Tensor
    Q: Tensor

    def __call__(self, law: Gaussian) -> Gaussian:
        """The law after the step."""
        return Gaussian(_apply(self.A, law.mean) + self.b, self.A @ law.covariance @ self.A.mT + self.Q)

    def then(self, after: Affine) -> Affine:
        """This step and then another one, with independent noise."""
        return Affine(
            after.A @ self.A, _apply(after.A, self.b) + after.b, after.A @ self.Q @ after.A.mT + after.Q
        )

    def power(self, k: int) -> Affine:
        """k >= 1 such steps, by repeated squaring."""
        if k == 1:
            return self
        half = self.power(k // 2)
        return half.then(half).then(self) if k % 2 else half.then(half)

    def stationary(self) -> Gaussian:
        """The law that the step preserves: m = A m + b and the discrete Lyapunov equation C = A C A^T + Q.

        It is the limit of many steps if the eigenvalues of A are inside the unit circle, which is not checked.
        """
        n = self.A.shape[-1]
        mean = torch.linalg.solve(_identity(n, self.A) - self.A, self.b)
        unknown = _identity(n * n, self.A) - _kron(self.A, self.A)
        covariance = torch.linalg.solve(unknown, self.Q.flatten(-2)).unflatten(-1, (n, n))
        return Gaussian(mean, (covariance + covariance.mT) / 2)

    def on_moments(self) -> Tensor:
        """The matrix that moves vec E[z z^T] with z = (1, x): (..., (n+1)^2, (n+1)^2)."""
        n = self.A.shape[-1]
        G = self.A.new_zeros(*self.A.shape[:-2], n + 1, n + 1)
        G[..., 0, 0], G[..., 1:, 0], G[..., 1:, 1:] = 1, self.b, self.A
        noise = torch.nn.functional.pad(self.Q, (1, 0, 1, 0))
        matrix = _kron(G, G)
        matrix[..., 0] += noise.flatten(-2)  # the first entry of vec E[z z^T] is 1
        return matrix


def affine(
    step: Callable[[Tensor, Tensor], Tensor],
    n: int,
    m: int,
    batch: tuple[int, ...] = (),
    device: torch.device | str = "cpu",
) -> Affine:
    """A program for one step as A, b and Q, read off from what it does to zero and to the unit vectors.

    step(x, xi): affine in the state x (..., n) and in standard normal numbers xi (..., m); it is called once, with
    1 + n + m inputs in front of `batch`.
    """
    probes = torch.eye(1 + n + m, dtype=torch.float64, device=device)[:, 1:]
    probes = probes.view(-1, *[1] * len(batch), n + m).expand(-1, *batch, -1)
    found = step(probes[..., :n], probes[..., n:])
    columns = (found[1:] - found[0]).movedim(0, -1)
    A, B = columns[..., :n], columns[..., n:]
    return Affine(A, found[0], B @ B.mT)


def moments(law: Gaussian) -> Tensor:
    """vec E[z z^T] with z = (1, x): (..., (n+1)^2)."""
    n = law.mean.shape[-1]
    second = law.mean.new_ones(*law.mean.shape[:-1], n + 1, n + 1)
    second[..., 1:, 0] = second[..., 0, 1:] = law.mean
    second[..., 1:, 1:] = law.covariance + _outer(law.mean)
    return second.flatten(-2)


def from_moments(vector: Tensor) -> Gaussian:
    """The inverse of `moments`."""
    n = round(vector.shape[-1] ** 0.5)
    second = vector.unflatten(-1, (n, n))
    mean = second[..., 1:, 0]
    return Gaussian(mean, second[..., 1:, 1:] - _outer(mean))


def stationary_moments(matrix: Tensor) -> Gaussian:
    """The moments that a matrix on moments, such as an average of `on_moments()`, preserves."""
    rest = matrix[..., 1:, 1:]
    solved = torch.linalg.solve(_identity(rest.shape[-1], rest) - rest, matrix[..., 1:, 0])
    return from_moments(torch.cat([torch.ones_like(solved[..., :1]), solved], -1))


def wasserstein2(p: Gaussian, q: Gaussian) -> Tensor:
    """The Wasserstein-2 distance of two normal laws, (...). The covariance of p must be positive definite.

    The usual W^2 = |m_p - m_q|^2 + tr(P + Q - 2 S) with S = (P^1/2 Q P^1/2)^1/2 loses half of the digits when the laws are
    close. Here W^2 = |m_p - m_q|^2 + |(S - P) P^-1/2|^2, and S - P =: D solves S D + D P = P^1/2 (Q - P) P^1/2.
    """
    squares, V = torch.linalg.eigh(p.covariance)
    root = V * squares.sqrt().unsqueeze(-2) @ V.mT
    right = root @ (q.covariance - p.covariance) @ root
    s, U = torch.linalg.eigh(p.covariance @ p.covariance + right)
    D = (U.mT @ right @ V) / (s.clamp(min=0).sqrt().unsqueeze(-1) + squares.unsqueeze(-2))
    spread = (D.square() / squares.unsqueeze(-2)).sum((-2, -1))
    return ((p.mean - q.mean).square().sum(-1) + spread).sqrt()


def _apply(A: Tensor, x: Tensor) -> Tensor:
    return (A @ x.unsqueeze(-1)).squeeze(-1)


def _outer(x: Tensor) -> Tensor:
    return x.unsqueeze(-1) * x.unsqueeze(-2)


def _identity(n: int, like: Tensor) -> Tensor:
    return torch.eye(n, dtype=like.dtype, device=like.device)


def _kron(A: Tensor, B: Tensor) -> Tensor:
    """(A kron B) vec X = vec(A X B^T), with rows after each other in vec. (..., n, n) each."""
    product = A[..., :, None, :, None] * B[..., None, :, None, :]
    n = A.shape[-1] * B.shape[-1]
    return product.reshape(*product.shape[:-4], n, n)
