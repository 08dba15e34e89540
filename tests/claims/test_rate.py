import numpy as np
import pytest

from atlas.claims import Rate
from atlas.errors import AtlasError

from .builders import noisy, table

X = np.geomspace(10, 10_000, 30)


def rate(**keys: object) -> Rate:
    return Rate.model_validate({"metric": "error", "exponent": -0.5, **keys})


def measured(power: float, seeds: int = 16, noise: float = 0.1, seed: int = 0):
    return table(noisy(lambda x: x**power, X, seeds, noise, seed), X)


@pytest.mark.parametrize(
    ("power", "form", "outcome"),
    [
        (-0.5, "at_most", "pass"),
        (-0.8, "at_most", "pass"),
        (-0.3, "at_most", "fail"),
        (0.5, "at_most", "fail"),
        (-0.5, "equals", "pass"),
        (-0.8, "equals", "fail"),
        (-0.3, "equals", "fail"),
        (-0.5, "at_least", "pass"),
        (-0.8, "at_least", "fail"),
        (-0.3, "at_least", "pass"),
    ],
)
def test_outcome_of_a_known_power(power: float, form: str, outcome: str) -> None:
    result = rate(form=form).evaluate(measured(power))
    assert result.outcome == outcome
    assert result.estimate == pytest.approx(power, abs=0.03)
    assert result.low <= result.estimate <= result.high


def test_exact_power_is_found_exactly() -> None:
    result = rate().evaluate(measured(-0.5, noise=0.0))
    assert (result.estimate, result.low, result.high) == pytest.approx((-0.5, -0.5, -0.5))
    assert np.exp(result.detail["intercept"]) == pytest.approx(1.0)
    assert result.detail["tail"] == pytest.approx([10, 10_000])


def test_straddling_the_criterion_is_unclear() -> None:
    assert rate().evaluate(measured(-0.45, seeds=8, noise=0.5, seed=3)).outcome == "unclear"


def test_too_few_seeds_never_pass() -> None:
    result = rate().evaluate(measured(-2.0, seeds=3))
    assert result.outcome == "unclear" and "only 3 seeds" in result.reason


def test_transient_before_a_plateau_does_not_count_as_decay() -> None:
    values = noisy(lambda x: 1e-3 + 100 * x**-3.0, X, 16, 0.02)
    result = rate().evaluate(table(values, X))
    assert result.outcome == "fail" and result.estimate == pytest.approx(0, abs=0.05)


def test_fast_transient_before_a_slow_rate_reads_the_slow_rate() -> None:
    values = noisy(lambda x: x**-0.25 + 30 * x**-2.0, X, 16, 0.02)
    assert rate(exponent=-0.25, form="equals").evaluate(table(values, X)).outcome == "pass"
    assert rate().evaluate(table(values, X)).outcome == "fail"


def test_plateau_before_the_decay_is_burn_in() -> None:
    values = noisy(lambda x: 1 / (1 + (x / 100)), X, 16, 0.02)
    assert rate(exponent=-1, form="equals", tolerance=0.1).evaluate(table(values, X)).outcome == "pass"


def test_log_power() -> None:
    x = np.geomspace(10, 1e6, 40)
    rows = table(noisy(lambda x: np.log(x) * x**-0.5, x, 16, 0.02), x)
    assert rate(form="equals", tolerance=0.02, log_power=1).evaluate(rows).outcome == "pass"
    assert rate(form="equals", tolerance=0.02, tail="all").evaluate(rows).outcome == "fail"
    with pytest.raises(AtlasError, match="log_power needs x > 1"):
        rate(log_power=1).evaluate(table(np.ones((5, 9)), np.arange(1.0, 10)))


def test_diverged_runs_are_not_dropped() -> None:
    rows = measured(-0.6)
    rows.loc[rows.seed == 0, "value"] = np.nan
    one = rate().evaluate(rows)
    assert one.outcome == "unclear" and one.high == np.inf and "1 of 16 runs diverged" in one.reason
    rows["value"] = np.inf
    everything = rate().evaluate(rows)
    assert everything.outcome == "fail" and everything.estimate == np.inf


def test_rounding_floor_is_left_out() -> None:
    rows = table(np.maximum(noisy(lambda x: x**-3.0, X, 8, 0.01), 1e-9), X)
    assert rate(exponent=-3, form="equals", floor=2e-9).evaluate(rows).outcome == "pass"
    assert rate(exponent=-3, form="equals").evaluate(rows).outcome == "fail"


def test_zeros_at_either_end_are_left_out() -> None:
    rows = table(noisy(lambda x: x**-0.5, X, 8, 0.01), X)
    for zero in (rows.x < 20, rows.x > 5000):
        for average in ("mean", "geometric"):
            result = rate(form="equals", average=average).evaluate(
                rows.assign(value=rows.value.where(~zero, 0.0))
            )
            assert result.outcome == "pass" and "left out" in result.reason
    assert rate().evaluate(rows.assign(value=0.0)).outcome == "unclear"


def test_stated_tail_and_condition_column_as_x() -> None:
    values = noisy(lambda x: np.where(x < 100, 1.0, (x / 100) ** -0.5), X, 8, 0.01)
    assert rate(form="equals", tail=[100, 10_000]).evaluate(table(values, X)).outcome == "pass"
    assert rate(form="equals", tail="all").evaluate(table(values, X)).outcome == "fail"
    rows = table(noisy(lambda x: x**-0.5, X, 8, 0.01), X).rename(columns={"x": "width"}).assign(x=5.0)
    assert rate(form="equals", x="width").evaluate(rows).outcome == "pass"


def test_groups_are_judged_one_by_one() -> None:
    import pandas as pd

    rows = pd.concat([measured(-0.6).assign(d=1), measured(-0.2).assign(d=2)])
    result = rate(per=["d"]).evaluate(rows)
    assert result.outcome == "fail" and {g: r.outcome for g, r in result.groups.items()} == {
        "d=1": "pass",
        "d=2": "fail",
    }
    with pytest.raises(AtlasError, match="no measurement has d = 3"):
        rate(where={"d": 3}).evaluate(rows)
    with pytest.raises(AtlasError, match="no column 'dd'"):
        rate(where={"dd": 3}).evaluate(rows)


def coverage(seeds: int, trials: int) -> float:
    hits = 0
    for trial in range(trials):
        values = noisy(lambda x: x**-0.5, X[::3], seeds, 0.4, seed=trial)
        result = rate(tail="all").evaluate(table(values, X[::3]))
        hits += result.low <= -0.5 <= result.high
    return hits / trials


def test_interval_covers_roughly() -> None:
    assert 0.85 <= coverage(8, 60)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 8, 16, 32])
def test_interval_covers_as_stated(seeds: int) -> None:
    assert 0.92 <= coverage(seeds, 1000) <= 0.98
