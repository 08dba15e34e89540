import math

import numpy as np
import pytest
import torch
from torch import Tensor

from atlas.federated.participation import Bernoulli, masks
from atlas.federated.quadratics import draw
from atlas.papers.federated.fedau.experiment import (
    MIFA,
    FedAU,
    FedAvg,
    FedVARP,
    Setting,
    draw_clients,
    long_cutoff,
    minimiser,
    train,
)
from atlas.run import Run

S, N, d = 2, 4, 3
CPU = torch.device("cpu")


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def updates(rounds: int, G: int = 1) -> Tensor:
    shape = (rounds, G, S, N, d)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def presence(rounds: int, p: float = 0.3) -> Tensor:
    pattern = Bernoulli(torch.full((S, N), p, dtype=torch.float64))
    return masks(pattern, rounds, torch.Generator().manual_seed(0))


def test_weights_by_hand() -> None:
    """Present in rounds 3, 4, 9: gaps 3, 1, 5; with a cutoff of 2: 2, 1, 1, 2, 2, 1."""
    present = [False, False, True, True, False, False, False, False, True, False]
    server = FedAU(numbers(math.inf, 2), 1, 1)
    seen = []
    for active in present:
        seen.append(server.omega.flatten().tolist())
        server(torch.zeros(2, 1, 1, d, dtype=torch.float64), torch.tensor([[active]]))
    free, cut = zip(*seen, strict=True)
    assert free == pytest.approx([1, 1, 1, 3, 2, 2, 2, 2, 2, 3])
    assert cut == pytest.approx([1, 1, 2, 3 / 2, 4 / 3, 4 / 3, 6 / 4, 6 / 4, 8 / 5, 9 / 6])


def test_fedau_client_by_client() -> None:
    K, rounds = 3, 30
    server, delta, active = FedAU(numbers(K), S, N), updates(30), presence(30)
    absent = np.zeros((S, N), int)
    intervals: list[list[list[int]]] = [[[] for _ in range(N)] for _ in range(S)]
    for t in range(rounds):
        expected = np.zeros((S, d))
        for s in range(S):
            for n in range(N):
                own = intervals[s][n]
                if active[t, s, n]:
                    omega = np.mean(own) if own else 1.0
                    expected[s] += omega * delta[t, 0, s, n].numpy() / N
                    own.append(int(absent[s, n]) + 1)
                    absent[s, n] = 0
                else:
                    absent[s, n] += 1
                    if absent[s, n] == K:
                        own.append(K)
                        absent[s, n] = 0
        assert np.allclose(server(delta[t], active[t])[0], expected, atol=1e-14)


@pytest.mark.parametrize("K", [2, 10, math.inf])
def test_weights_have_the_mean_of_cut_geometric_gaps(K: float) -> None:
    """E min(gap, K) = (1 - (1 - p)^K) / p."""
    p = 0.2
    pattern = Bernoulli(torch.full((100, N), p, dtype=torch.float64))
    server = FedAU(numbers(K), 100, N)
    for active in masks(pattern, 1000, torch.Generator().manual_seed(0)):
        server(torch.zeros(1, 100, N, 1, dtype=torch.float64), active)
    expected = (1 - (1 - p) ** K) / p
    assert server.omega.mean().item() == pytest.approx(expected, rel=0.01)


def test_a_cutoff_of_one_is_fedavg_over_all() -> None:
    server, fedavg = FedAU(numbers(1), S, N), FedAvg(torch.ones(S, N, dtype=torch.float64))
    for delta, active in zip(updates(20), presence(20), strict=True):
        assert torch.allclose(server(delta, active), fedavg(delta, active))


def test_all_servers_are_the_mean_if_everybody_takes_part() -> None:
    ones, shape = torch.ones(S, N, dtype=torch.float64), (1, S, N, d)
    servers = [
        FedAU(numbers(50), S, N), FedAvg(), FedAvg(ones), MIFA(shape, CPU), FedVARP(shape, CPU)
    ]  # fmt: skip
    for delta in updates(5):
        for server in servers:
            assert torch.allclose(server(delta, ones.bool()), delta.mean(-2))


def test_methods_with_a_memory_client_by_client() -> None:
    mifa, fedvarp = MIFA((1, S, N, d), CPU), FedVARP((1, S, N, d), CPU)
    stored = np.zeros((S, N, d))
    for delta, active in zip(updates(20), presence(20), strict=True):
        mean = stored.mean(1)
        step = fedvarp(delta, active)[0]
        for s in range(S):
            here = [n for n in range(N) if active[s, n]]
            news = [delta[0, s, n].numpy() - stored[s, n] for n in here]
            assert np.allclose(step[s], mean[s] + (np.mean(news, axis=0) if news else 0))
            for n in here:
                stored[s, n] = delta[0, s, n]
        assert np.allclose(mifa(delta, active)[0], stored.mean(1))


def test_known_frequencies_and_participants() -> None:
    delta, active = updates(1)[0], presence(1)[0]
    active[0] = False  # nobody
    assert FedAvg()(delta, active)[0, 0].abs().max() == 0
    here = active[1].nonzero()[:, 0]
    assert torch.allclose(FedAvg()(delta, active)[0, 1], delta[0, 1, here].mean(0))
    p = torch.full((S, N), 0.25, dtype=torch.float64)
    assert torch.allclose(FedAvg(1 / p)(delta, active)[0, 1], delta[0, 1, here].sum(0) * 4 / N)


def test_one_local_step_of_everybody_is_gradient_descent() -> None:
    """x_t = x* + (1 - gamma a)^t (0 - x*), of which the averages are taken; two runs of different lengths."""
    problem = draw((S, N, d), (0.5, 1.0), 1.0, 0.0, torch.Generator().manual_seed(0))
    everybody = Bernoulli(torch.ones(S, N, dtype=torch.float64))
    lengths, gammas = [8, 5], [0.1, 0.3]
    setting = Setting(local_steps=1)
    error, late = train(
        "test", {"FedAvg": FedAvg()}, lengths, gammas, problem, everybody, 0.0, setting, Run("fedau")
    )
    best = minimiser(problem, everybody.p)
    assert problem.gradient(best).abs().max() < 1e-14
    for g, (T, gamma) in enumerate(zip(lengths, gammas, strict=True)):
        x = torch.stack([best - (1 - gamma * problem.a.mean(1)) ** t * best for t in range(T)])
        assert torch.allclose(error[0, g], problem.gradient(x).square().sum(-1).mean(0))
        assert torch.allclose(late[0, g], x[math.ceil(T / 2) :].mean(0))


def test_where_fedavg_ends_without_noise() -> None:
    """Local steps weigh client n by 1 - (1 - gamma a)^I: the fixed point of a round of everybody."""
    problem = draw((S, N, d), (0.5, 1.0), 1.0, 0.0, torch.Generator().manual_seed(0))
    everybody = Bernoulli(torch.ones(S, N, dtype=torch.float64))
    _, late = train(
        "test", {"FedAvg": FedAvg()}, [400], [0.2], problem, everybody, 0.0, Setting(), Run("fedau")
    )
    weight = 1 - (1 - 0.2 * problem.a) ** Setting.local_steps
    assert torch.allclose(late[0, 0], (weight * problem.b).sum(1) / weight.sum(1))


def test_the_reweighted_minimiser() -> None:
    problem = draw((S, N, d), (0.5, 1.0), 1.0, 0.0, torch.Generator().manual_seed(0))
    weight = torch.rand(S, N, dtype=torch.float64)
    x = minimiser(problem, weight).unsqueeze(1)
    assert (weight.unsqueeze(-1) * problem.gradients(x)).sum(1).abs().max() < 1e-14


def test_the_rarest_client_has_the_largest_optimum() -> None:
    problem, p = draw_clients(5, (0.02, 0.3), Setting(), Run("fedau"))
    size = problem.b.sum(-1)
    assert torch.equal(p.argmin(-1), size.argmax(-1)) and torch.equal(p.argmax(-1), size.argmin(-1))
    ordered = p.sort(-1).values
    assert ordered[0, 0].item() == pytest.approx(0.02) and ordered[0, -1].item() == pytest.approx(0.3)
    assert torch.allclose(ordered[:, 1:] / ordered[:, :-1], torch.tensor(15 ** (1 / 19), dtype=torch.float64))


def test_cutoff_of_the_theory() -> None:
    for T, p in ((400, 0.1), (6400, 0.02)):
        K = long_cutoff(T, p)
        assert (1 - p) ** (2 * K) <= 1 / T < (1 - p) ** (2 * (K - 1))
