"""What MkDocs asks while it builds: the references are written from the code, so that they cannot be out of date.

Belongs here: the text of the pages "Commands" and "Settings". Not here: how they look (the theme).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

COMMANDS: Final = "<!-- the commands -->"
SETTINGS: Final = "<!-- the settings -->"
BAR: Final = "\\|"
"""A bar within a cell of a table."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what is written from the code."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n".join(commands()))
    if SETTINGS in markdown:
        markdown = markdown.replace(SETTINGS, "\n".join(settings()))
    return markdown


def commands() -> Iterator[str]:
    """A section for each command: what it does, its arguments and its options, as `--help` tells them."""
    import click
    import typer

    from mlops_assets.cli import app

    for name, command in _leaves(typer.main.get_command(app), "mlops"):
        context = click.Context(command)
        usage = " ".join([name, *command.collect_usage_pieces(context)])
        yield f"## {name}\n\n```text\n{usage}\n```\n\n{_text(command.help or '')}\n"
        if command.epilog:
            yield f"{_text(command.epilog)}\n"
        rows = [_row(one, context) for one in command.params if "--help" not in one.opts]
        yield "\n".join(["| | |\n| --- | --- |", *rows, ""] if rows else [])


def settings() -> Iterator[str]:
    """A table of all variables."""
    from mlops_assets.settings import PROJECT, Settings

    yield "| variable | default | meaning |\n| --- | --- | --- |"
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias or f"MLOPS_{name.upper()}"
        default = field.get_default()
        shown = str(default.relative_to(PROJECT) if isinstance(default, Path) else default)
        yield f"| `{variable}` | {f'`{shown}`' if shown else ''} | {field.description} |"


def _leaves(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _row(parameter: Any, context: Any) -> str:
    """An argument or an option as a row of a table."""
    option = parameter.param_type_name == "option"
    shown = ", ".join(sorted(parameter.opts, key=len)) if option else parameter.make_metavar(context)
    if option and not parameter.is_flag:
        shown += f" {parameter.make_metavar(context)}"
    told = [_text(parameter.help or "")]
    if option and parameter.required:
        told.append("Required.")
    if option and not parameter.is_flag and parameter.default not in {None, ""}:
        told.append(f"Default: `{parameter.default}`.")
    cells = (f"`{shown}`", " ".join(told))
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"


def _text(help_text: str) -> str:
    """Rich's markup as Markdown."""
    return re.sub(r"\[/?bold\]", "`", inspect.cleandoc(help_text)).strip()
