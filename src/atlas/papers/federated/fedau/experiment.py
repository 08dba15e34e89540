"""A Lightweight Method for Tackling Unknown Participation Statistics in Federated Averaging (arXiv 2306.03401): FedAU.

Clients with different quadratics take part with different frequencies that the server does not know; those with the largest optima
are the rarest. Long runs, one for every horizon, with the step size of the theory; short ones with the best of a few step sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from atlas.federated.averaging import local_sgd
from atlas.federated.participation import Bernoulli, Cyclic, Markov, Pattern
from atlas.federated.quadratics import Quadratics, draw
from atlas.optim.tuning import best_on_others, chosen
from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    clients: int = 20
    dim: int = 10
    local_steps: int = 5
    curvature: tuple[float, float] = (0.5, 1.0)
    spread: float = 1.0  # of the clients' optima
    noise: float = 2.0  # of every coordinate of a gradient
    # long runs
    seeds: int = 8
    horizons: tuple[int, ...] = (400, 800, 1600, 3200, 6400)
    step: float = 0.5  # the local step size is step / sqrt(T)
    frequencies: tuple[float, float] = (0.1, 0.8)  # of the rarest and the most frequent client
    enter: float = 0.1  # Markov pattern: largest probability that an absent client returns
    cycle: int = 20  # cyclic pattern: rounds
    # short runs: all methods try the same step sizes
    short_seeds: int = 12
    rounds: int = 1000
    rare: tuple[float, float] = (0.02, 0.3)  # frequencies there
    often: float = 0.9  # frequency of all clients in a control
    steps: tuple[float, ...] = (0.0015, 0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.2)
    cutoffs: tuple[int, ...] = (1, 5, 20, 50, 200)  # besides none
    cutoff: int = 50  # against the methods with a memory
    noises: tuple[float, ...] = (0.5, 4.0)  # there


class FedAvg(nn.Module):
    """The step sum_n omega_n 1_n Delta_n / N with constant weights omega (S, N); without weights the mean over participants.

    1_n: client n takes part; Delta_n: what its local steps have changed. A server is given the updates Delta (G, S, N, d) of G
    runs and who is active (S, N); it returns the steps (G, S, d).
    """

    def __init__(self, omega: Tensor | None = None) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, delta: Tensor, active: Tensor) -> Tensor:
        if self.omega is None:
            return (active.unsqueeze(-1) * delta).sum(-2) / active.sum(-1, keepdim=True).clamp(min=1)
        return ((self.omega * active).unsqueeze(-1) * delta).mean(-2)


class FedAU(nn.Module):
    """The step sum_n omega_n 1_n Delta_n / N; omega_n is the mean of client n's gaps until now, 1 before there is one.

    A gap ends when the client takes part, or after K rounds; it counts from the next round on. cutoffs: the K of every run, (G,).
    """

    gap: Tensor  # how long it lasts until now
    gaps: Tensor  # how many have ended
    total: Tensor  # of their lengths

    def __init__(self, cutoffs: Tensor, S: int, N: int) -> None:
        super().__init__()
        self.K = cutoffs.view(-1, 1, 1)
        for name in ("gap", "gaps", "total"):
            self.register_buffer(name, self.K.new_zeros(len(cutoffs), S, N))

    @property
    def omega(self) -> Tensor:
        """(G, S, N)"""
        return torch.where(self.gaps > 0, self.total / self.gaps, 1.0)

    def forward(self, delta: Tensor, active: Tensor) -> Tensor:
        weight = self.omega[: len(delta)] * active
        self.gap += 1
        ended = active | (self.gap >= self.K)
        self.gaps += ended
        self.total += ended * self.gap
        self.gap *= ~ended
        return (weight.unsqueeze(-1) * delta).mean(-2)


class MIFA(nn.Module):
    """The mean of all clients' latest updates u_n, zero before there is one. shape: (G, S, N, d)."""

    u: Tensor

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        super().__init__()
        self.register_buffer("u", torch.zeros(shape, dtype=torch.float64, device=device))

    def forward(self, delta: Tensor, active: Tensor) -> Tensor:
        self.u = torch.where(active.unsqueeze(-1), delta, self.u)
        return self.u.mean(-2)


class FedVARP(MIFA):
    """The mean of all u_n as they were before the round, and the participants' mean of Delta_n - u_n."""

    def forward(self, delta: Tensor, active: Tensor) -> Tensor:
        stored = self.u
        new = (active.unsqueeze(-1) * (delta - stored)).sum(-2) / active.sum(-1, keepdim=True).clamp(min=1)
        self.u = torch.where(active.unsqueeze(-1), delta, stored)
        return stored.mean(-2) + new


def draw_clients(
    S: int, frequencies: tuple[float, float], setting: Setting, run: Run
) -> tuple[Quadratics, Tensor]:
    """Losses, and frequencies p (S, N) in equal ratios: the larger the sum of its optimum's coordinates, the rarer a client."""
    shape = (S, setting.clients, setting.dim)
    problem = draw(shape, setting.curvature, setting.spread, 0.0, run.generator("clients"))
    rarest, most = (math.log(p) for p in frequencies)
    p = torch.linspace(most, rarest, setting.clients, dtype=torch.float64, device=run.device).exp()
    return problem, p[problem.b.sum(-1).argsort(-1).argsort(-1)]


def minimiser(problem: Quadratics, weight: Tensor) -> Tensor:
    """argmin sum_n weight_n f_n, (S, d). weight: (S, N)."""
    a = weight.unsqueeze(-1) * problem.a
    return (a * problem.b).sum(-2) / a.sum(-2)


def train(
    name: str, servers: dict[str, nn.Module], rounds: list[int], steps: list[float], problem: Quadratics, pattern: Pattern,
    noise: float, setting: Setting, run: Run,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x <- x + step of the server, for all servers and for G runs of each, which last so many `rounds` and have local step sizes
    `steps`. All see the same participants and the same noise. The longest runs come first.

    Returns the squared gradient norm averaged over rounds, (servers, G, S), and x averaged over the second half of them, (..., d).
    """
    S, N, d = problem.b.shape
    shape = (len(servers), len(rounds), S, d)
    options: dict[str, Any] = {"dtype": torch.float64, "device": run.device}
    gamma = torch.tensor(steps, **options).view(-1, 1, 1, 1)
    length = torch.tensor(rounds, device=run.device).view(-1, 1, 1)
    curvature, best = problem.a.mean(-2), minimiser(problem, torch.ones(S, N, **options))
    generator = run.generator(name)
    state: dict[str, Any] = {
        "x": torch.zeros(shape, **options), "late": torch.zeros(shape, **options), "sum": torch.zeros(shape[:-1], **options),
        "clients": pattern.start(generator), "generator": generator, **servers,
    }  # fmt: skip
    for t in run.checkpoint(name, rounds[0], state):
        n = sum(T > t for T in rounds)
        x, active = state["x"][:, :n], pattern.active(state["clients"])
        state["sum"][:, :n] += (curvature * (x - best)).square().sum(-1)
        state["late"][:, :n] += (2 * t >= length[:n]) * x
        xi = noise * torch.randn(setting.local_steps, S, N, d, generator=generator, **options)
        y = local_sgd(x, N, setting.local_steps, gamma[:n], lambda y, k: problem.gradients(y).add_(xi[k]))
        delta = y - x.unsqueeze(-2)
        x += torch.stack([server(part, active) for server, part in zip(servers.values(), delta, strict=True)])
        state["clients"] = pattern.next(state["clients"], generator)
    return state["sum"] / length[..., 0], state["late"] / (length - (length + 1) // 2)


def long_cutoff(T: int, rarest: float) -> int:
    """The K with which (1 - p)^(2K) = 1 / T for the rarest client."""
    return math.ceil(math.log(T) / (-2 * math.log(1 - rarest)))


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    N, d = setting.clients, setting.dim

    def numbers(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=run.device)

    S, horizons = setting.seeds, sorted(setting.horizons, reverse=True)
    problem, p = draw_clients(S, setting.frequencies, setting, run)
    true = minimiser(problem, torch.ones_like(p))
    steps = [setting.step / math.sqrt(T) for T in horizons]
    cutoffs = numbers([long_cutoff(T, setting.frequencies[0]) for T in horizons])
    patterns: dict[str, Pattern] = {
        "Bernoulli": Bernoulli(p), "Markov": Markov(p, setting.enter), "cyclic": Cyclic(p, setting.cycle)
    }  # fmt: skip
    for name, pattern in patterns.items():
        servers = {
            "FedAU": FedAU(cutoffs, S, N),
            "FedAvg (participants)": FedAvg(),
            "FedAvg (all)": FedAvg(torch.ones_like(p)),
            "FedAvg (known p)": FedAvg(1 / pattern.frequency),
        }
        error, late = train(
            f"long, {name}", servers, horizons, steps, problem, pattern, setting.noise, setting, run
        )
        reweighted = minimiser(problem, pattern.frequency)
        away = reweighted - true
        apart = away.norm(dim=-1)
        for method, curve, x in zip(servers, error, late, strict=True):
            measured = {
                "mean squared gradient norm": curve,
                "distance to the true optimum": (x - true).norm(dim=-1) / apart,
                "distance to the reweighted optimum": (x - reweighted).norm(dim=-1) / apart,
            }
            for metric, values in measured.items():
                table.add(method, metric, x=horizons, value=values.T, participation=name)
            place = ((x[0] - true) * away).sum(-1) / apart.square()
            table.add(method, "place between the optima", x=horizons[0], value=place, participation=name)

    S, tried = setting.short_seeds, list(setting.steps)
    short = "mean squared gradient norm, best step"

    def add(method: str, error: Tensor, **conditions: object) -> None:
        """error: (tries, S), of which the best on all other seeds is reported for every seed."""
        index = best_on_others(error)
        table.add(method, short, x=setting.rounds, value=chosen(error, index), **conditions)
        step = numbers(tried)[index % len(tried)]
        table.add(method, "step chosen", x=setting.rounds, value=step, **conditions)

    problem, p = draw_clients(S, setting.rare, setting, run)
    limits = [*setting.cutoffs, math.inf]
    pairs = [(K, step) for K in limits for step in tried]
    for clients, frequency in (("rare and frequent", p), ("frequent", torch.full_like(p, setting.often))):
        server = FedAU(numbers([K for K, _ in pairs]), S, N)
        error, _ = train(
            f"cutoffs, {clients}", {"FedAU": server}, [setting.rounds] * len(pairs), [step for _, step in pairs], problem,
            Bernoulli(frequency), setting.noise, setting, run,
        )  # fmt: skip
        by_cutoff = error.view(len(limits), len(tried), S)
        for K, errors in zip(limits, by_cutoff, strict=True):
            add(f"K = {K}" if K < math.inf else "no cutoff", errors, clients=clients, noise=setting.noise)
        add("best cutoff", by_cutoff[1:-1].flatten(0, 1), clients=clients, noise=setting.noise)

    shape = (len(tried), S, N, d)
    for noise in setting.noises:
        servers = {
            "FedAU": FedAU(numbers([setting.cutoff] * len(tried)), S, N),
            "MIFA": MIFA(shape, run.device),
            "FedVARP": FedVARP(shape, run.device),
            "FedAvg (participants)": FedAvg(),
        }
        rounds = [setting.rounds] * len(tried)
        error, _ = train(
            f"memory, noise {noise:g}", servers, rounds, tried, problem, Bernoulli(p), noise, setting, run
        )
        for method, errors in zip(servers, error, strict=True):
            add(method, errors, clients="rare and frequent", noise=noise)
    return table.frame()
