"""One workflow at a time on a results folder: a lock the system releases when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from atlas.errors import AtlasError


def acquire(results: Path) -> IO[str]:
    """Lock the results folder for as long as the returned file is open. Raises AtlasError naming the holder."""
    results.mkdir(parents=True, exist_ok=True)
    file = (results / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise AtlasError(
            f"{results} is in use by process {file.read().strip()}: wait for it, or run with --config results=other"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
