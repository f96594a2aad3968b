"""Every environment variable that the platform reads, in one class."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from mlops_assets.errors import MlopsError
from mlops_assets.fingerprint import PACKAGE_ROOT
from mlops_assets.oxen.repository import Repository

PROJECT: Final = PACKAGE_ROOT.parent
"""The checkout: where `pyproject.toml`, `workspace.yaml` and a user's `.env` lie."""


class SettingsError(MlopsError):
    """A variable has a value that cannot be used."""


class HomeError(MlopsError):
    """The platform's home cannot be used."""


class Settings(BaseSettings):
    """Variables named `MLOPS_...`, from the environment or from `.env` beside `workspace.yaml`."""

    model_config = SettingsConfigDict(env_prefix="MLOPS_", env_ignore_empty=True, extra="ignore")

    home: Path = Field(default=PROJECT / ".mlops", description="Where everything is kept that the platform writes.")
    store: str = Field(default="", description="fsspec URL of the store of outputs; empty is `HOME/store`.")
    executor: str = Field(
        default="in_process",
        pattern="^(in_process|multiprocess)$",
        description="How a run executes its steps; a run is a process of its own in both.",
    )
    host: str = Field(default="127.0.0.1", description="Address that `mlops up` binds its servers to.")
    dagster_port: int = Field(default=3000, ge=1, le=65535, description="Port of the Dagster UI.")
    mlflow_port: int = Field(default=5000, ge=1, le=65535, description="Port of the MLflow UI.")
    mlflow_tracking_uri: str = Field(
        default="", validation_alias="MLFLOW_TRACKING_URI", description="An MLflow server; empty is SQLite in the home."
    )

    dagster_database: SecretStr = Field(
        default=SecretStr(""),
        description="Dagster's database, postgresql+psycopg2://USER:PASSWORD@HOST/NAME; empty is SQLite in the home.",
    )
    mlflow_database: SecretStr = Field(
        default=SecretStr(""),
        description="The MLflow server's database, postgresql+psycopg2://USER:PASSWORD@HOST/NAME, for backups and the "
        "doctor.",
    )
    artifacts: str = Field(
        default="",
        description="Where the MLflow server keeps artifacts, such as s3://mlflow, for backups, which name what "
        "they do not have; empty is `HOME/mlflow/artifacts`.",
    )
    location: str = Field(
        default="mlops_assets",
        pattern="^[A-Za-z0-9_-]+$",
        description="Name of this code location in `workspace.yaml`; it loads the pipelines that ask for it.",
    )
    public_url: str = Field(
        default="",
        pattern="^(https?://[^/?#]+)?$",
        description="Where people reach the set-up through its proxy, such as https://mlops.example.com.",
    )
    dagster_at: str = Field(
        default="",
        validation_alias="MLOPS_DAGSTER_URL",
        description="Where processes reach the Dagster webserver; empty is MLOPS_HOST and MLOPS_DAGSTER_PORT.",
    )
    serve_at: str = Field(
        default="",
        validation_alias="MLOPS_SERVE_URL",
        description="Where processes reach the model server; empty is MLOPS_HOST and MLOPS_SERVE_PORT.",
    )
    proxy_at: str = Field(
        default="",
        validation_alias="MLOPS_PROXY_URL",
        pattern="^(https?://[^/?#]+)?$",
        description="Where processes reach the proxy, under the name of MLOPS_PUBLIC_URL; empty is MLOPS_PUBLIC_URL.",
    )
    portal_port: int = Field(default=8080, ge=1, le=65535, description="Port of the portal page.")

    webhook_secret: SecretStr = Field(
        default=SecretStr(""),
        description="What MLflow signs its registry webhooks with; empty: no receiver is started.",
    )
    webhook_port: int = Field(default=3001, ge=1, le=65535, description="Port of the receiver.")
    github_repository: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)?$",
        description="OWNER/NAME whose workflows the receiver tells of new models and champions; empty: none.",
    )
    github_token: SecretStr = Field(
        default=SecretStr(""), description="What the receiver tells them with: a token that may write that repository."
    )
    github_api: str = Field(
        default="https://api.github.com", pattern="^https?://[^?#]+$", description="The API of that GitHub."
    )

    serve_port: int = Field(default=8000, ge=1, le=65535, description="Port of the model server, HTTP.")
    grpc_port: int = Field(default=8001, ge=1, le=65535, description="Port of the model server, gRPC.")
    serve_workers: int = Field(default=1, ge=1, le=256, description="Processes that answer; each loads every model.")
    serve_threads: int = Field(default=1, ge=1, le=256, description="CPU threads that one pass of a model may take.")
    serve_max_bytes: int = Field(default=32 << 20, ge=1, description="Largest body of a request, in bytes.")
    serve_max_rows: int = Field(default=10_000, ge=1, description="Most rows in a request.")
    serve_concurrency: int = Field(default=64, ge=1, description="Requests that a process answers at once.")
    serve_timeout_seconds: float = Field(default=15.0, gt=0, description="Longest that a request may take, in seconds.")
    serve_log: bool = Field(default=True, description="Whether answers are kept in the prediction log.")
    serve_drain_seconds: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="How long a stopping server goes on answering while it says that it is not ready.",
    )

    @property
    def registry_poke(self) -> Path:
        """The file that a webhook touches to have MLflow's registry looked at now."""
        return self.home / "registry.changed"

    @property
    def dagster_home(self) -> Path:
        """`DAGSTER_HOME` of the embedded set-up."""
        return self.home / "dagster"

    def repository(self, name: str) -> Repository:
        """A handle on a local Oxen repository of the home; nothing is opened yet."""
        return Repository(self.home / "oxen" / name)

    @property
    def dagster_url(self) -> str:
        """Where processes reach the Dagster webserver when it is up."""
        return self.dagster_at.rstrip("/") or f"http://{self._reachable}:{self.dagster_port}"

    @property
    def dagster_page(self) -> str:
        """Where a person looks at Dagster."""
        return f"{self.public_url}/dagster" if self.public_url else self.dagster_url

    @property
    def webhook_url(self) -> str:
        """Where the receiver of MLflow's registry webhooks is when it is up."""
        return f"http://{self._reachable}:{self.webhook_port}"

    @property
    def serve_url(self) -> str:
        """Where processes reach the model server when it is up."""
        return self.serve_at.rstrip("/") or f"http://{self._reachable}:{self.serve_port}"

    @property
    def serve_page(self) -> str:
        """Where a person or a program outside reaches the model server."""
        return self.public_url or self.serve_url

    @property
    def proxy_url(self) -> str:
        """Where processes reach the proxy."""
        return self.proxy_at or self.public_url

    @property
    def portal_url(self) -> str:
        """Where the portal page is when it is up."""
        return f"http://{self._reachable}:{self.portal_port}"

    @property
    def _reachable(self) -> str:
        """The address under which a server that binds to `host` is reached from this machine, as URLs write it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  compared, not bound to
        return f"[{host}]" if ":" in host else host

    @property
    def mlflow_url(self) -> str:
        """Where processes reach MLflow: the server, or the one that `mlops up` starts."""
        if self.mlflow_tracking_uri.startswith("http"):
            return self.mlflow_tracking_uri.rstrip("/")
        return f"http://{self._reachable}:{self.mlflow_port}"

    @property
    def mlflow_page(self) -> str:
        """Where a person looks at MLflow."""
        return f"{self.public_url}/mlflow" if self.public_url else self.mlflow_url

    @property
    def store_url(self) -> str:
        """The fsspec URL of the store of outputs."""
        if "://" in self.store:
            return self.store
        return str(Path(self.store).expanduser().absolute() if self.store else self.home / "store")


def _variable(location: tuple[int | str, ...]) -> str:
    name = str(location[0])
    return name if name.isupper() else f"MLOPS_{name.upper()}"


def _take_credentials_out(loaded: Settings) -> None:
    """Hand a user and password inside the URI to MLflow by its own variables: URIs are shown, logged and stored."""
    parts = urlsplit(loaded.mlflow_tracking_uri)
    if parts.scheme not in {"http", "https"} or not parts.username:
        return
    os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(parts.username))
    os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(parts.password or ""))
    loaded.mlflow_tracking_uri = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    os.environ["MLFLOW_TRACKING_URI"] = loaded.mlflow_tracking_uri


def _name_the_driver(loaded: Settings) -> None:
    """Name the driver that is installed, for Dagster too, which reads the variable: SQLAlchemy's default is another."""
    for name in ("dagster_database", "mlflow_database"):
        scheme, slashes, rest = getattr(loaded, name).get_secret_value().partition("://")
        if scheme == "postgresql":
            url = f"postgresql+psycopg2{slashes}{rest}"
            setattr(loaded, name, SecretStr(url))
            os.environ[_variable((name,))] = url


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once; `.env` fills what the environment leaves open.

    `.env` is loaded into the environment, so that MLflow's own variables (`MLFLOW_TRACKING_USERNAME`, ...) work in it.
    """
    from dotenv import load_dotenv

    load_dotenv(PROJECT / ".env", override=False)
    try:
        loaded = Settings()
    except ValidationError as error:
        problems = (f"{_variable(one['loc'])} is '{one['input']}': {one['msg']}" for one in error.errors())
        raise SettingsError("; ".join(problems) + "; correct it in the environment or in .env") from None
    loaded.home = loaded.home.expanduser().absolute()
    _take_credentials_out(loaded)
    _name_the_driver(loaded)
    # Nothing phones home. Set here because every process of the platform reads its settings first.
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLOPS_HOME", str(loaded.home))
    return loaded
