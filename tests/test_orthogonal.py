"""The orthogonal factor against the singular value decomposition and torch's Muon."""

import numpy as np
import pytest
import torch
from torch.optim._muon import _zeropower_via_newtonschulz

from atlas.optim.orthogonal import newton_schulz, polar

F64 = torch.float64


@pytest.mark.parametrize("condition", [1e1, 1e5])
def test_polar_is_the_factor_of_the_svd(condition: float) -> None:
    torch.manual_seed(0)
    U, _, Vh = torch.linalg.svd(torch.randn(5, 7, 4, dtype=F64), full_matrices=False)
    M = U * torch.logspace(0, -np.log10(condition), 4, dtype=F64) @ Vh
    # the Gram matrix squares the condition number of the eigenvalues, the last Newton-Schulz step mends most of it
    torch.testing.assert_close(polar(M), U @ Vh, rtol=0, atol=1e-15 * condition**2 + 1e-14)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_newton_schulz_is_torchs(shape: tuple[int, int]) -> None:
    """torch iterates in bfloat16, with a rounding error of 2^-9 in every product, which five steps amplify some twenty times."""
    torch.manual_seed(0)
    for _ in range(20):
        U, _, Vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        M = U * torch.linspace(1, 0.3, min(shape)) @ Vh
        theirs = _zeropower_via_newtonschulz(M, (3.4445, -4.775, 2.0315), 5, 1e-7).float()
        assert (newton_schulz(M) - theirs).norm() < 0.05 * theirs.norm()


def test_newton_schulz_keeps_the_singular_vectors() -> None:
    """In exact arithmetic it maps every singular value by the same polynomial."""
    torch.manual_seed(0)
    M = torch.randn(3, 6, 4, dtype=F64)
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    s = S / S.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(newton_schulz(M), U * s.unsqueeze(-2) @ Vh, rtol=0, atol=1e-5)


def test_a_step_of_torchs_muon() -> None:
    """Three steps with momentum and weight decay: W <- (1 - lr decay) W - lr sqrt(max(1, m/n)) newton_schulz(M)."""
    torch.manual_seed(0)
    W = torch.randn(6, 4)
    parameter = torch.nn.Parameter(W.clone())
    optimizer = torch.optim.Muon([parameter], lr=0.1, momentum=0.8, nesterov=False, weight_decay=0.5)
    M = torch.zeros_like(W)
    for _ in range(3):
        parameter.grad = torch.randn(6, 4)
        M = 0.8 * M + 0.2 * parameter.grad
        W = (1 - 0.1 * 0.5) * W - 0.1 * (6 / 4) ** 0.5 * newton_schulz(M)
        optimizer.step()
    torch.testing.assert_close(W, parameter.detach(), rtol=0, atol=0.02)  # bfloat16; the steps move W by 0.3
