"""A reader who types every command of a page, in a checkout and a home of his own, and compares what is printed."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from mlops_assets.settings import PROJECT
from mlops_assets_tests.docs.pages import Fence, Page, printed
from mlops_assets_tests.docs.shell import PORTS, Shell
from mlops_assets_tests.processes.conftest import free_ports
from mlops_assets_tests.processes.project import copy_package, kill_all

HOME: Final = ".mlops"
HIDDEN: Final = ("MLOPS_", "DAGSTER_", "MLFLOW_", "HF_")


@dataclass(frozen=True)
class Reader:
    """A checkout with its home in it.

    Attributes:
        root: The folder of the checkout.
    """

    root: Path

    @classmethod
    def new(cls, root: Path, store: Path) -> Self:
        """A checkout as it is cloned and installed, without any data.

        Args:
            root: Where to make it.
            store: A home whose MLflow database is ready: making one takes two seconds.
        """
        copy_package(root)
        shutil.copytree(PROJECT / "docs" / "examples", root / "docs" / "examples")
        (root / ".venv").symlink_to(Path(sys.prefix))
        shutil.copytree(store, root / HOME)
        return cls(root)

    def another(self, root: Path) -> Self:
        """A copy with all that this one has done."""
        shutil.copytree(self.root, root, symlinks=True, ignore=shutil.ignore_patterns("*.lock"))
        return type(self)(root)

    def read(self, page: Page) -> None:
        """Type the commands of a page in their order, and compare; nothing that they start is left.

        Raises:
            AssertionError: A command failed where the page shows no error, or printed something else.
        """
        shell = Shell(self.root, self.environment())
        try:
            for fence in page.consoles:
                self._type(page, fence, shell)
        finally:
            shell.close()
            kill_all(self.root / HOME)

    def _type(self, page: Page, fence: Fence, shell: Shell) -> None:
        for command in fence.first:
            code, told = shell.run(command, None)
            assert code == 0, f"{page.name}:{fence.line}: {command!r} ended with {code}\n{told}"
        for command in () if fence.not_run else fence.commands:
            where, pattern = f"{page.name}:{command.line}: {command.text!r}", command.pattern()
            code, told = shell.run(command.text, pattern)
            shows_an_error = any(line.startswith("error: ") for line in command.printed)
            assert (code != 0) == shows_an_error, f"{where} ended with {code}\n{told}"
            if command.printed:
                assert pattern.fullmatch(printed(told)), f"{where} printed\n{told}\nwhich is not\n{pattern.pattern}"

    def environment(self) -> dict[str, str]:
        """The variables of the reader's shell: nothing of a developer's set-up, and ports of its own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
        return kept | {
            "COLUMNS": "100",
            "MLOPS_HOME": str(self.root / HOME),
            "PATH": f"{self.root / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.root),
            "PYTHONWARNINGS": "",
            "USER": "tom",
            "LOGNAME": "tom",
            **{variable: str(port) for variable, port in zip(PORTS.values(), free_ports(len(PORTS)), strict=True)},
        }
