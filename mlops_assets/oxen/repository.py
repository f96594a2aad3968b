"""Safe access to a local Oxen repository.

Belongs here: the public interface. Nothing in this package calls Oxen in the calling process: what changes a repository
runs in a short-lived child under the repository's lock (``worker``), and versions are read from the tree (``tree``) and
the content store (``cache``) directly. A repository needs no working copy, and none is ever touched.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlops_assets.oxen import cache as cache_
from mlops_assets.oxen import child
from mlops_assets.oxen.errors import (
    OperationTimeout,
    RepositoryNotFound,
    RevisionNotFound,
    StoreCorrupt,
    TreeFormatError,
    UnsafePath,
)
from mlops_assets.oxen.inputs import checked_branch, checked_path, sources
from mlops_assets.oxen.tree import Commit, Entry, FileDiff, TableInfo, Tree, commit_id

_REF_FILE = re.compile(r"CURRENT|IDENTITY|(MANIFEST|OPTIONS)-\d+|\d+\.(log|sst)")  # not LOCK and not RocksDB's own log


class Repository:
    """A repository of datasets in a local directory.

    Nothing is read or written before a method is called; any number of processes and threads may use one repository.

    Args:
        path: The directory that holds ``.oxen``.
        timeout: Seconds after which one operation is stopped, waiting for other writers included.
    """

    def __init__(self, path: Path, *, timeout: float = 600.0) -> None:
        self.path = Path(path).absolute()
        self.timeout = timeout
        self._store = self.path / ".oxen"
        self._tree = Tree(self._store)
        self._known_heads: tuple[str, dict[str, str]] | None = None

    def __repr__(self) -> str:
        return f"Repository({str(self.path)!r})"

    def exists(self) -> bool:
        """Return whether there is a repository."""
        return (self._store / "config.toml").is_file()

    def init(self) -> None:
        """Create the repository unless it exists; any number of processes may do so at once.

        Raises:
            OxenError: The directory cannot be created.
        """
        if not self.exists():
            child.call("init", self._store, seconds=self.timeout)

    def commit(
        self,
        message: str,
        *,
        files: Mapping[str, Path | bytes] | None = None,
        remove: Sequence[str] = (),
        branch: str = "main",
        author: str = "mlops",
        email: str = "mlops@localhost",
    ) -> Commit | None:
        """Add, replace and remove files in one commit, on top of whatever the branch holds by then.

        When this returns, the branch has been read back and holds exactly what was asked. Content that the store has
        lost is stored anew when it is committed again.

        Args:
            message: What was done; at least one visible character.
            files: Path in the repository to content: bytes, a local file, or a local directory, which stands for all
                files below it and leaves other files of the repository's directory alone.
            remove: Files and directories to remove. What ``files`` gives stays, so both together replace a directory.
            branch: An existing branch, or "main" in a repository without commits.
            author: Name to record.
            email: Address to record.

        Returns:
            The commit, or None when the branch held all of that already.

        Raises:
            UnsafePath: Something given could not be stored faithfully; nothing was committed.
            InputChanged: A local file was modified meanwhile; nothing was committed.
            PathNotFound: Something to remove is not there.
            RevisionNotFound: There is no such branch.
            RepositoryBusy: A program outside this package holds the repository.
            OperationTimeout: It took too long; whether the commit was made must be looked up in the log.
        """
        for what, text in (("message", message), ("author", author), ("email", email)):
            if not text.strip() or "\0" in text:
                raise UnsafePath(f"the {what} of a commit must not be blank or contain NUL; give one.")
        checked_branch(branch)
        removals = [checked_path(path) for path in remove]
        found = sources(files or {})
        self._require()
        done = child.call(
            "commit",
            self._store,
            seconds=self.timeout,
            payload=b"".join(each.content for each in found if isinstance(each.content, bytes)),
            message=message,
            branch=branch,
            author=author,
            email=email,
            remove=removals,
            files=[
                (each.path, None if isinstance(each.content, bytes) else each.content, each.hash, each.size, each.stamp)
                for each in found
            ],
        )
        return None if done is None else self._tree.log(done, 1)[0]

    def heads(self) -> dict[str, str]:
        """Return the commit id that each branch points to."""
        self._require()
        if not (self._store / "refs" / "CURRENT").exists():
            if (self._store / "history").is_dir():
                raise StoreCorrupt(f"{self.path} has commits but no branches; restore .oxen/refs from a backup.")
            return {}
        end = time.monotonic() + self.timeout
        while True:
            stamp = self.change_stamp()
            if self._known_heads is not None and self._known_heads[0] == stamp:
                return dict(self._known_heads[1])
            with tempfile.TemporaryDirectory(prefix="mlops-oxen-") as view:
                if self._copy_refs(Path(view) / ".oxen", stamp):
                    heads: dict[str, str] = child.call("heads", self._store, seconds=self.timeout, view=view)
                    self._known_heads = stamp, heads
                    return dict(heads)
            if time.monotonic() > end:
                raise OperationTimeout(f"the branches of {self.path} never stood still; try again when it is idle.")
            time.sleep(0.005)

    def create_branch(self, name: str, source: str = "main") -> None:
        """Create a branch at a branch or commit.

        Raises:
            UnsafePath: The name is not a valid one.
            RevisionNotFound: There is no such source.
            OxenError: The branch exists already.
        """
        checked_branch(name)
        child.call("branch", self._store, seconds=self.timeout, name=name, commit=self.resolve(source))

    def resolve(self, revision: str) -> str:
        """Return the full commit id of a branch, or of a full commit id.

        Raises:
            RevisionNotFound: There is no such branch or commit; short ids are not accepted, as they become ambiguous.
        """
        self._require()
        name = commit_id(revision)  # first: others' checkout of a commit leaves a branch of that name, which then moves
        if name is not None and self._tree.has_commit(name):
            return name
        heads = self.heads()
        if revision in heads:
            if not self._tree.has_commit(heads[revision]):
                raise StoreCorrupt(
                    f"the tree of {self.path} lacks commit {heads[revision]}, the head of {revision!r}; "
                    "restore .oxen from a backup."
                )
            return heads[revision]
        raise RevisionNotFound(
            f"{self.path} has no branch or full commit id {revision!r}; its branches are: "
            f"{', '.join(sorted(heads)) or 'none, as nothing was committed yet'}."
        )

    def log(self, branch: str = "main", limit: int | None = None) -> list[Commit]:
        """Return the commits of a branch, or up to a commit id, newest first."""
        return self._tree.log(self.resolve(branch), limit)

    def digest(self, path: str, commit: str) -> str:
        """Return the digest of a file, a directory or "" (everything) at a full commit id; see ``Tree.digest``."""
        return self._reading().digest(commit, checked_path(path))

    def entries(self, path: str, commit: str) -> list[Entry]:
        """Return the files at or below a path at a full commit id, sorted."""
        return self._reading().entries(commit, checked_path(path))

    def table(self, path: str, commit: str) -> TableInfo | None:
        """Return columns and row count of a tabular file at a full commit id, without reading its data; else None."""
        return self._reading().table(commit, checked_path(path))

    def diff(self, left: str, right: str, path: str = "") -> FileDiff:
        """Return which files differ between two full commit ids, at or below a path."""
        return self._reading().diff(left, right, checked_path(path))

    def materialize(self, path: str, commit: str, cache: Path) -> Path:
        """Return a verified, read-only copy of a file or directory at a full commit id.

        It lies at ``<cache>/<digest>/<name>``, where a later call finds it again; a copy that has lost a file or a byte
        is made anew. Nothing appears there before it is complete.

        Raises:
            StoreCorrupt: Stored content is missing or does not have its hash.
        """
        base = checked_path(path)
        tree = self._reading()
        entries, digest = tree.entries(commit, base), tree.digest(commit, base)
        return cache_.materialize(tree, entries, base=base, digest=digest, cache=cache)

    def read(self, entry: Entry) -> bytes:
        """Return the content of one file, verified against its hash.

        Raises:
            StoreCorrupt: It is missing or does not have its hash.
        """
        import xxhash

        blob = self._tree.blob(entry.hash)
        try:
            data = blob.read_bytes()
        except FileNotFoundError:
            raise cache_.damaged(blob, entry, "is missing") from None
        if xxhash.xxh3_128_digest(data) != bytes.fromhex(entry.hash):
            raise cache_.damaged(blob, entry, "does not have its hash")
        return data

    def change_stamp(self) -> str:
        """Return a text that changes whenever any branch does, for the price of a few ``stat`` calls.

        It may change without need, as when a foreign program opens the repository; reading here never changes it.
        """
        total = hashlib.sha256()
        for item in sorted(self._ref_files(), key=lambda item: item.name):
            try:
                status = item.stat()
            except FileNotFoundError:
                total.update(f"{item.name} went\n".encode())
            else:
                total.update(f"{item.name} {status.st_ino} {status.st_size} {status.st_mtime_ns}\n".encode())
        return total.hexdigest()[:32]

    def _ref_files(self) -> list[Path]:
        try:
            return [item for item in (self._store / "refs").iterdir() if _REF_FILE.fullmatch(item.name)]
        except FileNotFoundError:
            return []

    def _copy_refs(self, view: Path, stamp: str) -> bool:
        """Copy the branches' database, which another process may be writing; False unless it stood still meanwhile."""
        (view / "refs").mkdir(parents=True)
        shutil.copyfile(self._store / "config.toml", view / "config.toml")
        try:
            for item in self._ref_files():
                shutil.copyfile(item, view / "refs" / item.name)
        except FileNotFoundError:
            return False
        return self.change_stamp() == stamp

    def _require(self) -> None:
        try:
            config = tomllib.loads((self._store / "config.toml").read_text())
            kind = config.get("storage", {}).get("kind", "local")
        except OSError as error:
            raise RepositoryNotFound(
                f"there is no Oxen repository at {self.path} ({error.strerror}); `mlops data import` makes one."
            ) from None
        except (ValueError, AttributeError) as error:
            raise TreeFormatError(f"{self._store / 'config.toml'} cannot be read ({error}); mend it.") from error
        if kind != "local":
            raise TreeFormatError(f"{self.path} keeps its content in {kind!r}; only local storage can be read here.")

    def _reading(self) -> Tree:
        self._require()
        return self._tree
