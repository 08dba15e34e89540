import math

import pytest
import torch

from atlas.measure import load_experiment, make_setting
from atlas.paper import find
from atlas.papers.optimization.last_iterate_sgd import experiment as e
from atlas.run import Run


def silent(shape: torch.Size) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def test_schedules_by_hand() -> None:
    t, T = torch.tensor([1.0, 2.0, 4.0]), torch.tensor(4.0)
    assert e.linear_decay(2.0)(t, T).tolist() == [1.0, 0.75, 0.25]  # 2 (4, 3, 1) / 8
    assert e.inverse_sqrt(2.0)(t, T).tolist() == pytest.approx([2.0, math.sqrt(2), 1.0])


def test_matches_torch_sgd_step_by_step() -> None:
    schedule = e.linear_decay(0.3)
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    ours = e.last_iterates(lambda x: x, schedule, x, torch.tensor([5.0, 20.0], dtype=torch.float64), silent)
    for row, T in zip(ours, (5, 20), strict=True):
        w = torch.nn.Parameter(x.clone())
        optimizer = torch.optim.SGD([w], lr=1.0)
        for t in range(1, T + 1):
            optimizer.param_groups[0]["lr"] = float(schedule(torch.tensor(float(t)), torch.tensor(float(T))))
            optimizer.zero_grad()
            (0.5 * w.square().sum()).backward()
            optimizer.step()
        torch.testing.assert_close(row, w.detach(), rtol=1e-6, atol=1e-9)


def test_worst_case_function_against_its_definition() -> None:
    """The prefix sums against the explicit vectors h_i for a small T."""
    T, eta = 6, 1.0
    a = [1 / (8 * (T - j + 1)) for j in range(1, T + 1)]
    b = [math.sqrt(j / T) / 2 for j in range(1, T + 1)]
    h = [[*a[:i], *([-b[i]] if i < T else []), *[0.0] * (T - i - 1)] for i in range(T + 1)]
    h = torch.tensor([row[:T] for row in h], dtype=torch.float64)
    x = torch.zeros(T, dtype=torch.float64)
    for t in range(1, T + 1):
        values = h @ x
        active = next(i for i in range(T + 1) if values[i] >= values.max() - 1e-12)
        assert active == t - 1  # the construction: one new piece after another
        x = x - eta / math.sqrt(t) * h[active]
    assert e.harvey(T, e.inverse_sqrt(eta)) == pytest.approx(float((h @ x).max()), rel=1e-12)


def test_lower_bound_of_harvey_et_al() -> None:
    # f(x_T) >= log(T) / (32 sqrt(T)) for steps 1/sqrt(t) (their Theorem 3.2)
    for T in (16, 64, 256):
        assert e.harvey(T, e.inverse_sqrt(1.0)) >= math.log(T) / (32 * math.sqrt(T))


def test_smoke_table_is_reproducible() -> None:
    paper = find("last_iterate_sgd")
    module = load_experiment(paper)
    one, two = (module.measure(make_setting(paper, module, "smoke"), Run(paper.slug, 1)) for _ in range(2))
    assert one.equals(two)
