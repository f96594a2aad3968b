"""The versions that a process answers with, each replaced when its pointer moves.

Belongs here: when to load what, and that a version which does not load leaves the last good one in place. Not here:
what a version does (`slot.py`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from mlops_assets.errors import MlopsError
from mlops_assets.serving.pointer import POINTER, Pointer, read_pointer, serving_folder
from mlops_assets.serving.slot import Slot

log = logging.getLogger("mlops_assets")

Stamp = tuple[int, int, int]

AGAIN_SECONDS: Final = 5.0
"""How long after a failure a version is tried again: memory or a file that was missing may be there by then."""


class NotServed(MlopsError):
    """No version answers for a pipeline."""


class Slots:
    """A process's slots, by pipeline.

    A slot is replaced by one assignment: a request that has taken the old one ends with it, and it is freed after the
    last of them.

    Args:
        home: The platform's home.
        threads: CPU threads of a pass.
        on_swap: Told of each slot that begins to answer, and of the one before it.

    Attributes:
        problems: By pipeline, why the version that is wanted does not answer.
    """

    def __init__(
        self, home: Path, *, threads: int = 1, on_swap: Callable[[Slot | None, Slot], None] | None = None
    ) -> None:
        self._folder, self._threads, self._on_swap = serving_folder(home), threads, on_swap
        self._slots: dict[str, Slot] = {}
        self._seen: dict[str, Stamp] = {}
        self._pointers: dict[str, Pointer] = {}
        self._again: dict[str, float] = {}
        self.problems: dict[str, str] = {}

    def __getitem__(self, name: str) -> Slot:
        """The slot that answers for a pipeline.

        Raises:
            NotServed: None does; the sentence says why.
        """
        try:
            return self._slots[name]
        except KeyError:
            pass
        if name in self.problems:
            raise NotServed(f"{name} is not served: {self.problems[name]}")
        known = ", ".join(self._slots) or "none yet"
        raise NotServed(
            f"'{name}' is not served (served: {known}); a pipeline is, as soon as it has a champion: `mlops run NAME`"
        )

    def __iter__(self) -> Iterator[Slot]:
        return iter(list(self._slots.values()))

    def names(self) -> list[str]:
        """The pipelines that are answered for."""
        return sorted(self._slots)

    def refresh(self) -> None:
        """Look at the pointers, and load what moved; a few `stat` calls when nothing did."""
        found: set[str] = set()
        for path in sorted(self._folder.glob(f"*/{POINTER}")):
            name = path.parent.name
            found.add(name)
            try:
                stat = path.stat()
            except OSError:
                continue  # replaced or removed in between; the next look tells
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if self._seen.get(name) != stamp or time.monotonic() > self._again.get(name, math.inf):
                self._seen[name] = stamp
                self._follow(name, path)
        for name in self._seen.keys() - found:
            self._drop(name)

    def _follow(self, name: str, path: Path) -> None:
        """Load what a pointer says, unless only its remarks are new."""
        before = self._slots.get(name)
        self._again.pop(name, None)
        try:
            pointer = read_pointer(path)
            if pointer is None:
                return
            if pointer.key and (before is None or not _same_slot(self._pointers[name], pointer)):
                slot = Slot.load(path.parent / pointer.key, pointer, threads=self._threads)
                self._pointers[name], self._slots[name] = pointer, slot
                log.info("%s: version %d answers", name, slot.version)
                if self._on_swap is not None:
                    self._on_swap(before, slot)
        except Exception as error:  # noqa: BLE001  whatever keeps a version from loading must not end the process
            said = str(error) if isinstance(error, MlopsError) else f"{type(error).__name__}: {error}"
            self._again[name] = time.monotonic() + AGAIN_SECONDS
            if self.problems.get(name) != said:
                kept = f"; version {before.version} goes on answering" if before else ""
                log.warning("%s: %s%s", name, said, kept)
            self.problems[name] = said
            return
        if pointer.problem:
            self.problems[name] = pointer.problem
        else:
            self.problems.pop(name, None)

    def _drop(self, name: str) -> None:
        """A pipeline whose pointer is gone has no champion any more."""
        for known in (self._seen, self._slots, self._pointers, self._again, self.problems):
            known.pop(name, None)


def _same_slot(one: Pointer, other: Pointer) -> bool:
    return one.model_copy(update={"problem": ""}) == other.model_copy(update={"problem": ""})
