"""What a real run leaves behind, in a real browser: the site, Snakemake's report, MLflow's UI."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from atlas.scaffold import new
from tests.browser.conftest import Open
from tests.driver import Workflow, copy_project, free_port, wait_for

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose two papers have been run."""
    project = copy_project(tmp_path_factory.mktemp("run") / "project")
    for family, slug in (("federated", "alpha"), ("vision", "beta")):
        new(family, slug, project / "src/atlas/papers")
    Workflow(project).run()
    return project


def test_the_report_shows_every_figure_and_table(finished: Path, browser: Browser) -> None:
    Workflow(finished).run("--report", "report.html")
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((finished / "report.html").as_uri())
    expect(page.get_by_role("heading", name="Convergence Atlas")).to_be_visible()
    shown = []
    for category in ("All", "federated", "vision"):
        page.reload()
        page.get_by_text(category, exact=True).first.click()
        for entry in range(page.locator("table tr:has(td)").count()):
            row = page.locator("table tr:has(td)").nth(entry)
            shown.append(row.inner_text().split("\t")[0].strip())
            row.locator("a[type=button]").first.click()
            if category == "All" and entry == 0:
                expect(page.frame_locator("iframe").get_by_text("linear_convergence").first).to_be_visible()
            else:
                picture = page.locator("img[src^='data:image/svg']").last
                expect(picture).to_be_visible()
                assert picture.evaluate("image => image.naturalWidth") > 100
    assert shown[:4] == [
        "all claims",
        "claimed and measured exponents",
        "claimed and measured speedups",
        "verdicts by family and fidelity",
    ]
    assert len(shown) == 6 and errors == []


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def mlflow(finished: Path) -> Iterator[dict[str, str]]:
    """The addresses that `atlas ui` prints, while it serves."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "atlas", "ui", "--port", str(port)], cwd=finished, env={**os.environ, "PYTHONPATH": "src"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert server.stdout
    said = ""
    while "recipes" not in said:
        said += (line := server.stdout.readline())
        assert line, said
    address = f"http://127.0.0.1:{port}"
    wait_for(lambda: answers(f"{address}/health"), "MLflow")
    yield dict(re.findall(r"^ *([\w ]+?)(?: of .*)?: (http\S+)$", said, flags=re.MULTILINE))
    os.killpg(server.pid, signal.SIGTERM)
    server.communicate(timeout=20)


def test_mlflow_opens_with_the_verdicts(mlflow: dict[str, str], browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    page.goto(mlflow["all papers"])
    for text in ("alpha ✓ (laptop)", "beta ✓ (laptop)"):
        expect(page.get_by_role("link", name=text)).to_be_visible(timeout=30_000)
    for column in ("verdict", "fidelity", "tier", "seed"):
        expect(page.get_by_role("columnheader", name=column).first).to_be_visible()
    expect(page.get_by_text("2 matching runs")).to_be_visible()
    page.goto(mlflow["papers with a refuted claim"])
    expect(page.get_by_text("0 matching runs")).to_be_visible(timeout=30_000)


def test_mlflow_shows_the_curves_of_all_methods(
    mlflow: dict[str, str], finished: Path, browser: Browser
) -> None:
    track = json.loads((finished / "results/laptop/track.json").read_text())
    run, experiment = track["papers"]["alpha"], track["experiments"]["alpha"]
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    page.goto(f"{mlflow['MLflow UI']}/#/experiments/{experiment}/runs/{run}")
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Curves of all methods").click()
    page = opened.value
    expect(
        page.get_by_text("Curves of all methods (", exact=False)
        .or_(page.get_by_text("Curves of all methods"))
        .first
    ).to_be_visible(timeout=30_000)
    for method in ("gradient descent", "decaying step"):
        expect(page.get_by_role("link", name=method)).to_be_visible()
    chart = page.locator(".js-plotly-plot").first
    expect(chart).to_be_visible(timeout=30_000)
    assert chart.evaluate("plot => plot.layout.yaxis.type") == "log"
    page.goto(f"{mlflow['MLflow UI']}/#/experiments/{experiment}/runs/{run}/artifacts/figure.svg")
    picture = page.locator("img[src*='figure.svg'], img[src^='blob:'], img[src^='data:']").first
    expect(picture).to_be_visible(timeout=30_000)


def test_the_site_links_to_the_run_in_mlflow(finished: Path, mlflow: dict[str, str], visit: Open) -> None:
    track = json.loads((finished / "results/laptop/track.json").read_text())
    page = visit(finished / "results/laptop/site/papers/alpha.html")
    link = page.locator(".mlflow").get_attribute("href")
    assert link and link.endswith(
        f"#/experiments/{track['experiments']['alpha']}/runs/{track['papers']['alpha']}"
    )


def test_the_command_on_a_page_runs_the_paper_again(finished: Path, visit: Open) -> None:
    page = visit(finished / "results/laptop/site/papers/alpha.html")
    command = page.locator(".command code").first.inner_text()
    measured = finished / "results/laptop/alpha/measurements.parquet"
    before = measured.stat().st_mtime_ns
    assert command.startswith("snakemake ")
    output = Workflow(finished).run(*command.split()[1:])
    assert measured.stat().st_mtime_ns > before and "[1/1] alpha ✓" in output
