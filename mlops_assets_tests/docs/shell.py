"""One bash for the commands of a page, as a reader has one terminal: folders, variables and background jobs stay."""

import codecs
import os
import re
import secrets
import select
import subprocess
import time
from pathlib import Path
from typing import Final

PORTS: Final = {"3000": "MLOPS_DAGSTER_PORT", "5000": "MLOPS_MLFLOW_PORT", "8000": "MLOPS_SERVE_PORT"} | {
    "8001": "MLOPS_GRPC_PORT",
    "8080": "MLOPS_PORTAL_PORT",
}
"""The ports that pages show, and the variables by which a test has others."""


class Shell:
    """A shell without a terminal; what its commands print and their errors come in one stream.

    Args:
        folder: Where it starts.
        environment: Its variables; those of `PORTS` say which ports stand for those of the pages.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._ports = {shown: environment[variable] for shown, variable in PORTS.items()}
        self._folder = str(folder)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, command: str, expected: "re.Pattern[str] | None", timeout: float = 300) -> tuple[int, str]:
        """Run a command to its end; one that ends in `&` until it has printed what is expected.

        Returns:
            Its exit code and what it printed, with the ports that the page shows.
        """
        from mlops_assets_tests.docs.pages import printed

        assert self._bash.stdin
        background = command.rstrip().endswith("&")
        mark = secrets.token_hex(8)
        self._bash.stdin.write(f"{self._translated(command)}\necho {mark} $?\n".encode())
        self._bash.stdin.flush()
        output, deadline = "", time.monotonic() + timeout
        while time.monotonic() < deadline:
            output += self._read(min(1.0, deadline - time.monotonic()))
            ended = re.search(rf"{mark} (\d+)\n", output)
            if ended:
                told = self._shown(output.replace(ended.group(), ""))
                if not background or expected is None or expected.fullmatch(printed(told)):
                    return int(ended[1]), told
        raise AssertionError(f"{command!r} did not end within {timeout:.0f} s; it printed:\n{self._shown(output)}")

    def close(self) -> None:
        """End the shell; what it has started is the caller's to end, and may hold its output open."""
        self._bash.kill()
        self._bash.wait()
        for pipe in (self._bash.stdin, self._bash.stdout):
            assert pipe
            pipe.close()

    def _read(self, seconds: float) -> str:
        assert self._bash.stdout
        ready, _, _ = select.select([self._bash.stdout], [], [], seconds)
        return self._decoder.decode(os.read(self._bash.stdout.fileno(), 1 << 16)) if ready else ""

    def _translated(self, command: str) -> str:
        for shown, port in self._ports.items():
            command = re.sub(rf"\b(localhost|127\.0\.0\.1):{shown}\b", rf"\1:{port}", command)
        return command

    def _shown(self, output: str) -> str:
        for shown, port in self._ports.items():
            output = re.sub(rf"(:|\bport ){port}\b", rf"\g<1>{shown}", output)
        return output.replace(f"{self._folder}/", "")
