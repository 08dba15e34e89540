"""Loading the data sets that `data.dvc` tracks, and nothing else.

Every data set is one file `data/<name>.npz` of plain numpy arrays; `workflow/scripts/build_data.py` says what they are
and where they come from. A file is checked against its hash in `data.dvc` before it is used.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from atlas.errors import AtlasError, unknown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Tracked(NamedTuple):
    """One entry of data.dvc. `path` is relative to the folder of data.dvc."""

    name: str
    path: str
    md5: str
    size: int


def root() -> Path:
    """The folder of data.dvc: $ATLAS_ROOT, the working directory or one above it, or this checkout."""
    if given := os.environ.get("ATLAS_ROOT"):
        return Path(given)
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).parents[2]):
        if (folder / "data.dvc").is_file():
            return folder
    raise AtlasError("no data.dvc here or above: run from the repository, or set ATLAS_ROOT to it")


def tracked(folder: Path | None = None) -> dict[str, Tracked]:
    """name -> what data.dvc says of that data set."""
    path = (folder or root()) / "data.dvc"
    outs = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["outs"]
    found = (Tracked(Path(out["path"]).stem, out["path"], out["md5"], out["size"]) for out in outs)
    return {item.name: item for item in found}


def md5(path: Path) -> str | None:
    """Hash of a file, None if it is not there."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except FileNotFoundError:
        return None


def wrong(folder: Path, names: Iterable[str] | None = None) -> list[Tracked]:
    """The data sets (all, or those named) that are missing or not what data.dvc tracks."""
    known = tracked(folder)
    return [
        known[n] for n in (known if names is None else names) if md5(folder / known[n].path) != known[n].md5
    ]


def fetch(folder: Path) -> None:
    """Fetch all data sets with DVC and check every byte; mends a damaged DVC cache, which DVC itself trusts.

    Raises AtlasError if DVC fails, or if the remote itself holds something else.
    """

    def dvc(*arguments: str) -> str:
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AtlasError(f"'dvc {' '.join(arguments)}' failed: {done.stderr.strip()}")
        return done.stdout.strip()

    dvc("pull", "--force", "data.dvc")
    if not (damaged := wrong(folder)):
        return
    cache = folder / dvc("cache", "dir")
    for item in damaged:
        print(f"{item.path} is damaged in the DVC cache: fetching it again", file=sys.stderr, flush=True)
        (cache / "files/md5" / item.md5[:2] / item.md5[2:]).unlink(missing_ok=True)
        (folder / item.path).unlink(missing_ok=True)
    dvc("pull", "--force", "data.dvc")
    if damaged := wrong(folder):
        shown = ", ".join(item.path for item in damaged)
        raise AtlasError(f"the DVC remote's copy of {shown} is damaged: 'dvc push' it from an intact clone, or"
                         " rebuild it with workflow/scripts/build_data.py")  # fmt: skip


def load(name: str, folder: Path | None = None) -> dict[str, NDArray[np.generic]]:
    """The arrays of a data set.

    Raises AtlasError if the name is unknown, or the file is missing or not the one that data.dvc tracks.
    """
    folder = folder or root()
    if name not in (known := tracked(folder)):
        raise unknown("data set", name, known)
    item = known[name]
    return dict(_read(folder / item.path, item.path, item.md5))


@cache
def _read(path: Path, shown: str, md5: str) -> dict[str, NDArray[np.generic]]:
    import numpy as np

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise AtlasError(f"data set '{path.stem}' is missing at {shown}: run: atlas fetch") from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise AtlasError(
            f"{shown} is not the file that data.dvc tracks (its md5 is {found}, not {md5}); run: atlas fetch"
        )
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def images(name: str, split: str = "train") -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images of `fashion_mnist` or `digits` as rows in [0, 1], x (n, pixels), and their classes y (n,).

    split: 'train' or 'test'; digits has no test split of its own: its last 297 images are taken.
    """
    if name not in ("fashion_mnist", "digits"):
        raise unknown("image data set", name, ("fashion_mnist", "digits"))
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    arrays = load(name)
    if name == "digits":
        part = slice(None, 1500) if split == "train" else slice(1500, None)
        x, y, top = arrays["x"][part], arrays["y"][part], 16
    else:
        x, y, top = arrays[f"x_{split}"], arrays[f"y_{split}"], 255
    return (x.reshape(len(x), -1).astype("float64") / top).astype("float32"), y.astype("int64")


def text(name: str = "kjv") -> str:
    """A text corpus as one string."""
    return load(name)["text"].tobytes().decode("ascii")
