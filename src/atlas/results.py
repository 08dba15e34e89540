"""Reading what is in a folder of results: results/<tier>/<slug>/verdicts.json and what is not there yet."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from atlas import files
from atlas.claims.verdict import Verdict
from atlas.errors import AtlasError
from atlas.verify import ClaimVerdict, PaperVerdicts, read

if TYPE_CHECKING:
    import pandas as pd

# The columns of verdicts.csv and of `atlas export`: name -> what it holds.
COLUMNS = {
    "family": "one of the eight groups of papers",
    "paper": "slug of the paper",
    "n": "number of the paper in the list of 286",
    "claim": "id of the claim, unique within its paper",
    "kind": "kind of test: rate, linear_rate, speedup, comparison, scaling, equality, bound or phase",
    "verdict": "verified, refuted, inconclusive or undiscriminating; empty at the smoke tier",
    "fidelity": "how close the setting is to the paper's: exact, scaled or proxy",
    "quantity": "what `estimate` is, in words",
    "criterion": "what is asked of the whole interval, e.g. '<= -0.45' or 'in [0.9, 1.1]'; '<= 0 (+0.05)': the estimate at most 0, "
    "the interval at most 0.05",
    "claimed": "the paper's own number for the quantity, empty where it states none",
    "estimate": "the measured value, in the unit of `quantity`; of several groups the one that decides",
    "low": "lower end of the confidence interval, -inf where unbounded",
    "high": "upper end of the confidence interval, inf where unbounded",
    "level": "confidence level of the interval",
    "control_estimate": "the same quantity of the control, which must fail; of several controls the one closest to passing",
    "control_low": "lower end of the control's interval",
    "control_high": "upper end of the control's interval",
    "control_outcome": "what the test says of the control: pass, fail or unclear",
    "reason": "why the verdict is what it is",
    "says": "the claim in words",
    "source": "where the paper says it",
    "arxiv": "arXiv id of the paper, empty if it has none",
    "tier": "settings: smoke, laptop or paper",
    "seed": "master seed of the run",
    "seeds": "number of seeds of the measurement",
    "cpu_seconds": "CPU time of the measurement, seconds (one measurement serves all claims of a paper)",
    "wall_seconds": "wall-clock time of the measurement, seconds",
    "started": "when the measurement began, UTC, ISO 8601",
    "commit": "git commit of the code that measured, empty outside a repository",
    "dirty": "whether that code had changes that were not committed",
}


def verdicts(out: Path, slugs: Iterable[str]) -> Iterator[PaperVerdicts]:
    """The verdicts of those papers that have any, in the order of `slugs`."""
    for slug in slugs:
        if (path := out / slug / "verdicts.json").is_file():
            yield read(path)


def counted(claims: Iterable[ClaimVerdict]) -> str:
    """'3 verified, 1 refuted', or 'no verdict'."""
    counts = Counter[str | None](claim.verdict for claim in claims)
    return ", ".join(f"{counts[v]} {v}" for v in get_args(Verdict) if counts[v]) or "no verdict"


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
        "seeds": paper.provenance["seeds"],
        "cpu_seconds": paper.provenance["cpu_seconds"],
        "wall_seconds": paper.provenance["wall_seconds"],
        "started": paper.provenance["started"],
        "commit": paper.provenance["commit"],
        "dirty": paper.provenance["dirty"],
    }


def write_html(found: Iterable[PaperVerdicts], path: Path) -> None:
    """All claims as a plain table, for Snakemake's report, which shows HTML but only downloads CSV."""
    import pandas as pd

    from atlas.figures.style import estimate, pretty

    rows = [
        {
            "verdict": claim.verdict or "none",
            "paper": paper.paper,
            "claim": claim.id,
            "says": claim.says,
            "measured": estimate(claim.result),
            "wanted": pretty(claim.result.criterion),
            "control": estimate(claim.controls[decisive_control(claim)].result),
            "fidelity": paper.fidelity,
        }
        for paper in found
        for claim in paper.claims
    ]
    table = pd.DataFrame(rows).to_html(index=False, border=0, justify="left")
    look = (
        "body{font:14px sans-serif;background:#fff;color:#222}td,th{padding:.3em .6em;vertical-align:top}"
        "tr:nth-child(even){background:#f3f4f6}td:nth-child(4){min-width:20em}"
    )
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>All claims</title><style>{look}</style>{table}</html>"
    files.write_text(path, page)


def table(found: Iterable[PaperVerdicts]) -> pd.DataFrame:
    """All claims, one row per claim, with the columns COLUMNS."""
    import pandas as pd

    return pd.DataFrame(
        [row(paper, claim) for paper in found for claim in paper.claims], columns=list(COLUMNS)
    )


def write_table(claims: pd.DataFrame, path: Path) -> None:
    """Write a table of claims as .csv or .parquet; a Parquet file holds the descriptions of its columns.

    Raises AtlasError if `path` is neither.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix not in (".csv", ".parquet"):
        raise AtlasError(f"{path}: the name has to end in .parquet or .csv")
    with files.replacing(path) as temporary:
        if path.suffix == ".csv":
            claims.to_csv(temporary, index=False, lineterminator="\n")
            return
        plain = pa.Table.from_pandas(claims, preserve_index=False)
        described = [field.with_metadata({"description": COLUMNS[field.name]}) for field in plain.schema]
        pq.write_table(plain.cast(pa.schema(described, metadata=plain.schema.metadata)), temporary)


def write_dictionary(path: Path) -> None:
    """The data dictionary of such a table, as CSV."""
    with files.replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("column", "holds"), *COLUMNS.items()])
