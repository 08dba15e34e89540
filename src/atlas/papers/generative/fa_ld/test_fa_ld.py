import itertools
import math

import pytest
import torch
from torch import Tensor

from atlas.papers.generative.fa_ld import experiment as e
from atlas.run import Run
from atlas.sampling.gaussian import Gaussian, from_moments, moments, stationary_moments, wasserstein2

SETTING = e.Setting(problems=3, clients=4, dim=2)
CLIENTS = e.draw(SETTING, 2.0, Run("fa_ld", 0))
ETA = torch.tensor([0.1, 0.02], dtype=torch.float64)
INDEPENDENT, SHARED = e.NOISES["independent noise"], e.NOISES["shared noise"]


def round_of(
    clients: e.Clients, noise: e.Noise, K: int, eta: Tensor = ETA, tau: float = 0.7, single: float = 0.0
) -> Tensor:
    return e.fa_ld_round(e.all_clients(clients, eta, tau, noise), clients.p, K, single)


def once(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def test_gradients_and_target() -> None:
    theta = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    off = theta - CLIENTS.b
    energy = torch.einsum("pci,pcij,pcj->pc", off, CLIENTS.H, off) / 2
    (expected,) = torch.autograd.grad(energy.sum(), theta)
    assert torch.allclose(CLIENTS.gradients(theta.detach()), expected)
    same = CLIENTS.target(0.7).mean.unsqueeze(1).expand(3, 4, 2)
    assert (CLIENTS.p.unsqueeze(-1) * CLIENTS.gradients(same)).sum(1).abs().max() < 1e-12
    hessian = 0.7 * torch.linalg.inv(CLIENTS.target(0.7).covariance)
    assert torch.allclose(hessian, (CLIENTS.p[..., None, None] * CLIENTS.H).sum(1))


def test_one_client_is_langevin_with_its_known_stationary_variance() -> None:
    """theta <- theta - eta h (theta - b) + sqrt(2 eta tau) xi has the variance tau / (h (1 - eta h / 2)), whatever K."""
    h, b = torch.tensor([0.5, 3.0], dtype=torch.float64), torch.tensor([1.0, -2.0], dtype=torch.float64)
    client = e.Clients(h.view(2, 1, 1, 1), b.view(2, 1, 1), torch.ones(2, 1, dtype=torch.float64))
    for K, noise in itertools.product((1, 3), (INDEPENDENT, SHARED)):
        law = stationary_moments(round_of(client, noise, K))
        assert torch.allclose(law.mean[..., 0], b.expand(2, 2))
        assert torch.allclose(law.covariance[..., 0, 0], 0.7 / (h * (1 - ETA.unsqueeze(1) * h / 2)))


@pytest.mark.parametrize("rho", [0.0, 0.6, 1.0])
def test_the_average_noise_has_the_same_variance_for_every_rho(rho: float) -> None:
    point = moments(
        Gaussian(torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2, 2, dtype=torch.float64))
    )
    law = from_moments(once(round_of(CLIENTS, e.Noise(rho), 1), point))
    expected = 2 * ETA.view(2, 1, 1, 1) * 0.7 * torch.eye(2, dtype=torch.float64)
    assert torch.allclose(law.covariance, expected.expand(2, 3, 2, 2))
    law = from_moments(once(round_of(CLIENTS, e.Noise(rho, divided=False), 1), point))
    factor = rho**2 + (1 - rho**2) * CLIENTS.p.square().sum(1).view(3, 1, 1)
    assert torch.allclose(law.covariance, expected * factor)


def test_the_stationary_mean_is_where_federated_averaging_stops() -> None:
    """sum_c p_c (I - (I - eta H_c)^K) (theta - b_c) = 0."""
    law = stationary_moments(round_of(CLIENTS, INDEPENDENT, 5))
    eye = torch.eye(2, dtype=torch.float64)
    for i, eta in enumerate(ETA):
        pull = CLIENTS.p[..., None, None] * (eye - torch.linalg.matrix_power(eye - eta * CLIENTS.H, 5))
        right = (pull @ CLIENTS.b.unsqueeze(-1)).sum(1)
        assert torch.allclose(law.mean[i], torch.linalg.solve(pull.sum(1), right).squeeze(-1), rtol=1e-11)


@pytest.mark.parametrize("replacement", [True, False])
def test_sampled_clients_against_all_possible_samples(replacement: bool) -> None:
    """The mean over every sample of S = 3 of 4 clients, each as a federation of its own with S equal weights."""
    equal, start = CLIENTS.equal(), moments(CLIENTS.target(0.3))
    S, numbers = 3, range(4)
    samples = itertools.product(numbers, repeat=S) if replacement else itertools.combinations(numbers, S)
    step = e.all_clients(equal, ETA, 0.7, INDEPENDENT)
    weights = torch.zeros(0, 4, dtype=torch.float64)
    for sample in samples:
        weight = torch.bincount(torch.tensor(sample), minlength=4) / S
        weights = torch.cat([weights, weight.double().unsqueeze(0)])
    outcomes = [e.fa_ld_round(step, weight.expand(3, 4), 2) for weight in weights]
    expected = once(torch.stack(outcomes).mean(0), start)
    found = once(e.fa_ld_round(step, equal.p, 2, e.sampled_weight(S, 4, replacement)), start)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("replacement", [True, False])
def test_the_bias_that_remains_with_some_clients(replacement: bool) -> None:
    """As eta -> 0 the covariance is N / S times the target's without replacement, and 1 / S (N + S - 1) times with."""
    equal, target = CLIENTS.equal(), CLIENTS.equal().target(0.7)
    eta = torch.tensor([1e-5], dtype=torch.float64)
    matrix = round_of(equal, INDEPENDENT, 2, eta, single=e.sampled_weight(2, 4, replacement))
    factor = 2.5 if replacement else 2.0
    expected = (math.sqrt(factor) - 1) * target.covariance.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()
    assert torch.allclose(wasserstein2(target, stationary_moments(matrix))[0], expected, rtol=1e-3)


def test_simulated_chains_have_these_moments() -> None:
    """20,000 chains, 20 rounds of 3 local steps, 2 of 4 clients averaged: all moments within five standard errors."""
    chains, K, generator = 20_000, 3, torch.Generator().manual_seed(0)
    equal = CLIENTS.equal()
    one = e.Clients(equal.H[:1], equal.b[:1], equal.p[:1])
    eta, noise = torch.tensor(0.1, dtype=torch.float64), e.Noise(0.5)
    server = torch.zeros(chains, 1, 1, 2, dtype=torch.float64)
    for _ in range(20):
        theta = server.expand(chains, 1, 4, 2)
        for _ in range(K):
            xi = torch.randn(chains, 1, 5, 2, dtype=torch.float64, generator=generator)
            theta = e.local_step(theta, xi, one, eta, 0.7, noise)
        order = torch.rand(chains, 4, generator=generator).argsort(-1)[:, :2]
        server = theta[torch.arange(chains).unsqueeze(1), 0, order].mean(1).view(chains, 1, 1, 2)
    z = torch.cat([torch.ones(chains, 1, dtype=torch.float64), server.view(chains, 2)], -1)
    products = torch.einsum("si,sj->sij", z, z).flatten(1)
    matrix = round_of(one, noise, K, eta.view(1), single=e.sampled_weight(2, 4, False))
    start = moments(
        Gaussian(torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 2, 2, dtype=torch.float64))
    )
    expected = once(torch.linalg.matrix_power(matrix, 20), start)[0, 0]
    assert ((products.mean(0) - expected).abs() <= 5 * products.std(0) / chains**0.5 + 1e-12).all()


def test_rounds_to_an_accuracy_are_those_of_the_run() -> None:
    target = CLIENTS.target(0.7)
    start = Gaussian(target.mean + 5, 0 * target.covariance)
    matrix = round_of(CLIENTS, INDEPENDENT, 3)
    found = e.rounds_to(matrix, start, target, 0.3)
    for i, p in itertools.product(range(2), range(3)):
        laws = e.after(matrix[i].expand(60, -1, -1, -1), start, list(range(61)))
        distance = wasserstein2(target, laws)[:, p]
        first = int((distance <= 0.3).int().argmax())
        assert (distance <= 0.3).any() and first - 1 < found[i, p] <= first
    assert e.rounds_to(matrix, start, target, 1e-3).isinf().all()


def test_the_fewest_rounds_are_those_of_a_dense_grid() -> None:
    target = CLIENTS.target(SETTING.tau)
    start = Gaussian(target.mean + 5, 0 * target.covariance)
    coarse, dense = (torch.logspace(-1, -3, n, dtype=torch.float64) for n in (20, 1000))
    found = e.fewest_rounds(CLIENTS, coarse, INDEPENDENT, 3, start, e.Setting(accuracy=0.1))
    all_rounds = e.rounds_to(round_of(CLIENTS, INDEPENDENT, 3, dense, tau=SETTING.tau), start, target, 0.1)
    assert torch.allclose(found, all_rounds.min(0).values, rtol=0.02)
