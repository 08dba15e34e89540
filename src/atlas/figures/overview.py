"""Overview of all claims: claimed against measured exponents and speedups, and the verdicts counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from atlas import files
from atlas.claims import Result
from atlas.figures.reading import Array, finite, kind_of
from atlas.figures.style import (
    INK,
    RC,
    SMALL,
    SOFT,
    TINT,
    VERDICT_MARKERS,
    VERDICTS,
    nothing,
    save,
    tidy_ticks,
)
from atlas.verify import PaperVerdicts

FIGURES = {
    "exponents": "Claimed and measured exponents of rates",
    "speedups": "Claimed and measured speedups",
    "verdicts": "Verdicts by family and fidelity",
}
MOST_NAMES = 12  # with more refuted claims than these none is named
SIZES = {"refuted": 7.5}  # an X looks smaller than a disc


@dataclass
class Point:
    """A claimed number and what was measured."""

    paper: str
    verdict: str
    claimed: float
    measured: float
    low: float
    high: float
    bound: str  # how the criterion bounds it: '<', '>' or '='


def draw_overview(verdicts: list[PaperVerdicts], folder: Path) -> list[Path]:
    """Write exponents.svg, speedups.svg and verdicts.svg to `folder`; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(RC):
        for name, function, size in (
            ("exponents", exponents, (6.0, 5.4)),
            ("speedups", speedups, (6.0, 5.4)),
            ("verdicts", counts, (7.2, 4.2)),
        ):
            figure = Figure(figsize=size, dpi=110)
            title = function(figure, verdicts)
            figure.text(0.015, 1 - 0.1 / size[1], title, fontsize=11, weight="bold", color=INK, va="top")
            with files.replacing(folder / f"{name}.svg") as path:
                save(figure, path, title=title)
            paths.append(folder / f"{name}.svg")
    return paths


def exponents(figure: Figure, verdicts: list[PaperVerdicts]) -> str:
    points = [
        Point(paper, verdict, r.claimed, r.estimate, r.low, r.high, _bound(r))
        for paper, verdict, r in _results(verdicts, "rate")
        if r.claimed is not None
    ]
    axes = figure.add_axes((0.11, 0.1, 0.86, 0.77))
    if points:
        _against(axes, points, log=False)
    else:
        nothing(axes, "no such claim yet")
    axes.set(xlabel="claimed exponent", ylabel="measured exponent, 95 % interval")
    return FIGURES["exponents"]


def speedups(figure: Figure, verdicts: list[PaperVerdicts]) -> str:
    points = []
    for paper, verdict, r in _results(verdicts, "speedup"):
        parts = list(r.groups.values()) or [r]
        predicted = finite([v for p in parts for v in p.detail.get("predicted") or ()])
        if len(np.unique(predicted.round(6))) > 1:  # a predicted ratio per run: shown at its median
            claimed = float(np.median(predicted))
            points.append(
                Point(
                    paper,
                    verdict,
                    claimed,
                    r.estimate * claimed,
                    r.low * claimed,
                    r.high * claimed,
                    _bound(r),
                )
            )
        elif r.claimed:
            points.append(Point(paper, verdict, r.claimed, r.estimate, r.low, r.high, _bound(r)))
    points = [p for p in points if p.claimed > 0]
    axes = figure.add_axes((0.11, 0.1, 0.86, 0.77))
    if points:
        _against(axes, points, log=True)
    else:
        nothing(axes, "no such claim yet")
    axes.set(xlabel="claimed or predicted speedup", ylabel="measured speedup, 95 % interval")
    return FIGURES["speedups"]


def _results(verdicts: list[PaperVerdicts], kind: str) -> Iterator[tuple[str, str, Result]]:
    """Every result of a kind that has a verdict, with its paper; the sides of a phase count one by one."""
    for paper in verdicts:
        for claim in paper.claims:
            sides = claim.result.groups.values() if claim.kind == "phase" else ()
            for r in [claim.result] if claim.kind == kind else [s for s in sides if kind_of(s) == kind]:
                if claim.verdict and not np.isnan(r.estimate):
                    yield paper.paper, claim.verdict, r


def _bound(result: Result) -> str:
    return "=" if "in [" in result.criterion else result.criterion[:1]


def _against(axes: Axes, points: list[Point], log: bool) -> None:
    """Claimed (x) against measured (y) with intervals; what lies far outside is an arrow at the edge."""
    claimed, measured = (
        np.array([getattr(p, key) for p in points], float) for key in ("claimed", "measured")
    )
    low, high = _limits(claimed, measured, log)
    if log:
        axes.set(xscale="log", yscale="log")
    axes.set(xlim=(low, high), ylim=(low, high))
    ends = np.array([low, high])
    above = log or all(p.bound == ">" for p in points)  # a speedup is claimed as at least so much
    axes.fill_between(ends, ends, high if above else low, **TINT)
    axes.plot(ends, ends, color=INK, lw=0.9, ls=(0, (4, 2)), zorder=1)
    side = ("at least", "on or above") if above else ("at most", "on or below")
    text = f"tinted: where a claim of '{side[0]}' may lie, {side[1]} the line; hollow: any other claim"
    axes.text(0.99, 0.015, text, transform=axes.transAxes, ha="right", fontsize=SMALL, color=SOFT)
    order = ["verified", *list(VERDICTS)[:0:-1]]  # what is rare and matters comes on top
    shifted = zip(points, _spread(claimed, measured, log), strict=True)
    for p, move in sorted(shifted, key=lambda pair: order.index(pair[0].verdict)):
        colour = VERDICTS[p.verdict][1]
        x = p.claimed * np.exp(move * np.log(high / low)) if log else p.claimed + move * (high - low)
        x, y, *bar = (float(np.clip(v, low, high)) for v in (x, p.measured, p.low, p.high))
        axes.plot([x, x], bar, color=colour, lw=1.1, alpha=0.75, zorder=2)
        away = "^" if p.measured > high else "v" if p.measured < low else None
        shape = {"marker": away or VERDICT_MARKERS[p.verdict], "ms": SIZES.get(p.verdict, 5.5), "zorder": 3}
        filled = p.bound == (">" if above else "<")
        edge = {"mew": 0.5, "mec": "white"} if filled else {"mew": 1.3, "mec": colour, "mfc": "white"}
        axes.plot([x], [y], color=colour, clip_on=False, **shape, **edge)  # type: ignore[arg-type]
    _name(axes, [p for p in points if p.verdict == "refuted"], low, high)
    counted = {v: sum(p.verdict == v for p in points) for v in VERDICTS}
    for verdict, (mark, colour) in VERDICTS.items():
        if counted[verdict]:
            label = f"{mark} {verdict} ({counted[verdict]})"
            axes.plot(
                [],
                [],
                color=colour,
                marker=VERDICT_MARKERS[verdict],
                ms=SIZES.get(verdict, 5.5),
                ls="",
                mec="white",
                label=label,
            )
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, columnspacing=1.0, handletextpad=0.2)
    tidy_ticks(axes)


def _limits(claimed: Array, measured: Array, log: bool) -> tuple[float, float]:
    """The range of the claimed numbers, and of the measured ones that are not far from it."""
    if log:
        claimed, measured = np.log(np.append(claimed, [1.0, 2.0])), np.log(measured[measured > 0])
    low, high = claimed.min(), claimed.max()
    room = max(0.5 * (high - low), 1.0)
    near = measured[np.isfinite(measured) & (measured > low - room) & (measured < high + room)]
    low, high = min([low, *near]), max([high, *near])
    pad = 0.06 * (high - low) or 0.5
    return (
        (float(np.exp(low - pad)), float(np.exp(high + pad)))
        if log
        else (float(low - pad), float(high + pad))
    )


def _spread(claimed: Array, measured: Array, log: bool) -> Array:
    """Shifts, as parts of the axis, that set claims of the same number side by side."""
    scale = np.log(claimed) if log else claimed
    width = float(np.ptp(scale)) or 1.0
    group = np.round(scale / width, 2)
    shift = np.zeros(len(claimed))
    for value in np.unique(group):
        same = np.flatnonzero(group == value)
        same = same[np.argsort(measured[same], kind="stable")]
        step = min(0.008, 0.03 / len(same))
        shift[same] = step * (np.arange(len(same)) - (len(same) - 1) / 2)
    return shift


def _name(axes: Axes, points: list[Point], low: float, high: float) -> None:
    """Name the refuted claims if they are few, unless a name would cover another."""
    taken: list[tuple[float, float]] = []
    to_axes = axes.transData + axes.transAxes.inverted()
    for p in points if len(points) <= MOST_NAMES else ():
        x, y = to_axes.transform((p.claimed, np.clip(p.measured, low, high)))
        if all(abs(y - b) > 0.025 or abs(x - a) > 0.4 for a, b in taken):
            taken.append((x, y))
            x, side = (x - 0.02, "right") if x > 0.7 else (x + 0.02, "left")
            style = {"fontsize": SMALL, "color": SOFT, "va": "center", "ha": side}
            axes.text(x, y, p.paper, transform=axes.transAxes, **style)  # type: ignore[arg-type]


def counts(figure: Figure, verdicts: list[PaperVerdicts]) -> str:
    rows = pd.DataFrame(
        [(p.family, p.fidelity, c.verdict) for p in verdicts for c in p.claims if c.verdict],
        columns=["family", "fidelity", "verdict"],
    )
    boxes = {"family": (0.16, 0.13, 0.44, 0.68), "fidelity": (0.71, 0.13, 0.27, 0.68)}
    for column, box in boxes.items():
        axes = figure.add_axes(box)
        axes.set_title(f"by {column}", fontsize=8.5, loc="left", color=INK)
        if rows.empty:
            nothing(axes, "no verdict yet")
            continue
        table = pd.crosstab(rows[column], rows["verdict"]).reindex(columns=list(VERDICTS), fill_value=0)
        table = table.reindex(["exact", "scaled", "proxy"], fill_value=0) if column == "fidelity" else table
        _bars(axes, table, box[2] * figure.get_figwidth())
    if not rows.empty:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="upper left", bbox_to_anchor=(0.005, 0.92), ncols=4, columnspacing=1.2
        )
    papers = rows.shape[0] and sum(any(c.verdict for c in p.claims) for p in verdicts)
    return f"Verdicts on {len(rows)} claims of {papers} papers"


def _bars(axes: Axes, table: pd.DataFrame, inches: float) -> None:
    """Stacked horizontal bars, each part with its mark and number where they fit in axes `inches` wide."""
    left = np.zeros(len(table))
    most = float(table.sum(axis=1).max())
    y = np.arange(len(table))
    for verdict, (mark, colour) in VERDICTS.items():
        width = table[verdict].to_numpy(float)
        axes.barh(
            y, width, left=left, color=colour, label=f"{mark} {verdict}", height=0.68, ec="white", lw=0.8
        )
        for row, (w, start) in enumerate(zip(width, left, strict=True)):
            room = w / most * inches
            text = (
                f"{mark} {w:.0f}"
                if room > 0.3
                else f"{w:.0f}"
                if room > 0.07 * len(f"{w:.0f}") + 0.02
                else ""
            )
            axes.text(start + w / 2, row, text, ha="center", va="center", fontsize=SMALL, color=INK)
        left += width
    axes.set_yticks(y, [str(name) for name in table.index])
    axes.set_ylim(max(len(table), 4) - 0.5, -0.5)
    axes.set_xlim(0, most * 1.02 or 1)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("claims")
