"""The worker's operations on branches, and the making of a repository."""

# Importing pathlib would cost the worker 5 of its 30 ms.
# ruff: noqa: PTH103, PTH105, PTH110, PTH123

from __future__ import annotations

import os

from mlops_assets.oxen.errors import OxenError, RevisionNotFound, StoreCorrupt
from mlops_assets.oxen.work import ASIDE, Request, Work, branches, extension, opened

_VNODE_SIZE = 1000  # files per bucket: a commit rewrites the buckets it touches, 0.45 MB instead of 2 MB by default


def init(request: Request, _: bytes) -> None:
    """Make a repository unless there is one."""
    store: str = request["store"]
    os.makedirs(f"{store}/mlops", exist_ok=True)
    with Work(request) as work:
        if os.path.exists(f"{store}/config.toml"):
            return
        extension(request).PyRepo(work.root).init()
        with open(f"{work.root}/.oxen/config.toml") as stream:
            lines = [line for line in stream if not line.startswith("vnode_size")]
        with open(f"{work.root}/config.toml", "w") as stream:
            stream.writelines(
                [f"vnode_size = {_VNODE_SIZE}\n", *lines]
            )  # first: below a [table] it would belong to that
        os.replace(f"{work.root}/config.toml", f"{store}/config.toml")


def heads(request: Request, _: bytes) -> dict[str, str]:
    """List the branches of a private copy of the refs: takes no lock and leaves no trace in the repository."""
    found = opened(extension(request).PyRepo(request["view"]), request["foreign_seconds"])
    return {name: commit for name, commit in found.items() if not name.startswith(ASIDE)}


def branch(request: Request, _: bytes) -> None:
    """Create a branch at a commit."""
    name: str = request["name"]
    with Work(request) as work:
        if name in work.open():
            raise OxenError(f"the branch {name!r} exists already; choose another name.")
        work.tell("HEAD", request["commit"])
        work.repo.checkout(name, True)
        if branches(work.repo).get(name) != request["commit"]:
            raise OxenError(f"Oxen did not create the branch {name!r}; try again.")


def delete(request: Request, _: bytes) -> None:
    """Delete a branch; without ``force`` only one whose commits another branch has."""
    from pathlib import Path

    from mlops_assets.oxen.tree import Tree

    name: str = request["name"]
    with Work(request) as work:
        found = work.open()
        if name not in found:
            raise RevisionNotFound(f"there is no branch {name!r}; there are: {', '.join(sorted(found))}.")
        head = found.pop(name)
        tree = Tree(Path(work.store))
        if not tree.has_commit(head):
            raise StoreCorrupt(
                f"the branch {name!r} points to no commit; restore .oxen/refs and .oxen/tree from one backup."
            )
        held = any(head == commit.id for other in set(found.values()) for commit in tree.log(other))
        if not (held or request["force"]):
            raise OxenError(
                f"the branch {name!r} has commits that no other branch has; merge it first, or force its deletion."
            )
        work.delete(name, head)
        if name in branches(work.repo):
            raise OxenError(f"Oxen did not delete the branch {name!r}; try again.")
