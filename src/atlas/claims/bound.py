"""`bound`: an inequality holds on (nearly) every sampled instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from atlas.claims.base import Outcome, Result, Test
from atlas.errors import AtlasError

if TYPE_CHECKING:
    import pandas as pd


class Bound(Test):
    """Fraction of instances that violate metric <= limit (or >=), with its exact (Clopper-Pearson) interval.

    An instance is one seed within each combination of `method` and the condition columns in `instance` (default: all
    of them); it violates if any of its rows does, or is NaN. Passes if the interval's upper end is below allow +
    resolution and its lower end does not exceed allow; with allow = 0 a single violation fails it.
    `limit` may name a column that holds each row's bound.
    """

    SELECTION: ClassVar = frozenset({"metric", "where"})

    kind: Literal["bound"] = "bound"
    limit: float | str = 0.0
    side: Literal["at_most", "at_least"] = "at_most"
    slack: float = Field(0.0, ge=0, description="absolute slack added to the bound, for rounding")
    allow: float = Field(0.0, ge=0, lt=1, description="claimed largest fraction of violations")
    resolution: float = Field(0.05, gt=0, description="how far the interval may reach above `allow`")
    instance: list[str] | None = None

    def test(self, rows: pd.DataFrame) -> Result:
        import numpy as np

        from atlas.claims import statistics as st

        if isinstance(self.limit, str):
            if self.limit not in rows.columns:
                raise AtlasError(f"limit: the measurements have no column '{self.limit}'")
            limit = rows[self.limit].to_numpy(float)
        else:
            limit = np.full(len(rows), self.limit)
        sign = 1.0 if self.side == "at_most" else -1.0
        excess = sign * (rows["value"].to_numpy(float) - limit)
        if self.instance is None:
            label = st.runs(rows, ignore=[self.limit] if isinstance(self.limit, str) else [])
        else:
            label = rows.groupby(["seed", *self.instance], dropna=False).ngroup()
        worst_excess = (
            rows.assign(excess=np.where(np.isfinite(excess), excess, np.inf)).groupby(label)["excess"].max()
        )
        margin = worst_excess.to_numpy(float)
        violations, n = int((margin > self.slack).sum()), len(margin)
        low, high = st.clopper_pearson(violations, n, self.level)
        if low > self.allow:
            outcome: Outcome = "fail"
        elif high <= self.allow + self.resolution:
            outcome = "pass"
        else:
            outcome = "unclear"
        name = self.limit if isinstance(self.limit, str) else f"{self.limit:g}"
        worst_margin = float(margin.max())
        reason = f"{violations} of {n} violate; worst excess {worst_margin:.3g}"
        finite = margin[np.isfinite(margin)]
        detail = {
            "violations": violations,
            "instances": n,
            "worst": worst_margin,
            "quantiles": np.quantile(finite, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]).tolist()
            if len(finite)
            else [],
        }
        return Result(
            outcome=outcome,
            quantity=f"fraction of instances with {self.metric} {'>' if self.side == 'at_most' else '<'} {name}",
            criterion=f"<= {self.allow:g} (+{self.resolution:g})",
            estimate=violations / n, low=low, high=high, level=self.level, claimed=self.allow, reason=reason, detail=detail,
        )  # fmt: skip
