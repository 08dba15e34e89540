"""When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement (arXiv 2310.07831).

The last iterate of SGD with linearly decaying steps on Lipschitz functions, one of them built against constant steps; and
schedules refined from observed gradient norms, on logistic regression.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from atlas import data
from atlas.measurements import Recorder
from atlas.optim import schedules
from atlas.optim.baselines import adam, sgd
from atlas.optim.tuning import best_on_others, chosen
from atlas.problems.lipschitz import last_iterate_gap
from atlas.run import Run

Optimizer = Literal["SGD", "Adam"]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Setting:
    horizons: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    slopes: tuple[float, float, int] = (2.0**-7, 0.5, 7)  # of the noisy functions: from, to, how many
    dim: int = 5
    noise: float = 1.0  # E||noise||^2 = noise^2
    noisy_seeds: int = 256
    steps: int = 1500  # of logistic regression
    batch: int = 16
    seeds: int = 10
    tau: float = 0.1  # width of the median filter, as a share of the steps
    samples: int = 1000  # of the synthetic data sets
    sgd_rates: tuple[float, float, int] = (2.0**-4, 2.0**4, 9)  # from, to, how many
    adam_rates: tuple[float, float, int] = (2.0**-9, 2.0**-1, 9)


def median_filter(g: Tensor, tau: float) -> Tensor:
    """Running median of the odd width next to tau T; what is missing is g_1 before the start and reflected at the end. g: (..., T)."""
    half = int(tau * g.shape[-1]) // 2
    rows = g.reshape(1, -1, g.shape[-1])
    rows = F.pad(F.pad(rows, (half, 0), mode="replicate"), (0, half), mode="reflect")
    return rows.unfold(-1, 2 * half + 1, 1).median(-1).values.view(g.shape)


def refine(norms: Tensor, optimizer: Optimizer, tau: float) -> Tensor:
    """The schedule refined from gradient norms of an earlier run, largest value 1. norms, schedule: (..., T).

    eta_t = w_t sum_{p > t} w_p with w_t = 1 / ||g_t||_2^2 for SGD, 1 / ||g_t||_1 for Adam, norms filtered before.
    """
    w = median_filter(norms.double(), tau) ** {"SGD": -2, "Adam": -1}[optimizer]
    after = w.flip(-1).cumsum(-1).flip(-1) - w
    eta = w * after
    return eta / eta.amax(-1, keepdim=True)


@dataclass(frozen=True)
class Data:
    """x: (n, d) with a column of ones, y: (n,) classes."""

    x: Tensor
    y: Tensor

    @property
    def classes(self) -> int:
        return int(self.y.max()) + 1

    def minimum(self) -> float:
        """The least mean loss of softmax regression; there is one if the data are not separable."""
        x, y = self.x.cpu().double(), F.one_hot(self.y).cpu().double()

        def loss(flat: Array) -> tuple[float, Array]:
            z = x @ torch.from_numpy(flat).view(x.shape[1], -1)
            gradient = x.mT @ (z.softmax(-1) - y) / len(x)
            return float((z.logsumexp(-1) - (z * y).sum(-1)).mean()), gradient.flatten().numpy()

        start = np.zeros(x.shape[1] * y.shape[1])
        precise = {"gtol": 1e-8, "ftol": 0, "maxiter": 10**5}
        return float(minimize(loss, start, jac=True, method="L-BFGS-B", options=precise).fun)


def data_sets(samples: int, run: Run) -> dict[str, Data]:
    """Data that no linear classifier separates, so that logistic regression without a penalty has a minimum."""

    def made(x: Array, y: Array) -> Data:
        x = np.column_stack([x, np.ones(len(x))])
        return Data(torch.from_numpy(x).float().to(run.device), torch.from_numpy(y).long().to(run.device))

    def standardised(x: Array) -> Array:
        return (x - x.mean(0)) / x.std(0)

    rng = run.rng("data")
    arrays: list[dict[str, Array]] = [data.load(name) for name in ("breast_cancer", "diabetes", "digits")]
    cancer, diabetes, digits = arrays
    pixels = digits["x"] - digits["x"].mean(0)
    components = pixels @ np.linalg.svd(pixels, full_matrices=False)[2][:10].T
    centres, of = 0.6 * rng.standard_normal((5, 20)), rng.integers(5, size=samples)
    x = rng.standard_normal((samples, 20)) / np.arange(1, 21)
    likely = 1 / (1 + np.exp(-5 * x @ rng.standard_normal(20)))
    return {
        "breast cancer": made(standardised(cancer["x"][:, :10]), cancer["y"]),  # the ten means
        "diabetes": made(standardised(diabetes["x"]), diabetes["y"] > np.median(diabetes["y"])),
        "digits": made(standardised(components), digits["y"]),
        "mixture": made(standardised(centres[of] + rng.standard_normal((samples, 20))), of),
        "ill-conditioned": made(x, rng.random(samples) < likely),
    }


def train(
    problem: Data, optimizer: Optimizer, rates: Tensor, name: str, setting: Setting, run: Run
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax regression from zero with K schedules of S seeds each; all K see the same batches.

    rates: (K, S, T). Returns the final training loss and share of errors (K, S), and the gradients' norms (K, S, T).
    """
    (K, S, T), C, d = rates.shape, problem.classes, problem.x.shape[1]
    theta = torch.zeros(S, d, K, C, device=run.device)
    generator = run.generator("batches", name)
    state: dict[str, Any] = {
        "theta": theta, "m": torch.zeros_like(theta), "v": torch.zeros_like(theta), "generator": generator,
        "norms": torch.zeros(T, S, K, device=run.device),
    }  # fmt: skip
    for t in run.checkpoint(name, T, state):
        theta = state["theta"]
        i = torch.randint(len(problem.y), (S, setting.batch), generator=generator, device=run.device)
        x, y = problem.x[i], problem.y[i]
        p = (x @ theta.flatten(2)).view(S, -1, K, C).softmax(-1)
        p -= F.one_hot(y, C).unsqueeze(2)
        g = (x.mT @ p.flatten(2) / setting.batch).view(S, d, K, C)
        rate = rates[:, :, t].T[:, None, :, None]
        if optimizer == "SGD":
            state["norms"][t] = g.square().sum((1, 3)).sqrt()
            sgd(theta, g, state["m"], rate, momentum=0.0)
        else:
            state["norms"][t] = g.abs().sum((1, 3))
            adam(theta, g, state["m"], state["v"], t + 1, rate)
    logits = (problem.x @ state["theta"].flatten(2)).view(S, -1, K, C)
    loss = logits.logsumexp(-1) - logits.gather(-1, problem.y.view(1, -1, 1, 1).expand(S, -1, K, 1))[..., 0]
    wrong = (logits.argmax(-1) != problem.y.view(1, -1, 1)).float()
    return loss.mean(1).T, wrong.mean(1).T, state["norms"].permute(2, 1, 0)


def refinement(setting: Setting, run: Run, table: Recorder) -> None:
    """A run with linear decay, the schedule refined from its gradient norms, and new runs with all schedules."""
    T, S = setting.steps, setting.seeds
    generator = run.generator("shuffles")
    linear = schedules.linear_decay(T).to(run.device)
    for problem_name, problem in data_sets(setting.samples, run).items():
        minimum = problem.minimum()
        for optimizer in ("SGD", "Adam"):
            low, high, count = setting.sgd_rates if optimizer == "SGD" else setting.adam_rates
            grid = torch.from_numpy(np.geomspace(low, high, count)).to(run.device)[:, None, None]
            name = f"{problem_name}, {optimizer}"
            where = {"problem": problem_name, "optimizer": optimizer}

            first = (grid * linear).expand(-1, S, -1).float()
            loss, _, norms = train(problem, optimizer, first, f"{name}, first run", setting, run)
            norms = chosen(norms, best_on_others(loss))
            order = torch.rand(S, T, generator=generator, device=run.device).argsort(-1)
            refined = {
                "measured": refine(norms, optimizer, setting.tau),
                "shuffled": refine(norms.gather(-1, order), optimizer, setting.tau),
                "constant": refine(norms[:, :1].expand(-1, T), optimizer, setting.tau),
            }
            shapes(refined, T, where, table)

            tried = {
                "linear decay": linear.expand(S, -1),
                "cosine": schedules.cosine(T).to(run.device).expand(S, -1),
                "refined": refined["measured"],
                "refined from shuffled norms": refined["shuffled"],
            }
            rates = torch.cat([grid * schedule for schedule in tried.values()]).float()
            loss, wrong, _ = train(problem, optimizer, rates, name, setting, run)
            for method, losses, errors in zip(tried, loss.split(count), wrong.split(count), strict=True):
                best = best_on_others(losses)
                gap = (chosen(losses, best).double() - minimum).log10()
                table.add(method, "log10 of the final loss above the minimum", x=T, value=gap, **where)
                table.add(method, "final training error", x=T, value=chosen(errors, best_on_others(errors)), **where)  # fmt: skip


def shapes(refined: dict[str, Tensor], T: int, where: dict[str, str], table: Recorder) -> None:
    """How refined schedules (S, T) begin and end."""
    line = schedules.linear_decay(T - 1)
    line = torch.cat([line, line.new_zeros(1)])  # the last step of a refined schedule is zero
    late = int(0.9 * T)
    for norms, eta in refined.items():
        eta, peak = eta.cpu(), eta.argmax(-1).cpu()
        rows = {"x": T, "norms": norms, **where}
        table.add("refined", "first rate / largest rate", value=eta[:, 0], **rows)
        table.add("linear decay", "first rate / largest rate", value=line[:1].expand(len(eta)), **rows)
        table.add("refined", "steps before the peak / all steps", value=peak / T, **rows)
        table.add("linear decay", "steps before the peak / all steps", value=0 * peak, **rows)
        table.add("refined", "fall over the last tenth of the steps", value=eta[:, late], **rows)
        straight = line[late] / line[peak]
        table.add("line from its peak", "fall over the last tenth of the steps", value=straight, **rows)
        table.add("refined", "distance from linear decay", value=(eta - line).abs().amax(-1), **rows)


def decaying(T: int) -> Tensor:
    """eta_t = (1 - t/T) / sqrt(T), t = 0..T-1, which D / G multiplies: (T,)."""
    return schedules.linear_decay(T) / T**0.5


def constant(T: int) -> Tensor:
    return schedules.constant(T) / T**0.5


def noisy_gaps(setting: Setting, run: Run) -> Tensor:
    """f(x_T) of SGD with linear decay from ||x_1|| = D = 1 on f(x) = s ||x||_1 / sqrt(d), for the worst s of every horizon.

    The rate is one for all Lipschitz functions; each of these alone is easier. G^2 = 1 + noise^2. Returns (horizons, seeds).
    """
    horizons, d = sorted(setting.horizons), setting.dim
    G = (1 + setting.noise**2) ** 0.5
    s = torch.from_numpy(np.geomspace(*setting.slopes)).to(run.device)[:, None, None] / d**0.5
    eta = torch.zeros(horizons[-1], len(horizons), 1, 1, 1, dtype=torch.float64, device=run.device)
    for k, T in enumerate(horizons):
        eta[:T, k] = decaying(T).view(-1, 1, 1, 1) / G
    generator = run.generator("noise")
    shape = (len(s), setting.noisy_seeds, d)
    x = torch.full((len(horizons), *shape), d**-0.5, dtype=torch.float64, device=run.device)
    state: dict[str, Any] = {"x": x, "generator": generator}
    for t in run.checkpoint("noisy", horizons[-1], state):
        on = int(np.searchsorted(horizons, t, side="right"))  # the runs that have not ended
        noise = torch.randn(shape, generator=generator, dtype=torch.float64, device=run.device)
        x = state["x"][on:]
        x -= eta[t, on:] * (s * x.sign() + setting.noise / d**0.5 * noise)
    gap = (s * state["x"].abs()).sum(-1)
    return gap[torch.arange(len(gap), device=run.device), gap.mean(2).argmax(1)]


def last_iterates(setting: Setting, run: Run, table: Recorder) -> None:
    horizons = sorted(setting.horizons)
    noisy = noisy_gaps(setting, run)
    table.add("linear decay", "last-iterate gap", x=horizons, value=noisy.T, problem="noisy")
    G = (1 / 4 + math.pi**2 / 384) ** 0.5  # of the function that is built against constant steps; D = 1
    where = {"x": horizons, "problem": "built against constant steps"}
    for method, eta in (("linear decay", decaying), ("constant", constant)):
        gaps = [
            last_iterate_gap(eta(T) / G, torch.full((T,), 0.5, dtype=torch.float64))
            for T in run.progress(horizons, method)
        ]
        table.add(method, "last-iterate gap", value=[gaps], **where)
        scaled = [gap * T**0.5 for gap, T in zip(gaps, horizons, strict=True)]
        table.add(method, "sqrt(T) * last-iterate gap", value=[scaled], **where)


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    last_iterates(setting, run, table)
    refinement(setting, run, table)
    return table.frame()
