"""`speedup`: ratio of the resource that two methods need to reach a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from atlas.claims.base import Result, Scalar, Test, decide, interval_text
from atlas.errors import AtlasError

if TYPE_CHECKING:
    import pandas as pd

    from atlas.claims.statistics import Array


class Speedup(Test):
    """Median over seeds of x_slow / x_fast, x being the first x (interpolated) at which the metric meets the target.

    A run that never meets it is right-censored: it counts as 'more than its budget' (a lower bound on x), so an
    interval may be open to one side; it is never dropped. Bootstrap over seeds (paired by seed and by any condition
    columns both methods share).
    form 'at_least': ratio >= factor * (1 - tolerance); 'equals': ratio within factor * (1 +- tolerance).
    `factor` may name a condition column that holds the predicted ratio of each run; the tested quantity is then
    measured / predicted against 1.
    """

    SELECTION: ClassVar = frozenset({"metric", "where", "fast", "slow"})

    kind: Literal["speedup"] = "speedup"
    fast: Scalar
    slow: Scalar
    by: str = Field("method", description="the column that holds `fast` and `slow`")
    target: float
    relative: Literal["no", "initial"] = Field(
        "no", description="'initial': target is a fraction of the first value"
    )
    reach: Literal["below", "above"] = "below"
    factor: float | str = 1.0
    tolerance: float = Field(0.1, ge=0)
    form: Literal["at_least", "equals"] = "at_least"
    headline: float | None = Field(None, description="the paper's own factor, shown beside")

    def test(self, rows: pd.DataFrame) -> Result:
        import numpy as np

        from atlas.claims import statistics as st

        rows = rows[rows[self.by].isin([self.fast, self.slow])]
        for name in (self.fast, self.slow):
            if not (rows[self.by] == name).any():
                raise AtlasError(f"no measurement of {self.metric} has {self.by} = {name}")
        times = {name: self._times(rows[rows[self.by] == name]) for name in (self.fast, self.slow)}
        fast, slow = times[self.fast].align(times[self.slow], join="inner", axis=0)
        if fast.empty:
            raise AtlasError(f"{self.fast} and {self.slow} share no (seed, condition) to pair runs by")
        tf, ts = fast["time"].to_numpy(float), slow["time"].to_numpy(float)
        cf, cs = fast["censored"].to_numpy(bool), slow["censored"].to_numpy(bool)
        predicted = np.full(len(tf), self.factor if isinstance(self.factor, float | int) else np.nan, float)
        if isinstance(self.factor, str):
            predicted = fast["predicted"].to_numpy(float)
        scale = predicted if isinstance(self.factor, str) else np.ones(len(tf))
        low_ratio = np.where(cf, 0.0, ts / tf) / scale
        high_ratio = np.where(cs, np.inf, ts / tf) / scale
        n = len(tf)
        low = st.interval(st.lower_median(low_ratio[st.resamples(n)]), n, self.level)[0]
        high = st.interval(st.lower_median(high_ratio[st.resamples(n)]), n, self.level)[1]
        estimate = float(np.median(ts / tf / scale))
        if n == 1:
            low, high = float(low_ratio[0]), float(high_ratio[0])
        target = 1.0 if isinstance(self.factor, str) else float(self.factor)
        bounds = {"at_least": target * (1 - self.tolerance)}
        if self.form == "equals":
            bounds["at_most"] = target * (1 + self.tolerance)
        outcome = decide(low, high, **bounds)
        reasons = []
        for name, censored in ((self.fast, cf), (self.slow, cs)):
            if censored.any():
                reasons.append(f"{censored.sum()} of {n} runs of {name} never reach the target")
        if cf.all() and cs.all():
            outcome = "unclear"
        if cf.all() and not cs.any():  # the method that should be faster never arrives, the other always does
            outcome, estimate, low, high = "fail", 0.0, 0.0, min(high, float(np.median(ts / tf / scale)))
        outcome = self.if_enough(n, outcome, reasons)
        ratio = f"{self.slow} / {self.fast}"
        quantity = f"ratio of {rows.columns[2]} to reach the target, {ratio}"
        if isinstance(self.factor, str):
            quantity += ", over the predicted ratio"
        own = self.form == "at_least" or isinstance(self.factor, str)  # our threshold, not the paper's number
        detail = {
            "fast": tf.tolist()[:400],
            "slow": ts.tolist()[:400],
            "censored_fast": int(cf.sum()),
            "censored_slow": int(cs.sum()),
            "ratio": (ts / tf).tolist()[:400],
            "predicted": predicted.tolist()[:400],
            "names": [str(self.fast), str(self.slow)],
        }
        return Result(
            outcome=outcome, quantity=quantity, criterion=interval_text(**bounds), estimate=estimate, low=low, high=high,
            level=self.level, claimed=self.headline or (None if own else target),
            reason="; ".join(reasons), detail=detail,
        )  # fmt: skip

    def _times(self, rows: pd.DataFrame) -> pd.DataFrame:
        """First x that meets the target, per run: columns time, censored (and predicted), indexed by seed + conditions."""
        import numpy as np
        import pandas as pd

        predicted = [self.factor] if isinstance(self.factor, str) else []
        for name in predicted:
            if name not in rows.columns:
                raise AtlasError(f"factor: the measurements have no column '{name}'")
        keys = [c for c in rows.columns if c not in ("x", "metric", "value", self.by, *predicted)]
        rows = rows.sort_values("x")
        found = []
        for key, run in rows.groupby(keys, dropna=False):
            x, y = run["x"].to_numpy(float), run["value"].to_numpy(float)
            target = self.target * (y[0] if self.relative == "initial" else 1.0)
            with np.errstate(invalid="ignore"):
                met = np.flatnonzero(y <= target if self.reach == "below" else y >= target)
            time, censored = (x[-1], True) if not len(met) else (_crossing(x, y, met[0], target), False)
            found.append((key, time, censored, *(run[name].iloc[0] for name in predicted)))
        index = pd.MultiIndex.from_tuples([f[0] for f in found], names=keys)
        columns = ["time", "censored", *(["predicted"] if predicted else [])]
        return pd.DataFrame([f[1:] for f in found], index=index, columns=columns)


def _crossing(x: Array, y: Array, i: int, target: float) -> float:
    """Where the curve crosses the target before its i-th point; logarithmic in y where y is positive."""
    import numpy as np

    if i == 0 or not np.isfinite(y[i - 1]) or y[i] == y[i - 1]:
        return float(x[i])
    a, b, c = (
        (np.log([y[i - 1], y[i], target])) if min(y[i - 1], y[i], target) > 0 else (y[i - 1], y[i], target)
    )
    return float(x[i - 1] + (x[i] - x[i - 1]) * (c - a) / (b - a))
