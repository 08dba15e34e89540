"""From a measurement to verdicts and the paper's figure."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from atlas import files
from atlas.claims import Result
from atlas.claims.verdict import Verdict, verdict
from atlas.errors import AtlasError
from atlas.paper import Claim, Fidelity, Paper

if TYPE_CHECKING:
    import pandas as pd


class ControlResult(BaseModel):
    says: str
    result: Result


class ClaimVerdict(BaseModel):
    """The verdict on one claim; `verdict` is null at the smoke tier, which gives none."""

    id: str
    kind: str
    says: str
    source: str
    axis: str
    verdict: Verdict | None
    reason: str
    result: Result
    controls: list[ControlResult]


class PaperVerdicts(BaseModel):
    """What verdicts.json holds."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    paper: str
    family: str
    n: int
    title: str
    arxiv: str | None
    tier: str
    seed: int
    fidelity: Fidelity
    claims: list[ClaimVerdict]
    provenance: dict[str, Any]
    verify_cpu_seconds: float = 0.0


def judge(claim: Claim, table: pd.DataFrame, tier: str) -> ClaimVerdict:
    """Test a claim and its controls. Raises AtlasError if the measurements lack what the test needs."""
    try:
        result = claim.test.evaluate(table)
        controls = [
            ControlResult(says=spec.says, result=control.as_control(control.evaluate(table)))
            for spec, control in zip(claim.control, claim.controls(), strict=True)
        ]
    except AtlasError as error:
        raise AtlasError(f"claim {claim.id}: {error}") from None
    decided: Verdict | None
    decided, reason = verdict(result, [c.result for c in controls])
    if tier == "smoke":
        decided, reason = None, "the smoke tier gives no verdict"
    return ClaimVerdict(
        id=claim.id,
        kind=claim.kind,
        says=claim.says,
        source=claim.source,
        axis=claim.axis,
        verdict=decided,
        reason=reason,
        result=result,
        controls=controls,
    )


def verify(paper: Paper, out: Path) -> PaperVerdicts:
    """Judge every claim of `paper` from the measurement in the folder `out`; write verdicts.json and figure.svg."""
    cpu = time.process_time()
    from atlas import measurements
    from atlas.figures.paper import draw

    table = measurements.read(out / "measurements.parquet")
    origin = json.loads((out / "provenance.json").read_text())
    verdicts = PaperVerdicts(
        paper=paper.slug,
        family=paper.family,
        n=paper.n,
        title=paper.title,
        arxiv=paper.arxiv,
        tier=origin["tier"],
        seed=origin["seed"],
        fidelity=paper.fidelity,
        claims=[judge(claim, table, origin["tier"]) for claim in paper.claims],
        provenance=origin,
    )
    with files.replacing(out / "figure.svg") as path:
        draw(verdicts, path)
    verdicts.verify_cpu_seconds = round(time.process_time() - cpu, 3)
    files.write_text(out / "verdicts.json", verdicts.model_dump_json(indent=1))
    shutil.rmtree(out / "checkpoint", ignore_errors=True)  # nobody needs to repeat this measurement any more
    return verdicts


def read(path: Path) -> PaperVerdicts:
    return PaperVerdicts.model_validate_json(path.read_text())
