"""Which version is champion, and its files, asked of MLflow without loading MLflow.

Belongs here: the two places where that is known, a server's HTTP interface and the embedded database. Not here: what is
done with it (`watcher.py`), and changing anything (`registry/aliases.py`).
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import unquote

from mlops_assets.errors import MlopsError
from mlops_assets.registry import watch
from mlops_assets.settings import Settings
from mlops_assets.tracking.store import ARTIFACT_ROOT

ARTIFACT_SECONDS: Final = 60.0
"""How long a file may take to come."""


class RegistryUnknown(MlopsError):
    """The registry, or a file of a version, cannot be read."""


class Registered(NamedTuple):
    """The version behind an alias."""

    version: int
    run_id: str


class Registry(Protocol):
    """Where versions are registered."""

    def behind(self, aliases: Mapping[str, str]) -> dict[str, Registered]:
        """The version behind one alias of each model; models without it are left out.

        Args:
            aliases: Alias by name of the model.

        Raises:
            MlopsError: The registry does not answer.
        """

    def tags(self, name: str, version: int) -> dict[str, str]:
        """The tags of a version.

        Raises:
            MlopsError: The registry does not answer.
        """

    def metrics(self, run_id: str) -> dict[str, float]:
        """The newest value of each metric of a run.

        Raises:
            MlopsError: The registry does not answer.
        """

    def artifact(self, run_id: str, path: str) -> bytes:
        """The content of a file of a run.

        Raises:
            MlopsError: There is none, or it cannot be read.
        """


def registry_of(here: Settings) -> Registry:
    """The registry that the platform is set up with."""
    return Server(here.mlflow_url) if here.mlflow_tracking_uri else Embedded(here.home)


class Embedded:
    """The database below the home, read as `mlops up`'s own MLflow server writes it.

    A look costs a tenth of a millisecond, and works while no server runs. The columns that are read are those of the
    MLflow release that the package requires.
    """

    def __init__(self, home: Path) -> None:
        self._database = home / "mlflow" / "mlflow.db"
        self._artifacts = home / "mlflow" / "artifacts"

    def behind(self, aliases: Mapping[str, str]) -> dict[str, Registered]:
        """As `Registry` has it."""
        rows = self._rows(
            "SELECT a.name, a.alias, a.version, v.run_id FROM registered_model_aliases a"
            " JOIN model_versions v USING (workspace, name, version)"
        )
        return {
            name: Registered(int(version), run_id or "")
            for name, alias, version, run_id in rows
            if alias.lower() == aliases.get(name)
        }

    def tags(self, name: str, version: int) -> dict[str, str]:
        """As `Registry` has it."""
        query = "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?"
        return dict(self._rows(query, name, version))

    def metrics(self, run_id: str) -> dict[str, float]:
        """As `Registry` has it."""
        return dict(self._rows("SELECT key, value FROM latest_metrics WHERE run_uuid = ? AND NOT is_nan", run_id))

    def artifact(self, run_id: str, path: str) -> bytes:
        """As `Registry` has it."""
        rows = self._rows("SELECT artifact_uri FROM runs WHERE run_uuid = ?", run_id)
        uri = str(rows[0][0]) if rows else ""
        relative = PurePosixPath(unquote(uri.removeprefix(ARTIFACT_ROOT)))
        if not uri.startswith(ARTIFACT_ROOT) or ".." in relative.parts:
            raise RegistryUnknown(f"MLflow keeps the files of run {run_id} at '{uri}', which is not below its home")
        file = self._artifacts / relative.as_posix().lstrip("/") / path
        try:
            return file.read_bytes()
        except OSError as error:
            raise RegistryUnknown(f"{file} cannot be read ({error.strerror}); `mlops doctor` tells more") from None

    def _rows(self, query: str, *values: Any) -> list[Any]:
        if not self._database.exists():
            raise RegistryUnknown(f"{self._database} does not exist; `mlops run NAME` makes it, with a first champion")
        try:
            uri = f"{self._database.as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5)) as connection:
                return connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise RegistryUnknown(f"{self._database} cannot be read ({error}); `mlops doctor` tells more") from None


class Server:
    """An MLflow server, asked over HTTP.

    Args:
        url: Its address; user and password or token come from MLflow's own variables.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = watch.client(url)
        self._runs: dict[tuple[str, int, int], str] = {}
        """By name and birth of a model, and version: a model that is registered anew counts from 1 again."""

    def behind(self, aliases: Mapping[str, str]) -> dict[str, Registered]:
        """As `Registry` has it."""
        with watch.reaching(self._url):
            found = [
                (model["name"], int(model.get("creation_timestamp", 0)), int(alias["version"]))
                for model in watch.models(self._client)
                for alias in model.get("aliases", [])
                if alias["alias"].lower() == aliases.get(model["name"])
            ]
            for name, born, version in found:
                if (name, born, version) not in self._runs:
                    self._runs[name, born, version] = self._version(name, version).get("run_id", "")
            return {name: Registered(version, self._runs[name, born, version]) for name, born, version in found}

    def tags(self, name: str, version: int) -> dict[str, str]:
        """As `Registry` has it."""
        with watch.reaching(self._url):
            return {tag["key"]: tag["value"] for tag in self._version(name, version).get("tags", [])}

    def metrics(self, run_id: str) -> dict[str, float]:
        """As `Registry` has it."""
        with watch.reaching(self._url):
            told = watch.ask(self._client, "runs/get", run_id=run_id)
            return {one["key"]: one["value"] for one in told["run"]["data"].get("metrics", [])}

    def artifact(self, run_id: str, path: str) -> bytes:
        """As `Registry` has it."""
        import httpx

        with watch.reaching(self._url):
            told = self._client.get("/get-artifact", params={"path": path, "run_id": run_id}, timeout=ARTIFACT_SECONDS)
            if told.status_code == httpx.codes.NOT_FOUND:
                raise RegistryUnknown(f"run {run_id} has no file {path} at {self._url}; promote another version")
            return told.raise_for_status().content

    def _version(self, name: str, version: int) -> Mapping[str, Any]:
        told = watch.ask(self._client, "model-versions/get", name=name, version=str(version))
        found: Mapping[str, Any] = told["model_version"]
        return found
