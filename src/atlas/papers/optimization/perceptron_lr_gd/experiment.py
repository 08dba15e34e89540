"""From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large Step Sizes (arXiv 2412.08424).

Gradient descent for logistic regression on separable data, with steps far above the usual limit, plain and normalised, and the
perceptrons that both become. Data sets and step sizes are one batch. Examples are z_i = y_i a_i: theta separates them if all
<z_i, theta> > 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.nn import functional as F

from atlas.problems.images import fashion
from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    seeds: int = 10  # data sets of each kind
    examples: tuple[int, ...] = (100, 200, 400, 800, 1600)
    large_steps: tuple[float, ...] = (1e2, 1e4)  # gamma
    jitter: float = 0.01  # of the hard examples
    dim: int = 20  # of the easy ones
    margin: float = 0.05  # of the easy ones, before they are drawn
    pairs: int = 20  # of classes of images, a data set each
    images: int = 100  # in a data set
    steps: tuple[float, ...] = (1.0, 1e1, 1e2, 1e3, 1e4)  # gamma, on images
    repeated: int = 10  # images that bear both labels in data that nothing separates
    start: int = 16  # iterations over which the loss is averaged
    limit_steps: tuple[float, ...] = (
        1.0,
        1e1,
        1e2,
        1e3,
        1e4,
        1e6,
        1e9,
    )  # gamma, compared with the perceptron
    compared: int = 50  # iterations over which they are
    iterations: int = 20000  # at most
    inseparable_iterations: int = 200


# The methods: theta_{t+1} = theta_t + gamma sum_i w_i z_i with weights w of the margins <z_i, theta_t>


def gradient_descent(margins: Tensor) -> Tensor:
    """LR+GD: w_i = 1 / (n (1 + exp(<z_i, theta>))), the gradient of the mean logistic loss. margins, w: (S, n, G)."""
    return torch.sigmoid(-margins) / margins.shape[1]


def normalised_gradient_descent(margins: Tensor) -> Tensor:
    """Normalized LR+GD: the same weights, divided by their sum."""
    return F.logsigmoid(-margins).softmax(1)


def batch_perceptron(margins: Tensor) -> Tensor:
    """LR+GD for gamma to infinity: w_i = 1/n for every misclassified example; 1/(2n) on the boundary, as at theta_0 = 0."""
    return ((margins < 0).double() + 0.5 * (margins == 0)) / margins.shape[1]


LOGISTIC: dict[str, Callable[[Tensor], Tensor]] = {
    "LR+GD": gradient_descent,
    "Normalized LR+GD": normalised_gradient_descent,
}


def step(theta: Tensor, z: Tensor, gamma: Tensor, weights: Callable[[Tensor], Tensor]) -> Tensor:
    """theta (S, d, G), z (S, n, d), gamma (G,): S data sets, G step sizes."""
    return theta + gamma * (z.mT @ weights(z @ theta))


# Data


def hard(S: int, n: int, setting: Setting, generator: torch.Generator) -> Tensor:
    """n - 1 examples near (1, 0) and one at (-0.9, 0.2), which the many outvote. (S, n, 2)."""
    z = setting.jitter * normal(S, n, 2, generator=generator)
    z[..., 0] += 1
    z[:, -1] = z.new_tensor([-0.9, 0.2])
    return z


def easy(S: int, n: int, setting: Setting, generator: torch.Generator) -> Tensor:
    """Gaussian examples of length about 1, mirrored to the right side of a plane and moved away from it. (S, n, d)."""
    z = normal(S, n, setting.dim, generator=generator) / setting.dim**0.5
    z[..., 0] = z[..., 0].abs() + setting.margin
    return z


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)


def images(setting: Setting, run: Run) -> Tensor:
    """Fashion-MNIST, another pair of classes in every data set, half of the images from each: (pairs, images, 196)."""
    rng, half = run.rng("images"), setting.images // 2
    train, _ = fashion("half", train=40 * half, test=1)
    x, y = train.x.double(), train.y
    every = list(itertools.combinations(range(10), 2))
    z = []
    for k in rng.choice(len(every), setting.pairs, replace=False):
        a, b = (x[y == c] for c in every[k])
        z.append(torch.cat([a[rng.choice(len(a), half)], -b[rng.choice(len(b), half)]]))
    return torch.stack(z).to(run.device)


def contradictory(z: Tensor, repeated: int) -> Tensor:
    """The last examples are replaced by the first ones with the other label, so that nothing separates them."""
    return torch.cat([z[:, : z.shape[1] - repeated], -z[:, :repeated]], 1)


def novikoff(z: Tensor) -> Tensor:
    """R^2 / mu^2 of data sets z (S, n, d): R the longest example, mu the largest margin of a unit vector.

    1 / mu is the length of the shortest w with all <z_i, w> >= 1, found by non-negative least squares (Lawson and Hanson 1974,
    chapter 23).
    """
    bounds = []
    for Z in z.cpu().numpy():
        E = np.vstack([Z.T, np.ones(len(Z))])
        f = np.eye(len(E))[-1]
        residual = E @ nnls(E, f, maxiter=100 * len(Z))[0] - f
        w = -residual[:-1] / residual[-1]
        bounds.append((Z**2).sum(1).max() * (w @ w))
    return torch.tensor(bounds, dtype=torch.float64)


# Measurements


def separate(
    z: Tensor, steps: tuple[float, ...], method: str, iterations: int, name: str, setting: Setting, run: Run
) -> tuple[Tensor, Tensor]:
    """The first t at which theta_t separates the data (inf: not found), and the mean loss of theta_1, theta_2, ...: (S, G) each."""
    S, _, d = z.shape
    gamma = torch.tensor(steps, dtype=torch.float64, device=run.device)
    state: dict[str, Any] = {
        "theta": torch.zeros(S, d, len(steps), dtype=torch.float64, device=run.device),
        "found": torch.full((S, len(steps)), math.inf, dtype=torch.float64, device=run.device),
        "loss": torch.zeros(S, len(steps), dtype=torch.float64, device=run.device),
    }
    for t in run.checkpoint(f"{method}, {name}", iterations, state):
        theta, found = state["theta"], state["found"]
        on = found.isinf().any(0) | (t < setting.start)  # step sizes for which there is still something to do
        if not on.any():
            break
        theta[..., on] = step(theta[..., on], z, gamma[on], LOGISTIC[method])
        margins = z @ theta[..., on]
        new = (margins > 0).all(1) & found[:, on].isinf()
        found[:, on] = torch.where(new, float(t + 1), found[:, on])
        if t < setting.start:
            state["loss"] += F.softplus(-margins).mean(1) / setting.start
    return state["found"], state["loss"]


def distance_from_perceptron(z: Tensor, setting: Setting, run: Run) -> Tensor:
    """The largest ||theta_t / gamma - p_t|| / ||p_t|| on the way, for LR+GD and the batch perceptron p: (S, G)."""
    gamma = torch.tensor(setting.limit_steps, dtype=torch.float64, device=run.device)
    p = torch.zeros(len(z), z.shape[2], 1, dtype=torch.float64, device=run.device)
    theta = p.expand(-1, -1, len(gamma))
    largest = torch.zeros(len(z), len(gamma), dtype=torch.float64, device=run.device)
    for _ in range(setting.compared):
        theta = step(theta, z, gamma, gradient_descent)
        p = step(p, z, torch.ones_like(gamma[:1]), batch_perceptron)
        largest = torch.maximum(largest, (theta / gamma - p).norm(dim=1) / p.norm(dim=1))
    return largest


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()

    def add(method: str, found: Tensor, bound: Tensor, step_size: float, n: int, problem: str) -> None:
        """One step size: found (S,), bound R^2 / mu^2 (S,)."""
        where = {"problem": problem, "step": step_size}
        table.add(method, "iterations to separate", x=n, value=found, **where)
        table.add(method, "iterations / (R/mu)^2", x=n, value=found.cpu() / bound, n=n, **where)
        ends = torch.stack([torch.zeros_like(found), found.clamp(max=setting.iterations)], 1)
        unsolved = torch.stack([torch.ones_like(found), found.isinf().double()], 1)
        table.add(method, "not separated", x=ends, value=unsolved, n=n, **where)

    for problem, draw in (("hard", hard), ("easy", easy)):
        for n in setting.examples:
            z = draw(setting.seeds, n, setting, run.generator(problem, n))
            bound = novikoff(z)
            for method in LOGISTIC:
                name = f"{problem}, n = {n}"
                found, _ = separate(z, setting.large_steps, method, setting.iterations, name, setting, run)
                for g, gamma in enumerate(setting.large_steps):
                    add(method, found[:, g], bound, gamma, n, problem)

    z = images(setting, run)
    bound = novikoff(z)
    for method in LOGISTIC:
        found, loss = separate(z, setting.steps, method, setting.iterations, "images", setting, run)
        for g, gamma in enumerate(setting.steps):
            add(method, found[:, g], bound, gamma, setting.images, "images")
        table.add(method, "loss at the start", x=setting.steps, value=loss, data="separable")
        table.add(method, "iterations, by step size", x=setting.steps, value=found, data="separable")
    nothing_separates = contradictory(z, setting.repeated)
    found, loss = separate(
        nothing_separates, setting.steps, "LR+GD", setting.inseparable_iterations, "both labels", setting, run
    )
    table.add("LR+GD", "loss at the start", x=setting.steps, value=loss, data="both labels")
    table.add("LR+GD", "iterations, by step size", x=setting.steps, value=found, data="both labels")

    for gamma, distance in zip(setting.limit_steps, distance_from_perceptron(z, setting, run).T, strict=True):
        table.add("LR+GD", "distance from the perceptron", x=setting.compared, value=distance, step=gamma)
    return table.frame()
