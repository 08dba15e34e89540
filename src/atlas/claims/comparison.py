"""`comparison`: method A beats methods B, C, ... on paired runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from atlas.claims.base import Result, Scalar, Test, decide_above, worst
from atlas.errors import AtlasError

if TYPE_CHECKING:
    import pandas as pd


class Comparison(Test):
    """Paired difference over seeds, positive when `method` is better, with a bootstrap interval; every baseline must
    be beaten by more than `margin` (the worst baseline decides; each gets a group of its own in the result).

    `at` reduces each run to one number: its last x, first x, min, max or mean over x, or the value at a given x.
    relative: the difference is divided by the mean of the baseline.
    share_of: the tested quantity is (method - baseline) / (share_of - baseline), means over seeds: the part of another
    method's gain that `method` already has; passes if > margin.
    A failed run (NaN or infinite) counts as worse than every finite one; with failed runs the median difference is
    tested instead of the mean.
    """

    SELECTION: ClassVar = frozenset({"metric", "where", "method", "baselines"})

    kind: Literal["comparison"] = "comparison"
    method: Scalar
    baselines: list[Scalar] = Field(min_length=1)
    by: str = Field("method", description="the column that holds `method` and `baselines`")
    better: Literal["lower", "higher"] = "lower"
    at: Literal["last", "first", "min", "max", "mean"] | float = "last"
    margin: float = 0.0
    relative: bool = False
    share_of: Scalar | None = None

    def as_control(self, result: Result) -> Result:
        """A control of a comparison is a null effect, whose interval should hold zero: no gain shown is a failure."""
        few = result.reason.startswith("only ") or "; only " in result.reason
        return (
            result.model_copy(update={"outcome": "fail"})
            if result.outcome == "unclear" and not few
            else result
        )

    def test(self, rows: pd.DataFrame) -> Result:
        import numpy as np

        from atlas.claims import statistics as st

        wanted = [self.method, *self.baselines, *([self.share_of] if self.share_of is not None else [])]
        for name in wanted:
            if not (rows[self.by] == name).any():
                raise AtlasError(f"no measurement of {self.metric} has {self.by} = {name}")
        wide = st.reduce(rows[rows[self.by].isin(wanted)], self.at, self.by)
        sign = 1.0 if self.better == "higher" else -1.0
        groups = {}
        for baseline in self.baselines:
            a, b = wide[self.method].to_numpy(float), wide[baseline].to_numpy(float)
            worst_value = -sign * np.inf
            a, b = (np.where(np.isfinite(v), v, worst_value) for v in (a, b))
            with np.errstate(invalid="ignore"):
                difference = sign * (a - b)
            difference = np.where(np.isnan(difference), 0.0, difference)  # both failed: a tie
            failed = int(np.isinf(a).sum()), int(np.isinf(b).sum())
            reasons = (
                [f"failed runs: {failed[0]} of {self.method}, {failed[1]} of {baseline}"]
                if any(failed)
                else []
            )
            n = len(difference)
            quantity = f"{self.metric}: gain of {self.method} over {baseline}"
            if self.share_of is not None:
                gain = sign * (wide[self.share_of].to_numpy(float) - wide[baseline].to_numpy(float))
                index = st.resamples(n)
                with np.errstate(divide="ignore", invalid="ignore"):
                    replicates = difference[index].mean(1) / gain[index].mean(1)
                    estimate = float(difference.mean() / gain.mean())
                replicates = np.where(gain[index].mean(1) > 0, replicates, -np.inf)
                low, high = st.interval(replicates, n, self.level)
                if not np.isfinite(estimate) or gain.mean() <= 0:
                    estimate, reasons = 0.0, [*reasons, f"{self.share_of} has no gain over {baseline}"]
                quantity = f"{self.metric}: share of the gain of {self.share_of} over {baseline} that {self.method} has"
            else:
                center = st.median_interval if any(failed) else st.mean_interval
                estimate, low, high = center(difference, self.level)
                if self.relative and np.isfinite(b).any():
                    scale = float(np.abs(b[np.isfinite(b)].mean()))
                    estimate, low, high = estimate / scale, low / scale, high / scale
                    quantity += " (relative)"
            outcome = decide_above(low, high, self.margin)
            outcome = self.if_enough(n, outcome, reasons, "paired runs")
            kept = difference[st.thin(n, 200)]
            groups[str(baseline)] = Result(
                outcome=outcome, quantity=quantity, criterion=f"> {self.margin:g}", estimate=estimate, low=low, high=high,
                level=self.level, reason="; ".join(reasons),
                detail={
                    "differences": kept.tolist(),
                    "method": a[st.thin(n, 200)].tolist(),
                    "baseline": b[st.thin(n, 200)].tolist(),
                    "names": [str(self.method), str(baseline)],
                },
            )  # fmt: skip
        return worst(groups) if len(groups) > 1 else next(iter(groups.values()))
