"""What MLflow's registry reports, told to a GitHub repository, whose workflows then evaluate or deploy.

Belongs here: which deliveries are worth telling, and the call of GitHub's `repository_dispatch`. Not here: whether a
delivery is MLflow's (`webhook.py`), and the workflows (`.github/workflows/`).

Of a delivery, only a pipeline's name and a version's number are passed on, both checked: what others write into a
registry reaches no workflow. GitHub is told at most once; the sensor's own looks are what counts.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from mlops_assets.errors import MlopsError
from mlops_assets.pipeline import Pipeline, pipeline_folders
from mlops_assets.tracking.tags import RECIPE

if TYPE_CHECKING:
    from mlops_assets.settings import Settings

log = logging.getLogger(__name__)

SECONDS: Final = 10.0
"""How long GitHub may take."""

ATTEMPTS: Final = 3
"""Connections that are tried; what GitHub has answered is not asked again."""

_VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")
_TOKEN: Final = re.compile(r"[!-~]+")
"""What a header can hold: whatever cannot be sent would be quoted in an error."""


class GitHubUnusable(MlopsError):
    """A repository is named without a token that can be sent."""


class Event(NamedTuple):
    """What a workflow is told: `types` in its `repository_dispatch`, and its `client_payload`."""

    kind: Literal["model-registered", "champion-promoted"]
    pipeline: str
    version: int


def event_of(body: bytes, pipelines: Iterable[Pipeline]) -> Event | None:
    """What a delivery of MLflow is worth telling, or None.

    A version of our own is judged by the run that makes it, and is not told; of aliases the champion's alone is.

    Args:
        body: The delivery.
        pipelines: Whose models count.
    """
    try:
        told = json.loads(body)
        entity, action, data = told["entity"], told["action"], told["data"]
        name, version, tags = data["name"], str(data["version"]), data.get("tags") or {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    pipeline = next((one for one in pipelines if one.model_name == name), None)
    if pipeline is None or action != "created" or not _VERSION.fullmatch(version):
        return None
    if entity == "model_version" and RECIPE not in tags:
        return Event("model-registered", pipeline.name, int(version))
    if entity == "model_version_alias" and data.get("alias") == pipeline.spec.gate.champion_alias:
        return Event("champion-promoted", pipeline.name, int(version))
    return None


def teller(here: Settings) -> Callable[[bytes], Awaitable[None]] | None:
    """What passes a delivery on; None when no repository is named.

    Raises:
        GitHubUnusable: One is, and there is no token that can be sent.
    """
    repository, token = here.github_repository, here.github_token.get_secret_value()
    if not repository:
        return None
    if not _TOKEN.fullmatch(token):
        raise GitHubUnusable(
            f"MLOPS_GITHUB_REPOSITORY is {repository}, and MLOPS_GITHUB_TOKEN holds no token; give one that may write "
            "its contents, or unset both"
        )

    async def tell(body: bytes) -> None:
        event = event_of(body, _pipelines())
        if event:
            await dispatch(event, f"{here.github_api.rstrip('/')}/repos/{repository}/dispatches", token)

    return tell


async def dispatch(event: Event, url: str, token: str) -> None:
    """Tell GitHub of an event; what goes wrong is logged, and never holds the token."""
    import httpx

    headers = {
        "Authorization": f"Bearer {token}",
        "Accept": "application/vnd.github+json",
        "X-GitHub-Api-Version": "2022-11-28",
    }
    payload = {"pipeline": event.pipeline, "version": event.version}
    transport = httpx.AsyncHTTPTransport(retries=ATTEMPTS - 1)
    try:
        async with httpx.AsyncClient(transport=transport, timeout=SECONDS) as client:
            answer = await client.post(url, headers=headers, json={"event_type": event.kind, "client_payload": payload})
        problem = "" if answer.status_code == 204 else f"it answered {answer.status_code}"
    except httpx.HTTPError as error:
        problem = type(error).__name__  # the text of some tells a request's headers
    if problem:
        log.warning("%s was not told that %s version %d is %s: %s", url, *event[1:], event.kind, problem)


def _pipelines() -> list[Pipeline]:
    """The pipelines whose files can be read now."""
    found = []
    for folder in pipeline_folders():
        try:
            found.append(Pipeline.load(folder))
        except MlopsError as error:
            log.warning("%s", error)
    return found
