"""Safe access to a local Oxen repository.

Belongs here: the public interface. Nothing in this package calls Oxen in the calling process: what changes a repository
runs in a short-lived child under the repository's lock (``worker``), and versions are read from the tree (``tree``) and
the content store (``cache``) directly. A repository needs no working copy, and none is ever touched.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mlops_assets.oxen import cache as cache_
from mlops_assets.oxen import child
from mlops_assets.oxen.blobs import Blobs
from mlops_assets.oxen.errors import (
    MergeConflict,
    RepositoryNotFound,
    RevisionNotFound,
    StoreCorrupt,
    TreeFormatError,
    UnsafePath,
)
from mlops_assets.oxen.fsck import Fsck, Progress, check, heal
from mlops_assets.oxen.growth import Cleaned, Growth, Size, measure
from mlops_assets.oxen.inputs import checked_branch, checked_path, sources
from mlops_assets.oxen.nodes import commit_id
from mlops_assets.oxen.refs import Refs
from mlops_assets.oxen.tree import Commit, Entry, FileDiff, TableInfo, Tree

DAY: Final = 24 * 3600.0
_SHOWN = 5


class Branch(NamedTuple):
    """A branch, its newest commit, and how many commits "main" has not (``ahead``) and has alone (``behind``)."""

    name: str
    head: Commit
    ahead: int
    behind: int


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
        self._blobs = Blobs(self._store)
        self._refs = Refs(self._store)

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
        _refuse_blank(message=message, author=author, email=email)
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
        return None if done is None else self._tree.commit(done)

    def heads(self) -> dict[str, str]:
        """Return the commit id that each branch points to."""
        self._require()
        return self._refs.heads(self.timeout)

    def branches(self) -> list[Branch]:
        """Return every branch with its newest commit, and how it stands to "main"; sorted by name.

        Raises:
            StoreCorrupt: A branch points to no commit.
        """
        heads = self.heads()
        histories = {name: self.log(name) for name in sorted(heads)}
        main = {commit.id for commit in histories.get("main", ())}
        return [
            Branch(
                name,
                log[0],
                ahead=sum(commit.id not in main for commit in log),
                behind=len(main - {commit.id for commit in log}),
            )
            for name, log in histories.items()
        ]

    def create_branch(self, name: str, source: str = "main") -> None:
        """Create a branch at a branch or commit.

        Raises:
            UnsafePath: The name is not a valid one.
            RevisionNotFound: There is no such source.
            OxenError: The branch exists already.
        """
        checked_branch(name)
        child.call("branch", self._store, seconds=self.timeout, name=name, commit=self.resolve(source))

    def delete_branch(self, name: str, *, force: bool = False) -> None:
        """Delete a branch.

        Args:
            name: The branch; "main" stays.
            force: Whether it may have commits that no other branch has. They are lost with it, at the next clean-up.

        Raises:
            UnsafePath: It is "main".
            RevisionNotFound: There is no such branch.
            OxenError: It has commits that no other branch has.
        """
        if name == "main":
            raise UnsafePath("the branch 'main' cannot be deleted: a repository begins with it; delete another one.")
        self._require()
        child.call("delete", self._store, seconds=self.timeout, name=name, force=force)

    def merge(
        self,
        source: str,
        into: str = "main",
        message: str = "",
        *,
        author: str = "mlops",
        email: str = "mlops@localhost",
    ) -> Commit | None:
        """Merge a branch into another: what changed on ``source`` since both last were one is changed on ``into``.

        A branch that has no commits of its own is moved to the other's head; else there is a new commit with both heads
        as parents, read back and held against the result computed from the trees. Files are merged whole.

        Args:
            source: The branch whose changes are wanted.
            into: The branch that gets them.
            message: Of the new commit; the default names the branches.
            author: Name to record.
            email: Address to record.

        Returns:
            The new head of ``into``, or None when it has all commits of ``source`` already.

        Raises:
            MergeConflict: Both have changed the same files differently; nothing was changed.
            UnsafePath: A file of ``source`` takes the place of a directory of ``into``; nothing was changed.
            RevisionNotFound: There is no such branch.
            StoreCorrupt: A content to be merged is damaged; nothing was changed.
        """
        message = message or f"merge {source} into {into}"
        _refuse_blank(message=message, author=author, email=email)
        self._require()
        done = child.call(
            "merge",
            self._store,
            seconds=self.timeout,
            source=checked_branch(source),
            into=checked_branch(into),
            message=message,
            author=author,
            email=email,
        )
        if paths := done["conflicts"]:
            shown = ", ".join(paths[:_SHOWN]) + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")
            raise MergeConflict(
                f"{self.path}: {source!r} and {into!r} have each changed {shown} in their own way; commit the version "
                "that is to hold to both branches, then merge again.",
                paths,
            )
        return None if done["commit"] is None else self._tree.commit(done["commit"])

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
        digest, entries = self._reading().version(commit, base)
        return cache_.materialize(self._blobs, entries, base=base, digest=digest, cache=cache)

    def read(self, entry: Entry) -> bytes:
        """Return the content of one file, verified, for the price of reading it.

        Raises:
            StoreCorrupt: It is missing or does not have its hash.
        """
        return self._blobs.read(entry)

    def fsck(
        self, revision: str | None = None, *, history: bool = False, progress: Progress = lambda _done, _total: None
    ) -> Fsck:
        """Read and hash everything that is committed, beside any reader and writer; damage is reported, not raised.

        Args:
            revision: A branch or a full commit id; None is the heads of all branches.
            history: Whether all commits before these are read too. What they have in common is read once.
            progress: Called with the bytes read so far and those in all.

        Raises:
            RevisionNotFound: There is no such revision.
            StoreCorrupt: The branches themselves cannot be read.
        """
        heads = self.heads()
        if revision is not None and revision not in heads:
            heads = {revision: self.resolve(revision)}
        elif revision is not None:
            heads = {revision: heads[revision]}
        return check(self._store, heads, history=history, progress=progress)

    def heal(self, found: Fsck, cache: Path, given: Sequence[Path] = ()) -> Fsck:
        """Put lost contents back from verified copies in a cache, or from files given; returns what is still wrong.

        Args:
            found: What ``fsck`` has found.
            cache: The directory that was given to ``materialize``.
            given: Files, and directories of files, that may hold lost contents, under whatever names.

        Raises:
            NotWritable: The content store cannot be written.
        """
        return heal(self._store, found, cache, given)

    def growth(self) -> Growth:
        """Count what the repository takes on disk, and what of it no branch needs.

        Raises:
            StoreCorrupt: The tree is damaged, so that it is not known what is needed.
        """
        return measure(self._store, self.heads().values())

    def cleanup(self, older_than: float = DAY) -> Cleaned:
        """Remove what killed writers left, and contents and commits that no branch reaches.

        Writers wait meanwhile, so a content that is about to be committed is safe. What only a branch had that was
        deleted by force is gone for good, its commit ids included.

        Args:
            older_than: Seconds; what was written later stays.

        Raises:
            StoreCorrupt: The tree is damaged, so that it is not known what is needed; nothing but half-written files of
                killed writers was removed.
            RepositoryBusy: A program outside this package holds the repository.
        """
        self._require()
        done = child.call("cleanup", self._store, seconds=self.timeout, older_than=older_than)
        return Cleaned(*(Size(*done[part]) for part in Cleaned._fields))

    def change_stamp(self) -> str:
        """Return a text that changes whenever any branch does, for the price of a few ``stat`` calls.

        It may change without need, as when a foreign program opens the repository; reading here never changes it.
        """
        return self._refs.stamp()

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


def _refuse_blank(**texts: str) -> None:
    for what, text in texts.items():
        if not text.strip() or "\0" in text:
            raise UnsafePath(f"the {what} of a commit must not be blank or contain NUL; give one.")
