"""What a cluster job costs before and after its measurements, by the number of measurements that share it.

    python -m tests.slurm.cluster python -m tests.slurm.benchmark [--papers 300]

All CPU time of this host (slurmd, snakemake on both sides, Python, torch) less that inside `measure`; leave the host
otherwise idle. Timings are printed, not asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.pipeline import copy


def busy() -> float:
    """CPU seconds this host has spent on anything."""
    numbers = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    idle = numbers[3] + numbers[4]
    return (sum(numbers) - idle) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--papers", type=int, default=300)
    options = parser.parse_args()
    for papers, share in ((10, 1), (20, 5), (40, 20), (options.papers, 20)):
        with tempfile.TemporaryDirectory() as folder:
            project = copy(Path(folder), papers)
            command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "--until", "measure", "--quiet", "all",
                       "--group-components", f"small={share}", "--resources", "slots=2",
                       "--slurm-init-seconds-before-status-checks", "5"]  # fmt: skip
            start, cpu = time.monotonic(), busy()
            subprocess.run(command, cwd=project, env={**os.environ, "ATLAS_SUMMARY": "0", "PYTHONPATH": ""},
                           check=True, capture_output=True)  # fmt: skip
            cpu, wall = busy() - cpu, time.monotonic() - start
            found = [json.loads(p.read_text()) for p in project.glob("results/laptop/*/provenance.json")]
            assert len(found) == papers
            outside = (cpu - sum(o["cpu_seconds"] for o in found)) / papers
            jobs = len({o["slurm"]["job"] for o in found})
            print(f"{papers:4} papers, {share:3} a job, {jobs:3} jobs: {outside:5.2f} CPU s outside measure a paper,"
                  f" {100 * outside / (outside + 20):4.1f} % at 20 s a paper; {wall:.0f} s wall", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
