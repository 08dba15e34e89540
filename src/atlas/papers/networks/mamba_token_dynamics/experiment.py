"""Demystifying the Token Dynamics of Deep Selective State Space Models (arXiv 2410.03292).

The continuous-depth limit of Mamba's S6 layer for one-dimensional tokens, integrated in logarithmic time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    tokens: int = 4
    draws: int = 32  # random parameters and starts per regime
    fate_draws: int = 400  # for the dichotomy
    fate_log_t: float = 40.0
    convergent_log_t: float = 14.0  # t up to 1e6
    slow_log_t: float = 300.0
    step: float = 0.02  # of Runge-Kutta, in s = log t
    first_log_t: float = -7.0  # integration starts at t = e^-7, where the tokens have not moved yet


BLOWN_UP = 1e8


@dataclass
class System:
    """dx_l/dt = mu x_l sum_{j<=l} x_j^2 Delta(x_j) exp(-a sum_{k=j+1..l} Delta(x_k)), Delta(u) = softplus(S u).

    mu = S_C S_B, S = S_Delta, a: (B,); coupled=False keeps only j = l.
    """

    mu: Tensor
    S: Tensor
    a: Tensor
    coupled: bool = True

    def velocity(self, x: Tensor) -> Tensor:
        """dx/dt of tokens x (B, L)."""
        Delta = torch.nn.functional.softplus(self.S[:, None] * x)
        source = x.square() * Delta
        if not self.coupled:
            return self.mu[:, None] * x * source
        decay = torch.exp(-self.a[:, None] * Delta)
        acc, terms = torch.zeros_like(self.mu), []
        for l in range(x.shape[1]):
            acc = decay[:, l] * acc + source[:, l]
            terms.append(acc)
        return self.mu[:, None] * x * torch.stack(terms, 1)

    def integrate(self, x: Tensor, log_t: Tensor, step: float, first: float) -> Tensor:
        """Tokens (B, L, len(log_t)) at the ascending times exp(log_t), by classical Runge-Kutta in s = log t.

        In s the dynamics dx/ds = e^s dx/dt has rates of order one in every regime, so a fixed step does up to t = e^300.
        A draw in which a token passes BLOWN_UP is infinite from then on: its solution ends at a finite time.
        """
        s, out = first, []
        alive = torch.ones(len(x), 1, dtype=torch.bool, device=x.device)
        for target in log_t.tolist():
            steps = max(1, math.ceil((target - s) / step - 1e-9))
            h = (target - s) / steps
            for i in range(steps):
                now = s + i * h
                k1 = math.exp(now) * self.velocity(x)
                k2 = math.exp(now + h / 2) * self.velocity(x + h / 2 * k1)
                k3 = math.exp(now + h / 2) * self.velocity(x + h / 2 * k2)
                k4 = math.exp(now + h) * self.velocity(x + h * k3)
                new = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
                alive = alive & (new.abs() < BLOWN_UP).all(1, keepdim=True)
                x = torch.where(alive, new, x)
            s = target
            out.append(torch.where(alive, x, torch.inf))
        return torch.stack(out, -1)


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table, L = run.table(), setting.tokens
    generator = run.generator("draws")

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(
            *shape, generator=generator, dtype=torch.float64, device=run.device
        )

    def sign(*shape: int) -> Tensor:
        return torch.where(uniform(-1, 1, *shape) > 0, 1.0, -1.0).double()

    def solve(system: System, x: Tensor, log_t: Tensor) -> Tensor:
        return system.integrate(x, log_t, setting.step, setting.first_log_t)

    n = setting.draws
    S, a, mu = sign(n) * uniform(0.5, 2, n), uniform(0.5, 2, n), uniform(0.5, 2, n)
    start = uniform(0.5, 1.5, n, L)

    # convergence: mu < 0, starts of either sign; the control flips mu
    log_t = torch.linspace(math.log(1e3), setting.convergent_log_t, 25, dtype=torch.float64)
    x0 = start * sign(n, L)
    for name, m in (("mu < 0", -mu), ("mu > 0", mu)):
        x = solve(System(m, S, a), x0, log_t).abs()
        for l in range(L):
            table.add(name, "|x_l|", x=log_t.exp(), value=x[:, l], token=l + 1)

    # slow divergence: mu > 0 and S_Delta x_l(0) < 0 for all l; the control starts the first token on the other side
    log_t = torch.linspace(10, setting.slow_log_t, 60, dtype=torch.float64)
    slow = -S.sign()[:, None] * start
    one_fast = slow.clone()
    one_fast[:, 0] *= -1
    for name, x0 in (("slow regime", slow), ("first token of the other sign", one_fast)):
        x = solve(System(mu, S, a), x0, log_t).abs()
        exponent = x.log().diff(dim=2) / log_t.log().diff()
        for l in range(L):
            table.add(
                name, "exponent of ln t beyond l", x=log_t[1:], value=exponent[:, l] - (l + 1), token=l + 1
            )

    # unequal divergence: the same, from equal starts; the control removes the coupling between tokens
    equal = -S.sign()[:, None] * start[:, :1].expand(-1, L)
    for name, coupled in (("coupled", True), ("uncoupled", False)):
        x = solve(System(mu, S, a, coupled), equal, log_t).abs()
        amplification = x[..., -1] / equal.abs()
        ratio = (amplification[:, 1:] / amplification[:, :-1]).amin(1)
        table.add(name, "smallest ratio of a token to the one before", x=setting.slow_log_t, value=ratio)
        late = log_t >= log_t[-1] / 2
        power = (x[..., -1] / x[..., late.nonzero()[0, 0]]).log() / (log_t[-1] / log_t[late][0]).log()
        for l in range(L):
            table.add(name, "power of ln t", x=setting.slow_log_t, value=power[:, l], token=l + 1)

    # dichotomy: everything random; the fate is the change of the largest token in decades
    m = setting.fate_draws
    S, a, mu = sign(m) * uniform(0.5, 2, m), uniform(0.5, 2, m), sign(m) * uniform(0.5, 2, m)
    x0 = uniform(0.5, 1.5, m, L) * sign(m, L)
    end = solve(System(mu, S, a), x0, torch.tensor([setting.fate_log_t], dtype=torch.float64))[..., 0].abs()
    # a blown-up draw ends with all its tokens at once; elsewhere the slowest token must share the fate
    decades = (end / x0.abs()).log10().cpu()
    fate = torch.where(mu.cpu() < 0, decades.amax(1), decades.amin(1)).clamp_max(8)
    for name, guess in (("sign of mu", mu), ("sign of S_Delta", S)):
        for predicted, chosen in (("zero", guess < 0), ("infinity", guess > 0)):
            index = chosen.nonzero()[:, 0].cpu()
            table.add(
                name,
                "change in decades",
                x=setting.fate_log_t,
                value=fate[index],
                seed=index,
                predicted=predicted,
            )
    return table.frame()
