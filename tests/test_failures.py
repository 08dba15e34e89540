"""Things that break around a workflow, done for real. Afterwards the next run completes and repeats only what was lost.

Killed, cancelled and starved jobs, lost nodes, a killed snakemake and a second one: tests/slurm and test_workflow.py.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.driver import Workflow, free_port

pytestmark = pytest.mark.workflow
AddPaper = Callable[..., Path]


@pytest.fixture
def workflow(project: Path, add_paper: AddPaper) -> Workflow:
    for family, slug in (("federated", "alpha"), ("vision", "beta")):
        paper = add_paper(family, slug) / "paper.yaml"
        paper.write_text(paper.read_text().replace("data: []", "data: [digits]"))
        experiment = paper.parent / "experiment.py"
        code = experiment.read_text().replace("from atlas.run", "from atlas import data\nfrom atlas.run")
        marker = "    table = run.table()\n"
        experiment.write_text(code.replace(marker, marker + '    data.images("digits")\n'))
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)  # DVC wants a repository
    return Workflow(project)


def test_damaged_data_are_fetched_again(workflow: Workflow) -> None:
    workflow.run("alpha")
    file = workflow.folder / "data/digits.npz"
    good = file.read_bytes()
    file.unlink()
    file.write_bytes(b"rubbish")
    (cached,) = (
        p for p in (workflow.folder / ".dvc/cache").rglob("*") if p.is_file() and p.read_bytes() == good
    )
    cached.chmod(0o644)
    cached.write_bytes(b"rubbish too")
    cached.chmod(0o444)
    plan = workflow.planned()
    assert plan["measure"] == 1
    output = workflow.run()
    assert "data/digits.npz: not what data.dvc tracks, fetching again" in output
    assert file.read_bytes() == good and cached.read_bytes() == good
    workflow.run("--config", "results=undisturbed")
    assert workflow.verdicts() == workflow.verdicts("undisturbed")


@contextmanager
def tiny_disk(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=False).returncode:
        pytest.skip("NO TEST OF A FULL DISK: needs root to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def test_a_full_disk(workflow: Workflow) -> None:
    with tiny_disk(workflow.folder / "results", "2m"):
        workflow.run("alpha")
        ballast = workflow.folder / "results/ballast"
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(b"x" * 3_000_000)
        output = workflow.run("--retries", "0", status=1)
        assert "no space left" in output.lower()
        assert not (workflow.folder / "results/laptop/beta/verdicts.json").exists()
        assert (workflow.folder / "results/laptop/alpha/verdicts.json").read_text()
        ballast.unlink()
        assert workflow.planned()["measure"] == 1
        workflow.run("--config", "results=results")
        undisturbed = workflow.run("--config", "results=undisturbed")
        assert "2 verified" in undisturbed
        assert workflow.verdicts() == workflow.verdicts("undisturbed")


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    folder.mkdir(exist_ok=True)
    store = (
        "--backend-store-uri",
        f"sqlite:///{folder}/db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *store, "--port", str(port), "--workers", "1"],
        stdout=(folder / "log").open("ab"), stderr=subprocess.STDOUT, start_new_session=True,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while True:
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.3)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def runs(uri: str) -> int:
    client = MlflowClient(uri)
    ids = [e.experiment_id for e in client.search_experiments()]
    return len([r for r in client.search_runs(ids, max_results=1000) if "atlas.digest" in r.data.tags])


def test_the_mlflow_server_stops_during_track(workflow: Workflow, tmp_path: Path) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    log = workflow.folder / "results/laptop/track.log"
    with mlflow_server(tmp_path / "mlflow", port) as server:
        workflow.run("alpha", "beta")
        process = workflow.start("--retries", "0", MLFLOW_TRACKING_URI=uri)
        os.kill(server.pid, signal.SIGSTOP)  # answers nothing, as a machine that hangs
        while not log.exists():
            time.sleep(0.1)
        time.sleep(1)
        os.killpg(server.pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 1
        assert f"cannot log to MLflow at {uri}" in output and "The next run catches up" in output
        assert (workflow.folder / "results/laptop/verdicts.csv").is_file()
    with mlflow_server(tmp_path / "mlflow", port):
        assert workflow.planned() == {"track": 1, "all": 1}
        workflow.run(MLFLOW_TRACKING_URI=uri)
        assert runs(uri) == 2


@pytest.mark.slow
def test_fifty_papers_are_logged_while_others_read(
    workflow: Workflow, tmp_path: Path, add_paper: AddPaper
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    for i in range(48):
        add_paper("networks", f"paper_{i}")
    with mlflow_server(tmp_path / "mlflow", port):
        process = workflow.start("--config", "tier=smoke", MLFLOW_TRACKING_URI=uri)
        reads, counts = 0, set()
        while process.poll() is None:
            counts.add(runs(uri))
            reads += 1
        output, _ = process.communicate()
        assert process.returncode == 0, output
        assert "locked" not in output
        assert runs(uri) == 50 and reads > 20 and len(counts) > 3, (reads, counts)
    assert not (workflow.folder / "results/mlflow").exists()  # nothing opened a database of its own
