"""The MLflow plugin for `mlops-home:` URIs: artifacts that survive a move of the platform's home.

MLflow loads this module itself (entry point `mlflow.artifact_repository`), in clients and in `mlflow server`, so it may
import MLflow at the top. Nothing else imports it.
"""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mlops_assets.tracking.store import artifact_directory


def resolve(uri: str, root: Path) -> Path:
    """The local path of `mlops-home:/EXPERIMENT/...` under `root`.

    Raises:
        MlflowException: the URI names a host, or a place outside `root`, symbolic links followed.
    """
    parts = urlsplit(uri)
    relative = unquote(parts.path).lstrip("/")
    path = root / relative
    inside = ".." not in Path(relative).parts and "\0" not in relative and path.resolve().is_relative_to(root.resolve())
    if parts.netloc or parts.query or parts.fragment or "\\" in relative or not inside:
        raise MlflowException.invalid_parameter_value(f"{uri!r} does not lie under the platform's artifacts.")
    return path


class HomeArtifactRepository(LocalArtifactRepository):
    """Local artifacts whose root is found when they are used, not when they were logged."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._artifact_dir = str(resolve(artifact_uri, artifact_directory(tracking_uri or _chosen_tracking_uri())))


def _chosen_tracking_uri() -> str | None:
    """The process-wide tracking URI, if somebody chose one: MLflow's default names a database in the current folder."""
    from mlflow.tracking import get_tracking_uri, is_tracking_uri_set

    return get_tracking_uri() if is_tracking_uri_set() else None  # type: ignore[no-untyped-call]
