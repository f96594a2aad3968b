"""The command line in this process, with a home of its own and no Dagster that could answer."""

import socket
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import pytest
import typer.main

from mlops_assets.cli import console, main


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Mlops = Callable[..., Ended]

_made_once = cache(typer.main.get_command)
"""Typer makes all commands anew at each call, which takes longer than most commands."""


@pytest.fixture
def mlops(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Mlops]:
    monkeypatch.setattr(typer.main, "get_command", _made_once)
    for each in (console.out, console.err):
        monkeypatch.setattr(each, "_width", 200)  # made when first imported, with the terminal's width of then
    with socket.socket() as taken:  # bound, but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLOPS_DAGSTER_PORT", str(taken.getsockname()[1]))

        def call(*arguments: object) -> Ended:
            monkeypatch.setattr(sys, "argv", ["mlops", *map(str, arguments)])
            with pytest.raises(SystemExit) as ended:
                main()
            code = ended.value.code
            return Ended(code if isinstance(code, int) else 0, *capsys.readouterr())

        yield call
