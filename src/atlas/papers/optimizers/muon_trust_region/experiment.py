"""Understanding Gradient Orthogonalization via Non-Euclidean Trust-Region Optimization (arXiv 2503.12645).

The trust-region method with momentum in three norms, on a non-convex matrix regression and on a star-convex function whose minimum
is known. Norms, horizons, momenta and seeds are one batch, and all of them see the same noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from atlas.optim.orthogonal import polar
from atlas.optim.tuning import best_on_others, chosen
from atlas.problems.matrix import LogRegression, SkewedNoise, normal
from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    rows: int = 8
    columns: int = 6
    seeds: int = 12  # problems
    noise: float = 1.0  # E||noise||_F^2 = noise^2
    horizons: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    # non-convex
    measurements: int = 100
    distance: float = 0.1  # of the start from the solution, in every entry
    step: float = 0.7  # Frobenius norm of a step, times T^(3/4)
    # star-convex
    star_seeds: int = 40  # more, as the gap after the last step varies much from run to run
    condition: float = 50.0
    # Muon and Orthogonal-SGDM: both try all pairs, on other seeds than those reported
    steps: int = 300
    alphas: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    radii: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)
    compared: int = 50  # steps over which the method is compared with known optimizers


# The method


@dataclass(frozen=True)
class Ball:
    """A norm of matrices (..., m, n), its dual norm, and the step: `direction` solves max <M, D> over ||D|| <= 1.

    The maximum is ||M||_dual. `length` is the Frobenius norm of D, which depends on the shape only.
    """

    norm: Callable[[Tensor], Tensor]
    dual: Callable[[Tensor], Tensor]
    direction: Callable[[Tensor], Tensor]
    length: Callable[[int, int], float]


def frobenius(M: Tensor) -> Tensor:
    return M.flatten(-2).norm(dim=-1)


def singular(M: Tensor) -> Tensor:
    return torch.linalg.svdvals(M)


BALLS = {
    "spectral": Ball(lambda M: singular(M).amax(-1), lambda M: singular(M).sum(-1), polar, lambda m, n: min(m, n) ** 0.5),
    "max": Ball(lambda M: M.abs().amax((-2, -1)), lambda M: M.abs().sum((-2, -1)), torch.sign, lambda m, n: (m * n) ** 0.5),
    "Euclidean": Ball(frobenius, frobenius, lambda M: M / frobenius(M)[..., None, None], lambda m, n: 1.0),
}  # fmt: skip


def trust_region_step(
    x: Tensor, m: Tensor, g: Tensor, alpha: Tensor | float, eta: Tensor | float, beta: Tensor | float,
    direction: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """m_{k+1} = (1 - alpha) m_k + alpha g_k;  x_{k+1} = argmin <m_{k+1}, x> over ||x - (1 - beta) x_k|| <= eta.

    The minimum is (1 - beta) x_k - eta direction(m_{k+1}); beta > 0 is weight decay. Returns x_{k+1}, m_{k+1}.
    """
    m = (1 - alpha) * m + alpha * g
    return (1 - beta) * x - eta * direction(m), m


def orthogonal_sgdm_step(
    x: Tensor, m: Tensor, g: Tensor, alpha: Tensor | float, eta: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Orthogonal-SGDM (arXiv 2202.07052): every gradient is orthogonalised, then averaged. Returns x_{k+1}, m_{k+1}."""
    m = (1 - alpha) * m + alpha * polar(g)
    return x - eta * m, m


def generic_direction(M: Tensor, dual: Callable[[Tensor], Tensor]) -> Tensor:
    """`direction` of any ball from its dual norm alone: the gradient of ||M||_dual."""
    M = M.detach().requires_grad_()
    return torch.autograd.grad(dual(M).sum(), M)[0]


# Rates


class StarConvex:
    """f(W) = sqrt(q_1 q_2) / 2 with two quadratic forms q_i of E = W - W*: q_1 = sum_j l_j e_j^2, q_2 the same with l reversed.

    e are the coordinates of E in a random orthonormal basis, l_j goes from 1 to 1/condition. f(W* + s E) = s^2 f(W* + E), so f is
    star-convex around W*; it is not convex. W* has normal entries.
    """

    def __init__(self, problems: int, shape: tuple[int, int], condition: float, generator: torch.Generator) -> None:  # fmt: skip
        d = shape[0] * shape[1]
        self.shape = shape
        self.solution = normal(generator, problems, *shape)
        self.basis = torch.linalg.qr(normal(generator, problems, d, d)).Q
        self.l = condition ** -torch.linspace(0, 1, d, dtype=torch.float64, device=generator.device)
        self.start = torch.zeros_like(self.solution)

    def forms(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """e (..., S, d), q_1 and q_2 (..., S)."""
        e = torch.einsum("sdp,...sp->...sd", self.basis, (W - self.solution).flatten(-2))
        return e, e.square() @ self.l, e.square() @ self.l.flip(0)

    def loss(self, W: Tensor) -> Tensor:
        """(..., S, m, n) -> (..., S)."""
        _, q1, q2 = self.forms(W)
        return (q1 * q2).sqrt() / 2

    def gradient(self, W: Tensor) -> Tensor:
        """(..., S, m, n) -> (..., S, m, n)."""
        e, q1, q2 = self.forms(W)
        ratio = (q2 / q1).sqrt().unsqueeze(-1)
        g = (ratio * self.l + self.l.flip(0) / ratio) * e / 2
        return torch.einsum("sdp,...sd->...sp", self.basis, g).unflatten(-1, self.shape)


def runs_to_horizons(
    problem: LogRegression | StarConvex, noise: SkewedNoise, T: Tensor, alpha: Tensor, eta: Tensor, beta: Tensor, name: str, run: Run
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The method with every ball, all runs at once: horizons T (R,), ascending, alpha and beta (R,), eta (balls, R, S).

    Returns the dual norm of the gradient, averaged over every fourth step, and f(x_T): (balls, R, S) each.
    """
    alpha, beta, eta = alpha.view(-1, 1, 1, 1), beta.view(-1, 1, 1, 1), eta[..., None, None]
    x = problem.start.expand(len(BALLS), len(T), *problem.start.shape).clone()
    generator = run.generator(name, "noise")
    total = torch.zeros_like(eta[..., 0, 0])
    state: dict[str, Any] = {"x": x, "m": torch.zeros_like(x), "sum": total, "generator": generator}
    for t in run.checkpoint(name, int(T[-1]), state):
        on = int(torch.searchsorted(T, t, right=True))  # runs with T <= t have ended
        x, m = state["x"], state["m"]
        gradient = problem.gradient(x[:, on:])
        g = gradient + noise(problem.start.shape, generator)  # the same for all balls and runs
        if t == 0:
            m[:] = g  # m_0 = g_0
        for i, ball in enumerate(BALLS.values()):
            part = i, slice(on, None)
            if t % 4 == 0:
                state["sum"][part] += ball.dual(gradient[i])
            x[part], m[part] = trust_region_step(
                x[part], m[part], g[i], alpha[on:], eta[part], beta[on:], ball.direction
            )
    return state["sum"] / (T / 4).ceil().unsqueeze(-1), problem.loss(state["x"])


def rates(setting: Setting, run: Run, add: Callable[..., None]) -> None:
    """Step sizes of the theory, with momentum and, at the same radii, without."""
    S, shape = setting.seeds, (setting.rows, setting.columns)
    T = torch.tensor(sorted(setting.horizons), dtype=torch.float64, device=run.device).repeat_interleave(2)
    on = torch.tensor([True, False], device=run.device).repeat(len(T) // 2)

    generator = run.generator("non-convex")
    regression = LogRegression(S, shape, setting.measurements, generator, setting.distance)
    noise = SkewedNoise(S, shape, setting.noise, generator)
    eta = torch.stack([setting.step / ball.length(*shape) * T**-0.75 for ball in BALLS.values()])
    eta, alpha = eta.unsqueeze(-1).expand(-1, -1, S), torch.where(on, T**-0.5, 1.0)
    norms, _ = runs_to_horizons(regression, noise, T, alpha, eta, 0 * T, "non-convex", run)

    generator = run.generator("star-convex")
    star = StarConvex(setting.star_seeds, shape, setting.condition, generator)
    noise = SkewedNoise(setting.star_seeds, shape, setting.noise, generator)
    beta = T.log() / T
    eta = torch.stack([beta.unsqueeze(-1) * ball.norm(star.solution) for ball in BALLS.values()])
    alpha = torch.where(on, T ** (-2 / 3), 1.0)
    _, final = runs_to_horizons(star, noise, T, alpha, eta, beta, "star-convex", run)
    gaps = final / star.loss(star.start)

    for k, method in enumerate(("with momentum", "without momentum")):
        for i, norm in enumerate(BALLS):
            add(method, "dual norm of the gradient", x=T[k::2], value=norms[i, k::2].T, norm=norm)
            add(method, "gap / gap at the start", x=T[k::2], value=gaps[i, k::2].T, norm=norm)


# Muon and Orthogonal-SGDM


def order(setting: Setting, run: Run, add: Callable[..., None]) -> None:
    """Loss after the last step, with the momentum and radius that are best on all other seeds. Momenta start at zero."""
    S, shape = setting.seeds, (setting.rows, setting.columns)
    generator = run.generator("order")
    problem = LogRegression(S, shape, setting.measurements, generator, setting.distance)
    skewed = SkewedNoise(S, shape, setting.noise, generator)
    pairs = torch.tensor(
        list(itertools.product(setting.alphas, setting.radii)), dtype=torch.float64, device=run.device
    )
    alpha, eta = pairs.T[..., None, None, None]
    kinds = ("skewed", "Gaussian", "none")
    x = problem.start.expand(2, len(kinds), len(pairs), S, *shape).clone()
    generator = run.generator("order", "noise")
    state: dict[str, Any] = {"x": x, "m": torch.zeros_like(x), "generator": generator}
    for _ in run.checkpoint("order", setting.steps, state):
        gaussian = setting.noise / (shape[0] * shape[1]) ** 0.5 * normal(generator, S, *shape)
        noise = torch.stack([skewed(gaussian.shape, generator), gaussian, 0 * gaussian]).unsqueeze(1)
        x, m = state["x"], state["m"]
        g = problem.gradient(x) + noise
        x[0], m[0] = trust_region_step(x[0], m[0], g[0], alpha, eta, 0.0, polar)
        x[1], m[1] = orthogonal_sgdm_step(x[1], m[1], g[1], alpha, eta)
    for method, of_method in zip(("Muon", "Orthogonal-SGDM"), problem.loss(state["x"]), strict=True):
        for kind, losses in zip(kinds, of_method, strict=True):
            best = best_on_others(losses)
            add(method, "final loss", x=setting.steps, value=chosen(losses, best), noise=kind)
            for name, values in zip(("alpha chosen", "radius chosen"), pairs.T, strict=True):
                add(method, name, x=setting.steps, value=values[best], noise=kind)


# Known optimizers, each as it is usually written: (x, b, g, eta, mu) -> x, b with a buffer b


def muon(x: Tensor, b: Tensor, g: Tensor, eta: float, mu: float) -> tuple[Tensor, Tensor]:
    b = mu * b + g
    U, _, Vh = torch.linalg.svd(b, full_matrices=False)
    return x - eta * U @ Vh, b


def sign_sgd(x: Tensor, b: Tensor, g: Tensor, eta: float, mu: float) -> tuple[Tensor, Tensor]:
    b = mu * b + (1 - mu) * g
    return x - eta * torch.copysign(torch.ones_like(b), b), b


def normalised_sgd(x: Tensor, b: Tensor, g: Tensor, eta: float, mu: float) -> tuple[Tensor, Tensor]:
    b = mu * b + (1 - mu) * g
    return x - eta * b / b.square().sum((-2, -1), keepdim=True).sqrt(), b


KNOWN = {"Muon": muon, "signSGD": sign_sgd, "normalised SGD": normalised_sgd}  # in the order of BALLS


def special_cases(setting: Setting, run: Run, add: Callable[..., None]) -> None:
    """The paths of the trust-region method, whose step knows only the dual norm, and of known optimizers, all with steps of the
    same Frobenius norm: their distance after the last step, as a part of the optimizer's way."""
    S, shape, mu = setting.seeds, (setting.rows, setting.columns), 0.9
    generator = run.generator("special cases")
    problem = LogRegression(S, shape, setting.measurements, generator, setting.distance)
    noises = setting.noise / (shape[0] * shape[1]) ** 0.5 * normal(generator, setting.compared, S, *shape)
    ends, known_ends = [], []
    for ball, step in zip(BALLS.values(), KNOWN.values(), strict=True):
        direction, eta = partial(generic_direction, dual=ball.dual), 0.01 / ball.length(*shape)
        x = y = problem.start
        m = b = torch.zeros_like(x)
        for noise in noises:
            x, m = trust_region_step(x, m, problem.gradient(x) + noise, 1 - mu, eta, 0.0, direction)
            y, b = step(y, b, problem.gradient(y) + noise, eta, mu)
        ends.append(x)
        known_ends.append(y)
    for (i, norm), (j, optimizer) in itertools.product(enumerate(BALLS), enumerate(KNOWN)):
        distance = frobenius(ends[i] - known_ends[j]) / frobenius(known_ends[j] - problem.start)
        match = "own norm" if i == j else "another norm"
        where = {"optimizer": optimizer, "match": match}
        add(f"{norm} ball", "distance from the optimizer", x=setting.compared, value=distance, **where)


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    for part in (rates, order, special_cases):
        part(setting, run, table.add)
    return table.frame()
