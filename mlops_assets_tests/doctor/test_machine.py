"""What the platform stands on, looked at while something about it is wrong."""

import errno
import fcntl
import os
import re
import sys
import time
from pathlib import Path

import pytest

from mlops_assets.doctor import machine
from mlops_assets.doctor.examination import Finding, findings
from mlops_assets.settings import PROJECT
from mlops_assets_tests.faults import small_disk


def only(found: object) -> Finding:
    (one,) = found  # type: ignore[misc]
    return one


def project(folder: Path, *dependencies: str, python: str = ">=3.11") -> Path:
    """A checkout that wants this Python and these packages."""
    wanted = ", ".join(f'"{one}"' for one in dependencies)
    text = f'[project]\nname = "x"\nrequires-python = "{python}"\ndependencies = [{wanted}]\n'
    (folder / "pyproject.toml").write_text(text)
    return folder


def test_this_environment_is_the_one_that_is_tested() -> None:
    assert only(machine.python(PROJECT)).result == "ok"
    assert only(machine.packages(PROJECT)).result == "ok"


def test_without_a_checkout_the_installed_package_says_what_it_wants(tmp_path: Path) -> None:
    assert only(machine.python(tmp_path)) == only(machine.python(PROJECT))
    assert only(machine.packages(tmp_path)).result == "ok"


def test_another_python(tmp_path: Path) -> None:
    found = only(machine.python(project(tmp_path, python=">=3.99")))
    assert (found.result, found.found.endswith("is not among >=3.99")) == ("problem", True)
    assert "make clean" in found.fix


def test_a_package_outside_of_its_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site" / "typer-0.99.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: typer\nVersion: 0.99.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = only(machine.packages(PROJECT))
    assert found.result == "warning"
    assert found.found == "typer 0.99.0 is outside of <0.26,>=0.16, with which the platform is tested"
    constraints = PROJECT / "constraints.txt"
    assert found.fix == f"{sys.executable} -m pip install --constraint {constraints} 'typer<0.26,>=0.16'"


def test_a_package_that_is_not_there(tmp_path: Path) -> None:
    found = only(machine.packages(project(tmp_path, "no-such-package>=1", "rich>=13", "gone; python_version < '3'")))
    assert (found.result, found.found) == ("problem", "no-such-package is not installed")
    assert found.fix == f"{sys.executable} -m pip install 'no-such-package>=1'"


def test_versions_that_the_constraints_do_not_name_are_told(tmp_path: Path) -> None:
    (project(tmp_path, "rich>=13", "typer") / "constraints.txt").write_text("Rich==1.0\n")
    found = only(machine.packages(tmp_path))
    assert found.result == "ok"
    assert found.found == "all 2 are in the tested ranges, 1 of them in another version than constraints.txt names"


def test_a_disk_with_room(tmp_path: Path) -> None:
    assert only(machine.space("home", tmp_path, least=1, share=0.0)).result == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        found = only(machine.space("home", disk))
        assert (found.result, "`mlops store gc`" in found.fix) == ("warning", True)
        assert found.found == f"2.1 MB of 2.1 MB are free in {disk}"
        (disk / "full").write_bytes(bytes(2_000_000))
        assert only(machine.space("home", disk, least=1)).result == "warning", "under five percent"
        found = only(machine.space("home", disk, least=1, share=0.001))
        assert found.result == "ok"
        with pytest.raises(OSError, match="No space left"):
            (disk / "fuller").write_bytes(bytes(2_000_000))
        assert only(machine.space("home", disk)) == Finding(
            "home",
            "problem",
            f"{disk} cannot be written: No space left on device",
            "mend its rights or free space",
        )


def test_a_disk_that_may_only_be_read(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "ro") as disk:
        found = only(machine.space("home", disk))
        assert (found.result, found.found) == ("problem", f"{disk} cannot be written: Read-only file system")


def test_no_room_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(machine.temporary()).check == "temporary files"
    with small_disk(tmp_path / "disk") as disk:
        monkeypatch.setattr("tempfile.tempdir", str(disk))
        assert only(machine.temporary()).result == "warning"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert only(machine.temporary()).result == "problem"


def test_locks_that_keep_others_out(tmp_path: Path) -> None:
    assert only(machine.locking(tmp_path)).result == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file system of this kernel is without them, so the call itself is replaced."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    found = only(machine.locking(tmp_path))
    assert (found.result, found.found) == ("problem", f"{tmp_path} has none: No locks available")
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    found = only(machine.locking(tmp_path))
    assert (found.result, "does not keep other processes out" in found.found) == ("problem", True)


def test_a_file_from_the_future(tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    database = tmp_path / "mlflow" / "mlflow.db"
    database.touch()
    assert only(machine.clock(tmp_path)).result == "ok"
    os.utime(database, (time.time() + 3600,) * 2)
    found = only(machine.clock(tmp_path))
    assert found.result == "warning"
    told = re.fullmatch(
        rf"{re.escape(str(database))} is stamped (\d+) s in the future: some clock was or is wrong", found.found
    )
    assert told
    assert 3500 < int(told[1]) <= 3600, "which comes nearer meanwhile"


@pytest.mark.parametrize(("ahead", "said"), [(1000.0, "behind"), (-1000.0, "ahead of")])
def test_a_disk_with_another_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float, said: str) -> None:
    """Only a file server has another clock, so ours is set."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead)
    found = only(machine.clock(tmp_path))
    told = re.search(rf" (\d+) s {said} this clock", found.found)
    assert (found.result, told is not None) == ("warning", True)
    assert told
    assert 900 < int(told[1]) <= 1000, "at least, for looking takes a while"
    assert "NTP" in found.fix


def test_a_check_that_fails_is_a_problem_of_its_own() -> None:
    def broken() -> list[Finding]:
        return [Finding("a", "ok", str(1 / 0))]

    assert findings("a", broken) == [
        Finding("a", "problem", "could not be checked: ZeroDivisionError: division by zero")
    ]
