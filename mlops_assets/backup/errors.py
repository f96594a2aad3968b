"""What can go wrong with a backup or a restore.

Belongs here: the errors, and the two sentences that several modules say. Not here: when they are raised.
"""

from __future__ import annotations

import errno
from typing import Self

from mlops_assets.errors import MlopsError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class BackupError(MlopsError):
    """A backup cannot be made; nothing was left that looks like one."""

    @classmethod
    def of(cls, what: str, error: OSError) -> Self:
        """What the operating system said when something was to be read or written."""
        remedy = "free space, or choose another place" if error.errno in _FULL else "mend its rights or its place"
        if error.errno == errno.EPIPE:
            remedy = "what was to take it has ended: see why, then try again"
        return cls(f"{what} failed at {error.filename or 'the archive'}: {error.strerror or error}; {remedy}")


class RestoreError(BackupError):
    """An archive cannot be restored here; nothing of it is visible."""


class ArchiveDamaged(RestoreError):
    """An archive is not as it was written, or no archive of ours."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the archive cannot be used: {what}; take another backup")
