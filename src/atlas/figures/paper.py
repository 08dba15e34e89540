"""The figure of a paper: a panel per claim, with the verdict in its title."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from atlas.figures.panels import PANELS
from atlas.figures.style import GREY, INK, RC, log_ticks, number, save, verdict_words
from atlas.verify import ClaimVerdict, PaperVerdicts

COLUMNS = 3


def draw(verdicts: PaperVerdicts, path: Path) -> None:
    """Draw the figure of one paper to `path` (.svg or .png)."""
    claims = verdicts.claims
    columns = min(len(claims), COLUMNS) if len(claims) != 4 else 2
    rows = -(-len(claims) // columns)
    with mpl.rc_context(RC):
        width, height = 3.6 * columns, 0.7 + 3.15 * rows
        figure = Figure(figsize=(max(width, 5.0), height), dpi=110)
        heading = textwrap.shorten(verdicts.title, 40 * columns, placeholder=" …")
        figure.text(0.015, 1 - 0.14 / height, heading, fontsize=11, weight="bold", color=INK, va="top")
        tier = verdicts.tier + (f", master seed {verdicts.seed}" if verdicts.seed else "")
        figure.text(
            0.015, 1 - 0.38 / height, f"{verdicts.paper} · fidelity: {verdicts.fidelity} · {tier} tier",
            fontsize=8, color=GREY, va="top",
        )  # fmt: skip
        grid = figure.subplots(rows, columns, squeeze=False)
        figure.subplots_adjust(
            left=0.72 / width, right=1 - 0.2 / width, top=1 - 1.38 / height, bottom=0.5 / height,
            wspace=0.32 if columns > 1 else 0, hspace=0.62,
        )  # fmt: skip
        for axes, claim in zip(grid.flat, claims, strict=False):
            panel(axes, claim)
        for axes in grid.flat[len(claims) :]:
            axes.set_axis_off()
        save(figure, path)


def panel(axes: Axes, claim: ClaimVerdict) -> None:
    """One claim: its data, its control in grey, the verdict, and the numbers it rests on."""
    PANELS[claim.kind](axes, claim.result, [c.result for c in claim.controls])
    words, colour = verdict_words(claim.verdict)
    r = claim.result
    axes.text(0, 1.235, claim.id.replace("_", " "), transform=axes.transAxes, fontsize=9, weight="bold", color=INK)
    axes.text(0, 1.145, words, transform=axes.transAxes, fontsize=8.5, weight="bold", color=colour)
    measured = f"{number(r.estimate)} [{number(r.low)}, {number(r.high)}], wanted {r.criterion}"
    control = "; ".join(number(c.result.estimate) for c in claim.controls)
    axes.text(0, 1.075, measured, transform=axes.transAxes, fontsize=7, color=INK)
    axes.text(0, 1.015, f"control: {control}", transform=axes.transAxes, fontsize=7, color=GREY)
    if axes.get_xlabel() == "x" and claim.axis:
        axes.set_xlabel(claim.axis)
    axes.tick_params(labelsize=7)
    log_ticks(axes)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, [textwrap.shorten(text, 34, placeholder="…") for text in labels], loc="best", fontsize=6.5)
