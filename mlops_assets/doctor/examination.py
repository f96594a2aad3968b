"""One look at an installation: what the checks share, and what they tell."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlops_assets.errors import MlopsError
from mlops_assets.settings import HomeError, Settings

if TYPE_CHECKING:
    import dagster as dg

Result = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What a check found: a line of the table."""

    check: str
    result: Result
    found: str
    fix: str = ""


@dataclass
class Examination:
    """What is looked at, and how closely.

    Attributes:
        here: The settings.
        deep: Whether to read everything, which takes as long as there is much.
        closing: What is closed at the end.
    """

    here: Settings
    deep: bool
    closing: ExitStack = field(default_factory=ExitStack)

    @property
    def dagster_home(self) -> Path:
        """The folder of Dagster's own files."""
        return Path(os.environ.get("DAGSTER_HOME") or self.here.dagster_home)

    @cached_property
    def instance(self) -> dg.DagsterInstance | None:
        """The Dagster instance, opened once; None where nothing has made it yet.

        Raises:
            HomeError: It cannot be opened.
            DatabaseError: PostgreSQL, where it is kept, does not answer.
        """
        from mlops_assets.doctor.processes import holders, stands_still
        from mlops_assets.doctor.server_postgres import connected
        from mlops_assets.home import open_instance

        if not (self.dagster_home / "dagster.yaml").is_file():
            return None
        for lock, pid in holders([self.here.dagster_home / ".create.lock"]).items():
            if stands_still(pid):  # to open the instance would wait for it
                raise HomeError(f"{lock} is held by process {pid}, which is stopped; `kill -CONT {pid}` lets it go on")
        if self.here.dagster_database.get_secret_value():  # where it is down, Dagster would try for long
            with connected("MLOPS_DAGSTER_DATABASE", self.here.dagster_database):
                pass
        return self.closing.enter_context(open_instance(self.here))


Check = Callable[[Examination], Iterable[Finding]]


@contextmanager
def examination(here: Settings, *, deep: bool = False) -> Iterator[Examination]:
    """An examination; what it opened is closed at the end."""
    made = Examination(here, deep)
    with made.closing:
        yield made


def findings(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What a check tells; one that fails itself is a problem, and no obstacle to the others."""
    try:
        return list(check())
    except Exception as error:  # noqa: BLE001  a check looks at what is broken, in whatever way
        what, fix = sentence(error)
        return [Finding(name, "problem", f"could not be checked: {what}", fix)]


def sentence(error: Exception) -> tuple[str, str]:
    """An error as what is wrong and what to do, which the texts of ours separate by a semicolon."""
    if not isinstance(error, MlopsError):
        return f"{type(error).__name__}: {' '.join(str(error).split())}", ""
    what, _, fix = str(error).rpartition("; ")
    return (what, fix) if what else (fix, "")
