"""`scaling`: which functional form describes how the metric depends on x."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from atlas.claims.base import Result, Test, decide_above
from atlas.errors import AtlasError

if TYPE_CHECKING:
    import pandas as pd

    from atlas.claims.statistics import Array

Form = Literal[
    "constant", "log", "log_power", "linear", "sqrt", "quadratic", "power", "exponential", "inverse"
]


class Scaling(Test):
    """The claimed form predicts better than every rival form.

    Forms of y(x): constant a; log a + b log x; log_power a (log x)^b; linear a + b x; sqrt a + b sqrt x;
    quadratic a + b x^2; power a x^b; exponential a e^(b x); inverse a + b / x.
    score 'holdout': fitted on the smaller x, mean squared relative error on the largest third of x (extrapolation);
    'loo': leave one x out; 'aic': Akaike with Gaussian errors, weighted by the spread over seeds.
    The tested quantity is the worst (over rivals) score(rival) - score(claimed) (log ratio of errors, or difference
    of AIC), bootstrap over seeds: pass if the whole interval is above `margin`, fail if below -margin.
    """

    SELECTION: ClassVar = frozenset({"metric", "where", "tail"})

    kind: Literal["scaling"] = "scaling"
    form: Form
    rivals: list[Form] = Field(min_length=1)
    score: Literal["holdout", "loo", "aic"] = "holdout"
    margin: float = Field(0.0, ge=0)
    average: Literal["mean", "median", "geometric"] = "mean"
    tail: Literal["all"] | tuple[float, float] = "all"
    x: str = "x"

    def test(self, rows: pd.DataFrame) -> Result:
        import numpy as np

        from atlas.claims import statistics as st

        x, values = st.curves(rows, self.x)
        detail = st.curve_detail(x, values, self.average, self.level)
        if isinstance(self.tail, tuple):
            inside = (x >= self.tail[0]) & (x <= self.tail[1])
            x, values = x[inside], values[:, inside]
        names = (self.form, *self.rivals)
        if any(name in ("log", "log_power", "power", "sqrt", "inverse") for name in names) and (x <= 0).any():
            raise AtlasError(f"forms with log or powers need {self.x} > 0")
        if "log_power" in names and (x <= 1).any():
            raise AtlasError(f"the form log_power needs {self.x} > 1")
        if len(x) < 5:
            raise AtlasError(f"a functional form needs at least 5 values of {self.x}; there are {len(x)}")
        common: dict[str, Any] = {
            "quantity": f"worst lead of '{self.form}' over {' and '.join(self.rivals)} ({self.score})",
            "criterion": f"> {self.margin:g}",
            "level": self.level,
        }
        if not np.isfinite(values).all():
            failed = int((~np.isfinite(values).all(1)).sum())
            return Result(
                outcome="fail", estimate=-np.inf, low=-np.inf, high=-np.inf, detail=detail, **common,
                reason=f"{failed} of {len(values)} runs diverged",
            )  # fmt: skip
        spread = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(len(x))
        mean = st.average(values, self.average)
        replicates = st.average_replicates(values, self.average, 300)
        scores = {name: _scores(name, x, np.vstack([mean, replicates]), spread, self.score) for name in names}
        lead = np.min([scores[rival] - scores[self.form] for rival in self.rivals], axis=0)
        low, high = st.interval(lead[1:], len(values), self.level)
        reasons: list[str] = []
        outcome = self.if_enough(len(values), decide_above(low, high, self.margin), reasons)
        detail |= {
            "forms": {
                name: _fit(name, x, mean[None], x, _weights(mean[None], spread, self.score))[0].tolist()
                for name in names
            },
            "form_x": x.tolist(),
            "scores": {name: float(s[0]) for name, s in scores.items()},
            "claimed": self.form,
        }
        return Result(
            outcome=outcome, estimate=float(lead[0]), low=min(low, float(lead[0])), high=max(high, float(lead[0])),
            reason="; ".join(reasons), detail=detail, **common,
        )  # fmt: skip


def _basis(name: Form, x: Array) -> tuple[Array, bool]:
    """Design matrix (X, p) of a form that is linear in its parameters, and whether it is so for log y."""
    import numpy as np

    one = np.ones_like(x)
    columns = {
        "constant": [one],
        "log": [one, np.log(np.maximum(x, 1e-300))],
        "linear": [one, x],
        "sqrt": [one, np.sqrt(np.abs(x))],
        "quadratic": [one, x**2],
        "inverse": [one, 1 / np.where(x == 0, np.inf, x)],
        "power": [one, np.log(np.maximum(x, 1e-300))],
        "exponential": [one, x],
        "log_power": [one, np.log(np.maximum(np.log(np.maximum(x, 1 + 1e-12)), 1e-300))],
    }[name]
    return np.stack(columns, 1), name in ("power", "exponential", "log_power")


def _fit(name: Form, x: Array, y: Array, at: Array, weight: Array) -> Array:
    """Fit a form to y (B, X) by weighted least squares and evaluate it: (B, len(at)).

    Forms that are linear in log y are fitted there, with weights for the same relative errors.
    """
    import numpy as np

    design, logarithmic = _basis(name, x)
    target = np.log(np.maximum(y, 1e-300)) if logarithmic else y
    w = weight * (y.mean(0) if logarithmic else 1.0)
    solved = np.linalg.lstsq(design * w[:, None], (target * w).T, rcond=None)[0]
    fitted = (_basis(name, at)[0] @ solved).T
    return np.exp(np.minimum(fitted, 700)) if logarithmic else fitted


def _weights(y: Array, spread: Array, score: str) -> Array:
    """Weights of the residuals: 1/standard error for AIC, 1/value (relative errors) for held-out error."""
    import numpy as np

    scale = np.abs(y.mean(0))
    if score == "aic":
        return 1 / np.maximum(spread, 1e-3 * scale + 1e-300)
    return 1 / np.maximum(scale, 1e-300)


def _scores(name: Form, x: Array, y: Array, spread: Array, score: str) -> Array:
    """Smaller is better, (B,): log mean squared relative held-out error, or AIC."""
    import numpy as np

    w = _weights(y, spread, score)
    if score == "aic":
        rest = (y - _fit(name, x, y, x, w)) * w
        parameters = _basis(name, x)[0].shape[1] + 1
        return len(x) * np.log(np.mean(rest**2, 1) + 1e-300) + 2 * parameters
    if score == "holdout":
        order = np.argsort(x)
        held = order[-max(2, round(len(x) / 3)) :]
        known = np.setdiff1d(order, held)
        errors = (y[:, held] - _fit(name, x[known], y[:, known], x[held], w[known])) * w[held]
    else:
        parts = []
        for i in range(len(x)):
            known = np.arange(len(x)) != i
            parts.append((y[:, i] - _fit(name, x[known], y[:, known], x[[i]], w[known])[:, 0]) * w[i])
        errors = np.stack(parts, 1)
    return np.log(np.mean(errors**2, 1) + 1e-12)
