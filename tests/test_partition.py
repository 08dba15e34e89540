import numpy as np
import pytest
import torch

from atlas.federated.partition import by_class, dirichlet

Y = np.repeat(np.arange(10), 103)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def counts(parts: list[np.ndarray], y: np.ndarray = Y) -> np.ndarray:
    """Samples of every client (row) and class (column)."""
    return np.array([[np.sum(y[part] == c) for c in np.unique(y)] for part in parts])


@pytest.mark.parametrize("seed", range(5))
def test_every_sample_belongs_to_one_client(seed: int) -> None:
    y = rng(seed).permutation(Y)
    for parts in (dirichlet(y, 7, 0.2, rng(seed)), by_class(y, 7, 3, rng(seed))):
        assert len(parts) == 7
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(y)))
        assert all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize("clients, k", [(10, 2), (7, 3), (5, 2), (20, 4), (3, 10)])
def test_classes_have_equally_many_owners_who_share_equally(clients: int, k: int) -> None:
    table = counts(by_class(Y, clients, k, rng()))
    assert ((table > 0).sum(1) == k).all()
    owners = (table > 0).sum(0)
    assert np.ptp(owners) <= 1 and owners.sum() == clients * k
    for column, n in zip(table.T, owners, strict=True):
        assert sorted(column[column > 0]) == sorted([103 // n] * (n - 103 % n) + [103 // n + 1] * (103 % n))


def test_who_gets_the_left_over_is_random() -> None:
    """Three samples for two clients: each has two of them in half of the splits."""
    first = np.array([len(by_class([0, 0, 0], 2, 1, rng(seed))[0]) for seed in range(400)])
    assert set(first) == {1, 2} and abs(np.mean(first == 2) - 0.5) < 4 * 0.5 / 20


def test_one_class_per_client() -> None:
    parts = by_class(torch.tensor([1, 0, 1, 0, 0]), 2, 1, rng())
    assert sorted(part.tolist() for part in parts) == [[0, 2], [1, 3, 4]]


def test_dirichlet_proportions() -> None:
    """Shares of a class: mean 1/K, variance (1/K)(1 - 1/K)/(K alpha + 1)."""
    K, alpha, y = 4, 0.5, np.repeat(np.arange(2), 1000)
    shares = np.concatenate(
        [counts(dirichlet(y, K, alpha, rng(seed), least=0), y).T / 1000 for seed in range(500)]
    )
    n = len(shares)
    variance = (1 / K) * (1 - 1 / K) / (K * alpha + 1)
    assert np.abs(shares.mean(0) - 1 / K).max() < 4 * (variance / n) ** 0.5
    assert np.abs(shares.var(0) / variance - 1).max() < 0.2


def test_dirichlet_limits() -> None:
    """alpha -> infinity: equal shares; alpha -> 0: every class has one owner."""
    assert np.abs(counts(dirichlet(Y, 10, 1e8, rng())) - 10.3).max() <= 1
    assert ((counts(dirichlet(Y, 3, 1e-4, rng(), least=0)) > 0).sum(0) == 1).all()


def test_dirichlet_leaves_nobody_without_samples() -> None:
    assert min(map(len, dirichlet(Y, 10, 0.05, rng(1), least=0))) < 20
    assert min(map(len, dirichlet(Y, 10, 0.05, rng(1), least=20))) >= 20


def test_impossible_splits() -> None:
    with pytest.raises(ValueError, match="4 clients with 2 classes each cannot share 10 classes"):
        by_class(Y, 4, 2, rng())
    with pytest.raises(ValueError, match="cannot share"):
        by_class(Y, 4, 11, rng())
    with pytest.raises(ValueError, match="2 samples cannot give 3 clients 1 each"):
        dirichlet([0, 1], 3, 1.0, rng())
