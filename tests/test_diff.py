"""Comparing two runs, and exporting one."""

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from atlas import diff, files, results
from atlas.errors import AtlasError
from atlas.verify import ClaimVerdict
from tests.examples import INF, NAN, claim, origin, paper, result


def run(folder: Path, *claims: ClaimVerdict, seed: int = 0) -> Path:
    found = paper(*claims, seed=seed, provenance=origin("a_paper", seed))
    files.write_text(folder / "a_paper/verdicts.json", found.model_dump_json())
    results.write_table(results.table([found]), folder / "verdicts.csv")
    return folder


def rate(estimate: float, half: float = 0.02, verdict: str = "verified", name: str = "c") -> ClaimVerdict:
    r = result("rate", estimate=estimate, low=estimate - half, high=estimate + half)
    return claim("rate", r, verdict, id=name)  # type: ignore[arg-type]


def compared(tmp_path: Path, a: list[ClaimVerdict], b: list[ClaimVerdict]) -> dict[str, list[str]]:
    run(tmp_path / "a", *a)
    run(tmp_path / "b", *b)
    found = diff.compare(diff.load("a", tmp_path), diff.load(str(tmp_path / "b"), tmp_path))
    json.dumps(found, allow_nan=False)
    names = {key: [e["claim"] for e in found[key]] for key in ("changed", "moved")}
    return names | {key: [name for _, name in found[key]] for key in ("only_a", "only_b")}


def test_what_changed_and_what_moved(tmp_path: Path) -> None:
    a = [rate(-0.5), rate(-0.5, name="far"), rate(-0.5, name="verdict"), rate(-0.5, name="gone")]
    b = [
        rate(-0.53),
        rate(-0.6, name="far"),
        rate(-0.5, verdict="inconclusive", name="verdict"),
        rate(-0.5, name="new"),
    ]
    found = compared(tmp_path, a, b)
    assert found == {"changed": ["verdict"], "moved": ["far"], "only_a": ["gone"], "only_b": ["new"]}


@pytest.mark.parametrize(
    ("a", "b", "moves"),
    [
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), False),
        ((1e-15, 1e-15, 1e-15), (9e-15, 9e-15, 9e-15), False),  # rounding, far below the criterion
        ((1.0, 1.0, 1.0), (1.2, 1.2, 1.2), True),
        ((1.0, 0.9, 1.1), (1.3, 1.1, 1.5), False),  # the intervals touch
        ((1.0, 0.9, 1.1), (1.3, 1.11, 1.5), True),
        ((1.0, 0.9, INF), (3.0, 2.0, INF), False),
        ((INF, INF, INF), (1.0, 0.9, 1.1), True),
        ((NAN, NAN, NAN), (1.0, 0.9, 1.1), True),
        ((NAN, NAN, NAN), (NAN, NAN, NAN), False),
    ],
)
def test_moved(a: tuple[float, ...], b: tuple[float, ...], moves: bool) -> None:
    sides = [
        pd.Series({**dict(zip(("estimate", "low", "high"), v, strict=True)), "criterion": "<= 0.1"})
        for v in (a, b)
    ]
    assert diff.moved(sides[0], sides[1]) is moves and diff.moved(sides[1], sides[0]) is moves


@pytest.mark.parametrize("name", ["claims.parquet", "claims.csv"])
def test_an_export_can_be_read_again(tmp_path: Path, name: str) -> None:
    odd = [
        claim("speedup", result("speedup")),  # its interval is unbounded
        claim(
            "bound",
            result("bound", estimate=NAN, low=-INF),
            "inconclusive",
            says='a "quoted", text\nof two lines',
        ),
        claim("rate", result("rate", claimed=None), None),
    ]
    folder = run(tmp_path / "laptop", *odd)
    table = results.table(results.verdicts(folder, ["a_paper"]))
    results.write_table(table, tmp_path / name)
    assert list(table) == list(results.COLUMNS)
    again = diff.load(str(tmp_path / name), tmp_path)
    found = diff.compare(diff.load("laptop", tmp_path), again)
    assert found["compared"] == 3 and not any(found[key] for key in ("moved", "only_a", "only_b"))
    assert again.loc[("a_paper", "some_bound"), "says"] == 'a "quoted", text\nof two lines'
    if name.endswith(".parquet"):
        schema = pq.read_schema(tmp_path / name)
        assert schema.field("estimate").metadata[b"description"].decode() == results.COLUMNS["estimate"]
        assert again.loc[("a_paper", "some_speedup"), "high"] == INF


def test_the_dictionary_explains_every_column(tmp_path: Path) -> None:
    results.write_dictionary(tmp_path / "d.csv")
    dictionary = pd.read_csv(tmp_path / "d.csv")
    assert list(dictionary["column"]) == list(results.COLUMNS) and dictionary["holds"].str.len().min() > 10


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    run(tmp_path / "laptop", rate(-0.5))
    with pytest.raises(AtlasError, match="unknown folder or file of results 'labtop'; did you mean laptop"):
        diff.load("labtop", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AtlasError, match="no verdicts in it"):
        diff.load("empty", tmp_path)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(AtlasError, match="no export of the atlas, it lacks claim"):
        diff.load(str(tmp_path / "other.csv"), tmp_path)
    both = [paper(rate(-0.5), seed=s, provenance=origin("a_paper", s)) for s in (0, 1)]
    results.write_table(results.table(both), tmp_path / "both.csv")
    with pytest.raises(AtlasError, match=r"several runs \(laptop, seed 0; laptop, seed 1\)"):
        diff.load(str(tmp_path / "both.csv"), tmp_path)
    with pytest.raises(AtlasError, match="has to end in"):
        results.write_table(results.table(both), tmp_path / "claims.xlsx")
