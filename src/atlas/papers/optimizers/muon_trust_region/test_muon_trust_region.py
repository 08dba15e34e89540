import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch

from atlas.optim.orthogonal import newton_schulz
from atlas.papers.optimizers.muon_trust_region import experiment as e
from atlas.problems.matrix import LogRegression, SkewedNoise
from atlas.run import Run

F64 = torch.float64


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize(("name", "order", "dual"), [("spectral", 2, "nuc"), ("Euclidean", "fro", "fro")])
def test_the_step_attains_the_dual_norm(name: str, order: object, dual: str) -> None:
    """<M, D> <= ||M||_dual ||D||, so a D of norm 1 that attains it solves the linear problem over the ball."""
    ball, M = e.BALLS[name], random(20, 5, 3)
    D = ball.direction(M)
    one = torch.ones(20, dtype=F64)
    torch.testing.assert_close(torch.linalg.matrix_norm(D, order), one)
    torch.testing.assert_close((M * D).sum((-2, -1)), torch.linalg.matrix_norm(M, dual))
    torch.testing.assert_close(ball.norm(M), torch.linalg.matrix_norm(M, order))
    torch.testing.assert_close(ball.dual(M), torch.linalg.matrix_norm(M, dual))
    torch.testing.assert_close(e.frobenius(D), ball.length(5, 3) * one)


def test_the_steps_are_those_of_scipys_solvers() -> None:
    """Linear programming over the max ball, orthogonal Procrustes over the spectral one, SLSQP over the Euclidean one."""
    M = random(4, 4)
    found = {name: ball.direction(M).numpy() for name, ball in e.BALLS.items()}
    linear = scipy.optimize.linprog(-M.flatten().numpy(), bounds=(-1, 1)).x
    np.testing.assert_allclose(found["max"], linear.reshape(4, 4))
    np.testing.assert_allclose(found["spectral"], scipy.linalg.orthogonal_procrustes(np.eye(4), M.numpy())[0])
    m = M.flatten().numpy()
    inside = {"type": "ineq", "fun": lambda d: 1 - d @ d, "jac": lambda d: -2 * d}
    solved = scipy.optimize.minimize(
        lambda d: -m @ d, np.zeros(16), jac=lambda d: -m, constraints=inside, method="SLSQP"
    )
    np.testing.assert_allclose(found["Euclidean"].flatten(), solved.x, atol=1e-4)


@pytest.mark.parametrize("name", e.BALLS)
def test_the_dual_norm_alone_gives_the_step(name: str) -> None:
    M = random(7, 5, 3)
    torch.testing.assert_close(e.generic_direction(M, e.BALLS[name].dual), e.BALLS[name].direction(M))


def test_the_spectral_step_is_torchs_muon() -> None:
    """With Muon's approximate factor and weight decay 0.5, eta beta; torch multiplies eta by sqrt(max(1, m/n)), works in bfloat16."""
    x = random(6, 4).float()
    parameter = torch.nn.Parameter(x.clone())
    muon = torch.optim.Muon([parameter], lr=0.1, momentum=0.8, nesterov=False, weight_decay=0.5)
    m = torch.zeros_like(x)
    for k in range(3):
        parameter.grad = random(6, 4, seed=k).float()
        x, m = e.trust_region_step(x, m, parameter.grad, 0.2, 0.1 * (6 / 4) ** 0.5, 0.1 * 0.5, newton_schulz)
        muon.step()
    torch.testing.assert_close(x, parameter.detach(), rtol=0, atol=0.02)


def test_two_steps_by_hand() -> None:
    x, m, g = (torch.tensor([v], dtype=F64) for v in ([[1.0, 1.0]], [[0.0, 0.0]], [[3.0, -4.0]]))
    x, m = e.trust_region_step(x, m, g, 0.5, 0.1, 0.2, e.BALLS["Euclidean"].direction)
    torch.testing.assert_close(x, torch.tensor([[[0.8 - 0.06, 0.8 + 0.08]]], dtype=F64))
    x, m = e.trust_region_step(x, m, 0 * g, 0.5, 0.1, 0.0, e.BALLS["max"].direction)
    torch.testing.assert_close(m, torch.tensor([[[0.75, -1.0]]], dtype=F64))
    torch.testing.assert_close(x, torch.tensor([[[0.64, 0.98]]], dtype=F64))


def test_orthogonal_sgdm_averages_the_factors() -> None:
    g1, g2 = random(5, 3, seed=1), random(5, 3, seed=2)
    factors = [scipy.linalg.polar(g.numpy())[0] for g in (g1, g2)]
    x = m = torch.zeros(5, 3, dtype=F64)
    for g in (g1, g2):
        x, m = e.orthogonal_sgdm_step(x, m, g, 0.25, 0.1)
    np.testing.assert_allclose(m, 0.75 * 0.25 * factors[0] + 0.25 * factors[1])
    np.testing.assert_allclose(x, -0.1 * (1.75 * 0.25 * factors[0] + 0.25 * factors[1]))


def test_the_star_convex_function() -> None:
    star = e.StarConvex(3, (4, 2), 50.0, torch.Generator().manual_seed(0))
    W = random(6, 3, 4, 2, seed=1).requires_grad_()
    torch.testing.assert_close(star.gradient(W).detach(), torch.autograd.grad(star.loss(W).sum(), W)[0])
    assert star.loss(star.solution).abs().max() == 0
    for s in (0.1, 0.7):  # f(W* + s E) <= s f(W* + E): star-convex, as f* = 0
        between = s * W + (1 - s) * star.solution
        torch.testing.assert_close(star.loss(between), s**2 * star.loss(W))
    ends = [star.solution + star.basis[:, i].unflatten(-1, (4, 2)) for i in (0, -1)]
    middle = star.loss((ends[0] + ends[1]) / 2)
    assert (middle > 1.5 * (star.loss(ends[0]) + star.loss(ends[1])) / 2).all()  # not convex


def test_runs_of_all_horizons_in_one_batch_are_runs_on_their_own() -> None:
    run, shape = Run("muon_trust_region", 0), (4, 3)
    generator = torch.Generator().manual_seed(0)
    problem = LogRegression(2, shape, 10, generator)
    noise = SkewedNoise(2, shape, 1.0, generator)
    T, alpha, beta = torch.tensor([[5, 8], [0.5, 0.2], [0.0, 0.1]], dtype=F64)
    eta = torch.full((3, 2, 2), 0.1, dtype=F64)
    norms, final = e.runs_to_horizons(problem, noise, T, alpha, eta, beta, "test", run)
    for r, (ball, (i, steps)) in enumerate((b, c) for b in e.BALLS.values() for c in enumerate((5, 8))):
        generator, x, m, sampled = run.generator("test", "noise"), problem.start, None, []
        for k in range(steps):
            gradient = problem.gradient(x)
            g = gradient + noise(x.shape, generator)
            m = g if m is None else m + alpha[i] * (g - m)
            sampled += [ball.dual(gradient)] if k in (0, 4) else []
            x = (1 - beta[i]) * x - 0.1 * ball.direction(m)
        torch.testing.assert_close(final[r // 2, i], problem.loss(x))
        torch.testing.assert_close(norms[r // 2, i], sum(sampled) / 2)


@pytest.mark.parametrize(("optimizer", "kind"), [("signSGD", "sign"), ("normalised SGD", "normalise")])
def test_known_optimizers_by_numpy(optimizer: str, kind: str) -> None:
    b, g, x = np.array([[1.0, -2.0]]), np.array([[-5.0, 3.0]]), np.zeros((1, 2))
    expected_b = 0.9 * b + 0.1 * g
    direction = np.sign(expected_b) if kind == "sign" else expected_b / np.linalg.norm(expected_b)
    found, buffer = e.KNOWN[optimizer](*map(torch.from_numpy, (x, b, g)), 0.3, 0.9)
    np.testing.assert_allclose(found, -0.3 * direction)
    np.testing.assert_allclose(buffer, expected_b)
