"""A Fast and Provable Algorithm for Sparse Phase Retrieval (arXiv 2309.02046): Newton's method with hard thresholding.

Against first-order methods and hard thresholding pursuit, from the same start: errors by iteration, and how often the signal is
recovered for a number of measurements. Seeds and step sizes are one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from atlas.optim.tuning import best_on_others, chosen, first_below
from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    # errors by iteration
    n: int = 500
    s: int = 8  # entries of the signal that are not zero
    m: int = 500  # measurements, above s^2 log(n)
    seeds: int = 24
    newton_iterations: int = 12  # of Newton and HTP
    iterations: int = 50
    thwf_iterations: int = 160
    target: float = 1e-10  # of the choice of steps
    local: tuple[float, float] = (
        1e-14,
        0.3,
    )  # relative errors between rounding and the end of the local phase
    steps: tuple[float, ...] = (0.5, 1.0, 1.5)  # of first-order methods, in units of the published step
    # Newton and HTP on larger problems, n = 40 s and m = 50 s
    sizes: tuple[int, ...] = (8, 30)  # s
    size_seeds: int = 12
    # recovery by number of measurements
    phase_n: int = 200
    phase_s: int = 5
    phase_m: tuple[int, ...] = (20, 40, 60, 90, 120, 160, 200, 240)
    phase_seeds: int = 64
    phase_iterations: int = 100  # of SPARTA and CoPRAM
    phase_newton_iterations: int = 30  # of Newton and HTP, after which nothing changes
    recovered: float = 1e-3  # relative error of a recovered signal


@dataclass(frozen=True)
class Problem:
    """y_i = |<a_i, z>| with z s-sparse and of norm 1. A (S, m, n), y (S, m, 1), z (S, n, 1)."""

    A: Tensor
    y: Tensor
    z: Tensor
    s: int

    def columns(self, T: Tensor) -> Tensor:
        """A_T: (S, k) -> (S, m, k)."""
        return self.A.gather(2, T.unsqueeze(1).expand(-1, self.A.shape[1], -1))

    def adjoint(self, r: Tensor) -> Tensor:
        """A^T r: (S, m, R) -> (S, n, R); A as it lies in memory, which is faster."""
        return (r.mT @ self.A).mT

    def error(self, x: Tensor) -> Tensor:
        """min(||x - z||, ||x + z||) / ||z||: (S, n, R) -> (R, S)."""
        return torch.minimum((x - self.z).norm(dim=1), (x + self.z).norm(dim=1)).mT

    def first(self, m: int) -> Problem:
        return Problem(self.A[:, :m], self.y[:, :m], self.z, self.s)


def draw(n: int, s: int, m: int, seeds: int, generator: torch.Generator) -> Problem:
    like: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": generator.device}
    support = torch.rand(seeds, n, **like).topk(s, 1).indices
    values = torch.randn(seeds, s, **like)
    z = torch.zeros(seeds, n, dtype=torch.float64, device=generator.device).scatter(1, support, values)
    z = (z / z.norm(dim=1, keepdim=True)).unsqueeze(-1)
    A = torch.randn(seeds, m, n, **like)
    return Problem(A, (A @ z).abs(), z, s)


# The method. Iterates are (S, n, R) with R step sizes; R = 1 for methods without


def spectral_start(p: Problem) -> Tensor:
    """Sparse spectral start: (S, n, 1).

    Support: the s largest of (1/m) sum_i y_i^2 a_ij^2; on it the first eigenvector of sum_i y_i^2 a_i a_i^T, of norm (mean y^2)^(1/2).
    """
    weights = p.y.square()
    T = (p.A.square().mT @ weights).squeeze(-1).topk(p.s, 1).indices
    A_T = p.columns(T)
    v = torch.linalg.eigh(A_T.mT @ (weights * A_T)).eigenvectors[..., -1]
    x = torch.zeros_like(p.z[..., 0]).scatter(1, T, v).unsqueeze(-1)
    return x * weights.mean(1, keepdim=True).sqrt()


def largest(v: Tensor, s: int) -> Tensor:
    """Places of the s largest entries: (S, n) -> (S, s)."""
    return v.abs().topk(s, 1).indices


def amplitude_gradient(p: Problem, x: Tensor, Ax: Tensor) -> Tensor:
    """(1/m) A^T (A x - y sign(A x)), of the amplitude loss (1/2m) sum_i (|<a_i, x>| - y_i)^2."""
    return p.adjoint(Ax - p.y * Ax.sign()) / p.A.shape[1]


def newton_step(p: Problem, x: Tensor, eta: float = 0.95) -> Tensor:
    """The paper's iteration. T: the s largest entries of x - eta grad(amplitude loss); on T one Newton step for the intensity loss
    f(x) = (1/4m) sum_i (<a_i, x>^2 - y_i^2)^2 that takes into account that the other entries go to zero:

    H_TT d = H_TU x_U - grad_T f(x),  x_T <- x_T + d,  x_U <- 0,  U outside of T.
    """
    m = p.A.shape[1]
    Ax = p.A @ x
    T = largest((x - eta * amplitude_gradient(p, x, Ax)).squeeze(-1), p.s)
    A_T = p.columns(T)
    x_T = x.squeeze(-1).gather(1, T).unsqueeze(-1)
    curvature = 3 * Ax.square() - p.y.square()
    H = A_T.mT @ (curvature * A_T) / m
    gradient = A_T.mT @ (Ax**3 - p.y.square() * Ax) / m
    cross = A_T.mT @ (curvature * (Ax - A_T @ x_T)) / m  # A_U x_U = A x - A_T x_T
    d = torch.linalg.solve_ex(H, cross - gradient).result
    return torch.zeros_like(x).scatter(1, T.unsqueeze(-1), x_T + d)


# The others


def keep_largest(x: Tensor, s: int) -> Tensor:
    """Hard thresholding of every column: (S, n, R)."""
    T = x.abs().topk(s, 1).indices
    return torch.zeros_like(x).scatter(1, T, x.gather(1, T))


def gradient_step(p: Problem, x: Tensor, eta: Tensor | float = 0.95) -> Tensor:
    """The paper's iteration with the gradient instead of the Newton step: x <- H_s(x - eta grad(amplitude loss))."""
    return keep_largest(x - eta * amplitude_gradient(p, x, p.A @ x), p.s)


def sparta_step(p: Problem, x: Tensor, mu: Tensor | float = 1.0, gamma: float = 0.7) -> Tensor:
    """SPARTA: the gradient over measurements with |<a_i, x>| >= y_i / (1 + gamma) only."""
    Ax = p.A @ x
    kept = (Ax.abs() >= p.y / (1 + gamma)) * (Ax - p.y * Ax.sign())
    return keep_largest(x - mu * p.adjoint(kept) / p.A.shape[1], p.s)


def thwf_step(p: Problem, x: Tensor, mu: Tensor | float = 0.23, beta: float = 0.3) -> Tensor:
    """Thresholded Wirtinger flow: soft thresholding of the gradient step for the intensity loss at mu tau / phi^2,

    tau^2 = beta log(mn) / m^2 sum_i (y_i^2 - <a_i, x>^2)^2 <a_i, x>^2, phi^2 = mean y^2.
    """
    _, m, n = p.A.shape
    Ax = p.A @ x
    rest = (Ax.square() - p.y.square()) * Ax
    tau = (beta * math.log(m * n) * rest.square().sum(1, keepdim=True)).sqrt() / m
    mu = mu / p.y.square().mean(1, keepdim=True)
    v = x - mu * p.adjoint(rest) / m
    return v.sign() * (v.abs() - mu * tau).clamp_min(0)


def least_squares(A_T: Tensor, b: Tensor, unused: Tensor | None = None) -> Tensor:
    """argmin ||A_T v - b||, (S, k, 1), by the normal equations; v = 0 in columns that are unused (S, k)."""
    gram = A_T.mT @ A_T
    right = A_T.mT @ b
    if unused is not None:
        used = (~unused).to(b.dtype)
        gram = gram * used.unsqueeze(-1) * used.unsqueeze(-2) + torch.diag_embed(1 - used)
        right = right * used.unsqueeze(-1)
    return torch.linalg.solve_ex(gram, right).result


def htp_step(p: Problem, x: Tensor, eta: float = 0.95) -> Tensor:
    """Hard thresholding pursuit (arXiv 2005.08777): the same support T, then least squares for A_T v = y sign(A x)."""
    Ax = p.A @ x
    T = largest((x - eta * amplitude_gradient(p, x, Ax)).squeeze(-1), p.s)
    v = least_squares(p.columns(T), p.y * Ax.sign())
    return torch.zeros_like(x).scatter(1, T.unsqueeze(-1), v)


class CoPRAM:
    """Alternates the signs p = sign(A x) and CoSaMP for A x = p y, of at most `inner` iterations; a call is one of these."""

    def __init__(self, p: Problem, inner: int = 10, tolerance: float = 1e-2) -> None:
        self.inner, self.tolerance = inner, tolerance
        self.b = torch.zeros_like(p.y)
        self.left = torch.zeros(len(p.y), dtype=torch.long, device=p.y.device)

    def state_dict(self) -> dict[str, Tensor]:
        return {"b": self.b, "left": self.left}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.b, self.left = state["b"], state["left"]

    def __call__(self, p: Problem, x: Tensor) -> Tensor:
        Ax = p.A @ x
        self.b = torch.where((self.left == 0)[:, None, None], p.y * Ax.sign(), self.b)
        self.left = torch.where(self.left == 0, self.inner, self.left) - 1
        old = largest(x.squeeze(-1), p.s)
        new = largest(p.adjoint(self.b - Ax).squeeze(-1), 2 * p.s)
        T = torch.cat([old, new], 1)
        repeated = (new.unsqueeze(2) == old.unsqueeze(1)).any(2)
        unused = torch.cat([torch.zeros_like(old, dtype=torch.bool), repeated], 1)
        v = least_squares(p.columns(T), self.b, unused)
        next_x = keep_largest(torch.zeros_like(x).scatter_add(1, T.unsqueeze(-1), v), p.s)
        settled = (next_x - x).norm(dim=1) < self.tolerance * next_x.norm(dim=1)
        self.left = torch.where(settled.squeeze(-1), 0, self.left)
        return next_x


def iterate(
    step: Callable[[Problem, Tensor], Tensor], p: Problem, x: Tensor, iterations: int, name: str, run: Run
) -> Tensor:
    """Relative errors of x_0, ..., x_K: (R, S, K + 1)."""
    state: dict[str, Any] = {"x": x, "errors": [p.error(x)]}
    if isinstance(step, CoPRAM):
        state["memory"] = step
    for _ in run.checkpoint(name, iterations, state):
        state["x"] = step(p, state["x"])
        state["errors"].append(p.error(state["x"]))
    return torch.stack(state["errors"], -1)


def convergence(setting: Setting, run: Run, add: Callable[..., None]) -> None:
    """Relative error by iteration; the step of a first-order method is the one that is fastest on all other seeds."""
    p = draw(setting.n, setting.s, setting.m, setting.seeds, run.generator("convergence"))
    x = spectral_start(p)
    factor = torch.tensor(setting.steps, dtype=x.dtype, device=run.device)
    K = setting.iterations
    curves = {
        "Newton": iterate(newton_step, p, x, setting.newton_iterations, "Newton", run)[0],
        "CoPRAM": iterate(CoPRAM(p), p, x, K, "CoPRAM", run)[0],
    }
    first_order: dict[str, tuple[Callable[..., Tensor], int]] = {
        "gradient step": (partial(gradient_step, eta=0.95 * factor), K),
        "SPARTA": (partial(sparta_step, mu=factor), K),
        "ThWF": (partial(thwf_step, mu=0.23 * factor), setting.thwf_iterations),
    }
    for name, (step, iterations) in first_order.items():
        errors = iterate(step, p, x.expand(-1, -1, len(factor)), iterations, name, run)
        best = best_on_others(first_below(errors, setting.target).to(x.dtype))
        curves[name] = chosen(errors, best)
        add(name, "step chosen", x=iterations, value=factor[best])
    for name, errors in curves.items():
        add(name, "relative error", x=range(errors.shape[1]), value=errors)
        if name in ("Newton", "gradient step"):  # the local phase, run by run
            for seed, error in enumerate(errors.tolist()):
                low, high = setting.local
                points = [(k, e) for k, e in enumerate(error) if low < e < high] or [(0, math.nan)]
                k, e = zip(*points, strict=True)
                add(name, "local relative error", x=k, value=[e], seed=[seed])


def second_order(setting: Setting, run: Run, add: Callable[..., None]) -> None:
    """Newton and HTP by the number s of entries, n = 40 s, m = 50 s."""
    for s in setting.sizes:
        p = draw(40 * s, s, 50 * s, setting.size_seeds, run.generator("sizes", s))
        x, K = spectral_start(p), setting.newton_iterations
        for name, step, iterations in (
            ("Newton", newton_step, K),
            ("HTP", htp_step, K),
            ("gradient step", gradient_step, setting.iterations),
        ):
            errors = iterate(step, p, x, iterations, f"{name}, s = {s}", run)[0]
            add(name, "relative error, m = 50 s", x=range(iterations + 1), value=errors, s=s)


def recovery(setting: Setting, run: Run, add: Callable[..., None]) -> None:
    """Whether the signal is recovered from the first m measurements, for every m; and from measurements in random order."""
    generator = run.generator("recovery")
    everything = draw(setting.phase_n, setting.phase_s, max(setting.phase_m), setting.phase_seeds, generator)
    order = torch.rand(everything.y.shape, generator=generator, dtype=everything.y.dtype, device=run.device)
    for m in setting.phase_m:
        p = everything.first(m)
        shuffled = Problem(p.A, p.y.gather(1, order[:, :m].argsort(1)), p.z, p.s)
        start, K = spectral_start(p), setting.phase_newton_iterations
        for name, q, x, step, iterations in (
            ("Newton", p, start, newton_step, K),
            ("HTP", p, start, htp_step, K),
            ("SPARTA", p, start, sparta_step, setting.phase_iterations),
            ("CoPRAM", p, start, CoPRAM(p), setting.phase_iterations),
            ("Newton, y shuffled", shuffled, spectral_start(shuffled), newton_step, K),
        ):
            errors = iterate(step, q, x, iterations, f"{name}, m = {m}", run)
            add(name, "recovered", x=m, value=errors[0, :, -1] <= setting.recovered)


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    for part in (convergence, second_order, recovery):
        part(setting, run, table.add)
    return table.frame()
