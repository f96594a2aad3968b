"""Code versions and recipes: what an asset runs, as a hash of normalised source.

Belongs here: reading source files, following their first-party imports, hashing. Does not: importing or running any of
it (`functions.py` does), and comparing versions (`staleness.py` does).

A code version changes when the program changes and never when only its looks do: modules are parsed, docstrings are
dropped, and `ast.unparse` writes them back without comments and formatting (`ast.dump` would differ between Python
versions). First-party are the modules below the pipelines' folder and below the project; the platform's own packages
enter by version constants instead, so that an upgrade of the platform does not retrain everything. Imports are found in
the syntax tree: one that is made at run time from a computed name is not seen.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from mlops_assets.errors import MlopsError

PACKAGE_ROOT: Final = Path(__file__).resolve().parent
DIGEST_LENGTH: Final = 32
"""Hex digits kept of a SHA-256: 128 bits, as many as Oxen's own hashes, and still readable in a table."""


class SourceError(MlopsError):
    """A source file that is missing or does not parse."""


def digest(value: Any) -> str:
    """Hash a JSON-able value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


@dataclass(frozen=True)
class Recipe:
    """What fully determines an output: the asset, its code version, and the digest of each input."""

    asset: str
    code_version: str
    inputs: Mapping[str, str]

    @property
    def key(self) -> str:
        """The cache key: where the store keeps the output."""
        return digest([self.asset, self.code_version, dict(self.inputs)])


def code_version(source: Path | None, root: Path, configuration: Mapping[str, Any]) -> str:
    """Hash a source file, the first-party modules it imports, and the configuration that its asset reads.

    Args:
        source: The file that defines the asset's function; None for an asset of the platform alone.
        root: The folder of all pipelines.
        configuration: The part of `defs.yaml` that matters, and the platform's version constants.

    Raises:
        SourceError: A file is missing or is not valid Python; names file and line.
    """
    modules = {_name(path, root): _parsed(path).digest for path in sources(source, root)} if source else {}
    return digest([modules, dict(configuration)])


def sources(source: Path, root: Path) -> list[Path]:
    """The first-party files that a source file runs, itself first, then what it imports, breadth first."""
    start, root = source.resolve(), root.resolve()
    found = [start]
    for path in found:
        for imported in _parsed(path).imports:
            for candidate in _candidates(imported, path, root):
                if candidate not in found and candidate.is_file():
                    found.append(candidate)  # the loop goes on over what it appends
    return found


@dataclass(frozen=True)
class _Import:
    module: str
    names: tuple[str, ...]
    level: int


@dataclass(frozen=True)
class _Module:
    digest: str
    imports: tuple[_Import, ...]


def _parsed(path: Path) -> _Module:
    try:
        return _parse(path.read_bytes())
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist; create it or correct its name in defs.yaml") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}); mend it or correct defs.yaml") from None
    except SyntaxError as error:
        raise SourceError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise SourceError(f"{path}: not a Python source file in UTF-8 ({error})") from None
    except (RecursionError, MemoryError):  # what Python's parser says of too long a nesting
        raise SourceError(f"{path}: an expression nests too deeply; split it") from None


@lru_cache(maxsize=4096)
def _parse(content: bytes) -> _Module:
    tree = ast.parse(content)
    imports = tuple(_imports(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _drop_docstring(node)
    return _Module(hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:DIGEST_LENGTH], imports)


def _drop_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body = node.body[1:] or [ast.Pass()]


def _imports(tree: ast.Module) -> Iterator[_Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (_Import(alias.name, (), 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield _Import(node.module or "", tuple(alias.name for alias in node.names), node.level)


def _candidates(imported: _Import, importer: Path, root: Path) -> Iterator[Path]:
    """Files that an import statement may run, existing or not; a name may be a submodule or an attribute."""
    parts = imported.module.split(".") if imported.module else []
    if imported.level:
        base = importer.parent
        for _ in range(imported.level - 1):
            base = base.parent
        if not base.is_relative_to(root):
            return
    else:
        base = PACKAGE_ROOT.parent
    prefixes = [base.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]
    leaves = [base.joinpath(*parts, name) for name in imported.names]
    for path in [*prefixes, *leaves]:
        if not path.is_relative_to(PACKAGE_ROOT) or path.is_relative_to(PACKAGE_ROOT / "defs"):
            yield path.with_name(path.name + ".py")
            yield path / "__init__.py"


def _name(path: Path, root: Path) -> str:
    """A file's name in the hash: relative, so that a checkout elsewhere has the same code versions."""
    for base in (root.resolve(), PACKAGE_ROOT.parent):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return path.name
