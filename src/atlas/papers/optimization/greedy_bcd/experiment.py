"""Let's Make Block Coordinate Descent Converge Faster (arXiv 1712.08859): greedy rules, message passing, Newton on the active set.

Three parts: how a block is chosen (least squares), huge blocks that are forests (label propagation on a lattice), and Newton
updates of problems whose solution is sparse (L1 penalty). Problems are a batch; x is (S, d), a block holds indices (S, size).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.sparse.linalg import spsolve
from torch import Tensor
from torch.nn import functional as F

from atlas.measurements import Recorder
from atlas.problems.regression import LeastSquares, LinearModel, Logistic
from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    # choosing a block
    seeds: int = 8  # problems
    rows: int = 100
    columns: int = 300
    sizes: tuple[int, ...] = (5, 50)  # of blocks; each a divisor of the next and of `columns`
    iterations: int = 100
    # message passing
    lattices: int = 6
    side: int = 40
    labelled: int = 100
    block: int = 50  # of the greedy rule
    lattice_iterations: int = 3000
    target: float = 1e-6  # part of the gap at the start
    # L1 penalty
    sparse_seeds: int = 80
    sparse_rows: int = 100
    sparse_columns: int = 200
    penalty: float = 0.15  # part of the least one at which the solution is zero
    large: int = 50  # block that holds the support
    small: int = 5  # one that does not
    sparse_iterations: int = 30


# Choosing a block


def chosen_fixed(rule: str, g: Tensor, blocks: Tensor, H: Tensor) -> Tensor:
    """The best of B given blocks (S, B, size) by a rule for its score; H (S, B, size, size) are their Hessians.

    GS: ||g_b||^2; GSL: ||g_b||^2 / L_b; GSQ: g_b^T H_b^-1 g_b, with L_b the largest eigenvalue of H_b.
    """
    gb = g.gather(1, blocks.flatten(1)).view(blocks.shape)
    if rule == "GSQ":
        score = (gb * torch.linalg.solve(H, gb)).sum(-1)
    else:
        score = gb.square().sum(-1)
        if rule == "GSL":
            score = score / largest_eigenvalue(H)
    return blocks[torch.arange(len(g), device=g.device), score.argmax(1)]


def chosen_variable(rule: str, g: Tensor, size: int, L: Tensor) -> Tensor:
    """The coordinates of the largest |g_i| (GS) or |g_i| / sqrt(L_i) (GSD); L (S, d) is the Hessian's diagonal."""
    score = g.abs() if rule == "GS" else g.abs() / L.sqrt()
    return score.topk(size, 1).indices


def largest_eigenvalue(H: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(H)[..., -1]


def updated(x: Tensor, g: Tensor, block: Tensor, H: Tensor, update: str) -> Tensor:
    """x_b <- x_b - g_b / L_b (gradient) or x_b - H_b^-1 g_b (matrix). H: (S, size, size)."""
    gb = g.gather(1, block)
    step = torch.linalg.solve(H, gb) if update == "matrix" else gb / largest_eigenvalue(H).unsqueeze(1)
    return x.scatter_add(1, block, -step)


def regression(S: int, rows: int, columns: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The paper's sparse data with columns of very different lengths: A (S, rows, columns) and b = A w + noise (S, rows)."""
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": generator.device}
    A = (1 + torch.randn(S, rows, columns, **options)) * 10 * torch.randn(S, 1, columns, **options)
    A = A * (torch.rand(S, rows, columns, **options) < 10 * math.log(rows) / rows)
    w = torch.randn(S, columns, **options) * (torch.rand(S, columns, **options) < 0.1)
    return A, torch.einsum("snd,sd->sn", A, w) + noise * torch.randn(S, rows, **options)


def orthonormal(S: int, rows: int, columns: int, size: int, generator: torch.Generator) -> Tensor:
    """Columns of length 1, orthogonal within every block of `size` neighbours: with them all rules are the same."""
    A = torch.randn(S, rows, columns, generator=generator, dtype=torch.float64, device=generator.device)
    return torch.cat([torch.linalg.qr(part).Q for part in A.split(size, -1)], -1)


SETUPS = (  # partition, new rule, update
    ("fixed", "GSL", "gradient"),
    ("fixed", "GSQ", "matrix"),
    ("variable", "GSD", "gradient"),
    ("variable", "GSD", "matrix"),
)


def rules(setting: Setting, run: Run, table: Recorder) -> None:
    """log10 of the objective over that at the start; its minimum is 0, as there are more columns than rows."""
    shape, generator = (setting.seeds, setting.rows, setting.columns), run.generator("least squares")
    A, b = regression(*shape, 1.0, generator)
    problems = {
        "different": LeastSquares(A, b),
        "orthonormal": LeastSquares(orthonormal(*shape, max(setting.sizes), generator), b),
    }
    for columns, f in problems.items():
        L = f.coordinate_bounds()
        order = L.argsort(1) if columns == "different" else torch.arange(L.shape[1], device=L.device).expand(L.shape)  # fmt: skip
        x0 = torch.zeros_like(L)
        for size in setting.sizes:
            blocks = order.reshape(len(L), -1, size)
            H = torch.stack([f.hessian_bound(block) for block in blocks.unbind(1)], 1)
            for partition, new, update in SETUPS:
                setup = f"{new}, {size} {partition}, {update}"
                for method, rule in (("GS", "GS"), ("new rule", new)):
                    state: dict[str, Any] = {"x": x0}
                    for _ in run.checkpoint(f"{method}, {setup}, {columns}", setting.iterations, state):
                        x = state["x"]
                        g = f.gradient(x)
                        fixed = partition == "fixed"
                        block = (
                            chosen_fixed(rule, g, blocks, H) if fixed else chosen_variable(rule, g, size, L)
                        )
                        state["x"] = updated(x, g, block, f.hessian_bound(block), update)
                    gap = (f.loss(state["x"]) / f.loss(x0)).log10()
                    where = {"setup": setup, "columns": columns}
                    table.add(method, "log10 of the objective", x=setting.iterations, value=gap, **where)


# Message passing


@dataclass(frozen=True)
class Lattice:
    """Label propagation: minimise sum over edges (x_i - x_j)^2 / 2 over the nodes without a label.

    neighbours: (n, 4), n where there is none; degree (n,); start (S, n): the labels, 0 elsewhere; free (S, n): no label.
    """

    neighbours: Tensor
    degree: Tensor
    start: Tensor
    free: Tensor

    def gradient(self, x: Tensor) -> Tensor:
        """(S, n), 0 where there is a label."""
        around = F.pad(x, (0, 1))[:, self.neighbours].sum(-1)
        return (self.degree * x - around) * self.free

    def solution(self) -> Tensor:
        """By a direct sparse solver."""
        n = len(self.degree)
        i = torch.arange(n).repeat_interleave(4).numpy()
        j = self.neighbours.cpu().flatten().numpy()
        W = sparse.coo_matrix((np.ones(int(np.sum(j < n))), (i[j < n], j[j < n])), (n, n)).tocsr()
        laplacian = sparse.diags(self.degree.cpu().numpy()) - W
        x = self.start.cpu().numpy().copy()
        for row, free in zip(x, self.free.cpu().numpy(), strict=True):
            row[free] = spsolve(laplacian[free][:, free].tocsc(), -(laplacian @ row)[free])
        return torch.from_numpy(x).to(self.start.device)


def lattice(S: int, side: int, labelled: int, rng: np.random.Generator, device: torch.device) -> Lattice:
    """side x side nodes, of which some have a label from N(0, 100)."""
    n = side * side
    index = np.pad(np.arange(n).reshape(side, side), 1, constant_values=n)
    around = (index[:-2, 1:-1], index[2:, 1:-1], index[1:-1, :-2], index[1:-1, 2:])
    neighbours = np.stack([v.ravel() for v in around], 1)
    start, free = np.zeros((S, n)), np.ones((S, n), bool)
    for labels, unknown in zip(start, free, strict=True):
        known = rng.choice(n, labelled, replace=False)
        labels[known], unknown[known] = 10 * rng.standard_normal(labelled), False
    to = lambda v: torch.from_numpy(v).to(device)
    return Lattice(to(neighbours), to((neighbours < n).sum(1).astype(float)), to(start), to(free))


def message_passing(problem: Lattice, forest: Tensor, g: Tensor) -> Tensor:
    """The exact update d of the nodes in `forest` (S, n): H_bb d_b = -g_b, and d = 0 elsewhere. g, d: (S, n).

    Gaussian elimination from the leaves of the trees to their roots and back, without fill-in: linear in the number of nodes.
    In each round all leaves of all problems send their message. Node n is no node: the parent of a root.
    """
    S, n = g.shape
    at = problem.neighbours + (n + 1) * torch.arange(S, device=g.device).view(-1, 1, 1)
    at = F.pad(at, (0, 0, 0, 1), value=n).view(-1, 4)
    left = F.pad(forest, (0, 1)).flatten()  # not yet eliminated
    degree = left[at].sum(1)  # neighbours that are left
    diagonal = F.pad(problem.degree, (0, 1)).repeat(S)
    right = F.pad(-g, (0, 1)).flatten()
    leaves = torch.nonzero(left & (degree <= 1)).flatten()
    rounds = []
    while len(leaves):
        around = at[leaves]
        parent = torch.where(left[around], around, -1).amax(1)
        parent = torch.where(parent < 0, n, parent)
        pair = (
            left[parent] & (degree[parent] == 1) & (parent < leaves)
        )  # two that are left: the second is the root
        leaves, parent = leaves[~pair], parent[~pair]
        left[leaves] = False
        right.index_add_(0, parent, right[leaves] / diagonal[leaves])
        diagonal.index_add_(0, parent, -1 / diagonal[leaves])
        degree.index_add_(0, parent, -torch.ones_like(parent))
        rounds.append((leaves, parent))
        leaves = parent.unique()
        leaves = leaves[left[leaves] & (degree[leaves] <= 1)]
    d = torch.zeros_like(right)
    for leaves, parent in reversed(rounds):
        d[leaves] = (right[leaves] + d[parent]) / diagonal[leaves]
    return d.view(S, n + 1)[:, :n]


def greedy_forest(order: Tensor, problem: Lattice) -> Tensor:
    """Free nodes in the given order (S, n), each unless it closes a cycle with those before it. (S, n) of bool."""
    n = order.shape[1]
    around = [[j for j in row if j < n] for row in problem.neighbours.tolist()]
    forest = torch.zeros(order.shape, dtype=torch.bool)
    for nodes, free, inside in zip(order.tolist(), problem.free.tolist(), forest, strict=True):
        above = [-1] * n  # a node of the same tree, itself at the top of the tree; -1 outside the forest
        for i in nodes:
            if not free[i]:
                continue
            tops = []
            for j in around[i]:
                if above[j] >= 0:
                    while above[j] != j:
                        above[j] = j = above[above[j]]
                    tops.append(j)
            if len(set(tops)) == len(tops):
                above[i] = i
                for top in tops:
                    above[top] = i
        inside[:] = torch.tensor(above) >= 0
    return forest.to(order.device)


def two_forests(kind: Literal["combs", "red-black"], side: int) -> Tensor:
    """All nodes in two blocks: two combs that mesh, or the colours of a chessboard. (2, n) of bool."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    comb = (row == 0) | ((column % 2 == 0) & (row < side - 1))
    first = comb if kind == "combs" else (row + column) % 2 == 0
    return torch.stack([first, ~first]).flatten(1)


def propagation(setting: Setting, run: Run, table: Recorder) -> None:
    """Gap / gap at the start with huge blocks that are forests, with small greedy blocks, and with huge random ones."""
    problem = lattice(setting.lattices, setting.side, setting.labelled, run.rng("lattice"), run.device)
    S, n = problem.start.shape
    solution, generator = problem.solution(), run.generator("blocks")
    laplacian = torch.zeros(n + 1, n + 1, dtype=torch.float64, device=run.device)
    laplacian[torch.arange(n, device=run.device).unsqueeze(1), problem.neighbours] = -1
    laplacian = laplacian[:n, :n] + problem.degree.diag()

    def gap(x: Tensor) -> Tensor:
        return ((x - solution) * problem.gradient(x)).sum(1) / 2

    def forest(choose: Callable[[int, Tensor], Tensor]) -> Callable[[int, Tensor], Tensor]:
        return lambda t, g: message_passing(problem, choose(t, g), g)

    def alternate(kind: Literal["combs", "red-black"]) -> Callable[[int, Tensor], Tensor]:
        blocks = two_forests(kind, setting.side).to(run.device)
        return lambda t, g: blocks[t % 2] & problem.free

    def small_block(t: int, g: Tensor) -> Tensor:
        block = chosen_variable("GS", g, setting.block, problem.degree)
        H = laplacian[block.unsqueeze(2), block.unsqueeze(1)]
        return updated(torch.zeros_like(g), g, block, H, "matrix")

    def random_gradient(t: int, g: Tensor) -> Tensor:
        """As many nodes as a greedy forest has, about five of eight, with a step of 1/8: no eigenvalue exceeds 8."""
        return -g / 8 * (torch.rand(S, n, generator=generator, device=run.device) < 5 / 8)

    updates = {
        "combs": forest(alternate("combs")),
        "red-black": forest(alternate("red-black")),
        "greedy forest": forest(lambda t, g: greedy_forest(g.abs().argsort(1, descending=True), problem)),
        "random nodes, gradient": random_gradient,
        "small block": small_block,
    }
    for name, update in updates.items():
        state: dict[str, Any] = {"x": problem.start, "generator": generator, "gaps": [gap(problem.start)]}
        for t in run.checkpoint(name, setting.lattice_iterations, state):
            if (state["gaps"][-1] < setting.target * state["gaps"][0]).all():
                break
            x = state["x"]
            state["x"] = x + update(t, problem.gradient(x))
            state["gaps"].append(gap(state["x"]))
        gaps = torch.stack(state["gaps"], 1)
        T = gaps.shape[1] - 1
        steps = np.unique([0, *np.geomspace(1, T, 100).round().astype(int)])
        share = (gaps / gaps[:, :1])[:, steps]
        for kind in list(updates)[:-1] if name == "small block" else [name]:
            method = "small block" if name == "small block" else "huge block"
            table.add(method, "gap / gap at the start", x=steps, value=share, huge=kind)


# L1 penalty


@dataclass(frozen=True)
class Sparse:
    """F(x) = f(x) + penalty sum_i x_i over x >= 0, an L1 penalty where signs are known. penalty: (S, 1)."""

    f: LinearModel
    penalty: Tensor

    def objective(self, x: Tensor) -> Tensor:
        return self.f.loss(x) + self.penalty[:, 0] * x.sum(1)

    def gradient(self, x: Tensor) -> Tensor:
        return self.f.gradient(x) + self.penalty

    def error(self, x: Tensor) -> Tensor:
        """The largest violation of the optimality conditions, as a part of the penalty: (S,)."""
        g = self.gradient(x) / self.penalty
        return torch.where(x > 0, g.abs(), -g).amax(1)


def most_progress(x: Tensor, g: Tensor, size: int, L: Tensor) -> Tensor:
    """The coordinates whose own bound g_i d + L_i d^2 / 2, x_i + d >= 0, falls most: the greedy rule with a penalty.

    Many do not fall at all; among them those that are not 0 come first.
    """
    d = torch.maximum(-g / L, -x)
    score = g * d + L / 2 * d.square()
    score = torch.where(x > 0, score - 1e-300, score)
    return score.topk(size, 1, largest=False).indices


def projected_gradient(problem: Sparse, x: Tensor, g: Tensor, block: Tensor) -> Tensor:
    """x_b <- max(0, x_b - g_b / L_b)."""
    xb, gb = x.gather(1, block), g.gather(1, block)
    step = gb / largest_eigenvalue(problem.f.hessian_bound(block)).unsqueeze(1)
    return x.scatter(1, block, (xb - step).clamp_min(0))


def two_metric_projection(problem: Sparse, x: Tensor, g: Tensor, block: Tensor) -> Tensor:
    """x_b <- max(0, x_b - alpha D g_b), alpha by halving: D is the inverse Hessian of the coordinates that may move.

    Those at 0 (or as near as the length of a projected gradient step) with g_i > 0 are held by the constraint; they get a
    diagonal D. Bertsekas 1982.
    """
    xb, gb = x.gather(1, block), g.gather(1, block)
    H = problem.f.hessian(x, block)
    diagonal = H.diagonal(dim1=1, dim2=2)
    near = (xb - (xb - gb / diagonal).clamp_min(0)).norm(dim=1, keepdim=True).clamp_max(1e-4)
    held = (xb <= near) & (gb > 0)
    H = torch.where(held.unsqueeze(1) | held.unsqueeze(2), 0.0, H)
    H = torch.diagonal_scatter(H, (1 + 1e-14) * diagonal, dim1=1, dim2=2)
    step = torch.linalg.solve(H, gb)
    alpha, before = torch.ones_like(near), problem.objective(x)
    for _ in range(30):
        new = (xb - alpha * step).clamp_min(0)
        x_new = x.scatter(1, block, new)
        enough = before + 1e-4 * (gb * (new - xb)).sum(1) + 1e-15 * before.abs()
        short = problem.objective(x_new) > enough
        if not short.any():
            break
        alpha = torch.where(short.unsqueeze(1), alpha / 2, alpha)
    return x_new


def sparse_solutions(setting: Setting, run: Run, table: Recorder) -> None:
    """How far the iterates are from the optimum, and after the last change of the support."""
    S = setting.sparse_seeds
    shape = (S, setting.sparse_rows, setting.sparse_columns)
    for loss in ("logistic", "least squares"):
        generator = run.generator(loss)
        if loss == "logistic":
            A, t = regression(*shape, 0.0, generator)
            flip = torch.rand(t.shape, generator=generator, device=run.device) < 0.1
            f: LinearModel = Logistic(A, torch.where(flip, -t.sign(), t.sign()))
        else:
            f = LeastSquares(*regression(*shape, 1.0, generator))
        x0 = torch.zeros_like(f.A[:, 0])
        problem = Sparse(f, setting.penalty * -f.gradient(x0).amin(1, keepdim=True))
        L = f.coordinate_bounds()

        def follow(name: str, update: Callable[..., Tensor], size: int, iterations: int) -> Tensor:
            """(iterations + 1, S, d)."""
            state: dict[str, Any] = {"path": [x0]}
            for _ in run.checkpoint(f"{loss}, {name}", iterations, state):
                x = state["path"][-1]
                g = problem.gradient(x)
                state["path"].append(update(problem, x, g, most_progress(x, g, size, L)))
            return torch.stack(state["path"])

        optimum = follow("optimum", two_metric_projection, 2 * setting.large, 2 * setting.sparse_iterations)[
            -1
        ]
        table.add("reference", "violation of optimality", x=0, value=problem.error(optimum), loss=loss)
        table.add("reference", "size of the support", x=0, value=(optimum > 0).sum(1), loss=loss)
        for method, update, size in (
            ("Newton, large block", two_metric_projection, setting.large),
            ("Newton, small block", two_metric_projection, setting.small),
            ("gradient, large block", projected_gradient, setting.large),
        ):
            path = follow(method, update, size, setting.sparse_iterations)
            distance = (path - optimum).norm(dim=2) / optimum.norm(dim=1)
            wrong = ((path > 0) != (optimum > 0)).any(2)
            table.add(
                method, "distance from the optimum", x=np.arange(len(path)), value=distance.T, loss=loss
            )
            found = torch.where(wrong.any(0), len(wrong) - wrong.flip(0).int().argmax(0), 0)
            table.add(method, "iterations to the support", x=len(path) - 1, value=found, loss=loss)
            table.add(method, "distance at the end", x=len(path) - 1, value=distance[-1], loss=loss)


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    table = run.table()
    for part in (rules, propagation, sparse_solutions):
        part(setting, run, table)
    return table.frame()
