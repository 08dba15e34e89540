"""paper.yaml: what a valid one gives, and what a broken one is told."""

from collections.abc import Callable
from pathlib import Path

import pytest

from atlas.errors import AtlasError
from atlas.paper import FAMILIES, check_target, find, folders, load, select
from atlas.scaffold import new


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return new("federated", "toy", tmp_path)


Edit = Callable[[str, str], str]


@pytest.fixture
def broken(folder: Path) -> Edit:
    """Replace text in paper.yaml and return the error it causes."""

    def edit(old: str, by: str) -> str:
        path = folder / "paper.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, by, 1))
        with pytest.raises(AtlasError) as error:
            load(folder)
        assert str(path) in str(error.value)
        return str(error.value)

    return edit


def test_a_scaffold_is_a_valid_paper(folder: Path) -> None:
    paper = load(folder)
    assert (paper.slug, paper.family, paper.claims[0].kind) == ("toy", "federated", "linear_rate")
    assert paper.setting("laptop") == {}
    assert paper.setting("smoke", {"steps": 7}) == {"steps": 7, "seeds": 5}
    assert paper.setting_fields == {"dim": 20, "steps": 200, "seeds": 16, "condition": 10.0}


def test_every_paper_of_the_atlas_is_valid() -> None:
    papers = select([])
    assert [p.slug for p in papers] == list(folders())
    assert len({p.n for p in papers}) == len(papers)
    assert {p.family for p in papers} <= set(FAMILIES)


def test_unknown_key_names_the_nearest(broken: Edit) -> None:
    assert "unknown key 'sumary'; did you mean summary?" in broken("summary:", "sumary:")


def test_unknown_claim_kind_names_the_nearest(broken: Edit) -> None:
    message = broken("kind: linear_rate", "kind: linear_rte")
    assert "claims.0.test" in message
    assert "unknown claim kind 'linear_rte'; did you mean linear_rate" in message


def test_unknown_test_parameter_names_the_key(broken: Edit) -> None:
    assert "claims.0.test" in broken("slope: -1.0", "slop: -1.0")


def test_wrong_type_says_what_was_expected(broken: Edit) -> None:
    message = broken("year: 2024", "year: soon")
    assert "year" in message and "integer" in message and "soon" in message


def test_missing_key_is_named(broken: Edit) -> None:
    message = broken("fidelity: proxy", "")
    assert "fidelity: Field required" in message


def test_a_claim_needs_a_control(broken: Edit) -> None:
    message = broken("control:", "controls:")
    assert "control" in message


def test_a_control_cannot_change_the_criterion(broken: Edit) -> None:
    message = broken("where: {method: decaying step}", "slope: -9.0")
    assert "claims.linear_convergence.control" in message and "may only change" in message


def test_invalid_yaml(broken: Edit) -> None:
    assert "not valid YAML" in broken("title: 'TODO title'", "title: 'TODO")


def test_yaml_cannot_run_code(broken: Edit) -> None:
    assert "not valid YAML" in broken("title: 'TODO title'", "title: !!python/object/apply:os.getcwd []")


def test_a_tier_is_not_optional(broken: Edit) -> None:
    assert "settings.smoke" in broken("smoke: {steps: 20, seeds: 5}", "")


def test_unknown_setting_names_the_nearest(folder: Path) -> None:
    with pytest.raises(AtlasError, match="unknown setting 'stepps'; did you mean steps"):
        load(folder).setting("laptop", {"stepps": 3})


def test_unknown_paper_and_family_name_the_nearest() -> None:
    with pytest.raises(AtlasError, match="unknown paper 'ef21_reloded'; did you mean ef21_reloaded"):
        find("ef21_reloded")
    with pytest.raises(AtlasError, match="did you mean federated"):
        select(["federatd"])
    with pytest.raises(AtlasError, match="did you mean ef21_reloaded"):
        check_target("ef21_reload", folders())
    check_target("federated", folders())


def test_slug_family_and_experiment_are_checked(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(AtlasError, match="did you mean federated"):
        new("federate", "toy2", tmp_path)
    with pytest.raises(AtlasError, match="is no slug"):
        new("federated", "Bad-Slug", tmp_path)
    with pytest.raises(AtlasError, match="already"):
        new("federated", "toy", tmp_path)
    (folder / "experiment.py").unlink()
    with pytest.raises(AtlasError, match=r"experiment\.py: missing"):
        load(folder)
