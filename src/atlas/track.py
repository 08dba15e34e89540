"""Show the results in MLflow. The files are the truth, MLflow a view of them: logging again updates, never duplicates.

One experiment per family; a parent run per paper, tier and master seed; a child run per method with its curves. A parent
carries `atlas.key` (what it is of) and `atlas.digest` (hash of the files it shows): the same digest is skipped, another
one is logged anew, and what it replaces, or what a crash left without its digest, is deleted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from atlas import files
from atlas.errors import AtlasError
from atlas.verify import PaperVerdicts, read

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

SEVERITY = ("refuted", "undiscriminating", "inconclusive", "verified")
MOST_CURVES = 12  # per method: a paper with many conditions shows the first ones
MOST_POINTS = 40  # per curve
INPUTS = ("measurements.parquet", "provenance.json", "verdicts.json", "figure.svg")


def default_uri(results: Path) -> str:
    """$MLFLOW_TRACKING_URI, or an SQLite file below the results."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{results.resolve()}/mlflow/mlflow.db"


def connect(results: Path, uri: str | None = None) -> MlflowClient:
    """A client of the tracking store. Raises AtlasError within seconds if a server does not answer."""
    uri = uri or default_uri(results)
    where = urlparse(uri)
    if where.scheme in ("http", "https"):
        try:
            port = where.port or (443 if where.scheme == "https" else 80)
            socket.create_connection((where.hostname or "", port), timeout=5).close()
        except OSError as error:
            raise AtlasError(
                f"the MLflow server {uri} does not answer ({error}). Results are safe in {results}; start the server, or unset"
                " MLFLOW_TRACKING_URI to use the local store, and run again: only this step is repeated"
            ) from None
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    (results / "mlflow").mkdir(parents=True, exist_ok=True)
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def track(out: Path, slugs: list[str], uri: str | None = None) -> dict[str, Any]:
    """Bring MLflow up to date with out/<slug>/ and write out/track.json.

    Raises AtlasError if the tracking server cannot be reached; what was logged until then is kept.
    """
    start, cpu = time.perf_counter(), time.process_time()
    results = out.parent
    client = connect(results, uri)
    uri = uri or default_uri(results)
    logged, skipped, runs = 0, 0, {}
    for family, papers in _by_family(out, slugs).items():
        experiment = _experiment(client, family, results, uri)
        known = _known(client, experiment)
        for paper in papers:
            key = f"{paper.tier}/{paper.seed}/{paper.paper}"
            digest = _digest(out / paper.paper)
            old = known.get(key, {})
            current = next((run for run, d in old.items() if d == digest), None)
            if current is None:
                current = _log(client, experiment, paper, out / paper.paper, key)
                # the last thing written: a run without it was interrupted and is replaced next time
                client.set_tag(current, "atlas.digest", digest)
                logged += 1
            else:
                skipped += 1
            for run in old:
                if run != current:
                    _delete(client, experiment, run)
            runs[paper.paper] = current
    record = {
        "uri": re.sub(r"//[^@/]*@", "//", uri),  # without a password
        "papers": runs,
        "logged": logged,
        "skipped": skipped,
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }
    files.write_text(out / "track.json", json.dumps(record, indent=1))
    print(f"MLflow: {logged} papers logged, {skipped} unchanged, in {record['seconds']} s")
    return record


def _by_family(out: Path, slugs: list[str]) -> dict[str, list[PaperVerdicts]]:
    found: dict[str, list[PaperVerdicts]] = {}
    for slug in slugs:
        if (path := out / slug / "verdicts.json").is_file():
            paper = read(path)
            found.setdefault(paper.family, []).append(paper)
    return found


def _experiment(client: MlflowClient, family: str, results: Path, uri: str) -> str:
    if found := client.get_experiment_by_name(family):
        return str(found.experiment_id)
    local = (results.resolve() / "mlflow" / "artifacts").as_uri() if uri.startswith("sqlite") else None
    return str(client.create_experiment(family, artifact_location=local and f"{local}/{family}"))


def _known(client: MlflowClient, experiment: str) -> dict[str, dict[str, str]]:
    """key -> parent run -> digest ('' if it was never finished)."""
    known: dict[str, dict[str, str]] = {}
    token = None
    while True:
        page = client.search_runs([experiment], "tags.`atlas.key` LIKE '%'", max_results=1000, page_token=token)
        for run in page:
            known.setdefault(run.data.tags["atlas.key"], {})[run.info.run_id] = run.data.tags.get("atlas.digest", "")
        token = page.token
        if not token:
            return known


def _delete(client: MlflowClient, experiment: str, parent: str) -> None:
    for child in client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=1000):
        client.delete_run(child.info.run_id)
    client.delete_run(parent)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in INPUTS:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def overall(verdicts: PaperVerdicts) -> str:
    """The verdict of a paper: the worst of its claims in the order of SEVERITY."""
    found = {claim.verdict for claim in verdicts.claims}
    return next((verdict for verdict in SEVERITY if verdict in found), "none")


def _log(client: MlflowClient, experiment: str, paper: PaperVerdicts, folder: Path, key: str) -> str:
    from mlflow.entities import Metric, Param, RunTag

    from atlas import measurements

    origin, now = paper.provenance, int(time.time() * 1000)
    common = {
        "paper": paper.paper,
        "family": paper.family,
        "tier": paper.tier,
        "master_seed": paper.seed,
        "fidelity": paper.fidelity,
        "arxiv": paper.arxiv,
        "commit": origin["commit"],
        "dirty": origin["dirty"],
        "data": json.dumps(origin["data"]),
    }
    verdict_tags = {"verdict": overall(paper), **{f"verdict.{c.id}": c.verdict or "none" for c in paper.claims}}
    params = [Param(name, str(value)[:500]) for name, value in origin["setting"].items()]

    def tags(**more: Any) -> list[RunTag]:
        return [RunTag(name, str(value)) for name, value in {**common, **more}.items() if value is not None]

    title = f"{paper.paper} ({paper.tier}" + (f", seed {paper.seed})" if paper.seed else ")")
    parent = client.create_run(experiment, run_name=title, tags={"atlas.key": key})
    run = parent.info.run_id
    numbers = {"cpu_seconds": origin["cpu_seconds"], "peak_memory_mb": origin["peak_memory_mb"]}
    for claim in paper.claims:
        for end in ("estimate", "low", "high"):
            numbers[f"{claim.id}.{end}"] = getattr(claim.result, end)
        numbers[f"{claim.id}.control"] = claim.controls[0].result.estimate
    finite = [Metric(_name(k), float(v), now, 0) for k, v in numbers.items() if math.isfinite(v)]
    note = "\n".join(f"- **{c.id}**: {c.verdict}. {c.says.strip()} ({c.reason})" for c in paper.claims)
    client.log_batch(run, finite, params[:100], tags(**{"title": paper.title, "mlflow.note.content": note, **verdict_tags}))
    for name in INPUTS:
        client.log_artifact(run, str(folder / name))

    table = measurements.read(folder / "measurements.parquet")
    for method, rows in table.groupby("method", sort=False):
        child = client.create_run(experiment, run_name=str(method), tags={"mlflow.parentRunId": run}).info.run_id
        points = list(curves(rows, now))
        for i in range(0, max(len(points), 1), 1000):  # log_batch takes at most 1000 metrics, 100 params and 100 tags
            client.log_batch(child, points[i : i + 1000], params[:100] if i == 0 else [], tags(method=method) if i == 0 else [])
        client.set_terminated(child)
    client.set_terminated(run)
    return str(run)


def _name(text: str) -> str:
    """A metric name of characters MLflow allows."""
    return re.sub(r"[^\w\-. /:]", "_", text)[:240]


def curves(rows: pd.DataFrame, now: int) -> Iterator[Metric]:
    """Mean over seeds and its 95 % interval of every metric and condition of one method, thinned.

    The step is x where x is a growing integer, else the index of the point. At most MOST_CURVES curves.
    """
    import numpy as np
    from mlflow.entities import Metric

    conditions = [c for c in rows.columns if c not in ("method", "seed", "x", "metric", "value")]
    conditions = [c for c in conditions if rows[c].nunique() > 1 and rows[c].nunique() < len(rows) / 2]
    for i, (key, part) in enumerate(rows.groupby(["metric", *conditions], dropna=False, sort=False)):
        if i == MOST_CURVES:
            return
        label = ", ".join(f"{c}={v}" for c, v in zip(conditions, key[1:], strict=True) if v == v)
        name = _name(key[0] + (f" / {label}" if label else ""))
        wide = part.groupby("x")["value"].agg(["mean", "std", "count"])
        keep = np.unique(np.linspace(0, len(wide) - 1, min(len(wide), MOST_POINTS)).astype(int))
        wide = wide.iloc[keep]
        x = wide.index.to_numpy(float)
        steps = x.astype(int) if (x == x.astype(int)).all() and len(x) > 1 else np.arange(len(x))
        half = 1.96 * wide["std"].fillna(0).to_numpy() / np.sqrt(wide["count"].to_numpy())
        for step, mean, h in zip(steps.tolist(), wide["mean"].tolist(), half.tolist(), strict=True):
            for suffix, value in (("", mean), (" low", mean - h), (" high", mean + h)):
                if math.isfinite(value) and (h or not suffix):
                    yield Metric(name + suffix, value, now, step)


def ui(results: Path, port: int, host: str = "127.0.0.1") -> None:
    """Serve the MLflow UI of the local store on loopback until interrupted; replaces this process."""
    import sys

    uri = default_uri(results)
    if uri.startswith("http"):
        raise AtlasError(f"MLFLOW_TRACKING_URI is the server {uri}: open it in a browser")
    if uri.startswith("sqlite") and not Path(urlparse(uri).path[1:] if uri.startswith("sqlite:////") else uri[10:]).is_file():
        raise AtlasError(f"there is nothing to show at {uri} yet: run snakemake first")
    print(f"MLflow UI of {uri}: http://{host}:{port}", flush=True)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", host, "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, command)
