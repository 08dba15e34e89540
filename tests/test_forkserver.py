"""Jobs in the fork server: output, exit status, environment, and that nothing outlives its master."""

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from atlas import forkserver

from . import driver
from .conftest import ROOT

wait_for = functools.partial(driver.wait_for, what="the server", seconds=20)
JOB = ROOT / "workflow/scripts/atlas-job"


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[bytes]]:
    before = dict(os.environ)
    forkserver.prepare_environment(ROOT)
    process = forkserver.start()
    yield process
    forkserver.stop(process)
    os.environ.clear()
    os.environ.update(before)


def job(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([JOB, *args], capture_output=True, text=True, **options)  # type: ignore[call-overload]


def test_output_and_status(server: subprocess.Popen[bytes]) -> None:
    shown = job("--version")
    assert shown.returncode == 0 and "version" in shown.stdout
    wrong = job("show", "ef21_reload")
    assert (
        wrong.returncode == 2
        and wrong.stderr == "atlas: unknown paper 'ef21_reload'; did you mean ef21_reloaded?\n"
    )


def test_folder_and_environment_are_the_callers(server: subprocess.Popen[bytes], tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text("tier: nonsense")
    assert "tier" in job("cost", cwd=tmp_path).stderr
    assert job("cost", cwd=ROOT).returncode == 0


def test_without_a_server_a_python_of_its_own(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != forkserver.VARIABLE}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    assert "version" in job("--version", env=environment).stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize(("job_id", "inside"), [(None, True), ("7", False)])
def test_cluster_jobs_do_not_use_the_server_of_the_submitting_host(
    server: subprocess.Popen[bytes], job_id: str | None, inside: bool
) -> None:
    wait_for(lambda: not children(server.pid))
    command = [sys.executable, "-IS", str(ROOT / "src/atlas/launch.py"), "cost"]
    environment = {**os.environ, **({"SLURM_JOB_ID": job_id} if job_id else {})}
    launched = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    wait_for(lambda: launched.poll() is not None or children(server.pid))
    assert bool(children(server.pid)) == inside
    assert launched.wait() == 0


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_a_job_ends_with_its_launcher(server: subprocess.Popen[bytes], tmp_path: Path) -> None:
    rows = {"method": ["A"], "seed": [0], "x": [0.0], "metric": ["m"], "value": [1.0]}
    pd.DataFrame(rows).to_parquet(tmp_path / "measurements.parquet")
    os.mkfifo(tmp_path / "provenance.json")  # reading it blocks: a job that never ends by itself
    wait_for(lambda: not children(server.pid))  # those of earlier tests are reaped within a second
    launcher = subprocess.Popen(
        [JOB, "verify", "egpo", "--out", tmp_path], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: bool(children(server.pid)))
    time.sleep(1.5)
    assert launcher.poll() is None  # it is still waiting for its job
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    wait_for(lambda: not children(server.pid))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_the_server_ends_with_its_master(tmp_path: Path) -> None:
    code = "import time; from atlas import forkserver; p = forkserver.start(); print(p.pid, flush=True); time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    master = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert master.stdout
    pid = int(master.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    master.kill()
    master.wait()
    wait_for(
        lambda: not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    )
