"""Batched linear models against scikit-learn, numpy and automatic differentiation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from atlas.problems.regression import LeastSquares, LinearModel, Logistic


def problem(kind: type[LinearModel], ridge: float = 0.1) -> LinearModel:
    """Three problems with 30 rows and 4 columns."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(3, 30, 4, generator=generator, dtype=torch.float64)
    b = A.sum(-1) + 2 * torch.randn(3, 30, generator=generator, dtype=torch.float64)
    return kind(A, b.sign() if kind is Logistic else b, ridge)


@pytest.mark.parametrize("kind", [LeastSquares, Logistic])
def test_gradient_and_hessian_are_those_of_the_loss(kind: type[LinearModel]) -> None:
    f = problem(kind)
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss, automatic = lambda x: f.loss(x).sum(), torch.autograd.functional
    torch.testing.assert_close(f.gradient(x), automatic.jacobian(loss, x))
    full = automatic.hessian(loss, x)  # (S, d, S, d), 0 between problems
    hessian = torch.stack([full[s, :, s] for s in range(3)])
    torch.testing.assert_close(f.hessian(x), hessian)
    block = torch.tensor([[2, 0], [1, 3], [3, 2]])
    for s, i in enumerate(block):
        torch.testing.assert_close(f.hessian(x, block)[s], hessian[s][i][:, i])
    above = f.hessian_bound() - hessian
    assert torch.linalg.eigvalsh(above).min() > -1e-12
    torch.testing.assert_close(f.coordinate_bounds(), f.hessian_bound().diagonal(dim1=1, dim2=2))


def test_losses_by_hand() -> None:
    A, b = torch.tensor([[[1.0], [2.0]]]).double(), torch.tensor([[1.0, -1.0]]).double()
    x = torch.tensor([[0.5]]).double()
    assert float(LeastSquares(A, b).loss(x)) == pytest.approx((0.5**2 + 2**2) / 4)
    assert float(Logistic(A, b, 0.2).loss(x)) == pytest.approx(
        (np.log1p(np.exp(-0.5)) + np.log1p(np.exp(1))) / 2 + 0.1 * 0.25
    )


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_least_squares_minimum_is_that_of_scikit_learn(ridge: float) -> None:
    f = problem(LeastSquares, ridge)
    found = f.minimum()
    for A, b, x in zip(f.A.numpy(), f.b.numpy(), found, strict=True):
        known = Ridge(ridge * len(A), fit_intercept=False, solver="svd").fit(A, b).coef_
        np.testing.assert_allclose(x, known, rtol=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.1])
def test_logistic_minimum_is_that_of_scikit_learn(ridge: float) -> None:
    f = problem(Logistic, ridge)
    found = f.minimum()
    assert f.gradient(found).abs().max() < 1e-15
    for A, b, x in zip(f.A.numpy(), f.b.numpy(), found, strict=True):
        C = 1 / (ridge * len(A)) if ridge else np.inf
        model = LogisticRegression(C=C, fit_intercept=False, solver="newton-cholesky", tol=1e-14)
        np.testing.assert_allclose(x, model.fit(A, b).coef_[0], rtol=1e-9)


def test_many_problems_all_reach_rounding() -> None:
    generator = torch.Generator().manual_seed(2)
    A = torch.randn(200, 40, 5, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, 5)
    b = torch.randn(200, 40, generator=generator, dtype=torch.float64).sign()
    f = Logistic(A, b, 1e-6)
    assert (f.gradient(f.minimum()).norm(dim=1) / f.gradient(torch.zeros(200, 5).double()).norm(dim=1)).max() < 1e-12  # fmt: skip


def test_separable_classes_have_no_minimum() -> None:
    f = problem(Logistic, 0.0)
    separable = Logistic(f.A, f.A[..., 0].sign())
    with pytest.raises((ValueError, torch.linalg.LinAlgError)):
        separable.minimum()
