"""What the workflow asks of SLURM besides submitting jobs, which snakemake's executor plugin does."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import FrameType

import psutil

from atlas.errors import AtlasError


def _ask(*command: str) -> str:
    """The output of a SLURM command. Raises AtlasError if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        raise AtlasError(
            f"there is no '{command[0]}' here: run --profile slurm on a login node of a SLURM cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise AtlasError(f"SLURM does not answer ('{' '.join(command)}' took a minute)") from None
    if done.returncode:
        raise AtlasError(f"'{' '.join(command)}' failed: {done.stderr.strip()}")
    return done.stdout


def cpus() -> int | None:
    """CPUs of the job step that this process runs in, None outside one."""
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    return int(given) if given else None


def pass_on_warnings() -> None:
    """Let SLURM's warning, which reaches only the first process of a job step, come to all processes below this one."""

    def send(signum: int, frame: FrameType | None) -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signum)

    signal.signal(signal.SIGURG, send)  # atlas.checkpoint.WARNING


def accounting() -> bool:
    """Whether this cluster keeps accounts, so that sacct can tell how jobs ended; the command is often there without."""
    kinds = [line.split("=")[1].strip() for line in _ask("scontrol", "show", "config").splitlines()
             if line.startswith("AccountingStorageType")]  # fmt: skip
    if kinds and kinds[0] not in ("(null)", "accounting_storage/none"):
        try:
            _ask("sacct", "-X", "-n", "--starttime", "now-1minute")
            return True
        except AtlasError:
            pass
    return False


def leftovers(folder: Path) -> list[str]:
    """Ids of this user's jobs that were submitted from `folder` and are still waiting or running."""
    rows = (row.split("|", 1) for row in _ask("squeue", "--me", "--noheader", "--format=%A|%Z").splitlines())
    return sorted({job for job, where in rows if Path(where).resolve() == folder.resolve()}, key=int)


def cancel(jobs: list[str]) -> None:
    """End jobs and wait until they have ended, so that nothing else writes what they were writing."""
    _ask("scancel", *jobs)
    for _ in range(60):
        if not _ask("squeue", "--noheader", "--format=%A", f"--jobs={','.join(jobs)}").strip():
            return
        time.sleep(1)
    raise AtlasError(
        f"the jobs {', '.join(jobs)} of an earlier run do not end: scancel --signal=KILL them, run again"
    )


def last_words(log: Path) -> str:
    """What SLURM said of the cluster job that a measurement's log names: time limit, out of memory, cancelled, ..."""
    jobs = re.findall(r"^cluster job (\d+) on", log.read_text(errors="replace"), flags=re.MULTILINE)
    said: list[str] = []
    for path in Path(".snakemake/slurm_logs").rglob(f"{jobs[-1]}.log") if jobs else ():
        said += re.findall(
            r"^(?:slurmstepd|srun)\S* error: (.*)", path.read_text(errors="replace"), flags=re.MULTILINE
        )
    return "\n".join(f"SLURM: {line}" for line in dict.fromkeys(said))
