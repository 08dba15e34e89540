import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm, solve_discrete_lyapunov

from atlas.papers.generative.stochastic_hamiltonian_samplers import experiment as e
from atlas.run import Run
from atlas.sampling.gaussian import affine, moments, stationary_moments

SETTING = e.Setting(problems=3, dim=2)
DATA, C = e.draw(SETTING, Run("stochastic_hamiltonian_samplers", 0))
(FULL,) = DATA.batches(1)
ETA = torch.tensor(0.1, dtype=torch.float64)


def state(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    theta, r = (torch.randn(3, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    return theta, r


def test_the_potential_is_that_of_the_regression() -> None:
    """Gradients from autograd: the posterior is centred, and the mini-batches' potentials have the full one as their mean."""
    theta = state()[0].requires_grad_()
    N = SETTING.observations
    w = theta + DATA.mean
    residual = DATA.residual - (DATA.X @ theta.unsqueeze(-1)).squeeze(-1)  # y - X w
    energy = residual.square().sum() / (2 * N) + SETTING.prior * w.square().sum() / 2
    (expected,) = torch.autograd.grad(energy, theta)
    assert torch.allclose(FULL.gradient(theta.detach()), expected)
    assert FULL.g.abs().max() < 1e-14
    parts = torch.stack([U.gradient(theta.detach()) for U in DATA.batches(4)])
    assert torch.allclose(parts.mean(0), expected) and not torch.allclose(parts[0], expected)


def hamilton(t: float, i: int, U: e.Potential) -> np.ndarray:
    """theta, r after time t, by scipy."""
    H, g = U.H[i].numpy(), U.g[i].numpy()
    start = torch.cat([v[i] for v in state()]).numpy()
    rhs = lambda _, z: np.concatenate([z[2:], g - H @ z[:2]])
    return solve_ivp(rhs, (0, t), start, rtol=1e-12, atol=1e-13).y[:, -1]


def test_the_exact_flow_solves_hamiltons_equations() -> None:
    U = DATA.batches(4)[1]
    found = torch.cat(e.exact_flow(*state(), U, 7 * ETA), -1)
    for i in range(3):
        assert np.allclose(found[i], hamilton(0.7, i, U), atol=1e-9)


@pytest.mark.parametrize(("name", "order"), [("Euler", 1), ("leapfrog", 2), ("fourth order", 4)])
def test_integrators_have_their_order(name: str, order: int) -> None:
    """Error at time 0.8 against the exact flow, halving the step."""
    U, exact = DATA.batches(4)[1], torch.cat(e.exact_flow(*state(), DATA.batches(4)[1], 8 * ETA), -1)

    def error(steps: int) -> float:
        theta, r = state()
        for _ in range(steps):
            theta, r = e.INTEGRATORS[name](theta, r, U, 8 * ETA / steps)
        return float((torch.cat([theta, r], -1) - exact).norm())

    assert math.log2(error(64) / error(128)) == pytest.approx(order, abs=0.1)


def test_friction_and_noise_are_the_exact_ornstein_uhlenbeck_process() -> None:
    """No force and no motion: two halves are dr = -C r dt + sqrt(2C) dW for time eta."""
    still = lambda theta, r, U, eta: (theta, r)
    step = affine(
        lambda x, xi: torch.cat(e.sghmc_step(*x.chunk(2, -1), xi, FULL, ETA, C, still), -1), 4, 4, (3,)
    )
    for i in range(3):
        c = float(C[i])
        drift = expm(-np.diag([0, 0, c, c]) * 0.1)
        assert np.allclose(step.A[i], drift)
        noise = 2 * c * (1 - math.exp(-2 * c * 0.1)) / (2 * c)
        assert np.allclose(step.Q[i], np.diag([0, 0, noise, noise]))


def test_leapfrog_has_the_known_stationary_variance() -> None:
    """The leapfrog preserves a Gaussian; for H = h its variance of theta is 1 / (h (1 - eta^2 h / 4)), whatever the friction."""
    h = torch.tensor([[[0.7]], [[2.0]]], dtype=torch.float64)
    U, c = (
        e.Potential(h, torch.zeros(2, 1, dtype=torch.float64)),
        torch.tensor([[0.5], [3.0]], dtype=torch.float64),
    )
    law = stationary_moments(e.on_moments(U, ETA.view(1) * 5, c, e.leapfrog))
    expected = 1 / (h.flatten() * (1 - 0.25 * h.flatten() / 4))
    assert torch.allclose(law.covariance[0, :, 0, 0], expected, rtol=1e-12)
    assert torch.allclose(law.covariance[0, :, 1, 1], torch.ones(2, dtype=torch.float64), rtol=1e-12)


def test_reshuffling_is_the_mean_over_all_orders() -> None:
    steps = [e.on_moments(U, ETA.view(1), C, e.leapfrog) for U in DATA.batches(4)]
    epoch = e.reshuffled(steps)
    for j in (1, 2, 4):
        orders = [e.in_order([steps[k] for k in order])[j - 1] for order in itertools.permutations(range(4))]
        assert torch.allclose(epoch[j - 1], torch.stack(orders).mean(0), atol=1e-13)


def test_a_fixed_order_against_scipy() -> None:
    """The epoch as one affine step, and scipy's discrete Lyapunov equation."""
    single = [
        affine(
            lambda x, xi, U=U: torch.cat(e.sghmc_step(*x.chunk(2, -1), xi, U, ETA, C, e.leapfrog), -1),
            4,
            4,
            (3,),
        )
        for U in DATA.batches(4)
    ]
    whole = single[0].then(single[1]).then(single[2]).then(single[3])
    steps = [e.on_moments(U, ETA.view(1), C, e.leapfrog) for U in DATA.batches(4)]
    law = e.stationary(e.in_order(steps))["epoch ends"]
    for i in range(3):
        expected = solve_discrete_lyapunov(whole.A[i].numpy(), whole.Q[i].numpy())
        assert np.allclose(law.covariance[0, i], expected, rtol=1e-10)


def test_reshuffled_chains_have_these_moments() -> None:
    """20,000 simulated chains for 40 epochs: all moments after the first and the last step within five standard errors."""
    chains, K, eta = 20_000, 2, torch.tensor(0.4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    parts = DATA.batches(K)
    H, g = torch.stack([U.H[0] for U in parts]), torch.stack([U.g[0] for U in parts])
    theta, r = (torch.zeros(chains, 2, dtype=torch.float64) for _ in range(2))
    sampled = {}
    for _ in range(40):
        order = torch.rand(chains, K, generator=generator).argsort(-1)
        for j in range(K):
            xi = torch.randn(chains, 4, dtype=torch.float64, generator=generator)
            U = e.Potential(H[order[:, j]], g[order[:, j]])  # every chain its own mini-batch
            theta, r = e.sghmc_step(theta, r, xi, U, eta, C[0], e.leapfrog)
            sampled[j] = torch.cat([theta.new_ones(chains, 1), theta, r], -1)
    epoch = e.reshuffled([e.on_moments(U, eta.view(1), C, e.leapfrog) for U in parts])
    end = moments(stationary_moments(epoch[-1]))[0, 0]
    for j in range(K):
        products = torch.einsum("si,sj->sij", sampled[j], sampled[j]).flatten(1)
        error = products.std(0) / chains**0.5
        assert ((products.mean(0) - epoch[j][0, 0] @ end).abs() <= 5 * error + 1e-12).all()


def test_no_stationary_law_is_nan() -> None:
    """Explicit Euler without enough friction."""
    eta = torch.tensor([2.0], dtype=torch.float64)
    law = e.stationary([e.on_moments(FULL, eta, 0.01 * C, e.euler)])["epoch ends"]
    assert law.covariance.isnan().all()
