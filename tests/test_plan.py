"""The plan of a dry run."""

import json
from collections.abc import Callable
from pathlib import Path

from atlas.paper import load
from atlas.plan import describe, plan
from tests.driver import Workflow


def test_hours_are_limits_until_there_is_a_last_run(add_paper: Callable[..., Path], tmp_path: Path) -> None:
    big = add_paper("vision", "big")
    text = (big / "paper.yaml").read_text()
    limits = "  paper: {cpus: 4, mem_mb: 32000, runtime: 90, gpus: 2, gpu_model: a100}\nclaims:"
    (big / "paper.yaml").write_text(text.replace("claims:", limits, 1))
    papers = [load(big), load(add_paper("vision", "small"))]
    text = describe(plan(papers, "paper", tmp_path))
    # two GPUs for 1.5 hours, and the default of the paper tier: one GPU for 4 hours
    assert "2 a100" in text and "plan: 2 measurements, 7.0 GPU hours, 0.00 CPU hours" in text
    (tmp_path / "big").mkdir()
    (tmp_path / "big/provenance.json").write_text(json.dumps({"device": "cuda", "wall_seconds": 1800}))
    text = describe(plan(papers, "paper", tmp_path))
    assert "0.50 (last time)" in text and "5.0 GPU hours" in text
    (tmp_path / "big/provenance.json").write_text(json.dumps({"device": "cpu", "wall_seconds": 1800}))
    assert "7.0 GPU hours" in describe(plan(papers, "paper", tmp_path))
    assert "0.0 GPU hours, 0.03 CPU hours" in describe(plan(papers, "laptop", tmp_path / "none"))


def test_a_dry_run_shows_it(project: Path, add_paper: Callable[..., Path]) -> None:
    add_paper("vision", "alpha")
    output = Workflow(project).run("-n", "--profile", "slurm", "--config", "tier=paper")
    assert "alpha" in output and "plan: 1 measurements, 4.0 GPU hours" in output
