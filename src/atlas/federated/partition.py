"""Splits of a labelled data set over clients: every sample belongs to exactly one client."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Indices = NDArray[np.int64]


def dirichlet(
    y: ArrayLike, clients: int, alpha: float, rng: np.random.Generator, least: int = 1
) -> list[Indices]:
    """Every class is shared in proportions drawn from Dirichlet(alpha, ..., alpha) (arXiv 1909.06335 draws them per client).

    y: labels (n,). Small alpha: few clients hold most of a class. Drawn again until every client has at least `least` samples.
    Returns the sorted indices of each client's samples.
    """
    y = np.asarray(y)
    if clients * least > len(y):
        raise ValueError(f"{len(y)} samples cannot give {clients} clients {least} each")
    while True:
        parts: list[list[Indices]] = [[] for _ in range(clients)]
        for samples in _classes(y, rng):
            shares = rng.dirichlet(np.full(clients, alpha))
            ends = np.rint(shares[:-1].cumsum() * len(samples)).astype(int)  # left-overs: rounded, in turn
            for part, piece in zip(parts, np.split(samples, ends), strict=True):
                part.append(piece)
        owned = [np.sort(np.concatenate(part)) for part in parts]
        if min(map(len, owned)) >= least:
            return owned


def by_class(y: ArrayLike, clients: int, classes_per_client: int, rng: np.random.Generator) -> list[Indices]:
    """Every client holds `classes_per_client` classes; a class is shared equally by its owners.

    The numbers of owners of two classes differ by at most one, and so do the shares of two owners of a class; who gets more is
    random. Returns the sorted indices of each client's samples.
    """
    y = np.asarray(y)
    classes = _classes(y, rng)
    if not classes_per_client <= len(classes) <= clients * classes_per_client:
        raise ValueError(
            f"{clients} clients with {classes_per_client} classes each cannot share {len(classes)} classes"
        )
    owners: list[list[int]] = [[] for _ in classes]
    for client in range(clients):  # takes the classes with the fewest owners, ties in random order
        order = np.argsort(np.array([len(o) for o in owners]) + rng.random(len(classes)))
        for c in order[:classes_per_client]:
            owners[c].append(client)
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for samples, those in zip(classes, owners, strict=True):
        for client, piece in zip(rng.permutation(those), np.array_split(samples, len(those)), strict=True):
            parts[client].append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def _classes(y: NDArray[np.generic], rng: np.random.Generator) -> list[Indices]:
    """The samples of every class, in random order."""
    return [rng.permutation(np.flatnonzero(y == label)) for label in np.unique(y)]
