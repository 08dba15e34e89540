"""Revisiting the Last-Iterate Convergence of Stochastic Gradient Methods (arXiv 2312.08531).

Stochastic subgradient descent without projection, judged by its last iterate: linearly decaying steps against
eta/sqrt(t), on a benign and on a worst-case Lipschitz function, with light and heavy tails, and a strongly convex one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from atlas.problems.lipschitz import last_iterate_gap
from atlas.run import Loop, Run, plain


@dataclass(frozen=True)
class Setting:
    dim: int = 20
    seeds: int = 32
    slopes: tuple[float, ...] = (1.0, 0.25, 0.0625, 0.015625, 0.00390625)  # of the Lipschitz functions
    horizons: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    noise: float = 1.0  # E||noise||^2 = noise^2
    hard_horizons: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    tail_blocks: int = 30  # independent estimates of the quantiles
    tail_block: int = 3000  # runs per estimate
    tail_horizon: int = 512
    tail_dim: int = 5
    deltas: tuple[float, ...] = (0.1, 0.03, 0.01, 0.003)
    tail_index: float = 1.5  # of the heavy-tailed control: infinite variance below 2


Schedule = Callable[[Tensor, Tensor], Tensor]  # (t, T) -> eta_t, both broadcast


def linear_decay(eta: float) -> Schedule:
    """eta_t = eta (T - t + 1) / T^(3/2), the schedule for a known horizon."""
    return lambda t, T: eta * (T - t + 1) / T**1.5


def inverse_sqrt(eta: float) -> Schedule:
    """eta_t = eta / sqrt(t), the any-time schedule."""
    return lambda t, T: eta / t.sqrt()


def last_iterates(
    subgradient: Callable[[Tensor], Tensor],
    schedule: Schedule,
    x1: Tensor,
    horizons: Tensor,
    draw: Callable[[torch.Size], Tensor],
    loop: Loop = plain,
    **random: torch.Generator,
) -> Tensor:
    """x_{t+1} = x_t - eta_t (g(x_t) + noise_t), t = 1..T, for every horizon T.

    x1 (..., d), horizons (H,) ascending; returns x_{T+1} (H, ..., d). A resumable loop needs draw's generator too.
    """
    x = x1.expand(len(horizons), *x1.shape).clone()
    T = horizons.view(-1, *[1] * x1.dim())
    state = {"x": x, **random}
    for step in loop(int(horizons[-1]), state):
        x, t = state["x"], step + 1
        on = int(torch.searchsorted(horizons, t))  # runs with T < t have ended
        eta = schedule(torch.tensor(float(t), dtype=x.dtype, device=x.device), T[on:])
        x[on:] -= eta * (subgradient(x[on:]) + draw(x[on:].shape))
    return state["x"]


def harvey(T: int, schedule: Schedule) -> float:
    """f(x_{T+1}) on the worst-case function that is built against 1/sqrt(t): b_j = sqrt(j)/(2 sqrt(T))."""
    t, horizon = torch.arange(1, T + 1, dtype=torch.float64), torch.tensor(float(T), dtype=torch.float64)
    return last_iterate_gap(schedule(t, horizon), (t / T).sqrt() / 2)


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    horizons = torch.tensor(setting.horizons, dtype=torch.float64, device=run.device)
    x1 = torch.ones(setting.seeds, setting.dim, dtype=torch.float64, device=run.device)
    root_d = setting.dim**0.5

    def gaussian(generator: torch.Generator) -> Callable[[torch.Size], Tensor]:
        scale = setting.noise / root_d
        return lambda shape: (
            scale * torch.randn(shape, generator=generator, dtype=torch.float64, device=run.device)
        )

    def resumable(*name: str) -> Loop:
        return functools.partial(run.checkpoint, ": ".join(name))

    # f(x) = s ||x||_1 / sqrt(d), Lipschitz with constant s <= 1: the worst s of each horizon, since the rate is one for the
    # whole class, and a single sharp function is easier than that. eta = ||x_1 - x*|| / sqrt(1 + noise^2)
    eta = root_d / (1 + setting.noise**2) ** 0.5
    lipschitz = {
        "linear decay": linear_decay(eta),
        "1/sqrt(t)": inverse_sqrt(eta),
        "constant step": lambda t, T: torch.full_like(T, 0.1),
    }
    s = torch.tensor(setting.slopes, dtype=torch.float64, device=run.device)[:, None, None] / root_d
    for name, schedule in lipschitz.items():
        noise = run.generator("lipschitz", name)
        x = last_iterates(lambda x: s * x.sign(), schedule, x1.expand(len(s), -1, -1), horizons, gaussian(noise),
                          resumable("Lipschitz", name), noise=noise)  # fmt: skip
        gap = (s * x.abs()).sum(-1)  # (horizons, slopes, seeds)
        worst = gap.mean(2).argmax(1)
        table.add(
            name,
            "last-iterate gap",
            x=setting.horizons,
            value=gap[range(len(gap)), worst].T,
            problem="Lipschitz",
        )

    # f(x) = ||x||_1 / sqrt(d) + ||x||^2 / 2, 1-strongly convex
    strongly = {"2/(t+1)": lambda t, T: 2 / (t + 1), "1/sqrt(t)": inverse_sqrt(1.0)}
    for name, schedule in strongly.items():
        noise = run.generator("strongly", name)
        x = last_iterates(lambda x: x.sign() / root_d + x, schedule, x1, horizons, gaussian(noise),
                          resumable("strongly convex", name), noise=noise)  # fmt: skip
        gap = x.abs().sum(-1) / root_d + x.square().sum(-1) / 2
        table.add(name, "last-iterate gap", x=setting.horizons, value=gap.T, problem="strongly convex")

    for name, schedule in (("linear decay", linear_decay(1.0)), ("1/sqrt(t)", inverse_sqrt(1.0))):
        gaps = torch.tensor(
            [[harvey(T, schedule) * T**0.5 for T in run.progress(setting.hard_horizons, name)]]
        )
        table.add(
            name, "sqrt(T) * last-iterate gap", x=setting.hard_horizons, value=gaps, problem="worst case"
        )

    # quantiles of the last iterate's gap, in blocks; x = log(1/delta)
    d, scale = setting.tail_dim, setting.noise / setting.tail_dim**0.5
    start = torch.ones(setting.tail_blocks * setting.tail_block, d, device=run.device)
    schedule = linear_decay((d / (1 + setting.noise**2)) ** 0.5)
    levels = torch.tensor([1 - delta for delta in setting.deltas], device=run.device)
    log_inverse = torch.tensor([1 / delta for delta in setting.deltas]).log()
    for name in ("Gaussian noise", "heavy-tailed noise"):
        generator = run.generator("tails", name)

        def draw(shape: torch.Size, name: str = name, generator: torch.Generator = generator) -> Tensor:
            if name == "Gaussian noise":
                return scale * torch.randn(shape, generator=generator, device=run.device)
            uniform = torch.rand(shape, generator=generator, device=run.device) * 2 - 1
            return scale * uniform.sign() * (uniform.abs().clamp_min(1e-12) ** (-1 / setting.tail_index) - 1)

        horizon = torch.tensor([float(setting.tail_horizon)], device=run.device)
        x = last_iterates(lambda x: x.sign() / d**0.5, schedule, start, horizon, draw, resumable("tails", name),
                          noise=generator)[0]  # fmt: skip
        gap = (x.abs().sum(-1) / d**0.5).reshape(setting.tail_blocks, setting.tail_block)
        ratio = gap.quantile(levels, dim=1).cpu() / log_inverse[:, None]  # (deltas, blocks)
        growth = ratio[1:] / ratio[:-1]
        for delta, value in zip(setting.deltas[1:], growth, strict=True):
            table.add(
                name, "growth of quantile / log(1/delta)", x=setting.tail_horizon, value=value, delta=delta
            )
    return table.frame()
