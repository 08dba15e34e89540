from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.linear_model import Lasso

from atlas.papers.optimization.greedy_bcd import experiment as e
from atlas.problems.regression import LeastSquares, LinearModel, Logistic

CPU = torch.device("cpu")


def regression(S: int = 3, rows: int = 20, columns: int = 12) -> LeastSquares:
    return LeastSquares(*e.regression(S, rows, columns, 1.0, torch.Generator().manual_seed(0)))


def lattice(side: int = 7) -> e.Lattice:
    return e.lattice(3, side, 5, np.random.default_rng(0), CPU)


def matrix(problem: e.Lattice) -> torch.Tensor:
    """The Laplacian (n, n), from the rule that neighbours differ by one row or one column."""
    n = len(problem.degree)
    row, column = np.divmod(np.arange(n), round(n**0.5))
    apart = np.abs(row[:, None] - row) + np.abs(column[:, None] - column)
    W = (apart == 1).astype(float)
    return torch.from_numpy(np.diag(W.sum(1)) - W)


def trees(forest: torch.Tensor, H: torch.Tensor) -> tuple[int, int, int]:
    """Nodes, edges and components of the graph on a set of nodes (n,)."""
    A = coo_matrix(np.triu(H[forest][:, forest].numpy(), 1))
    return int(forest.sum()), A.nnz, int(connected_components(A, directed=False)[0])


# Choosing a block


def test_gsq_picks_the_block_whose_exact_minimum_is_lowest() -> None:
    f = regression()
    x, every = torch.zeros(3, 12, dtype=torch.float64), torch.arange(12).view(1, 4, 3).expand(3, -1, -1)
    H = torch.stack([f.hessian_bound(block) for block in every.unbind(1)], 1)
    found = e.chosen_fixed("GSQ", f.gradient(x), every, H)
    for A, b, block in zip(f.A.numpy(), f.b.numpy(), found, strict=True):
        residuals = [np.linalg.lstsq(A[:, c], b, rcond=None)[1][0] for c in every[0].numpy()]
        assert block.tolist() == every[0, int(np.argmin(residuals))].tolist()


def test_gs_gsl_and_gsd_by_hand() -> None:
    g = torch.tensor([[3.0, 0.0, 2.0, 2.0]])
    blocks = torch.tensor([[[0, 1], [2, 3]]])
    H = torch.stack([torch.diag(torch.tensor([4.0, 1.0])), torch.eye(2)]).unsqueeze(0)
    assert e.chosen_fixed("GS", g, blocks, H).tolist() == [[0, 1]]  # 9 > 8
    assert e.chosen_fixed("GSL", g, blocks, H).tolist() == [[2, 3]]  # 9/4 < 8
    L = torch.tensor([[4.0, 1.0, 1.0, 4.0]])
    assert e.chosen_variable("GS", g, 1, L).tolist() == [[0]]
    assert e.chosen_variable("GSD", g, 1, L).tolist() == [[2]]  # 3/2 < 2


def test_matrix_update_is_the_minimum_over_the_block_and_gradient_update_lowers_the_loss() -> None:
    f = regression()
    x, block = torch.ones(3, 12, dtype=torch.float64), torch.tensor([[1, 5, 7], [0, 2, 11], [3, 4, 5]])
    g, H = f.gradient(x), f.hessian_bound(block)
    best = e.updated(x, g, block, H, "matrix")
    for s in range(3):
        A, c = f.A[s].numpy(), block[s].numpy()
        target = f.b[s].numpy() - np.delete(A, c, 1).sum(1)
        assert best[s, c].numpy() == pytest.approx(np.linalg.lstsq(A[:, c], target, rcond=None)[0])
        assert np.delete(best[s].numpy(), c).tolist() == [1] * 9
        L = np.linalg.norm(A[:, c], 2) ** 2 / len(A)
        step = e.updated(x, g, block, H, "gradient")[s, c]
        assert step.numpy() == pytest.approx(1 - g[s, c].numpy() / L)


def test_with_orthonormal_blocks_all_rules_agree() -> None:
    A = e.orthonormal(2, 10, 20, 5, torch.Generator().manual_seed(0))
    f = LeastSquares(A, torch.randn(2, 10, generator=torch.Generator().manual_seed(1)).double())
    g, blocks = f.gradient(torch.zeros(2, 20).double()), torch.arange(20).view(1, 4, 5).expand(2, -1, -1)
    H = torch.stack([f.hessian_bound(block) for block in blocks.unbind(1)], 1)
    torch.testing.assert_close(H, torch.eye(5).double().expand(H.shape) / 10)
    one, two, three = (e.chosen_fixed(rule, g, blocks, H).tolist() for rule in ("GS", "GSL", "GSQ"))
    assert one == two == three


def test_more_columns_than_rows_have_minimum_zero() -> None:
    f = regression(rows=15, columns=40)
    for A, b in zip(f.A.numpy(), f.b.numpy(), strict=True):
        assert np.abs(A @ np.linalg.lstsq(A, b, rcond=None)[0] - b).max() < 1e-10 * np.abs(b).max()


# Message passing


@pytest.mark.parametrize("kind", ["combs", "red-black", "greedy"])
def test_message_passing_is_a_dense_solve(kind: str) -> None:
    problem, rng = lattice(), torch.Generator().manual_seed(0)
    x = torch.where(problem.free, torch.randn(3, 49, generator=rng).double(), problem.start)
    g, H = problem.gradient(x), matrix(problem)
    if kind == "greedy":
        forests = [e.greedy_forest(g.abs().argsort(1, descending=True), problem)]
    else:
        forests = [block & problem.free for block in e.two_forests(kind, 7)]
    for forest in forests:
        d = e.message_passing(problem, forest, g)
        for s, b in enumerate(forest):
            torch.testing.assert_close(d[s, b], torch.linalg.solve(H[b][:, b], -g[s, b]))
            assert (d[s, ~b] == 0).all()


def test_two_nodes_on_their_own_pass_one_message() -> None:
    problem = e.lattice(1, 2, 1, np.random.default_rng(0), CPU)  # 0 - 1, 2 - 3, 0 - 2, 1 - 3
    pair = torch.tensor([[True, True, False, False]])
    d = e.message_passing(problem, pair, torch.tensor([[-1.0, 0.0, 5.0, 5.0]]).double())
    assert d[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])  # 2 a - b = 1, 2 b - a = 0


def test_blocks_are_forests() -> None:
    for side in (6, 7):
        problem = lattice(side)
        H = matrix(problem)
        combs = e.two_forests("combs", side)
        assert (combs.sum(0) == 1).all()
        for forest in (*combs, *e.two_forests("red-black", side)):
            nodes, edges, components = trees(forest, H)
            assert edges == nodes - components
        assert all(trees(comb, H)[2] == 1 for comb in combs)


def test_a_greedy_forest_takes_what_closes_no_cycle() -> None:
    problem = lattice()
    H, order = matrix(problem), torch.rand(3, 49, generator=torch.Generator().manual_seed(3)).argsort(1)
    for forest, nodes, free in zip(e.greedy_forest(order, problem), order, problem.free, strict=True):
        taken = torch.zeros(49, dtype=torch.bool)
        for i in nodes[free[nodes]]:
            taken[i] = True
            count, edges, components = trees(taken, H)
            taken[i] = edges == count - components
        assert torch.equal(forest, taken)


def test_lattice_gradient_and_solution() -> None:
    problem = lattice()
    H, solution = matrix(problem), problem.solution()
    x = torch.randn(3, 49, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(problem.gradient(x), (x @ H) * problem.free)
    assert problem.gradient(solution).abs().max() < 1e-12
    assert torch.equal(solution[~problem.free], problem.start[~problem.free])
    energy = sum((solution[:, i] - solution[:, j]) ** 2 for i, j in combinations(range(49), 2) if H[i, j]) / 2
    torch.testing.assert_close(energy, torch.einsum("si,ij,sj->s", solution, H, solution) / 2)


# L1 penalty


def optimum(f: LinearModel, share: float) -> tuple[e.Sparse, torch.Tensor]:
    x = torch.zeros_like(f.A[:, 0])
    problem = e.Sparse(f, share * -f.gradient(x).amin(1, keepdim=True))
    L = f.coordinate_bounds()
    for _ in range(30):
        g = problem.gradient(x)
        x = e.two_metric_projection(problem, x, g, e.most_progress(x, g, 15, L))
    return problem, x


def test_lasso_is_that_of_scikit_learn() -> None:
    f = regression(rows=40, columns=25)
    problem, x = optimum(f, 0.1)
    assert problem.error(x).max() < 1e-12
    assert (x == 0).any(1).all()
    for s in range(3):
        lasso = Lasso(
            float(problem.penalty[s]), fit_intercept=False, positive=True, tol=1e-14, max_iter=10**5
        )
        assert x[s].numpy() == pytest.approx(lasso.fit(f.A[s].numpy(), f.b[s].numpy()).coef_, abs=1e-7)


def test_sparse_logistic_regression_is_that_of_a_general_solver() -> None:
    f = Logistic(regression(rows=40, columns=25).A, regression(rows=40, columns=25).b.sign())
    problem, x = optimum(f, 0.1)
    assert problem.error(x).max() < 1e-12
    one = e.Sparse(Logistic(f.A[:1], f.b[:1]), problem.penalty[:1])
    found = minimize(
        lambda w: float(one.objective(torch.from_numpy(w)[None])),
        np.zeros(25),
        jac=lambda w: one.gradient(torch.from_numpy(w)[None])[0].numpy(),
        method="L-BFGS-B",
        bounds=[(0, None)] * 25,
        options={"ftol": 0, "gtol": 1e-12, "maxiter": 10**4},
    )
    assert x[0].numpy() == pytest.approx(found.x, abs=1e-6)


def test_inside_the_constraints_the_update_is_newtons() -> None:
    f = LeastSquares(regression(columns=6).A, regression(columns=6).A.sum(-1) + 0.01)
    problem = e.Sparse(f, torch.full((3, 1), 1e-3).double())
    x, block = torch.full((3, 6), 2.0).double(), torch.arange(6).expand(3, -1)
    found = e.two_metric_projection(problem, x, problem.gradient(x), block)
    for A, b, new in zip(f.A.numpy(), f.b.numpy(), found, strict=True):
        exact = np.linalg.solve(A.T @ A / len(A), A.T @ b / len(A) - 1e-3)
        assert new.numpy() == pytest.approx(exact)
    step = e.projected_gradient(problem, x, problem.gradient(x), block)[0].numpy()
    L = np.linalg.norm(f.A[0].numpy(), 2) ** 2 / f.A.shape[1]
    assert step == pytest.approx(np.maximum(2 - problem.gradient(x)[0].numpy() / L, 0))


def test_progress_by_hand_and_ties_go_to_the_support() -> None:
    x, g, L = (
        torch.tensor([[0.0, 0.0, 1.0, 0.1]]),
        torch.tensor([[-2.0, 5.0, 0.0, 4.0]]),
        torch.full((1, 4), 2.0),
    )
    x, g, L = x.double(), g.double(), L.double()
    # falls of the bound: 1, 0 (held at 0), 0, and 4 * 0.1 - 0.01 = 0.39 (stops at 0)
    assert [e.most_progress(x, g, k, L)[0].sort().values.tolist() for k in (1, 2, 3)] == [
        [0],
        [0, 3],
        [0, 2, 3],
    ]
