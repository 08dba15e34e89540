"""Where MLflow shows the runs, for the site's pages; apart from the rest of the site, since `track` writes it too."""

from __future__ import annotations

import json
from pathlib import Path

from atlas import files


def write_runs(out: Path) -> Path:
    """Write out/site/mlflow.js: where MLflow shows the run of each paper, as far as out/track.json knows."""
    path = out / "track.json"
    track = json.loads(path.read_text()) if path.is_file() else {}
    served = str(track.get("uri", "")).startswith("http")
    known = {
        "ui": track["uri"].rstrip("/") if served else "http://127.0.0.1:5000",
        "local": not served,
        "runs": {slug: [track["experiments"][slug], run] for slug, run in track.get("papers", {}).items()},
    }
    files.write_text(out / "site/mlflow.js", f"globalThis.MLFLOW = {json.dumps(known)};\n")
    return out / "site/mlflow.js"
