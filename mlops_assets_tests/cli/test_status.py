"""`mlops status`, by the real command."""

from pathlib import Path

import pytest

from mlops_assets.settings import settings
from mlops_assets_tests.cli.conftest import Mlops


def test_what_others_wrote_is_shown_as_it_is(mlops: Mlops) -> None:
    message = "fix [/b] and [red]more[/red]\\"
    made = mlops("data", "import", "iris", "-m", message, "--no-push")
    assert (made.code, message in made.out) == (0, True)
    assert message in mlops("data", "log", "iris").out
    assert message in mlops("data", "show", "iris").out
    told = mlops("status")
    assert (told.code, told.err) == (0, "")
    assert message in told.out


def test_an_error_is_shown_as_it_is(mlops: Mlops, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "[red]home[/b]"))
    settings.cache_clear()
    (settings().home / "oxen" / "iris").mkdir(parents=True)
    told = mlops("status", "iris")
    assert (told.code, told.err) == (0, "")
    assert "[red]home[/b]" in "".join(told.out.split())
