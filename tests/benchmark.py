"""What the pipeline itself costs: all CPU time of a run that is not inside a `measure` function.

    make benchmark ARGS="--papers 54"

Runs a copy of the project with generated papers (each a short real measurement and a real verification), once with a few and
once with many, and reports the CPU seconds outside `measure`, per paper and as a share at 20 s a paper, and the cost of
`snakemake -n` with 300 papers. Timings are printed, not asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from atlas.paper import FAMILIES
from atlas.scaffold import new
from tests.driver import copy_project


def copy(folder: Path, papers: int) -> Path:
    project = copy_project(folder / f"project-{papers}")
    for i in range(papers):
        new(FAMILIES[i % len(FAMILIES)], f"generated_{i}", project / "src/atlas/papers")
    return project


def snakemake(project: Path, *args: str) -> float:
    """CPU seconds of a run and everything it started, as the operating system counts them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "ATLAS_SUMMARY": "0", "PYTHONPATH": ""}
    command = [sys.executable, "-m", "snakemake", "--quiet", "all", *args]
    subprocess.run(command, cwd=project, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def inside(project: Path) -> float:
    found = project.glob("results/laptop/*/provenance.json")
    return sum(json.loads(path.read_text())["cpu_seconds"] for path in found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--papers", type=int, default=54)
    parser.add_argument("--few", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outside = {}
        for n in (options.few, options.papers):
            project = copy(Path(folder), n)
            outside[n] = snakemake(project) - inside(project)
            print(
                f"{n:4} papers: {outside[n]:6.1f} CPU s outside measure, {inside(project):.1f} inside",
                flush=True,
            )
        many = outside[options.papers]
        each = (many - outside[options.few]) / (options.papers - options.few)
        share = many / (many + 20 * options.papers)
        print(f"each additional paper: {each:.2f} CPU s; at 20 s a paper: {100 * share:.1f} % of the total")
        again = snakemake(project)
        print(f"nothing to do, {options.papers} papers: {again:.2f} CPU s")
        print(f"snakemake -n, 300 papers: {snakemake(copy(Path(folder), 300), '--dry-run'):.2f} CPU s")


if __name__ == "__main__":
    main()
