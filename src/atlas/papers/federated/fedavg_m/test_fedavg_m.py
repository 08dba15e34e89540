import torch
from torch import Tensor

from atlas.federated.quadratics import Quadratics, draw
from atlas.papers.federated.fedavg_m.experiment import (
    Row,
    Setting,
    fedavg_m_round,
    federated_averaging,
    scaffold_m_round,
)
from atlas.run import Run

ONE = torch.ones(1, dtype=torch.float64)


def clients(n: int = 4, d: int = 3) -> Quadratics:
    return draw((n, d), (0.2, 1.0), 2.0, 0.1, torch.Generator().manual_seed(0))


def test_gradients_are_those_of_the_loss() -> None:
    problem, x = clients(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    loss = (problem.a * (x - problem.b).square() / 2 + 0.1 * x.square() / (1 + x.square())).sum()
    (expected,) = torch.autograd.grad(loss, x)
    assert torch.allclose(problem.gradients(x.detach()), expected)
    same = x.detach()[0].expand(4, 3)
    assert torch.allclose(problem.gradient(same[0]), problem.gradients(same).mean(0))
    hessian = torch.autograd.functional.hessian(
        lambda x: (problem.a * (x - problem.b).square() / 2 + 0.1 * x.square() / (1 + x.square())).sum(),
        x.detach(),
    )
    assert hessian.max() <= problem.smoothness + 1e-12


def test_one_client_and_one_local_step_is_sgd() -> None:
    problem, x = clients(1), torch.randn(3, dtype=torch.float64)
    eta = 0.1
    weight = torch.nn.Parameter(x.clone())
    sgd = torch.optim.SGD([weight], lr=eta)
    g = torch.zeros_like(x)
    for _ in range(20):
        x, g = fedavg_m_round(x, g, problem, 1, eta, eta * ONE, ONE)
        weight.grad = problem.gradient(weight.detach())
        sgd.step()
    assert torch.allclose(x, weight.detach(), atol=1e-14)


def test_one_client_and_one_local_step_with_momentum_is_sgd_with_dampened_momentum() -> None:
    problem, x = clients(1), torch.randn(3, dtype=torch.float64)
    beta, gamma = 0.3, 0.2
    weight = torch.nn.Parameter(x.clone())
    sgd = torch.optim.SGD([weight], lr=gamma, momentum=1 - beta, dampening=1 - beta)
    g = problem.gradient(x)  # as torch starts its momentum
    for _ in range(20):
        x, g = fedavg_m_round(x, g, problem, 1, 0.05, gamma * ONE, beta * ONE)
        weight.grad = problem.gradient(weight.detach())
        sgd.step()
    assert torch.allclose(x, weight.detach(), atol=1e-13)


def by_hand(
    problem: Quadratics, x: Tensor, g: Tensor, K: int, eta: float, gamma: float, beta: float
) -> Tensor:
    """A round of FedAvg-M, client by client."""
    models = []
    for i in range(len(problem.b)):
        y = x.clone()
        for _ in range(K):
            gradient = problem.a[i] * (y - problem.b[i]) + 0.2 * y / (1 + y**2) ** 2
            y = y - eta * (beta * gradient + (1 - beta) * g)
        models.append(y)
    return x - gamma * (x - torch.stack(models).mean(0)) / (eta * K)


def test_a_round_client_by_client() -> None:
    problem, x, g = clients(), torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    found, _ = fedavg_m_round(x, g, problem, 5, 0.1, 0.3 * ONE, 0.4 * ONE)
    assert torch.allclose(found, by_hand(problem, x, g, 5, 0.1, 0.3, 0.4), atol=1e-14)


def test_fedavg_is_the_mean_of_the_models() -> None:
    problem, x = clients(), torch.randn(3, dtype=torch.float64)
    found, g = fedavg_m_round(x, torch.zeros(3, dtype=torch.float64), problem, 5, 0.1, 0.5 * ONE, ONE)
    assert torch.allclose(found, x - 0.5 * g)


def test_scaffold_is_exact_where_fedavg_is_not() -> None:
    """With control variates the optimum is a fixed point, for SCAFFOLD and SCAFFOLD-M, whoever takes part."""
    problem, x = clients(6), torch.zeros(3, dtype=torch.float64)
    for _ in range(5000):
        x = x - 0.5 * problem.gradient(x)
    assert problem.gradient(x).abs().max() < 1e-12
    c_i = problem.gradients(x.expand(6, 3))
    chosen = torch.tensor([1, 4])
    for beta in (1.0, 0.3):
        moved, g, control = scaffold_m_round(
            x, torch.zeros(3, dtype=torch.float64), c_i, problem, chosen, 5, 0.1, ONE, beta * ONE
        )
        assert (
            torch.allclose(moved, x, atol=1e-12)
            and torch.allclose(control, c_i, atol=1e-12)
            and g.abs().max() < 1e-11
        )
    drifted, _ = fedavg_m_round(x, torch.zeros(3, dtype=torch.float64), problem, 5, 0.1, 0.5 * ONE, ONE)
    assert (drifted - x).abs().max() > 1e-3


def test_scaffold_updates_only_the_chosen_clients() -> None:
    problem, x = clients(), torch.randn(3, dtype=torch.float64)
    c_i, chosen = torch.zeros(4, 3, dtype=torch.float64), torch.tensor([2, 0])
    _, _, control = scaffold_m_round(
        x, torch.zeros(3, dtype=torch.float64), c_i, problem, chosen, 1, 0.1, ONE, ONE
    )
    gradients = problem.gradients(x.expand(4, 3))
    assert torch.allclose(control[[0, 2]], gradients[[0, 2]]) and control[[1, 3]].abs().max() == 0


def test_where_fedavg_stops_on_quadratics() -> None:
    """The fixed point of FedAvg weighs client i by 1 - (1 - eta a_i)^K: that is where the experiment ends."""
    setting = Setting(seeds=2, clients=3, dim=4, long=2000, horizons=(2000,))
    run = Run("fedavg_m", 0)
    _, last = federated_averaging([Row("FedAvg", 2000, 4.0)], 10, 0.0, 0.0, setting, run)
    spread = torch.tensor([4.0], dtype=torch.float64).view(-1, 1, 1, 1)
    problem = draw((2, 3, 4), setting.curvature, spread, 0.0, run.generator("clients"))
    weight = 1 - (1 - setting.eta * problem.a) ** 10
    stop = (weight * problem.b).sum(-2) / weight.sum(-2)
    assert torch.allclose(last, problem.gradient(stop).square().sum(-1), rtol=1e-9)
