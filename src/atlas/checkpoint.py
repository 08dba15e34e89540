"""Long loops that go on where they were: after a time limit, a lost node, a killed job.

A measurement keeps its checkpoints in a folder of its own, tied to everything that decides the measurement (code,
setting, seed, data, device, torch version): checkpoints of anything else are thrown away, never mixed in.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atlas import files

INTERVAL = 300.0  # seconds between checkpoints; $ATLAS_CHECKPOINT_SECONDS overrides it
# SLURM is asked to send this one before a time limit (--signal). Its default action is to be ignored, so that it harms
# neither the shell nor snakemake, which get it too.
WARNING = signal.SIGURG


class Checkpoint:
    """The checkpoints of one measurement, in `folder`; `key` identifies the measurement."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.finished = folder / "finished"  # the measurement, once it is done
        self.interval = float(os.environ.get("ATLAS_CHECKPOINT_SECONDS", INTERVAL))
        self.warned = False
        self.attempts, self.seconds, self.cpu_seconds = 1, 0.0, 0.0  # of the earlier attempts
        with suppress(OSError, ValueError, KeyError):
            state = json.loads((folder / "state.json").read_text())
            if state["key"] == key:
                self.attempts = state["attempts"] + 1
                self.seconds, self.cpu_seconds = state["seconds"], state["cpu_seconds"]
        if self.attempts == 1:
            shutil.rmtree(folder, ignore_errors=True)
        self.key = key
        self._began, self._began_cpu = time.monotonic(), time.process_time()
        self._saved = self._began

    def steps(self, name: str, total: int, state: dict[str, Any]) -> Iterator[int]:
        """The steps 0..total-1 of a loop over `state`: saved at intervals, continued after a restart.

        The loop reads and writes all that changes in `state`: tensors, arrays, numbers, strings and lists of them are
        replaced; generators (numpy's and torch's), tables and whatever has state_dict() are put back in place.
        """
        start = 0
        if (saved := self._load(name)) is not None:
            start, old = saved
            restore(state, old)
            print(f"{name}: continued at step {start} of {total}", file=sys.stderr, flush=True)
        for step in range(start, total):
            yield step
            if self.warned or time.monotonic() - self._saved > self.interval:
                self._save(name, step + 1, state)
        # a loop that took long is not repeated when a later one is interrupted
        if total > start and self._path(name).exists():
            self._save(name, total, state)

    def _path(self, name: str) -> Path:
        return self.folder / f"{zlib.crc32(name.encode()):08x}.pt"

    def _load(self, name: str) -> tuple[int, dict[str, Any]] | None:
        try:
            saved = torch.load(self._path(name), weights_only=True, map_location="cpu")
        except FileNotFoundError:
            return None
        except Exception as error:  # damaged: what it held is computed again
            print(f"{name}: unusable checkpoint ({error}): starting again", file=sys.stderr, flush=True)
            return None
        return saved["step"], saved["state"]

    def _save(self, name: str, step: int, state: dict[str, Any]) -> None:
        now = time.monotonic()
        try:
            with files.replacing(self._path(name)) as path:
                torch.save({"step": step, "state": {k: snapshot(v) for k, v in state.items()}}, path)
            self.note()
        except OSError as error:  # a full disk must not end the measurement
            print(f"cannot save a checkpoint: {error}", file=sys.stderr, flush=True)
        if self.warned:
            print(f"{name}: last checkpoint saved at step {step}", file=sys.stderr, flush=True)
        self.warned, self._saved = False, now

    def note(self) -> None:
        """Write down which measurement this is and what it has cost until now."""
        record = {
            "key": self.key,
            "attempts": self.attempts,
            "seconds": self.seconds + time.monotonic() - self._began,
            "cpu_seconds": self.cpu_seconds + time.process_time() - self._began_cpu,
        }
        files.write_text(self.folder / "state.json", json.dumps(record))

    def finish(self, out: Path, names: tuple[str, ...]) -> None:
        """Replace the checkpoints by second names of the finished files, in `finished` until they are judged."""
        for file in self.folder.glob("*.pt"):
            file.unlink()
        self.note()
        part = self.folder / "finishing"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for name in names:
            os.link(out / name, part / name)
        part.rename(self.finished)

    def warn(self) -> None:
        """Time is nearly up: the loop that runs saves at its next step."""
        self.warned = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While this is open, the signal WARNING is heeded."""
        previous = signal.signal(WARNING, lambda signum, frame: self.warn())
        try:
            yield
        finally:
            signal.signal(WARNING, previous)


def snapshot(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if hasattr(value, "state_dict"):
        return value.state_dict()
    return value


def restore(state: dict[str, Any], old: dict[str, Any]) -> None:
    """Put a snapshot back into `state`; tensors go to the device of those they replace."""
    for name, value in old.items():
        now = state.get(name)
        if isinstance(now, torch.Generator):
            now.set_state(value)
        elif isinstance(now, np.random.Generator):
            now.bit_generator.state = value
        elif isinstance(now, np.ndarray):
            state[name] = value.numpy()
        elif now is not None and hasattr(now, "load_state_dict"):
            now.load_state_dict(value)
        else:
            state[name] = _moved(value, now)


def _moved(value: Any, like: Any) -> Any:
    if isinstance(value, torch.Tensor) and isinstance(like, torch.Tensor):
        return value.to(like.device).requires_grad_(like.requires_grad)
    if isinstance(value, list | tuple) and isinstance(like, list | tuple) and len(value) == len(like):
        return type(value)(_moved(v, w) for v, w in zip(value, like, strict=True))
    return value
