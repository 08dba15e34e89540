"""Views of MLflow's UI: which columns, filters and charts it opens with.

MLflow keeps a saved view as a tag of the experiment, `mlflow.sharedViewState.<key>`: JSON with a name and the state of the page,
deflated. The page opens with it if its address says `viewStateShareKey=<key>`, and lists it under 'Views'.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

TAG = "mlflow.sharedViewState."
MOST_CHARTS = 12  # with names as long as MLflow allows a view is 5 kB; a tag of an experiment may hold 20
COLUMNS = ("verdict", "fidelity", "tier", "seed")
PAGE = {
    "orderByKey": "attributes.start_time",
    "orderByAsc": False,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "selectedColumns": [f"tags.`{name}`" for name in COLUMNS],
    "columnOrder": [f"tags.`{name}`" for name in COLUMNS],
    "columnWidths": {},
}
Range = tuple[
    int, float, float, int, int
]  # methods that have the curve, its least and largest value and step


def family_tags() -> dict[str, str]:
    """Tags of every experiment: no traces and prompts but runs, and the two views of its table."""
    found = {
        "verdicts": ("Verdicts", "tags.`atlas.key` != ''"),
        "refuted": ("Refuted", "tags.verdict = 'refuted'"),
    }
    return {
        "mlflow.experimentKind": "custom_model_development",
        **{TAG + key: view(name, {**PAGE, "searchFilter": where}) for key, (name, where) in found.items()},
    }


def curves_tag(paper: str, tier: str, seed: int, ranges: Mapping[str, Range]) -> tuple[str, str]:
    """Tag of the view that shows the curves of all methods of a paper, each metric on the axes that suit it."""
    lines = {name: found for name, found in ranges.items() if found[3] < found[4]}
    charts: list[dict[str, Any]] = [
        {
            "uuid": f"chart{i}",
            "type": "LINE",
            "metricSectionId": "curves",
            "deleted": False,
            "isGenerated": False,
            "displayName": name,
            "metricKey": name,
            "selectedMetricKeys": [name],
            "scaleType": "log" if low > 0 and high > 2 * low else "linear",
            "xAxisScaleType": "log" if first > 0 and last > 20 * first else "linear",
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "range": {},
        }
        for i, (name, (_, low, high, first, last)) in enumerate(
            sorted(lines.items(), key=lambda item: -item[1][0])[:MOST_CHARTS]
        )
    ]
    section = {
        "uuid": "curves", "name": "Curves of all methods", "display": True, "isReordered": True, "deleted": False,
        "isGenerated": False, "columns": 2,
    }  # fmt: skip
    where = f"tags.paper = '{paper}' AND tags.tier = '{tier}' AND tags.seed = '{seed}' AND tags.method != ''"
    state = {
        **PAGE,
        "searchFilter": where,
        "orderByKey": "tags.`method`",  # by date, MLflow would fold the methods into their paper
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": [section],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }
    return TAG + curves_key(paper, tier, seed), view(f"{paper} ({tier}, seed {seed}): curves", state)


def curves_key(paper: str, tier: str, seed: int) -> str:
    return f"{paper}-{tier}-{seed}"


def ranges(curves: Iterable[tuple[str, float, int]], known: dict[str, Range]) -> None:
    """Widen `known` by the points (metric, value, step) of one method; ends of intervals and the like do not count."""
    seen: set[str] = set()
    for name, value, step in curves:
        if name.endswith((" low", " high", " failed", " x")):
            continue
        n, low, high, first, last = known.get(name, (0, math.inf, -math.inf, step, step))
        n += name not in seen
        seen.add(name)
        known[name] = (n, min(low, value), max(high, value), min(first, step), max(last, step))


def view(name: str, state: dict[str, Any]) -> str:
    """The value of a view's tag; the same view gives the same value."""
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"})


def table_address(experiments: Iterable[str], key: str) -> str:
    """Where the UI shows the table of several experiments (ids) with a view, from the server's root."""
    ids = quote(json.dumps(sorted(set(experiments), key=int)))
    return f"#/compare-experiments/s?experiments={ids}&workflowType=machine_learning&viewStateShareKey={key}"


def curves_address(experiment: str, key: str) -> str:
    """Where the UI shows the curves of a paper, from the server's root."""
    page = f"#/experiments/{experiment}/runs?workflowType=machine_learning"
    return f"{page}&compareRunsMode=CHART&viewStateShareKey={key}"
