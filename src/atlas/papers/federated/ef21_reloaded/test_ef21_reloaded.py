import math

import pytest
import torch

from atlas.federated.compression import top_k
from atlas.measure import load_experiment, make_setting
from atlas.paper import find
from atlas.papers.federated.ef21_reloaded import experiment as e
from atlas.run import Run


def test_xi_by_hand() -> None:
    # alpha = 3/4: theta = 1/2, beta = (1/4)/(1/2) = 1/2, so sqrt(beta/theta) = 1; no compression: 0
    assert e.xi(0.75) == pytest.approx(1.0)
    assert e.xi(1.0) == 0.0


def two_clients() -> e.Problem:
    """f_1 = x^2/2, f_2 = 3 x^2/2 in one dimension: L_i = 1, 3; L = L_AM = 2, L_QM = sqrt(5)."""
    L_i = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    return e.Problem(
        evaluate=lambda x: (x.square().sum(1), L_i[..., None] * x[:, None]),
        L_i=L_i,
        L=torch.tensor([2.0], dtype=torch.float64),
        x0=torch.tensor([[1.0]], dtype=torch.float64),
        lowest=torch.zeros(1, dtype=torch.float64),
    )


def test_step_sizes_by_hand() -> None:
    steps = e.step_sizes(two_clients(), alpha=0.75)
    assert steps["AM"].item() == pytest.approx(1 / 4)
    assert steps["QM"].item() == pytest.approx(1 / (2 + math.sqrt(5)))


def test_one_weighted_round_by_hand() -> None:
    problem, half = two_clients(), torch.tensor([0.5], dtype=torch.float64)
    w = e.weights(problem, weighted=True)
    assert w.tolist() == [[0.25, 0.75]]
    g = torch.tensor([[[2.0], [2.0]]], dtype=torch.float64)  # = grad f_i(1) / (n w_i)
    x, g, value, gradients = e.ef21_step(problem, problem.x0, g, half, w, lambda v: v)
    assert x.tolist() == [[0.0]]  # 1 - 0.5 (0.25 * 2 + 0.75 * 2)
    assert g.abs().max() == 0 and gradients.abs().max() == 0 and value.item() == 0


def test_without_compression_ef21_is_gradient_descent() -> None:
    setting = e.Setting(clients=4, dim=6, k=6)
    problem = e.quadratics(
        setting, torch.ones(3, dtype=torch.float64), torch.Generator().manual_seed(0), torch.device("cpu")
    )
    w, gamma = e.weights(problem, False), 1 / problem.L
    x, g = problem.x0, problem.evaluate(problem.x0)[1]
    expected = problem.x0.clone()
    for _ in range(10):
        expected = expected - gamma[:, None] * problem.evaluate(expected)[1].mean(1)
        x, g, *_ = e.ef21_step(problem, x, g, gamma, w, lambda v: top_k(v, 6))
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("make", [e.quadratics, e.logistic])
def test_gradients_by_autograd_and_smoothness_by_hessian(make) -> None:
    setting = e.Setting(clients=3, dim=4, samples=5)
    problem = make(
        setting,
        torch.full((2,), 0.7, dtype=torch.float64),
        torch.Generator().manual_seed(1),
        torch.device("cpu"),
    )
    x = problem.x0.clone().requires_grad_()
    value, gradients = problem.evaluate(x)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), x)[0], gradients.mean(1))
    hessian = torch.autograd.functional.hessian(
        lambda z: problem.evaluate(z[None].expand(2, -1))[0][0], problem.x0[0]
    )
    assert torch.linalg.eigvalsh(hessian)[-1] <= problem.L[0] * (1 + 1e-9)


def test_smoke_table_is_reproducible() -> None:
    paper = find("ef21_reloaded")
    module = load_experiment(paper)
    one, two = (module.measure(make_setting(paper, module, "smoke"), Run(paper.slug, 1)) for _ in range(2))
    assert one.equals(two)
