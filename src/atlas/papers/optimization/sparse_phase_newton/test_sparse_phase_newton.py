import math

import numpy as np
import pytest
import torch

from atlas.papers.optimization.sparse_phase_newton import experiment as e
from atlas.run import Run

RUN = Run("sparse_phase_newton", 0)
P = e.draw(30, 3, 60, 4, RUN.generator("test"))
NEAR = P.z + 0.05 * torch.randn(P.z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X = e.keep_largest(NEAR, 4)  # one entry more than s: something leaves the support
SEED = 2
A, y = P.A[SEED], P.y[SEED, :, 0]


def intensity_loss(x: torch.Tensor) -> torch.Tensor:
    return ((A @ x).square() - y.square()).square().mean() / 4


def amplitude_loss(x: torch.Tensor) -> torch.Tensor:
    return ((A @ x).abs() - y).square().mean() / 2


def amplitude_gradient(x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(amplitude_loss(x), x)[0]


def test_the_problem() -> None:
    assert torch.allclose(P.y, (P.A @ P.z).abs()) and torch.allclose(P.z.norm(dim=1), P.z.new_ones(4, 1))
    assert ((P.z != 0).sum(1) == 3).all()
    assert P.error(-P.z).max() == 0 and P.error(0 * P.z).tolist() == [[pytest.approx(1)] * 4]
    assert torch.allclose(P.adjoint(P.y), P.A.mT @ P.y)


def test_newton_step_from_automatic_derivatives() -> None:
    x = X[SEED, :, 0]
    T = np.argsort(-np.abs((x - 0.95 * amplitude_gradient(x)).numpy()))[:3].copy()
    U = np.setdiff1d(np.arange(30), T)
    assert (x[U] != 0).any()
    point = x.clone().requires_grad_()
    g = torch.autograd.grad(intensity_loss(point), point)[0].numpy()
    H = torch.autograd.functional.hessian(intensity_loss, x).numpy()
    expected = np.zeros(30)
    expected[T] = x.numpy()[T] - np.linalg.solve(H[np.ix_(T, T)], g[T] - H[np.ix_(T, U)] @ x.numpy()[U])
    assert np.allclose(e.newton_step(P, X)[SEED, :, 0].numpy(), expected)


def test_newton_squares_a_small_error() -> None:
    direction = (X - P.z) / (X - P.z).norm(dim=1, keepdim=True)
    far, near = (P.error(e.newton_step(P, P.z + d * direction)) for d in (1e-3, 1e-4))
    assert torch.allclose(far / near, torch.tensor(100.0).double(), rtol=0.05)


def test_gradient_and_sparta_steps() -> None:
    x = X[SEED, :, 0]
    Ax = (A @ x).numpy()
    kept = np.abs(Ax) >= y.numpy() / 1.7
    assert 0 < kept.sum() < 60
    sparta = sum((Ax[i] - y[i].item() * np.sign(Ax[i])) * A[i].numpy() for i in np.flatnonzero(kept))
    steps = torch.tensor([0.5, 1.0], dtype=torch.float64)
    for step, direction, eta in (
        (e.gradient_step, amplitude_gradient(x).numpy(), 0.95),
        (e.sparta_step, sparta / 60, 1.0),
    ):
        found = step(P, X.expand(-1, -1, 2), eta * steps)[SEED].numpy()
        for j in range(2):
            v = x.numpy() - eta * float(steps[j]) * direction
            v[np.argsort(-np.abs(v))[3:]] = 0
            assert np.allclose(found[:, j], v)


def test_thresholded_wirtinger_flow_by_hand() -> None:
    x = X[SEED, :, 0]
    z = A @ x
    phi2 = float(y.square().mean())
    tau = math.sqrt(0.3 * math.log(60 * 30) / 60**2 * float(((z**2 - y**2) ** 2 * z**2).sum()))
    point = x.clone().requires_grad_()
    v = x - 0.23 / phi2 * torch.autograd.grad(intensity_loss(point), point)[0]
    expected = torch.nn.functional.softshrink(v, 0.23 / phi2 * tau)
    assert torch.allclose(e.thwf_step(P, X)[SEED, :, 0], expected)


def test_spectral_start_by_hand() -> None:
    marginal = [sum(float(y[i] ** 2 * A[i, j] ** 2) for i in range(60)) for j in range(30)]
    T = np.argsort(marginal)[-3:]
    M = sum(float(y[i] ** 2) * np.outer(A[i, T], A[i, T]) for i in range(60))
    v = np.linalg.svd(M)[0][:, 0] * np.sqrt(float(y.square().mean()))
    found = e.spectral_start(P)[SEED, :, 0].numpy()
    assert set(np.flatnonzero(found)) == set(T.tolist())
    assert min(np.abs(found[T] - v).max(), np.abs(found[T] + v).max()) < 1e-10


def test_htp_is_least_squares_and_exact_once_the_signs_are() -> None:
    x = X[SEED, :, 0]
    T = np.argsort(-np.abs((x - 0.95 * amplitude_gradient(x)).numpy()))[:3].copy()
    v = np.linalg.lstsq(A[:, T].numpy(), (y * (A @ x).sign()).numpy(), rcond=None)[0]
    assert np.allclose(e.htp_step(P, X)[SEED, T, 0].numpy(), v)
    close = P.z + 1e-6 * (X - P.z)
    assert torch.equal((P.A @ close).sign(), (P.A @ P.z).sign())
    assert P.error(e.htp_step(P, close)).max() < 1e-14


def test_copram_is_cosamp_with_signs_kept_for_a_while() -> None:
    step = e.CoPRAM(P, inner=2, tolerance=0.0)
    s, x = 3, e.keep_largest(NEAR, 3)
    expected = x[SEED, :, 0].numpy()
    for k in range(4):
        if k % 2 == 0:
            b = (y * (A @ torch.from_numpy(expected)).sign()).numpy()
        proxy = A.numpy().T @ (b - A.numpy() @ expected)
        T = np.union1d(np.flatnonzero(expected), np.argsort(-np.abs(proxy))[: 2 * s])
        v = np.zeros(30)
        v[T] = np.linalg.lstsq(A.numpy()[:, T], b, rcond=None)[0]
        v[np.argsort(-np.abs(v))[s:]] = 0
        expected, x = v, step(P, x)
        assert np.allclose(x[SEED, :, 0].numpy(), expected)


def test_copram_renews_the_signs_when_it_has_settled() -> None:
    step = e.CoPRAM(P, inner=10, tolerance=1e-2)
    x = step(P, P.z + 1e-8 * (X - P.z))
    assert (step.left == 0).all() and P.error(x).max() < 1e-12


def test_the_signal_is_a_fixed_point_of_every_method() -> None:
    for step in (e.newton_step, e.htp_step, e.gradient_step, e.sparta_step, e.thwf_step, e.CoPRAM(P)):
        assert P.error(step(P, P.z)).max() < 1e-14
