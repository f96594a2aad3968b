"""The worker's lock, its private worktree, and Oxen in it.

Writers hold ``.oxen/mlops/lock`` from the moment they say so until they exit; whatever lies in ``.oxen/mlops/work``
when the lock is taken was left behind by a killed writer and is removed. The worktree consists of links to the
repository's stores and of the changed files alone: nothing is ever checked out.

Belongs here: what every operation needs, inside the worker process alone. Not here: the operations.
"""

# Importing pathlib would cost the worker 5 of its 30 ms.
# ruff: noqa: PTH103, PTH106, PTH108, PTH110, PTH112, PTH114, PTH123, PTH211

from __future__ import annotations

import errno
import fcntl
import importlib.machinery
import importlib.util
import os
import sys
import time
from typing import Any, Self

from mlops_assets.oxen.errors import RepositoryBusy, StoreCorrupt

ASIDE = "mlops-work/"
"""How the names of branches begin on which a commit is made ready; they are nobody's to see."""

LOCKED = "\x1emlops-locked"
"""What a writer says once it has the lock."""

# Python, Rust, RocksDB and LMDB have no more in common than that they quote the system.
_UNWRITABLE = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM]

Request = dict[str, Any]


class Work:
    """The repository's lock and a private directory under it, with a worktree and a home for Oxen's configuration.

    Attributes:
        store: The repository's ``.oxen`` directory.
        token: 16 hexadecimal digits that no other operation has.
        root: The worktree.
        removed: Files and bytes that killed writers had left in their worktrees.
        repo: Oxen's handle on the worktree, once it is open.
    """

    repo: Any

    def __init__(self, request: Request) -> None:
        self.store: str = request["store"]
        self.token = os.urandom(8).hex()
        self.removed = (0, 0)
        self._request = request
        self._place = f"{self.store}/mlops/work/{self.token}"
        self.root = f"{self._place}/tree"

    def __enter__(self) -> Self:
        self._lock = os.open(f"{self.store}/mlops/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # waits in the kernel: polling starves whoever asks least often
        say(LOCKED)
        self.removed = remove(f"{self.store}/mlops/work")
        os.makedirs(f"{self.root}/.oxen")
        home = f"{self._place}/home"
        os.makedirs(home)
        os.environ["HOME"] = os.environ["OXEN_CONFIG_DIR"] = home
        return self

    def __exit__(self, *_: object) -> None:
        remove(self._place)  # the lock itself ends with the process, as Oxen's does

    def open(self) -> dict[str, str]:
        """Make the worktree one of the repository; returns the head of each branch.

        From here on Oxen's own lock is held as well, so that no foreign program can write either.
        """
        if not os.path.exists(f"{self.store}/refs/CURRENT") and os.path.isdir(f"{self.store}/history"):
            raise StoreCorrupt("there are commits but no branches; restore .oxen/refs from a backup.")
        for name in ("versions", "tree", "history", "refs"):
            os.makedirs(f"{self.store}/{name}", exist_ok=True)
            os.symlink(f"{self.store}/{name}", f"{self.root}/.oxen/{name}")
        copy(f"{self.store}/config.toml", f"{self.root}/.oxen/config.toml")
        self._oxen = extension(self._request)
        self.repo = self._oxen.PyRepo(self.root)
        heads = opened(self.repo, self._request["foreign_seconds"])
        for branch in [name for name in heads if name.startswith(ASIDE)]:
            self.delete(branch, heads.pop(branch))
        return heads

    def aside(self, commit: str) -> str:
        """Make a branch at a commit on which to make the next ones ready, unseen; returns its name."""
        self.tell("HEAD", commit)
        self.repo.checkout(f"{ASIDE}{self.token}", True)
        return f"{ASIDE}{self.token}"

    def publish(self, aside: str, branch: str) -> None:
        """Move a branch to what was made ready, which descends from it."""
        self.tell("HEAD", branch)
        self.repo.merge(aside)

    def delete(self, branch: str, commit: str) -> None:
        """Delete a branch, whatever it holds."""
        self.tell("HEAD", commit)  # Oxen deletes what the HEAD has merged: here itself
        self.repo.branch(branch, True)

    def tell(self, name: str, value: str) -> None:
        """Write one of the files in which Oxen keeps what the worktree stands at, such as ``HEAD``."""
        with open(f"{self.root}/.oxen/{name}", "w") as stream:
            stream.write(value)

    def forget(self, name: str) -> None:
        """Remove such a file if it is there."""
        if os.path.exists(f"{self.root}/.oxen/{name}"):
            os.unlink(f"{self.root}/.oxen/{name}")

    def commit(self) -> str:
        """Commit what is staged in the request's words; returns the commit's id."""
        from mlops_assets.oxen.nodes import signed

        self._oxen.user.config_user(
            self._request["author"], self._request["email"], f"{self._place}/home/user_config.toml"
        )
        return str(self.repo.commit(signed(self._request["message"], self.token)).id)

    def require_history(self, branch: str, commit: str) -> None:
        """Refuse to build on a commit whose directory index is lost, for which Oxen has no clear words."""
        if not os.path.isdir(f"{self.store}/history/{commit}"):
            raise StoreCorrupt(f"the history of {branch!r} is missing; restore .oxen/history from a backup.")


def extension(request: Request) -> Any:
    """Load Oxen's compiled module alone: the Python package around it takes ten times as long."""
    loader = importlib.machinery.ExtensionFileLoader("oxen_py", request["extension"])
    spec = importlib.util.spec_from_file_location("oxen_py", request["extension"], loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def opened(repo: Any, seconds: float) -> dict[str, str]:
    """List the branches, after waiting for a foreign program that has the repository open."""
    end = time.monotonic() + seconds
    while True:
        try:
            return branches(repo)
        except ValueError as error:
            if unwritable(str(error)):
                raise
            if "LOCK" not in str(error):
                text = f"the database of the branches is damaged ({error}); restore .oxen/refs from a backup."
                raise StoreCorrupt(text) from error
            if time.monotonic() > end:
                raise RepositoryBusy(
                    "another program has the repository open; end it, as Oxen locks until exit."
                ) from error
            time.sleep(0.05)


def unwritable(text: str) -> str:
    """Return the reason that an error gives why something could not be written, in the system's words; else ""."""
    return next((os.strerror(number) for number in _UNWRITABLE if os.strerror(number) in text), "")


def branches(repo: Any) -> dict[str, str]:
    """Return the head of each branch."""
    return {branch.name: branch.commit_id for branch in repo.list_branches()}


def literally(path: str) -> str:
    """Quote what Oxen would take for a pattern, in the part of the path that is not ours to choose."""
    return "".join(f"[{letter}]" if letter in "*?[]" else letter for letter in path)


def copy(source: str, target: str) -> None:
    """Copy a file's content."""
    with open(source, "rb") as one, open(target, "wb") as two:
        while chunk := one.read(1 << 20):
            two.write(chunk)


def remove(top: str) -> tuple[int, int]:
    """Remove a directory and all below it; returns how many files and bytes that were."""
    count = size = 0
    for directory, below, files in os.walk(top, topdown=False):
        for name in files:
            size += os.lstat(f"{directory}/{name}").st_size
            os.unlink(f"{directory}/{name}")
        for name in below:
            path = f"{directory}/{name}"
            (os.unlink if os.path.islink(path) else os.rmdir)(path)
        count += len(files)
    if os.path.isdir(top):
        os.rmdir(top)
    return count, size


def say(line: str) -> None:
    """Write a line that the parent can tell from whatever Oxen prints."""
    sys.stdout.write(f"\n{line}\n")
    sys.stdout.flush()
