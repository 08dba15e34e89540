"""One panel per claim kind: draws a Result (blue, or one colour per group) and its controls (grey)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from atlas.claims import Result
from atlas.figures.style import COLOURS, GREY, INK, MARKERS, nothing, number

Results = Sequence[Result]
MOST_GROUPS = 5


def parts(result: Result) -> dict[str, Result]:
    """The groups of a result (at most MOST_GROUPS, ends kept), or itself under the empty name."""
    groups = result.groups or {"": result}
    names = list(groups)
    keep = sorted({round(i) for i in np.linspace(0, len(names) - 1, min(len(names), MOST_GROUPS))})
    return {names[i]: groups[names[i]] for i in keep}


def finite(values: object) -> np.ndarray:
    array = np.asarray(values, float)
    return array[np.isfinite(array)]


def curve(axes: Axes, result: Result, colour: str, marker: str, label: str, zorder: int = 3) -> None:
    d = result.detail
    if not d.get("x"):
        return
    x, mean, low, high = (np.asarray(d[k], float) for k in ("x", "mean", "low", "high"))
    axes.fill_between(x, np.maximum(low, 1e-300), high, color=colour, alpha=0.18, lw=0, zorder=zorder - 1)
    axes.plot(
        x, mean, color=colour, marker=marker, ms=3, lw=1.1, label=label, zorder=zorder, markevery=max(1, len(x) // 12)
    )


def reference(axes: Axes, result: Result, exponential: bool) -> None:
    """The claimed slope, dashed, anchored at the fit in the middle of the tail and shifted up a little."""
    d = result.detail
    if "tail" not in d or result.claimed is None:
        return
    x = np.geomspace(*d["tail"], 20) if not exponential and d["tail"][0] > 0 else np.linspace(*d["tail"], 20)
    u = x if exponential else np.log(x)
    middle = u.mean()
    log = d.get("log_power", 0.0) * np.log(np.log(x)) if d.get("log_power") else 0.0
    y = d["intercept"] + d["slope"] * middle + result.claimed * (u - middle) + log
    axes.plot(x, np.exp(np.minimum(y, 690)) * 1.6, color=INK, ls="--", lw=1, zorder=5, label=f"claimed slope {result.claimed:g}")


def rate(axes: Axes, result: Result, controls: Results, exponential: bool = False) -> None:
    for control in controls:
        for i, part in enumerate(parts(control).values()):
            curve(axes, part, GREY, "x", "control" if i == 0 else "_", zorder=1)
    shown = parts(result)
    for i, (name, part) in enumerate(shown.items()):
        curve(axes, part, COLOURS[i % 6], MARKERS[i % 6], name or "measured")
    for part in list(shown.values())[-1:] if exponential else list(shown.values())[:1]:
        reference(axes, part, exponential)
    axes.set_yscale("log")
    if not exponential:
        axes.set_xscale("log")
    _clip(axes, [*shown.values(), *controls])
    axes.set_ylabel(_metric(result))
    axes.set_xlabel(result.quantity.rsplit(" on ", 1)[-1].removeprefix("log(").removesuffix(")"))


def linear_rate(axes: Axes, result: Result, controls: Results) -> None:
    rate(axes, result, controls, exponential=True)


def _clip(axes: Axes, results: Results) -> None:
    """Keep diverging controls from squeezing the claim: the range of what was claimed, and some more."""
    values = np.concatenate([finite(p.detail.get("mean", [])) for r in results[:1] for p in [r, *parts(r).values()]] + [np.empty(0)])
    every = np.concatenate([finite(p.detail.get("mean", [])) for r in results for p in [r, *parts(r).values()]] + [np.empty(0)])
    values, every = values[values > 0], every[every > 0]
    if len(values) and len(every):
        axes.set_ylim(max(every.min(), values.min() * 1e-3) / 2, min(every.max(), max(values.max() * 1e3, 1e-300)) * 3)


def _metric(result: Result) -> str:
    text = result.quantity
    return text.split("log(", 1)[1].split(")")[0] if "log(" in text else text


def speedup(axes: Axes, result: Result, controls: Results) -> None:
    """Predicted against measured ratio of each run, or their distribution where a single factor is claimed."""
    predicted, _ = _ratios(result)
    if not len(predicted):
        nothing(axes, "no run")
        return
    if len(np.unique(predicted.round(6))) > 1:
        for r, colour, marker, name in [(c, GREY, "x", "control") for c in controls] + [(result, COLOURS[0], "o", "measured")]:
            axes.scatter(*_ratios(r), s=10, color=colour, marker=marker, alpha=0.6, label=name, lw=0.8)
        ends = np.array([min(predicted.min(), 1.0), predicted.max()])
        axes.plot(ends, ends, color=INK, ls="--", lw=1, label="predicted = measured")
        axes.set(xscale="log", yscale="log", xlabel="predicted speedup", ylabel="measured speedup")
        return
    rows = [(result, COLOURS[0], "o", "claim")] + [(c, GREY, "x", "control") for c in controls]
    rng = np.random.default_rng(0)
    for y, (r, colour, marker, _) in enumerate(rows):
        ratio = finite(r.detail.get("ratio", []))
        axes.scatter(ratio, y + rng.uniform(-0.15, 0.15, len(ratio)), s=9, color=colour, marker=marker, alpha=0.5, lw=0.8)
        _interval(axes, r, y, colour)
    if result.claimed:
        axes.axvline(result.claimed, color=INK, ls="--", lw=1, label=f"claimed {number(result.claimed)}x")
    axes.axvline(1, color=GREY, lw=0.8)
    axes.set_xscale("log")
    _names(axes, [name for *_, name in rows])
    axes.set_xlabel("speedup (slow / fast)")


def _ratios(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and measured ratios of all runs of all groups."""
    found = list(result.groups.values()) or [result]
    return tuple(np.array([v for r in found for v in r.detail.get(key, [])], float) for key in ("predicted", "ratio"))  # type: ignore[return-value]


def _interval(axes: Axes, r: Result, y: float, colour: str) -> None:
    if not np.isfinite(r.estimate):
        axes.text(0.98, y, f"{number(r.estimate)}: every run failed", transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=7, color=colour)
        return
    low, high = axes.get_xlim()
    ends = np.clip([r.low, r.high], min(low, r.estimate), max(high, r.estimate))
    axes.plot(ends, [y, y], color=colour, lw=2.2, solid_capstyle="butt", zorder=4)
    axes.plot([r.estimate], [y], marker="D", ms=5, color=colour, mec="white", zorder=5)


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def comparison(axes: Axes, result: Result, controls: Results) -> None:
    rows = [(name or "claim", part, COLOURS[0], "o") for name, part in parts(result).items()]
    rows = [(f"over {n}" if n != "claim" else f"over {p.detail.get('names', ['', 'baseline'])[1]}", p, c, m) for n, p, c, m in rows]
    rows += [("control", p, GREY, "x") for control in controls for p in parts(control).values()]
    rng = np.random.default_rng(0)
    share = "share of" in result.quantity
    for y, (_, part, colour, marker) in enumerate(rows):
        values = finite(part.detail.get("differences", []))
        if not share and "(relative)" not in part.quantity:
            axes.scatter(values, y + rng.uniform(-0.18, 0.18, len(values)), s=8, color=colour, marker=marker, alpha=0.45, lw=0.8)
        _interval(axes, part, y, colour)
    axes.axvline(0, color=INK, lw=0.8)
    margin = float(result.criterion.split(">")[-1]) if ">" in result.criterion else 0.0
    if margin:
        axes.axvline(margin, color=INK, ls="--", lw=1, label=f"margin {margin:g}")
    _names(axes, [name for name, *_ in rows])
    axes.set_xlabel("share of the gain" if share else "gain (positive: the method is better)")


def scaling(axes: Axes, result: Result, controls: Results) -> None:
    for control in controls:
        for part in parts(control).values():
            curve(axes, part, GREY, "x", "control", zorder=1)
    for i, (name, part) in enumerate(parts(result).items()):
        curve(axes, part, COLOURS[i], MARKERS[i], name or "measured")
        if i == 0:
            for j, (form, y) in enumerate(part.detail.get("forms", {}).items()):
                style = "--" if form == part.detail.get("claimed") else ":"
                colour = INK if style == "--" else COLOURS[1 + j % 5]
                axes.plot(part.detail["form_x"], y, ls=style, lw=1.2, color=colour, label=f"{'claimed' if style == '--' else 'rival'}: {form}", zorder=4)
    values = finite([v for p in [result, *controls] for q in parts(p).values() for v in q.detail.get("mean", [])])
    x = finite([v for q in parts(result).values() for v in q.detail.get("x", [])])
    if len(values) and values.min() > 0 and values.max() / values.min() > 8:
        axes.set_yscale("log")
        _clip(axes, [result, *controls])
    if len(x) and x.min() > 0 and x.max() / x.min() > 20:
        axes.set_xscale("log")
    axes.set_xlabel("x")


def equality(axes: Axes, result: Result, controls: Results) -> None:
    rows = [(name or "claim", part, COLOURS[0], "o") for name, part in parts(result).items()]
    rows += [("control", part, GREY, "x") for control in controls for part in parts(control).values()]
    tolerance = next((p.detail["tolerance"] for _, p, *_ in rows if "tolerance" in p.detail), None)
    largest = any(p.detail.get("statistic") == "max" for _, p, *_ in rows)
    rng = np.random.default_rng(0)
    for y, (_, part, colour, marker) in enumerate(rows):
        values = finite(part.detail.get("values", []))
        center = part.detail.get("value", 0.0)
        shown = np.maximum(np.abs(values - center), 1e-18) if largest else values
        axes.scatter(shown, y + rng.uniform(-0.18, 0.18, len(shown)), s=8, color=colour, marker=marker, alpha=0.45, lw=0.8)
        if largest and np.isfinite(part.estimate):
            axes.plot([max(part.estimate, 1e-18)], [y], marker="D", ms=6, color=colour, mec="white", zorder=5)
        elif not largest:
            _interval(axes, part, y, colour)
    if largest:
        axes.set_xscale("log")
    if tolerance is not None:
        center = result.detail.get("value", 0.0) if not largest else 0.0
        for edge in (tolerance,) if largest else (center - tolerance, center + tolerance):
            axes.axvline(edge, color=INK, ls="--", lw=1)
    _names(axes, [name for name, *_ in rows])
    axes.set_xlabel("deviation (dashed: tolerance)" if largest else "value (dashed: tolerance)")


def bound(axes: Axes, result: Result, controls: Results) -> None:
    rows = [(name or "claim", part, COLOURS[0]) for name, part in parts(result).items()]
    rows += [("control", part, GREY) for control in controls for part in parts(control).values()]
    axes.set_xlim(-0.03, 1.03)
    for y, (_, part, colour) in enumerate(rows):
        axes.barh(y, part.estimate, height=0.5, color=colour, alpha=0.35, lw=0)
        _interval(axes, part, y, colour)
        d = part.detail
        if "instances" in d:
            axes.text(0.5, y - 0.36, f"{d['violations']} of {d['instances']} violate", ha="center", fontsize=7, color=INK)
    if result.claimed:
        axes.axvline(result.claimed, color=INK, ls="--", lw=1, label=f"claimed at most {number(result.claimed)}")
    _names(axes, [name for name, *_ in rows])
    axes.set_xlabel("fraction of instances that violate the bound")


def phase(axes: Axes, result: Result, controls: Results) -> None:
    """Curves if both sides have them; else each side's estimate and what was asked of it, in words."""
    sides = {name: (part if not part.groups else min(part.groups.values(), key=lambda r: r.outcome != part.outcome)) for name, part in result.groups.items()}
    if sides and all(p.detail.get("x") for p in sides.values()):
        for control in controls:
            for part in control.groups.values():
                curve(axes, part, GREY, "x", "_", zorder=1)
        for i, (name, part) in enumerate(sides.items()):
            curve(axes, part, COLOURS[i % 6], MARKERS[i % 6], name)
        values = finite([v for p in sides.values() for v in p.detail["mean"]])
        x = finite([v for p in sides.values() for v in p.detail["x"]])
        if len(values) and values.min() > 0 and values.max() / values.min() > 8:
            axes.set_yscale("log")
        if len(x) and x.min() > 0 and x.max() / x.min() > 20:
            axes.set_xscale("log")
        axes.set_xlabel("x")
        return
    rows = [(name, part, INK) for name, part in sides.items()]
    rows += [(f"control: {name}", part, GREY) for control in controls for name, part in control.groups.items()]
    nothing(axes, "" if rows else "no side")
    for y, (name, part, colour) in enumerate(rows):
        mark = {"pass": "✓", "fail": "✗", "unclear": "?"}[part.outcome]
        height = 1 - (y + 0.5) / len(rows)
        axes.text(0.02, height, f"{mark} {name}", transform=axes.transAxes, va="bottom", fontsize=8, color=colour, weight="bold")
        text = f"{number(part.estimate)} [{number(part.low)}, {number(part.high)}], wanted {part.criterion}"
        axes.text(0.06, height, text, transform=axes.transAxes, va="top", fontsize=7, color=colour)


PANELS: dict[str, Callable[[Axes, Result, Results], None]] = {
    "rate": rate,
    "linear_rate": linear_rate,
    "speedup": speedup,
    "comparison": comparison,
    "scaling": scaling,
    "equality": equality,
    "bound": bound,
    "phase": phase,
}
