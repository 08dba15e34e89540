"""Momentum Benefits Non-IID Federated Learning Simply and Provably (arXiv 2306.16504): FedAvg-M and SCAFFOLD-M.

Clients with different quadratics and a shared non-convex term. All clients: FedAvg with and without momentum at one local step size
for every horizon and heterogeneity. Some of fifty clients a round: SCAFFOLD with and without momentum.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from atlas.federated.participation import of_clients, without_replacement
from atlas.federated.quadratics import Quadratics, draw
from atlas.optim.tuning import first_below, trailing_mean
from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    clients: int = 20
    dim: int = 10
    seeds: int = 8
    local_steps: int = 10
    eta: float = 0.1  # the local step size
    curvature: tuple[float, float] = (0.2, 1.0)
    ripple: float = 0.1  # of the non-convex term
    momentum: float = 8.0  # beta = min(1, momentum / sqrt(R)); about sqrt(N K L Delta) / sigma
    noise: float = 1.0  # of every coordinate of a gradient
    spread: float = 4.0  # of the clients' optima, with noise
    spreads: tuple[float, ...] = (1.0, 4.0, 16.0)  # without
    long: int = 800  # rounds after which FedAvg has stopped
    horizons: tuple[int, ...] = (100, 200, 400, 800, 1600, 3200)
    # SCAFFOLD: both methods try equally many pairs (beta, gamma), on other seeds than those reported
    many: int = 50  # clients
    sampled: tuple[int, ...] = (3, 10, 25)  # of them, a round
    scaffold_eta: float = 0.05
    scaffold_noise: float = 0.2
    tuning_seeds: int = 12
    scaffold_seeds: int = 24
    scaffold_rounds: int = 300
    full_rounds: int = 60  # with all clients
    gammas: tuple[float, float, int] = (0.05, 1.6, 12)  # smallest, largest, number of SCAFFOLD's steps
    betas: tuple[float, ...] = (0.5, 0.2)  # of SCAFFOLD-M, with every second of these steps
    target: float = 0.0001  # of the squared gradient norm at the start
    window: int = 5  # rounds over which the squared gradient norm is averaged


def fedavg_m_round(
    x: Tensor,
    g: Tensor,
    problem: Quadratics,
    K: int,
    eta: float,
    gamma: Tensor,
    beta: Tensor,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One round of FedAvg-M with all clients: x_{r+1}, g_{r+1}. beta = 1 is FedAvg.

    y_i = x_r; K times: y_i <- y_i - eta (beta grad f_i(y_i) + (1 - beta) g_r)
    g_{r+1} = mean_i (x_r - y_i) / (eta K);   x_{r+1} = x_r - gamma g_{r+1}

    x, g: (..., d); gamma, beta: (..., 1); noise: (K, ..., N, d), added to the gradients.
    """
    weight, pull = eta * beta.unsqueeze(-1), eta * ((1 - beta) * g).unsqueeze(-2)
    y = x.unsqueeze(-2).expand(problem.b.shape).clone()
    for k in range(K):
        gradient = problem.gradients(y)
        if noise is not None:
            gradient += noise[k]
        y -= weight * gradient + pull
    g = (x.unsqueeze(-2) - y).mean(-2) / (eta * K)
    return x - gamma * g, g


def scaffold_m_round(
    x: Tensor, g: Tensor, c_i: Tensor, problem: Quadratics, chosen: Tensor, K: int, eta: float, gamma: Tensor, beta: Tensor,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One round of SCAFFOLD-M with the clients `chosen`: x_{r+1}, g_{r+1} and the control variates. beta = 1 is SCAFFOLD.

    As FedAvg-M with grad f_i(y_i) - c_i + c in place of grad f_i(y_i), c the mean of all c_i; then c_i is client i's mean gradient
    of this round.

    x, g: (..., d); c_i: (..., N, d); chosen: (..., n) numbers of clients; gamma, beta: (..., 1); noise: (K, ..., n, d).
    """
    part = Quadratics(of_clients(problem.a, chosen), of_clients(problem.b, chosen), problem.ripple)
    weight, pull = eta * beta.unsqueeze(-1), eta * ((1 - beta) * g).unsqueeze(-2)
    shift = c_i.mean(-2, keepdim=True) - of_clients(c_i, chosen)
    y = x.unsqueeze(-2).expand(part.b.shape).clone()
    total = torch.zeros_like(y)
    for k in range(K):
        gradient = part.gradients(y)
        if noise is not None:
            gradient += noise[k]
        total += gradient
        y -= weight * (gradient + shift) + pull
    g = (x.unsqueeze(-2) - y).mean(-2) / (eta * K)
    index = chosen.unsqueeze(-1).expand(total.shape)
    return x - gamma * g, g, c_i.scatter(-2, index, total / K)


@dataclass(frozen=True)
class Row:
    """One run of FedAvg: its method, number of rounds, and the spread of the clients' optima."""

    method: str
    rounds: int
    spread: float


def federated_averaging(
    rows: list[Row], K: int, noise: float, ripple: float, setting: Setting, run: Run
) -> tuple[Tensor, Tensor]:
    """Squared gradient norms of all runs, averaged over their rounds and after the last: (rows, seeds) each.

    The longest runs come first in `rows`, so that those still running are the first ones.
    """
    S, N, d = setting.seeds, setting.clients, setting.dim
    options = {"dtype": torch.float64, "device": run.device}
    spread = torch.tensor([row.spread for row in rows], **options).view(-1, 1, 1, 1)
    problem = draw((S, N, d), setting.curvature, spread, ripple, run.generator("clients"))
    beta = [min(1.0, setting.momentum / row.rounds**0.5) if row.method == "FedAvg-M" else 1.0 for row in rows]
    # FedAvg takes the mean of the clients' models, FedAvg-M the step of its theory
    gamma = [
        b / (6 * problem.smoothness) if row.method == "FedAvg-M" else setting.eta * K
        for b, row in zip(beta, rows, strict=True)
    ]
    betas, gammas = (torch.tensor(v, **options).view(-1, 1, 1) for v in (beta, gamma))
    rounds = [row.rounds for row in rows]
    generator = run.generator("noise")
    state = {
        "x": torch.zeros(len(rows), S, d, **options), "g": torch.zeros(len(rows), S, d, **options),
        "sum": torch.zeros(len(rows), S, **options), "generator": generator,
    }  # fmt: skip
    for r in run.checkpoint(f"FedAvg, {K} local steps, noise {noise:g}, ripple {ripple:g}", rounds[0], state):
        n = sum(length > r for length in rounds)
        x, g, part = state["x"][:n], state["g"][:n], Quadratics(problem.a, problem.b[:n], problem.ripple)
        state["sum"][:n] += part.gradient(x).square().sum(-1)
        random = noise * torch.randn(K, n, S, N, d, generator=generator, **options) if noise else None
        state["x"][:n], state["g"][:n] = fedavg_m_round(
            x, g, part, K, setting.eta, gammas[:n], betas[:n], random
        )
    mean = state["sum"] / torch.tensor(rounds, device=run.device).unsqueeze(-1)
    return mean, problem.gradient(state["x"]).square().sum(-1)


def scaffold(sampled: int, noise: float, rounds: int, tried: Tensor, setting: Setting, run: Run) -> Tensor:
    """Squared gradient norm in every round for all (beta, gamma) in `tried`: (pairs, seeds, rounds). Both methods see the same
    clients, samples and noise; the first seeds are for tuning."""
    S, N, d, K = setting.tuning_seeds + setting.scaffold_seeds, setting.many, setting.dim, setting.local_steps
    options = {"dtype": torch.float64, "device": run.device}
    n = len(tried)
    one = draw(
        (S, N, d),
        setting.curvature,
        setting.spread,
        setting.ripple,
        run.generator("SCAFFOLD", sampled, "clients"),
    )
    problem = Quadratics(one.a.expand(n, -1, -1, -1), one.b.expand(n, -1, -1, -1), setting.ripple)
    beta, gamma = (v.view(-1, 1, 1) for v in tried.to(run.device).unbind(-1))
    generator, everybody = run.generator("SCAFFOLD", sampled, "rounds"), torch.arange(N, device=run.device)
    x = torch.zeros(n, S, d, **options)
    c_i = problem.gradients(x.unsqueeze(-2))
    state = {"x": x, "c_i": c_i, "g": c_i.mean(-2), "generator": generator}
    state["curve"] = torch.zeros(n, S, rounds, **options)
    for r in run.checkpoint(
        f"SCAFFOLD, {sampled} of {N} clients, beta {float(tried[0, 0]):g}", rounds, state
    ):
        state["curve"][..., r] = problem.gradient(state["x"]).square().sum(-1)
        chosen = without_replacement(everybody, sampled, S, generator).expand(n, S, sampled)
        random = (
            noise * torch.randn(K, S, sampled, d, generator=generator, **options).unsqueeze(1)
            if noise
            else None
        )
        state["x"], state["g"], state["c_i"] = scaffold_m_round(
            state["x"],
            state["g"],
            state["c_i"],
            problem,
            chosen,
            K,
            setting.scaffold_eta,
            gamma,
            beta,
            random,
        )
    return state["curve"]


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    methods, longest_first = ("FedAvg-M", "FedAvg"), sorted(setting.horizons, reverse=True)

    def add(rows: list[Row], K: int, noise: float, ripple: float) -> None:
        mean, last = federated_averaging(rows, K, noise, ripple, setting, run)
        for row, average, end in zip(rows, mean, last, strict=True):
            where = {"noise": noise, "ripple": ripple, "spread": row.spread, "local_steps": K}
            table.add(row.method, "mean squared gradient norm", x=row.rounds, value=average, **where)
            table.add(row.method, "squared gradient norm at the end", x=row.rounds, value=end, **where)

    for noise, spreads in ((setting.noise, (setting.spread,)), (0.0, setting.spreads)):
        rows = [Row(m, R, s) for R, m, s in itertools.product(longest_first, methods, spreads)]
        add(rows, setting.local_steps, noise, setting.ripple)
    for K, noise in ((setting.local_steps, 0.0), (1, setting.noise)):  # where FedAvg stops on quadratics
        add([Row("FedAvg", setting.long, spread) for spread in setting.spreads], K, noise, 0.0)

    low, high, count = setting.gammas
    gammas = torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64).tolist()
    tried = {
        "SCAFFOLD": [(1.0, gamma) for gamma in gammas],
        "SCAFFOLD-M": list(itertools.product(setting.betas, gammas[:: len(setting.betas)])),
    }
    cases = [(n, setting.scaffold_noise, setting.scaffold_rounds) for n in setting.sampled]
    for sampled, noise, rounds in [*cases, (setting.many, 0.0, setting.full_rounds)]:
        for method, pairs in tried.items():
            curve = scaffold(sampled, noise, rounds, torch.tensor(pairs, dtype=torch.float64), setting, run)
            curve = trailing_mean(curve, setting.window)
            tuning, reported = curve[:, : setting.tuning_seeds], curve[:, setting.tuning_seeds :]
            rounds_needed = first_below(tuning, setting.target * tuning[..., 0])
            best = int(rounds_needed.float().mean(1).argmin())
            x = range(1, 1 + rounds)
            table.add(method, "squared gradient norm", x=x, value=reported[best], sampled=sampled)
            for name, value in zip(("beta chosen", "gamma chosen"), pairs[best], strict=True):
                table.add(method, name, x=0, value=torch.tensor([value]), sampled=sampled)
    return table.frame()
