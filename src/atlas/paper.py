"""A paper's folder: the schema of `paper.yaml`, and finding and loading papers.

Imported by the Snakefile, so nothing here imports numpy, pandas or torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from atlas.claims import KINDS, AnyTest, Test
from atlas.errors import AtlasError, unknown

PAPERS = Path(__file__).parent / "papers"
TIERS = ("smoke", "laptop", "paper")
FAMILIES = (
    "federated",
    "generative",
    "language",
    "networks",
    "optimization",
    "optimizers",
    "reinforcement",
    "vision",
)
Tier = Literal["smoke", "laptop", "paper"]
Fidelity = Literal["exact", "scaled", "proxy"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Control(BaseModel):
    """Rows that must fail the claim's test: what they are, and the selection fields of the test they replace."""

    model_config = ConfigDict(extra="allow", frozen=True)
    says: str

    @property
    def replace(self) -> dict[str, Any]:
        return self.model_extra or {}


class Claim(Strict):
    """One falsifiable statement of a paper."""

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    says: str = Field(description="the claim in our words")
    source: str = Field(description="where the paper says it: abstract, theorem, figure, table")
    axis: str = Field("", description="what x is, for the figure: rounds, steps, samples, ...")
    test: AnyTest
    control: list[Control] = Field(min_length=1)

    @field_validator("control", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @property
    def kind(self) -> str:
        return self.test.kind

    def controls(self) -> list[Test]:
        return [self.test.control(c.replace) for c in self.control]


class Resources(Strict):
    """What one measurement may use. `runtime` is a limit in minutes, `mem_mb` in MB; `gpu_model`: only if it must be one."""

    cpus: int = Field(1, ge=1)
    mem_mb: int = Field(2000, ge=100)
    runtime: float = Field(5, gt=0)
    gpus: int = Field(0, ge=0)
    gpu_model: str | None = None

    def device(self, configured: str) -> str:
        """`auto` is the GPU for a measurement that asks for one, else the CPU."""
        return ("cuda" if self.gpus else "cpu") if configured == "auto" else configured


class PerTier(Strict):
    smoke: dict[str, Any]
    laptop: dict[str, Any]
    paper: dict[str, Any]


class TierResources(Strict):
    smoke: Resources = Resources()
    laptop: Resources = Resources()
    paper: Resources = Resources(cpus=4, mem_mb=16000, runtime=240, gpus=1)


class Paper(Strict):
    """What `paper.yaml` says. `family` and `slug` come from the folder."""

    n: int = Field(ge=0, description="number in the list of 286 papers")
    title: str
    year: int = Field(ge=1950, le=2100)
    arxiv: str | None = Field(pattern=r"^([0-9]{4}\.[0-9]{4,5}|[a-z-]+(\.[A-Z]{2})?/[0-9]{7})$")
    code: str | None = Field(description="official repository, owner/name, or null")
    fidelity: Fidelity
    fidelity_note: str = Field(description="one line: what differs from the paper's own setting")
    summary: str
    method: str
    data: list[str] = []
    settings: PerTier
    resources: TierResources = TierResources()
    claims: list[Claim] = Field(min_length=1)
    notes: str

    folder: Path = Field(exclude=True)

    @property
    def slug(self) -> str:
        return self.folder.name

    @property
    def family(self) -> str:
        return self.folder.parent.name

    @property
    def experiment(self) -> Path:
        return self.folder / "experiment.py"

    @cached_property
    def setting_fields(self) -> dict[str, Any]:
        """Fields of `class Setting` in experiment.py with their defaults, read without importing it."""
        for node in ast.parse(self.experiment.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name == "Setting":
                return {
                    n.target.id: _literal(n.value)
                    for n in node.body
                    if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                }
        raise AtlasError(f"{self.experiment}: has no class Setting")

    def setting(self, tier: str, override: dict[str, Any] | None = None) -> dict[str, Any]:
        """The tier's setting: what differs from the defaults of `Setting`. Raises AtlasError on unknown keys."""
        chosen: dict[str, Any] = getattr(self.settings, tier)
        for where, keys in (
            (f"{self.folder / 'paper.yaml'}: settings.{tier}", chosen),
            (f"config: settings.{self.slug}", override or {}),
        ):
            for key in keys:
                if key not in self.setting_fields:
                    raise unknown("setting", key, self.setting_fields, where)
        return {**chosen, **(override or {})}


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node else None
    except ValueError:
        return ast.unparse(node) if node else None


def explain(error: ValidationError, where: str, known: dict[str, list[str]] | None = None) -> AtlasError:
    """A pydantic error as one line per mistake: file, key, what was expected."""
    lines = []
    for e in error.errors():
        loc = [str(part) for part in e["loc"] if part not in KINDS]
        key = ".".join(loc)
        if e["type"] == "union_tag_invalid":
            raise_for = unknown("claim kind", str(e["ctx"]["tag"]), KINDS, f"{where}: {key}")
            lines.append(str(raise_for))
        elif e["type"] == "extra_forbidden" and known and key in known.get("", []):
            lines.append(f"{where}: {key}: unexpected here")
        elif e["type"] == "extra_forbidden":
            names = (known or {}).get(".".join(loc[:-1]), [])
            lines.append(str(unknown("key", key, names, where)))
        else:
            got = "" if e["type"] == "missing" else f" (got {str(e['input'])[:80]!r})"
            lines.append(f"{where}: {key}: {e['msg'].removeprefix('Value error, ')}{got}")
    return AtlasError("\n".join(lines))


def load(folder: Path) -> Paper:
    """Read and validate one paper's folder. Raises AtlasError naming file, key and what was expected."""
    path = folder / "paper.yaml"
    try:
        raw = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    except FileNotFoundError:
        raise AtlasError(f"{path}: missing") from None
    except yaml.YAMLError as error:
        raise AtlasError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise AtlasError(f"{path}: expected a mapping with keys {', '.join(Paper.model_fields)}")
    if folder.parent.name not in FAMILIES:
        raise unknown("family", folder.parent.name, FAMILIES, str(folder))
    if not re.fullmatch(r"[a-z][a-z0-9_]*", folder.name):
        raise AtlasError(f"{folder}: a slug is lower-case letters, digits and underscores")
    try:
        paper = Paper.model_validate({**raw, "folder": folder})
        for claim in paper.claims:
            try:
                claim.controls()
            except (AtlasError, ValidationError) as error:
                raise AtlasError(f"{path}: claims.{claim.id}.control: {error}") from None
    except ValidationError as error:
        raise explain(error, str(path), {"": [k for k in Paper.model_fields if k != "folder"]}) from None
    if len({c.id for c in paper.claims}) < len(paper.claims):
        raise AtlasError(f"{path}: claims: ids are not unique")
    if not paper.experiment.is_file():
        raise AtlasError(f"{paper.experiment}: missing")
    return paper


def folders() -> dict[str, Path]:
    """slug -> folder of every paper, in order of family and slug."""
    found = {path.parent.name: path.parent for path in sorted(PAPERS.glob("*/*/paper.yaml"))}
    return found


def find(slug: str) -> Paper:
    """Load a paper by slug. Raises AtlasError with the nearest slugs."""
    known = folders()
    if slug not in known:
        raise unknown("paper", slug, known)
    return load(known[slug])


def select(names: list[str]) -> list[Paper]:
    """Papers by slug or family; all of them if `names` is empty. Raises AtlasError on an unknown name."""
    known = folders()
    families = {folder.parent.name for folder in known.values()}
    for name in names:
        if name not in known and name not in FAMILIES:
            raise unknown("paper or family", name, [*known, *FAMILIES])
    return [
        load(folder)
        for slug, folder in known.items()
        if not names or slug in names or (folder.parent.name in names and folder.parent.name in families)
    ]


def check_target(target: str, papers: Iterable[str]) -> None:
    """Raise AtlasError for a workflow target that is a plain word but no rule, paper or family."""
    known = {*papers, *FAMILIES, "all", "data", "track", "atlas"}
    if target in folders() and target not in known:
        raise AtlasError(f"paper '{target}' is not selected: see 'select' in the configuration")
    if target not in known:
        raise unknown("paper or family", target, known)
