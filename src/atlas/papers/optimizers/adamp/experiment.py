"""AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights (arXiv 2006.08217): SGDP and AdamP.

Norm growth under random tangent gradients, a Rosenbrock function of the direction of w, and networks with batch normalisation.
Methods, step sizes, momenta and seeds are one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from atlas.models.networks import MLP, accuracy, cross_entropy, value_and_gradient
from atlas.optim.tuning import best_on_others, chosen, first_below, trailing_mean
from atlas.problems.images import fashion
from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    # norm growth
    dim: int = 100
    betas: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)  # momenta
    growth_rate: float = 0.01
    growth_steps: int = 2000
    replicas: int = 32
    # Rosenbrock: both methods try all rates, on other starts than those reported
    sphere_rates: tuple[float, ...] = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    sphere_steps: int = 3000
    starts: int = 64
    target: float = 0.1
    # networks: all methods try four rates, on other seeds than those reported
    images: int = 20000  # for training
    sizes: tuple[int, ...] = (64, 32, 32, 10)
    sgd_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    adam_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    batch: int = 32
    steps: int = 1000
    seeds: int = 8
    window: int = 10  # steps over which the training loss is averaged


# The method


def projected(p: Tensor, w: Tensor, g: Tensor, delta: float = 0.1) -> Tensor:
    """q = Pi_w(p) = p - (w . p / ||w||^2) w if |cos(w, g)| < delta / sqrt(dim(w)), else p. Matrices (..., inputs, outputs).

    Every column, the weights of a unit, is a vector w. If not all of them pass the test, the whole matrix is one w, with its own test.
    """
    columns = [(a * b).sum(-2, keepdim=True) for a, b in ((w, g), (w, w), (g, g), (w, p))]
    whole = [part.sum(-1, keepdim=True) for part in columns]
    removed = torch.zeros_like(whole[0])
    for dim, (wg, ww, gg, wp) in ((w.shape[-2] * w.shape[-1], whole), (w.shape[-2], columns)):
        invariant = wg.abs() <= delta / math.sqrt(dim) * (ww * gg).sqrt()  # equal where g = 0
        removed = torch.where(invariant.all(-1, keepdim=True), wp / ww, removed)
    return p - removed * w


def projected_vector(p: Tensor, w: Tensor, g: Tensor) -> Tensor:
    """The same for vectors (..., d)."""
    return projected(p.unsqueeze(-1), w.unsqueeze(-1), g.unsqueeze(-1)).squeeze(-1)


def tangent(p: Tensor, w: Tensor) -> Tensor:
    """The part of p orthogonal to w. (..., d)."""
    return p - (w * p).sum(-1, keepdim=True) / w.square().sum(-1, keepdim=True) * w


def sgd_direction(g: Tensor, p: Tensor, beta: Tensor | float = 0.9) -> Tensor:
    """p_t = beta p_{t-1} + g_t, in place."""
    return p.mul_(beta).add_(g)


def adam_direction(
    g: Tensor, m: Tensor, v: Tensor, t: int, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> Tensor:
    """p_t = m_t / (1 - b1^t) / (sqrt(v_t / (1 - b2^t)) + eps), of Adam; m and v in place."""
    m.lerp_(g, 1 - betas[0])
    v.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
    return m / (1 - betas[0] ** t) / ((v / (1 - betas[1] ** t)).sqrt() + eps)


# Norm growth


def direction_on_sphere(w: Tensor, new: Tensor) -> Tensor:
    """The unit vector along which new / ||new|| lies from w / ||w||. (..., d)."""
    step = tangent(new / new.norm(dim=-1, keepdim=True), w)
    return step / step.norm(dim=-1, keepdim=True)


def norm_growth(setting: Setting, run: Run, add: Callable[..., None]) -> None:
    """SGD with momentum and SGDP on gradients that are random unit vectors orthogonal to w: (methods, betas, replicas, d)."""
    options: dict[str, Any] = {"dtype": torch.float64, "device": run.device}
    beta = torch.tensor(setting.betas, **options)[:, None, None]
    shape, generator = (setting.replicas, setting.dim), run.generator("norm growth")
    start = torch.randn(shape, generator=generator, **options)
    w = (start / start.norm(dim=-1, keepdim=True)).expand(2, len(beta), *shape).clone()
    state: dict[str, Any] = {"w": w, "p": torch.zeros_like(w), "generator": generator}
    state["sum"], state["off"] = torch.zeros_like(w[..., 0]), torch.zeros(2, *w.shape[1:3], **options)
    for t in run.checkpoint("norm growth", setting.growth_steps, state):
        w, p = state["w"], state["p"]
        g = tangent(torch.randn(shape, generator=generator, **options), w)
        g = g / g.norm(dim=-1, keepdim=True)
        p = sgd_direction(g, p, beta)
        state["sum"] += p.square().sum(-1)
        q = projected_vector(p, w, g)
        if t % 10 == 0 and t > 0:  # p has no radial part in the first step
            other = tangent(p, torch.randn(shape, generator=generator, **options))
            plain = direction_on_sphere(w, w - setting.growth_rate * p)
            for i, step in enumerate((q, other)):
                off = (direction_on_sphere(w, w - setting.growth_rate * step) - plain).norm(dim=-1)[1]
                state["off"][i] = torch.maximum(state["off"][i], off)
        w[0] -= setting.growth_rate * p[0]
        w[1] -= setting.growth_rate * q[1]
    growth = (state["w"].square().sum(-1) - 1) / setting.growth_rate**2 / state["sum"]
    share = growth * ((1 - beta) / (1 + beta)).squeeze(-1)
    for i, method in enumerate(("SGD", "SGDP")):
        for value, shares in zip(setting.betas, share[i], strict=True):
            add(method, "norm growth / predicted", x=setting.growth_steps, value=shares, beta=value)
    for removed, values in zip(("radial part", "part along a random vector"), state["off"], strict=True):
        for value, off in zip(setting.betas, values, strict=True):
            add("SGDP", "change of direction", x=setting.growth_steps, value=off, beta=value, removed=removed)


# Rosenbrock


def rosenbrock(w: Tensor) -> Tensor:
    """(1 - 2 w_1)^2 + 30 (2 w_2 - 4 w_1^2)^2, zero at w_1 = w_2 = 1/2. (..., 3) -> (...)."""
    x, y = 2 * w[..., 0], 2 * w[..., 1]
    return (1 - x).square() + 30 * (y - x.square()).square()


def on_sphere(setting: Setting, run: Run, add: Callable[..., None]) -> None:
    """Best loss so far, of the direction of w and of w itself: (problems, methods, rates, starts, 3) from the same unit vectors."""
    options: dict[str, Any] = {"dtype": torch.float64, "device": run.device}
    rates = torch.tensor(setting.sphere_rates, **options)[:, None, None]
    start = torch.randn(setting.starts, 3, generator=run.generator("starts"), **options)
    start /= start.norm(dim=-1, keepdim=True)
    w = start.expand(2, 2, len(rates), *start.shape).clone()

    def losses(w: Tensor) -> Tensor:
        return rosenbrock(torch.stack((w[0] / w[0].norm(dim=-1, keepdim=True), w[1])))

    state: dict[str, Any] = {"w": w, "p": torch.zeros_like(w)}
    state["loss"] = torch.zeros(*w.shape[:-1], setting.sphere_steps, **options)
    for t in run.checkpoint("Rosenbrock", setting.sphere_steps, state):
        w = state["w"]
        state["loss"][..., t], g = value_and_gradient(losses, w)
        p = sgd_direction(g, state["p"])
        w[:, 0] -= rates * p[:, 0]
        w[:, 1] -= rates * projected_vector(p[:, 1], w[:, 1], g[:, 1])

    shown = torch.logspace(0, math.log10(setting.sphere_steps), 50).round().long().unique()
    best = state["loss"].nan_to_num(nan=torch.inf).cummin(-1).values
    for k, weights in enumerate(("scale-invariant", "plain")):
        for i, method in enumerate(("SGD", "SGDP")):
            rate = best_on_others(first_below(best[k, i], setting.target).double())
            curve = chosen(best[k, i], rate)[:, shown.to(run.device) - 1]
            add(method, "best loss so far", x=shown, value=curve, weights=weights)
            add(method, "rate chosen", x=0, value=rates.flatten()[rate], weights=weights)


# Networks


def networks(setting: Setting, run: Run, add: Callable[..., None]) -> None:
    """Fashion-MNIST: (methods, rates, seeds, parameters), the same starts and batches for all methods; the rates fall as a cosine."""
    train, test = fashion("pca", setting.images, None, run.device, setting.sizes[0])
    tried = {"SGD": setting.sgd_rates, "SGDP": setting.sgd_rates, "Adam": setting.adam_rates, "AdamP": setting.adam_rates}  # fmt: skip
    rates, S, steps = torch.tensor(list(tried.values()), device=run.device), setting.seeds, setting.steps
    shown = torch.linspace(1, steps, 40).round().long().unique()
    for normalise in (True, False):
        net, kind = MLP(setting.sizes, normalise=normalise), "batch norm" if normalise else "no batch norm"
        generator = run.generator("networks", kind)
        theta = net.initial(S, generator=generator).expand(*rates.shape, S, -1).clone()
        state: dict[str, Any] = {
            "theta": theta,
            "m": torch.zeros_like(theta),
            "v": torch.zeros_like(theta[2:]),
        }
        state["generator"], state["losses"] = (
            generator,
            torch.zeros(*theta.shape[:-1], steps, device=run.device),
        )
        for t in run.checkpoint(f"networks, {kind}", steps, state):
            theta, m = state["theta"], state["m"]
            x, y = train.batch((S, setting.batch), generator)
            loss = lambda theta: cross_entropy(net(theta, x), y)
            state["losses"][..., t], g = value_and_gradient(loss, theta)
            p = torch.cat((sgd_direction(g[:2], m[:2]), adam_direction(g[2:], m[2:], state["v"], t + 1)))
            weights, gradients, updates = (net.split(part[1::2]) for part in (theta, g, p))
            for name, update in updates.items():
                if name.startswith("weight"):
                    update.copy_(projected(update, weights[name], gradients[name]))
            theta -= (1 + math.cos(math.pi * t / steps)) / 2 * rates[..., None, None] * p
        losses = trailing_mean(state["losses"], setting.window)
        for i, method in enumerate(tried):
            right = torch.stack([accuracy(net(one, test.x), test.y) for one in state["theta"][i]])
            best = best_on_others(1 - right)
            curve = chosen(losses[i], best)[:, shown.to(run.device) - 1]
            add(method, "test accuracy", x=steps, value=chosen(right, best), network=kind)
            add(method, "training loss", x=shown, value=curve, network=kind)
            add(method, "rate chosen", x=steps, value=rates[i][best], network=kind)


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    norm_growth(setting, run, table.add)
    on_sphere(setting, run, table.add)
    networks(setting, run, table.add)
    return table.frame()
