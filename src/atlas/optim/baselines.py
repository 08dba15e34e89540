"""The optimizers that papers compare theirs with, for batched parameters theta (*batch, P).

Each writes theta and its moments in place; `rate` is a number or broadcasts against theta, e.g. (rates, 1, 1) for theta
(rates, seeds, P).
"""

from __future__ import annotations

from torch import Tensor


def sgd(
    theta: Tensor,
    g: Tensor,
    m: Tensor,
    rate: Tensor | float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> None:
    """g += weight_decay theta;  m <- momentum m + g;  theta <- theta - rate m."""
    m.mul_(momentum).add_(g)
    if weight_decay:
        m.add_(theta, alpha=weight_decay)
    if isinstance(rate, Tensor):
        theta.addcmul_(m, rate, value=-1)  # large temporary tensors would cost as much as the arithmetic
    else:
        theta.sub_(m, alpha=rate)


def adam(
    theta: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, rate: Tensor | float, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8, decoupled_decay: float = 0.0,
) -> None:  # fmt: skip
    """Step t = 1, 2, ... of Adam (arXiv 1412.6980, algorithm 1); with decoupled_decay AdamW (arXiv 1711.05101)."""
    if decoupled_decay:
        theta.mul_(1 - rate * decoupled_decay)
    m.lerp_(g, 1 - betas[0])
    v.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
    denominator = (v / (1 - betas[1] ** t)).sqrt_().add_(eps).div_(rate)
    theta.addcdiv_(m, denominator, value=-1 / (1 - betas[0] ** t))


def diffgrad(
    theta: Tensor, g: Tensor, previous: Tensor, m: Tensor, v: Tensor, t: int, rate: Tensor | float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
) -> None:  # fmt: skip
    """Step t = 1, 2, ... of diffGrad (arXiv 1909.11015): Adam's, times sigmoid(|g_{t-1} - g_t|); `previous` is g_{t-1}, first 0."""
    m.lerp_(g, 1 - betas[0])
    v.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
    friction = previous.sub_(g).abs_().sigmoid_()
    denominator = (v / (1 - betas[1] ** t)).sqrt_().add_(eps)
    theta.sub_(rate / (1 - betas[0] ** t) * friction * m / denominator)
    previous.copy_(g)
