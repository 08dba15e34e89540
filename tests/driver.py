"""Run the workflow for real on a copy of the project."""

import os
import re
import subprocess
import sys
from pathlib import Path


class Workflow:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")
        }

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *args], cwd=self.folder, env={**self.environment, **env}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self, *args: str, status: int = 0, **env: str) -> str:
        process = self.start(*args, **env)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == status, output
        return output

    def planned(self, *args: str) -> dict[str, int]:
        """Rule -> number of jobs that a dry run would do."""
        output = self.run("--dry-run", *args, "--quiet", "reason")
        jobs = re.findall(r"^(\w+) +(\d+)$", output, flags=re.MULTILINE)
        return {rule: int(count) for rule, count in jobs if rule != "total"}

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
