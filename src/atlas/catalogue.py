"""The list of papers that the atlas is about, also those that are not built yet."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One paper of the list; `arxiv` and `code` (owner/name of the official repository) are '' where there is none."""

    n: int
    family: str
    slug: str
    year: int
    arxiv: str
    code: str
    title: str


@cache
def entries() -> list[Entry]:
    """All papers in the order of their numbers."""
    with (Path(__file__).parent / "catalogue.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [Entry(**{**row, "n": int(row["n"]), "year": int(row["year"])}) for row in rows]  # type: ignore[arg-type]
