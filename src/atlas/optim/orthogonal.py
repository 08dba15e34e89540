"""The orthogonal factor of a matrix, exact and as Muon approximates it, for batches (..., m, n)."""

from __future__ import annotations

import torch
from torch import Tensor


def polar(M: Tensor) -> Tensor:
    """U V' of the singular value decomposition M = U S V' (..., rows >= columns), of full rank.

    M (M'M)^(-1/2) from the eigenvalues of the small side, then one Newton-Schulz step, which squares the rounding error.
    """
    eigenvalues, Q = torch.linalg.eigh(M.mT @ M)
    O = M @ (Q * eigenvalues.clamp_min(1e-300).rsqrt().unsqueeze(-2)) @ Q.mT
    return 1.5 * O - 0.5 * O @ (O.mT @ O)


def newton_schulz(M: Tensor, steps: int = 5) -> Tensor:
    """Muon's quintic iteration: an approximate polar factor with singular values in about [0.7, 1.2]."""
    transposed = M.shape[-2] > M.shape[-1]
    X = M.mT if transposed else M
    X = X / (X.flatten(-2).norm(dim=-1)[..., None, None] + 1e-7)
    for _ in range(steps):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.mT if transposed else X
