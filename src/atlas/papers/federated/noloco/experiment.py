"""NoLoCo: No-all-reduce Low Communication Training Method for Large Models (arXiv 2506.10911).

Replicas that train on their own and now and then move towards one other replica, drawn at random. How far they are apart (on a noisy
quadratic), how well they learn (a character model, against DiLoCo), and what a synchronisation costs (random message times).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from atlas.measurements import Recorder
from atlas.models.characters import CharacterMLP
from atlas.models.networks import cross_entropy, value_and_gradient
from atlas.optim.baselines import adam
from atlas.optim.tuning import best_on_average
from atlas.problems.text import Corpus, corpus
from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    # the quadratic
    dim: int = 10
    quadratic_replicas: int = 8
    quadratic_seeds: int = 8
    inner_rates: tuple[float, ...] = (0.0005, 0.0007, 0.001, 0.0014, 0.002, 0.0028, 0.004)
    quadratic_inner: int = 10  # SGD steps between two synchronisations
    quadratic_outer: int = 1600  # synchronisations; the spread is averaged over the second half
    # the character model
    replicas: tuple[int, ...] = (8, 16)
    seeds: int = 8
    steps: int = 400
    inner_steps: int = 10  # between two synchronisations
    batch: int = 16  # characters that a replica predicts in a step
    tuning_replicas: int = 8
    tuning_seeds: int = 2
    rates: tuple[float, ...] = (0.01, 0.04, 0.16)  # of Adam, tried with data-parallel training
    small: float = 0.25  # the share of it that is the small inner step size
    alphas: tuple[float, ...] = (0.7, 1.0, 1.4, 2.0)  # outer step sizes and momenta tried
    betas: tuple[float, ...] = (0.3, 0.5)
    context: int = 6
    embedding: int = 6
    hidden: int = 24
    points: int = 5  # of a curve
    held_out: int = 8000  # characters of a validation loss, shared out among the replicas
    # message times
    workers: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    sigma: float = 0.5  # of the logarithm of a message's time
    message_seeds: int = 16
    repetitions: int = 50


@dataclass(frozen=True)
class Outer:
    """An outer optimizer: its groups and its constants. group 0: all replicas."""

    method: str
    group: int
    alpha: float
    beta: float
    gamma: float = 0.0


def group_mean(u: Tensor, order: Tensor, n: int) -> Tensor:
    """Every replica's mean over its group: the first n of `order` are a group, then the next n. u: (..., N, d), order: (..., N)."""
    index = order.unsqueeze(-1).expand(u.shape)
    groups = u.gather(-2, index).unflatten(-2, (-1, n))
    means = groups.mean(-2, keepdim=True).expand(groups.shape).flatten(-3, -2)
    return torch.empty_like(u).scatter(-2, index, means)


def outer_step(
    phi: Tensor, theta: Tensor, M: Tensor, order: Tensor, n: int, alpha: float, beta: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """A synchronisation of slow weights phi, all (..., N, d), after inner steps that led to theta; returns phi, M.

    M_i <- beta M_i + alpha mean_j (theta_j - phi_j) + gamma (mean_j phi_j - phi_i);   phi_i <- phi_i + M_i

    Means are over i's group of n replicas. NoLoCo: n = 2. DiLoCo: all replicas, whose phi are then the same. n = 1: no communication.
    """
    moved = group_mean(theta - phi, order, n)
    M = beta * M + alpha * moved + gamma * (group_mean(phi, order, n) - phi)
    return phi + M, M


def shuffled(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random orders of the replicas. shape: (..., N)."""
    return torch.rand(shape, generator=generator, device=generator.device).argsort(-1)


def replica_spread(outer: Outer, setting: Setting, run: Run) -> Tensor:
    """Stationary variance of phi between replicas, mean over replicas and coordinates: (inner rates, seeds).

    Inner steps are SGD on (theta - c)' A (theta - c) / 2, c ~ N(0, I) drawn anew in every step, A diagonal.
    """
    N, d, S = setting.quadratic_replicas, setting.dim, setting.quadratic_seeds
    options: dict[str, Any] = {"dtype": torch.float64, "device": run.device}
    omega = torch.tensor(setting.inner_rates, **options).view(-1, 1, 1, 1)
    A = torch.linspace(0.5, 1.5, d, **options)
    phi = torch.zeros(len(omega), S, N, d, **options)
    state: dict[str, Any] = {
        "phi": phi, "M": phi, "sum": torch.zeros(len(omega), S, **options), "generator": run.generator("quadratic"),
    }  # fmt: skip
    T = setting.quadratic_outer
    for t in run.checkpoint(f"quadratic: {outer.method}", T, state):
        theta, generator = state["phi"], state["generator"]
        for _ in range(setting.quadratic_inner):
            c = torch.randn(S, N, d, generator=generator, **options)
            theta = theta - omega * A * (theta - c)
        order = shuffled((S, N), generator).expand(len(omega), S, N)
        state["phi"], state["M"] = outer_step(
            state["phi"], theta, state["M"], order, outer.group, outer.alpha, outer.beta, outer.gamma
        )
        if t >= T // 2:
            state["sum"] += state["phi"].var(-2).mean(-1) / (T - T // 2)
    return state["sum"]


def train(
    rows: list[Outer], rates: list[float], N: int, batch: int, seeds: int, name: str, setting: Setting, text: Corpus, run: Run
) -> Tensor:  # fmt: skip
    """Validation losses of the slow weights, mean over the N replicas, for every outer optimizer: (rows, S, points + 1).

    rates: Adam's in the inner steps, of each row or of all. All rows see the same batches and the same groups.
    """
    T, H, S, R = setting.steps, setting.inner_steps, seeds, len(rows)
    network = CharacterMLP(text.vocabulary, setting.context, setting.embedding, setting.hidden)
    unseen = [
        part.unflatten(0, (setting.held_out // N, N)).transpose(0, 1)
        for part in text.held_out(setting.held_out // N * N, setting.context)
    ]

    def validation_loss(phi: Tensor) -> Tensor:  # every replica predicts its share of the characters
        with torch.no_grad():
            return cross_entropy(network(phi, unseen[0]), unseen[1]).mean(-1)

    start = network.initial(S, generator=run.generator(name, "initial"))
    phi = start.unsqueeze(1).repeat(R, 1, N, 1)
    m, v, M = (torch.zeros_like(phi) for _ in range(3))
    state: dict[str, Any] = {
        "phi": phi, "theta": phi.clone(), "m": m, "v": v, "M": M,
        "generator": run.generator(name, "batches"), "losses": [validation_loss(phi)],
    }  # fmt: skip
    rate = torch.tensor(rates, device=run.device).view(-1, 1, 1, 1)
    for t in run.checkpoint(name, T, state):
        phi, theta, M, generator = (state[key] for key in ("phi", "theta", "M", "generator"))
        x, y = text.batch((S, N, batch), setting.context, generator)
        _, g = value_and_gradient(lambda theta: cross_entropy(network(theta, x), y), theta)
        schedule = min(1, (t + 1) / (0.04 * T)) * (0.1 + 0.45 * (1 + math.cos(math.pi * t / T)))
        adam(theta, g, state["m"], state["v"], t + 1, rate * schedule)
        if (t + 1) % H == 0:
            order = shuffled((S, N), generator)
            for r, row in enumerate(rows):
                n = row.group or N
                phi[r], M[r] = outer_step(phi[r], theta[r], M[r], order, n, row.alpha, row.beta, row.gamma)
            theta.copy_(phi)
        if (t + 1) % (T // setting.points) == 0:
            state["losses"].append(validation_loss(phi))
    return torch.stack(state["losses"], -1)


def tree_all_reduce(workers: int, sigma: float, runs: int, generator: torch.Generator) -> Tensor:
    """When the last of the workers has the result of an all-reduce over a binomial tree: (runs,).

    Sums go up the tree and the result comes down again; the time of a message is exp(sigma z), z ~ N(0, 1).
    """

    def message(n: int) -> Tensor:
        z = torch.randn(runs, n, generator=generator, dtype=torch.float64, device=generator.device)
        return (sigma * z).exp()

    ready = torch.zeros(runs, workers, dtype=torch.float64, device=generator.device)
    strides = [2**level for level in range(workers.bit_length() - 1)]
    for stride in strides:
        parents, children = ready[:, :: 2 * stride], ready[:, stride :: 2 * stride]
        ready[:, :: 2 * stride] = torch.maximum(parents, children + message(children.shape[1]))
    for stride in reversed(strides):
        parents = ready[:, :: 2 * stride]
        ready[:, stride :: 2 * stride] = parents + message(parents.shape[1])
    return ready.amax(1)


# as the official configurations have them
NOLOCO = Outer("NoLoCo", 2, 0.7, 0.5, 0.7)
DILOCO = Outer("DiLoCo", 0, 0.7, 0.3)
EQUAL = replace(DILOCO, method="DiLoCo, momentum of NoLoCo", beta=NOLOCO.beta)
ALONE = Outer("independent", 1, 1.0, 0.0)


def language(table: Recorder, setting: Setting, run: Run) -> None:
    text, batch = corpus("kjv", run.device), setting.batch
    N, S = setting.tuning_replicas, setting.tuning_seeds
    # data-parallel training, which is one replica with everybody's batch, chooses the inner step size of all
    rates = list(setting.rates)
    losses = train(
        [ALONE] * len(rates), rates, 1, N * batch, S, "tuning of the inner step", setting, text, run
    )
    rate = rates[int(best_on_average(losses[..., -1]))]
    table.add("data parallel", "inner step size chosen", x=0, value=torch.tensor([rate]))

    pairs = list(itertools.product(setting.alphas, setting.betas))
    rows = [replace(NOLOCO, method="NoLoCo, tuned", alpha=a, beta=b, gamma=a) for a, b in pairs]
    rows += [replace(DILOCO, method="DiLoCo, tuned", alpha=a, beta=b) for a, b in pairs]
    losses = train(rows, [rate], N, batch, S, "tuning of the outer step", setting, text, run)
    tuned = [
        rows[i * len(pairs) + int(k)]
        for i, k in enumerate(best_on_average(losses[..., -1].unflatten(0, (2, -1))))
    ]
    for row in tuned:
        table.add(row.method, "alpha chosen", x=0, value=torch.tensor([row.alpha]))
        table.add(row.method, "beta chosen", x=0, value=torch.tensor([row.beta]))

    x = torch.arange(setting.points + 1) * (setting.steps // setting.points)
    cases = [(N, "tuned", rate, [NOLOCO, DILOCO, EQUAL, ALONE, *tuned]) for N in setting.replicas]
    cases.append((setting.replicas[0], "small", setting.small * rate, [NOLOCO, DILOCO, EQUAL]))
    for N, inner, rate, rows in cases:
        name = f"{N} replicas, inner step {inner}"
        losses = train(rows, [rate], N, batch, setting.seeds, name, setting, text, run)
        for row, loss in zip(rows, losses, strict=True):
            table.add(row.method, "validation loss", x=x, value=loss, replicas=N, inner_step=inner)


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    for outer in (NOLOCO, replace(NOLOCO, method="gamma = 0", gamma=0.0)):
        spread = replica_spread(outer, setting, run)
        table.add(outer.method, "variance between replicas", x=setting.inner_rates, value=spread.mT)
    language(table, setting, run)
    S, generator = setting.message_seeds, run.generator("messages")
    for n in setting.workers:
        for method, members in (("tree all-reduce", n), ("pair", 2)):
            times = tree_all_reduce(members, setting.sigma, S * setting.repetitions, generator)
            table.add(method, "synchronisation time", x=n, value=times.view(S, -1).mean(1))
    return table.frame()
