"""Normal laws through affine steps, against scipy and against simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov, sqrtm

from atlas.sampling import gaussian as g


def steps(batch: tuple[int, ...] = (3,), n: int = 4, seed: int = 0) -> g.Affine:
    """Contractions with full noise."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(*batch, n, n))
    A *= 0.8 / np.linalg.norm(A, 2, axis=(-2, -1), keepdims=True)
    B = rng.normal(size=(*batch, n, n))
    parts = A, rng.normal(size=(*batch, n)), B @ B.swapaxes(-1, -2)
    return g.Affine(*(torch.from_numpy(v) for v in parts))


def law(batch: tuple[int, ...] = (3,), n: int = 4, seed: int = 1) -> g.Gaussian:
    other = steps(batch, n, seed)
    return g.Gaussian(other.b, other.Q)


def test_the_stationary_covariance_is_that_of_scipy() -> None:
    step = steps()
    found = step.stationary()
    for i in range(3):
        A, Q = step.A[i].numpy(), step.Q[i].numpy()
        expected = solve_discrete_lyapunov(A, Q)
        assert np.allclose(found.covariance[i], expected, rtol=1e-12, atol=1e-12)
        assert np.allclose(found.mean[i], np.linalg.solve(np.eye(4) - A, step.b[i]), rtol=1e-12)


def test_the_stationary_law_is_preserved_and_reached() -> None:
    step = steps()
    limit, late = step.stationary(), step.power(200)(law())
    for found in (step(limit), late, g.stationary_moments(step.on_moments())):
        assert torch.allclose(found.mean, limit.mean, atol=1e-12)
        assert torch.allclose(found.covariance, limit.covariance, atol=1e-11)


def test_steps_one_after_the_other() -> None:
    one, two, start = steps(), steps(seed=5), law()
    expected = two(one(start))
    found = one.then(two)(start)
    assert torch.allclose(found.mean, expected.mean) and torch.allclose(found.covariance, expected.covariance)
    expected = start
    for _ in range(6):
        expected = one(expected)
    found = one.power(6)(start)
    assert torch.allclose(found.mean, expected.mean) and torch.allclose(found.covariance, expected.covariance)


def test_moments_move_as_the_law_does() -> None:
    step, start = steps(), law()
    back = g.from_moments(g.moments(start))
    assert torch.allclose(back.mean, start.mean) and torch.allclose(back.covariance, start.covariance)
    moved = (step.on_moments() @ g.moments(start).unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(moved, g.moments(step(start)), atol=1e-12)


def test_a_program_is_read_off_as_a_step() -> None:
    expected = steps((2, 3), 4)
    B = torch.linalg.cholesky(expected.Q)

    def program(x: torch.Tensor, xi: torch.Tensor) -> torch.Tensor:
        return ((expected.A @ x.unsqueeze(-1)) + B @ xi.unsqueeze(-1)).squeeze(-1) + expected.b

    found = g.affine(program, 4, 4, (2, 3))
    for a, b in zip((found.A, found.b, found.Q), (expected.A, expected.b, expected.Q), strict=True):
        assert torch.allclose(a, b, rtol=1e-13, atol=1e-13)


def test_the_distance_is_the_usual_formula() -> None:
    p, q = law(), law(seed=2)
    for i in range(3):
        P, Q = p.covariance[i].numpy(), q.covariance[i].numpy()
        root = sqrtm(P)
        square = (p.mean[i] - q.mean[i]).square().sum().item() + np.trace(
            P + Q - 2 * sqrtm(root @ Q @ root).real
        )
        assert g.wasserstein2(p, q)[i].item() == pytest.approx(square**0.5, rel=1e-10)
        assert g.wasserstein2(q, p)[i].item() == pytest.approx(square**0.5, rel=1e-10)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-10])
def test_the_distance_keeps_its_digits_when_the_laws_are_close(size: float) -> None:
    """N(0, s^2) and N(0, s^2 (1 + size)^2) in every direction: the distance is |s| size."""
    s = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    V = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    zero = torch.zeros(3, dtype=torch.float64)
    P, Q = (V @ torch.diag(v**2) @ V.mT for v in (s, s * (1 + size)))
    found = g.wasserstein2(g.Gaussian(zero, P), g.Gaussian(zero, Q)).item()
    assert found == pytest.approx(size * float(s.norm()), rel=1e-14 / size + 1e-12)


def test_the_distance_to_a_point_and_to_itself() -> None:
    p = law()
    point = g.Gaussian(p.mean + 1, torch.zeros_like(p.covariance))
    expected = (4 + p.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)).sqrt()
    assert torch.allclose(g.wasserstein2(p, point), expected)
    assert g.wasserstein2(p, p).max() < 1e-14


def test_a_random_choice_of_steps_against_simulation() -> None:
    """The moments of 'a coin decides which of two steps is taken', within five standard errors of 50,000 chains."""
    pair = steps((2,), 2, seed=3)
    expected = g.moments(g.stationary_moments(pair.on_moments().mean(0)))
    generator = torch.Generator().manual_seed(0)
    B = torch.linalg.cholesky(pair.Q)
    x = torch.zeros(50_000, 2, dtype=torch.float64)
    for _ in range(40):
        coin = torch.randint(2, (len(x),), generator=generator)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = torch.einsum("sij,sj->si", pair.A[coin], x) + pair.b[coin]
        x += torch.einsum("sij,sj->si", B[coin], noise)
    z = torch.cat([torch.ones_like(x[:, :1]), x], 1)
    sampled = torch.einsum("si,sj->sij", z, z).flatten(1)
    error = sampled.std(0) / len(x) ** 0.5
    assert ((sampled.mean(0) - expected).abs() <= 5 * error + 1e-12).all()
