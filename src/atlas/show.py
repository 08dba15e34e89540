"""What the `atlas` command prints about papers and verdicts."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from atlas import results, slurm
from atlas.claims import Result
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


def marks(claims: Iterable[ClaimVerdict], between: str = "") -> Text:
    """A mark per claim."""
    return Text(between).join(label(claim.verdict)[:1] for claim in claims)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def interval(estimate: float, low: float, high: float) -> str:
    return f"{number(estimate)} [{number(low)}, {number(high)}]"


def measured(result: Result) -> str:
    return interval(result.estimate, result.low, result.high)


def control(claim: ClaimVerdict) -> str:
    r = claim.controls[results.decisive_control(claim)].result
    return f"{measured(r)} {OUTCOME[r.outcome]}"


def verdict_table(found: Iterable[PaperVerdicts], width: int) -> Table:
    """A row per claim; a screen of less than 150 columns has no room for kind, control, fidelity and CPU seconds."""
    everything = ("paper", "claim", "kind", "wanted", "measured", "control", "verdict", "fidelity", "CPU s")
    columns = everything if width >= 150 else ("paper", "claim", "wanted", "measured", "verdict")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name == "CPU s" else "left")
    for paper in found:
        for i, claim in enumerate(paper.claims):
            row: dict[str, str | Text] = {
                "paper": escape(paper.paper) if i == 0 else "",
                "claim": escape(claim.id),
                "kind": claim.kind,
                "wanted": escape(claim.result.criterion),
                "measured": measured(claim.result),
                "control": control(claim),
                "verdict": label(claim.verdict),
                "fidelity": paper.fidelity,
                "CPU s": f"{paper.provenance['cpu_seconds']:.1f}" if i == 0 else "",
            }
            table.add_row(*(row[name] for name in columns))
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
        screen.print(verdict_table(found, screen.width))
        claims = [c for p in found for c in p.claims]
        screen.print(f"\n{len(found)} papers, {len(claims)} claims: {results.counted(claims)}")
        site = out / "site/index.html"
        pages = f"pages: {site}   " if site.is_file() else ""
        screen.print(f"{pages}table: {out}/verdicts.csv   one paper: atlas show <paper>", soft_wrap=True)
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
        table.add_row(
            paper.family,
            paper.slug,
            str(paper.n),
            paper.fidelity,
            str(len(paper.claims)),
            marks(found.claims if found else [], " "),
            escape(paper.title),
        )
    screen = console()
    screen.print(table)
    screen.print(
        f"\n{len(papers)} papers; last verdicts from {out}  (✓ verified ✗ refuted ? inconclusive = undiscriminating)"
    )


def print_paper(paper: Paper, out: Path, setting: dict[str, object]) -> None:
    """What a paper claims, its method and setting, and its last result."""
    from atlas.figures.terminal import plot

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
            screen.print(Text(f"    {r.quantity}: {measured(r)}, wanted {r.criterion}"))
            if curves := plot(result, min(screen.width, 100), screen.is_terminal):
                screen.print(Text.from_ansi(curves))
            for c in result.controls:
                screen.print(
                    Text(f"    control ({c.says.strip()}): {measured(c.result)}, {c.result.outcome}")
                )
    if found:
        o = found.provenance
        where = f"{o['cpu']}, {o['threads']} thread(s)"
        when = f"commit {(o['commit'] or 'unknown')[:10]}{' + changes' if o['dirty'] else ''}, {o['started']}"
        screen.print(Text(f"\nmeasured in {o['cpu_seconds']:.1f} CPU s on {where}; {when}; seed {o['seed']}"))
        screen.print(Text(f"figure: {out / paper.slug / 'figure.svg'}"))
    else:
        screen.print(Text(f"\nnot measured yet: snakemake {paper.slug}"))
    screen.print(Text(f"\nNotes\n{paper.notes.strip()}"))


def print_diff(found: dict[str, Any], a: str, b: str) -> None:
    """What `atlas.diff.compare` found, as text."""
    screen = console()

    def value(side: dict[str, Any]) -> str:
        return interval(*(float(side[key]) for key in ("estimate", "low", "high")))

    def name(entry: dict[str, Any]) -> Text:
        return Text(f"{entry['paper']} {entry['claim']}")

    for side, run in (("a", a), ("b", b)):
        about = "; ".join(
            f"{key} {', '.join(v[:10] for v in values)}" for key, values in found[side].items() if values
        )
        screen.print(Text(f"{side.upper()}: {run}  ({about})"))
    for title, key in (("verdict changed", "changed"), ("value moved beyond the intervals", "moved")):
        if not found[key]:
            continue
        table = Table("claim", "A", "", "B", "", "wanted", box=None, pad_edge=False, header_style="bold")
        for entry in found[key]:
            sides = [
                cell
                for side in ("a", "b")
                for cell in (label(entry[side]["verdict"] or None), value(entry[side]))
            ]
            table.add_row(name(entry), *sides, escape(entry["b"]["criterion"]))
        screen.print(Text(f"\n{title}: {len(found[key])}", style="bold"))
        screen.print(table)
    for side in ("a", "b"):
        if only := found[f"only_{side}"]:
            screen.print(Text(f"\nonly in {side.upper()}: " + ", ".join(" ".join(pair) for pair in only)))
    changed, moved = len(found["changed"]), len(found["moved"])
    screen.print(f"\n{found['compared']} claims compared: {changed} verdicts changed, {moved} values moved")
