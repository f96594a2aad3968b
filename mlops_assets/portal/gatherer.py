"""Pictures, taken in the background while somebody looks.

Belongs here: when, and what is said when it fails or takes long: a request never waits for a database. Not here: what
a picture shows (`picture.py`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from mlops_assets.errors import MlopsError
from mlops_assets.home import open_instance
from mlops_assets.portal.picture import Picture, take
from mlops_assets.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

log = logging.getLogger("mlops_assets")

PAUSE_SECONDS: Final = 3.0
"""Between two pictures."""

WATCHED_SECONDS: Final = 60.0
"""For how long after a look pictures are taken: longer than Prometheus takes between two."""

FIRST_SECONDS: Final = 2.0
"""How long a look waits for a picture when there is none, or only one from when somebody last looked."""

STOP_SECONDS: Final = 5.0
"""How long the end waits for a picture that is being taken."""

SLOW_SECONDS: Final = 10.0
"""After which a picture that is not done is told of."""


@dataclass(frozen=True)
class Sight:
    """What there is to see: the newest picture, its age in seconds, and what keeps a newer one away."""

    picture: Picture | None
    age: float
    problem: str


class Gatherer:
    """Takes pictures while somebody looks, between entering and leaving it as a context, in a thread of its own.

    Args:
        here: The settings.
        folders: The pipelines, asked for each picture: one may be new.
    """

    def __init__(self, here: Settings, folders: Callable[[], Sequence[Path]]) -> None:
        self._here, self._folders = here, folders
        self._news = threading.Condition()
        self._picture: Picture | None = None
        self._problem, self._tried = "", 0
        self._taken = self._looked = float("-inf")
        self._began: float | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="gatherer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._news:
            self._ended = True
            self._news.notify_all()
        self._thread.join(STOP_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether pictures can still be taken."""
        return self._thread.is_alive()

    def look(self) -> Sight:
        """The newest picture; waits a moment only when there is none of late."""
        with self._news:
            now = time.monotonic()
            idle = now - self._looked > WATCHED_SECONDS
            self._looked = now
            self._news.notify_all()
            if idle:
                tried = self._tried
                self._news.wait_for(lambda: self._tried != tried, FIRST_SECONDS)
            return Sight(self._picture, time.monotonic() - self._taken, self._trouble())

    def _trouble(self) -> str:
        lasting = time.monotonic() - self._began if self._began is not None else 0.0
        if lasting > SLOW_SECONDS:
            return (
                f"Dagster's database or the home has not answered for {lasting:.0f} s; `mlops doctor` finds the reason."
            )
        return self._problem

    def _work(self) -> None:
        with ExitStack() as opened:
            instance: dg.DagsterInstance | None = None
            while self._is_wanted():
                picture, problem = None, ""
                try:
                    instance = instance or opened.enter_context(open_instance(self._here))
                    picture = take(self._here, instance, self._folders())
                except MlopsError as error:
                    problem = f"{error}."
                except Exception as error:  # noqa: BLE001  whatever it is, the next picture may succeed
                    kind = type(error).__name__  # without its text, which may hold a database's URL
                    problem = (
                        f"Dagster's database or the home cannot be read ({kind}); `mlops doctor` finds the reason."
                    )
                if problem:
                    opened.close()  # the next picture begins with a connection of its own
                    instance = None
                self._done(picture, problem)

    def _is_wanted(self) -> bool:
        """Wait until somebody looks; False when it is over."""
        with self._news:
            self._news.wait_for(lambda: self._ended or time.monotonic() - self._looked < WATCHED_SECONDS)
            self._began = time.monotonic()
            return not self._ended

    def _done(self, picture: Picture | None, problem: str) -> None:
        """Show a picture, or say why there is none, and pause."""
        with self._news:
            if problem and problem != self._problem:
                log.warning("the portal takes no picture: %s", problem)
            self._began, self._problem = None, problem
            self._tried += 1
            if picture:
                self._picture, self._taken = picture, time.monotonic()
            self._news.notify_all()
            self._news.wait_for(lambda: self._ended, PAUSE_SECONDS)
