"""`rate`: a power law, metric ~ x^exponent, read off as a slope in log-log coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from atlas.claims.base import Result, Test, decide, interval_text
from atlas.errors import AtlasError

if TYPE_CHECKING:
    import pandas as pd


class Rate(Test):
    """Least-squares slope of log(metric, averaged over seeds) on log(x), bootstrap over seeds.

    form 'at_most': slope <= exponent + tolerance (an O(.) claim); 'equals': slope within exponent +- tolerance;
    'at_least': slope >= exponent - tolerance (growth, or a lower bound).
    """

    SELECTION: ClassVar = frozenset({"metric", "where", "tail"})

    kind: Literal["rate"] = "rate"
    exponent: float
    tolerance: float = Field(0.05, ge=0)
    form: Literal["at_most", "equals", "at_least"] = "at_most"
    tail: Literal["auto", "all"] | tuple[float, float] = Field(
        "auto", description="range of x that is fitted: [from, to], 'all', or 'auto' (see `auto_tail`)"
    )
    log_power: float = Field(0.0, description="fit metric / log(x)^log_power instead of metric")
    average: Literal["mean", "median", "geometric"] = "mean"
    x: str = Field("x", description="the column on the horizontal axis (a condition column may be named)")
    floor: float = Field(
        0.0, ge=0, description="points whose average is <= floor are numerical noise and left out"
    )

    def test(self, rows: pd.DataFrame) -> Result:
        import numpy as np

        from atlas.claims import statistics as st

        x, values = st.curves(rows, self.x)
        if self.log_power and (x <= 1).any():
            raise AtlasError(f"log_power needs {self.x} > 1; it starts at {x.min():g}")
        if (x <= 0).any():
            x, values = x[x > 0], values[:, x > 0]
        shown = st.curve_detail(x, values, self.average, self.level)
        scale = np.log(x) ** self.log_power if self.log_power else np.ones_like(x)
        sign = -1.0 if self.form == "at_least" else 1.0
        bounds = {
            "at_most": {"at_most": self.exponent + self.tolerance},
            "at_least": {"at_least": self.exponent - self.tolerance},
            "equals": {"at_least": self.exponent - self.tolerance, "at_most": self.exponent + self.tolerance},
        }[self.form]
        criterion = interval_text(**bounds)
        log = f" / log({self.x})^{self.log_power:g}" if self.log_power else ""
        common: dict[str, Any] = {
            "quantity": f"slope of log({self.metric}{log}) on log({self.x})",
            "criterion": criterion,
            "level": self.level,
            "claimed": self.exponent,
        }

        failed = np.logical_not(np.isfinite(values).all(axis=1))
        reasons = [f"{failed.sum()} of {len(failed)} runs diverged"] if failed.any() else []
        if failed.all():
            worst = sign * np.inf
            return Result(
                outcome="fail",
                estimate=worst,
                low=worst,
                high=worst,
                reason=reasons[0],
                detail=shown,
                **common,
            )
        mean = st.average(values[~failed], self.average)
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = np.log(x), np.log(mean / scale)
        keep = np.arange(len(x))
        if isinstance(self.tail, tuple):
            keep = keep[(x >= self.tail[0] * (1 - 1e-9)) & (x <= self.tail[1] * (1 + 1e-9))]
        above = mean[keep] > self.floor
        if len(keep) and not above.all():  # what follows a first value at the floor is noise
            first = int(above.argmax())
            count = int(np.append(~above[first:], True).argmax()) if above.any() else 0
            keep = keep[first : first + count]
            reasons.append(f"{len(above) - count} points at or below {self.floor:g} are left out")
        if self.tail == "auto" and len(keep):
            keep = keep[st.straight_from(u[keep], v[keep]) :]
        if len(keep) < 3:
            return Result(
                outcome="unclear", estimate=0.0, low=-np.inf, high=np.inf, detail=shown, **common,
                reason="; ".join([*reasons, f"only {len(keep)} points to fit a slope to"]),
            )  # fmt: skip

        slope, intercept = st.line(u[keep], v[keep])
        with np.errstate(divide="ignore", invalid="ignore"):
            replicates, _ = st.line(
                u[keep], np.log(st.average_replicates(values[~failed][:, keep], self.average) / scale[keep])
            )
        replicates = np.where(np.isfinite(replicates), replicates, sign * np.inf)
        if failed.any():  # a resample that holds a failed run has failed
            survives = np.random.default_rng(1).random(len(replicates)) < (1 - failed.mean()) ** len(failed)
            replicates = np.where(survives, replicates, sign * np.inf)
        low, high = st.interval(replicates, len(values), self.level)
        low, high = min(low, float(slope)), max(high, float(slope))
        outcome = decide(low, high, **bounds)
        outcome = self.if_enough(len(values), outcome, reasons)
        detail = {
            **shown,
            "tail": [float(x[keep[0]]), float(x[keep[-1]])],
            "slope": float(slope),
            "intercept": float(intercept),
            "log_power": self.log_power,
        }
        return Result(
            outcome=outcome,
            estimate=float(slope),
            low=low,
            high=high,
            reason="; ".join(reasons),
            detail=detail,
            **common,
        )
