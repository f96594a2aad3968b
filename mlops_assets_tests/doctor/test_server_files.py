"""Checks of rights, secrets, and the age of backups."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from mlops_assets.backup import note
from mlops_assets.backup.errors import BackupError
from mlops_assets.doctor import server_files
from mlops_assets.doctor.examination import Examination, examination
from mlops_assets.settings import settings


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Examination]:
    """A home with a folder in it, and a project that is not the developer's own."""
    (tmp_path / "home" / "dagster").mkdir(parents=True)
    (tmp_path / "secrets").mkdir()
    monkeypatch.setattr(server_files, "PROJECT", tmp_path)
    monkeypatch.setenv("MLOPS_SECRETS", str(tmp_path / "secrets"))
    with examination(settings()) as made:
        yield made


def test_a_home_of_one_user(look: Examination) -> None:
    (found,) = server_files.rights(look)
    assert (found.result, found.found) == ("ok", f"{look.here.home} is of user {os.geteuid()} alone")


def test_rights_that_are_too_wide(look: Examination, tmp_path: Path) -> None:
    look.here.home.chmod(0o777)
    for path in (tmp_path / ".env", tmp_path / "secrets" / "dagster-password"):
        path.touch(mode=0o600)
    assert len(list(server_files.rights(look))) == 1
    (tmp_path / ".env").chmod(0o640)
    (tmp_path / "secrets" / "dagster-password").chmod(0o664)
    found = {one.fix: one.result for one in server_files.rights(look)}
    assert found == {
        f"`chmod o-w {look.here.home}`": "problem",
        f"`chmod go= {tmp_path / '.env'}`": "warning",
        f"`chmod go-w {tmp_path / 'secrets' / 'dagster-password'}`": "warning",
    }


def test_a_umask_that_lets_everybody_write(look: Examination) -> None:
    before = os.umask(0)
    try:
        (found,) = server_files.rights(look)
    finally:
        os.umask(before)
    assert (found.result, found.fix) == ("warning", "`umask 027` before the servers are started")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_another_user(look: Examination) -> None:
    one = look.here.home / "dagster" / "one"
    one.touch()
    os.chown(one, 12345, 12345)
    (found,) = server_files.rights(look)
    assert (found.result, str(one) in found.found) == ("problem", True)
    assert found.fix == f"`chown -R 0:0 {look.here.home}`, as root"
    os.chown(look.here.home, 12345, 12345)
    (found,) = server_files.rights(look)
    assert (found.result, found.fix) == ("warning", "run `mlops` as user 12345")


def test_secrets_that_nobody_guesses(look: Examination, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(server_files.secrets(look)) == []
    look.here.dagster_database = SecretStr("postgresql://dagster:48ad6a7ab4f4ab2e@postgres/dagster")
    look.here.webhook_secret = SecretStr("48ad6a7ab4f4ab2e")
    (found,) = server_files.secrets(look)
    assert found.result == "ok"
    assert "48ad6a7ab4f4ab2e" not in found.found
    look.here.dagster_database = SecretStr("postgresql://dagster@postgres/dagster")
    look.here.mlflow_database = SecretStr("postgresql://mlflow:mlflow@postgres/mlflow")
    look.here.webhook_secret = SecretStr("tangerine")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "changeme")
    found = list(server_files.secrets(look))
    assert {one.result for one in found} == {"problem"}
    assert [one.found for one in found] == [
        "MLOPS_WEBHOOK_SECRET has less than 12 characters",
        "MLFLOW_TRACKING_PASSWORD is what everybody tries first",
        "the password in MLOPS_DAGSTER_DATABASE is empty",
        "the password in MLOPS_MLFLOW_DATABASE is what everybody tries first",
    ]


def test_backups_that_nobody_makes(look: Examination) -> None:
    now, results = datetime.now(UTC), []
    for age in (None, timedelta(days=2), timedelta(days=4)):
        if age is not None:
            note.leave(look.here.home, now - age)
        (found,) = server_files.backups(look)
        results.append((found.result, found.found))
    assert results == [
        ("warning", f"none was ever made of {look.here.home}"),
        ("ok", f"the newest is of {now - timedelta(days=2):%Y-%m-%d %H:%M} UTC"),
        ("warning", f"the newest is of {now - timedelta(days=4):%Y-%m-%d %H:%M} UTC, 4 days ago"),
    ]
    (look.here.home / note.NOTE).write_text("half a da", encoding="ascii")
    assert note.last(look.here.home) is None
    with pytest.raises(BackupError, match=r"the archive is whole, but noting it failed at .*: No such file"):
        note.leave(look.here.home / "gone", now)
