"""Errors that are shown to the user as one line, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AtlasError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do."""


def unknown(what: str, name: str, known: Iterable[str], where: str = "") -> AtlasError:
    """An error for an unknown name, with the nearest valid ones (or all of them if there are few)."""
    known = sorted(known)
    near = [k for k in known if len(name) > 2 and name.lower() in k.lower()][:3]
    near = (
        near or difflib.get_close_matches(name, known, n=3, cutoff=0.5) or (known if len(known) <= 12 else [])
    )
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return AtlasError(f"{where + ': ' if where else ''}unknown {what} '{name}'{hint}")
