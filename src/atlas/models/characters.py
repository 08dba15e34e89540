"""A small language model of characters: the next one from the last few, by a fully connected network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.models.networks import MLP, Network


@dataclass(frozen=True)
class CharacterMLP(Network):
    """Embeds `context` characters, one hidden tanh layer, logits of the next character (Bengio et al. 2003)."""

    vocabulary: int
    context: int = 8
    embedding: int = 16
    hidden: int = 64

    @cached_property
    def mlp(self) -> MLP:
        return MLP((self.context * self.embedding, self.hidden, self.vocabulary), torch.tanh)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:  # type: ignore[override]
        return {"embedding": (self.vocabulary, self.embedding), **self.mlp.shapes}

    def gain(self, name: str) -> float:
        # the embedding is a table, not a sum over its rows: its entries are N(0, 1)
        return float(self.vocabulary) ** 0.5 if name == "embedding" else self.mlp.gain(name)

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """x: characters (*batch, n, context), batch dimensions broadcast against theta's; logits (*batch, n, vocabulary)."""
        batch = torch.broadcast_shapes(theta.shape[:-1], x.shape[:-2])
        table, rest = theta.expand(*batch, -1).split([self.vocabulary * self.embedding, self.mlp.size], -1)
        rows = table.reshape(-1, self.embedding)  # of all networks below each other
        first = torch.arange(0, len(rows), self.vocabulary, device=x.device).view(*batch, 1, 1)
        return self.mlp(rest, F.embedding(x + first, rows).flatten(-2))
