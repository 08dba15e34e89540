"""MLflow: the right runs, each once, and nothing lost when the server is away."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from atlas.errors import AtlasError
from atlas.measure import measure
from atlas.paper import find
from atlas.track import connect, track
from atlas.verify import verify

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

SLUGS = ["ef21_reloaded", "last_iterate_sgd"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two papers at the smoke tier."""
    folder = tmp_path_factory.mktemp("results") / "smoke"
    for slug in SLUGS:
        measure(find(slug), folder / slug, "smoke")
        verify(find(slug), folder / slug)
    return folder


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


def parents(client: "MlflowClient", where: str = "") -> "list[Run]":
    experiments = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(experiments, "tags.`atlas.key` LIKE '%'" + (f" AND {where}" if where else "")))


def test_runs_tags_metrics_and_artifacts(out: Path, uri: str) -> None:
    record = track(out, SLUGS, uri)
    assert (record["logged"], record["skipped"]) == (2, 0)
    client = connect(out.parent, uri)
    assert {e.name for e in client.search_experiments()} >= {"federated", "optimization"}
    (run,) = parents(client, "tags.paper = 'ef21_reloaded'")
    assert run.info.status == "FINISHED" and run.data.tags["fidelity"] == "exact" and run.data.tags["arxiv"] == "2402.10774"
    assert run.data.tags["tier"] == "smoke" and run.data.params["clients"] == "6"
    verdicts = json.loads((out / "ef21_reloaded/verdicts.json").read_text())
    estimate = verdicts["claims"][0]["result"]["estimate"]
    assert run.data.metrics["am_step_speedup.estimate"] == pytest.approx(estimate)
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"figure.svg", "verdicts.json", "measurements.parquet"}

    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert {"EF21, AM step", "EF21, QM step", "Top-k"} <= {c.info.run_name for c in children}
    child = next(c for c in children if c.info.run_name == "EF21, QM step")
    names = [n for n in child.data.metrics if n.startswith("squared gradient norm")]
    history = client.get_metric_history(child.info.run_id, names[0])
    assert len(history) > 5 and [m.step for m in history] == sorted({m.step for m in history})


def test_verdicts_can_be_searched(out: Path, uri: str, tmp_path: Path) -> None:
    changed = tmp_path / "results" / "laptop"
    for slug in SLUGS:
        (changed / slug).mkdir(parents=True)
        for path in (out / slug).iterdir():
            (changed / slug / path.name).write_bytes(path.read_bytes())
    record = json.loads((changed / SLUGS[0] / "verdicts.json").read_text())
    for claim in record["claims"]:
        claim["verdict"] = "verified"
    record["claims"][1]["verdict"] = "refuted"
    (changed / SLUGS[0] / "verdicts.json").write_text(json.dumps(record))
    track(changed, SLUGS, uri)
    client = connect(changed.parent, uri)
    assert [r.data.tags["paper"] for r in parents(client, "tags.verdict = 'refuted'")] == ["ef21_reloaded"]
    assert parents(client, "tags.verdict = 'verified'") == []


def test_again_changes_nothing_and_a_new_result_replaces_the_old(out: Path, uri: str) -> None:
    first = track(out, SLUGS, uri)
    second = track(out, SLUGS, uri)
    assert (second["logged"], second["skipped"]) == (0, 2) and second["papers"] == first["papers"]
    figure = out / "ef21_reloaded/figure.svg"
    before = figure.read_text()
    figure.write_text(before + "<!-- new -->")
    try:
        third = track(out, SLUGS, uri)
        client = connect(out.parent, uri)
        assert (third["logged"], third["skipped"]) == (1, 1)
        assert [r.info.run_id for r in parents(client, "tags.paper = 'ef21_reloaded'")] == [third["papers"]["ef21_reloaded"]]
        left = client.search_runs([e.experiment_id for e in client.search_experiments()], "tags.paper = 'ef21_reloaded'")
        assert {r.data.tags.get("mlflow.parentRunId", r.info.run_id) for r in left} == {third["papers"]["ef21_reloaded"]}
    finally:
        figure.write_text(before)


def test_an_interrupted_log_is_replaced(out: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import atlas.track

    monkeypatch.setattr(atlas.track, "curves", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        track(out, SLUGS, uri)
    monkeypatch.undo()
    client = connect(out.parent, uri)
    assert len(parents(client)) == 1
    track(out, SLUGS, uri)
    assert len(parents(client)) == 2
    assert all("atlas.digest" in r.data.tags for r in parents(client))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_an_unreachable_server_fails_clearly_and_quickly(out: Path) -> None:
    start = time.monotonic()
    with pytest.raises(AtlasError, match="does not answer.*only this step is repeated"):
        track(out, SLUGS, f"http://127.0.0.1:{free_port()}")
    assert time.monotonic() - start < 15


@pytest.mark.slow
def test_a_real_server_shows_the_same(out: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "artifacts")]  # fmt: skip
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        uri = f"http://127.0.0.1:{port}"
        assert track(out, SLUGS, uri)["logged"] == 2
        assert track(out, SLUGS, uri)["skipped"] == 2
        assert len(parents(connect(out.parent, uri))) == 2
    finally:
        server.terminate()
        server.wait()
