"""The statistics behind the claim kinds, in numpy; loaded when a test runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from atlas.errors import AtlasError

Array = NDArray[np.float64]
REPLICATES = 2000
MEASURED = ("x", "metric", "value")


def runs(rows: pd.DataFrame, ignore: Sequence[str] = ()) -> pd.Series:
    """A label per row: which run (method, seed and conditions, without `ignore`) it belongs to."""
    keys = [c for c in rows.columns if c not in MEASURED and c not in ignore]
    return rows.groupby(keys, dropna=False, sort=True).ngroup()


def curves(rows: pd.DataFrame, x: str = "x") -> tuple[Array, Array]:
    """The runs as curves on their common grid: x (X,) and values (R, X).

    If `x` is a condition column, a run is one seed across its values and each point is the run's last value.
    Raises AtlasError if the runs do not share one grid.
    """
    if x not in rows.columns:
        raise AtlasError(f"the measurements have no column '{x}' (they have {', '.join(rows.columns)})")
    if x != "x":
        rows = rows.sort_values("x").assign(run=runs(rows)).groupby("run").tail(1)
    wide = rows.assign(run=runs(rows, ignore=(x, "run"))).pivot_table(
        index="run", columns=x, values="value", aggfunc="last", dropna=False
    )
    counts = rows.assign(run=runs(rows, ignore=(x, "run"))).groupby("run").size()
    if (counts != wide.shape[1]).any():
        raise AtlasError(
            f"the runs do not share one grid of {x}: {counts.min()} to {counts.max()} points of {wide.shape[1]}; "
            "select fewer conditions with 'where' or 'per'"
        )
    return wide.columns.to_numpy(float), wide.to_numpy(float)


@lru_cache(maxsize=64)
def resamples(n: int, replicates: int = REPLICATES) -> NDArray[np.int64]:
    """Indices (replicates, n) of the bootstrap, the same in every process."""
    return np.random.default_rng(20240229).integers(n, size=(replicates, n))


@lru_cache(maxsize=64)
def weights(n: int, replicates: int = REPLICATES) -> Array:
    """The same resamples as weights (replicates, n) that sum to one."""
    index = resamples(n, replicates)
    counts = np.zeros((len(index), n))
    np.add.at(counts, (np.arange(len(index))[:, None], index), 1.0)
    return counts / n


def interval(replicates: Array, n: int, level: float) -> tuple[float, float]:
    """Percentile bootstrap interval of `n` observations, widened for small n.

    The percentile interval is too narrow by the factor sqrt((n-1)/n) and uses normal instead of t quantiles; taking
    the percentiles at Phi(-+ sqrt(n/(n-1)) t) mends both to first order (Hesterberg, arXiv 1411.5279, section 4.2.4).
    Infinite replicates (failed runs) are counted, not dropped. One observation gives a point: a deterministic
    quantity (a claim says so by min_seeds: 1).
    """
    if n < 2:
        return float(replicates.min()), float(replicates.max())
    from scipy.special import ndtr, stdtrit

    tail = float(ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - level) / 2)))
    ordered = np.sort(replicates)
    last = len(ordered) - 1
    below = int(np.floor(tail * last))
    return float(ordered[below]), float(ordered[last - below])


def mean_interval(values: Array, level: float) -> tuple[float, float, float]:
    """Mean of (R,) values with its bootstrap interval."""
    with np.errstate(invalid="ignore"):
        replicates = values[resamples(len(values))].mean(1)
    return float(values.mean()), *interval(replicates, len(values), level)


def median_interval(values: Array, level: float) -> tuple[float, float, float]:
    """Median of (R,) values, which may be infinite, with its bootstrap interval."""
    replicates = lower_median(values[resamples(len(values))])
    return float(lower_median(values)), *interval(replicates, len(values), level)


def lower_median(values: Array) -> Array:
    """Median over the last axis that never averages +inf with -inf."""
    ordered = np.sort(values, axis=-1)
    n = values.shape[-1]
    a, b = ordered[..., (n - 1) // 2], ordered[..., n // 2]
    with np.errstate(invalid="ignore"):
        middle = (a + b) / 2
    return np.where(np.isfinite(middle), middle, np.where(np.isinf(a), a, b))


def average(values: Array, how: str) -> Array:
    """Average (R, X) over runs: mean, median or geometric."""
    if how == "geometric":
        with np.errstate(divide="ignore"):  # a zero makes the average zero
            return np.exp(np.log(values).mean(0))
    return np.median(values, 0) if how == "median" else values.mean(0)


def average_replicates(values: Array, how: str, replicates: int = REPLICATES) -> Array:
    """Bootstrap replicates (B, X) of `average`."""
    if how == "median":
        return np.median(values[resamples(len(values), replicates)], axis=1)
    w = weights(len(values), replicates)
    if how == "geometric":
        # logarithm of the smallest number instead of zero's: 0 * -inf would be NaN
        return np.exp(w @ np.log(np.maximum(values, np.finfo(float).tiny)))
    return w @ values


def line(x: Array, y: Array) -> tuple[Array, Array]:
    """Least-squares slope and intercept of y (..., X) on x (X,)."""
    centred = x - x.mean()
    slope = (y @ centred) / (centred @ centred)
    return slope, y.mean(-1) - slope * x.mean()


def straight_from(u: Array, v: Array, tolerance: float = 0.05, least: int = 4, latest: float = 0.6) -> int:
    """Index of the earliest point from which v(u) is a straight line: where the burn-in ends.

    A start is accepted if the slopes over the two halves of what follows both agree with the slope of the last part
    of the whole curve (its last 40 %), within `tolerance` (relative to the slope, at least absolute 0.05) and twice
    their standard errors. So neither a fast transient nor a slow start can lend its slope to the claim. If nothing
    straight is found, the last part itself is fitted.
    """
    if len(u) <= least:
        return 0
    last = min(int(np.searchsorted(u, u[0] + latest * (u[-1] - u[0]))), len(u) - least)
    last = max(last, 0)
    reference, error = _slope(u[last:], v[last:])
    for start in range(last):
        middle = start + max(int(np.searchsorted(u[start:], (u[start] + u[-1]) / 2)), 2)
        agree = True
        for part in (slice(start, middle), slice(min(middle, len(u) - 2), None)):
            slope, se = _slope(u[part], v[part])
            agree &= abs(slope - reference) <= max(tolerance, tolerance * abs(reference)) + 2 * np.hypot(
                se, error
            )
        if agree and max(_residual(u[start:], v[start:])) < 6:
            return start
    return last


def sublinear(x: Array, v: Array) -> float:
    """How much better v fits a line in log(x) or sqrt(x) than in x: ratio of the residual sums of squares."""
    since = x - x[0] + (x[1] - x[0])
    rss = []
    for form in (x, np.log(since), np.sqrt(since), np.log(np.maximum(x, since))):
        slope, intercept = line(form, v)
        rss.append(float(np.sum((v - intercept - slope * form) ** 2)))
    return rss[0] / max(min(rss[1:]), 1e-12 * float(v @ v) + 1e-300)


def _slope(u: Array, v: Array) -> tuple[float, float]:
    slope, intercept = line(u, v)
    if len(u) < 3:
        return float(slope), 0.0
    rest = v - intercept - slope * u
    se = np.sqrt(rest @ rest / (len(u) - 2) / ((u - u.mean()) @ (u - u.mean())))
    return float(slope), float(min(se, 0.1 * abs(slope) + 0.02))  # curvature must not pass for noise


def _residual(u: Array, v: Array) -> Array:
    slope, intercept = line(u, v)
    rest = np.abs(v - intercept - slope * u)
    return rest / max(float(np.median(rest)), 1e-3, 0.01 * float(np.ptp(v)))


def thin(n: int, most: int = 60) -> NDArray[np.int64]:
    """At most `most` indices of 0..n-1, evenly spread, both ends kept."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def band(values: Array, how: str, level: float) -> tuple[list[float], list[float]]:
    """Pointwise bootstrap interval of the average of (R, X) values."""
    replicates = average_replicates(values, how, 400)
    ends = [interval(column, len(values), level) for column in replicates.T]
    return [e[0] for e in ends], [e[1] for e in ends]


def curve_detail(x: Array, values: Array, how: str, level: float) -> dict[str, Any]:
    """What a figure draws of curves (R, X): at most 60 points of the average and its pointwise interval."""
    keep = thin(len(x))
    with np.errstate(all="ignore"):
        low, high = band(values[:, keep], how, level)
        mean = average(values[:, keep], how)
    return {"x": x[keep].tolist(), "mean": mean.tolist(), "low": low, "high": high}


def reduce(rows: pd.DataFrame, at: str | float, by: str, ignore: Sequence[str] = ()) -> pd.DataFrame:
    """One number per run: columns are the values of `by`, the index is (seed, conditions) shared by them.

    `at`: last, first, min, max, mean over x, or the x to read off. A run with any non-finite value counts as its
    worst: NaN stays NaN for min, max and mean; last, first and a given x read just that point.
    """
    keys = [c for c in rows.columns if c not in (*MEASURED, by, *ignore)]
    rows = rows.sort_values("x")
    if not isinstance(at, str):
        rows = rows[np.isclose(rows["x"].to_numpy(float), at)]
        if rows.empty:
            raise AtlasError(f"nothing was measured at x = {at}")
        at = "last"
    grouped = rows.groupby([*keys, by], dropna=False)["value"]
    functions: dict[str, Callable[[pd.Series], float]] = {
        "min": lambda s: s.min(skipna=False),
        "max": lambda s: s.max(skipna=False),
        "mean": lambda s: s.mean(skipna=False),
    }
    if at in functions:
        single = grouped.agg(functions[at])
    else:
        position = 0 if at == "first" else -1
        single = grouped.agg(lambda s: s.iloc[position])
    wide = single.unstack(by)
    # conditions that only one of the methods has cannot pair runs
    return wide if wide.notna().all(axis=None) or not keys else _pair(single, keys, by)


def _pair(single: pd.Series, keys: list[str], by: str) -> pd.DataFrame:
    frame = single.reset_index()
    shared = [
        k
        for k in keys
        if k == "seed" or frame.groupby(k, dropna=False)[by].nunique().min() == frame[by].nunique()
    ]
    return frame.pivot_table(
        index=shared or ["seed"], columns=by, values="value", aggfunc="last", dropna=False
    )


def clopper_pearson(k: int, n: int, level: float) -> tuple[float, float]:
    """Exact two-sided interval of a proportion k/n (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv

    alpha = (1 - level) / 2
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, alpha))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - alpha))
    return low, high
