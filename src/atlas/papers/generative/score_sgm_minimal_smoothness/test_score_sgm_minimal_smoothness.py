import itertools

import numpy as np
import pytest

from atlas.measure import load_experiment, make_setting
from atlas.paper import find
from atlas.papers.generative.score_sgm_minimal_smoothness import experiment as e
from atlas.run import Run


def gaussian_phi(v: float):
    """X_0 ~ N(0, v): the score is -x / s2(t), s2 = e^(-2t) v + 1 - e^(-2t), so phi = 1/s2."""
    return lambda t: 1 / (np.exp(-2 * t) * v - np.expm1(-2 * t))


def test_path_kl_of_a_gaussian_against_the_definition() -> None:
    """E|s_t(X_t) - s_u(X_u)|^2 from the joint law of (X_t, X_u): covariance e^-(u-t) s2(t)."""
    v, times = 0.3, np.array([2.0, 1.0, 0.4, 0.1])
    phi = gaussian_phi(v)
    total = 0.0
    for u, end in itertools.pairwise(times):
        t = np.linspace(end, u, 20001)
        s2, s2u = 1 / phi(t), 1 / phi(np.array([u]))
        covariance = np.exp(-(u - t)) * s2
        expected = 1 / s2 + 1 / s2u - 2 * covariance / (s2 * s2u)
        total += np.trapezoid(expected, t)
    assert e.path_kl(phi, times) == pytest.approx(total, rel=1e-6)


def test_two_points_against_direct_quadrature() -> None:
    # +-1 with equal weights: the posterior mean is tanh(e^-t x / sigma^2), mmse = 1 - E tanh^2
    t = 0.3
    s2 = 1 - np.exp(-2 * t)
    x = np.linspace(-8, 8, 40001)
    q = sum(np.exp(-((x - m * np.exp(-t)) ** 2) / (2 * s2)) for m in (-1, 1)) / 2 / np.sqrt(2 * np.pi * s2)
    mmse = 1 - np.trapezoid(np.tanh(np.exp(-t) * x / s2) ** 2 * q, x)
    ratio = e.atoms_ratio(np.array([-1.0, 1.0]), np.array([0.5, 0.5]))(t)
    assert ratio == pytest.approx(np.exp(-2 * t) * mmse / s2, rel=1e-8)


@pytest.mark.parametrize("t", [1e-3, 0.05, 1.0])
def test_segment_is_the_limit_of_many_atoms(t: float) -> None:
    atoms = e.atoms_ratio(np.linspace(-1, 1, 201), np.full(201, 1 / 201))(t)
    assert e.segment_ratio(1.0)(t) == pytest.approx(atoms, rel=0.01)


def test_sphere_against_many_points_on_it() -> None:
    rng = np.random.default_rng(0)
    many = rng.normal(size=(3000, 3))
    many *= 2.0 / np.linalg.norm(many, axis=1, keepdims=True)
    assert e.sphere_ratio(2.0, 3)(0.5) == pytest.approx(e.points_ratio(many, rng, 2000)(0.5), rel=0.05)


def test_steps_have_the_stated_ends_and_proportions() -> None:
    t = e.exponential_steps(300, 5.0, 1e-3)
    assert (t[0], t[-1], len(t)) == (5.0, pytest.approx(1e-3), 301) and (np.diff(t) < 0).all()
    near = t[t <= 1]
    assert np.allclose(near[1:] / near[:-1], near[1] / near[0])
    kappa = 1 - near[1] / near[0]
    assert t[0] - t[1] == pytest.approx(kappa, rel=0.05)


def test_smoke_table_is_reproducible() -> None:
    paper = find("score_sgm_minimal_smoothness")
    module = load_experiment(paper)
    one, two = (module.measure(make_setting(paper, module, "smoke"), Run(paper.slug, 1)) for _ in range(2))
    assert one.equals(two)
