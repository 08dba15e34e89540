"""AdaGrad Meets Muon: Adaptive Stepsizes for Orthogonal Updates (arXiv 2509.02981): AdaGO.

Rates on a smooth non-convex matrix problem with exact orthogonalisation; comparisons with Muon and Adam on function
regression and on Fashion-MNIST, with Newton-Schulz. Seeds, horizons and step sizes are one batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from atlas import data
from atlas.optim.orthogonal import newton_schulz, polar
from atlas.optim.tuning import best_on_others, chosen
from atlas.problems.matrix import LogRegression, SkewedNoise
from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    rows: int = 16
    columns: int = 12
    measurements: int = 200
    step_constant: float = 0.1  # of the theory's step sizes, so that the shortest run stays near the solution
    noise: float = 1.0  # E||noise||_F^2 = noise^2
    horizons: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    quiet_horizons: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192, 16384)  # without noise
    seeds: int = 8
    width: int = 32  # of the networks
    regression_steps: int = 400
    image_steps: int = 150
    test_images: int = 4000
    batch: int = 64
    compared: int = 12  # seeds of the comparisons
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)  # step sizes tried for every method, times a unit


# The method


@dataclass
class AdaGO:
    """M <- mu M + (1-mu) G;  v^2 <- v^2 + min(||G||, gamma)^2;  W <- W - max(eps, eta min(||G||, gamma)/v) polar(M).

    eta, eps and mu broadcast against the batch dimensions of G. adapt=False holds v at its first value; with
    constant=True the step is eta: Muon.
    """

    eta: Tensor
    mu: Tensor
    eps: Tensor
    gamma: float = 1.0
    v0: float = 0.1
    constant: bool = False
    adapt: bool = True
    orthogonal: Callable[[Tensor], Tensor] = polar

    def start(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """Momentum and v^2 before the first step."""
        return torch.zeros_like(W), torch.full(W.shape[:-2], self.v0**2, dtype=W.dtype, device=W.device)

    def step(
        self, G: Tensor, M: Tensor, v2: Tensor, first: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the step size alpha, the direction polar(M), M and v^2."""
        M = self.mu[..., None, None] * M + (1 - self.mu)[..., None, None] * G
        norm = G.flatten(-2).norm(dim=-1).clamp_max(self.gamma)
        if self.adapt or first:
            v2 = v2 + norm**2
        alpha = (
            self.eta.expand_as(norm)
            if self.constant
            else torch.maximum(self.eps, self.eta * norm / v2.sqrt())
        )
        return alpha, self.orthogonal(M), M, v2


# The rates


def horizon_runs(
    run: Run,
    name: str,
    problem: LogRegression,
    noise: SkewedNoise,
    optimizer: Callable[[Tensor], AdaGO],
    horizons: Tensor,
    generator: torch.Generator | None,
    average: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """A run for each horizon T (H,), all in one batch. Gradient norm (H, S): mean over the run, or its minimum.

    Also the largest |sigma - 1| of the singular values of update/alpha, on a sample of the steps (S,), and the share of
    steps on which the lower clamp eps decides (H, S).
    """
    H, S = len(horizons), len(problem.start)
    W = problem.start.expand(H, *problem.start.shape).clone()
    rule = optimizer(horizons[:, None].expand(H, S))
    M, v2 = rule.start(W)
    total = (
        torch.zeros(H, S, dtype=W.dtype, device=W.device)
        if average
        else torch.full((H, S), torch.inf, dtype=W.dtype, device=W.device)
    )
    clamped, off = torch.zeros_like(total), torch.zeros(S, dtype=W.dtype, device=W.device)
    state = {"run": (W, M, v2, total, clamped, off), "generator": generator}
    for t in run.checkpoint(name, int(horizons[-1]), state):
        W, M, v2, total, clamped, off = state["run"]
        on = int(torch.searchsorted(horizons, t, right=True))  # runs with T <= t have ended
        part = AdaGO(rule.eta[on:], rule.mu[on:], rule.eps[on:], rule.gamma, rule.v0, rule.constant)
        exact = problem.gradient(W[on:])
        norm = exact.flatten(-2).norm(dim=-1)
        total[on:] = total[on:] + norm if average else torch.minimum(total[on:], norm)
        G = exact if generator is None else exact + noise(exact.shape, generator)
        alpha, direction, M[on:], v2[on:] = part.step(G, M[on:], v2[on:])
        clamped[on:] += alpha <= part.eps
        if t % 16 == 0:
            sigma = torch.linalg.svdvals(direction[-1])
            off.copy_(torch.maximum(off, (sigma - 1).abs().amax(-1)))
        W[on:] -= alpha[..., None, None] * direction
    W, M, v2, total, clamped, off = state["run"]
    return total / horizons[:, None] if average else total, off, clamped / horizons[:, None]


def rates(setting: Setting, run: Run, add: Callable[..., None]) -> None:
    generator, shape = run.generator("problem"), (setting.rows, setting.columns)
    problem = LogRegression(setting.seeds, shape, setting.measurements, generator)
    noise = SkewedNoise(setting.seeds, shape, setting.noise, generator)

    def constant(T: Tensor, value: float) -> Tensor:
        return torch.full_like(T, value)

    c = setting.step_constant
    cases = {
        "stochastic": {
            "AdaGO": lambda T: AdaGO(eta=c * T**-0.25, mu=1 - T**-0.5, eps=c * T**-0.75),
            "Muon, fixed step": lambda T: AdaGO(
                constant(T, 0.01), constant(T, 0.9), constant(T, 0.0), constant=True
            ),
        },
        "deterministic": {
            "AdaGO": lambda T: AdaGO(eta=constant(T, c), mu=constant(T, 0.0), eps=c * T**-0.5),
            "Muon, fixed step": lambda T: AdaGO(
                constant(T, 0.01), constant(T, 0.0), constant(T, 0.0), constant=True
            ),
        },
    }
    for case, methods in cases.items():
        steps = setting.horizons if case == "stochastic" else setting.quiet_horizons
        horizons = torch.tensor(steps, dtype=torch.float64, device=run.device)
        for name, optimizer in run.progress(list(methods.items()), case):
            random = run.generator(case, name) if case == "stochastic" else None
            norm, off, clamped = horizon_runs(
                run, f"{case}: {name}", problem, noise, optimizer, horizons, random, case == "stochastic"
            )
            add(name, "gradient norm", x=steps, value=norm.T, case=case)
            if name == "AdaGO":
                add(name, "share of steps at the clamp", x=steps, value=clamped.T, case=case)
                add(name, "deviation of singular values", x=steps[-1], value=off, case=case)
    off = elementwise(problem, noise, min(setting.horizons[-1], 256), run.generator("elementwise"))
    add("elementwise adaptive Muon", "deviation of singular values", x=setting.horizons[-1], value=off, case="stochastic")  # fmt: skip


def elementwise(problem: LogRegression, noise: SkewedNoise, steps: int, generator: torch.Generator) -> Tensor:
    """Largest |sigma - 1| (S,) when polar(M) is divided by the root of its running mean square, rescaled to its norm."""
    W, M = problem.start.clone(), torch.zeros_like(problem.start)
    square, off = torch.zeros_like(W), torch.zeros(len(W), dtype=W.dtype, device=W.device)
    for _ in range(steps):
        M = 0.9 * M + 0.1 * (problem.gradient(W) + noise(W.shape, generator))
        O = polar(M)
        square = 0.95 * square + 0.05 * O**2
        U = O / (square.sqrt() + 1e-8)
        U = U * (O.flatten(-2).norm(dim=-1) / U.flatten(-2).norm(dim=-1))[..., None, None]
        off = torch.maximum(off, (torch.linalg.svdvals(U) - 1).abs().amax(-1))
        W -= 0.01 * U
    return off


# Networks


def forward(parameters: list[Tensor], x: Tensor) -> Tensor:
    """Two hidden tanh layers; parameters W (B, out, in) and b (B, 1, out) alternate, x (B, n, in)."""
    for i in range(0, len(parameters), 2):
        x = x @ parameters[i].mT + parameters[i + 1]
        if i + 2 < len(parameters):
            x = torch.tanh(x)
    return x


def initial(sizes: tuple[int, ...], B: int, generator: torch.Generator, device: torch.device) -> list[Tensor]:
    parameters = []
    for inputs, outputs in itertools.pairwise(sizes):
        W = torch.randn(B, outputs, inputs, generator=generator, device=device) / inputs**0.5
        parameters += [W, torch.zeros(B, 1, outputs, device=device)]
    return parameters


def train(
    run: Run,
    task: str,
    method: str,
    rate: Tensor,
    parameters: list[Tensor],
    loss: Callable[[list[Tensor]], Tensor],
    steps: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """Train B networks, each with its own step size rate (B,). The hidden matrices are the method's; biases and the first
    and last layer are Adam's, at a step of 0.003 for all methods (Adam uses its own rate everywhere)."""
    hidden = [i for i, p in enumerate(parameters) if 0 < i < len(parameters) - 2 and p.shape[-2] > 1]
    kinds = {
        "AdaGO": {"eps": torch.full_like(rate, 1e-4)},
        "AdaGO, v held": {"eps": torch.full_like(rate, 1e-4), "adapt": False},
        "Muon": {"eps": torch.zeros_like(rate), "constant": True},
    }
    rule = AdaGO(
        rate, torch.full_like(rate, 0.95), orthogonal=newton_schulz, **kinds.get(method, kinds["Muon"])
    )  # type: ignore[arg-type]
    parameters = [p.clone().requires_grad_() for p in parameters]
    momenta = [rule.start(p.detach()) for p in parameters]
    first, second = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
    state = {"run": (parameters, momenta, first, second), "batches": generator}
    for t in (step + 1 for step in run.checkpoint(f"{task}: {method}", steps, state)):
        parameters, momenta, first, second = state["run"]
        gradients = torch.autograd.grad(loss(parameters).sum(), parameters)
        with torch.no_grad():
            for i, (p, G) in enumerate(zip(parameters, gradients, strict=True)):
                if i in hidden and method != "Adam":
                    alpha, direction, *momentum = rule.step(G, *momenta[i], first=t == 1)
                    momenta[i] = tuple(momentum)
                    p -= alpha[:, None, None] * direction
                else:
                    first[i].lerp_(G, 0.1)
                    second[i].lerp_(G**2, 0.001)
                    size = rate[:, None, None] if method == "Adam" else 0.003
                    p -= size * (first[i] / (1 - 0.9**t)) / ((second[i] / (1 - 0.999**t)).sqrt() + 1e-8)
    return [p.detach() for p in state["run"][0]]


def regression_task(setting: Setting, S: int, R: int, generator: torch.Generator, device: torch.device):
    """Fit a sum of sines on [-1, 1]^2 with random frequencies, one function per seed, the same for all R
    step sizes. Returns loss and test error of R * S networks, and their sizes."""
    w = 4 * torch.randn(S, 2, 5, generator=generator, device=device)
    phase = 6.28 * torch.rand(S, 1, 5, generator=generator, device=device)

    def points(n: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(S, n, 2, generator=generator, device=device) * 2 - 1
        y = torch.sin(x @ w + phase).mean(-1, keepdim=True)
        return x.repeat(R, 1, 1), y.repeat(R, 1, 1)

    x_test, y_test = points(1000)

    def loss(parameters: list[Tensor]) -> Tensor:
        x, y = points(setting.batch)
        return (forward(parameters, x) - y).square().mean((1, 2))

    return (
        loss,
        lambda p: (forward(p, x_test) - y_test).square().mean((1, 2)),
        (2, setting.width, setting.width, 1),
    )


def image_task(setting: Setting, S: int, R: int, generator: torch.Generator, device: torch.device):
    """Classify Fashion-MNIST at half resolution."""
    sets = []
    for split, most in (("train", None), ("test", setting.test_images)):
        x, y = (array[:most] for array in data.images("fashion_mnist", split))
        x = torch.as_tensor(x, device=device).reshape(-1, 1, 28, 28)
        sets.append(
            (
                torch.nn.functional.avg_pool2d(x, 2).reshape(len(x), -1) - 0.3,
                torch.as_tensor(y, device=device),
            )
        )
    (x, y), (x_test, y_test) = sets

    def loss(parameters: list[Tensor]) -> Tensor:
        i = torch.randint(len(x), (S, setting.batch), generator=generator, device=device).repeat(R, 1)
        return cross_entropy(forward(parameters, x[i]), y[i])

    def test(parameters: list[Tensor]) -> Tensor:
        return cross_entropy(forward(parameters, x_test.expand(R * S, -1, -1)), y_test.expand(R * S, -1))

    return loss, test, (x.shape[1], setting.width, setting.width, 10)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over (B, n, classes) -> (B,)."""
    return torch.nn.functional.cross_entropy(logits.mT, y, reduction="none").mean(1)


def comparisons(setting: Setting, run: Run, add: Callable[..., None]) -> None:
    """Test loss of every method; the step size of each seed is the best one on all the other seeds."""
    unit = {"AdaGO": 1.0, "AdaGO, v held": 1.0, "Muon": 0.1, "Adam": 0.03}
    S, grid = setting.compared, torch.tensor(setting.rates, device=run.device)
    tasks = {
        "function regression": (regression_task, setting.regression_steps),
        "Fashion-MNIST": (image_task, setting.image_steps),
    }
    for task, (make, steps) in tasks.items():
        for method in run.progress(list(unit), task):
            rate = grid.repeat_interleave(S) * unit[method]
            generator = run.generator(task)  # the same tasks, starts and batches for every method
            loss, test, sizes = make(setting, S, len(grid), generator, run.device)
            start = [p.repeat(len(grid), 1, 1) for p in initial(sizes, S, generator, run.device)]
            losses = test(train(run, task, method, rate, start, loss, steps, generator)).reshape(-1, S)
            best = best_on_others(losses)
            add(method, "test loss", x=steps, value=chosen(losses, best), case=task)
            add(method, "step size chosen", x=steps, value=grid[best] * unit[method], case=task)


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    rates(setting, run, table.add)
    comparisons(setting, run, table.add)
    return table.frame()
