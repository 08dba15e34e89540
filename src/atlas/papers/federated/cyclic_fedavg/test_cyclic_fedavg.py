import dataclasses
import math

import pytest
import torch

from atlas.federated.participation import of_clients, without_replacement
from atlas.papers.federated.cyclic_fedavg import experiment as e
from atlas.run import Run

SETTING = e.Setting(
    seeds=3, dim=4, groups=2, group_size=3, samples=5, sampled=3, horizons=(32,), local_steps=4
)
RUN = Run("cyclic_fedavg", 0)


def problem(alike: bool = True) -> e.Problem:
    return e.draw(alike, SETTING, RUN)


def test_the_error_is_zero_at_the_optimum_and_that_of_the_losses_elsewhere() -> None:
    p = problem()
    assert p.error(p.optimum).abs().max() < 1e-20

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (p.a * (x.unsqueeze(1) - p.b).square()).sum(-1).mean(1) / 2

    x = torch.randn(3, 4, dtype=torch.float64)
    assert torch.allclose(p.error(x), loss(x) - loss(p.optimum))


def test_local_gradient_descent_has_a_closed_form() -> None:
    """y_K = b + (1 - eta a)^K (x - b)."""
    p, x = problem(), torch.randn(3, 1, 4, dtype=torch.float64)
    found = e.local_training(x, p.a, p.b, torch.tensor(0.3, dtype=torch.float64), None, 7)
    assert torch.allclose(found, p.b + (1 - 0.3 * p.a) ** 7 * (x - p.b))


def test_local_sgd_is_torch_sgd() -> None:
    p, generator = problem(), torch.Generator().manual_seed(0)
    shifts = e.samples("SGD", p.e, generator)
    found = e.local_training(
        torch.zeros(3, 1, 4, dtype=torch.float64), p.a, p.b, torch.tensor(0.1, dtype=torch.float64), shifts, 5
    )
    weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    sgd = torch.optim.SGD([weight], lr=0.1)
    for k in range(5):
        sgd.zero_grad()
        (p.a[1, 2] * (weight - p.b[1, 2] - shifts[k, 1, 2]).square()).sum().div(2).backward()
        sgd.step()
    assert torch.allclose(found[1, 2], weight.detach())


def test_shuffled_samples_are_each_used_once() -> None:
    p, generator = problem(), torch.Generator().manual_seed(0)
    assert p.e.mean(2).abs().max() < 1e-15
    shuffled, drawn = (e.samples(o, p.e, generator) for o in ("shuffled SGD", "SGD"))
    assert torch.allclose(shuffled.permute(1, 2, 0, 3).sort(2).values, p.e.sort(2).values)
    assert not torch.allclose(drawn.permute(1, 2, 0, 3).sort(2).values, p.e.sort(2).values)


def test_clients_are_drawn_without_replacement_from_their_pool() -> None:
    chosen = without_replacement(torch.tensor([3, 5, 7, 9]), 3, 500, torch.Generator().manual_seed(0))
    assert chosen.shape == (500, 3) and set(chosen.flatten().tolist()) == {3, 5, 7, 9}
    assert (chosen.sort(-1).values.diff(dim=-1) > 0).all()
    share = (chosen == 5).any(-1).double().mean().item()
    assert share == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 500))
    values = torch.arange(20.0).view(10, 2)
    assert of_clients(values, torch.tensor([4, 0])).tolist() == [[8.0, 9.0], [0.0, 1.0]]


def test_all_clients_of_identical_groups_is_gradient_descent() -> None:
    """One group of identical clients and one local step: x_T = x* + (1 - eta a)^T (x_0 - x*)."""
    setting = dataclasses.replace(SETTING, groups=1, local_steps=1)
    p = e.draw(True, setting, RUN)
    found = e.federated_averaging(p, torch.arange(3).view(1, 3), 3, "GD", "test", setting, RUN)
    eta = setting.step * math.log(32) / (float(p.a.min()) * 32)
    x = p.optimum + (1 - eta * p.a[:, 0]) ** 32 * (0 - p.optimum)
    assert torch.allclose(found[0], p.error(x) / p.error(torch.zeros_like(x)))


def test_the_groups_take_turns() -> None:
    """Two groups, T = 2 rounds by hand."""
    setting = dataclasses.replace(SETTING, horizons=(2,), local_steps=1)
    p = problem()
    pools = torch.arange(6).view(2, 3)
    found = e.federated_averaging(p, pools, 3, "GD", "test", setting, RUN)
    eta = setting.step * math.log(2) / (float(p.a.mean(1).min()) * 2)
    x = torch.zeros(3, 4, dtype=torch.float64)
    for group in (slice(0, 3), slice(3, 6)):
        x = x - eta * (p.a[:, group] * (x.unsqueeze(1) - p.b[:, group])).mean(1)
    assert torch.allclose(found[0], p.error(x) / p.error(torch.zeros_like(x)))
