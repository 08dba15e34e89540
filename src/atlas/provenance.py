"""Where a measurement came from: code, data, setting, versions, hardware, cost."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@cache
def commit() -> dict[str, Any]:
    """Git commit of the code and whether tracked files differ from it; nulls outside a git checkout."""

    def git(*args: str) -> str:
        return subprocess.run(
            ("git", *args), cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def machine(device: str) -> dict[str, Any]:
    """Versions and hardware, for a measurement on `device`."""
    import torch

    info = {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy", "pandas")},
        "host": platform.node(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }
    if device.startswith("cuda"):
        info["gpu"] = torch.cuda.get_device_name(device)
    if job := cluster_job():
        info["slurm"] = job
    return info


def cluster_job() -> dict[str, Any] | None:
    """SLURM's job, node and GPUs of this process, None outside a job."""
    if not (job := os.environ.get("SLURM_JOB_ID")):
        return None
    return {
        "job": int(job),
        "node": os.environ.get("SLURMD_NODENAME"),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


@cache
def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
