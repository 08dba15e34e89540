"""`atlas new`: a paper's folder to start from. It runs and passes the linter apart from its TODOs."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from atlas import catalogue
from atlas.errors import AtlasError, unknown
from atlas.paper import FAMILIES, PAPERS, folders

UNKNOWN = """\
n: 0 # TODO number in the list of papers
title: 'TODO title'
year: 2024 # TODO
arxiv: null # TODO e.g. '2402.10774'
code: null # official repository, owner/name
"""
PAPER = """\
fidelity: proxy # TODO exact, scaled or proxy
fidelity_note: TODO what differs from the paper's own setting
summary: |
  TODO what the paper claims, for a curious reader.
method: |
  TODO the update rule. Here: gradient descent, $x_{t+1} = x_t - \\eta A x_t$.
data: [] # names of data sets in data.dvc
settings:
  smoke: {steps: 20, seeds: 5}
  laptop: {} # the defaults of Setting
  paper: {seeds: 64}
resources:
  laptop: {cpus: 1, mem_mb: 1000, runtime: 1} # runtime: minutes, a hard limit
claims:
  - id: linear_convergence # TODO
    says: TODO the claim in our words
    source: TODO abstract, theorem, figure or table
    test:
      kind: linear_rate
      metric: suboptimality
      where: {method: gradient descent}
      slope: -1.0
    control:
      says: TODO rows that must fail the same test. Here, a step that decays like 1/t.
      where: {method: decaying step}
notes: |
  TODO what differs from the paper and why; what surprised you.
"""

EXPERIMENT = '''\
"""TODO title (arXiv TODO): what is implemented."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from atlas.run import Run


@dataclass(frozen=True)
class Setting:
    """Defaults: the laptop tier."""

    dim: int = 20
    steps: int = 200
    seeds: int = 16
    condition: float = 10.0  # ratio of the largest to the smallest curvature


def gradient_descent_step(x: Tensor, curvature: Tensor, step: Tensor | float) -> Tensor:
    """x <- x - step * A x on f(x) = x'Ax/2, A = diag(curvature). x: (seeds, dim). TODO: equation of the paper."""
    return x - step * curvature * x


def measure(setting: Setting, run: Run) -> pd.DataFrame:
    curvature = torch.linspace(1 / setting.condition, 1, setting.dim, dtype=torch.float64, device=run.device)
    start = torch.randn(
        setting.seeds, setting.dim, dtype=torch.float64, device=run.device, generator=run.generator("start")
    )
    table = run.table()
    for method in ("gradient descent", "decaying step"):
        x, values = start, []
        for t in run.progress(range(setting.steps), method):
            values.append((0.5 * curvature * x**2).sum(1))
            x = gradient_descent_step(x, curvature, 1.0 if method == "gradient descent" else 1 / (t + 1))
        # x is scaled so that the claimed slope is -1: f falls at least by (1 - 1/condition)^2 a step
        t = torch.arange(setting.steps) * -2 * torch.log(torch.tensor(1 - 1 / setting.condition))
        table.add(method, "suboptimality", x=t, value=torch.stack(values, 1))
    return table.frame()
'''

TEST = '''\
"""TODO: check the update rule against a value from elsewhere: a closed form, a library, a published number."""

import torch

from atlas.papers.{family}.{slug}.experiment import gradient_descent_step


def test_one_step_on_a_unit_quadratic_reaches_the_optimum() -> None:
    x = torch.tensor([[1.0, -2.0]])
    assert torch.equal(gradient_descent_step(x, torch.ones(2), 1.0), torch.zeros(1, 2))
'''


def new(family: str, slug: str, papers: Path = PAPERS) -> Path:
    """Write the folder of a new paper and return it; what the list of papers knows of it is filled in.

    Raises AtlasError if the family is unknown, the slug is not a Python identifier in lower case or taken, or the list has the
    paper in another family.
    """
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", slug):
        raise AtlasError(f"'{slug}' is no slug: lower-case letters, digits and underscores, a letter first")
    if slug in folders() or (papers / family / slug).exists():
        raise AtlasError(f"there is a paper '{slug}' already")
    entry = next((entry for entry in catalogue.entries() if entry.slug == slug), None)
    if entry and entry.family != family:
        raise AtlasError(f"'{slug}' belongs to the family {entry.family}: atlas new {entry.family} {slug}")
    folder = papers / family / slug
    folder.mkdir(parents=True)
    (folder / "paper.yaml").write_text((_known(entry) if entry else UNKNOWN) + PAPER)
    (folder / "experiment.py").write_text(EXPERIMENT)
    (folder / f"test_{slug}.py").write_text(TEST.format(family=family, slug=slug))
    return folder


def _known(entry: catalogue.Entry) -> str:
    known = {
        "n": entry.n, "title": entry.title, "year": entry.year, "arxiv": entry.arxiv or None, "code": entry.code or None
    }  # fmt: skip
    return yaml.safe_dump(known, sort_keys=False, allow_unicode=True, width=1000)
