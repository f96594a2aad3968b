"""What MLflow's registry shows to whoever only looks: over HTTP, without loading MLflow.

Belongs here: one question to the server about all registered models, for processes that must stay light. Not here:
changing anything (`aliases.py`), and what follows from what is seen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mlops_assets.errors import MlopsError
from mlops_assets.tracking.tags import RECIPE

SECONDS: Final = 5.0
"""How long the server may take."""

_PAGE: Final = 500


class RegistryUnreachable(MlopsError):
    """The MLflow server does not answer, or not as one."""


@dataclass(frozen=True)
class Seen:
    """A registered model.

    Attributes:
        aliases: Version by alias.
        newest: Its newest version; 0 when there is none.
        ours: Whether the newest version was made by this platform.
        ready: Whether MLflow calls the newest version ready.
    """

    aliases: Mapping[str, int]
    newest: int
    ours: bool
    ready: bool


def look(url: str) -> dict[str, Seen]:
    """All registered models of a server, by name.

    Args:
        url: The server's address; user and password or token come from MLflow's own variables.

    Raises:
        RegistryUnreachable: It does not answer, or refuses.
    """
    import httpx

    found: dict[str, Seen] = {}
    page = ""
    try:
        with httpx.Client(base_url=url, timeout=SECONDS, auth=_login(), headers=_token()) as client:
            while True:
                asked = {"max_results": str(_PAGE)} | ({"page_token": page} if page else {})
                answer = client.get("/api/2.0/mlflow/registered-models/search", params=asked).raise_for_status().json()
                found |= {one["name"]: _seen(one) for one in answer.get("registered_models", [])}
                page = answer.get("next_page_token", "")
                if not page:
                    return found
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise RegistryUnreachable(
            f"no MLflow server shows its registry at {url} ({str(error) or type(error).__name__}); "
            "start it by `mlops up`, or mend MLFLOW_TRACKING_URI"
        ) from None


def _seen(model: Mapping[str, Any]) -> Seen:
    versions = sorted(model.get("latest_versions", []), key=lambda one: int(one["version"]))
    newest: Mapping[str, Any] = versions[-1] if versions else {"version": 0}
    tags = {tag["key"] for tag in newest.get("tags", [])}
    return Seen(
        aliases={one["alias"]: int(one["version"]) for one in model.get("aliases", [])},
        newest=int(newest["version"]),
        ours=RECIPE in tags,
        ready=newest.get("status") == "READY",
    )


def _login() -> tuple[str, str] | None:
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None


def _token() -> dict[str, str]:
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}
