"""Asking a running Dagster for a run at once, instead of at the sensor's next tick.

Belongs here: launching what is stale through the webserver's GraphQL. Does not: deciding what is stale
(`staleness.py`), and the safety net for everything that nobody pushes (`sensors/rematerialize.py`).

A push is the sensor's own wish, asked for earlier: it carries the run key and the sensor's name, by which Dagster's
daemon recognises the wish as already asked for. So push and tick never make two runs of one change, and the run of a
push that failed is not asked for again.

Nothing is imported here that costs time: whoever pushes may load Dagster before the commit, and launch right behind it.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from mlops_assets.errors import MlopsError

if TYPE_CHECKING:
    import dagster as dg

    from mlops_assets.assessment import Assessment
    from mlops_assets.settings import Settings

REPOSITORY: Final = "__repository__"
"""Dagster's name for the definitions of a code location that names no repository itself."""

CONNECT_SECONDS: Final = 0.3
"""A webserver on this machine accepts within milliseconds, also when it is busy; nobody waits longer for none."""

LAUNCH_SECONDS: Final = 30.0
"""The webserver asks the code server for the plan first, which may be loading."""

RUN_KEY_TAG: Final = "dagster/run_key"
SENSOR_TAG: Final = "dagster/sensor_name"
LAUNCHED_BY_TAG: Final = "mlops/launched_by"

# Without `assetCheckSelection`, Dagster takes all checks of the selected assets.
LAUNCH: Final = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on RunConflict { message }
    ... on Error { message }
  }
}
"""


class PushError(MlopsError):
    """Dagster answers, but does not start the run."""


class Pushed(NamedTuple):
    """What came of a push: the run that was launched, or None, and one sentence for people."""

    run_id: str | None
    sentence: str


def answers(here: Settings) -> bool:
    """Whether anything accepts connections where the Dagster webserver would be."""
    url = urlsplit(here.dagster_url)
    try:
        socket.create_connection((url.hostname or "", url.port or 80), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def push(now: Assessment, instance: dg.DagsterInstance, here: Settings) -> Pushed:
    """Launch one run over what is stale in a pipeline, unless one is queued or under way.

    Raises:
        PushError: The webserver answers, but refuses or fails; nothing is lost, as the sensor asks again.
    """
    from mlops_assets.assessment import active_run

    name = now.pipeline.name
    if not now.plan.stale:
        why = f"{name} is blocked: {now.plan.blocked}" if now.plan.blocked else f"nothing is stale in {name}"
        return Pushed(None, why)
    running = active_run(instance, name)
    if running:
        status = running.status.value.lower()
        return Pushed(None, f"run {running.run_id[:8]} of {name} is {status}; the sensor follows when it has ended")
    run_id = _launch(now, here)
    if run_id is None:
        return Pushed(None, nobody_there(name, here))
    return Pushed(run_id, f"run {run_id[:8]} started: {here.dagster_page}/runs/{run_id}")


def nobody_there(name: str, here: Settings) -> str:
    """What happens next when no webserver answers."""
    return (
        f"no Dagster webserver answers at {here.dagster_url}: `mlops run {name}` runs what is stale now, and otherwise "
        "the sensor does once `mlops up` is running"
    )


def _launch(now: Assessment, here: Settings) -> str | None:
    """The id of the launched run; None when no webserver answers."""
    import httpx

    timeout = httpx.Timeout(LAUNCH_SECONDS, connect=CONNECT_SECONDS)
    try:
        # The server is on this machine: no proxy of the environment stands in between.
        with httpx.Client(trust_env=False, timeout=timeout) as client:
            answer = client.post(f"{here.dagster_url}/graphql", json=_request(now, here))
    except (httpx.ConnectError, httpx.ConnectTimeout):
        return None
    except httpx.HTTPError as error:
        raise PushError(
            f"the Dagster webserver at {here.dagster_url} broke off ({type(error).__name__}); "
            f"look at {here.dagster_page}/runs whether it started the run"
        ) from error
    return _run_id(answer, now.pipeline.name, here)


def _request(now: Assessment, here: Settings) -> dict[str, Any]:
    from mlops_assets.provenance import SENSOR, job_name

    name = now.pipeline.name
    tags = {
        **now.tags,
        LAUNCHED_BY_TAG: "push",
        RUN_KEY_TAG: now.run_key,
        SENSOR_TAG: SENSOR,
    }
    params = {
        "selector": {
            "repositoryLocationName": here.location,
            "repositoryName": REPOSITORY,
            "jobName": job_name(name),
            "assetSelection": [{"path": list(key.path)} for key in now.selection],
        },
        "runConfigData": {},
        "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
    }
    return {"query": LAUNCH, "variables": {"params": params}}


def _run_id(answer: Any, name: str, here: Settings) -> str:
    try:
        body = answer.json()
        launched = (body.get("data") or {}).get("launchRun")
        problems = [str(error["message"]) for error in body.get("errors") or []]
    except (ValueError, AttributeError, KeyError, TypeError):
        launched, problems = None, []
    if launched and launched["__typename"] == "LaunchRunSuccess":
        return str(launched["run"]["runId"])
    if launched:
        raise PushError(_refusal(launched, name, here))
    if problems:
        raise PushError(
            f"Dagster at {here.dagster_url} does not understand the launch ({_line(problems[0])}); "
            f"install the version that mlops_assets asks for, or use `mlops run {name}`"
        )
    raise PushError(
        f"what answers at {here.dagster_url} is no Dagster webserver (HTTP {answer.status_code}); "
        "set MLOPS_DAGSTER_PORT to the port of Dagster"
    )


def _refusal(launched: dict[str, Any], name: str, here: Settings) -> str:
    """One sentence for an answer that is not a run."""
    where = f"Dagster at {here.dagster_url}"
    errors = launched.get("errors") or []
    told = _line(launched.get("message") or "; ".join(str(error["message"]) for error in errors))
    match launched["__typename"]:
        case "PythonError" if "DagsterCodeLocation" in told:
            return f"{where} cannot load the code location '{here.location}'; its Deployment page says why ({told})"
        case "PythonError" | "PipelineNotFoundError" if "job" in told.lower() and f"{name}_job" in told:
            return f"{where} does not know the pipeline '{name}' yet; reload the code location '{here.location}' there"
        case "InvalidSubsetError":
            return f"{where} has '{name}' in an older form; reload the code location '{here.location}' there ({told})"
        case "UnauthorizedError":
            return f"{where} is read-only; use `mlops run {name}`, or start its webserver without --read-only"
        case "RunConfigValidationInvalid":
            return f"{where} refuses to run '{name}' without configuration ({told}); launch it there by hand"
        case kind:
            return f"{where} could not start the run ({kind}: {told}); use `mlops run {name}`, which says more"


def _line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given").rstrip(".")
