"""Grokking at the Edge of Numerical Stability (arXiv 2501.04697): Softmax Collapse, StableMax and perpGrad.

Networks without biases learn (a + b) mod p from a part of the addition table, by full-batch Adam without weight decay. Methods and
seeds are one batch of networks; the methods that run longest come first, so those still running are the first ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from atlas.models.networks import Network
from atlas.optim.baselines import adam
from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    p: int = 23  # modulus
    hidden: int = 64  # units in each of two layers
    train_fraction: float = 0.9  # of the p^2 pairs
    seeds: int = 6
    rate: float = 0.015  # of Adam
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-25
    steps: int = 3000  # of softmax in float32 and float64, and of StableMax
    float16_steps: int = 800
    perp_steps: int = 600
    looks: int = 45  # number of steps, evenly spaced in the logarithm, after which the networks are measured


def softmax_loss(z: Tensor, y: Tensor) -> Tensor:
    """-log(exp(z_y) / sum_i exp(z_i)), in the precision of z. z: (..., classes), y: (...).

    Equation 1: log(sum_i exp(z_i - max z)) - (z_y - max z). Written out, as torch.log_softmax may sum in a higher precision.
    """
    z = z - z.detach().amax(-1, keepdim=True)
    return z.exp().sum(-1).log() - z.gather(-1, y.unsqueeze(-1)).squeeze(-1)


def stablemax_loss(z: Tensor, y: Tensor) -> Tensor:
    """-log(s(z_y) / sum_i s(z_i)), s(z) = z + 1 for z >= 0, 1 / (1 - z) for z < 0. z: (..., classes), y: (...)."""
    s = torch.where(z < 0, 1 / (1 + z.abs()), z + 1)  # abs: finite on both sides, so that the gradient is
    return -(s.gather(-1, y.unsqueeze(-1)).squeeze(-1) / s.sum(-1)).log()


@dataclass(frozen=True)
class Method:
    name: str
    steps: int
    dtype: torch.dtype = torch.float32  # of the loss; weights and logits are float32 always
    stable: bool = False  # StableMax in place of softmax
    remove: str = ""  # from the gradient of every layer: the direction of its "weights", or a "random" one

    def losses(self, z: Tensor, y: Tensor) -> Tensor:
        z = z.to(self.dtype)
        return stablemax_loss(z, y) if self.stable else softmax_loss(z, y)


def methods(setting: Setting) -> list[Method]:
    """The longest first. StableMax is computed in float64, as in the official code."""
    long, short, perp = setting.steps, setting.float16_steps, setting.perp_steps
    listed = [
        Method("softmax float32", long),
        Method("softmax float64", long, torch.float64),
        Method("StableMax", long, torch.float64, stable=True),
        Method("softmax float16", short, torch.float16),
        Method("StableMax float16", short, torch.float16, stable=True),
        Method("perpGrad", perp, remove="weights"),
        Method("random direction", perp, remove="random"),
    ]
    return sorted(listed, key=lambda method: -method.steps)


@dataclass(frozen=True)
class Adder(Network):
    """ReLU networks without biases whose inputs are the one-hot codes of two numbers below p."""

    p: int
    hidden: int

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:  # type: ignore[override]
        p, H = self.p, self.hidden
        return {"weight 1": (2 * p, H), "weight 2": (H, H), "weight 3": (H, p)}

    def gain(self, name: str) -> float:
        return 3**-0.5  # the variance of torch.nn.Linear's initial weights

    def table(self, theta: Tensor) -> Tensor:
        """Logits of all pairs (a, b), in the order a p + b: (*batch, p^2, p) for theta (*batch, P)."""
        w = self.split(theta.reshape(-1, self.size))
        first, second = w["weight 1"].unflatten(1, (2, self.p)).unbind(1)  # a one-hot input picks one row
        x = (first.unsqueeze(2) + second.unsqueeze(1)).flatten(1, 2)
        x = x.relu() @ w["weight 2"]
        x = x.relu() @ w["weight 3"]
        return x.view(*theta.shape[:-1], *x.shape[1:])


def perp_grad(g: Tensor, w: Tensor) -> Tensor:
    """The gradient of one layer without its component along w, at its old norm. g, w: (*batch, inputs, outputs).

    g_perp = g - (<w, g> / <w, w>) w, times |g| / |g_perp| as in the official code
    """

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((-2, -1), keepdim=True)

    g_perp = g - inner(w, g) / inner(w, w) * w
    return g_perp * (inner(g, g).sqrt() / (inner(g_perp, g_perp).sqrt() + 1e-30))


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    p, S, compared = setting.p, setting.seeds, methods(setting)
    net, generator = Adder(p, setting.hidden), run.generator("networks")
    number = torch.arange(p, device=run.device)
    y = ((number.unsqueeze(1) + number) % p).flatten().expand(S, -1)  # (S, p^2)
    n = int(setting.train_fraction * p * p)
    trained = torch.rand(S, p * p, generator=generator, device=run.device).argsort(-1) < n
    start = net.initial(S, generator=generator)
    theta = start.expand(len(compared), S, -1).clone()
    random = torch.randn(S, net.size, generator=generator, device=run.device)

    spaced = np.geomspace(1, setting.steps, setting.looks).round().astype(int).tolist()
    looks = sorted({*spaced, *(method.steps for method in compared)})
    curves = torch.full((len(METRICS), *theta.shape[:2], len(looks)), torch.nan, device=run.device)
    state = {"theta": theta, "m": torch.zeros_like(theta), "v": torch.zeros_like(theta), "curves": curves}
    for t in run.checkpoint("training", setting.steps + 1, state):  # theta after t steps
        V = sum(method.steps >= t for method in compared)
        theta, m, v = (state[name][:V] for name in ("theta", "m", "v"))
        leaf = theta.detach().requires_grad_()
        z = net.table(leaf)
        losses = [method.losses(z[i], y) for i, method in enumerate(compared[:V])]  # (S, p^2) each
        total = torch.stack([loss[trained].view(S, n).mean(-1).double() for loss in losses]).sum()
        g, g_z = torch.autograd.grad(total, (leaf, z))
        for i, method in enumerate(compared[:V]):
            if method.remove:
                along = net.split(random if method.remove == "random" else theta[i])
                for name, part in net.split(g[i]).items():
                    part.copy_(perp_grad(part, along[name]))
        if t in looks:
            right = z.argmax(-1) == y
            zero = torch.stack([loss == 0 for loss in losses]) & trained
            own = g_z.gather(-1, y.expand(V, S, -1).unsqueeze(-1)).squeeze(
                -1
            )  # gradient of the right class's logit
            state["curves"][:, :V, :, looks.index(t)] = torch.stack([
                (right & trained).sum(-1) / n,
                (right & ~trained).sum(-1) / (p * p - n),
                zero.sum(-1) / n,
                (own * zero).abs().amax(-1),
                torch.cosine_similarity(-g, theta, dim=-1, eps=1e-38),
                torch.cosine_similarity(-g, random, dim=-1, eps=1e-38),
            ])  # fmt: skip
        adam(theta, g, m, v, t + 1, setting.rate, setting.betas, setting.eps)

    table = run.table()
    for i, method in enumerate(compared):
        x = torch.tensor([look for look in looks if look <= method.steps])
        curve = dict(zip(METRICS, state["curves"][:, i, :, : len(x)].cpu(), strict=True))
        for metric, value in curve.items():
            table.add(method.name, metric, x=x, value=value)
        fitted = (curve["training accuracy"] == 1).cummax(-1).values
        for stage, during in (("before fitting", ~fitted), ("after fitting", fitted)):
            for direction, metric in DIRECTIONS.items():
                mean = curve[metric].where(during, torch.nan).nanmean(-1)
                where = {"stage": stage, "direction": direction}
                table.add(method.name, "mean alignment", x=method.steps, value=mean, **where)
    return table.frame()


DIRECTIONS = {"weights": "alignment with the weights", "random": "alignment with a random direction"}
"""Cosine of the negative gradient, as it is given to Adam, with all weights and with a fixed random vector."""

METRICS = (
    "training accuracy",
    "test accuracy",
    "samples with zero loss",
    "gradient where loss is zero",
    *DIRECTIONS.values(),
)
