"""Loading a pipeline's functions from their files, at the moment they are used.

Belongs here: turning `features.py:features` into a callable, afresh at every call. Does not: hashing the source
(`fingerprint.py`), nor calling the function.

A pipeline's folder becomes the package `mlops_pipelines.NAME`, so `from .helpers import scale` and
`from ..iris.features import features` work, wherever the folder lies.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

from mlops_assets.errors import MlopsError

PACKAGE: Final = "mlops_pipelines"

_ENDINGS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)
"""What no function raises for itself: somebody ends the process, the task or the generator."""


class FunctionError(MlopsError):
    """A pipeline's function that cannot be loaded, or that failed when it was called."""


class _UncachedLoader(SourceFileLoader):
    """Compiles from source always: bytecode caches are trusted by whole seconds, and an edit may be quicker."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder(MetaPathFinder):
    """Finds modules below `mlops_pipelines`, and gives them the loader above."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{PACKAGE}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _UncachedLoader(spec.loader.name, spec.loader.path)
        return spec


def load_function(reference: str, folder: Path, package: str = PACKAGE) -> Callable[..., Any]:
    """Import a pipeline's function.

    Args:
        reference: `FILE.py:FUNCTION`, the file relative to `folder`.
        folder: The pipeline's folder; its parent is the folder of all pipelines.
        package: Name of the package that the parent becomes. Code of an older version has one of its own, so that what
            it imports while it runs is of that version too.

    Raises:
        FunctionError: The file or the function is missing, or importing it failed.
    """
    file, _, name = reference.partition(":")
    path = folder / file
    if not path.is_file():
        raise FunctionError(f"{path} does not exist; create it or correct `functions:` in {folder / 'defs.yaml'}")
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    forget(package)
    importlib.invalidate_caches()
    parent = ModuleType(package)
    parent.__path__ = [str(folder.parent)]
    sys.modules[package] = parent
    module_name = ".".join([package, folder.name, *Path(file).with_suffix("").parts])
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:
        if _ends(error):
            raise
        raise FunctionError(f"importing {path} failed: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        defined = [key for key, value in vars(module).items() if callable(value) and value.__module__ == module_name]
        raise FunctionError(
            f"{path} has no function '{name}'; it defines {', '.join(sorted(defined)) or 'none'}, "
            f"and `functions:` in {folder / 'defs.yaml'} says which to use"
        )
    return function  # type: ignore[no-any-return]


def forget(package: str = PACKAGE) -> None:
    """Drop what was imported as a package, so that the next load runs the source as it is on disk.

    May be called by the garbage collector, in the middle of anything else, so it does no more than that.
    """
    for name in [name for name in list(sys.modules) if name == package or name.startswith(f"{package}.")]:
        sys.modules.pop(name, None)


def call(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Call a pipeline's function.

    Raises:
        FunctionError: It raised; names the line in the user's file. The original stays the cause.
    """
    try:
        return function(*arguments, **keywords)
    except BaseException as error:
        if _ends(error):
            raise
        file = inspect.getsourcefile(function) or "?"
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        where = f"{file}:{lines[-1]}" if lines else file
        raise FunctionError(f"{function.__name__}() failed at {where}: {type(error).__name__}: {error}") from error


def _ends(error: BaseException) -> bool:
    """Whether an error is somebody's order to end; anything else is the function's own failure.

    A panic of Rust, as Polars has them, is no `Exception` to Python, and yet a failure like others. Dagster interrupts
    a run with an error of its own, which cannot be imported here.
    """
    return isinstance(error, _ENDINGS) or type(error).__name__ == "DagsterExecutionInterruptedError"
