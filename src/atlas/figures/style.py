"""The look all figures share: colour-blind-safe colours (Okabe and Ito), a mark for each verdict, reproducible SVG."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = ["o", "s", "^", "D", "v", "P"]
GREY = "#8c8c8c"
INK = "#222222"
VERDICTS = {
    "verified": ("✓", "#009E73"),
    "refuted": ("✗", "#B22222"),
    "inconclusive": ("?", "#A66F00"),
    "undiscriminating": ("=", "#7A4B8C"),
}
RC = {
    **sns.axes_style("ticks"),
    **sns.plotting_context("paper", font_scale=0.95),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "font.sans-serif": ["DejaVu Sans"],
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "svg.hashsalt": "convergence-atlas",
    "svg.fonttype": "none",
    "axes.unicode_minus": True,
    "legend.frameon": False,
    "legend.fontsize": 7,
}


def save(figure: Figure, path: Path) -> None:
    """Write a figure as SVG or PNG by the suffix of `path`; the same figure gives the same bytes."""
    if path.suffix == ".svg":
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})
    else:
        FigureCanvasAgg(figure).print_png(path)


def verdict_words(verdict: str | None) -> tuple[str, str]:
    """A verdict as mark and word, and its colour."""
    mark, colour = VERDICTS.get(verdict or "", ("·", GREY))
    return f"{mark} {verdict or 'smoke: no verdict'}", colour


def number(value: float) -> str:
    if value != value or abs(value) == float("inf"):
        return {True: "∞", False: "-∞"}.get(value > 0, "?") if value == value else "?"
    return f"{value:.3g}"


def log_ticks(axes: Axes) -> None:
    """Few ticks on logarithmic axes: plain numbers within four decades, else powers of ten (mathtext is switched off)."""
    superscript = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

    def power(value: float, _: object) -> str:
        return f"10{str(round(np.log10(value))).translate(superscript)}" if value > 0 else ""

    for axis, scale, limits in (
        (axes.xaxis, axes.get_xscale(), axes.get_xlim()),
        (axes.yaxis, axes.get_yscale(), axes.get_ylim()),
    ):
        if scale != "log" or not 0 < limits[0] < limits[1]:
            continue
        decades = np.log10(limits[1] / limits[0])
        subs = (1, 2, 5) if decades < 1.3 else (1, 3) if decades < 2 else (1,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=6))
        plain = limits[0] >= 1e-3 and limits[1] <= 2e4
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}") if plain or decades < 2 else FuncFormatter(power))
        axis.set_minor_formatter(NullFormatter())


def nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
