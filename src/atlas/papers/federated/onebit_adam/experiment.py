"""1-bit Adam: Communication Efficient Large-Scale Training with Adam's Convergence Speed (arXiv 2102.02888).

Data-parallel training of a character model with Adam and 1-bit Adam, and with what shows why it is made as it is: without error
feedback, and Adam on 1-bit gradients. All start from the same weights and see the same batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from atlas.federated.compression import (
    Compressor,
    by_blocks,
    dense_bits,
    scaled_sign,
    sign_bits,
    with_feedback,
)
from atlas.models.characters import CharacterMLP
from atlas.models.networks import cross_entropy, value_and_gradient
from atlas.optim.tuning import best_on_average
from atlas.problems.text import Corpus, corpus
from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    workers: int = 8
    batch: int = 16  # characters that a worker predicts in a step
    seeds: int = 24
    tuning_seeds: int = 3
    drift_seeds: int = 8
    steps: int = 600
    warm_up: float = 0.15  # share of the steps after which 1-bit Adam freezes v
    ramp: float = 0.05  # share of the steps in which the step size rises; then it falls linearly to a tenth
    betas: tuple[float, float] = (0.9, 0.98)
    norm: int = 2  # in which a compressed vector keeps its magnitude
    rates: tuple[float, ...] = (0.02, 0.04, 0.08)  # step sizes tried
    drift: float = 10.0  # by which the loss is multiplied in the end, where its scale grows
    context: int = 6  # of the network
    embedding: int = 6
    hidden: int = 24
    points: int = 10  # of a curve
    held_out: int = 8000  # characters of a validation loss
    value_bits: int = 16  # of a number that is not compressed


Method = Literal["Adam", "1-bit Adam", "no error feedback", "Adam on 1-bit gradients"]
METHODS: tuple[Method, ...] = ("Adam", "1-bit Adam", "no error feedback", "Adam on 1-bit gradients")
EPS = 1e-8


def adam_step(
    x: Tensor, g: Tensor, m: Tensor, v: Tensor, gamma: Tensor, betas: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """A step of Adam without bias correction; returns x, m, v.

    m <- beta_1 m + (1 - beta_1) g;   v <- beta_2 v + (1 - beta_2) g^2;   x <- x - gamma m / (sqrt(v) + eps)
    """
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g.square()
    return x - gamma * m / (v.sqrt() + EPS), m, v


def compressed_mean(u: Tensor, e: Tensor, E: Tensor, compress: Compressor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of the workers' u_i as it arrives: worker i sends C(u_i + e_i), the server C(mean of these + E).

    u, e: (..., n, d); E: (..., d). Returns what the server sends (..., d) and the new errors.
    """
    q, e = with_feedback(u, e, compress)
    sent, E = with_feedback(q.mean(-2), E, compress)
    return sent, e, E


def onebit_adam_step(
    x: Tensor, g: Tensor, m: Tensor, v: Tensor, e: Tensor, E: Tensor, gamma: Tensor, beta_1: float, compress: Compressor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """A step of the compression stage, where v is frozen; returns x, m, e, E. x, m, v, E: (..., d); g, e: (..., n, d).

    m_i = beta_1 m + (1 - beta_1) g_i;   m <- compressed mean of the m_i;   x <- x - gamma m / (sqrt(v) + eps)

    One bit cannot say zero: where no gradient was seen before (v = 0), m is masked.
    """
    m_i = beta_1 * m.unsqueeze(-2) + (1 - beta_1) * g
    m, e, E = compressed_mean(m_i, e, E, compress)
    m = m * (v > 0)
    return x - gamma * m / (v.sqrt() + EPS), m, e, E


def dense_steps(method: Method, setting: Setting) -> int:
    """How many steps send uncompressed gradients."""
    share = {"Adam": 1.0, "Adam on 1-bit gradients": 0.0}.get(method, setting.warm_up)
    return round(share * setting.steps)


def character_model(setting: Setting, text: Corpus) -> CharacterMLP:
    return CharacterMLP(text.vocabulary, setting.context, setting.embedding, setting.hidden)


def train(
    method: Method, rates: Tensor, seeds: int, points: int, name: str, drift: float, setting: Setting, text: Corpus, run: Run
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Validation losses (R, S, points + 1), and ||v||_1 without its bias (R, S, windows) every 1/(1 - beta_2) steps.

    rates: (R,), all with the same S seeds of the stream `name`. The loss is multiplied by a factor that grows from 1 to `drift`.
    """
    T, n, (beta_1, beta_2) = setting.steps, setting.workers, setting.betas
    window, every, warm_up = round(1 / (1 - beta_2)), T // points, dense_steps(method, setting)
    network = character_model(setting, text)
    tensors = [math.prod(shape) for shape in network.shapes.values()]
    compress = by_blocks(lambda u: scaled_sign(u, setting.norm), tensors)
    unseen = text.held_out(setting.held_out, setting.context)

    def validation_loss(x: Tensor) -> Tensor:
        with torch.no_grad():
            return cross_entropy(network(x, unseen[0]), unseen[1])

    x = network.initial(seeds, generator=run.generator(name, "initial")).repeat(len(rates), 1, 1)
    zero = torch.zeros_like(x)
    state: dict[str, Any] = {
        "x": x, "m": zero, "v": zero, "e": zero.unsqueeze(-2).repeat(1, 1, n, 1), "E": zero,
        "generator": run.generator(name, "batches"), "losses": [validation_loss(x)], "v norms": [],
    }  # fmt: skip
    for t in run.checkpoint(f"{name}: {method}, drift {drift:g}", T, state):
        x, m, v, e, E = (state[key] for key in ("x", "m", "v", "e", "E"))
        contexts, following = text.batch((seeds, n, setting.batch), setting.context, state["generator"])
        gamma = rates.view(-1, 1, 1) * min(1, (t + 1) / (setting.ramp * T)) * (1 - 0.9 * t / T)
        if t < warm_up:  # the mean of the workers' gradients is the gradient on all their batches
            contexts, following, models = contexts.flatten(1, 2), following.flatten(1, 2), x
        else:
            models = x.unsqueeze(-2).expand(-1, -1, n, -1)
        loss = lambda x: drift ** (t / T) * cross_entropy(network(x, contexts), following)
        _, g = value_and_gradient(loss, models)
        if t < warm_up:
            x, m, v = adam_step(x, g, m, v, gamma, setting.betas)
        elif method == "Adam on 1-bit gradients":
            g, e, E = compressed_mean(g, e, E, compress)
            x, m, v = adam_step(x, g, m, v, gamma, setting.betas)
        else:
            x, m, e, E = onebit_adam_step(x, g, m, v, e, E, gamma, beta_1, compress)
        if method == "no error feedback":
            e, E = torch.zeros_like(e), zero
        state.update({"x": x, "m": m, "v": v, "e": e, "E": E})
        if (t + 1) % every == 0:
            state["losses"].append(validation_loss(x))
        if t % window == 0:
            state["v norms"].append(v.sum(-1) / (1 - beta_2 ** (t + 1)))
    return torch.stack(state["losses"], -1), torch.stack(state["v norms"], -1)


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table, text = run.table(), corpus("kjv", run.device)
    network = character_model(setting, text)
    steps = torch.arange(setting.points + 1) * (setting.steps // setting.points)
    window, warm_up = round(1 / (1 - setting.betas[1])), dense_steps("1-bit Adam", setting)
    tried, rates = torch.tensor(setting.rates, device=run.device), {}
    for method in METHODS:
        losses, _ = train(method, tried, setting.tuning_seeds, 1, "tuning", 1.0, setting, text, run)
        rates[method] = tried[best_on_average(losses[..., -1])].view(1)
        table.add(method, "step size chosen", x=0, value=rates[method])

    cases = [
        ("constant", 1.0, setting.seeds, METHODS),
        ("growing", setting.drift, setting.drift_seeds, METHODS[:2]),
    ]
    for scale, drift, seeds, methods in cases:
        target = torch.empty(0)
        for method in methods:
            losses, norms = train(
                method, rates[method], seeds, setting.points, "reported", drift, setting, text, run
            )
            losses, norms = losses[0], norms[0]
            if method == "Adam":
                target = losses[:, round(0.9 * setting.points), None]
                end = window * np.arange(1, norms.shape[1])
                stage = np.where(end - window < warm_up, "warm-up", "later")
                stage[0] = "first"
                ratio = norms[:, 1:] / norms[:, :-1]
                table.add(
                    method,
                    "||v|| / ||v|| a window before",
                    x=end,
                    value=ratio,
                    scale=scale,
                    stage=stage[None],
                )
            table.add(method, "validation loss", x=steps, value=losses, scale=scale)
            dense = steps.clamp(max=dense_steps(method, setting))
            bits = dense * dense_bits(network.size, setting.value_bits)
            bits += (steps - dense) * sign_bits(network.size, len(network.shapes))
            table.add(method, "loss / Adam's at 90 %", x=bits / 1e6, value=losses / target, scale=scale)
    return table.frame()
