"""What the `atlas` command prints about papers and verdicts."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from atlas import results, slurm
from atlas.paper import Paper
from atlas.verify import ClaimVerdict, PaperVerdicts

STYLE = {
    "verified": ("✓", "green"),
    "refuted": ("✗", "red"),
    "inconclusive": ("?", "yellow"),
    "undiscriminating": ("=", "magenta"),
}

OUTCOME = {"pass": "passes", "fail": "fails", "unclear": "unclear"}


def console() -> Console:
    """A console as wide as the terminal; plain and wide enough for a table row where there is none."""
    probe = Console()
    return probe if probe.is_terminal else Console(width=200)


def label(verdict: str | None) -> Text:
    mark, style = STYLE.get(verdict or "", ("·", "dim"))
    return Text(f"{mark} {verdict or 'smoke: none'}", style=style)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def measured(claim: ClaimVerdict) -> str:
    r = claim.result
    return f"{number(r.estimate)} [{number(r.low)}, {number(r.high)}]"


def control(claim: ClaimVerdict) -> str:
    r = claim.controls[results.decisive_control(claim)].result
    return f"{number(r.estimate)} [{number(r.low)}, {number(r.high)}] {OUTCOME[r.outcome]}"


def verdict_table(found: Iterable[PaperVerdicts]) -> Table:
    """Paper, claim, kind, claimed, measured with interval, control, verdict, fidelity, seconds."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("paper", "claim", "kind", "wanted", "measured", "control", "verdict", "fidelity"):
        table.add_column(name, overflow="fold")
    table.add_column("CPU s", justify="right")
    for paper in found:
        for i, claim in enumerate(paper.claims):
            table.add_row(
                escape(paper.paper) if i == 0 else "",
                escape(claim.id),
                claim.kind,
                escape(claim.result.criterion),
                measured(claim),
                control(claim),
                label(claim.verdict),
                paper.fidelity,
                f"{paper.provenance['cpu_seconds']:.1f}" if i == 0 else "",
            )
    return table


def print_verdicts(out: Path, slugs: list[str], newer: float | None = None) -> bool:
    """The verdict table of a folder of results; with `newer`, only papers judged since that time (Unix seconds).

    Returns whether every paper has a verdict.
    """
    screen = console()
    found = list(results.verdicts(out, slugs))
    missing = [slug for slug in slugs if not (out / slug / "verdicts.json").is_file()]
    if newer is not None:
        found = [p for p in found if (out / p.paper / "verdicts.json").stat().st_mtime >= newer]
        logs = [log for slug in missing for log in (out / slug).glob("*.log") if log.stat().st_mtime >= newer]
        missing = sorted({log.parent.name for log in logs})
    if found:
        screen.print(verdict_table(found))
        counts: Counter[str] = Counter(c.verdict for p in found for c in p.claims if c.verdict)
        claims = sum(len(p.claims) for p in found)
        words = ", ".join(f"{counts[v]} {v}" for v in STYLE if counts[v])
        screen.print(f"\n{len(found)} papers, {claims} claims: {words or 'no verdicts at the smoke tier'}")
        screen.print(
            f"figures: {out}/<paper>/figure.svg   table: {out}/verdicts.csv   one paper: atlas show <paper>"
        )
    if missing and out.is_dir() and shutil.disk_usage(out).free < 2**20:
        screen.print(Text(f"no space left on the disk of {out}: free some, then run again", style="red"))
    for slug in missing:
        logs = sorted((out / slug).glob("*.log"), key=lambda p: p.stat().st_mtime)
        if logs:
            screen.print(Text(f"\nno verdict for {slug}: {logs[-1]} ends with", style="red"))
            screen.print(Text(results.last_lines(logs[-1])))
            if said := slurm.last_words(logs[-1]):
                screen.print(Text(said))
        elif newer is None:
            screen.print(Text(f"no verdict for {slug} yet: snakemake {slug}"))
    return not missing


def print_list(papers: list[Paper], out: Path) -> None:
    """Every paper with its family, fidelity, claims and last verdicts."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("family", "paper", "n", "fidelity", "claims", "last verdicts", "title"):
        table.add_column(name, no_wrap=name in ("paper", "title"))
    last = {p.paper: p for p in results.verdicts(out, [p.slug for p in papers])}
    for paper in papers:
        found = last.get(paper.slug)
        marks = Text(" ").join(
            Text(STYLE.get(c.verdict or "", ("·", "dim"))[0], STYLE.get(c.verdict or "", ("·", "dim"))[1])
            for c in (found.claims if found else [])
        )
        table.add_row(
            paper.family,
            paper.slug,
            str(paper.n),
            paper.fidelity,
            str(len(paper.claims)),
            marks,
            escape(paper.title),
        )
    screen = console()
    screen.print(table)
    screen.print(
        f"\n{len(papers)} papers; last verdicts from {out}  (✓ verified ✗ refuted ? inconclusive = undiscriminating)"
    )


def print_paper(paper: Paper, out: Path, setting: dict[str, object]) -> None:
    """What a paper claims, its method and setting, and its last result."""
    screen = console()
    screen.print(Text(f"{paper.title} ({paper.year})", style="bold"))
    links = [f"arXiv {paper.arxiv}"] if paper.arxiv else []
    links += [f"code {paper.code}"] if paper.code else []
    screen.print(Text(" · ".join([paper.family, paper.slug, f"paper {paper.n}", *links])))
    screen.print(Text(f"fidelity: {paper.fidelity}: {paper.fidelity_note}\n"))
    for head, text in (("", paper.summary), ("Method", paper.method)):
        screen.print(Text(f"{head}\n{text.strip()}\n".lstrip("\n")))
    screen.print(Text(f"Setting ({out.name})", style="bold"))
    screen.print(Text("\n".join(f"  {key} = {value}" for key, value in setting.items())))
    found = next(results.verdicts(out, [paper.slug]), None)
    screen.print(Text("\nClaims", style="bold"))
    for claim in paper.claims:
        screen.print(Text(f"  {claim.id} [{claim.kind}] {claim.says} ({claim.source})"))
        result = next((c for c in found.claims if c.id == claim.id), None) if found else None
        if result:
            r = result.result
            screen.print(Text("    ").append_text(label(result.verdict)).append(f": {result.reason}"))
            screen.print(Text(f"    {r.quantity}: {measured(result)}, wanted {r.criterion}"))
            for c in result.controls:
                values = f"{number(c.result.estimate)} [{number(c.result.low)}, {number(c.result.high)}]"
                screen.print(Text(f"    control ({c.says.strip()}): {values}, {c.result.outcome}"))
    if found:
        o = found.provenance
        where = f"{o['cpu']}, {o['threads']} thread(s)"
        when = f"commit {(o['commit'] or 'unknown')[:10]}{' + changes' if o['dirty'] else ''}, {o['started']}"
        screen.print(Text(f"\nmeasured in {o['cpu_seconds']:.1f} CPU s on {where}; {when}; seed {o['seed']}"))
        screen.print(Text(f"figure: {out / paper.slug / 'figure.svg'}"))
    else:
        screen.print(Text(f"\nnot measured yet: snakemake {paper.slug}"))
    screen.print(Text(f"\nNotes\n{paper.notes.strip()}"))
