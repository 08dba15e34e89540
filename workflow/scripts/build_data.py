"""Rebuild data/ from public packages and compare it with what data.dvc tracks.

    python workflow/scripts/build_data.py [--to data] [--write-dvc]

| data set      | what                                             | licence       | from                                    |
|---------------|--------------------------------------------------|---------------|-----------------------------------------|
| fashion_mnist | 60000 + 10000 grey images, 28 x 28, 10 classes   | MIT           | Debian dataset-fashion-mnist            |
|               | (Xiao, Rasul, Vollgraf, arXiv 1708.07747)        |               |                                         |
| kjv           | the King James Bible, one verse a line, ASCII    | public domain | Debian bible-kjv, bible-kjv-text        |
| digits        | 1797 grey images, 8 x 8, 10 classes (UCI)        | CC BY 4.0     | PyPI scikit-learn                       |
| breast_cancer | 569 x 30, 2 classes (UCI, Wisconsin diagnostic)  | CC BY 4.0     | PyPI scikit-learn                       |
| diabetes      | 442 x 10, a regression (Efron et al. 2004)       | public        | PyPI scikit-learn                       |

Needs scikit-learn, and for the first two apt-get and dpkg (any Debian or Ubuntu; the packages are only unpacked, not
installed). The versions are pinned, the files are written without time stamps: the same bytes on every machine.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
DEBIAN = {
    "dataset-fashion-mnist": "0.0~git20200523.55506a9-1",
    "bible-kjv": "4.38",
    "bible-kjv-text": "4.38",
}
SCIKIT_LEARN = "1.9.1"
Arrays = dict[str, NDArray[np.generic]]


def unpack(folder: Path) -> Path:
    """Download the pinned Debian packages and unpack them below `folder`."""
    for name, version in DEBIAN.items():
        subprocess.run(["apt-get", "download", "--quiet=2", f"{name}={version}"], cwd=folder, check=True)
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg", "-x", package, folder / "root"], check=True)
    return folder / "root"


def idx(path: Path) -> NDArray[np.uint8]:
    """An array in the IDX format of MNIST: magic number, sizes (big endian), bytes."""
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    shape = np.frombuffer(content, ">u4", rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def fashion_mnist(debian: Path) -> Arrays:
    folder = debian / "usr/share/datasets/fashion-mnist"
    return {
        "x_train": idx(folder / "train-images-idx3-ubyte.gz"),
        "y_train": idx(folder / "train-labels-idx1-ubyte.gz"),
        "x_test": idx(folder / "t10k-images-idx3-ubyte.gz"),
        "y_test": idx(folder / "t10k-labels-idx1-ubyte.gz"),
    }


def kjv(debian: Path) -> Arrays:
    program, library = debian / "usr/bin/bible", debian / "usr/lib"
    verses = subprocess.run(
        [program, "-p", library, "-f", "-l", "10000", "gen1:1-rev22:21"], capture_output=True, check=True
    )
    text = re.sub(r"^\w+:\d+ +", "", verses.stdout.decode("ascii"), flags=re.MULTILINE).strip() + "\n"
    return {"text": np.frombuffer(text.encode("ascii"), np.uint8)}


def from_scikit_learn(name: str) -> Arrays:
    import sklearn.datasets

    if sklearn.__version__ != SCIKIT_LEARN:
        sys.exit(
            f"scikit-learn {SCIKIT_LEARN} is needed, this is {sklearn.__version__}: pip install -r requirements.lock"
        )
    found = getattr(sklearn.datasets, f"load_{name}")()
    if name == "digits":
        return {"x": found.data.astype(np.uint8), "y": found.target.astype(np.uint8)}
    return {"x": found.data, "y": found.target, "features": np.array([str(f) for f in found.feature_names])}


def npz(arrays: Arrays) -> bytes:
    """numpy's .npz without time stamps, so that the same arrays give the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for key, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue())
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, default=ROOT / "data", help="folder to write [data]")
    parser.add_argument(
        "--write-dvc",
        action="store_true",
        help="write the new hashes to data.dvc (then: dvc commit, dvc push)",
    )
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        debian = unpack(Path(folder))
        built = {"fashion_mnist": fashion_mnist(debian), "kjv": kjv(debian)}
    built |= {name: from_scikit_learn(name) for name in ("digits", "breast_cancer", "diabetes")}

    options.to.mkdir(parents=True, exist_ok=True)
    dvc = ROOT / "data.dvc"
    outs = yaml.safe_load(dvc.read_text())["outs"] if dvc.is_file() else []
    known = {Path(out["path"]).stem: out["md5"] for out in outs}
    entries, different = [], False
    for name, arrays in sorted(built.items()):
        content = npz(arrays)
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        (options.to / f"{name}.npz").write_bytes(content)
        state = "same as data.dvc" if md5 == known.get(name) else "DIFFERENT from data.dvc"
        different |= md5 != known.get(name)
        print(f"{name:14} {len(content):9} bytes  md5 {md5}  {state}", flush=True)
        entries.append({"md5": md5, "size": len(content), "hash": "md5", "path": f"data/{name}.npz"})
    if options.write_dvc:
        dvc.write_text(yaml.safe_dump({"outs": entries}, sort_keys=False))
    elif different:
        sys.exit(1)


if __name__ == "__main__":
    main()
