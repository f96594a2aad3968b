"""The environment is read once, and what cannot be used is named."""

import os
from pathlib import Path

import pytest

from mlops_assets.settings import PROJECT, SettingsError, settings


def test_a_value_that_cannot_be_used_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_DAGSTER_PORT", "abc")
    with pytest.raises(SettingsError, match="MLOPS_DAGSTER_PORT is 'abc': Input should be a valid integer"):
        settings()


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_HOME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert settings().home == PROJECT / ".mlops"
    assert settings().mlflow_url == "http://127.0.0.1:5000"


def test_a_server_of_mlflow_is_where_people_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@mlflow.example.com/")
    assert settings().mlflow_url == "https://mlflow.example.com"


def test_the_home_is_absolute_wherever_a_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLOPS_HOME", "relative")
    assert settings().home == tmp_path / "relative"


def test_a_database_is_reached_by_the_driver_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_DAGSTER_DATABASE", "postgresql://dagster:pass:%2F//word@h:5432/d?sslmode=require")
    monkeypatch.setenv("MLOPS_MLFLOW_DATABASE", "postgresql+psycopg://mlflow:word@h/m")
    expected = "postgresql+psycopg2://dagster:pass:%2F//word@h:5432/d?sslmode=require"
    assert settings().dagster_database.get_secret_value() == expected
    assert os.environ["MLOPS_DAGSTER_DATABASE"] == expected, "Dagster reads the variable itself"
    assert settings().mlflow_database.get_secret_value() == "postgresql+psycopg://mlflow:word@h/m", "chosen by somebody"
    assert "word" not in repr(settings())
