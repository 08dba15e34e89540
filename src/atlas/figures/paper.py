"""The figure of a paper: a panel per claim, with the verdict above it and the numbers it rests on."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from atlas.figures.panels import PANELS, SIDE
from atlas.figures.reading import kind_of
from atlas.figures.style import (
    CLAIMED,
    COLOURS,
    FITTED,
    GREY,
    INK,
    RC,
    SMALL,
    SOFT,
    WANTED,
    estimate,
    number,
    pretty,
    save,
    tidy_ticks,
    verdict_words,
)  # fmt: skip
from atlas.results import counted
from atlas.verify import ClaimVerdict, PaperVerdicts

# inches; the figure is laid out by hand, which costs nothing, and every text has its place
WIDTH, AXES, LEFT, RIGHT, EDGE = 3.35, 1.85, 0.6, 0.16, 0.12
BELOW, LINE, GAP = 0.42, 0.135, 0.28
LETTERS = 57  # of the smallest text in the width of a panel
KEY = [
    (Line2D([], [], color=COLOURS[0], marker="o", ms=4, lw=1.2), "measured, 95 % interval"),
    (Line2D([], [], color=GREY, marker="x", ms=4.5, lw=1.2), "control, which must fail"),
    (Patch(color=WANTED, alpha=0.2, lw=0), "what the test asks"),
    (Line2D([], [], **{**CLAIMED, "zorder": 1}), "the paper's claim"),
    (Line2D([], [], **{**FITTED, "zorder": 1}), "fit"),
]


def draw(verdicts: PaperVerdicts, path: Path) -> None:
    """Draw the figure of one paper to `path` (.svg or .png)."""
    claims = verdicts.claims
    columns = 2 if len(claims) in (2, 4) else min(max(len(claims), 1), 3)
    cell = WIDTH if columns > 1 else 4.8
    with mpl.rc_context(RC), np.errstate(all="ignore"):
        figure = Figure(dpi=110)
        panels = []
        for claim in claims:  # placed below, once the heights of texts and legends are known
            axes = figure.add_axes((0, 0, 1, 1), label=claim.id)
            below = panel(axes, claim, cell) * LINE + BELOW
            above = (len(_fill(claim.says, 3)) + len(_numbers(claim))) * LINE + 0.56
            tall = AXES
            if (
                claim.kind == "phase" and axes.child_axes
            ):  # sides one above the other, each with its own axis label
                tall, below = max(AXES, SIDE * len(axes.child_axes)), 0.0
            panels.append((claim, axes, above, tall, tall + below))
        rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
        width = cell * columns
        heading = balanced(verdicts.title, int(width * 9.8), 3) or [""]
        keys = 1 if columns > 1 else 2
        top = 0.38 + 0.2 * len(heading) + keys * 0.16
        sizes = [(max(p[2] for p in row), max(p[4] for p in row)) for row in rows]
        height = top + sum(map(sum, sizes)) + max(len(rows) - 1, 0) * GAP + 0.06
        figure.set_size_inches(width, height)
        _head(figure, verdicts, heading, 5 if keys == 1 else 3)
        y = height - top
        for row, (over, under) in zip(rows, sizes, strict=True):
            for i, (claim, axes, _, tall, _) in enumerate(row):
                _words(figure, claim, i * cell + EDGE, y)
                left, bottom = (i * cell + LEFT) / width, (y - over - tall) / height
                axes.set_position((left, bottom, (cell - LEFT - RIGHT) / width, tall / height))
            y -= over + under + GAP
        save(figure, path, title=f"{verdicts.title}: {counted(claims)}")


def _head(figure: Figure, verdicts: PaperVerdicts, heading: list[str], columns: int) -> None:
    width, height = figure.get_size_inches()
    left, y = EDGE / width, height - 0.1
    figure.text(
        left,
        y / height,
        "\n".join(heading),
        fontsize=11,
        weight="bold",
        color=INK,
        va="top",
        linespacing=1.15,
    )
    y -= 0.2 * len(heading) + 0.03
    seed = f", master seed {verdicts.seed}" if verdicts.seed else ""
    tier = f"{verdicts.tier} tier{seed}"
    about = f"{verdicts.paper} · fidelity: {verdicts.fidelity} · {tier} · {counted(verdicts.claims)}"
    figure.text(left, y / height, about, fontsize=8, color=SOFT, va="top")
    handles, labels = zip(*KEY, strict=True)
    figure.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(left, (y - 0.15) / height), ncols=columns,
        borderaxespad=0, borderpad=0, columnspacing=1.4, labelcolor=SOFT,
    )  # fmt: skip


def _quantity(claim: ClaimVerdict) -> str:
    """The tested quantity in a word or two."""
    r = claim.result
    kind = claim.kind if claim.kind != "phase" else kind_of(r)
    if kind == "linear_rate":
        return "order" if r.quantity.startswith("order") else "slope"
    if kind == "speedup":
        return "measured / predicted" if "over the predicted" in r.quantity else "speedup"
    if kind == "comparison":
        return (
            "share of gain"
            if "share of" in r.quantity
            else "relative gain"
            if "(relative)" in r.quantity
            else "gain"
        )
    if kind == "equality":
        return "mean" if r.quantity.startswith("mean") else "deviation"
    return {"rate": "slope", "scaling": "lead over rivals", "bound": "violating", "phase": "estimate"}[kind]


def _numbers(claim: ClaimVerdict) -> list[tuple[str, str]]:
    """The small lines between badge and panel, with their colours: measured, controls, and notes."""
    r = claim.result
    own = f" (paper: {number(r.claimed)})" if claim.kind == "speedup" and r.claimed is not None else ""
    found = [
        (line, INK)
        for line in _fill(f"{_quantity(claim)} {estimate(r)}, wanted {pretty(r.criterion)}{own}", 2)
    ]
    for control in claim.controls:
        does = {"pass": "passes", "fail": "fails", "unclear": "is unclear"}[control.result.outcome]
        found += [
            (line, SOFT) for line in _fill(f"control {does}, {estimate(control.result)}: {control.says}", 2)
        ]
    why = claim.reason if claim.verdict in ("inconclusive", "undiscriminating") else ""
    note = "; ".join(dict.fromkeys(text for text in (why, r.reason) if text))
    return [*found, *((line, SOFT) for line in _fill(note, 1 if claim.verdict == "verified" else 2))]


def balanced(text: str, letters: int, most: int) -> list[str]:
    """Wrapped to at most `letters` a line, the lines about as long as each other."""
    lines = textwrap.wrap(text, letters, max_lines=most, placeholder=" …", break_on_hyphens=False)
    even = textwrap.wrap(text, min(letters, len(text) // max(len(lines), 1) + 8), break_on_hyphens=False)
    return even if len(even) == len(lines) else lines


def _fill(text: str, most: int) -> list[str]:
    return textwrap.wrap(text, LETTERS, max_lines=most, placeholder=" …")


def _words(figure: Figure, claim: ClaimVerdict, x: float, y: float) -> None:
    """Name, statement, badge and numbers of a claim, downwards from y; x and y in inches."""
    width, height = figure.get_size_inches()

    def write(text: str, points: float, colour: str, down: float, **style: Any) -> None:
        nonlocal y
        figure.text(
            (x + style.pop("indent", 0.0)) / width,
            y / height,
            text,
            fontsize=points,
            color=colour,
            va="top",
            **style,
        )
        y -= down

    words, colour = verdict_words(claim.verdict)
    badge = {"boxstyle": "round,pad=0.25,rounding_size=0.4", "fc": colour, "ec": "none"}
    write(claim.id.replace("_", " "), 9.5, INK, 0.19, weight="bold")
    for line in _fill(claim.says, 3):
        write(line, SMALL, SOFT, LINE)
    y -= 0.06
    write(words, 8.5, INK, 0.23, weight="bold", bbox=badge, indent=0.035)
    for line, ink in _numbers(claim):
        write(line, SMALL, ink, LINE)


def panel(axes: Axes, claim: ClaimVerdict, cell: float) -> int:
    """The data of one claim, its control in grey; returns the lines it needs below the first axis label."""
    PANELS[claim.kind](axes, claim.result, [c.result for c in claim.controls])
    more = 0  # the last of the axes is the lowest
    for part in [axes, *(inner for inner in axes.child_axes if isinstance(inner, Axes))]:
        label = part.get_xlabel()
        if claim.axis and label.partition(" (")[0] == "x":
            label = claim.axis + label[1:]
        lines = balanced(label, 50, 1 if claim.kind == "phase" else 2)
        more = max(0, len(lines) - 1)
        part.set_xlabel("\n".join(lines))
        part.set_ylabel(textwrap.shorten(part.get_ylabel(), 34, placeholder=" …"))
        tidy_ticks(part)
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return more
    longest = max(map(len, labels))
    columns = 3 if longest <= 11 else 2 if longest <= 21 else 1
    inside = cell - LEFT - RIGHT
    axes.legend(
        handles, [textwrap.shorten(text, 54 // columns, placeholder=" …") for text in labels], ncols=columns,
        loc="upper left", bbox_to_anchor=((EDGE - LEFT) / inside, -(BELOW + more * LINE) / AXES),
        borderaxespad=0, borderpad=0, columnspacing=1.0, labelspacing=0.25,
    )  # fmt: skip
    return more - (-len(handles) // columns)
