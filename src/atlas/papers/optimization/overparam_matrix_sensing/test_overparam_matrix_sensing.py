import dataclasses
import math

import numpy as np
import pytest
import torch

from atlas.papers.optimization.overparam_matrix_sensing import experiment as e
from atlas.run import Run

SETTING = e.Setting(n=8, rank=1, columns=3, measurements=50, seeds=3, alphas=(0.3, 0.8))
RUN = Run("overparam_matrix_sensing", 0)
IDENTITY = e.draw(SETTING, False, RUN)


def grid(*steps: int) -> torch.Tensor:
    return torch.tensor(steps).expand(len(SETTING.alphas), -1)


def test_steps_are_gradient_steps_on_the_measurements() -> None:
    """(1/m) sum_i <A_i, F G^T - M*>^2 / 2 by autograd; with one factor half of it, and symmetric A_i."""
    problem, n, m = e.draw(SETTING, True, RUN), SETTING.n, SETTING.measurements
    generator = RUN.generator("problem")
    torch.randn(3, n, 1, generator=generator, dtype=torch.float64)  # of M*
    A = torch.randn(m, n, n, generator=generator, dtype=torch.float64)  # of the first problem
    F, G = (v[:, :1] for v in e.start(SETTING, 3, RUN))
    M = problem.M[0]

    def loss(product: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ipq,pq->i", A, product - M).square().mean() / 2

    f, g = F[1, 0].clone().requires_grad_(), G[1, 0].clone().requires_grad_()
    loss(f @ g.mT, A).backward()
    R = problem.normal_operator((F @ G.mT - M).expand(-1, 3, -1, -1))[:, :1]
    new_F, new_G = e.asymmetric_step(F, G, R, 0.2)
    assert torch.allclose(new_F[1, 0], f.detach() - 0.2 * f.grad)
    assert torch.allclose(new_G[1, 0], g.detach() - 0.2 * g.grad)

    X = F[1, 0].clone().requires_grad_()
    (loss(X @ X.mT, (A + A.mT) / 2) / 2).backward()
    R = problem.normal_operator((F @ F.mT - M).expand(-1, 3, -1, -1))[:, :1]
    assert torch.allclose(e.symmetric_step(F, R, 0.2)[1, 0], X.detach() - 0.2 * X.grad)


def test_the_changed_step_keeps_the_product_and_sets_the_imbalance() -> None:
    F, G = e.start(SETTING, 3, RUN)
    new_F, new_G = e.imbalance_step(F, G, 0.7)
    assert torch.allclose(new_F @ new_G.mT, F @ G.mT, atol=1e-14)
    assert torch.allclose(new_F.mT @ new_F, 0.49 * torch.eye(3, dtype=torch.float64).expand(2, 3, 3, 3))
    U, S, Vh = np.linalg.svd(F[1, 2].numpy(), full_matrices=False)
    assert np.allclose(np.abs(new_F[1, 2].numpy()), 0.7 * np.abs(U))
    assert np.allclose(np.abs(new_G[1, 2].numpy()), np.abs(G[1, 2].numpy() @ Vh.T @ np.diag(S)) / 0.7)
    new_F, new_G = e.balance_step(F, G, 0.7)
    assert torch.allclose(new_F @ new_G.mT, F @ G.mT, atol=1e-14)
    assert torch.allclose(new_F.mT @ new_F, new_G.mT @ new_G, atol=1e-14)


def test_the_step_is_changed_once_when_the_product_is_close() -> None:
    F, G = e.start(SETTING, 3, RUN)
    seen = []

    def change(F: torch.Tensor, G: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((F @ G.mT - IDENTITY.M).norm(dim=(-2, -1)))
        return e.imbalance_step(F, G, beta)

    steps = tuple(range(40))
    errors = e.descend(IDENTITY, F, G, grid(*steps), SETTING, "change", RUN, change)
    first = (errors.sqrt() <= 0.1).int().argmax(-1)
    assert len(seen) == len(first.unique())
    plain = e.descend(IDENTITY, F, G, grid(*steps), SETTING, "plain", RUN)
    for i in range(2):
        for s in range(3):
            t = int(first[i, s])
            assert torch.allclose(errors[i, s, : t + 1], plain[i, s, : t + 1])
            assert errors[i, s, -1] < plain[i, s, -1]


def test_one_factor_is_two_in_perfect_balance() -> None:
    F, _ = e.start(SETTING, 3, RUN)
    one = e.descend(IDENTITY, F, None, grid(0, 5, 30), SETTING, "one", RUN)
    two = e.descend(IDENTITY, F, F, grid(0, 5, 30), SETTING, "two", RUN)
    assert torch.allclose(one, two)


def test_zero_columns_are_no_columns() -> None:
    F, G = e.start(SETTING, 2, RUN)
    assert (F[..., 2:] == 0).all() and (F[..., :2] == e.start(SETTING, 3, RUN)[0][..., :2]).all()
    wide = e.descend(IDENTITY, F, G, grid(1, 20), SETTING, "wide", RUN)
    narrow = e.descend(IDENTITY, F[..., :2], G[..., :2], grid(1, 20), SETTING, "narrow", RUN)
    assert torch.allclose(wide, narrow)


def test_local_rate_with_the_exact_rank() -> None:
    """Unit singular values and the identity: the error falls by 1 - eta a step."""
    X, _ = e.start(SETTING, 1, RUN)
    errors = e.descend(IDENTITY, X, None, grid(60, 61), SETTING, "exact", RUN)
    assert torch.allclose(errors[..., 1] / errors[..., 0], torch.tensor(0.75**2).double(), rtol=1e-4)


def test_superfluous_columns_of_one_factor_follow_their_scalar_law() -> None:
    """x <- x - eta x^3 for each of k - r singular values, so the squared error tends to (k - r) / (2 eta T)^2."""
    X, _ = e.start(SETTING, 3, RUN)
    errors = e.descend(IDENTITY, X, None, grid(4000), SETTING, "law", RUN)[1, :, 0]
    assert torch.allclose(errors, torch.tensor(2 / (2 * 0.25 * 4000) ** 2).double(), rtol=0.05)


def test_the_rate_of_two_factors_is_the_imbalance_left_in_superfluous_columns() -> None:
    """G ends with r columns; where it has none, F^T F = F^T F - G^T G = D, and the product falls by 1 - eta min(D) a step."""
    setting = dataclasses.replace(SETTING, n=40, alphas=(0.6,))
    problem = e.draw(setting, False, RUN)
    F, G = e.start(setting, 3, RUN)
    steps = torch.arange(0, 410, 10)
    errors = e.descend(problem, F, G, steps[None], setting, "imbalance", RUN)[0]
    for _ in range(400):
        F, G = e.asymmetric_step(F, G, F @ G.mT - problem.M, setting.eta)
    null = torch.linalg.svd(G[0]).Vh[..., 1:, :]  # (S, k - r, k)
    least = torch.linalg.eigvalsh(null @ F[0].mT @ F[0] @ null.mT)[..., 0]
    late = steps >= 200
    found = e.decay_rate(steps[late].double(), errors[:, late])
    assert torch.allclose(found, -2 * torch.log(1 - setting.eta * least), rtol=0.03)


def test_decay_rate_of_a_known_curve() -> None:
    T = torch.arange(50, dtype=torch.float64)
    errors = torch.stack([torch.exp(-2 * T), torch.exp(-0.1 * T)]) + 1e-30
    assert e.decay_rate(T, errors).tolist() == pytest.approx([2.0, 0.1], rel=1e-4)
    assert math.isclose(float(e.decay_rate(T, 0.0 * errors[:1] + 1)), 0.0, abs_tol=1e-12)
