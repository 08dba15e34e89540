import math

import numpy as np
import pytest
import torch

from atlas.papers.optimization.complex_momentum import experiment as e

F64 = torch.float64


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


@pytest.mark.parametrize("beta", [0.9, 0.0, -0.5])
def test_a_real_coefficient_is_torchs_momentum(beta: float) -> None:
    w = random(7)
    p = torch.nn.Parameter(w.clone())
    # torch.optim.SGD rejects negative momentum, which is written out: b = beta b + g
    sgd = torch.optim.SGD([p], lr=0.1, momentum=max(beta, 0.0))
    mu, b = torch.zeros(7, dtype=torch.complex128), torch.zeros(7, dtype=F64)
    q = w.clone()
    for j in range(6):
        p.grad = random(7, seed=j)
        sgd.step()
        b = beta * b + p.grad
        q = q - 0.1 * b
        w, mu = e.complex_momentum_step(w, mu, p.grad, 0.1, complex(beta))
    torch.testing.assert_close(w, p.detach() if beta >= 0 else q)


def test_the_impulse_response_is_a_damped_cosine() -> None:
    """One gradient of 1 at the start moves w by -alpha Re(beta^j) in step j, as de Moivre has it."""
    r, phi, alpha = 0.9, math.pi / 8, 0.3
    beta = e.polar(scalar(r), scalar(1 / 8))
    w, mu = scalar(0.0), torch.tensor(0j, dtype=torch.complex128)
    for j in range(20):
        before = w
        w, mu = e.complex_momentum_step(w, mu, scalar(float(j == 0)), alpha, beta)
        assert (w - before).item() == pytest.approx(-alpha * r**j * math.cos(phi * j), abs=1e-14)


def test_a_real_beta1_is_torchs_adam() -> None:
    """Whose first moment is (1 - beta_1) times ours and corrected for its bias: the same with its step size so scaled."""
    beta1, alpha = 0.9, 0.01
    w = random(7)
    p = torch.nn.Parameter(w.clone())
    adam = torch.optim.Adam([p], lr=alpha, betas=(beta1, 0.999))
    mu, v = torch.zeros(7, dtype=torch.complex128), torch.zeros(7, dtype=F64)
    for j in range(8):
        p.grad = random(7, seed=j)
        adam.param_groups[0]["lr"] = alpha * (1 - beta1 ** (j + 1)) / (1 - beta1)
        adam.step()
        w, mu, v = e.complex_adam_step(w, mu, v, p.grad, j, alpha, complex(beta1))
    torch.testing.assert_close(w, p.detach())


def test_complex_adam_by_hand() -> None:
    w, mu, v = e.complex_adam_step(
        scalar(1.0), torch.tensor(0j, dtype=torch.complex128), scalar(0.0), scalar(2.0), 0, 0.1, 0.5j
    )
    w, mu, v = e.complex_adam_step(w, mu, v, scalar(1.0), 1, 0.1, 0.5j)
    # first step -0.1 sign(g); then mu = 0.5i (-2) - 1 and v / (1 - beta_2^2) = (4 * 0.999 + 1) / 1.999
    assert mu.item() == pytest.approx(-1 - 1j)
    assert w.item() == pytest.approx(1 - 0.1 - 0.1 / math.sqrt(4.996 / 1.999))


def test_gradient_descent_ascent_has_its_known_radius() -> None:
    """Without momentum: simultaneous sqrt(1 + (alpha sigma)^2); alternating 1 as long as alpha sigma < 2."""
    alpha, sigma = torch.linspace(0.01, 1.9, 9, dtype=F64), scalar(0.7)
    both = [e.spectral_radius(M) for M in e.augmented(alpha, torch.zeros(9, dtype=torch.complex128), sigma)]
    torch.testing.assert_close(both[0], (1 + (alpha * sigma).square()).sqrt())
    torch.testing.assert_close(both[1], torch.ones(9, dtype=F64))


@pytest.mark.parametrize("phase", [0, 1 / 16, 1 / 4, 1 / 2, 15 / 16, 1])
def test_simultaneous_eigenvalues_solve_the_characteristic_polynomial(phase: float) -> None:
    """With w_j = l^j and gradients lambda w_j, lambda = +-i sigma, the momentum is -lambda l^j / (l - beta); its real part is the mean
    of this and of the same with conj(beta), so (l - 1) (l - beta) (l - conj beta) = -alpha lambda l (l - Re beta).
    """
    alpha, sigma = 0.3, 0.8
    beta = e.polar(scalar(0.7), scalar(phase))
    M = e.augmented(scalar(alpha), beta, scalar(sigma))[0]
    b, roots = complex(beta), []
    for lam in (1j * sigma, -1j * sigma):
        decay = np.poly([b, b.conjugate()])
        moved = alpha * lam * np.array([1, -b.real, 0])  # l (l - a)
        roots += list(np.roots(np.polyadd(np.polymul([1, -1], decay), moved)))
    expected = sorted(abs(np.array(roots)))
    found = sorted(torch.linalg.eigvals(M).abs().tolist())
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("alternating", [False, True])
def test_the_matrices_are_the_players_steps(alternating: bool) -> None:
    alpha, sigma, beta = 0.3, 0.8, e.polar(scalar(0.7), scalar(1 / 8))
    state = random(6)
    mu, (x, y) = torch.complex(state[:2], state[2:4]), state[4:]
    new_x, mu_x = e.complex_momentum_step(x, mu[0], sigma * y, alpha, beta)
    new_y, mu_y = e.complex_momentum_step(y, mu[1], -sigma * (new_x if alternating else x), alpha, beta)
    expected = torch.stack([mu_x.real, mu_y.real, mu_x.imag, mu_y.imag, new_x, new_y])
    M = e.augmented(scalar(alpha), beta, scalar(sigma))[alternating]
    torch.testing.assert_close(M @ state, expected)


def test_labels() -> None:
    assert [e.label(p) for p in (0, 1 / 16, 3 / 4, 1)] == ["0", "π/16", "3π/4", "π"]
