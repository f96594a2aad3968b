"""What MLflow's registry shows to whoever only looks: over HTTP, without loading MLflow.

Belongs here: one question to the server about all registered models, for processes that must stay light. Not here:
changing anything (`aliases.py`), and what follows from what is seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mlops_assets.errors import MlopsError
from mlops_assets.tracking.tags import GATE, RECIPE

if TYPE_CHECKING:
    import httpx

SECONDS: Final = 5.0
"""How long the server may take."""

_PAGE: Final = 500
NEWEST: Final = 200
"""So many of the registry's newest versions are looked at for ones that nobody has judged."""


class RegistryUnreachable(MlopsError):
    """The MLflow server does not answer, or not as one."""


@dataclass(frozen=True)
class Seen:
    """A registered model.

    Attributes:
        aliases: Version by alias.
        unjudged: The versions that others registered and the gate has not judged, with the seconds since the epoch at
            which they were; the oldest first.
    """

    aliases: Mapping[str, int]
    unjudged: Mapping[int, float]


def look(url: str) -> dict[str, Seen]:
    """All registered models of a server, by name.

    Args:
        url: The server's address; user and password or token come from MLflow's own variables.

    Raises:
        RegistryUnreachable: It does not answer, or refuses.
    """
    with reaching(url), client(url) as asking:
        found = models(asking)
        newest = ask(asking, "model-versions/search", max_results=str(NEWEST), order_by="creation_timestamp DESC")
        versions = [one for one in newest.get("model_versions", []) if _is_unjudged(one)]
        return {
            one["name"]: Seen(
                {alias["alias"]: int(alias["version"]) for alias in one.get("aliases", [])},
                {
                    int(version["version"]): version["creation_timestamp"] / 1000
                    for version in reversed(versions)
                    if version["name"] == one["name"]
                },
            )
            for one in found
        }


def client(url: str) -> httpx.Client:
    """A client of a server, with the user and password or the token of MLflow's own variables."""
    import httpx

    return httpx.Client(base_url=url, timeout=SECONDS, auth=_login(), headers=_token())


def ask(asking: httpx.Client, path: str, **wanted: str) -> Mapping[str, Any]:
    """One question to MLflow's REST interface."""
    return dict(asking.get(f"/api/2.0/mlflow/{path}", params=wanted).raise_for_status().json())


def models(asking: httpx.Client) -> list[Any]:
    """All registered models, as the server tells of them."""
    found: list[Any] = []
    page: dict[str, str] = {}
    while True:
        told = ask(asking, "registered-models/search", max_results=str(_PAGE), **page)
        found += told.get("registered_models", [])
        if not told.get("next_page_token"):
            return found
        page = {"page_token": told["next_page_token"]}


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn what goes wrong on the way to a server, or with its answer, into one sentence.

    Raises:
        RegistryUnreachable: It does not answer, or refuses, or is another kind of server.
    """
    import httpx

    try:
        yield
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)  # httpx adds a line of advice
        raise RegistryUnreachable(
            f"no MLflow server shows its registry at {url} ({said}); "
            "start it by `mlops up`, or mend MLFLOW_TRACKING_URI"
        ) from None


def _is_unjudged(version: Mapping[str, Any]) -> bool:
    tags = {tag["key"] for tag in version.get("tags", [])}
    return version.get("status") == "READY" and not tags & {RECIPE, GATE}


def _login() -> tuple[str, str] | None:
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None


def _token() -> dict[str, str]:
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}
