"""Improved Analysis of Score-based Generative Modeling (arXiv 2211.01916).

The error of the exponential-integrator sampler with the exact score, as path-space (Girsanov) KL divergence, in closed
form from posterior variances: no network, no samples of paths. numpy and scipy: everything is one-dimensional quadrature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.special import gammaincinv, ive, ndtr

from atlas.run import Run

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    draws: int = 8  # random laws, in place of seeds
    steps: tuple[int, ...] = (200, 400, 800, 1600)
    deltas: tuple[float, ...] = (1e-2, 1e-3, 1e-4)  # early stopping, for the rate in N
    delta_grid: tuple[float, ...] = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
    delta_steps: int = 400
    T: float = 5.0  # sampling starts from the exact law at time T: no truncation error
    atoms: int = 5
    cantor_depth: int = 5  # gaps of 1/243, close to the noise at delta = 1e-5
    dims: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    dim_delta: float = 1e-3
    dim_steps: int = 3200
    points: int = 64  # atoms in d dimensions
    samples: int = 500  # Monte Carlo for those
    per_e_fold: int = 8  # grid of the tabulated posterior variance


Ratio = Callable[[float], float]  # t -> e^(-2t) mmse(t) / sigma_t^2, between 0 and d


def atoms_ratio(a: Array, p: Array) -> Ratio:
    """For a law on points a (K,) with weights p (K,): trapezoidal rule in the noise around every atom."""
    z = np.linspace(-8, 8, 240)
    weight = np.exp(-(z**2) / 2)
    weight /= weight.sum()
    apart = a[:, None] - a[None, :]

    def ratio(t: float) -> float:
        scale = np.exp(-t) / np.sqrt(1 - np.exp(-2 * t))
        D = scale * apart  # distances in units of sigma
        log_w = np.log(p)[None, :, None] - 0.5 * (D[:, :, None] + z[None, None, :]) ** 2
        w = np.exp(log_w - log_w.max(1, keepdims=True))
        w /= w.sum(1, keepdims=True)
        b = scale * a
        mean = np.einsum("ijz,j->iz", w, b)
        variance = np.einsum("ijz,j->iz", w, b**2) - mean**2
        return float(p @ np.maximum(variance, 0) @ weight)

    return ratio


def segment_ratio(R: float) -> Ratio:
    """For the uniform law on [-R, R]: the posterior is a normal law truncated to the segment."""

    def ratio(t: float) -> float:
        c = np.exp(-t) * R / np.sqrt(1 - np.exp(-2 * t))  # half length in units of sigma
        u = np.linspace(max(0.0, c - 9), c + 6, 3000)
        alpha, beta = -c - u, c - u
        phi = lambda v: np.exp(-(v**2) / 2) / np.sqrt(2 * np.pi)
        Z = ndtr(beta) - ndtr(alpha)
        variance = 1 - (beta * phi(beta) - alpha * phi(alpha)) / Z - ((phi(beta) - phi(alpha)) / Z) ** 2
        density = Z / (2 * c)
        inside = max(0.0, c - 9) * 2 / (2 * c)  # far from the ends the posterior variance is sigma^2
        return float(inside + 2 * np.trapezoid(variance * density, u))

    return ratio


def sphere_ratio(R: float, d: int) -> Ratio:
    """For the uniform law on the sphere of radius R in d dimensions: the posterior is von Mises-Fisher."""
    z, wz = np.polynomial.hermite_e.hermegauss(40)
    wz = wz / wz.sum()
    # the squared length of the d - 1 components across, chi-square, by its quantiles
    nodes, wn = np.polynomial.legendre.leggauss(40)
    across, wa = 2 * gammaincinv((d - 1) / 2, (nodes + 1) / 2), wn / 2

    def ratio(t: float) -> float:
        b = np.exp(-t) * R / np.sqrt(1 - np.exp(-2 * t))
        r = np.sqrt((b + z[:, None]) ** 2 + across[None, :])
        k = b * r
        A = ive(d / 2, k) / np.maximum(ive(d / 2 - 1, k), 1e-300)  # mean resultant length
        return float(b**2 * (1 - wz @ (A**2) @ wa))

    return ratio


def points_ratio(a: Array, rng: np.random.Generator, samples: int) -> Ratio:
    """For equal weights on points a (K, d): Monte Carlo with the same noise at every t."""
    i = rng.integers(len(a), size=samples)
    apart = a[i][:, None, :] - a[None]
    squares = np.square(apart).sum(-1)
    inner = np.einsum("mkd,md->mk", apart, rng.normal(size=(samples, a.shape[1])))
    norms = np.square(a).sum(1)

    def ratio(t: float) -> float:
        scale = np.exp(-t) / np.sqrt(1 - np.exp(-2 * t))
        log_w = -0.5 * scale**2 * squares - scale * inner
        w = np.exp(log_w - log_w.max(1, keepdims=True))
        w /= w.sum(1, keepdims=True)
        variance = w @ norms - np.square(w @ a).sum(1)
        return float(scale**2 * np.maximum(variance, 0).mean())

    return ratio


def fisher(ratio: Ratio, d: int, smallest: float, T: float, per_e_fold: int) -> Callable[[Array], Array]:
    """phi(t) = E|grad log q_t(X_t)|^2 = (d - e^(-2t) mmse(t)/sigma_t^2) / sigma_t^2 on [smallest, T], by a spline in log t."""
    log_t = np.linspace(np.log(smallest), np.log(T), int(np.log(T / smallest) * per_e_fold) + 2)
    spline = CubicSpline(log_t, [ratio(t) for t in np.exp(log_t)])
    return lambda t: (d - spline(np.log(t))) / -np.expm1(-2 * t)


def exponential_steps(N: int, T: float, delta: float) -> Array:
    """Times T = t_0 > ... > t_N = delta with t_k - t_{k+1} = kappa min(1, t_k) up to rounding."""
    far = round(N * (T - 1) / (T - 1 + np.log(1 / delta)))
    return np.concatenate([np.linspace(T, 1, far + 1), np.geomspace(1, delta, N - far + 1)[1:]])


def uniform_steps(N: int, T: float, delta: float) -> Array:
    return np.linspace(T, delta, N + 1)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def path_kl(phi: Callable[[Array], Array], t: Array) -> float:
    """sum_k of the integral over [t_{k+1}, t_k] of E|s_t(X_t) - s_{t_k}(X_{t_k})|^2 dt for descending times t.

    For dX = -X dt + sqrt(2) dB and the score frozen at the start of each step. e^(-t) s_t(X_t) is a martingale in
    reversed time, so the expectation is phi(t) + phi(t_k) - 2 e^(t - t_k) phi(t_k).
    """
    start, end = t[:-1, None], t[1:, None]
    log_nodes = (np.log(start) + np.log(end)) / 2 + (np.log(start) - np.log(end)) / 2 * _NODES
    nodes = np.exp(log_nodes)
    frozen = phi(start)
    values = phi(nodes) + frozen - 2 * np.exp(nodes - start) * frozen
    weight = (np.log(start) - np.log(end)) / 2 * _WEIGHTS * nodes
    return float((values * weight).sum())


def laws(setting: Setting, rng: np.random.Generator) -> dict[str, list[Ratio]]:
    """Non-smooth laws on the line, each in random placements."""
    depth = setting.cantor_depth
    cantor = (
        np.array([sum(2 * ((i >> k) & 1) / 3 ** (k + 1) for k in range(depth)) for i in range(2**depth)])
        - 0.5
    )
    even = np.full(len(cantor), 1 / len(cantor))

    def size() -> float:
        return rng.uniform(0.7, 1.4)

    return {
        "random points": [
            atoms_ratio(rng.normal(size=setting.atoms), rng.dirichlet(np.ones(setting.atoms)))
            for _ in range(setting.draws)
        ],
        "two points": [
            atoms_ratio(size() * np.array([-1.0, 1.0]), np.array([0.5, 0.5])) for _ in range(setting.draws)
        ],
        "Cantor": [atoms_ratio(2 * size() * cantor, even) for _ in range(setting.draws)],
        "segment": [segment_ratio(size()) for _ in range(setting.draws)],
    }


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table, T = run.table(), setting.T
    schedules = {"exponential steps": exponential_steps, "uniform steps": uniform_steps}
    smallest = min(*setting.deltas, *setting.delta_grid)
    log_inverse = -np.log(setting.delta_grid)

    for law, draws in run.progress(list(laws(setting, run.rng("laws")).items()), "laws"):
        phis = [fisher(ratio, 1, smallest, T, setting.per_e_fold) for ratio in draws]
        for name, schedule in schedules.items():
            for delta in setting.deltas:
                kl = [[path_kl(phi, schedule(N, T, delta)) for N in setting.steps] for phi in phis]
                table.add(
                    name, "path KL", x=setting.steps, value=np.array(kl), law=law, delta=delta, part="steps"
                )
            kl = [
                [path_kl(phi, schedule(setting.delta_steps, T, delta)) for delta in setting.delta_grid]
                for phi in phis
            ]
            table.add(name, "path KL", x=log_inverse, value=np.array(kl), law=law, part="smoothness")
        fewer = (setting.delta_steps * (log_inverse[0] / log_inverse) ** 2).round().astype(int)
        kl = [
            [
                path_kl(phi, exponential_steps(N, T, delta))
                for N, delta in zip(fewer, setting.delta_grid, strict=True)
            ]
            for phi in phis
        ]
        table.add("N/log^2 steps", "path KL", x=log_inverse, value=np.array(kl), law=law, part="smoothness")

    rng = run.rng("dimensions")
    delta, N = setting.dim_delta, setting.dim_steps
    for law in ("sphere", "random points in d dimensions"):
        kl = np.empty((2, setting.draws, len(setting.dims)))
        for j, d in enumerate(run.progress(setting.dims, law)):
            for i in range(setting.draws):
                ratio = (
                    sphere_ratio(rng.uniform(0.8, 1.25) * d**0.5, d)
                    if law == "sphere"
                    else points_ratio(rng.normal(size=(setting.points, d)), rng, setting.samples)
                )
                phi = fisher(ratio, d, delta, T, setting.per_e_fold)
                for k, steps in enumerate((N, N // d)):
                    kl[k, i, j] = path_kl(phi, exponential_steps(steps, T, delta))
        for name, values in zip(("N steps", "N/d steps"), kl, strict=True):
            table.add(name, "path KL", x=setting.dims, value=values, law=law, part="dimension")
    return table.frame()
