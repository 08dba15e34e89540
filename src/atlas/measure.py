"""One measurement: run a paper's experiment and write its table with its provenance."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from atlas import data, files, provenance
from atlas.errors import AtlasError
from atlas.paper import Paper, explain
from atlas.sources import closure, digest


def load_experiment(paper: Paper) -> ModuleType:
    """Import a paper's experiment.py. Raises AtlasError if `Setting` or `measure` is not there."""
    module = importlib.import_module(f"atlas.papers.{paper.family}.{paper.slug}.experiment")
    for name in ("Setting", "measure"):
        if not hasattr(module, name):
            raise AtlasError(f"{paper.experiment}: has no '{name}'")
    return module


def make_setting(paper: Paper, module: ModuleType, tier: str, override: dict[str, Any] | None = None) -> Any:
    """The frozen `Setting` of a tier. Raises AtlasError on unknown keys or values of the wrong type."""
    try:
        return TypeAdapter(module.Setting).validate_python(paper.setting(tier, override))
    except ValidationError as error:
        raise explain(error, f"{paper.slug}: settings ({tier})") from None


@contextmanager
def time_limit(minutes: float) -> Iterator[None]:
    """Raise AtlasError in the main thread once `minutes` of wall time have passed."""

    def expired(signum: int, frame: FrameType | None) -> None:
        raise AtlasError(
            f"ran out of time ({minutes:g} min): raise its 'runtime' in paper.yaml, or make it faster"
        )

    def hopeless() -> None:
        print(
            "killed: it ran out of time and did not come back from a single long operation",
            file=sys.stderr,
            flush=True,
        )
        os._exit(124)

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, minutes * 60)
    last_resort = threading.Timer(minutes * 60 + 20, hopeless)
    last_resort.daemon = True
    last_resort.start()
    try:
        yield
    finally:
        last_resort.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def measure(
    paper: Paper,
    out: Path,
    tier: str = "laptop",
    seed: int = 0,
    device: str = "cpu",
    override: dict[str, Any] | None = None,
    minutes: float | None = None,
) -> None:
    """Run the experiment of `paper`; write measurements.parquet and then provenance.json to the folder `out`.

    `minutes` limits the experiment's wall time, by default as in paper.yaml. Raises AtlasError for an unusable setting,
    a malformed table, missing data or a run out of time; whatever the
    experiment raises passes through. Nothing is written unless all went well.
    """
    start, start_cpu = time.perf_counter(), time.process_time()
    import torch

    from atlas import measurements
    from atlas.run import Run

    wanted = paper.resources.model_dump()[tier]
    torch.set_num_threads(wanted["cpus"])
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    module = load_experiment(paper)
    setting = make_setting(paper, module, tier, override)
    datasets = {name: data.tracked()[name].md5 for name in paper.data}
    run = Run(paper.slug, seed, device, out)

    began = provenance.now()
    wall, cpu = time.perf_counter(), time.process_time()
    with time_limit(minutes or wanted["runtime"]):
        table = module.measure(setting, run)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    table = measurements.validate(table)

    with files.replacing(out / "measurements.parquet") as path:
        measurements.write(table, path)
    record = {
        "paper": paper.slug,
        "family": paper.family,
        "tier": tier,
        "seed": seed,
        "setting": dataclasses.asdict(setting),
        "seeds": int(table["seed"].nunique()),
        "rows": len(table),
        **provenance.commit(),
        "sources": digest(closure(paper.experiment)),
        "data": datasets,
        **provenance.machine(device),
        "started": began,
        "wall_seconds": round(wall, 3),
        "cpu_seconds": round(cpu, 3),
        "overhead_wall_seconds": round(time.perf_counter() - start - wall, 3),
        "overhead_cpu_seconds": round(time.process_time() - start_cpu - cpu, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    files.write_text(out / "provenance.json", json.dumps(record, indent=1))
