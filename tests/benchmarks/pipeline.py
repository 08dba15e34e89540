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
import time
from pathlib import Path

from atlas.paper import FAMILIES
from atlas.scaffold import new
from tests.driver import Unavailable, copy_project


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


def first_paint(folder: Path) -> None:
    """How long the site of 300 papers takes to be written and to show in Chromium, if there is one."""
    from playwright.sync_api import sync_playwright

    from atlas import paper
    from atlas.site.build import build
    from tests.browser.conftest import FLAGS, chromium
    from tests.examples import write_results

    paper.PAPERS = folder / "papers"
    out, slugs = write_results(folder, 300)
    start = time.perf_counter()
    index = build(out, slugs)
    print(
        f"site of 300 papers: written in {time.perf_counter() - start:.1f} s, index {index.stat().st_size / 1e6:.2f} MB",
        end="",
    )
    try:
        path = chromium()
    except Unavailable as error:
        print(f"; no browser ({error})")
        return
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    search = """() => {
        const start = performance.now(), field = document.querySelector("#q");
        field.value = "rate 17";
        field.dispatchEvent(new Event("input", {bubbles: true}));
        document.body.offsetHeight;
        return performance.now() - start;
    }"""
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=path, args=list(FLAGS)).new_page()
        for _ in range(2):  # the first time the browser itself starts
            page.goto(index.as_uri())
            page.wait_for_load_state("networkidle")
        shown, searched = page.evaluate(paint), page.evaluate(search)
        print(f", first paint after {shown:.0f} ms, a search takes {searched:.0f} ms")


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
        first_paint(Path(folder))
        print(f"snakemake -n, 300 papers: {snakemake(copy(Path(folder), 300), '--dry-run'):.2f} CPU s")


if __name__ == "__main__":
    main()
