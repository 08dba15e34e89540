"""Schedules against torch.optim.lr_scheduler, or their closed forms where it has none."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler as theirs

from atlas.optim import schedules as ours

T = 40


def follow(scheduler: Callable[..., theirs.LRScheduler], key: str = "lr") -> torch.Tensor:
    """What a scheduler of torch sets at every step, for a largest rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    schedule, values = scheduler(optimizer), []
    for _ in range(T):
        values.append(optimizer.param_groups[0][key])
        optimizer.step()
        schedule.step()
    return torch.tensor(values, dtype=torch.float64)


def cycle(optimizer: torch.optim.Optimizer) -> theirs.LRScheduler:
    return theirs.OneCycleLR(
        optimizer, 1.0, total_steps=T, pct_start=0.45, anneal_strategy="linear", three_phase=True,
        div_factor=10, final_div_factor=1000,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mine", "scheduler"),
    [
        (ours.constant(T), lambda o: theirs.ConstantLR(o, factor=1.0)),
        (ours.inverse_sqrt(T), lambda o: theirs.LambdaLR(o, lambda t: 1 / math.sqrt(t + 1))),
        (ours.linear_decay(T), lambda o: theirs.LinearLR(o, 1.0, 0.0, total_iters=T)),
        (ours.cosine(T), lambda o: theirs.CosineAnnealingLR(o, T_max=T)),
        (ours.step(T, (10, 30), 0.2), lambda o: theirs.MultiStepLR(o, (10, 30), 0.2)),
        (ours.step(T, ()), lambda o: theirs.MultiStepLR(o, ())),
        (ours.one_cycle(T), cycle),
    ],
    ids=["constant", "inverse sqrt", "linear", "cosine", "step", "no step", "one cycle"],
)
def test_a_schedule_is_torchs(mine: torch.Tensor, scheduler: Callable[..., theirs.LRScheduler]) -> None:
    assert mine.shape == (T,) and mine.dtype == torch.float64
    torch.testing.assert_close(mine, follow(scheduler), atol=1e-12, rtol=0)


def test_the_momentum_of_one_cycle_is_torchs_and_low_where_the_rate_is_high() -> None:
    momentum = ours.one_cycle_momentum(T)
    torch.testing.assert_close(momentum, follow(cycle, "momentum"), atol=1e-12, rtol=0)
    assert momentum.argmin() == ours.one_cycle(T).argmax() == 0.45 * T - 1


def test_linear_decay_with_warmup_by_hand() -> None:
    assert ours.linear_decay(8, warmup=4).tolist() == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert ours.linear_decay(4).tolist() == [1.0, 0.75, 0.5, 0.25]
