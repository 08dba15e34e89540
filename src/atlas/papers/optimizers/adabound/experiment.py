"""Adaptive Gradient Methods with Dynamic Bound of Learning Rate (arXiv 1902.09843): AdaBound and AMSBound.

Regret on the online problem on which Adam fails, and test accuracy of small networks. Adam and AMSGrad are AdaBound and AMSBound
with gamma = 0, so methods, constants and seeds are one batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from atlas.models.networks import MLP, accuracy, cross_entropy, value_and_gradient
from atlas.optim.baselines import sgd
from atlas.optim.tuning import best_on_others, chosen, trailing_mean
from atlas.problems.images import fashion
from atlas.problems.online import average_regret, rare_large
from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    # online: slope C once in three rounds
    slopes: tuple[float, ...] = (1.0, 1.5, 3.0, 4.0, 8.0)  # C
    shares: tuple[float, ...] = (0.0, 0.9)  # beta_1 / sqrt(beta_2)
    alphas: tuple[float, ...] = (0.3, 1.0, 3.0)  # step sizes
    online_final: float = 1.0  # final rate
    starts: int = 8
    horizons: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
    # images: all methods try six settings, on other seeds than those reported
    images: int = 5000  # for training
    sizes: tuple[int, ...] = (64, 32, 32, 10)
    batch: int = 32
    steps: int = 500
    cut: float = 0.75  # share of the steps after which all rates are divided by ten
    seeds: int = 12
    weight_decay: float = 0.0005
    gamma_steps: float = 78.0  # gamma times the number of steps: 0.001 times 78 000 steps in the paper
    sgd_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    adam_rates: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
    bound_rate: float = 0.01  # alpha of AdaBound, which ends as SGD with each of its rates
    window: int = 10  # steps over which the training loss is averaged
    curve_points: int = 40


def bounded_step(
    g: Tensor, m: Tensor, v: Tensor, V: Tensor, t: int, alpha: Tensor, betas: tuple[Tensor | float, Tensor | float],
    gamma: Tensor, final: Tensor, maximum: Tensor, eps: float = 0.0,
) -> Tensor:  # fmt: skip
    """clip(alpha / sqrt(V_t), l(t), u(t)) m_t, and writes the memory m, v, V in place.

    m_t = b1 m_{t-1} + (1 - b1) g_t;  v_t = b2 v_{t-1} + (1 - b2) g_t^2;  V_t = v_t or, where `maximum`, max(V_{t-1}, v_t)
    l(t) = final (1 - 1 / (gamma t + 1));  u(t) = final (1 + 1 / (gamma t))

    AdaBound, with `maximum` AMSBound. gamma = 0 is no bounds: Adam, with `maximum` AMSGrad. All tensors broadcast against g.
    """
    b1, b2 = betas
    m.mul_(b1).add_((1 - b1) * g)
    v.mul_(b2).add_((1 - b2) * g.square())
    torch.where(maximum, torch.maximum(V, v), v, out=V)
    low, high = final * (1 - 1 / (gamma * t + 1)), final * (1 + 1 / (gamma * t))
    return (alpha / (V.sqrt() + eps)).clamp(low, high) * m


# Online

# bounds, running maximum
METHODS = {
    "Adam": (False, False),
    "AMSGrad": (False, True),
    "AdaBound": (True, False),
    "AMSBound": (True, True),
}


def online(setting: Setting, run: Run, add: Callable[..., None]) -> None:
    """Dimensions: method, C, share, alpha, start."""

    def along(values: tuple[float, ...], place: int) -> Tensor:
        tensor = torch.tensor(values, dtype=torch.float64, device=run.device)
        return tensor.view(*(-1 if i == place else 1 for i in range(5)))

    bounded, maximum = zip(*METHODS.values(), strict=True)
    C, alpha, largest = along(setting.slopes, 1), along(setting.alphas, 3), along(maximum, 0).bool()
    b2 = 1 / (1 + C.square())
    b1 = along(setting.shares, 2) * b2.sqrt()
    gamma, final = (1 - b2) * along(bounded, 0), along((setting.online_final,), 0)

    def learner(x: Tensor, g: Tensor, t: int, memory: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return x - bounded_step(g, *memory, t, alpha, (b1, b2), gamma, final, largest) / t**0.5

    unit = torch.rand(
        setting.starts, generator=run.generator("starts"), dtype=torch.float64, device=run.device
    )
    x = 2 * unit - 1 + 0 * (gamma + b1 + alpha)  # a copy for all others
    regret = average_regret(
        rare_large(C.squeeze(0)), learner, x, tuple(torch.zeros_like(x) for _ in range(3)), setting.horizons,
        lambda steps, state: run.checkpoint("online", steps, state),
    )  # fmt: skip
    conditions = (METHODS, setting.slopes, setting.shares, setting.alphas)
    for (i, method), (c, C_), (s, share), (a, alpha_) in itertools.product(*map(enumerate, conditions)):
        curves, where = regret[:, i, c, s, a].T, {"C": C_, "share": share, "alpha": alpha_}
        add(method, "average regret", x=setting.horizons, value=curves, **where)
        add(method, "final average regret", x=setting.horizons[-1], value=curves[:, -1], **where)


# Images


def images(setting: Setting, run: Run, add: Callable[..., None]) -> None:
    """Dimensions: method, the method's setting, seed, parameter. The same starts and batches for all."""
    train, test = fashion("pca", setting.images, None, run.device, setting.sizes[0])
    net, S, steps = MLP(setting.sizes), setting.seeds, setting.steps
    rates, adam = (torch.tensor(v, device=run.device) for v in (setting.sgd_rates, setting.adam_rates))
    # SGD's momentum adds up ten gradients, AdaBound's is a mean
    start, end, gamma = torch.full_like(rates, setting.bound_rate), 10 * rates, setting.gamma_steps / steps
    adaptive: dict[str, tuple[Any, ...]] = {  # alpha, final rate, gamma, running maximum
        "Adam": (adam, adam, 0.0, False),
        "AMSGrad": (adam, adam, 0.0, True),
        "AdaBound": (start, end, gamma, False),
        "AdaBound, bounds closed": (start, end, torch.inf, False),  # SGD
    }
    names = ("SGD", *adaptive)

    columns = list(zip(*adaptive.values(), strict=True))
    alpha, final = (torch.stack(c)[..., None, None] for c in columns[:2])
    gammas, maximum = (torch.tensor(c, device=run.device).view(-1, 1, 1, 1) for c in columns[2:])
    betas = 0.9, 0.999

    generator = run.generator("images")
    theta = net.initial(S, generator=generator).expand(len(names), len(rates), S, -1).clone()
    v, V = (torch.zeros_like(theta[1:]) for _ in range(2))
    state: dict[str, Any] = {
        "theta": theta,
        "m": torch.zeros_like(theta),
        "v": (v, V),
        "generator": generator,
    }
    state["losses"] = torch.zeros(*theta.shape[:-1], steps, device=run.device)
    for t in (step + 1 for step in run.checkpoint("images", steps, state)):
        theta, m, (v, V) = state["theta"], state["m"], state["v"]
        x, y = train.batch((S, setting.batch), generator)
        loss = lambda theta: cross_entropy(net(theta, x), y)
        state["losses"][..., t - 1], g = value_and_gradient(loss, theta)
        g += setting.weight_decay * theta
        cut = 0.1 if t > setting.cut * steps else 1.0
        sgd(theta[0], g[0], m[0], cut * rates[:, None, None])
        corrected = alpha * (1 - betas[1] ** t) ** 0.5 / (1 - betas[0] ** t)
        theta[1:] -= cut * bounded_step(g[1:], m[1:], v, V, t, corrected, betas, gammas, final, maximum, 1e-8)

    losses = trailing_mean(state["losses"], setting.window)
    shown = torch.linspace(1, steps, setting.curve_points).round().long().unique()
    for i, name in enumerate(names):
        right = torch.stack([accuracy(net(one, test.x), test.y) for one in state["theta"][i]])
        best = best_on_others(1 - right)
        curve = chosen(losses[i], best)
        add(name, "test accuracy", x=steps, value=chosen(right, best))
        add(name, "training loss", x=shown, value=curve[:, shown.to(curve.device) - 1])
        add(name, "early training loss", x=steps // 10, value=curve[:, steps // 10 - 1])
        add(name, "setting chosen", x=steps, value=best)


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    online(setting, run, table.add)
    images(setting, run, table.add)
    return table.frame()
