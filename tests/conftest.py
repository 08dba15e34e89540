import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project without its papers, for tests that run the workflow or break things."""
    copy = tmp_path / "project"
    ignore = shutil.ignore_patterns(
        "papers", "__pycache__", ".git", ".venv", "results", ".snakemake", "tests", "*.egg-info"
    )
    for name in ("Snakefile", "workflow", "src", "config", "data.dvc", ".dvc", "environment.yml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=ignore)
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy(source, copy / name)
    for link, target in (("profiles", "workflow/profiles"), ("slurm", "workflow/profiles/slurm")):
        (copy / link).symlink_to(target)
    (copy / "src/atlas/papers").mkdir()
    return copy


@pytest.fixture
def add_paper(project: Path) -> Callable[..., Path]:
    """Add a small working paper to the copy: add_paper(family, slug) -> its folder."""
    from atlas.scaffold import new

    return lambda family, slug: new(family, slug, project / "src/atlas/papers")


@pytest.fixture(scope="session")
def data_sets() -> None:
    """The data of this checkout, from the remote that travels with it."""
    from atlas import data

    if any(not (ROOT / item.path).is_file() for item in data.tracked(ROOT).values()):
        data.fetch(ROOT)
