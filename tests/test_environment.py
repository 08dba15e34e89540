"""What must agree with each other: pins, schemas, scripts."""

import json
import re
import subprocess
import sys
import tomllib

import yaml
from packaging.requirements import Requirement

from atlas.config import Config
from atlas.paper import Paper

from .conftest import ROOT


def pins(lock: str) -> dict[str, str]:
    lines = (ROOT / lock).read_text().splitlines()
    return dict(re.split(r"==| ;", line)[:2] for line in lines if "==" in line)  # type: ignore[misc]


def test_environment_yml_has_the_pins_of_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = dict(line.split("==") for line in environment["dependencies"][-1]["pip"])
    direct = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(listed) == {Requirement(d).name for d in direct}
    locked = pins("requirements.lock")
    assert listed == {name: locked[name] for name in listed}


def test_development_lock_extends_the_lock() -> None:
    locked, development = pins("requirements.lock"), pins("requirements-dev.lock")
    assert locked.items() <= development.items()
    for name in ("pytest", "ruff", "mypy", "snakefmt"):
        assert name in development


def test_locks_are_for_every_machine() -> None:
    for lock in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / lock).read_text()
        assert "+cpu" not in text and "nvidia" not in text and "://" not in text


def test_published_schemas_are_those_of_the_code() -> None:
    for name, model in (("paper", Paper), ("config", Config)):
        written = json.loads((ROOT / f"workflow/schemas/{name}.schema.json").read_text())
        assert written == model.model_json_schema(), (
            f"run: atlas schema {name} > workflow/schemas/{name}.schema.json"
        )


def test_data_script_explains_itself() -> None:
    script = ROOT / "workflow/scripts/build_data.py"
    shown = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "fashion_mnist" in shown and "licence" in shown


def test_no_unsafe_loading() -> None:
    sources = [
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "workflow").rglob("*.smk"),
        *(ROOT / "workflow").rglob("*.py"),
    ]
    for path in sources:
        text = path.read_text()
        assert not re.search(r"yaml\.(unsafe_|full_)?load\((?!.*Loader=yaml\.CSafeLoader)", text), path
        assert not re.search(r"torch\.load\((?!.*weights_only=True)", text), path
        assert "shell=True" not in text and "pickle" not in text.replace("allow_pickle=False", ""), path
