"""The look of all figures: colour-blind-safe colours (Okabe, Ito), a mark per verdict, reproducible SVG."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import seaborn as sns
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from atlas.claims import Result

COLOURS = ["#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#5D3A9B"]
MARKERS = ["o", "s", "^", "D", "v", "P"]
GREY = "#8c8c8c"  # lines and points of controls
DARK_GREY = "#6e6e6e"  # their estimates
SOFT = "#595959"  # text of second rank: still 7:1 on white
INK = "#222222"
WANTED = "#009E73"  # the region a claim asks for, always as a light tint
VERDICTS = {
    "verified": ("✓", "#009E73"),
    "refuted": ("✗", "#D55E00"),
    "inconclusive": ("?", "#E69F00"),
    "undiscriminating": ("=", "#CC79A7"),
}
VERDICT_MARKERS = {"verified": "o", "refuted": "X", "inconclusive": "s", "undiscriminating": "D"}
NO_VERDICT = ("·", "#d0d0d0")
TINT: dict[str, Any] = {"color": WANTED, "alpha": 0.13, "lw": 0, "zorder": 0}
CLAIMED: dict[str, Any] = {"color": INK, "ls": (0, (4, 2)), "lw": 1.1, "zorder": 6}
FITTED: dict[str, Any] = {"color": INK, "ls": (0, (1, 1.5)), "lw": 1.1, "zorder": 5}
SMALL = 7.0  # points: the smallest text, at the natural size of the figure
RC = {
    **sns.axes_style("ticks"),
    **sns.plotting_context("paper", font_scale=0.95),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.labelsize": 7.5,
    "axes.labelpad": 2.5,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "font.sans-serif": ["DejaVu Sans"],
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "legend.handlelength": 1.8,
    "svg.fonttype": "none",  # text stays text: searchable, a quarter of the bytes
    "svg.hashsalt": "convergence-atlas",
    "text.parse_math": False,  # titles of papers hold dollar signs
    "text.usetex": False,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
}


def save(figure: Figure, path: Path, title: str = "") -> None:
    """Write a figure as SVG or PNG by the suffix of `path`; the same figure gives the same bytes."""
    if path.suffix == ".svg":
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None, "Title": title or None})
        # where DejaVu Sans is missing, Verdana has the same widths
        path.write_text(path.read_text("utf-8").replace("'DejaVu Sans'", "'DejaVu Sans', Verdana"), "utf-8")
    else:
        FigureCanvasAgg(figure).print_png(path)


def verdict_words(verdict: str | None) -> tuple[str, str]:
    """A verdict as mark and word, and its colour."""
    mark, colour = VERDICTS.get(verdict or "", NO_VERDICT)
    return f"{mark} {verdict or 'smoke: no verdict'}", colour


def number(value: float, decimals: int | None = None) -> str:
    """Three digits, or the given number of decimals, with a true minus sign."""
    if not math.isfinite(value):
        return "?" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if decimals is None or value == 0:
        return f"{value:.3g}".replace("-", "−")
    text = f"{value:.{decimals}f}"
    return (text if float(text) else f"{0:.{decimals}f}").replace("-", "−")


def estimate(result: Result) -> str:
    """'−0.98 [−1.01, −0.95]': as many decimals as the interval is worth; an exact estimate stands alone."""
    values = [result.estimate, result.low, result.high]
    if result.low == result.estimate == result.high:
        return number(result.estimate)
    finite = [abs(v) for v in values if math.isfinite(v)]
    width, largest = result.high - result.low, max(finite, default=0.0)
    decimals = None
    if 1e-3 <= largest < 1e5 and 0 < width < math.inf:
        exponent = math.floor(math.log10(width))
        digits = -exponent + (
            width / 10.0**exponent < 5
        )  # of the interval: one, or two if the first is small
        decimals = min(max(0, 2 - math.floor(math.log10(largest))), max(0, digits))
    centre, low, high = (number(v, decimals) for v in values)
    return f"{centre} [{low}, {high}]"


def pretty(criterion: str) -> str:
    """A criterion with true signs; '<= 0 (+0.05)' says how far the interval may reach."""
    if found := re.fullmatch(r"<= (\S+) \(\+(\S+)\)", criterion):
        allow, more = float(found[1]), float(found[2])
        criterion = f"<= {allow:g} (interval <= {allow + more:g})"
    return criterion.replace("<=", "≤").replace(">=", "≥").replace("-", "−")


def tidy_ticks(axes: Axes) -> None:
    """Few ticks; on logarithmic axes plain numbers if they are short, else powers of ten (no mathtext)."""
    superscript = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

    def power(value: float, _: object) -> str:
        if value <= 0:
            return ""
        exponent = math.floor(math.log10(value) + 1e-9)
        factor = value / 10.0**exponent
        return (f"{factor:.3g}·" if factor > 1.001 else "") + "10" + str(exponent).translate(superscript)

    def plain(value: float, _: object) -> str:
        return f"{value:.6g}" if 9e-4 < value < 2e4 else power(value, _)

    for axis, scale, (low, high) in (
        (axes.xaxis, axes.get_xscale(), axes.get_xlim()),
        (axes.yaxis, axes.get_yscale(), axes.get_ylim()),
    ):
        if scale == "linear" and axis.get_major_locator().__class__.__name__ == "AutoLocator":
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if scale != "log" or not 0 < low < high:
            continue
        decades = np.log10(high / low)
        if decades < 0.9:
            axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axis.set_minor_locator(NullLocator())
        else:
            subs = (1, 2, 5) if decades < 1.4 else (1, 3) if decades < 2.2 else (1,)
            axis.set_major_locator(LogLocator(subs=subs, numticks=6))
            axis.set_minor_locator(LogLocator(subs=(2, 4, 6, 8)) if decades < 3 else NullLocator())
        axis.set_major_formatter(
            FuncFormatter(plain if decades < 2.2 or (low > 9e-4 and high < 2e4) else power)
        )
        axis.set_minor_formatter(NullFormatter())


def nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=SOFT, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
