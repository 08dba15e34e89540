"""Overview figures of all claims: claimed against measured exponents and speedups, and the verdicts counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from atlas import files
from atlas.claims import Result
from atlas.figures.style import INK, RC, VERDICTS, nothing, save
from atlas.verify import PaperVerdicts

MARKERS = {"verified": "o", "refuted": "X", "inconclusive": "s", "undiscriminating": "D"}


def draw_overview(verdicts: list[PaperVerdicts], folder: Path) -> list[Path]:
    """Write exponents.svg, speedups.svg and verdicts.svg to `folder`; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(RC):
        for name, function in (("exponents", exponents), ("speedups", speedups), ("verdicts", counts)):
            figure = Figure(figsize=(7.5 if name == "verdicts" else 5.2, 4.6), dpi=110, layout="tight")
            function(figure, verdicts)
            with files.replacing(folder / f"{name}.svg") as path:
                save(figure, path)
            paths.append(folder / f"{name}.svg")
    return paths


def _results(verdicts: list[PaperVerdicts], kind: str) -> Iterator[tuple[str, str | None, Result]]:
    """Every result of a kind, with its paper and verdict; groups and sides one by one."""
    for paper in verdicts:
        for claim in paper.claims:
            for part in claim.result.groups.values() if claim.result.groups else [claim.result]:
                if claim.kind == kind and np.isfinite(part.estimate):
                    yield paper.paper, claim.verdict, part


def _legend(axes: Axes, present: set[str | None]) -> None:
    for verdict, (mark, colour) in VERDICTS.items():
        if verdict in present:
            axes.scatter([], [], color=colour, marker=MARKERS[verdict], s=22, label=f"{mark} {verdict}")
    axes.legend(loc="upper left", fontsize=7)


def _against(axes: Axes, rows: list[tuple[str, str | None, float, Result]]) -> None:
    """Claimed (x) against measured (y) with intervals."""
    for i, (_, verdict, claimed, r) in enumerate(rows):
        colour = VERDICTS[verdict or "inconclusive"][1]
        x = claimed * (1 + 0.006 * (i % 5 - 2))  # claims of the same exponent stand side by side
        ends = [v if np.isfinite(v) else r.estimate for v in (r.low, r.high)]
        axes.plot([x, x], ends, color=colour, lw=1, alpha=0.7)
        axes.scatter([x], [r.estimate], color=colour, marker=MARKERS[verdict or "inconclusive"], s=22, zorder=3, lw=0.5, ec="white")
    _legend(axes, {verdict for _, verdict, *_ in rows})


def exponents(figure: Figure, verdicts: list[PaperVerdicts]) -> None:
    axes = figure.subplots()
    rows = [(p, v, r.claimed, r) for p, v, r in _results(verdicts, "rate") if r.claimed is not None]
    axes.set_title("Claimed and measured exponents of rates", fontsize=10, loc="left")
    if not rows:
        nothing(axes, "no such claim yet")
        return
    _against(axes, rows)
    values = [c for _, _, c, _ in rows] + [r.estimate for *_, r in rows]
    low, high = min(values) - 0.2, max(values) + 0.2
    axes.plot([low, high], [low, high], color=INK, lw=0.8, ls="--")
    axes.fill_between([low, high], [low, high], low, color="#009E73", alpha=0.07, lw=0)
    axes.text(0.98, 0.03, "shaded: an upper bound O(.) holds", transform=axes.transAxes, ha="right", fontsize=7, color=INK)
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="claimed exponent", ylabel="measured exponent, 95 % interval")


def speedups(figure: Figure, verdicts: list[PaperVerdicts]) -> None:
    axes = figure.subplots()
    axes.set_title("Claimed and measured speedups", fontsize=10, loc="left")
    rows: list[tuple[str, str | None, float, Result]] = []
    for paper, verdict, r in _results(verdicts, "speedup"):
        predicted = np.asarray(r.detail.get("predicted") or [r.claimed or np.nan], float)
        ratio = np.asarray(r.detail.get("ratio") or [r.estimate], float)
        if len(np.unique(predicted.round(6))) > 1:  # a predicted ratio per run: show it at its median
            scale = float(np.median(predicted))
            r = r.model_copy(update={"estimate": float(np.median(ratio)), "low": r.low * scale, "high": r.high * scale})
            rows.append((paper, verdict, scale, r))
        elif r.claimed:
            rows.append((paper, verdict, r.claimed, r))
    if not rows:
        nothing(axes, "no such claim yet")
        return
    _against(axes, rows)
    values = [v for _, _, c, r in rows for v in (c, r.estimate) if v > 0]
    low, high = min([0.8, *values]) * 0.9, max([2.0, *values]) * 1.3
    axes.plot([low, high], [low, high], color=INK, lw=0.8, ls="--")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="claimed or predicted speedup")
    axes.set_ylabel("measured speedup, 95 % interval")


def counts(figure: Figure, verdicts: list[PaperVerdicts]) -> None:
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [8, 3]})
    rows = pd.DataFrame([
        {"family": p.family, "fidelity": p.fidelity, "verdict": c.verdict} for p in verdicts for c in p.claims if c.verdict
    ])  # fmt: skip
    for axes, column in ((left, "family"), (right, "fidelity")):
        axes.set_title(f"Claims by {column}", fontsize=10, loc="left")
        if rows.empty:
            nothing(axes, "no verdict yet")
            continue
        table = rows.groupby([column, "verdict"]).size().unstack(fill_value=0).reindex(columns=list(VERDICTS), fill_value=0)
        bottom = np.zeros(len(table))
        for verdict, (mark, colour) in VERDICTS.items():
            height = table[verdict].to_numpy()
            axes.bar(table.index, height, bottom=bottom, color=colour, label=f"{mark} {verdict}", width=0.7, ec="white")
            for x, (h, b) in enumerate(zip(height, bottom, strict=True)):
                if h:
                    axes.text(x, b + h / 2, f"{mark} {h}", ha="center", va="center", fontsize=7, color="white")
            bottom += height
        axes.tick_params(axis="x", rotation=35, labelsize=8)
        for text in axes.get_xticklabels():
            text.set_horizontalalignment("right")
        axes.yaxis.get_major_locator().set_params(integer=True)
    left.set_ylabel("claims")
    if not rows.empty:
        left.legend(fontsize=7)
    sns.despine(figure)
