"""On the Convergence of Federated Averaging with Cyclic Client Participation (arXiv 2302.03109): FedAvg with client groups in turn.

Strongly convex quadratics, whose error is known exactly. Every horizon T is a run of its own with the step size of the theory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from atlas.federated.participation import of_clients, without_replacement
from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    groups: int = 4
    group_size: int = 10
    dim: int = 10
    seeds: int = 16  # problems
    repetitions: int = 8  # of the sampling, over which errors are averaged
    sgd_repetitions: int = 2
    local_steps: int = 5
    samples: int = 16  # of every client, for local SGD, which takes as many steps
    curvature: tuple[float, float] = (0.5, 1.0)
    across: float = 1.0  # spread of the groups' optima
    different: float = 0.15  # spread of the clients' optima where groups are as different inside as outside
    noise: float = 4.0  # spread of the samples' optima around their client's
    sampled: int = 10  # clients in a round
    few: int = 1  # clients in a round there
    step: float = 2.0  # c in eta = c log(T) / (mu tau T)
    horizons: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)


Optimizer = Literal["GD", "SGD", "shuffled SGD"]


@dataclass(frozen=True)
class Problem:
    """f_i(x) = sum_j a_ij (x_j - b_ij)^2 / 2; sample l of client i has its optimum at b_i + e_il, and the e_il sum to zero.

    a, b: (S, M, d); e: (S, M, samples, d).
    """

    a: Tensor
    b: Tensor
    e: Tensor

    @property
    def optimum(self) -> Tensor:
        return (self.a * self.b).mean(1) / self.a.mean(1)

    def repeated(self, times: int) -> Problem:
        """Every problem that many times, one after the other."""
        return Problem(*(v.repeat_interleave(times, 0) for v in (self.a, self.b, self.e)))

    def error(self, x: Tensor) -> Tensor:
        """F(x) - F*. x: (..., S, d)."""
        return (self.a.mean(1) * (x - self.optimum).square()).sum(-1) / 2


def local_training(x: Tensor, a: Tensor, b: Tensor, eta: Tensor, shifts: Tensor | None, steps: int) -> Tensor:
    """The clients' models after local steps y <- y - eta a (y - b - e).

    x: (..., 1, d); a, b: (..., n, d); shifts e: (steps, ..., n, d) for SGD, None for GD.
    """
    y = x
    for k in range(steps):
        target = b if shifts is None else b + shifts[k]
        y = y - eta * a * (y - target)
    return y


def samples(optimizer: Optimizer, e: Tensor, generator: torch.Generator) -> Tensor:
    """The samples of a round, one for each local step: all of them in random order, or drawn with replacement.

    e: (S, n, samples, d); returns (samples, S, n, d).
    """
    S, n, size, _ = e.shape
    if optimizer == "shuffled SGD":
        order = torch.rand(S, n, size, generator=generator, device=e.device).argsort(-1)
    else:
        order = torch.randint(size, (S, n, size), generator=generator, device=e.device)
    return e.gather(2, order.unsqueeze(-1).expand(e.shape)).permute(2, 0, 1, 3)


def federated_averaging(
    problem: Problem, pools: Tensor, sampled: int, optimizer: Optimizer, name: str, setting: Setting, run: Run
) -> Tensor:
    """(F(x_T) - F*) / (F(x_0) - F*) of FedAvg for every horizon T, averaged over repetitions: (horizons, seeds).

    In round t the server samples clients from pool t mod (number of pools) and takes the mean of their models. One pool of all
    clients is uniform sampling. pools: (P, m). eta = c log(T) / (mu tau T), constant during a run.
    """
    repetitions = setting.repetitions if optimizer == "GD" else setting.sgd_repetitions
    problem = problem.repeated(repetitions)
    S, _, d = problem.b.shape
    steps = setting.local_steps if optimizer == "GD" else setting.samples
    horizons = sorted(setting.horizons, reverse=True)
    mu = float(problem.a.mean(1).min())
    eta = [setting.step * math.log(T) / (mu * steps * T) for T in horizons]
    etas = torch.tensor(eta, dtype=torch.float64, device=run.device).view(-1, 1, 1, 1)
    generator = run.generator("rounds", name)
    state = {
        "x": torch.zeros(len(horizons), S, d, dtype=torch.float64, device=run.device),
        "generator": generator,
    }
    for t in run.checkpoint(name, horizons[0], state):
        n = sum(T > t for T in horizons)  # the longest runs come first
        chosen = without_replacement(pools[t % len(pools)], sampled, S, generator)
        a, b = of_clients(problem.a, chosen), of_clients(problem.b, chosen)
        shifts = None
        if optimizer != "GD":
            index = chosen[..., None, None].expand(S, sampled, *problem.e.shape[2:])
            shifts = samples(optimizer, problem.e.gather(1, index), generator)
        models = local_training(state["x"][:n].unsqueeze(-2), a, b, etas[:n], shifts, steps)
        state["x"][:n] = models.mean(-2)
    relative = problem.error(state["x"]) / problem.error(torch.zeros_like(state["x"]))
    return relative.view(len(horizons), -1, repetitions).mean(-1)


def draw(alike: bool, setting: Setting, run: Run) -> Problem:
    """Clients in groups; alike: the clients of a group have the same optimum, else every client has its own."""
    S, G, m, d = setting.seeds, setting.groups, setting.group_size, setting.dim
    generator = run.generator("clients")

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device=run.device)

    low, high = setting.curvature
    a = low + (high - low) * torch.rand(
        S, G, 1, d, generator=generator, dtype=torch.float64, device=run.device
    )
    b = setting.across * normal(S, G, 1, d) if alike else setting.different * normal(S, G, m, d)
    b = 1 + b.expand(S, G, m, d)
    e = setting.noise * normal(S, G * m, setting.samples, d)
    return Problem(a.expand(S, G, m, d).reshape(S, -1, d), b.reshape(S, -1, d), e - e.mean(2, keepdim=True))


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    everybody = torch.arange(setting.groups * setting.group_size, device=run.device)
    in_turn, uniform = everybody.view(setting.groups, -1), everybody.view(1, -1)
    quiet = {"noise": 0.0}

    def add(method: str, errors: Tensor, **conditions: object) -> None:
        for T, values in zip(sorted(setting.horizons, reverse=True), errors, strict=True):
            table.add(method, "error / error at the start", x=T, value=values, **conditions)

    alike, different = draw(True, setting, run), draw(False, setting, run)
    for groups, problem, n in (("alike", alike, setting.sampled), ("different", different, setting.few)):
        for method, pools in (("cyclic", in_turn), ("uniform", uniform)):
            errors = federated_averaging(problem, pools, n, "GD", f"{method}, groups {groups}", setting, run)
            add(method, errors, groups=groups, optimizer="GD", **quiet)

    for optimizer in ("SGD", "shuffled SGD"):
        for noise, problem in ((setting.noise, alike), (0.0, Problem(alike.a, alike.b, 0 * alike.e))):
            errors = federated_averaging(
                problem, in_turn, setting.sampled, optimizer, f"{optimizer}, noise {noise:g}", setting, run
            )
            add("cyclic", errors, groups="alike", optimizer=optimizer, noise=noise)
    return table.frame()
