"""Local training of all clients at once: their models are one batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def local_sgd(
    x: Tensor, clients: int, steps: int, eta: Tensor | float, gradients: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """The clients' models (..., n, P) after `steps` of y_i <- y_i - eta grad f_i(y_i), all from the server's model x (..., P).

    gradients(y, k): all clients' gradients (..., n, P) at their own models y (..., n, P) in local step k.
    """
    y = x.unsqueeze(-2).expand(*x.shape[:-1], clients, x.shape[-1])
    for k in range(steps):
        y = y - eta * gradients(y, k)
    return y
