"""`linear_rate`: geometric decay, metric ~ exp(slope * x), and superlinear order where claimed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from atlas.claims.base import Result, Test, decide, interval_text
from atlas.errors import AtlasError

if TYPE_CHECKING:
    import pandas as pd


class LinearRate(Test):
    """Slope of log(metric) on x per seed, mean over seeds with a bootstrap interval.

    Passes if slope <= claimed slope * (1 - tolerance) (natural log, per unit of x; an experiment may scale x so that
    the claimed slope is -1 in every condition) AND the decay is geometric: over the tail, the second half still falls at
    no less than `steadiness` times the rate of the first half, and neither log x nor sqrt x describes it twice as well.
    With `order` the test is instead of superlinear convergence: slope of log e_{k+1} on log e_k >= order * (1 - tolerance).
    """

    SELECTION: ClassVar = frozenset({"metric", "where", "tail"})

    kind: Literal["linear_rate"] = "linear_rate"
    slope: float | None = Field(None, description="claimed slope of log(metric) per unit x (negative)")
    order: float | None = Field(
        None, description="claimed superlinear order, e.g. 2 for quadratic; excludes `slope`"
    )
    tolerance: float = Field(0.05, ge=0)
    steadiness: float = Field(0.5, ge=0, le=1)
    floor: float = Field(
        0.0, ge=0, description="values <= floor are rounding noise: the tail ends before the first"
    )
    tail: Literal["auto", "all"] | tuple[float, float] = "auto"
    x: str = "x"

    @model_validator(mode="after")
    def _one_of(self) -> LinearRate:
        if (self.slope is None) == (self.order is None):
            raise ValueError("give either slope or order")
        return self

    def test(self, rows: pd.DataFrame) -> Result:
        import numpy as np

        from atlas.claims import statistics as st

        label = st.runs(rows)
        slopes, steadiness, bends, drawn = [], [], [], []
        for _, run in rows.sort_values(self.x).groupby(label):
            x, e = run[self.x].to_numpy(float), run["value"].to_numpy(float)
            if not np.isfinite(e).all():
                slopes.append(np.inf if self.order is None else -np.inf)
                continue
            ends = np.flatnonzero(e <= self.floor)
            x, e = (x[: ends[0]], e[: ends[0]]) if len(ends) else (x, e)
            if isinstance(self.tail, tuple):
                inside = (x >= self.tail[0]) & (x <= self.tail[1])
                x, e = x[inside], e[inside]
            if len(x) < 4:
                continue
            v = np.log(e)
            if self.order is not None:
                slopes.append(float(st.line(v[:-1], v[1:])[0]))
                continue
            start = st.straight_from(x, v, tolerance=0.1) if self.tail == "auto" else 0
            x, v = x[start:], v[start:]
            slope, intercept = st.line(x, v)
            middle = max(int(np.searchsorted(x, (x[0] + x[-1]) / 2)), 2)
            early, late = st.line(x[:middle], v[:middle])[0], st.line(x[middle - 1 :], v[middle - 1 :])[0]
            slopes.append(float(slope))
            steadiness.append(float(late / early) if early < 0 else 0.0)
            bends.append(st.sublinear(x, v))
            drawn.append((float(slope), float(intercept), float(x[0]), float(x[-1])))

        claimed = self.slope if self.slope is not None else self.order
        assert claimed is not None
        if self.order is None:
            bounds = {"at_most": claimed + self.tolerance * abs(claimed)}
            quantity = f"slope of log({self.metric}) on {self.x}"
        else:
            bounds = {"at_least": claimed - self.tolerance * abs(claimed)}
            quantity = f"order: slope of log e(k+1) on log e(k), e = {self.metric}"
        common: dict[str, Any] = {
            "quantity": quantity,
            "criterion": interval_text(**bounds),
            "level": self.level,
            "claimed": claimed,
        }
        detail = _shown(rows, self.x, self.level)
        if drawn:
            middle_run = drawn[int(np.argsort([d[0] for d in drawn])[len(drawn) // 2])]
            detail |= {"slope": middle_run[0], "intercept": middle_run[1], "tail": list(middle_run[2:])}
        if not slopes:
            return Result(
                outcome="unclear", estimate=0.0, low=-np.inf, high=np.inf, detail=detail, **common,
                reason="no run has four points above the floor",
            )  # fmt: skip
        rates = np.array(slopes)
        reasons = [f"{np.isinf(rates).sum()} of {len(rates)} runs diverged"] if np.isinf(rates).any() else []
        center = st.median_interval if np.isinf(rates).any() else st.mean_interval
        estimate, low, high = center(rates, self.level)
        if len(rates) == 1:
            low = high = estimate
        outcome = decide(low, high, **bounds)
        if steadiness:
            detail["steadiness"] = float(np.median(steadiness))
            if outcome == "pass" and detail["steadiness"] < self.steadiness:
                outcome = "fail"
                reasons.append(
                    f"not geometric: the second half falls at {detail['steadiness']:.2f} times the rate of the first"
                )
            elif outcome == "pass" and np.median(bends) > 2:
                outcome = "fail"
                reasons.append(
                    "not geometric: log or square root of x describes the decay at least twice as well"
                )
        outcome = self.if_enough(len(rates), outcome, reasons)
        return Result(
            outcome=outcome,
            estimate=estimate,
            low=low,
            high=high,
            reason="; ".join(reasons),
            detail=detail,
            **common,
        )


def _shown(rows: pd.DataFrame, x: str, level: float) -> dict[str, Any]:
    """Curves for the figure; runs on different grids are shown by the first of them."""
    from atlas.claims import statistics as st

    try:
        grid, values = st.curves(rows, x)
    except AtlasError:
        first = rows[st.runs(rows) == 0].sort_values(x)
        grid, values = first[x].to_numpy(float), first["value"].to_numpy(float)[None]
    return st.curve_detail(grid, values, "median", level)
