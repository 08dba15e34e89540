"""Which files of the package an experiment is made of, found without importing anything."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent


def closure(experiment: Path) -> list[Path]:
    """`experiment` and every module of this package that it imports, directly or not, sorted by path.

    Imports under `if TYPE_CHECKING:` do not count: they cannot change what is measured.
    """
    seen: set[Path] = set()
    queue = [experiment]
    while queue:
        path = queue.pop()
        if path not in seen:
            seen.add(path)
            queue.extend(_imports(path))
    return sorted(seen)


@cache
def _imports(path: Path) -> tuple[Path, ...]:
    found: list[Path] = []
    for module in _imported_names(ast.parse(path.read_text(), str(path))):
        found.extend(_files(module))
    return tuple(dict.fromkeys(found))


def _imported_names(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            # `from package import name`: the name may itself be a module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        else:
            yield from _imported_names(child)


def _files(module: str) -> Iterator[Path]:
    """Files that importing `module` runs: packages' __init__ on the way, and the module itself."""
    parts = module.split(".")
    if parts[0] != PACKAGE.name:
        return
    path = PACKAGE
    for part in parts[1:]:
        if (path / "__init__.py").is_file() and path != PACKAGE:
            yield path / "__init__.py"
        if (path / f"{part}.py").is_file():
            yield path / f"{part}.py"
            return
        path = path / part
    if (path / "__init__.py").is_file() and path != PACKAGE:
        yield path / "__init__.py"


def modules(*names: str) -> list[Path]:
    """Files of modules and of whole subpackages (templates too) of this package, e.g. modules("verify", "claims")."""
    return [
        p
        for name in names
        for p in (PACKAGE / f"{name}.py", *(PACKAGE / name).rglob("*.*"))
        if p.is_file() and p.suffix != ".pyc"
    ]


def digest(files: Iterable[Path]) -> str:
    """One SHA-256 over the names (within this package) and the contents of files."""
    hashed = hashlib.sha256()
    for path in sorted(files):
        hashed.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes() + b"\0")
    return hashed.hexdigest()
