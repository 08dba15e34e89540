"""Revisiting the Effects of Stochasticity for Hamiltonian Samplers (arXiv 2106.16200): the bias of SGHMC in the step size.

Bayesian linear regression, whose potential is a sum of quadratics, one for each mini-batch. Then every step is affine with
Gaussian noise, and the stationary moments, over all orders of the mini-batches, are the solution of a linear system.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from atlas.run import Run
from atlas.sampling.gaussian import Gaussian, affine, from_moments, moments, stationary_moments


@dataclass(frozen=True)
class Setting:
    problems: int = 20  # data sets and frictions, in place of seeds
    dim: int = 3  # features
    observations: int = 16
    prior: float = 0.1  # precision of the prior; that of the data is about 1
    friction: tuple[float, float] = (0.5, 5.0)  # C, drawn on a logarithmic scale
    batches: int = 4  # mini-batches K of an epoch
    step_powers: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 9, 10, 11, 12)  # eta = 2^-power
    small: int = 6  # power from which on the integrators' biases are compared


@dataclass(frozen=True)
class Potential:
    """U(theta) = theta^T H theta / 2 - g^T theta. H: (P, d, d), g: (P, d) for P problems."""

    H: Tensor
    g: Tensor

    def gradient(self, theta: Tensor) -> Tensor:
        """theta: (..., P, d)."""
        return (self.H @ theta.unsqueeze(-1)).squeeze(-1) - self.g


Integrator = Callable[[Tensor, Tensor, Potential, Tensor], tuple[Tensor, Tensor]]


def euler(theta: Tensor, r: Tensor, U: Potential, eta: Tensor) -> tuple[Tensor, Tensor]:
    """Order 1."""
    return theta + eta * r, r - eta * U.gradient(theta)


def leapfrog(theta: Tensor, r: Tensor, U: Potential, eta: Tensor) -> tuple[Tensor, Tensor]:
    """Order 2."""
    r = r - eta / 2 * U.gradient(theta)
    theta = theta + eta * r
    return theta, r - eta / 2 * U.gradient(theta)


def fourth_order(theta: Tensor, r: Tensor, U: Potential, eta: Tensor) -> tuple[Tensor, Tensor]:
    """Order 4: three leapfrog steps, the second one backwards (Yoshida 1990)."""
    outer = 1 / (2 - 2 ** (1 / 3))
    for part in (outer, 1 - 2 * outer, outer):
        theta, r = leapfrog(theta, r, U, part * eta)
    return theta, r


def exact_flow(theta: Tensor, r: Tensor, U: Potential, eta: Tensor) -> tuple[Tensor, Tensor]:
    """No discretisation error: harmonic motion around the minimum of U along each eigenvector of H."""
    squares, V = torch.linalg.eigh(U.H)
    omega, centre = squares.sqrt(), torch.linalg.solve(U.H, U.g)

    def into(x: Tensor) -> Tensor:
        return (V.mT @ x.unsqueeze(-1)).squeeze(-1)

    q, p = into(theta - centre), into(r)
    cos, sin = torch.cos(omega * eta), torch.sin(omega * eta)
    q, p = cos * q + sin / omega * p, cos * p - sin * omega * q
    return centre + (V @ q.unsqueeze(-1)).squeeze(-1), (V @ p.unsqueeze(-1)).squeeze(-1)


INTEGRATORS: dict[str, Integrator] = {
    "Euler": euler,
    "leapfrog": leapfrog,
    "fourth order": fourth_order,
    "exact flow": exact_flow,
}


def sghmc_step(
    theta: Tensor, r: Tensor, xi: Tensor, U: Potential, eta: Tensor, C: Tensor, integrate: Integrator
) -> tuple[Tensor, Tensor]:
    """One step of d theta = r dt, d r = -grad U dt - C r dt + sqrt(2C) dW, split into friction with noise and Hamilton's equations.

    Half a step of the first, solved exactly; a step of the second by an integrator; half a step of the first:

        r <- exp(-C eta / 2) r + sqrt(1 - exp(-C eta)) xi_1;   theta, r <- integrate(theta, r);   r <- ... xi_2

    U: for a mini-batch k of K this is K U_k. theta, r: (..., P, d); xi: (..., P, 2 d), standard normal; C: (P, 1); eta: (..., 1, 1).
    """
    keep, noise = torch.exp(-C * eta / 2), torch.sqrt(-torch.expm1(-C * eta))
    xi_1, xi_2 = xi.chunk(2, -1)
    theta, r = integrate(theta, keep * r + noise * xi_1, U, eta)
    return theta, keep * r + noise * xi_2


def on_moments(U: Potential, eta: Tensor, C: Tensor, integrate: Integrator) -> Tensor:
    """What one step does to the moments of (theta, r), for all step sizes eta (E,) and problems: (E, P, m, m), m = (2d+1)^2."""
    P, d = U.g.shape
    eta = eta.view(-1, 1, 1)

    def step(x: Tensor, xi: Tensor) -> Tensor:
        theta, r = x.chunk(2, -1)
        return torch.cat(sghmc_step(theta, r, xi, U, eta, C, integrate), -1)

    return affine(step, 2 * d, 2 * d, (len(eta), P), U.H.device).on_moments()


def in_order(steps: list[Tensor]) -> list[Tensor]:
    """What the first 1, ..., K steps of an epoch do to the moments, in the order given."""
    return list(itertools.accumulate(steps, lambda before, step: step @ before))


def reshuffled(steps: list[Tensor]) -> list[Tensor]:
    """The same, averaged over all K! orders of the steps, by recursion over the sets of mini-batches that have been used.

    T(set) = mean over k in the set of T_k T(set without k), where k is the last one.
    """
    K = len(steps)
    T = {1 << k: step for k, step in enumerate(steps)}
    for used in range(1, 1 << K):
        last = [k for k in range(K) if used >> k & 1]
        if len(last) > 1:
            T[used] = torch.stack([steps[k] @ T[used ^ 1 << k] for k in last]).mean(0)
    return [torch.stack([T[s] for s in T if s.bit_count() == j]).mean(0) for j in range(1, K + 1)]


def independent(steps: list[Tensor]) -> list[Tensor]:
    """Every step draws its mini-batch anew."""
    return [torch.stack(steps).mean(0)]


SCHEDULES: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
    "reshuffled": reshuffled,
    "independent draws": independent,
    "fixed order": in_order,
}


def stationary(epoch: list[Tensor]) -> dict[str, Gaussian]:
    """Moments in the long run, of samples taken at the ends of epochs or after every step; NaN where they do not converge.

    epoch: what its first 1, ..., K steps do to the moments, (..., m, m) each.
    """
    end = moments(stationary_moments(epoch[-1]))
    every = (torch.stack(epoch).mean(0) @ end.unsqueeze(-1)).squeeze(-1)
    radius = torch.linalg.eigvals(epoch[-1][..., 1:, 1:]).abs().amax(-1, keepdim=True)
    return {
        when: from_moments(torch.where(radius < 1, vector, torch.nan))
        for when, vector in (("epoch ends", end), ("all steps", every))
    }


def bias(law: Gaussian, target: Tensor, n: int) -> Tensor:
    """Relative error of the first and second moments of the first n coordinates; the target has mean zero. target: (P, N, N)."""
    mean, exact = law.mean[..., :n], target[:, :n, :n]
    second = law.covariance[..., :n, :n] + mean.unsqueeze(-1) * mean.unsqueeze(-2)
    squares = mean.square().sum(-1) + (second - exact).square().sum((-2, -1))
    return (squares / exact.square().sum((-2, -1))).sqrt()


@dataclass(frozen=True)
class Regression:
    """y = X w + noise of variance N, prior N(0, 1 / prior) for w. theta = w - posterior mean: the minimum of the potential is 0.

    X: (P, N, d), residual at theta = 0: (P, N), mean: (P, d).
    """

    X: Tensor
    residual: Tensor
    mean: Tensor
    prior: float

    def batches(self, K: int) -> list[Potential]:
        """K U_k for K mini-batches of equal size, each with its part of the prior."""
        N, d = self.X.shape[1:]
        X, residual = (v.unflatten(1, (K, -1)).transpose(0, 1) for v in (self.X, self.residual.unsqueeze(-1)))
        H = K / N * X.mT @ X + self.prior * torch.eye(d, dtype=X.dtype, device=X.device)
        g = (K / N * X.mT @ residual).squeeze(-1) - self.prior * self.mean
        return [Potential(*part) for part in zip(H, g, strict=True)]


def draw(setting: Setting, run: Run) -> tuple[Regression, Tensor]:
    """Data sets, and frictions (P, 1)."""
    P, N, d = setting.problems, setting.observations, setting.dim
    generator = run.generator("data")
    options: dict[str, Any] = {"dtype": torch.float64, "device": run.device}
    X, w, noise = (
        torch.randn(shape, generator=generator, **options) for shape in ((P, N, d), (P, d, 1), (P, N, 1))
    )
    y = X @ w + N**0.5 * noise
    precision = X.mT @ X / N + setting.prior * torch.eye(d, **options)
    mean = torch.linalg.solve(precision, X.mT @ y / N)
    low, high = setting.friction
    C = low * (high / low) ** torch.rand(P, 1, generator=generator, **options)
    return Regression(X, (y - X @ mean).squeeze(-1), mean.squeeze(-1), setting.prior), C


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table, d = run.table(), setting.dim
    data, C = draw(setting, run)
    eta = 2.0 ** -torch.tensor(setting.step_powers, dtype=torch.float64, device=run.device)
    small = eta <= 2.0**-setting.small
    (full,) = data.batches(1)
    target = torch.stack([torch.block_diag(torch.linalg.inv(H), torch.eye(d).to(H)) for H in full.H])

    def add(gradients: str, epochs: dict[str, list[Tensor]]) -> None:
        """epochs: of every integrator."""
        laws = {name: stationary(epoch) for name, epoch in epochs.items()}
        for when in ("epoch ends", "all steps"):
            where = {"gradients": gradients, "samples": when}
            biases = {name: bias(law[when], target, 2 * d) for name, law in laws.items()}
            for name, law in laws.items():
                table.add(name, "bias", x=1 / eta, value=biases[name].T, **where)
                table.add(name, "bias of theta", x=1 / eta, value=bias(law[when], target, d).T, **where)
            ratio = (biases["leapfrog"] / biases["fourth order"])[small].log10()
            name = "leapfrog / fourth order"
            table.add(name, "log10 of the ratio of biases", x=1 / eta[small], value=ratio.T, **where)

    add("full batch", {name: [on_moments(full, eta, C, step)] for name, step in INTEGRATORS.items()})
    parts = data.batches(setting.batches)
    steps = {name: [on_moments(U, eta, C, step) for U in parts] for name, step in INTEGRATORS.items()}
    for gradients, schedule in SCHEDULES.items():
        add(gradients, {name: schedule(one) for name, one in steps.items()})
    return table.frame()
