"""The curves of a claim as text, for a terminal."""

from __future__ import annotations

import numpy as np
import plotext

from atlas.figures.reading import Array, curves_of, parts, points
from atlas.verify import ClaimVerdict

COLOURS = ("blue+", "orange+", "magenta+", "green+", "cyan+", "red+")
HEIGHT = 15


def plot(claim: ClaimVerdict, width: int, colour: bool) -> str:
    """The claim's curves (one per group, at most six) and its controls as dots; '' if it has none."""
    shown = {name or "measured": found for name, r in parts(claim.result).items() if (found := points(r))}
    controls = curves_of(c.result for c in claim.controls)
    if not shown:
        return ""
    x = np.concatenate([curve[0] for curve in shown.values()])
    y = np.concatenate([curve[1] for curve in shown.values()])
    logx = claim.kind != "linear_rate" and _spans(x, 20)
    logy = claim.kind in ("rate", "linear_rate") or _spans(y, 8)
    plotext.clear_figure()
    plotext.theme("pro" if colour else "clear")
    plotext.limitsize(False, False)  # wide where there is no terminal, too
    plotext.plotsize(width, HEIGHT)
    plotext.xscale("log" if logx else "linear")
    plotext.yscale("log" if logy else "linear")
    legend = ["· control"] * bool(controls)
    for curve in controls:
        u, v = _drawable(curve[0], curve[1], logx, logy)
        if len(u):
            plotext.scatter(u.tolist(), v.tolist(), marker="·", color="gray")
    for (name, curve), tone in zip(shown.items(), COLOURS, strict=False):
        u, v = _drawable(curve[0], curve[1], logx, logy)
        if len(u):
            plotext.plot(u.tolist(), v.tolist(), marker="braille", color=tone)
            legend.append(str(plotext.colorize(f"━ {name}", tone)))
    plotext.xlabel(claim.axis or "x")
    plotext.title(claim.id)
    text = plotext.build().rstrip("\n") + "\n  " + "   ".join(legend)
    return str(text if colour else plotext.uncolorize(text))


def _spans(values: Array, ratio: float) -> bool:
    """Whether a logarithmic axis suits these values."""
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and values.max() / values.min() > ratio)


def _drawable(x: Array, y: Array, logx: bool, logy: bool) -> tuple[Array, Array]:
    keep = np.isfinite(x) & np.isfinite(y) & ((x > 0) | (not logx)) & ((y > 0) | (not logy))
    return x[keep], y[keep]
