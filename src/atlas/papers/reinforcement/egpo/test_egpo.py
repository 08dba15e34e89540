import numpy as np
import pytest
import torch

from atlas.measure import load_experiment, make_setting
from atlas.paper import find
from atlas.papers.reinforcement.egpo import experiment as e
from atlas.run import Run

F64 = torch.float64
PAPER_SCISSORS = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]], dtype=F64)


def test_one_step_by_hand() -> None:
    """Two answers, P = [[.5, 1], [0, .5]], uniform start and reference, eta = 1, beta = 0.5."""
    P = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=F64)
    zero = torch.zeros(2, dtype=F64)
    theta = e.egpo_step(
        zero, zero, lambda pi: e.times(P, pi), torch.tensor([1.0], dtype=F64), torch.tensor([0.5], dtype=F64)
    )
    # half step: P (1/2, 1/2) = (3/4, 1/4), so pi_half(1) = sigmoid(1/2); step: P pi_half
    p = 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose(theta, [0.5 * p + (1 - p), 0.5 * (1 - p)], rtol=1e-12)


def test_equilibrium_of_rock_paper_scissors() -> None:
    # with a uniform reference it is uniform; with another one it solves theta = theta_ref + P pi / beta
    beta, start = torch.tensor([[0.5]], dtype=F64), torch.tensor([[0.3, 0.0, -0.2]], dtype=F64)
    uniform = e.equilibrium(PAPER_SCISSORS[None], start, torch.zeros(1, 3, dtype=F64), beta)
    np.testing.assert_allclose(uniform.exp(), 1 / 3, rtol=1e-12)
    ref = torch.tensor([[0.5, -0.1, 0.2]], dtype=F64)
    log_pi = e.equilibrium(PAPER_SCISSORS[None], ref, ref, beta)
    fixed = (ref + e.times(PAPER_SCISSORS[None], log_pi.exp()) / beta).log_softmax(-1)
    torch.testing.assert_close(log_pi, fixed, rtol=0, atol=1e-13)
    assert e.regularised_gap(PAPER_SCISSORS[None], log_pi, ref, beta).abs().max() < 1e-12


def test_regularised_gap_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    theta, ref, beta = rng.normal(size=3), rng.normal(size=3), 0.3
    pi, pi_ref = (np.exp(v) / np.exp(v).sum() for v in (theta, ref))
    kl = lambda p: (p * np.log(p / pi_ref)).sum()
    grid = [np.array([i, j, 400 - i - j]) / 400 for i in range(1, 399) for j in range(1, 400 - i)]
    best = max(p @ PAPER_SCISSORS.numpy() @ pi - beta * kl(p) for p in grid)
    gap = e.regularised_gap(
        PAPER_SCISSORS, torch.tensor(theta), torch.tensor(ref), torch.tensor([beta], dtype=F64)
    )
    assert gap.item() == pytest.approx(2 * (best + beta * kl(pi) - 0.5), abs=1e-4)


def test_gradient_of_the_on_policy_loss() -> None:
    torch.manual_seed(0)
    theta, ref = torch.randn(4, dtype=F64, requires_grad=True), torch.randn(4, dtype=F64)
    P = torch.tensor(e.random_games(1, 4, np.random.default_rng(1))[0])
    beta, eta = torch.tensor([0.2], dtype=F64), torch.tensor([0.1], dtype=F64)
    pi = theta.softmax(-1).detach()
    loss = e.ipo_loss(theta, ref, e.times(P, pi), beta, pi)
    expected = theta - eta * beta * 4 / 4 * torch.autograd.grad(loss, theta)[0]
    torch.testing.assert_close(e.on_policy_ipo_step(theta, ref, lambda q: e.times(P, q), eta, beta), expected)


@pytest.mark.parametrize("make", [e.random_games, e.cyclic_games])
def test_games_are_preferences(make) -> None:
    P = make(5, 9, np.random.default_rng(0))
    np.testing.assert_allclose(P + P.transpose(0, 2, 1), 1)
    assert P.min() >= 0 and P.max() <= 1
    if make is e.cyclic_games:  # the uniform policy is the equilibrium
        np.testing.assert_allclose(P.mean(-1), 0.5)


def test_smoke_table_is_reproducible() -> None:
    paper = find("egpo")
    module = load_experiment(paper)
    one, two = (module.measure(make_setting(paper, module, "smoke"), Run(paper.slug, 1)) for _ in range(2))
    assert one.equals(two)
