"""The workflow, run for real on a copy of the project with small papers."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.driver import Workflow

pytestmark = pytest.mark.workflow
AddPaper = Callable[..., Path]


@pytest.fixture
def workflow(project: Path, add_paper: AddPaper) -> Workflow:
    add_paper("federated", "alpha")
    add_paper("vision", "beta")
    return Workflow(project)


ALPHA = "src/atlas/papers/federated/alpha"


def test_a_run_makes_everything_and_a_second_one_nothing(workflow: Workflow) -> None:
    output = workflow.run()
    assert re.search(r"^\[1/2(, about .* left)?\] (alpha|beta) ✓  0 s$", output, flags=re.MULTILINE)
    assert "[2/2] " in output and "2 papers, 2 claims: 2 verified" in output
    assert "Select jobs" not in output and "steps (" not in output  # Snakemake's own messages
    out = workflow.folder / "results/laptop"
    for name in (
        "measurements.parquet",
        "provenance.json",
        "verdicts.json",
        "figure.svg",
        "measure.log",
        "measure.tsv",
    ):
        assert (out / "alpha" / name).is_file()
    for name in (
        "verdicts.csv",
        "track.json",
        "overview/exponents.svg",
        "overview/speedups.svg",
        "overview/verdicts.svg",
        "overview/claims.html",
        "site/index.html",
        "site/papers/alpha.html",
    ):
        assert (out / name).is_file()
    assert "Nothing to be done" in workflow.run()

    # editing a claim measures nothing again, editing the setting or the experiment of one paper only that paper
    workflow.edit(f"{ALPHA}/paper.yaml", "slope: -1.0", "slope: -0.9")
    assert workflow.planned() == {"verify": 1, "track": 1, "atlas": 1, "all": 1}
    workflow.run()
    workflow.edit(f"{ALPHA}/experiment.py", "steps: int = 200", "steps: int = 150")
    assert workflow.planned() == {"measure": 1, "verify": 1, "track": 1, "atlas": 1, "all": 1}
    workflow.run()
    assert json.loads((out / "alpha/provenance.json").read_text())["setting"]["steps"] == 150

    # a building block: only the papers that import it, once one does
    block = workflow.folder / "src/atlas/blocks.py"
    block.write_text("FACTOR = 1.0\n")
    workflow.edit(
        f"{ALPHA}/experiment.py",
        "from atlas.run import Run",
        "from atlas.blocks import FACTOR\nfrom atlas.run import Run",
    )
    workflow.run()
    block.write_text("FACTOR = 1.0  # changed\n")
    assert workflow.planned()["measure"] == 1
    workflow.run()
    workflow.edit("src/atlas/run.py", "about every two seconds", "every two seconds or so")
    assert workflow.planned()["measure"] == 2

    # settings and seeds from the command line
    assert workflow.planned("--config", "settings={alpha: {dim: 10}}")["measure"] == 2
    workflow.run("alpha", "--config", "seed=7")
    assert (
        json.loads((workflow.folder / "results/laptop-seed7/alpha/provenance.json").read_text())["seed"] == 7
    )
    assert not (workflow.folder / "results/laptop-seed7/beta").exists()


def test_same_results_with_and_without_the_fork_server(workflow: Workflow) -> None:
    assert "Select jobs" in workflow.run("alpha", "--quiet", "host")  # all that snakemake says
    warm = (workflow.folder / "results/laptop/alpha/measurements.parquet").read_bytes()
    command = [
        "measure",
        "alpha",
        "--tier",
        "laptop",
        "--seed",
        "0",
        "--device",
        "cpu",
        "--out",
        "results/cold",
    ]
    subprocess.run([sys.executable, "-m", "atlas", *command], cwd=workflow.folder, check=True,
                   env={**workflow.environment, "PYTHONPATH": "src"})  # fmt: skip
    assert (workflow.folder / "results/cold/measurements.parquet").read_bytes() == warm


def test_targets(workflow: Workflow) -> None:
    assert workflow.planned("alpha") == {"measure": 1, "verify": 1, "alpha": 1}
    assert workflow.planned("vision") == {"measure": 1, "verify": 1, "vision": 1}
    assert workflow.planned("--profile", "slurm", "alpha")["measure"] == 1
    assert "unknown paper or family 'alpa'; did you mean alpha" in workflow.run("-n", "alpa", status=1)
    assert "config: unknown key 'sed'; did you mean seed?" in workflow.run(
        "-n", "--config", "sed=7", status=1
    )
    assert "unknown paper or family 'alph'" in workflow.run("-n", "--config", "select=alph", status=1)
    assert "unknown setting 'dimm'; did you mean dim" in workflow.run(
        "-n", "--config", "settings={alpha: {dimm: 1}}", status=1
    )
    workflow.edit(f"{ALPHA}/paper.yaml", "kind: linear_rate", "kind: linear_rat")
    output = workflow.run("-n", status=1)
    assert "federated/alpha/paper.yaml" in output and "did you mean linear_rate" in output


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("return None", "measure returned NoneType"),
        ("table.add('A', 'm', 0, torch.full((5,), torch.nan)); return table.frame()", "every run diverged"),
        ("while True: pass", "ran out of time"),
        ("import os; os.kill(os.getpid(), 9)", "was killed before it ended"),
    ],
)
def test_a_failing_paper_fails_alone(workflow: Workflow, body: str, message: str) -> None:
    path = workflow.folder / ALPHA / "experiment.py"
    good = path.read_text()
    path.write_text(good.replace("    for method in (", f"    {body}\n    for method in ("))
    if "time" in message:
        workflow.edit(f"{ALPHA}/paper.yaml", "runtime: 1", "runtime: 0.01")
    output = workflow.run("--retries", "0", status=1)
    out = workflow.folder / "results/laptop"
    assert message in (out / "alpha/measure.log").read_text()
    assert message in output  # the log's last lines are shown
    assert "✗ alpha" in output and "beta ✓" in output
    assert (out / "beta/verdicts.json").is_file() and not (out / "alpha/measurements.parquet").exists()
    if "time" in message:
        workflow.edit(f"{ALPHA}/paper.yaml", "runtime: 0.01", "runtime: 1")
    path.write_text(good)
    plan = workflow.planned()
    assert (plan["measure"], plan["verify"]) == (1, 1)  # only what failed
    workflow.run()


def slow(workflow: Workflow, seconds: float) -> None:
    workflow.edit(
        f"{ALPHA}/experiment.py",
        "    for method in (",
        f"    __import__('time').sleep({seconds})\n    for method in (",
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_loses_no_finished_paper(workflow: Workflow, how: signal.Signals) -> None:
    slow(workflow, 30)
    out = workflow.folder / "results/laptop"
    process = workflow.start("--cores", "2")
    assert process.stdout
    assert any("beta ✓" in line for line in process.stdout)  # snakemake knows that it is judged
    time.sleep(1)  # and notes it
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # Ctrl-C in a terminal reaches the whole foreground group
    else:
        process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (out / "alpha/measurements.parquet").exists()
    assert not [p for p in out.rglob(".*") if p.is_file() and p.suffix in (".parquet", ".json", ".svg")]
    workflow.edit(f"{ALPHA}/experiment.py", "sleep(30)", "sleep(0)")
    plan = workflow.planned()
    assert plan["measure"] == 1 and plan.get("verify") == 1
    assert "2 verified" in workflow.run(ATLAS_SUMMARY="all")


def test_a_second_run_at_once_says_why_it_stops(workflow: Workflow) -> None:
    slow(workflow, 15)
    first = workflow.start("alpha")
    end = time.monotonic() + 60
    while not (workflow.folder / "results/.lock").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    time.sleep(0.5)
    assert "is in use by process" in workflow.run("beta", status=1)
    first.kill()
    first.communicate()


def test_lint_is_clean(project: Path, add_paper: AddPaper) -> None:
    add_paper("federated", "alpha")
    assert "good condition" in Workflow(project).run("--lint")
