"""Pin all dependencies: requirements.lock, requirements-dev.lock and environment.yml from pyproject.toml.

The CUDA packages that torch's Linux wheels name are left out: pip installs those of the torch it finds, and a CPU
build of the same version needs none.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

CUDA = re.compile(r"^(nvidia-|cuda-|triton\b)")
ROOT = Path(__file__).parents[2]


def compile_lock(lock: Path, *args: str) -> None:
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "pyproject.toml",
        "--universal",
        "--python-version=3.11",
    ]
    command += ["--fork-strategy=fewest", "--no-header", "--no-annotate", "--quiet", *args]
    pins = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    # the markers of torch only tell a local CPU build from the registry's, at the same version
    plain = [re.sub(r"^(torch==[^+ ]*).*", r"\1", line) for line in pins.splitlines() if not CUDA.match(line)]
    kept = list(dict.fromkeys(plain))
    lock.write_text("# made by `make lock` from pyproject.toml\n" + "\n".join(kept) + "\n")


def environment(direct: list[str], lock: Path) -> str:
    """A conda environment with the direct dependencies at the lock's versions, from PyPI."""
    pins = dict(line.split(" ;")[0].split("==") for line in lock.read_text().splitlines() if "==" in line)
    names = sorted({re.split(r"[=<>;\[ ]", d)[0].lower() for d in direct})
    head = [
        "# made by `make lock`; `snakemake` works in it as it is, the atlas command after `pip install --no-deps -e .`"
    ]
    head += [
        "name: convergence-atlas",
        "channels: [conda-forge]",
        "dependencies:",
        "  - python=3.11",
        "  - pip",
        "  - pip:",
    ]
    return "\n".join(head + [f"      - {name}=={pins[name]}" for name in names]) + "\n"


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    compile_lock(ROOT / "requirements.lock")
    compile_lock(ROOT / "requirements-dev.lock", "--extra=dev", "--constraints=requirements.lock")
    (ROOT / "environment.yml").write_text(environment(project["dependencies"], ROOT / "requirements.lock"))
