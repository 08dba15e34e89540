"""Games of two players: a small GAN that learns a ring of Gaussians in the plane."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from atlas.models.networks import MLP, value_and_gradient


def ring(n: int, *batch: int, generator: torch.Generator, modes: int = 8, width: float = 0.1) -> Tensor:
    """Samples (*batch, n, 2) of Gaussians of standard deviation `width` around `modes` points of the unit circle."""
    device = generator.device
    angle = torch.randint(modes, (*batch, n), generator=generator, device=device) * (2 * math.pi / modes)
    centre = torch.stack([angle.cos(), angle.sin()], -1)
    return centre + width * torch.randn(centre.shape, generator=generator, device=device)


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 16) -> Tensor:
    """Mean over directions of the half circle of the Wasserstein-1 distance of the projected samples.

    a, b: (..., n, 2), as many samples of both; batch dimensions broadcast; returns (...).
    """
    angle = torch.arange(directions, device=a.device) * (math.pi / directions)
    u = torch.stack([angle.cos(), angle.sin()]).to(a)
    return ((a @ u).sort(-2).values - (b @ u).sort(-2).values).abs().mean((-2, -1))


@dataclass(frozen=True)
class ToyGAN:
    """Generator and discriminator, both fully connected, with the non-saturating loss; noise and data are in the plane.

    Parameters of many pairs are batched: generators (*batch, P_G), discriminators (*batch, P_D); inputs broadcast.
    """

    hidden: tuple[int, ...] = (32, 32)

    @property
    def generator(self) -> MLP:
        return MLP((2, *self.hidden, 2))

    @property
    def discriminator(self) -> MLP:
        return MLP((2, *self.hidden, 1))

    def discriminator_gradient(self, d: Tensor, g: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """Of mean softplus(-D(x)) + mean softplus(D(G(z))) in d. x, z: (..., n, 2)."""
        fake = self.generator(g, z)
        both = torch.cat([x.expand(fake.shape), fake], -2)
        n = x.shape[-2]

        def loss(d: Tensor) -> Tensor:
            logits = self.discriminator(d, both).squeeze(-1)
            return softplus(-logits[..., :n]).mean(-1) + softplus(logits[..., n:]).mean(-1)

        return value_and_gradient(loss, d)[1]

    def generator_gradient(self, d: Tensor, g: Tensor, z: Tensor) -> Tensor:
        """Of mean softplus(-D(G(z))) in g."""

        def loss(g: Tensor) -> Tensor:
            return softplus(-self.discriminator(d, self.generator(g, z)).squeeze(-1)).mean(-1)

        return value_and_gradient(loss, g)[1]
