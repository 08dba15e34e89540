"""What a run would take, shown by `snakemake --dry-run`. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from atlas.paper import Paper


class Row(NamedTuple):
    """One measurement to come. `hours` is what the last one took on the same kind of device, else None; `limit` its
    time limit in hours."""

    slug: str
    gpus: int
    gpu_model: str | None
    cpus: int
    mem_gb: float
    hours: float | None
    limit: float
    data: list[str]

    @property
    def expected(self) -> float:
        return self.limit if self.hours is None else self.hours


def plan(papers: Iterable[Paper], tier: str, out: Path) -> list[Row]:
    """The measurements of `papers` at a tier, the most expensive first."""
    rows = []
    for paper in papers:
        wanted = getattr(paper.resources, tier)
        hours = None
        if (path := out / paper.slug / "provenance.json").is_file():
            origin = json.loads(path.read_text())
            if origin["device"].startswith("cuda") == bool(wanted.gpus):
                hours = origin["wall_seconds"] / 3600
        limit = wanted.runtime / 60
        rows.append(
            Row(
                paper.slug,
                wanted.gpus,
                wanted.gpu_model,
                wanted.cpus,
                wanted.mem_mb / 1000,
                hours,
                limit,
                paper.data,
            )
        )
    return sorted(rows, key=lambda r: (-r.gpus * r.expected, -r.cpus * r.expected))


def describe(rows: list[Row], most: int = 20) -> str:
    """The plan as text: a row per measurement that needs a GPU, and the sums."""
    if not rows:
        return "plan: nothing to measure"
    lines = []
    with_gpu = [r for r in rows if r.gpus]
    if with_gpu:
        width = max(len(r.slug) for r in with_gpu[:most])
        lines.append(f"{'measurement':{width}}  GPUs  CPUs  memory   hours            data sets")
    for r in with_gpu[:most]:
        hours = f"at most {r.limit:.1f}" if r.hours is None else f"{r.hours:.2f} (last time)"
        gpus = f"{r.gpus} {r.gpu_model}" if r.gpu_model else str(r.gpus)
        lines.append(
            f"{r.slug:{width}}  {gpus:4}  {r.cpus:4}  {r.mem_gb:3.0f} GB   {hours:15}  {', '.join(r.data) or '-'}"
        )
    if len(with_gpu) > most:
        lines.append(f"... and {len(with_gpu) - most} more")
    gpu = sum(r.gpus * r.expected for r in rows)
    cpu = sum(r.cpus * r.expected for r in rows if not r.gpus)
    known = sum(r.hours is not None for r in rows)
    basis = [f"{known} by their last run"] if known else []
    basis += (
        [f"{len(rows) - known} by their time limits, which are upper bounds"] if known < len(rows) else []
    )
    lines.append(
        f"plan: {len(rows)} measurements, {gpu:.1f} GPU hours, {cpu:.2f} CPU hours without a GPU"
        f" ({', '.join(basis)})"
    )
    return "\n".join(lines)
