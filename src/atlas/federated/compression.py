"""Compressed messages: compressors of vectors (…, d), error feedback, and what a message costs in bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Compressor = Callable[[Tensor], Tensor]  # (..., d) -> (..., d)


def identity(u: Tensor) -> Tensor:
    """The vector itself: no compression."""
    return u


def scaled_sign(u: Tensor, norm: int = 1) -> Tensor:
    """The signs times ||u|| / ||sign(u)||: one bit an entry (zero counts as positive) and one number a vector.

    norm 1: the mean of |u_j|, the best scale, contractive with alpha = ||u||_1^2 / (d ||u||_2^2); norm 2: the signs get the length of
    u, contractive only where ||u||_1 > sqrt(d) ||u||_2 / 2.
    """
    scale = u.abs().mean(-1, keepdim=True) if norm == 1 else u.square().mean(-1, keepdim=True).sqrt()
    return torch.copysign(scale, u)


def top_k(v: Tensor, k: int) -> Tensor:
    """Keep the k entries of largest magnitude in the last dimension: contractive with alpha = k/d."""
    kept = v.abs().topk(k, dim=-1).indices
    return torch.zeros_like(v).scatter(-1, kept, v.gather(-1, kept))


def by_blocks(compress: Compressor, sizes: Sequence[int]) -> Compressor:
    """Compresses every block of a vector (the tensors of a network, of these sizes) on its own."""
    return lambda u: torch.cat([compress(part) for part in u.split(list(sizes), -1)], -1)


def with_feedback(u: Tensor, error: Tensor, compress: Compressor) -> tuple[Tensor, Tensor]:
    """One step of error feedback: sends C(u + e); e <- u + e - C(u + e). Returns what is sent and the new error."""
    total = u + error
    sent = compress(total)
    return sent, total - sent


def dense_bits(d: int, value: int = 32) -> int:
    """Bits of d numbers of `value` bits."""
    return d * value


def sign_bits(d: int, blocks: int = 1, value: int = 32) -> int:
    """Bits of d signs and one number a block."""
    return d + blocks * value


def top_k_bits(d: int, k: int, value: int = 32) -> int:
    """Bits of k of d numbers and their places."""
    return k * (value + (d - 1).bit_length())
