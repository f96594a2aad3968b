"""Model versions in MLflow's registry, found by recipe and pointed at by aliases.

Belongs here: registering a logged model, and reading and moving aliases. Not here: which version should be pointed at
(`gate/`), and the record of every move (`ledger.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from mlops_assets.errors import MlopsError
from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.runs import Tracking, already_there

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ALIAS: Final = re.compile(r"[a-z0-9_-]+")
RESERVED: Final = re.compile(r"latest|v\d+|\d+")
"""`latest` and `v1` are MLflow's own; a bare number would read as a version."""

MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What `models:/NAME@alias` and a search filter can carry unquoted."""


class RegistryError(MlopsError):
    """The registry cannot do what was asked."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model.

    Attributes:
        run_id: the training run that made it.
        recipe: what fully determines it; empty when it was registered by other means.
        model_digest: digest of the weights; empty likewise.
    """

    name: str
    number: int
    run_id: str
    recipe: str
    model_digest: str
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """The URI that always means this version."""
        return f"models:/{self.name}/{self.number}"


class Registered(NamedTuple):
    """A registered model as a whole.

    Attributes:
        aliases: Alias to the number of the version that it points at, in the spelling that MLflow has.
        tags: Of the model, not of a version.
    """

    aliases: Mapping[str, int]
    tags: Mapping[str, str]


def normalise(alias: str) -> str:
    """The alias in the one spelling used here; MLflow would keep `Champion` and `champion` apart.

    Raises:
        RegistryError: MLflow reserves the name, or does not take it.
    """
    name = alias.strip().lower()
    if not ALIAS.fullmatch(name) or RESERVED.fullmatch(name):
        raise RegistryError(
            f"{alias!r} cannot be a model alias: use letters, digits, '_' and '-', and neither 'latest' nor a version."
        )
    return name


def register(tracking: Tracking, *, name: str, model_uri: str, tags: Mapping[str, str]) -> Version:
    """Make a logged model the newest version of `name`, which is created when it is not there.

    Args:
        tracking: where the model was logged.
        name: the registered model.
        model_uri: `models:/ID`, as `TrainingRun.log_torch_model` returns it.
        tags: by the keys of `tracking.tags`; `mlops.recipe` is what `find` searches.

    Raises:
        RegistryError: the name or the URI is unusable.
        TrackingError: MLflow cannot be reached or refuses.
    """
    _check(name)
    model_id = model_uri.removeprefix("models:/")
    if model_id == model_uri or "/" in model_id or "@" in model_id:
        raise RegistryError(f"{model_uri!r} names no logged model: give the models:/ID that logging it returned.")
    client = tracking.client
    with tracking.one_sentence():
        logged = client.get_logged_model(model_id)
        with already_there():
            client.create_registered_model(name)
        # The location itself: a `models:/` source would be looked up in MLflow's process-wide store, not in this one.
        version = client.create_model_version(
            name, logged.artifact_location, run_id=logged.source_run_id, tags=dict(tags), model_id=model_id
        )
    return _version(version)


def find(tracking: Tracking, name: str, recipe: str) -> Version | None:
    """The newest version of `name` that was made by `recipe` and whose files are still there.

    Raises:
        TrackingError: MLflow cannot be reached or refuses.
    """
    _check(name)
    if "'" in recipe:
        raise RegistryError(f"{recipe!r} is no recipe: it holds a quotation mark.")
    query = f"name = '{name}' AND tags.`{keys.RECIPE}` = '{recipe}'"
    with tracking.one_sentence():
        versions = tracking.client.search_model_versions(query, order_by=["version_number DESC"])
        for version in versions:
            if version.status == "READY" and _files_exist(tracking, version):
                return _version(version)
    return None


def get(tracking: Tracking, name: str, number: int) -> Version | None:
    """A version by its number, or None: there is none, it was deleted, or its files are gone.

    Raises:
        TrackingError: MLflow cannot be reached or refuses.
    """
    from mlflow.exceptions import MlflowException

    _check(name)
    with tracking.one_sentence():
        try:
            version = tracking.client.get_model_version(name, str(number))
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return _version(version) if version.status == "READY" and _files_exist(tracking, version) else None


def registered(tracking: Tracking, name: str) -> Registered | None:
    """The registered model with its aliases and tags, or None when there is none.

    Raises:
        TrackingError: MLflow cannot be reached or refuses.
    """
    from mlflow.exceptions import MlflowException

    _check(name)
    with tracking.one_sentence():
        try:
            model = tracking.client.get_registered_model(name)
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
    return Registered({alias: int(version) for alias, version in model.aliases.items()}, dict(model.tags))


def tag(tracking: Tracking, name: str, key: str, value: str) -> None:
    """Set a tag of a registered model.

    Raises:
        TrackingError: there is no such model, or MLflow cannot be reached.
    """
    _check(name)
    with tracking.one_sentence():
        tracking.client.set_registered_model_tag(name, key, value)


def tag_version(tracking: Tracking, version: Version, tags: Mapping[str, str]) -> None:
    """Set tags of a version.

    Raises:
        TrackingError: there is no such version, or MLflow cannot be reached.
    """
    with tracking.one_sentence():
        for key, value in tags.items():
            tracking.client.set_model_version_tag(version.name, str(version.number), key, value)


def of_the_same_files(tracking: Tracking, version: Version) -> Version | None:
    """The newest version of the model that this platform made and that has the very files of another.

    Raises:
        TrackingError: MLflow cannot be reached or refuses.
    """
    client = tracking.client
    with tracking.one_sentence():
        place = client.get_model_version_download_uri(version.name, str(version.number))
        for other in client.search_model_versions(f"name = '{version.name}'", order_by=["version_number DESC"]):
            if keys.RECIPE in other.tags and client.get_model_version_download_uri(other.name, other.version) == place:
                return _version(other)
    return None


def current(tracking: Tracking, name: str, alias: str) -> Version | None:
    """The version that `alias` points at, or None: no such alias, or no such model.

    Raises:
        RegistryError: the alias or the name is unusable.
        TrackingError: MLflow cannot be reached or refuses.
    """
    from mlflow.exceptions import MlflowException

    _check(name)
    client = tracking.client
    with tracking.one_sentence():
        try:
            return _version(client.get_model_version_by_alias(name, normalise(alias)))
        except MlflowException as exc:
            # MLflow calls an absent alias an invalid parameter.
            if exc.error_code != "RESOURCE_DOES_NOT_EXIST" and "not found" not in str(exc):
                raise
    return None


def point(tracking: Tracking, name: str, alias: str, version: int) -> None:
    """Make `alias` point at a version: one atomic change, that servers see at their next look.

    Raises:
        RegistryError: the alias or the name is unusable.
        TrackingError: there is no such version, or MLflow cannot be reached.
    """
    _check(name)
    with tracking.one_sentence():
        tracking.client.set_registered_model_alias(name, normalise(alias), str(version))


def _check(name: str) -> None:
    if not MODEL_NAME.fullmatch(name):
        raise RegistryError(f"{name!r} cannot name a model: use letters, digits, '.', '_' and '-'.")


def _files_exist(tracking: Tracking, version: ModelVersion) -> bool:
    from mlflow.artifacts import list_artifacts

    # Not the source, which may be a `models:/` of a version that was registered by other means.
    place = tracking.client.get_model_version_download_uri(version.name, version.version)
    files = list_artifacts(artifact_uri=place, tracking_uri=tracking.uri)
    return any(file.path.rpartition("/")[2] == "MLmodel" for file in files)


def _version(found: ModelVersion) -> Version:
    tags = dict(found.tags)
    return Version(
        name=found.name,
        number=int(found.version),
        run_id=found.run_id or "",
        recipe=tags.get(keys.RECIPE, ""),
        model_digest=tags.get(keys.MODEL_DIGEST, ""),
        tags=tags,
    )
