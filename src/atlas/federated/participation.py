"""Which clients take part in a round: so many drawn from a pool, or each by a pattern of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def without_replacement(pool: Tensor, n: int, seeds: int, generator: torch.Generator) -> Tensor:
    """n different clients of `pool` (m,), drawn for every seed: (seeds, n)."""
    order = torch.rand(seeds, len(pool), generator=generator, device=pool.device).argsort(-1)
    return pool[order[:, :n]]


def of_clients(values: Tensor, chosen: Tensor) -> Tensor:
    """What belongs to the chosen clients. values: (..., N, d), chosen: (..., n); returns (..., n, d)."""
    return values.gather(-2, chosen.unsqueeze(-1).expand(*chosen.shape, values.shape[-1]))


class Pattern(Protocol):
    """Clients (..., N) that take part independently of each other, each with a frequency of its own.

    The state is one tensor (..., N), so that a loop can be resumed; the first one is drawn from the stationary distribution.

    >>> clients = pattern.start(generator)
    >>> for t in range(rounds):
    ...     active = pattern.active(clients)  # bool (..., N)
    ...     clients = pattern.next(clients, generator)
    """

    @property
    def frequency(self) -> Tensor:
        """The share of the rounds in which a client takes part, in the long run: (..., N)."""

    def start(self, generator: torch.Generator) -> Tensor: ...

    def next(self, state: Tensor, generator: torch.Generator) -> Tensor: ...

    def active(self, state: Tensor) -> Tensor: ...


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Bernoulli:
    """In every round anew with probability p."""

    p: Tensor

    @property
    def frequency(self) -> Tensor:
        return self.p

    def start(self, generator: torch.Generator) -> Tensor:
        return _uniform(self.p, generator) < self.p

    def next(self, state: Tensor, generator: torch.Generator) -> Tensor:
        return self.start(generator)

    def active(self, state: Tensor) -> Tensor:
        return state


@dataclass(frozen=True)
class Markov:
    """A chain of two states with stationary frequency p; an absent client returns with probability `enter`.

    A present client leaves with probability enter (1/p - 1). Where this exceeds 1, both are divided by it, which keeps p. The
    correlation of two successive rounds is 1 - enter - leave: positive where enter < p.
    """

    p: Tensor
    enter: float

    @property
    def frequency(self) -> Tensor:
        return self.p

    @property
    def rates(self) -> tuple[Tensor, Tensor]:
        """The probabilities to enter and to leave, (..., N) each."""
        leave = self.enter * (1 / self.p - 1)
        return self.enter / leave.clamp(min=1), leave.clamp(max=1)

    def start(self, generator: torch.Generator) -> Tensor:
        return _uniform(self.p, generator) < self.p

    def next(self, state: Tensor, generator: torch.Generator) -> Tensor:
        enter, leave = self.rates
        return torch.where(state, 1 - leave, enter) > _uniform(self.p, generator)

    def active(self, state: Tensor) -> Tensor:
        return state


@dataclass(frozen=True)
class Cyclic:
    """The first round(cycle p) rounds, at least one, of every `cycle` rounds, which begin at a time of its own for each client."""

    p: Tensor
    cycle: int

    @property
    def rounds(self) -> Tensor:
        """Rounds of a cycle in which a client takes part."""
        return (self.cycle * self.p).round().clamp(min=1)

    @property
    def frequency(self) -> Tensor:
        return self.rounds / self.cycle

    def start(self, generator: torch.Generator) -> Tensor:
        return torch.randint(self.cycle, self.p.shape, generator=generator, device=self.p.device)

    def next(self, state: Tensor, generator: torch.Generator) -> Tensor:
        return (state + 1) % self.cycle

    def active(self, state: Tensor) -> Tensor:
        return state < self.rounds


def masks(pattern: Pattern, rounds: int, generator: torch.Generator) -> Tensor:
    """Who takes part in each of the rounds: bool (rounds, ..., N)."""
    state, drawn = pattern.start(generator), []
    for _ in range(rounds):
        drawn.append(pattern.active(state))
        state = pattern.next(state, generator)
    return torch.stack(drawn)
