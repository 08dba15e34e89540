"""Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates (arXiv 1708.07120): one cycle.

A residual network with batch normalisation on Fashion-MNIST. Every length of training is a run of its own; all seeds and several
rates are one batch of networks.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from atlas.models.convolutional import ResNet
from atlas.models.networks import accuracy, cross_entropy, value_and_gradient
from atlas.optim import schedules
from atlas.optim.tuning import best_on_others, chosen
from atlas.problems.images import Images, fashion
from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    channels: tuple[int, ...] = (4, 8, 16)  # of the first layer and of every residual block
    few: int = 1000  # labelled images
    many: int = 10000
    test_images: int = 4000
    batch: int = 32
    lengths: tuple[int, ...] = (100, 200, 400)  # of the runs, in iterations
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)  # tried for both methods: constant rate, peak
    small: float = 0.03  # a low rate for PC, one of `rates`; the paper has 0.35 for PC and a peak of 3
    slack: float = 0.002  # of accuracy, below that of the standard run
    weight_decay: float = 1e-4
    decays: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    strong: float = 1e-2  # the weight decay whose cost is measured; one of `decays`
    peaks: tuple[float, float, float] = (
        0.03,
        0.1,
        1.0,
    )  # low, usual, large: at which weight decays are compared
    decay_images: int = 300  # so few that weight decay helps
    decay_length: int = 400
    decay_seeds: int = 12  # the best of several close values is a noisy thing
    seeds: int = 7
    test_batch: int = 500  # images that are normalised together in tests
    together: int = 8  # runs of all seeds that are one batch


@dataclass(frozen=True)
class Schedule:
    """The rate alpha_t and momentum mu_t of every iteration (T,), and the weight decay lambda."""

    rate: Tensor
    momentum: Tensor
    decay: float


def one_cycle(T: int, peak: float, decay: float) -> Schedule:
    """The rate rises to its peak and falls again, the momentum goes the other way."""
    return Schedule(peak * schedules.one_cycle(T), schedules.one_cycle_momentum(T), decay)


def piecewise_constant(T: int, rate: float, decay: float) -> Schedule:
    """A tenth of the rate from 5/8 of the run, a hundredth from 7/8, as in the authors' code."""
    milestones = (round(0.625 * T), round(0.875 * T))
    return Schedule(rate * schedules.step(T, milestones), 0.9 * schedules.constant(T), decay)


def update(
    theta: Tensor, v: Tensor, g: Tensor, alpha: Tensor | float, mu: Tensor | float, decay: Tensor | float
) -> None:
    """v <- mu v + alpha (g + lambda theta);  theta <- theta - v, as in Caffe, which the authors used."""
    v.mul_(mu).add_(alpha * (g + decay * theta))
    theta.sub_(v)


def train(
    plans: list[Schedule], train: Images, subset: Tensor, test: Images, name: str, setting: Setting, run: Run
) -> Tensor:
    """Test accuracy at the end of every run (runs, S), NaN where it diverged.

    Seed s learns from the images subset[s]; starts and batches depend on `name` and the seed, not on the plan. subset: (S, n).
    """
    network, (S, n) = ResNet(setting.channels), subset.shape
    order = sorted(range(len(plans)), key=lambda i: -len(plans[i].rate))  # the longest runs come first
    found = torch.full((len(plans), S), torch.nan, device=run.device)
    for first in range(0, len(order), setting.together):
        members = order[first : first + setting.together]
        lengths = [len(plans[i].rate) for i in members]
        theta = network.initial(S, generator=run.generator(name, "start")).repeat(len(members), 1, 1)
        decay = torch.tensor([plans[i].decay for i in members], device=run.device).view(-1, 1, 1)
        values = torch.zeros(2, max(lengths), len(members))  # rate and momentum; 0 after the end of a run
        for k, i in enumerate(members):
            values[:, : lengths[k], k] = torch.stack([plans[i].rate, plans[i].momentum])
        values = values.to(run.device)[..., None, None]
        generator = run.generator(name, "batches")
        state: dict[str, Any] = {"theta": theta, "v": torch.zeros_like(theta), "generator": generator}
        for t in run.checkpoint(f"{name}, {first}", max(lengths), state):
            on = sum(T > t for T in lengths)
            picked = subset.gather(
                1, torch.randint(n, (S, setting.batch), generator=generator, device=run.device)
            )
            x, y = train.x[picked], train.y[picked]
            theta, v = state["theta"][:on], state["v"][:on]
            _, g = value_and_gradient(lambda theta: cross_entropy(network(theta, x), y), theta)
            update(theta, v, g, values[0, t, :on], values[1, t, :on], decay[:on])
        for k, i in enumerate(members):
            theta = state["theta"][k]
            with torch.no_grad():
                parts = zip(test.x.split(setting.test_batch), test.y.split(setting.test_batch), strict=True)
                right = torch.stack([accuracy(network(theta, x), y) for x, y in parts]).mean(0)
            found[i] = torch.where(theta.isfinite().all(-1), right, torch.nan)
    return found


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table, S, R = run.table(), setting.seeds, len(setting.rates)
    images, test = fashion("half", test=setting.test_images, device=run.device)
    draws = torch.rand(
        max(S, setting.decay_seeds), len(images.y), generator=run.generator("images"), device=run.device
    )
    shuffled = draws.argsort(-1)  # the images of a seed are the first of its row
    methods = {"one cycle": one_cycle, "PC": piecewise_constant}
    last = max(setting.lengths)

    # Runs of every length and rate with few images, of the longest with many; the rate of a seed is the best on the others.
    tuned: dict[tuple[int, str], Tensor] = {}  # (images, method) -> accuracy (S, lengths)
    accuracies: dict[tuple[int, str], Tensor] = {}  # -> (rates, lengths, S)
    for n, lengths in ((setting.few, setting.lengths), (setting.many, (last,))):
        grid = list(itertools.product(methods, setting.rates, lengths))
        plans = [methods[m](T, rate, setting.weight_decay) for m, rate, T in grid]
        found = train(plans, images, shuffled[:S, :n], test, f"{n} images", setting, run)
        for method, part in zip(methods, found.view(2, R, len(lengths), S), strict=True):
            index = torch.stack([best_on_others(1 - part[:, k]) for k in range(len(lengths))])
            tuned[n, method] = torch.stack([chosen(part[:, k], index[k]) for k in range(len(lengths))], -1)
            accuracies[n, method] = part
            rates = torch.tensor(setting.rates)[index.cpu()].mT
            table.add(method, "test accuracy", x=lengths, value=tuned[n, method], images=n)
            table.add(method, "rate chosen", x=lengths, value=rates, images=n)

    # Iterations that a run needs for the accuracy of the longest standard run.
    low = setting.rates.index(setting.small)
    standards = {"tuned rate": tuned[setting.few, "PC"], "low rate": accuracies[setting.few, "PC"][low].mT}
    for name, standard in standards.items():
        target = standard[:, -1:] - setting.slack
        for method, curve in (
            ("PC", standard),
            ("one cycle", tuned[setting.few, "one cycle"]),
            ("one cycle, small peak", accuracies[setting.few, "one cycle"][low].mT),
        ):
            table.add(method, "accuracy above target", x=setting.lengths, value=curve - target, standard=name)

    # The gain over the standard run, and that of the standard run over itself with other starts and batches.
    middle = setting.rates[R // 2]
    for label, n in (("few", setting.few), ("many", setting.many)):
        gain = (tuned[n, "one cycle"] - tuned[n, "PC"])[:, -1]
        table.add("one cycle", "gain over PC", x=last, value=gain, labelled=label)
        plan = piecewise_constant(last, middle, setting.weight_decay)
        again = train([plan], images, shuffled[:S, :n], test, f"{n} images, again", setting, run)
        gain = again[0] - accuracies[n, "PC"][R // 2, -1]
        table.add("PC again", "gain over PC", x=last, value=gain, labelled=label)

    # Weight decay at several peak rates.
    cycles = [
        one_cycle(setting.decay_length, peak, decay) for peak in setting.peaks for decay in setting.decays
    ]
    subset = shuffled[: setting.decay_seeds, : setting.decay_images]
    found = train(cycles, images, subset, test, "weight decay", setting, run)
    strong, decays = setting.decays.index(setting.strong), torch.tensor(setting.decays)
    sizes = zip(("low", "usual", "large"), setting.peaks, found.unflatten(0, (-1, len(decays))), strict=True)
    for size, peak, part in sizes:
        at = {"x": setting.decay_length, "peak": size}
        for decay, values in zip(setting.decays, part, strict=True):
            table.add("one cycle", "accuracy at peak and decay", value=values, rate=peak, decay=decay, **at)
        best = decays[part.nan_to_num(nan=-1.0).argmax(0).cpu()].log10()
        table.add("one cycle", "log10 of the best weight decay", value=best, **at)
        lost = part[0] - part[strong]
        table.add("one cycle", "accuracy lost to weight decay", value=lost, **at)
    return table.frame()
