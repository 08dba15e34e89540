"""Complex Momentum for Optimization in Games (arXiv 2102.08431).

Bilinear games, whose rate is known from the eigenvalues of the update, and a small GAN. Games, phases and orders of the updates are
one batch; so are seeds, momenta and step sizes of the GAN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from atlas.models.networks import value_and_gradient
from atlas.optim.tuning import best_on_others, chosen
from atlas.problems.games import ToyGAN, ring, sliced_wasserstein
from atlas.run import Run

Player = tuple[Tensor, Tensor]  # parameters and momentum


@dataclass(frozen=True)
class Setting:
    # bilinear games min_x max_y x'Ay
    games: int = 40
    dim: int = 3
    smallest: float = 0.5  # singular value of A; the largest is 1
    phases: tuple[float, ...] = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 15 / 16, 1)  # times pi
    played: tuple[float, ...] = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of these, in full
    alphas: int = 17  # step sizes from 1e-3 to 10
    moduli: int = 20  # |beta| from 0 to 0.99
    steps: int = 5000
    # GAN: all momenta try all step sizes; the best pair on all other seeds is reported
    seeds: int = 24
    real_momenta: tuple[float, ...] = (-0.5, 0.0, 0.5, 0.9)
    # |beta_1| and phase / pi
    complex_momenta: tuple[tuple[float, float], ...] = ((0.5, 0.125), (0.5, 0.25), (0.9, 0.125), (0.9, 0.25))
    effective: tuple[float, ...] = (0.005, 0.01, 0.02)  # alpha / |1 - beta_1|
    modulus: float = 0.9  # at which a phase is compared with none
    hidden: tuple[int, ...] = (16, 16)
    batch: int = 32
    gan_steps: int = 600
    every: int = 50  # steps between two evaluations; the last four are averaged
    samples: int = 512  # of an evaluation


# The method


def complex_momentum_step(
    w: Tensor, mu: Tensor, g: Tensor, alpha: Tensor | float, beta: Tensor | complex
) -> Player:
    """mu_{j+1} = beta mu_j - g_j;  w_{j+1} = w_j + Re(alpha mu_{j+1}). mu and beta are complex. Returns w_{j+1}, mu_{j+1}."""
    mu = beta * mu - g
    return w + (alpha * mu).real, mu


def complex_adam_step(
    w: Tensor, mu: Tensor, v: Tensor, g: Tensor, j: int, alpha: Tensor | float, beta1: Tensor | complex,
    beta2: float = 0.999, eps: float = 1e-8,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Adam with a complex first moment, which is not corrected for its bias; j = 0, 1, ... Returns w, mu, v."""
    mu = beta1 * mu - g
    v = beta2 * v + (1 - beta2) * g.square()
    scale = (v / (1 - beta2 ** (j + 1))).sqrt() + eps
    return w + alpha * mu.real / scale, mu, v


def polar(modulus: Tensor, phase: Tensor) -> Tensor:
    """|beta| e^(i pi phase), exactly real for the phases 0 and 1."""
    imaginary = torch.where(phase % 1 == 0, 0.0, (math.pi * phase).sin())
    return torch.complex(modulus * (math.pi * phase).cos(), modulus * imaginary)


# Bilinear games


def augmented(alpha: Tensor, beta: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the game sigma x y as matrices (..., 6, 6) for (Re mu, Im mu, w), w = (x, y): simultaneous, alternating.

    A game x'Ay is one such game for each singular value of A. Alternating: the rows of player x act first, then those of y.
    """
    alpha, a, b, sigma = torch.broadcast_tensors(alpha, beta.real, beta.imag, sigma)
    alpha, a, b, sigma = (t[..., None, None] for t in (alpha, a, b, sigma))
    one = torch.eye(2, dtype=torch.float64, device=alpha.device)
    G = sigma * torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64, device=alpha.device)
    R = torch.cat([
        torch.cat([a * one, -b * one, -G], -1),
        torch.cat([b * one, a * one, 0 * G], -1),
        torch.cat([alpha * a * one, -alpha * b * one, one - alpha * G], -1),
    ], -2)  # fmt: skip
    of_x = torch.tensor([True, False] * 3, device=alpha.device).unsqueeze(-1)
    identity = torch.eye(6, dtype=torch.float64, device=alpha.device)
    return R, torch.where(of_x, identity, R) @ torch.where(of_x, R, identity)


def spectral_radius(M: Tensor) -> Tensor:
    """(..., n, n) -> (...). On the CPU, which is faster for many small matrices."""
    return torch.linalg.eigvals(M.cpu()).abs().amax(-1).to(M.device)


def label(phase: float) -> str:
    """'π/8' for 1/8."""
    f = Fraction(phase).limit_denominator(64)
    if f == 0:
        return "0"
    return f"{f.numerator if f.numerator > 1 else ''}π" + (f"/{f.denominator}" if f.denominator > 1 else "")


UPDATES = ("simultaneous", "alternating")


def bilinear(setting: Setting, run: Run, add: Callable[..., None]) -> None:
    S, n = setting.games, setting.dim
    F64: dict[str, Any] = {"dtype": torch.float64, "device": run.device}
    generator = run.generator("games")
    sigma = torch.ones(S, n, **F64)
    sigma[:, 0] = setting.smallest
    sigma[:, 2:] -= (1 - setting.smallest) * torch.rand(S, n - 2, generator=generator, **F64)
    U, V = torch.linalg.qr(torch.randn(2, S, n, n, generator=generator, **F64)).Q
    A = U * sigma.unsqueeze(-2) @ V.mT

    # rho (2, phases, |beta|, alphas, S) for both orders of the updates: the largest over the singular values of a game
    phases = torch.tensor(setting.phases, **F64)
    alphas = torch.logspace(-3, 1, setting.alphas, **F64)
    moduli = torch.linspace(0, 0.99, setting.moduli, **F64)
    beta = polar(moduli, phases.unsqueeze(-1))
    different, which = sigma.unique(return_inverse=True)
    maps = augmented(alphas[:, None], beta[..., None, None], different)
    rho = torch.stack([spectral_radius(M)[..., which].amax(-1) for M in maps])
    for (u, updates), (p, phase) in itertools.product(enumerate(UPDATES), enumerate(setting.phases)):
        least = rho[u, p].amin(1).T
        add(f"phase {label(phase)}", "least spectral radius", x=moduli, value=least, updates=updates)

    # play the games with the best alpha and |beta|, and with the same |beta| without the phase
    rows = [setting.phases.index(phase) for phase in setting.played]
    rho, best = rho[:, rows].flatten(2, 3).min(2)  # (2, played, S)
    alpha = alphas[best % setting.alphas].unsqueeze(-1)
    modulus = moduli[best // setting.alphas]
    both = torch.stack([polar(modulus, phases[rows, None]), modulus + 0j])
    beta = both.unsqueeze(-1)  # (2, 2, played, S, 1)
    start = torch.randn(2, S, n, generator=generator, **F64)
    x, y = (w.expand(*beta.shape[:-1], n).clone() for w in start)
    alternating = torch.tensor([False, True], device=run.device).view(2, 1, 1, 1)
    curve = torch.empty(setting.steps, *beta.shape[:-1], **F64)
    state: dict[str, Any] = {"x": x, "y": y, "mu x": 0j * x, "mu y": 0j * y, "curve": curve}
    for t in run.checkpoint("bilinear", setting.steps, state):
        x, y = state["x"], state["y"]
        state["curve"][t] = (x.square().sum(-1) + y.square().sum(-1)).sqrt()
        g = (A @ y.unsqueeze(-1)).squeeze(-1)
        state["x"], state["mu x"] = complex_momentum_step(x, state["mu x"], g, alpha, beta)
        seen = torch.where(alternating, state["x"], x)
        g = -(A.mT @ seen.unsqueeze(-1)).squeeze(-1)
        state["y"], state["mu y"] = complex_momentum_step(y, state["mu y"], g, alpha, beta)
    curve = state["curve"] / state["curve"][0]
    shown = torch.linspace(0, setting.steps - 1, 41, device=run.device).long()
    for (u, updates), (p, phase) in itertools.product(enumerate(UPDATES), enumerate(setting.played)):
        where = {"updates": updates}
        last = curve[-1, 0, u, p]
        add(f"phase {label(phase)}", "final distance / first", x=setting.steps - 1, value=last, **where)
        if phase % 1:
            predicted = -rho[u, p].log().unsqueeze(-1) * shown
            for k, kind in enumerate(("with the phase", "without it")):
                distance = curve[shown, k, u, p].T
                add(kind, "distance / first", x=predicted, value=distance, phase=label(phase), **where)


# Two networks as players


class Adversarial:
    """The GAN; its error is the distance of samples from the data."""

    def __init__(self, setting: Setting) -> None:
        self.gan = ToyGAN(setting.hidden)

    def draw(self, S: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Data x and noise z, (S, n, 2) each."""
        z = torch.randn(S, n, 2, generator=generator, device=generator.device)
        return ring(n, S, generator=generator), z

    def discriminator_gradient(self, d: Tensor, g: Tensor, x: Tensor, z: Tensor) -> Tensor:
        return self.gan.discriminator_gradient(d, g, x, z)

    def generator_gradient(self, d: Tensor, g: Tensor, x: Tensor, z: Tensor) -> Tensor:
        return self.gan.generator_gradient(d, g, z)

    def error(self, d: Tensor, g: Tensor, x: Tensor, z: Tensor) -> Tensor:
        return sliced_wasserstein(self.gan.generator(g, z), x)


class Cooperative(Adversarial):
    """The same networks, but both minimise the squared error of D(G(z)) for a target sin(3 z_1) cos(3 z_2)."""

    def error(self, d: Tensor, g: Tensor, x: Tensor, z: Tensor) -> Tensor:
        target = (3 * z[..., 0]).sin() * (3 * z[..., 1]).cos()
        return (self.gan.discriminator(d, self.gan.generator(g, z)).squeeze(-1) - target).square().mean(-1)

    def discriminator_gradient(self, d: Tensor, g: Tensor, x: Tensor, z: Tensor) -> Tensor:
        return value_and_gradient(lambda d: self.error(d, g, x, z), d)[1]

    def generator_gradient(self, d: Tensor, g: Tensor, x: Tensor, z: Tensor) -> Tensor:
        return value_and_gradient(lambda g: self.error(d, g, x, z), g)[1]


def train(
    name: str, game: Adversarial, beta1: Tensor, effective: Tensor, setting: Setting, run: Run
) -> Tensor:
    """Alternating complex Adam with several momenta and step sizes, (C,) each, all on the same seeds.

    Returns the errors (C, S, evaluations).
    """
    S, beta = setting.seeds, beta1.view(-1, 1, 1)
    alpha = effective.view(-1, 1, 1) * (1 - beta).abs()
    generator, evaluation = run.generator(name), run.generator(name, "evaluation")
    state: dict[str, Any] = {"generator": generator, "evaluation": evaluation, "curve": []}
    for player, network in (("g", game.gan.generator), ("d", game.gan.discriminator)):
        w = network.initial(S, generator=generator).expand(len(beta), -1, -1).clone()
        state |= {player: w, "mu " + player: torch.zeros_like(w + 0j), "v " + player: torch.zeros_like(w)}
    for j in run.checkpoint(name, setting.gan_steps, state):
        for player, gradient in (("d", game.discriminator_gradient), ("g", game.generator_gradient)):
            g = gradient(state["d"], state["g"], *game.draw(S, setting.batch, generator))
            state[player], state["mu " + player], state["v " + player] = complex_adam_step(
                state[player], state["mu " + player], state["v " + player], g, j, alpha, beta
            )
        if (j + 1) % setting.every == 0:
            x, z = game.draw(S, setting.samples, evaluation)
            state["curve"].append(game.error(state["d"], state["g"], x, z))
    return torch.stack(state["curve"], -1)


def networks(setting: Setting, run: Run, add: Callable[..., None]) -> None:
    momenta = [(abs(b), float(b < 0)) for b in setting.real_momenta] + list(setting.complex_momenta)
    pairs = list(itertools.product(momenta, setting.effective))
    beta1 = torch.stack([polar(*torch.tensor(momentum, device=run.device)) for momentum, _ in pairs])
    effective = torch.tensor([step for _, step in pairs], device=run.device)
    real = len(setting.real_momenta)
    groups = {  # name -> momenta among which it chooses
        "Adam": range(real),
        "complex Adam": range(real, len(momenta)),
        "Adam, same modulus": [m for m in range(real) if momenta[m] == (setting.modulus, 0)],
        "complex Adam, same modulus": [m for m in range(real, len(momenta)) if momenta[m][0] == setting.modulus],
    }  # fmt: skip
    config = torch.arange(len(pairs), device=run.device).view(len(momenta), -1)
    x = torch.arange(setting.every, setting.gan_steps + 1, setting.every)
    for name, game in (("adversarial", Adversarial(setting)), ("cooperative", Cooperative(setting))):
        curves = train(name, game, beta1, effective, setting, run)
        for method, members in groups.items():
            tried = config[list(members)].flatten()
            final = curves[tried, :, -4:].mean(-1)
            best = best_on_others(final)
            add(method, "error", x=x, value=chosen(curves[tried], best), game=name)
            add(method, "final error", x=setting.gan_steps, value=chosen(final, best), game=name)
            settings = {
                "effective step": effective,
                "modulus": beta1.abs(),
                "phase / π": beta1.angle() / math.pi,
            }
            for what, values in settings.items():
                add(method, f"{what} chosen", x=setting.gan_steps, value=values[tried[best]], game=name)


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    bilinear(setting, run, table.add)
    networks(setting, run, table.add)
    return table.frame()
