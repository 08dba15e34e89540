"""Synthetic measurements with a known answer."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]


def table(
    values: Array, x: Array, method: str = "A", metric: str = "error", **conditions: object
) -> pd.DataFrame:
    """values (seeds, X) on x (X,) as a tidy table."""
    seeds, points = values.shape
    return pd.DataFrame(
        {
            "method": method,
            "seed": np.repeat(np.arange(seeds), points),
            "x": np.tile(x.astype(float), seeds),
            "metric": metric,
            "value": values.ravel(),
            **conditions,
        }
    )


def noisy(curve: Callable[[Array], Array], x: Array, seeds: int, noise: float, seed: int = 0) -> Array:
    """curve(x) with log-normal noise that is part per-run factor, part independent: (seeds, X), mean curve(x)."""
    rng = np.random.default_rng(seed)
    z = noise * (0.5 * rng.normal(size=(seeds, 1)) + rng.normal(size=(seeds, len(x))))
    return curve(x) * np.exp(z - 0.625 * noise**2)
