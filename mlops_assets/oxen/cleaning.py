"""The worker's operation ``cleanup``: removing what no commit of any branch needs.

Nothing that is needed can go. The operation holds the repository's lock, so no writer of this package is between
storing a content and committing it; and Oxen's own, so no foreign program is. A content is removed only if every
commit of every branch could be read and none refers to it. What a foreign program has staged and not committed is in no
commit, so where something is staged, or a server's workspace is open, contents stay; so they do where there is no
branch at all, which the loss of all branches looks like.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from mlops_assets.oxen.growth import Size, referenced, stored
from mlops_assets.oxen.tree import Tree
from mlops_assets.oxen.work import Request, Work


def cleanup(request: Request, _: bytes) -> dict[str, Size]:
    """Remove what is older than ``older_than`` seconds and not needed; returns what that was."""
    with Work(request) as work:
        store = Path(work.store)
        heads = work.open()
        commits, needed = referenced(Tree(store), heads.values())
        oldest = time.time() - request["older_than"]
        known = bool(heads) and not any((store / name).is_dir() for name in ("staged", "workspaces"))
        contents = leftovers = Size()
        for file in stored(store):
            if file.modified > oldest or (file.hash in needed and not file.leftover):
                continue
            if file.leftover:
                leftovers = leftovers.plus(file.bytes)
            elif known:
                contents = contents.plus(file.bytes)
            else:
                continue
            file.path.unlink()
            with contextlib.suppress(OSError):  # something else lies there
                file.path.parent.rmdir()
                file.path.parent.parent.rmdir()
        return {
            "worktrees": Size(*work.removed),
            "leftovers": leftovers,
            "contents": contents,
            "commits": _remove_commits(store, commits, oldest) if heads else Size(),
        }


def _remove_commits(store: Path, needed: set[str], oldest: float) -> Size:
    """Remove the indices of commits that no branch has, such as one whose writer was killed before the branch moved."""
    removed = Size()
    for place in (store / "history").iterdir() if (store / "history").is_dir() else ():
        if place.name not in needed and place.stat().st_mtime <= oldest:
            removed = removed.plus(sum(item.lstat().st_size for item in place.rglob("*") if item.is_file()))
            shutil.rmtree(place)
    return removed
