"""What can go wrong with a dataset repository.

Belongs here: the named errors of this package. Each is raised with one sentence that says what is wrong, where, and
what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlops_assets.errors import MlopsError


class OxenError(MlopsError):
    """An operation on an Oxen repository failed; the more precise errors derive from it."""


class RepositoryNotFound(OxenError):
    """There is no repository at the given path."""


class RevisionNotFound(OxenError):
    """A branch or commit does not exist in the repository."""


class PathNotFound(OxenError):
    """A commit holds no such file or directory."""


class UnsafePath(OxenError):
    """A path, branch name or local input that Oxen would refuse, drop silently or misread."""


class InputChanged(OxenError):
    """A local file was modified while it was being committed; nothing was committed."""


class RepositoryBusy(OxenError):
    """A program outside this package holds Oxen's own lock on the repository."""


class OperationTimeout(OxenError):
    """An operation did not end in its time and was killed."""


class NotWritable(OxenError):
    """A repository, a cache or a temporary file cannot be written: the disk is full, or the right to is missing."""


class MergeConflict(OxenError):
    """Two branches have changed the same files differently; nothing was merged.

    Attributes:
        paths: Those files, sorted.
    """

    def __init__(self, text: str, paths: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.paths = tuple(paths)


class StoreCorrupt(OxenError):
    """Stored data or metadata is damaged or missing."""


class TreeFormatError(OxenError):
    """The repository is of an on-disk format that this package does not know."""
