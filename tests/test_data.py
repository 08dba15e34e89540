"""The data sets: what they hold, and what happens when a file is missing or wrong."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from atlas import data
from atlas.errors import AtlasError

from .conftest import ROOT

pytestmark = pytest.mark.usefixtures("data_sets")


def test_fashion_mnist_is_the_published_one() -> None:
    x, y = data.images("fashion_mnist", "train")
    assert x.shape == (60000, 784) and x.dtype == np.float32
    assert np.bincount(y).tolist() == [6000] * 10
    # the mean and standard deviation that everybody normalises with
    assert (round(float(x.mean()), 4), round(float(x.std()), 4)) == (0.2860, 0.3530)
    x, y = data.images("fashion_mnist", "test")
    assert x.shape == (10000, 784) and np.bincount(y).tolist() == [1000] * 10


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    parts = [data.images("digits", split) for split in ("train", "test")]
    expected = load_digits()
    np.testing.assert_array_equal(np.concatenate([x for x, _ in parts]) * 16, expected.data)
    np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), expected.target)


def test_text_and_tables() -> None:
    text = data.text("kjv")
    assert (
        text.startswith("In the beginning God created the heaven and the earth.\n")
        and text.count("\n") > 31000
    )
    assert "Jesus wept.\n" in text
    assert data.load("breast_cancer")["x"].shape == (569, 30) and data.load("diabetes")["x"].shape == (
        442,
        10,
    )


def test_remote_travels_with_the_repository_and_is_small() -> None:
    remote = ROOT / ".dvc" / "remote"
    assert sum(p.stat().st_size for p in remote.rglob("*") if p.is_file()) < 40e6
    for item in data.tracked(ROOT).values():
        blob = remote / "files" / "md5" / item.md5[:2] / item.md5[2:]
        assert hashlib.md5(blob.read_bytes()).hexdigest() == item.md5
        assert blob.stat().st_size == item.size


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "data.dvc", tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data" / "digits.npz", tmp_path / "data")
    return tmp_path


def test_corrupted_file_names_itself_and_the_repair(copy: Path) -> None:
    assert data.load("digits", copy)["x"].shape == (1797, 64)
    data._read.cache_clear()
    path = copy / "data" / "digits.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(
        AtlasError, match=r"data/digits\.npz is not the file that data\.dvc tracks.*run: atlas fetch"
    ):
        data.load("digits", copy)


def test_missing_file_and_unknown_name(copy: Path) -> None:
    with pytest.raises(AtlasError, match=r"missing at data/kjv\.npz: run: atlas fetch"):
        data.load("kjv", copy)
    with pytest.raises(AtlasError, match="unknown data set 'fashion'; did you mean fashion_mnist"):
        data.load("fashion", copy)


def test_damage_to_a_file_the_cache_and_the_remote(project: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    shutil.rmtree(project / ".dvc" / "cache", ignore_errors=True)
    data.fetch(project)
    item = data.tracked(project)["digits"]
    stored = Path("files/md5", item.md5[:2], item.md5[2:])
    file, cached = project / item.path, project / ".dvc/cache" / stored
    for damaged in ([file], [file, cached], [cached]):
        for path in damaged:
            path.chmod(0o644)
            path.unlink()  # it may be a link to the other
            path.write_bytes(b"rubbish")
            path.chmod(0o444)  # DVC trusts a read-only file in its cache
        data.fetch(project)
        assert data.load("digits", project)["x"].shape == (1797, 64)
        assert data.wrong(project) == []
    file.unlink()
    assert [i.name for i in data.wrong(project)] == ["digits"]
    for path in (cached, project / ".dvc/remote" / stored):
        path.chmod(0o644)
        path.write_bytes(b"rubbish")
        path.chmod(0o444)
    with pytest.raises(AtlasError, match=r"the DVC remote's copy of data/digits\.npz is damaged"):
        data.fetch(project)
