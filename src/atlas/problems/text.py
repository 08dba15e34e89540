"""The character corpus (King James Bible) as a next-character task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atlas import data


@dataclass(frozen=True)
class Corpus:
    """Characters as numbers 0..vocabulary-1. train, validation: (length,), the last tenth of the text validates."""

    train: Tensor
    validation: Tensor
    alphabet: str

    @property
    def vocabulary(self) -> int:
        return len(self.alphabet)

    def batch(
        self, shape: tuple[int, ...], context: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Random places of the training text: contexts (*shape, context) and the characters that follow (*shape)."""
        last = len(self.train) - context
        places = torch.randint(last, shape, generator=generator, device=self.train.device)
        return windows(self.train, places, context)

    def held_out(self, n: int, context: int) -> tuple[Tensor, Tensor]:
        """n places evenly spread over the validation text: contexts (n, context) and the characters that follow (n,)."""
        last = len(self.validation) - context - 1
        places = torch.linspace(0, last, n, dtype=torch.float64, device=self.validation.device).long()
        return windows(self.validation, places, context)


def windows(text: Tensor, places: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """The `context` characters from each place on (*places, context), and the character after them (*places)."""
    index = places.unsqueeze(-1) + torch.arange(context + 1, device=text.device)
    characters = text[index]
    return characters[..., :-1], characters[..., -1]


def corpus(name: str = "kjv", device: torch.device | str = "cpu") -> Corpus:
    """A text data set; its alphabet is every character that occurs in it."""
    codes = np.frombuffer(data.text(name).encode("ascii"), np.uint8)
    used, numbers = np.unique(codes, return_inverse=True)
    text = torch.from_numpy(numbers.astype(np.int64)).to(device)
    cut = len(text) * 9 // 10
    return Corpus(text[:cut], text[cut:], used.tobytes().decode("ascii"))
