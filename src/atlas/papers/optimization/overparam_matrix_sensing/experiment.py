"""How Over-Parameterization Slows Down Gradient Descent in Matrix Sensing (arXiv 2310.01769).

Gradient descent on X X^T and on F G^T with as many columns as the rank of the matrix and with more, for four scales of the random
start; and the method that changes one step. Scales, seeds and ranks are one batch: with zero columns X has a smaller rank, for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    n: int = 16  # M* is n x n
    rank: int = 2  # r, of M*, whose other singular values are 1
    columns: int = 4  # k > r
    measurements: int = 1280  # m of the Gaussian operator
    seeds: int = 12
    alphas: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)  # scale of the start
    eta: float = 0.25
    horizon: int = 10000  # T of the symmetric runs
    time: float = 24.0  # eta alpha^2 T of the asymmetric runs
    points: int = 50  # of a curve
    # the method with one changed step, and k = r
    steps: int = 240
    beta: float = 1.0  # about the square root of the largest singular value
    close: float = 0.1  # the step is changed when ||F G^T - M*|| <= close ||M*||


# The methods. F, G, X: (..., n, k); R = A*A(F G^T - M*): (..., n, n)


def symmetric_step(X: Tensor, R: Tensor, eta: float) -> Tensor:
    """X <- X - eta R X for X X^T; the measurement matrices are symmetric, so R is."""
    return X - eta * (R + R.mT) / 2 @ X


def asymmetric_step(F: Tensor, G: Tensor, R: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """F <- F - eta R G, G <- G - eta R^T F."""
    return F - eta * R @ G, G - eta * R.mT @ F


def imbalance_step(F: Tensor, G: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The changed step: F = U S V^T, then F <- beta U, G <- G V S / beta. The product F G^T stays."""
    U, S, Vh = torch.linalg.svd(F, full_matrices=False)
    return beta * U, G @ Vh.mT * S.unsqueeze(-2) / beta


def balance_step(F: Tensor, G: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Its opposite: F G^T = U S V^T, then F <- U S^(1/2), G <- V S^(1/2), so that F^T F = G^T G. The product stays."""
    k = F.shape[-1]
    U, S, Vh = torch.linalg.svd(F @ G.mT)
    root = S[..., None, :k].sqrt()
    return U[..., :k] * root, Vh.mT[..., :k] * root


# The problem


@dataclass(frozen=True)
class Problem:
    """M* = U U^T with r orthonormal columns, (S, n, n), and A*A: the identity, or of m Gaussian matrices A_i, as a matrix on R^(n n).

    A*A(E) = (1/m) sum_i <A_i, E> A_i, gram (S, n^2, n^2).
    """

    M: Tensor
    gram: Tensor | None

    def normal_operator(self, E: Tensor) -> Tensor:
        """(C, S, n, n) -> (C, S, n, n)."""
        if self.gram is None:
            return E
        return (self.gram @ E.flatten(-2).permute(1, 2, 0)).permute(2, 0, 1).reshape(E.shape)


def draw(setting: Setting, gaussian: bool, run: Run) -> Problem:
    n, S, m = setting.n, setting.seeds, setting.measurements
    generator = run.generator("problem")
    like: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": run.device}
    U = torch.linalg.qr(torch.randn(S, n, setting.rank, **like)).Q
    gram = None
    if gaussian:
        gram = torch.empty(S, n * n, n * n, dtype=torch.float64, device=run.device)
        for s in range(S):  # m n^2 numbers at once are enough
            A = torch.randn(m, n * n, **like)
            gram[s] = A.mT @ A / m
    return Problem(U @ U.mT, gram)


def start(setting: Setting, columns: int, run: Run) -> tuple[Tensor, Tensor]:
    """F_0 = alpha N, G_0 = (alpha/3) N', entries of N and N' independent N(0, 1/n), the first `columns` of them: (alphas, S, n, k)."""
    shape = 2, setting.seeds, setting.n, setting.columns
    N = torch.randn(shape, generator=run.generator("start"), dtype=torch.float64, device=run.device)
    N[..., columns:] = 0
    alpha = torch.tensor(setting.alphas, dtype=torch.float64, device=run.device).view(-1, 1, 1, 1)
    return alpha * N[0] / setting.n**0.5, alpha / 3 * N[1] / setting.n**0.5


def descend(
    problem: Problem, F: Tensor, G: Tensor | None, grid: Tensor, setting: Setting, name: str, run: Run,
    change: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]] | None = None,
) -> Tensor:  # fmt: skip
    """||F_T G_T^T - M*||_F^2 at the steps T = grid (C, X): (C, S, X). Without G: the symmetric method from X_0 = F.

    `change` is made once in every run, before the first step at which the product is close.
    """
    symmetric = G is None
    errors = torch.full((*F.shape[:2], grid.shape[1]), torch.nan, dtype=F.dtype, device=run.device)
    done = torch.full(F.shape[:2], change is None, device=run.device)
    state: dict[str, Any] = {"F": F, "G": F if G is None else G, "errors": errors, "done": done}
    close = setting.close**2 * setting.rank
    for t in run.checkpoint(name, int(grid.max()) + 1, state):
        F, G = state["F"], state["G"]
        E = F @ G.mT - problem.M
        error = E.square().sum((-2, -1))
        c, x = torch.nonzero(grid == t, as_tuple=True)
        state["errors"][c, :, x] = error[c]
        if change is not None and not state["done"].all():
            now = (error <= close) & ~state["done"]
            if now.any():
                pairs = zip(change(F, G, setting.beta), (F, G), strict=True)
                F, G = (torch.where(now[..., None, None], new, old) for new, old in pairs)
                state["done"] |= now
        R = problem.normal_operator(E)
        if symmetric:
            state["F"] = state["G"] = symmetric_step(F, R, setting.eta)
        else:
            state["F"], state["G"] = asymmetric_step(F, G, R, setting.eta)
    return state["errors"]


def decay_rate(T: Tensor, errors: Tensor, floor: float = 1e-24) -> Tensor:
    """-slope of log(error) on T over the later half of what is above the floor. T (X,), errors (S, X) -> (S,)."""
    count = (errors > floor).int().cumprod(-1).sum(-1, keepdim=True)
    place = torch.arange(len(T), device=T.device)
    w = ((place >= count // 2) & (place < count)).to(errors.dtype)
    w = w / w.sum(-1, keepdim=True)
    v = errors.clamp_min(floor).log()
    from_mean = T - (w * T).sum(-1, keepdim=True)
    return -(w * from_mean * v).sum(-1) / (w * from_mean.square()).sum(-1)


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    r, k, eta = setting.rank, setting.columns, setting.eta
    alphas = torch.tensor(setting.alphas, dtype=torch.float64, device=run.device)
    unit = eta * alphas.square().unsqueeze(-1)
    grid = torch.linspace(0, setting.time, setting.points + 1, dtype=torch.float64, device=run.device)
    scaled = (grid / unit).round().long()  # (alphas, X)
    powers = torch.logspace(0, 1, setting.points, base=setting.horizon, device=run.device).round().long().unique()  # fmt: skip
    both = torch.cat([scaled, powers.expand(len(alphas), -1)], 1)
    linear = torch.linspace(0, setting.steps, setting.points, device=run.device).round().long()
    short = linear.expand(len(alphas), -1)

    for operator in ("identity", "Gaussian"):
        problem = draw(setting, operator == "Gaussian", run)
        F, G = start(setting, k, run)
        F_r, G_r = start(setting, r, run)

        def curves(F: Tensor, G: Tensor | None, grid: Tensor, name: str, change: Any = None) -> Tensor:
            return descend(problem, F, G, grid, setting, f"{name}, {operator}", run, change)

        symmetric, asymmetric = curves(F, None, both, "symmetric"), curves(F, G, scaled, "asymmetric")
        same_time = {"symmetric": symmetric[..., : scaled.shape[1]], "asymmetric": asymmetric}
        brief = {
            "symmetric, k = r": curves(F_r, None, short, "symmetric, k = r"),
            "asymmetric, k = r": curves(F_r, G_r, short, "asymmetric, k = r"),
            "one step: imbalance": curves(F, G, short, "imbalance", imbalance_step),
            "one step: balance": curves(F, G, short, "balance", balance_step),
        }
        for i, alpha in enumerate(setting.alphas):
            where = {"operator": operator, "alpha": alpha}
            table.add(
                "symmetric", "squared error", x=powers, value=symmetric[i, :, scaled.shape[1] :], **where
            )
            for method, errors in brief.items():
                table.add(method, "squared error", x=linear, value=errors[i], **where)
            for method, errors in same_time.items():
                x = scaled[i] * unit[i]
                table.add(method, "squared error in scaled time", x=x, value=errors[i], **where)
        rates = {method: (short, errors) for method, errors in brief.items()}
        rates["asymmetric"] = scaled, asymmetric
        for method, (T, errors) in rates.items():
            rate = torch.stack([decay_rate(t.double(), e) for t, e in zip(T, errors, strict=True)], 1)
            table.add(method, "decay rate per step", x=alphas, value=rate, operator=operator)
    return table.frame()
