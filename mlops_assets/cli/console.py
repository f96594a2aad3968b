"""What the commands share: two consoles, and how an error looks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

out: Final = Console(soft_wrap=True, emoji=False)
err: Final = Console(stderr=True, soft_wrap=True, emoji=False)


def fail(error: Exception) -> None:
    """Print an error as its sentence alone."""
    err.print(Text.assemble(("error: ", "bold red"), str(error)))


@contextmanager
def progress_of_runs() -> Iterator[None]:
    """Show what the stages of a run log, as it happens."""
    handler = RichHandler(console=out, show_path=False, show_level=False, markup=False, log_time_format="%H:%M:%S")
    logger = logging.getLogger("mlops_assets")
    logger.addHandler(handler)
    logger.propagate = False  # MLflow's import gives the root logger a handler of its own
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(handler)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for something counted in bytes; yields what is to be told how many are done, and of how many."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
