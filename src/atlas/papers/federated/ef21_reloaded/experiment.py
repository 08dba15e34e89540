"""Error Feedback Reloaded: From Quadratic to Arithmetic Mean of Smoothness Constants (arXiv 2402.10774).

EF21 and its weighted form EF21-W with Top-k, on quadratics and on logistic regression with a non-convex penalty, at the
old step size (quadratic mean of the clients' smoothness constants) and the new one (arithmetic mean).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from atlas.federated.compression import top_k
from atlas.run import Loop, Run


@dataclass(frozen=True)
class Setting:
    clients: int = 20
    dim: int = 20
    k: int = 2  # coordinates that Top-k keeps, of dim
    samples: int = 12  # per client, logistic regression
    penalty: float = 0.1  # of sum_j x_j^2 / (1 + x_j^2), logistic regression
    spreads: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)  # standard deviation of log L_i
    draws: int = 20  # problems per spread
    safe_draws: int = 100  # problems of each kind on which the guarantee is checked
    rounds: int = 2500
    identity_rounds: int = 500


@dataclass
class Problem:
    """B problems f = mean_i f_i; evaluate: x (B, d) -> values f (B,), gradients of all f_i (B, n, d)."""

    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]]
    L_i: Tensor  # (B, n) smoothness of the clients
    L: Tensor  # (B,) smoothness of f
    x0: Tensor  # (B, d)
    lowest: Tensor  # (B,) f*, or +inf where it is not known


def xi(alpha: float) -> float:
    """sqrt(beta/theta) of a contractive compressor, theta = 1 - sqrt(1-alpha), beta = (1-alpha)/theta."""
    theta = 1 - math.sqrt(1 - alpha)
    return math.sqrt((1 - alpha) / theta / theta)


def step_sizes(problem: Problem, alpha: float) -> dict[str, Tensor]:
    """The step sizes (B,) that the old (quadratic mean) and the new analysis (arithmetic mean) admit."""
    L_QM, L_AM = problem.L_i.square().mean(1).sqrt(), problem.L_i.mean(1)
    return {"QM": 1 / (problem.L + L_QM * xi(alpha)), "AM": 1 / (problem.L + L_AM * xi(alpha))}


def ef21_step(
    problem: Problem, x: Tensor, g: Tensor, gamma: Tensor, w: Tensor, compress: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One round of EF21-W: x <- x - gamma sum_i w_i g_i;  g_i <- g_i + C(grad f_i(x) / (n w_i) - g_i).

    x (B, d), g (B, n, d), gamma (B,), w (B, n). With w_i = 1/n it is EF21. Returns x, g, f(x) and grad f_i(x).
    """
    x = x - gamma[:, None] * torch.einsum("bn,bnd->bd", w, g)
    value, gradients = problem.evaluate(x)
    scale = (w.shape[1] * w).unsqueeze(-1)
    return x, g + compress(gradients / scale - g), value, gradients


def quadratics(setting: Setting, spread: Tensor, generator: torch.Generator, device: torch.device) -> Problem:
    """f_i(x) = x'A_i x / 2 - b_i'x, eigenvalues of A_i in [0.1, 1] L_i, log L_i ~ N(0, spread^2). spread: (B,)."""
    B, n, d = len(spread), setting.clients, setting.dim

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device=device)

    L_i = torch.exp(spread[:, None] * normal(B, n))
    L_i = torch.where(spread[:, None] > 0, L_i, torch.ones_like(L_i))
    U = torch.linalg.qr(normal(B, n, d, d)).Q
    eigenvalues = torch.rand(B, n, d, generator=generator, dtype=torch.float64, device=device) * 0.9 + 0.1
    eigenvalues[..., 0] = 1.0
    A = (U * (L_i[..., None] * eigenvalues)[..., None, :]) @ U.mT
    b = L_i[..., None] * normal(B, n, d)
    mean_A, mean_b = A.mean(1), b.mean(1)
    flat = A.reshape(B, n * d, d)

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        Ax = (flat @ x[..., None]).reshape(B, n, d)
        return (x * (0.5 * Ax - b).mean(1)).sum(1), Ax - b

    optimum = torch.linalg.solve(mean_A, mean_b)
    return Problem(
        evaluate=evaluate,
        L_i=L_i,
        L=torch.linalg.eigvalsh(mean_A)[:, -1],
        x0=optimum + normal(B, d),
        lowest=evaluate(optimum)[0],
    )


def logistic(setting: Setting, spread: Tensor, generator: torch.Generator, device: torch.device) -> Problem:
    """f_i(x) = mean_j log(1 + exp(-y_ij a_ij'x)) + penalty * sum x^2/(1 + x^2), features scaled by log-normal factors."""
    B, n, d, m = len(spread), setting.clients, setting.dim, setting.samples

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device=device)

    a = normal(B, n, m, d) * torch.exp(0.5 * spread[:, None] * normal(B, n))[..., None, None]
    truth = normal(B, 1, 1, d) / math.sqrt(d)
    y = torch.sign((a * truth).sum(-1) + 0.5 * normal(B, n, m))
    ya = y[..., None] * a
    curvature = torch.linalg.eigvalsh(a.mT @ a / m)[..., -1]
    whole = a.reshape(B, n * m, d)
    L = torch.linalg.eigvalsh(whole.mT @ whole / (n * m))[:, -1]

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        margin = (ya @ x[:, None, :, None]).squeeze(-1)
        slope = -torch.sigmoid(-margin) / m
        penalty = setting.penalty * (x**2 / (1 + x**2)).sum(1)
        gradients = (slope[..., None, :] @ ya).squeeze(-2) + (setting.penalty * 2 * x / (1 + x**2) ** 2)[
            :, None
        ]
        return torch.nn.functional.softplus(-margin).mean((1, 2)) + penalty, gradients

    return Problem(
        evaluate=evaluate,
        L_i=curvature / 4 + 2 * setting.penalty,
        L=L / 4 + 2 * setting.penalty,
        x0=normal(B, d),
        lowest=torch.full((B,), math.inf, dtype=torch.float64, device=device),
    )


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    alpha = setting.k / setting.dim
    grid = np.unique(np.geomspace(1, setting.rounds, 50).round().astype(int))

    # rounds to a target at the two theoretical step sizes, and the guarantee along the way
    for kind, make in (("quadratic", quadratics), ("logistic", logistic)):
        for purpose in ("speedup", "guarantee") if kind == "quadratic" else ("guarantee",):
            if purpose == "speedup":
                spread = torch.tensor(setting.spreads, dtype=torch.float64).repeat_interleave(setting.draws)
            else:
                spread = torch.linspace(0.5, 2, setting.safe_draws, dtype=torch.float64)
            problem = make(setting, spread.to(run.device), run.generator(kind, purpose), run.device)
            gammas = step_sizes(problem, alpha)
            predicted = (gammas["AM"] / gammas["QM"]).cpu().numpy()
            if purpose == "speedup":
                methods = {"EF21, QM step": (gammas["QM"], False), "EF21, AM step": (gammas["AM"], False)}
                methods["EF21-W, AM step"] = (gammas["AM"], True)
            else:
                methods = {
                    "EF21, AM step": (gammas["AM"], False),
                    "EF21, step 2.5/L": (2.5 / problem.L, False),
                }
            for name, (gamma, weighted) in methods.items():
                trace = follow(
                    setting,
                    problem,
                    gamma,
                    weighted,
                    alpha,
                    functools.partial(run.checkpoint, f"{kind}, {purpose}: {name}"),
                )
                conditions = {"problem": kind, "purpose": purpose}
                if purpose == "speedup":
                    norms = trace["norm"].reshape(len(setting.spreads), setting.draws, -1)
                    ratios = predicted.reshape(len(setting.spreads), setting.draws)
                    # the first crossing is interpolated between recorded rounds: a dense, even grid
                    rounds = np.unique(np.linspace(0, setting.rounds - 1, 250).round().astype(int))
                    for s, norm, ratio in zip(setting.spreads, norms, ratios, strict=True):
                        table.add(
                            name,
                            "squared gradient norm",
                            x=rounds,
                            value=norm[:, rounds],
                            spread=s,
                            predicted=ratio[:, None],
                            **conditions,
                        )
                else:
                    average = trace["norm"].cumsum(1) / torch.arange(1, setting.rounds + 1)
                    table.add(
                        name, "mean squared gradient norm", x=grid, value=average[:, grid - 1], **conditions
                    )
                    table.add(
                        name,
                        "violation of the guarantee",
                        x=setting.rounds,
                        value=trace["violation"],
                        **conditions,
                    )

    # EF21-W and EF21 at the same step, from the same start: do they take the same path?
    spread = torch.full((setting.draws,), 1.0, dtype=torch.float64, device=run.device)
    problem = quadratics(setting, spread, run.generator("identity"), run.device)
    gamma = step_sizes(problem, alpha)["AM"]
    for name, compress in (
        ("Top-k", lambda v: top_k(v, setting.k)),
        ("grid rounding", lambda v: v.div(0.5).round() * 0.5),
    ):
        table.add(name, "relative distance of the iterates", x=setting.identity_rounds,
                  value=path_difference(problem, gamma, compress, setting.identity_rounds))  # fmt: skip
    return table.frame()


def weights(problem: Problem, weighted: bool) -> Tensor:
    """w_i = L_i / sum_j L_j, or 1/n."""
    w = problem.L_i if weighted else torch.ones_like(problem.L_i)
    return w / w.sum(1, keepdim=True)


def follow(
    setting: Setting, problem: Problem, gamma: Tensor, weighted: bool, alpha: float, loop: Loop
) -> dict[str, Tensor]:
    """Run EF21 (or EF21-W) from g_i = C(grad f_i(x0)) and watch its guarantee.

    Returns norm (B, rounds): ||grad f(x_t)||^2; violation (B,): the larger of the relative increase of the Lyapunov function
    Psi_t = f(x_t) - f* + gamma/(2 theta) G_t in any round, with G_t = sum_i w_i ||g_i - grad f_i(x_t)/(n w_i)||^2 at
    w_i = L_i / sum_j L_j (for EF21, g_i / (n w_i) in place of g_i), and of the excess of the mean squared gradient norm
    over 2 (f(x_0) - f*)/(gamma T) + G_0/(theta T).
    """
    n, theta = problem.L_i.shape[1], 1 - math.sqrt(1 - alpha)
    w, w_L = weights(problem, weighted), weights(problem, True)
    x, (value, gradients) = problem.x0, problem.evaluate(problem.x0)
    g = top_k(gradients / (n * w)[..., None], setting.k)

    def distance(g: Tensor, gradients: Tensor) -> Tensor:
        error = g * (n * w)[..., None] - gradients  # in units of grad f_i
        return (error.square().sum(-1) / (n**2 * w_L)).sum(1)

    G = distance(g, gradients)
    start, G_0, lowest = value, G, torch.minimum(problem.lowest, value)
    psi = value + gamma / (2 * theta) * G
    norms, rise = [], torch.full_like(psi, -math.inf)
    state = {"run": (x, g, gradients, lowest, psi, rise), "norms": norms}
    for _ in loop(setting.rounds, state):
        x, g, gradients, lowest, psi, rise = state["run"]
        state["norms"].append(gradients.mean(1).square().sum(1))
        x, g, value, gradients = ef21_step(problem, x, g, gamma, w, lambda v: top_k(v, setting.k))
        G = distance(g, gradients)
        lowest = torch.minimum(lowest, value)
        new = value + gamma / (2 * theta) * G
        rise = torch.maximum(rise, (new - psi).nan_to_num(nan=math.inf))
        state["run"] = (x, g, gradients, lowest, new, rise)
    _, _, _, lowest, _, rise = state["run"]
    norms = state["norms"]
    norm = torch.stack(norms, 1).cpu()
    T = norm.shape[1]
    bound = (2 * (start - lowest) / gamma + G_0 / theta) / T
    excess = norm.mean(1) / bound.cpu() - 1
    scale = (start - lowest + gamma / (2 * theta) * G_0).clamp_min(1e-12)
    return {"norm": norm, "violation": torch.maximum((rise / scale).cpu(), excess.nan_to_num(nan=math.inf))}


def path_difference(
    problem: Problem, gamma: Tensor, compress: Callable[[Tensor], Tensor], rounds: int
) -> Tensor:
    """Largest ||x_t - y_t|| / ||x_0 - x_t|| (B,) between EF21 (x) and EF21-W (y) started with matching g_i."""
    states = []
    for weighted in (False, True):
        w = weights(problem, weighted)
        states.append([problem.x0, torch.zeros_like(problem.evaluate(problem.x0)[1]), w])
    worst = torch.zeros_like(gamma)
    for _ in range(rounds):
        for state in states:
            x, g, w = state
            state[0], state[1], *_ = ef21_step(problem, x, g, gamma, w, compress)
        difference = (states[0][0] - states[1][0]).norm(dim=1)
        worst = torch.maximum(worst, difference / (problem.x0 - states[0][0]).norm(dim=1).clamp_min(1e-12))
    return worst
