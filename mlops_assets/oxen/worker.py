"""The child process that alone calls Oxen: one operation, then exit.

Oxen keeps RocksDB's lock on the branches until its process ends, freezes all threads while it works, reports bad input
by Rust panics, and dies with the process when a database is damaged. So each operation runs here, started by
``child.call`` as ``python -I -S worker.py``: without site-packages, and with Oxen's extension module loaded from its
file, a whole operation takes about 30 ms.

Reads from stdin one line of JSON and the bytes it announces, answers with one marked line on stdout (Oxen prints to
stdout as well). Writers hold ``.oxen/mlops/lock`` from the moment they say so until they exit; whatever lies in
``.oxen/mlops/work`` when the lock is taken was left behind by a killed writer and is removed.

Commits are made in a worktree of links to the repository's stores that holds the changed files alone: nothing is ever
checked out. Not here: anything that only reads versions (``tree``), and checks of the caller's input (``inputs``).
"""

# Importing pathlib would cost this process 5 of its 30 ms.
# ruff: noqa: PTH103, PTH105, PTH106, PTH108, PTH110, PTH112, PTH114, PTH116, PTH120, PTH123, PTH211

from __future__ import annotations

import fcntl
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
from typing import Any, NamedTuple, Self

ANSWER = "\x1emlops-answer "
LOCKED = "\x1emlops-locked"
_VNODE_SIZE = 1000  # files per bucket: a commit rewrites the buckets it touches, 0.45 MB instead of 2 MB by default
_FOREIGN_LOCK_SECONDS = 10.0
_BULK = 8  # from here one call for the directory (0.5 ms a file) beats one per file (2 to 6 ms)


class _Source(NamedTuple):
    path: str
    local: str | None
    content: bytes
    hash: str
    size: int
    stamp: list[int]


def main() -> None:
    """Serve the one request on stdin."""
    request = json.loads(sys.stdin.buffer.readline())
    payload = sys.stdin.buffer.read(request["payload"])
    # The default action of SIGALRM ends the process even in the middle of Rust, and even when the parent is gone.
    signal.setitimer(signal.ITIMER_REAL, request["seconds"])
    sys.path.extend(request["sys_path"])
    answer: dict[str, Any]
    try:
        answer = {"value": _OPERATIONS[request["operation"]](request, payload)}
    except BaseException as error:  # noqa: BLE001 -- a Rust panic is a BaseException
        answer = {"error": type(error).__name__, "text": str(error)}
    _say(ANSWER + json.dumps(answer))


def _init(request: dict[str, Any], _: bytes) -> None:
    store: str = request["store"]
    os.makedirs(f"{store}/mlops", exist_ok=True)
    with _Work(store) as work:
        if os.path.exists(f"{store}/config.toml"):
            return
        _extension(request).PyRepo(work.root).init()
        with open(f"{work.root}/.oxen/config.toml") as stream:
            lines = [line for line in stream if not line.startswith("vnode_size")]
        with open(f"{work.root}/config.toml", "w") as stream:
            stream.writelines(
                [f"vnode_size = {_VNODE_SIZE}\n", *lines]
            )  # first: below a [table] it would belong to that
        os.replace(f"{work.root}/config.toml", f"{store}/config.toml")


def _heads(request: dict[str, Any], _: bytes) -> dict[str, str]:
    """List the branches of a private copy of the refs: takes no lock and leaves no trace in the repository."""
    return _opened(_extension(request).PyRepo(request["view"]))


def _branch(request: dict[str, Any], _: bytes) -> None:
    from mlops_assets.oxen.errors import OxenError

    name: str = request["name"]
    with _Work(request["store"]) as work:
        work.link()
        repo = _extension(request).PyRepo(work.root)
        if name in _opened(repo):
            raise OxenError(f"the branch {name!r} exists already; choose another name.")
        work.set_head(request["commit"])
        repo.checkout(name, True)
        if _branches(repo).get(name) != request["commit"]:
            raise OxenError(f"Oxen did not create the branch {name!r}; try again.")


def _commit(request: dict[str, Any], payload: bytes) -> str | None:
    from mlops_assets.oxen.errors import InputChanged, OxenError, RevisionNotFound, StoreCorrupt
    from mlops_assets.oxen.tree import Tree, signed

    files = _sources(request["files"], payload)
    branch: str = request["branch"]
    with _Work(request["store"]) as work:
        work.link()
        oxen = _extension(request)
        repo = oxen.PyRepo(work.root)
        heads = _opened(repo)
        if branch not in heads and (heads or branch != "main"):
            raise RevisionNotFound(
                f"there is no branch {branch!r}; create it first (a new repository begins with 'main')."
            )
        if heads:
            work.set_head(branch)  # without a HEAD, the first commit creates "main"
            if not os.path.isdir(f"{request['store']}/history/{heads[branch]}"):
                raise StoreCorrupt(f"the history of {branch!r} is missing; restore .oxen/history from a backup.")
        tree = Tree(_path(request["store"]))
        old = {entry.path: entry for entry in tree.entries(heads[branch])} if heads else {}
        removals, removed = _removals(request["remove"], old, files)
        _refuse_clashes(files, set(old), removed)
        wanted = {path: entry.hash for path, entry in old.items() if path not in removed}
        changed = {path for path, source in files.items() if wanted.get(path) != source.hash}
        wanted |= {path: source.hash for path, source in files.items()}
        lost = {source.path for source in files.values() if not _stored(tree, source)}
        if not (changed or lost or removed):
            return None
        for path in removals:
            repo.rm(path, True, True, True)
        for path, sources in _batches([files[path] for path in sorted(changed | lost)], set(old)):
            for source in sources:
                # Oxen takes a file of the old size and time for unchanged; a copy has a time of its own
                work.place(source, copy=source.path in old and old[source.path].bytes == source.size)
            repo.add(_literally(f"{work.root}/{path}"))
        for source in files.values():
            if source.local is not None and _stamp(source.local) != source.stamp:
                raise InputChanged(
                    f"{source.local} was modified while it was being committed; nothing was committed, "
                    "so commit again when its writer is done."
                )
        if not all(_stored(tree, source) for source in files.values()):
            raise OxenError(
                "Oxen did not store all content; nothing was committed, so check the disk and commit again."
            )
        if not (changed or removed):
            return None  # adding restored lost content; the version is the same
        oxen.user.config_user(request["author"], request["email"], f"{work.home}/user_config.toml")
        done: str = repo.commit(signed(request["message"], work.token)).id
        found = {entry.path: entry.hash for entry in tree.entries(done)}
        if _branches(repo).get(branch) != done or found != wanted:
            odd = sorted(path for path in found.keys() | wanted.keys() if found.get(path) != wanted.get(path))
            raise OxenError(f"Oxen's commit {done} on {branch!r} is not what was asked ({odd[:3]}); commit again.")
        return done


def _removals(remove: list[str], old: dict[str, Any], files: dict[str, _Source]) -> tuple[list[str], set[str]]:
    """Return the calls to make and the files that go, those given anew excepted."""
    from mlops_assets.oxen.errors import PathNotFound, UnsafePath

    calls: list[str] = []
    gone: set[str] = set()
    if "" in remove:
        remove = sorted({path.partition("/")[0] for path in old})
    found: dict[str, set[str]] = {path: set() for path in remove}
    for path in old:
        for place in (path, *_parents(path)):
            if place in found:
                found[place].add(path)
    for path, below in found.items():
        if not below:
            raise PathNotFound(f"{path!r} is to be removed but is not there; check its spelling.")
        gone |= below - files.keys()
        calls += sorted(below - files.keys()) if below & files.keys() else [path]
    for path in calls:
        if set(path) & set("*?[]"):
            raise UnsafePath(f"{path!r} cannot be removed alone, as Oxen takes it for a pattern; remove its directory.")
    return list(dict.fromkeys(calls)), gone


def _refuse_clashes(files: dict[str, _Source], old: set[str], removed: set[str]) -> None:
    from mlops_assets.oxen.errors import UnsafePath

    remaining = old - removed
    directories = {parent for path in old for parent in _parents(path)}
    for path in files:
        if path in directories:  # Oxen drops a file that takes the place of a directory in the same commit
            raise UnsafePath(f"{path!r} is a directory there; remove it in a commit of its own, then add the file.")
        if clash := remaining.intersection(_parents(path)):
            raise UnsafePath(f"{min(clash)!r} is a file there; remove it in the same commit to add {path!r}.")


def _batches(sources: list[_Source], old: set[str]) -> list[tuple[str, list[_Source]]]:
    """Return what to add in one call each: whole directories that are new, else single files.

    Adding a directory that the branch has already would remove what the worktree lacks, and Oxen loses one change in
    some of these calls; adding single files, or a directory that is new, it does reliably.
    """
    occupied = {parent for path in old for parent in _parents(path)}
    number: dict[str, int] = {}
    for source in sources:
        for parent in _parents(source.path):
            number[parent] = number.get(parent, 0) + 1
    worth = {path for path, count in number.items() if count >= _BULK} - occupied - old
    whole: dict[str, list[_Source]] = {}
    single: list[tuple[str, list[_Source]]] = []
    for source in sources:
        top = next((parent for parent in reversed(_parents(source.path)) if parent in worth), None)
        if top is None:
            single.append((source.path, [source]))
        else:
            whole.setdefault(top, []).append(source)
    return [*whole.items(), *single]


def _parents(path: str) -> list[str]:
    """Return the directories above a path, nearest first, the root ("") last."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]


class _Work:
    """The lock and a private directory under it, holding a worktree and a home for Oxen's configuration."""

    def __init__(self, store: str) -> None:
        self._store = store
        self.token = os.urandom(8).hex()
        self._place = f"{store}/mlops/work/{self.token}"
        self.root = f"{self._place}/tree"
        self.home = f"{self._place}/home"

    def __enter__(self) -> Self:
        self._lock = os.open(f"{self._store}/mlops/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # waits in the kernel: polling starves whoever asks least often
        _say(LOCKED)
        _remove(f"{self._store}/mlops/work")
        os.makedirs(f"{self.root}/.oxen")
        os.makedirs(self.home)
        os.environ["HOME"] = os.environ["OXEN_CONFIG_DIR"] = self.home
        return self

    def __exit__(self, *_: object) -> None:
        _remove(self._place)  # the lock itself ends with the process, as Oxen's does

    def link(self) -> None:
        from mlops_assets.oxen.errors import StoreCorrupt

        if not os.path.exists(f"{self._store}/refs/CURRENT") and os.path.isdir(f"{self._store}/history"):
            raise StoreCorrupt("there are commits but no branches; restore .oxen/refs from a backup.")
        for name in ("versions", "tree", "history", "refs"):
            os.makedirs(f"{self._store}/{name}", exist_ok=True)
            os.symlink(f"{self._store}/{name}", f"{self.root}/.oxen/{name}")
        _copy(f"{self._store}/config.toml", f"{self.root}/.oxen/config.toml")

    def set_head(self, revision: str) -> None:
        with open(f"{self.root}/.oxen/HEAD", "w") as stream:
            stream.write(revision)

    def place(self, source: _Source, *, copy: bool) -> None:
        target = f"{self.root}/{source.path}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if source.local is None:
            with open(target, "wb") as stream:
                stream.write(source.content)
        elif copy:
            _copy(source.local, target)
        else:
            os.symlink(source.local, target)


def _opened(repo: Any) -> dict[str, str]:
    """List the branches, after waiting for a foreign program that has the repository open."""
    from mlops_assets.oxen.errors import RepositoryBusy, StoreCorrupt

    end = time.monotonic() + _FOREIGN_LOCK_SECONDS
    while True:
        try:
            return _branches(repo)
        except ValueError as error:
            if "LOCK" not in str(error):
                text = f"the database of the branches is damaged ({error}); restore .oxen/refs from a backup."
                raise StoreCorrupt(text) from error
            if time.monotonic() > end:
                raise RepositoryBusy(
                    "another program has the repository open; end it, as Oxen locks until exit."
                ) from error
            time.sleep(0.05)


def _branches(repo: Any) -> dict[str, str]:
    return {branch.name: branch.commit_id for branch in repo.list_branches()}


def _stored(tree: Any, source: _Source) -> bool:
    """Tell whether content of the right size is in the store; content of another size is removed as damaged."""
    blob = tree.blob(source.hash)
    try:
        if os.stat(blob).st_size == source.size:
            return True
        os.unlink(blob)
    except FileNotFoundError:
        pass
    return False


def _sources(listed: list[list[Any]], payload: bytes) -> dict[str, _Source]:
    found: dict[str, _Source] = {}
    start = 0
    for path, local, content_hash, size, stamp in listed:
        end = start if local is not None else start + size
        found[path] = _Source(path, local, payload[start:end], content_hash, size, stamp)
        start = end
    return found


def _stamp(local: str) -> list[int] | None:
    from mlops_assets.oxen.inputs import stamp

    try:
        return list(stamp(os.stat(local)))
    except OSError:
        return None


def _extension(request: dict[str, Any]) -> Any:
    """Load Oxen's compiled module alone: the Python package around it takes ten times as long."""
    loader = importlib.machinery.ExtensionFileLoader("oxen_py", request["extension"])
    spec = importlib.util.spec_from_file_location("oxen_py", request["extension"], loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _literally(path: str) -> str:
    """Quote what Oxen would take for a pattern, in the part of the path that is not ours to choose."""
    return "".join(f"[{letter}]" if letter in "*?[]" else letter for letter in path)


def _path(text: str) -> Any:
    from pathlib import Path

    return Path(text)


def _copy(source: str, target: str) -> None:
    with open(source, "rb") as one, open(target, "wb") as two:
        while chunk := one.read(1 << 20):
            two.write(chunk)


def _remove(top: str) -> None:
    for directory, below, files in os.walk(top, topdown=False):
        for name in files:
            os.unlink(f"{directory}/{name}")
        for name in below:
            path = f"{directory}/{name}"
            (os.unlink if os.path.islink(path) else os.rmdir)(path)
    if os.path.isdir(top):
        os.rmdir(top)


def _say(line: str) -> None:
    sys.stdout.write(f"\n{line}\n")
    sys.stdout.flush()


_OPERATIONS = {"init": _init, "heads": _heads, "branch": _branch, "commit": _commit}

if __name__ == "__main__":
    main()
