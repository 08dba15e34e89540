"""Reading what is in a folder of results: results/<tier>/<slug>/verdicts.json and what is not there yet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from atlas import files
from atlas.verify import ClaimVerdict, PaperVerdicts, read

COLUMNS = (
    "family", "paper", "n", "claim", "kind", "verdict", "fidelity", "quantity", "criterion", "claimed",
    "estimate", "low", "high", "level", "control_estimate", "control_low", "control_high", "control_outcome",
    "reason", "says", "source", "arxiv", "tier", "seed", "cpu_seconds", "wall_seconds", "commit",
)  # fmt: skip


def verdicts(out: Path, slugs: Iterable[str]) -> Iterator[PaperVerdicts]:
    """The verdicts of those papers that have any, in the order of `slugs`."""
    for slug in slugs:
        if (path := out / slug / "verdicts.json").is_file():
            yield read(path)


def last_lines(log: Path, count: int = 5) -> str:
    """The last lines of a log, or '' if there is none."""
    try:
        return "\n".join(log.read_text(errors="replace").rstrip().splitlines()[-count:])
    except OSError:
        return ""


def decisive_control(claim: ClaimVerdict) -> int:
    """Index of the control that comes closest to passing: the first that passes, or else the first unclear one, or 0."""
    order = [("pass", "unclear", "fail").index(c.result.outcome) for c in claim.controls]
    return order.index(min(order))


def row(paper: PaperVerdicts, claim: ClaimVerdict) -> dict[str, object]:
    """One claim as a flat row with the keys COLUMNS."""
    r, control = claim.result, claim.controls[decisive_control(claim)].result
    return {
        "family": paper.family,
        "paper": paper.paper,
        "n": paper.n,
        "claim": claim.id,
        "kind": claim.kind,
        "verdict": claim.verdict or "",
        "fidelity": paper.fidelity,
        "quantity": r.quantity,
        "criterion": r.criterion,
        "claimed": r.claimed,
        "estimate": r.estimate,
        "low": r.low,
        "high": r.high,
        "level": r.level,
        "control_estimate": control.estimate,
        "control_low": control.low,
        "control_high": control.high,
        "control_outcome": control.outcome,
        "reason": claim.reason,
        "says": claim.says,
        "source": claim.source,
        "arxiv": paper.arxiv,
        "tier": paper.tier,
        "seed": paper.seed,
        "cpu_seconds": paper.provenance["cpu_seconds"],
        "wall_seconds": paper.provenance["wall_seconds"],
        "commit": paper.provenance["commit"],
    }


def write_table(found: Iterable[PaperVerdicts], path: Path) -> None:
    """All claims as CSV, one row per claim."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row(paper, claim) for paper in found for claim in paper.claims)
    files.write_text(path, text.getvalue())
