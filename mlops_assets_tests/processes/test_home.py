"""A home that cannot be used is one sentence on standard error, in every command."""

import os
import subprocess
from pathlib import Path

import pytest

from mlops_assets_tests.processes.project import script

COMMANDS = (["up"], ["run", "iris"], ["status"], ["data", "import", "iris"])


def refused(command: list[str], **variables: str) -> str:
    """What a command says that must fail."""
    done = subprocess.run(
        [script("mlops"), *command],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_home_below_a_file(command: list[str]) -> None:
    told = refused(command, MLOPS_HOME="/dev/null/x")
    assert told == (
        "error: the home /dev/null/x cannot be written (Not a directory); mend its rights or set MLOPS_HOME elsewhere\n"
    )


def test_a_home_where_nothing_can_be_made() -> None:
    assert refused(["up"], MLOPS_HOME="/proc/x").startswith("error: the home /proc/x cannot be written (")


@pytest.mark.skipif(os.geteuid() == 0, reason="rights do not stop root")
def test_a_home_that_was_writable_once(tmp_path: Path) -> None:
    home = tmp_path / "sealed"
    (home / "dagster").mkdir(parents=True)
    (home / "dagster" / "dagster.yaml").touch()
    home.chmod(0o555)
    try:
        assert "cannot be written" in refused(["up"], MLOPS_HOME=str(home))
    finally:
        home.chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"), [("telemetry: {enabld: false}", 'unexpected config entry "enabld"'), ("a: [b", "expected ','")]
)
def test_a_broken_dagster_yaml(tmp_path: Path, text: str, said: str) -> None:
    folder = tmp_path / "home" / "dagster"
    folder.mkdir(parents=True)
    (folder / "dagster.yaml").write_text(text)
    told = refused(["status"])
    assert told.startswith(f"error: Dagster cannot start from {folder} (")
    assert said in told
    assert told.endswith("mend its dagster.yaml, or DAGSTER_HOME\n")


@pytest.mark.slow
def test_a_dagster_home_that_is_not_there() -> None:
    assert '"relative" must be an absolute path' in refused(["status"], DAGSTER_HOME="relative")
