"""On Convergence of Federated Averaging Langevin Dynamics (arXiv 2112.05120): FA-LD.

Clients with quadratic energies: a round is affine with Gaussian noise. So its stationary law, the moments after any number of rounds
and their Wasserstein distance to the target are computed without sampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from atlas.run import Run
from atlas.sampling.gaussian import (
    Affine,
    Gaussian,
    affine,
    from_moments,
    moments,
    stationary_moments,
    wasserstein2,
)


@dataclass(frozen=True)
class Setting:
    problems: int = 10  # in place of seeds
    clients: int = 8
    dim: int = 3
    curvature: tuple[float, float] = (0.5, 5.0)  # m and L: eigenvalues of the clients' Hessians
    spreads: tuple[float, ...] = (0.5, 2.0, 4.0)  # of the clients' optima
    tau: float = 1.0  # temperature
    start: float = 10.0  # distance of the start from the target's mean
    local_steps: int = 4
    step_powers: tuple[int, ...] = (4, 5, 6, 7, 8, 9, 10, 11, 12)  # eta = 2^-power
    sampled: int = 2  # clients in a round, where only some take part
    # runs
    step_power: int = 6  # constant step
    rounds: int = 2000
    points: int = 40  # of a curve
    # bias of K local steps, at the smallest eta
    many_steps: tuple[int, ...] = (2, 3, 5, 9, 17, 33)
    # rounds to an accuracy, with the best step size for each problem and K
    some_steps: tuple[int, ...] = (1, 2, 3, 4, 8, 16, 32)
    accuracy: float = 0.01
    tried: tuple[float, float, int] = (0.2, 0.0001, 40)  # largest, smallest, number of step sizes


@dataclass(frozen=True)
class Clients:
    """f_c(theta) = (theta - b_c)^T H_c (theta - b_c) / 2 of client c, with weight p_c. H: (P, N, d, d), b: (P, N, d), p: (P, N)."""

    H: Tensor
    b: Tensor
    p: Tensor

    def gradients(self, theta: Tensor) -> Tensor:
        """grad f_c(theta_c). theta: (..., P, N, d)."""
        return torch.einsum("pcij,...pcj->...pci", self.H, theta - self.b)

    def equal(self) -> Clients:
        """The same clients with equal weights."""
        return Clients(self.H, self.b, torch.full_like(self.p, 1 / self.p.shape[-1]))

    def alike(self) -> Clients:
        """All with the energy of the first."""
        return Clients(self.H[:, :1].expand_as(self.H), self.b[:, :1].expand_as(self.b), self.p)

    def target(self, tau: float) -> Gaussian:
        """The law proportional to exp(-f / tau), f = sum_c p_c f_c."""
        H = torch.einsum("pc,pcij->pij", self.p, self.H)
        g = torch.einsum("pc,pcij,pcj->pi", self.p, self.H, self.b)
        return Gaussian(torch.linalg.solve(H, g), tau * torch.linalg.inv(H))


@dataclass(frozen=True)
class Noise:
    """rho = 1: the same for all clients, 0: independent, with a variance divided by p_c unless told otherwise."""

    rho: float
    divided: bool = True


NOISES = {
    "independent noise": Noise(0.0),
    "shared noise": Noise(1.0),
    "independent noise, not divided by p": Noise(0.0, divided=False),
}


def local_step(theta: Tensor, xi: Tensor, clients: Clients, eta: Tensor, tau: float, noise: Noise) -> Tensor:
    """theta_c <- theta_c - eta grad f_c(theta_c) + sqrt(2 eta tau) (rho xi_0 + sqrt((1 - rho^2) / p_c) xi_c).

    theta: (..., P, N, d); xi: (..., P, 1 + N, d), standard normal; eta: (..., P or 1, 1, 1).
    """
    p = clients.p.unsqueeze(-1) if noise.divided else 1.0
    dot = noise.rho * xi[..., :1, :] + ((1 - noise.rho**2) / p) ** 0.5 * xi[..., 1:, :]
    return theta - eta * clients.gradients(theta) + (2 * eta * tau).sqrt() * dot


def all_clients(clients: Clients, eta: Tensor, tau: float, noise: Noise) -> Affine:
    """One local step of all clients, on their models one after the other, n = N d. eta: (E,), or (E, P) for every problem."""
    P, N, d = clients.b.shape
    eta = eta.reshape(len(eta), -1, 1, 1)

    def step(x: Tensor, xi: Tensor) -> Tensor:
        theta = local_step(x.unflatten(-1, (N, d)), xi.unflatten(-1, (1 + N, d)), clients, eta, tau, noise)
        return theta.flatten(-2)

    return affine(step, N * d, (1 + N) * d, (len(eta), P), eta.device)


def fa_ld_round(step: Affine, p: Tensor, K: int, single: float = 0.0) -> Tensor:
    """What a round does to the moments of the server's model: (E, P, m, m), m = (d+1)^2. step: of all clients; p: (P, N).

    All clients start from the server's model, take K local steps, and the server averages their models with the weights p_c. If it
    takes the mean of S sampled clients instead, the moments are a mixture: of those of that average, with weight 1 - single, and
    of those of the model of a single client, drawn with probability p_c. single: see `sampled_weight`.
    """
    local, N = step.power(K), p.shape[1]
    d = local.b.shape[-1] // N
    copies = torch.eye(d, dtype=p.dtype, device=p.device).repeat(N, 1)
    A = (local.A @ copies).unflatten(-2, (N, d))
    b = local.b.unflatten(-1, (N, d))
    Q = local.Q.unflatten(-2, (N, d)).unflatten(-1, (N, d))
    average = Affine(
        torch.einsum("pc,epcij->epij", p, A),
        torch.einsum("pc,epci->epi", p, b),
        torch.einsum("pc,pk,epcikj->epij", p, p, Q),
    )
    if not single:
        return average.on_moments()
    alone = Affine(A, b, Q.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)).on_moments()
    return (1 - single) * average.on_moments() + single * torch.einsum("pc,epcxy->epxy", p, alone)


def sampled_weight(S: int, N: int, replacement: bool) -> float:
    """The weight of a single client in the second moment of the mean of S sampled ones; without replacement for equal weights only."""
    return 1 / S if replacement else (N - S) / (S * (N - 1))


def rounds_to(
    matrix: Tensor, start: Gaussian, target: Gaussian, accuracy: float, doublings: int = 13
) -> Tensor:
    """Rounds until the distance to the target is `accuracy`, interpolated; infinite if it is not after 2^doublings.

    By bisection, as if the distance falls until there. matrix: (E, P, m, m); returns (E, P).
    """
    powers = [matrix]
    for _ in range(doublings - 1):
        powers.append(powers[-1] @ powers[-1])

    def after(power: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        vector = (power @ vector.unsqueeze(-1)).squeeze(-1)
        return vector, wasserstein2(target, from_moments(vector))

    vector = moments(start).expand(matrix.shape[:-1])
    distance = wasserstein2(target, start).expand(matrix.shape[:-2])
    rounds = torch.zeros_like(distance)
    for j in reversed(range(doublings)):
        later, still = after(powers[j], vector)
        far = still > accuracy
        vector, distance = torch.where(far.unsqueeze(-1), later, vector), torch.where(far, still, distance)
        rounds = rounds + far * 2.0**j
    _, reached = after(matrix, vector)
    part = (distance / accuracy).log() / (distance / reached).log()
    return torch.where(rounds < 2**doublings - 1, rounds + part, torch.inf)


def fewest_rounds(
    clients: Clients, tried: Tensor, noise: Noise, K: int, start: Gaussian, setting: Setting
) -> Tensor:
    """Rounds to the accuracy with the best step size: first of `tried` (E,), then of as many around the best of these: (P,)."""
    target = clients.target(setting.tau)

    def rounds(eta: Tensor) -> Tensor:
        matrix = fa_ld_round(all_clients(clients, eta, setting.tau, noise), clients.p, K)
        return rounds_to(matrix, start, target, setting.accuracy)

    best = rounds(tried).argmin(0).clamp(1, len(tried) - 2)
    part = torch.linspace(0, 1, len(tried), dtype=tried.dtype, device=tried.device).unsqueeze(-1)
    return rounds(tried[best - 1] ** (1 - part) * tried[best + 1] ** part).min(0).values


def after(matrices: Tensor, start: Gaussian, rounds: list[int]) -> Gaussian:
    """Moments after the given numbers of rounds. matrices: of every round, (R, P, m, m); returns a batch (len(rounds), P)."""
    vector = moments(start)
    vectors = [vector]
    for matrix in matrices[: max(rounds)]:
        vector = (matrix @ vector.unsqueeze(-1)).squeeze(-1)
        vectors.append(vector)
    return from_moments(torch.stack([vectors[r] for r in rounds]))


def draw(setting: Setting, spread: float, run: Run) -> Clients:
    """Random Hessians, optima and weights."""
    P, N, d = setting.problems, setting.clients, setting.dim
    options: dict[str, Any] = {
        "generator": run.generator("clients"),
        "dtype": torch.float64,
        "device": run.device,
    }
    V = torch.linalg.qr(torch.randn(P, N, d, d, **options))[0]
    m, L = setting.curvature
    h = m * (L / m) ** torch.rand(P, N, d, **options)
    p = 0.5 + torch.rand(P, N, **options)
    return Clients(
        V * h.unsqueeze(-2) @ V.mT, spread * torch.randn(P, N, d, **options), p / p.sum(-1, keepdim=True)
    )


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table, K, tau, (m, L) = run.table(), setting.local_steps, setting.tau, setting.curvature
    options: dict[str, Any] = {"dtype": torch.float64, "device": run.device}
    etas = 2.0 ** -torch.tensor(setting.step_powers, **options)
    large, small, count = setting.tried
    tried = torch.logspace(math.log10(large), math.log10(small), count, **options)
    independent = NOISES["independent noise"]

    for i in run.checkpoint("spreads", len(setting.spreads), {"table": table}):
        spread = setting.spreads[i]
        clients = draw(setting, spread, run)
        target = clients.target(tau)
        start = Gaussian(target.mean + setting.start / setting.dim**0.5, 0 * target.covariance)

        # where a constant step ends
        steps = {name: all_clients(clients, etas, tau, noise) for name, noise in NOISES.items()}
        once = {name: stationary_moments(fa_ld_round(step, clients.p, 1)) for name, step in steps.items()}
        for name, step in steps.items():
            end = wasserstein2(target, stationary_moments(fa_ld_round(step, clients.p, K)))
            where = {"spread": spread, "participation": "all, weighted"}
            table.add(name, "W2 in the end", x=1 / etas, value=end.T, **where)
            apart = wasserstein2(once["shared noise"], once[name])
            table.add(name, "W2 to shared noise, K = 1", x=1 / etas, value=apart.T, spread=spread)

        # if only some take part, with equal weights
        S, N = setting.sampled, setting.clients
        equal = clients.equal()
        sampling = {
            "all": 0.0,
            "some, with replacement": sampled_weight(S, N, True),
            "some, without replacement": sampled_weight(S, N, False),
        }
        for name in ("independent noise", "shared noise"):
            step = all_clients(equal, etas, tau, NOISES[name])
            for participation, single in sampling.items():
                end = wasserstein2(
                    equal.target(tau), stationary_moments(fa_ld_round(step, equal.p, K, single))
                )
                where = {"spread": spread, "participation": participation}
                table.add(name, "W2 in the end", x=1 / etas, value=end.T, **where)

        # runs with a constant and with a decaying step
        eta = 2.0**-setting.step_power
        k = K * torch.arange(setting.rounds, **options)
        decaying = torch.cat(
            [
                fa_ld_round(all_clients(clients, some, tau, independent), clients.p, K)
                for some in (1 / (2 * L + m * k / 12)).split(50)
            ]
        )
        constant = fa_ld_round(all_clients(clients, etas.new_tensor([eta]), tau, independent), clients.p, K)
        runs = {
            "constant step": (constant.expand_as(decaying), stationary_moments(constant[0])),
            "decaying step": (decaying, target),
        }
        unit = -K * math.log(1 - eta * m / 4)
        early = torch.linspace(0, min(4 / unit, setting.rounds), setting.points).long().unique()
        late = torch.logspace(0, math.log10(setting.rounds), setting.points).long().unique()
        for name, (matrices, limit) in runs.items():
            law = after(matrices, start, early.tolist())
            table.add(
                name, "W2 to the limit", x=unit * early, value=wasserstein2(limit, law).T, spread=spread
            )
            law = after(matrices, start, late.tolist())
            table.add(name, "W2 to the target", x=K * late, value=wasserstein2(target, law).T, spread=spread)

        # what more local steps cost, and how many rounds they save
        for kind, group in (("different", clients), ("alike", clients.alike())):
            where = {"spread": spread, "clients": kind}
            goal = group.target(tau)
            begin = Gaussian(goal.mean + start.mean - target.mean, start.covariance)
            step = all_clients(group, etas[-1:], tau, independent)
            one = stationary_moments(fa_ld_round(step, group.p, 1))
            for more in setting.many_steps:
                law = stationary_moments(fa_ld_round(step, group.p, more))
                for metric, other in (("W2 to one local step", one), ("W2 to the target, small step", goal)):
                    distance = wasserstein2(other, law).squeeze(0)
                    table.add("independent noise", metric, x=more - 1, value=distance, **where)
            for name in NOISES if kind == "different" else ("independent noise",):
                for some in setting.some_steps:
                    rounds = fewest_rounds(group, tried, NOISES[name], some, begin, setting)
                    table.add(name, "rounds to the accuracy", x=some, value=rounds, local_steps=some, **where)
    return table.frame()
