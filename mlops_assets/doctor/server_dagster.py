"""Checks of Dagster's servers: the webserver, the code locations, the daemons, and what dagster.yaml asks for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from mlops_assets.doctor.asking import asking
from mlops_assets.doctor.examination import Examination, Finding

if TYPE_CHECKING:
    import dagster as dg

LATEST_SECONDS: Final = 120.0
"""A daemon tells every 30 s that it lives."""

MOST_POLL_SECONDS: Final = 20
"""So often are runs looked after, or a killed one is not tried again within two minutes."""

_LOCATIONS: Final = """
query Locations {
  workspaceOrError {
    ... on PythonError { message }
    ... on Workspace {
      locationEntries {
        name
        loadStatus
        locationOrLoadError {
          ... on PythonError { message causes { message } }
          ... on RepositoryLocation { dagsterLibraryVersions { name version } }
        }
      }
    }
  }
}
"""


def webserver(look: Examination) -> Iterator[Finding]:
    """Whether the webserver answers below its prefix, is of our release, and has loaded the code locations."""
    here = look.here
    if not here.dagster_at:
        return
    with asking(here.dagster_url) as asker:
        answer = asker.get("/server_info")
        if not answer.is_success or "dagster_version" not in answer.text:
            prefix = urlsplit(here.dagster_url).path or "/"
            what = f"{here.dagster_url}/server_info answers {answer.status_code}: no Dagster is below {prefix}"
            fix = f"start `dagster-webserver` with --path-prefix {prefix}, or mend MLOPS_DAGSTER_URL"
            yield Finding("Dagster's server", "problem", what, fix)
            return
        told = asker.ask("POST", "/graphql", json={"query": _LOCATIONS}).json()["data"]["workspaceOrError"]
    ours, theirs = metadata.version("dagster"), answer.json()["dagster_version"]
    sound = theirs == ours
    if not sound:
        what = f"the webserver is Dagster {theirs}, here is {ours}"
        yield Finding("Dagster's server", "warning", what, "install the same at both, and start them again")
    entries = told.get("locationEntries", [])
    for wrong in [_flaw(entry, ours) for entry in entries]:
        if wrong:
            sound = False
            yield wrong
    if here.location not in {entry["name"] for entry in entries}:
        sound = False
        why = told.get("message") or f"it has {', '.join(entry['name'] for entry in entries) or 'none'}"
        what = f"the webserver has no code location {here.location}: {_line(why)}"
        fix = "name it in the webserver's and the daemon's workspace.yaml, or mend MLOPS_LOCATION"
        yield Finding("Dagster's server", "problem", what, fix)
    if sound:
        loaded = ", ".join(entry["name"] for entry in entries)
        yield Finding("Dagster's server", "ok", f"{theirs} answers at {here.dagster_url}, and has loaded {loaded}")


def daemons(look: Examination) -> Iterator[Finding]:
    """Whether every daemon has told of late that it lives, and nothing that it failed at."""
    if not look.here.dagster_at or look.instance is None:
        return
    heartbeats, sound = look.instance.get_daemon_heartbeats(), True
    needed = sorted(look.instance.get_required_daemon_types())
    for kind in needed:
        heartbeat = heartbeats.get(kind)
        age = time.time() - heartbeat.timestamp if heartbeat else None
        name = f"the {kind.lower().replace('_', ' ')} daemon"
        if age is None or age > LATEST_SECONDS:
            sound = False
            since = "never told that it lives" if age is None else f"told last {age:.0f} s ago that it lives"
            fix = "start `dagster-daemon run` with this DAGSTER_HOME, and look at its log"
            yield Finding("daemons", "problem", f"{name} {since}", fix)
        elif heartbeat and heartbeat.errors:
            sound = False
            what = f"{name} fails: {_line(heartbeat.errors[0].message)}"
            yield Finding("daemons", "warning", what, "look at the daemon's log; a code location may not load")
    if sound:
        yield Finding("daemons", "ok", f"{len(needed)} told within {LATEST_SECONDS:.0f} s that they live")


def configuration(look: Examination) -> Iterator[Finding]:
    """Whether dagster.yaml keeps everything in PostgreSQL, and looks after runs as the platform wants it."""
    if look.instance is None:
        return
    file, sound = look.dagster_home / "dagster.yaml", True
    for flaw in _unwanted(look, look.instance):
        sound = False
        fix = f"correct {file}, or move it away and run any `mlops` command, which writes it anew"
        yield Finding("dagster.yaml", "warning", flaw, fix)
    if sound:
        yield Finding("dagster.yaml", "ok", f"{file} looks after runs as it should")


def _unwanted(look: Examination, instance: dg.DagsterInstance) -> Iterator[str]:
    """What dagster.yaml has otherwise than the one that the platform writes."""
    from mlops_assets.provenance import PIPELINE_TAG

    limits = instance.get_concurrency_config().run_queue_config
    if look.here.dagster_database.get_secret_value() and type(instance.run_storage).__module__.startswith("dagster."):
        yield "MLOPS_DAGSTER_DATABASE is set, but runs are kept in SQLite"
    if not instance.run_monitoring_enabled:
        yield "run_monitoring is off: a run whose process was killed stays under way for ever"
    elif instance.run_monitoring_poll_interval_seconds > MOST_POLL_SECONDS:
        yield (
            f"run_monitoring looks every {instance.run_monitoring_poll_interval_seconds} s only, "
            f"{MOST_POLL_SECONDS} s are wanted"
        )
    if not (instance.run_retries_enabled and instance.run_retries_max_retries):
        yield "run_retries is off: a run whose process was killed is not tried again"
    if limits is None or PIPELINE_TAG not in {limit.get("key") for limit in limits.tag_concurrency_limits}:
        yield f"no limit of concurrency has the key {PIPELINE_TAG}: runs of one pipeline may collide"


def _flaw(entry: dict[str, Any], ours: str) -> Finding | None:
    """What is wrong with a code location."""
    loaded = entry["locationOrLoadError"] or {}
    what = f"the code location {entry['name']}"
    if "dagsterLibraryVersions" not in loaded:
        errors = [loaded, *loaded.get("causes", ())]
        why = _line(errors[-1].get("message") or f"its status is {entry['loadStatus']}")
        fix = "mend what it says, start the code server again, and reload the location in Dagster's UI"
        return Finding("Dagster's server", "problem", f"{what} is not loaded: {why}", fix)
    versions = {one["name"]: one["version"] for one in loaded["dagsterLibraryVersions"] or ()}
    theirs = versions.get("dagster", ours)
    if theirs != ours:
        return Finding("Dagster's server", "warning", f"{what} has Dagster {theirs}, here is {ours}", "install one")
    return None


def _line(message: str) -> str:
    """What an error says, without its traceback."""
    return " ".join(message.split())[:300]
