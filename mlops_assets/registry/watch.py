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
from mlops_assets.tracking.tags import GATE, RECIPE

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
    import httpx

    models: list[Any] = []
    page = ""
    try:
        with httpx.Client(base_url=url, timeout=SECONDS, auth=_login(), headers=_token()) as client:

            def ask(path: str, **wanted: str) -> Mapping[str, Any]:
                answer = client.get(f"/api/2.0/mlflow/{path}", params=wanted).raise_for_status().json()
                return dict(answer)

            while True:
                told = ask("registered-models/search", max_results=str(_PAGE), **({"page_token": page} if page else {}))
                models += told.get("registered_models", [])
                page = told.get("next_page_token", "")
                if not page:
                    break
            newest = ask("model-versions/search", max_results=str(NEWEST), order_by="creation_timestamp DESC")
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
                for one in models
            }
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise RegistryUnreachable(
            f"no MLflow server shows its registry at {url} ({str(error) or type(error).__name__}); "
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
