"""`equality`: two things are the same up to a tolerance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from atlas.claims.base import Result, Scalar, Test, decide, interval_text
from atlas.errors import AtlasError

if TYPE_CHECKING:
    import pandas as pd


class Equality(Test):
    """Equivalence to `value` within `tolerance`.

    statistic 'max': the largest |metric - value| over all rows (deterministic identities; interval = the point);
    'mean': two one-sided tests: the (2 * level - 1) bootstrap interval of the mean over seeds lies in value +-
    tolerance.
    With `method` and `reference` the metric is first turned into the paired difference method - reference (divided by
    the reference's mean if `relative`), each run reduced by `at` as in `comparison`.
    """

    SELECTION: ClassVar = frozenset({"metric", "where", "method", "reference"})

    kind: Literal["equality"] = "equality"
    tolerance: float = Field(gt=0)
    value: float = 0.0
    statistic: Literal["max", "mean"] = "max"
    method: Scalar | None = None
    reference: Scalar | None = None
    by: str = "method"
    relative: bool = False
    at: Literal["last", "first", "min", "max", "mean"] | float = "last"

    def select(self, table: pd.DataFrame) -> pd.DataFrame:
        rows = super().select(table)
        return rows if self.method is None else rows[rows[self.by].isin([self.method, self.reference])]

    def test(self, rows: pd.DataFrame) -> Result:
        import numpy as np

        from atlas.claims import statistics as st

        if self.method is None:
            label = st.runs(rows)
            values = rows["value"].to_numpy(float)
            means = rows["value"].groupby(label).agg(lambda s: s.mean(skipna=False)).to_numpy(float)
            quantity = self.metric
        else:
            for name in (self.method, self.reference):
                if not (rows[self.by] == name).any():
                    raise AtlasError(f"no measurement of {self.metric} has {self.by} = {name}")
            wide = st.reduce(rows, self.at, self.by)
            reference = wide[self.reference].to_numpy(float)
            values = wide[self.method].to_numpy(float) - reference
            if self.relative:
                values = values / np.abs(reference.mean())
            means = values
            quantity = f"{self.metric}: {self.method} - {self.reference}" + (
                " (relative)" if self.relative else ""
            )
        off = np.abs(values - self.value)
        failed = int((~np.isfinite(values)).sum())
        reasons = [f"{failed} of {len(values)} values are not finite"] if failed else []
        kept = values[np.argsort(-np.where(np.isfinite(off), off, np.inf))[st.thin(len(values), 200)]]
        detail = {
            "values": kept.tolist(),
            "tolerance": self.tolerance,
            "value": self.value,
            "statistic": self.statistic,
        }
        if self.statistic == "max":
            worst_off = float(np.inf if failed else off.max())
            return Result(
                outcome="pass" if worst_off <= self.tolerance else "fail",
                quantity=f"largest |{quantity}{f' - {self.value:g}' if self.value else ''}|",
                criterion=f"<= {self.tolerance:g}", estimate=worst_off, low=worst_off, high=worst_off, level=self.level,
                claimed=self.value, reason="; ".join(reasons), detail=detail,
            )  # fmt: skip
        bounds = {"at_least": self.value - self.tolerance, "at_most": self.value + self.tolerance}
        common: dict[str, Any] = {
            "quantity": f"mean {quantity}",
            "criterion": interval_text(**bounds),
            "claimed": self.value,
        }
        level = 2 * self.level - 1  # two one-sided tests at 1 - level each (Schuirmann 1987)
        if failed:
            return Result(
                outcome="fail",
                estimate=np.inf,
                low=np.inf,
                high=np.inf,
                level=level,
                reason=reasons[0],
                detail=detail,
                **common,
            )
        estimate, low, high = st.mean_interval(np.asarray(means, np.float64), level)
        outcome = decide(low, high, **bounds)
        outcome = self.if_enough(len(means), outcome, reasons, "runs")
        return Result(
            outcome=outcome,
            estimate=estimate,
            low=low,
            high=high,
            level=level,
            reason="; ".join(reasons),
            detail=detail,
            **common,
        )
