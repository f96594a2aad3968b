"""`mlops data branches|branch|merge|fsck|growth|cleanup`: the Oxen repository of a pipeline, as a whole.

Belongs here: what a person types and reads. Does not: how it is done (`oxen/`), and the data themselves (`data.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape
from rich.table import Table

from mlops_assets.cli.console import out, progress_bar
from mlops_assets.cli.data import PipelineName, existing
from mlops_assets.home import ensure_home
from mlops_assets.pipeline import own_pipeline

if TYPE_CHECKING:
    from mlops_assets.oxen.growth import Size

SHOWN: Final = 20
HOUR: Final = 3600.0


def branches(name: PipelineName) -> None:
    """List the branches, each with its newest commit and how it stands to main."""
    pipeline, repository = existing(own_pipeline(name), ensure_home())
    table = Table("branch", "commit", "when (UTC)", "ahead", "behind", "message")
    for one in repository.branches():
        followed = " (followed)" if one.name == pipeline.spec.data.branch else ""
        when, head = f"{one.head.timestamp:%Y-%m-%d %H:%M:%S}", one.head.id[:12]
        table.add_row(
            escape(one.name) + followed, head, when, str(one.ahead), str(one.behind), escape(one.head.message)
        )
    out.print(table)


def branch(
    name: PipelineName,
    new: Annotated[str, typer.Argument(metavar="BRANCH", help="Name of the branch.")],
    source: Annotated[str, typer.Option("--from", help="A branch or a commit to begin from.")] = "main",
    delete: Annotated[bool, typer.Option("--delete", help="Delete the branch instead.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --delete: also commits that no other branch has.")
    ] = False,
) -> None:
    """Create a branch, or delete one; `branch:` in defs.yaml says which one a pipeline follows."""
    _, repository = existing(own_pipeline(name), ensure_home())
    if delete:
        repository.delete_branch(new, force=force)
        out.print(f"deleted branch {new}", markup=False)
    else:
        repository.create_branch(new, source)
        out.print(f"created branch {new} at {repository.resolve(new)[:12]}", markup=False)


def merge(
    name: PipelineName,
    source: Annotated[str, typer.Argument(metavar="BRANCH", help="The branch whose changes are wanted.")],
    into: Annotated[str, typer.Option(help="The branch that gets them.")] = "main",
    message: Annotated[str, typer.Option("--message", "-m", help="Of the new commit, if there is one.")] = "",
) -> None:
    """Merge a branch into another; a file that both have changed is a conflict, and then nothing is changed."""
    _, repository = existing(own_pipeline(name), ensure_home())
    made = repository.merge(source, into, message)
    if made is None:
        out.print(f"nothing to merge: {into} has all of {source} already", markup=False)
    else:
        out.print(f"[green]merged[/green] {escape(source)} into {escape(into)}: {made.id[:12]} {escape(made.message)}")


def fsck(
    name: PipelineName,
    history: Annotated[bool, typer.Option("--history", help="All commits, not only the branches' heads.")] = False,
    heal: Annotated[
        bool, typer.Option("--heal", help="Put lost files back from verified copies in the cache, or from --given.")
    ] = False,
    given: Annotated[
        list[Path] | None, typer.Option(help="With --heal: a file, or a directory, that may still have them.")
    ] = None,
) -> None:
    """Read and hash everything that is committed; exits with 1 when something is damaged."""
    here = ensure_home()
    _, repository = existing(own_pipeline(name), here)
    with progress_bar("reading") as tell:
        found = repository.fsck(history=history, progress=tell)
    if heal and not found.sound:
        before = len(found.losses)
        found = repository.heal(found, here.home / "cache", given or [])
        out.print(f"{before - len(found.losses)} of {before} lost files are back")
    for loss in found.losses[:SHOWN]:
        out.print(f"{loss.entry.path} {loss.what}, in {len(loss.places)} place(s)", markup=False)
    for hole in found.holes[:SHOWN]:
        out.print(f"commit {hole.commit[:12]}, {hole.path or 'all of it'}: {hole.what}", markup=False)
    for lost, head in found.lost_branches:
        out.print(f"branch {lost} points to {head[:12]}, which is not there", markup=False)
    if not found.sound:
        for remedy in found.remedies:
            out.print(f"[yellow]{escape(remedy)}[/yellow]")
        raise typer.Exit(1)
    out.print(f"{found.contents:,} files ({_size(found.bytes)}) of {found.commits:,} commit(s) are whole", markup=False)


def growth(name: PipelineName) -> None:
    """Tell what the repository takes on disk, per commit too, and what of it no branch needs."""
    _, repository = existing(own_pipeline(name), ensure_home())
    found = repository.growth()
    table = Table("part", "files", "size", "what it is")
    for part, size, what in (
        ("versions", found.versions, "contents, each stored once and whole"),
        ("tree", found.tree, "which commit has which file"),
        ("history", found.history, "Oxen's index of directories, per commit"),
        ("work", found.work, "of writers at work, or killed"),
        ("unreferenced", found.unreferenced, "of the contents: those that no commit refers to"),
        ("leftovers", found.leftovers, "of the contents: what killed writers left half-written"),
    ):
        table.add_row(part, f"{size.files:,}", _size(size.bytes), what)
    out.print(table)
    out.print(f"{_size(found.bytes)} in all, {_size(found.bytes_per_commit)} for each of {found.commits:,} commit(s)")


def cleanup(
    name: PipelineName,
    hours: Annotated[float, typer.Option(min=0, help="What was written in the last so many hours stays.")] = 24.0,
) -> None:
    """Remove what killed writers left, and contents that no branch refers to."""
    _, repository = existing(own_pipeline(name), ensure_home())
    with out.status("looking for what nobody needs ..."):
        done = repository.cleanup(hours * HOUR)
    parts = {
        "worktrees of killed writers": done.worktrees,
        "half-written contents": done.leftovers,
        "contents that no commit refers to": done.contents,
        "indices of commits that no branch has": done.commits,
    }
    removed = [f"{what}: {_told(size)}" for what, size in parts.items() if size.files]
    out.print("removed " + "; ".join(removed) if removed else "nothing to remove", markup=False)


def _told(size: Size) -> str:
    return f"{size.files:,} files, {_size(size.bytes)}"


def _size(count: float) -> str:
    from rich.filesize import decimal

    return decimal(int(count))
