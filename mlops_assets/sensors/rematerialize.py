"""The `rematerialize` sensor: ask for exactly what a change of data or code made stale.

Belongs here: one tick. Does not: the comparison that it rests on (`assessment.py`, `staleness.py`), which
`mlops status` and the push of `mlops data commit` share.
"""

import json
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import dagster as dg

from mlops_assets.assessment import WISH_TAG, Assessment, active_runs, assess, has_moved
from mlops_assets.errors import MlopsError
from mlops_assets.oxen.repository import Repository
from mlops_assets.provenance import SENSOR, job_name, source_key
from mlops_assets.sensors.instance import instance_of
from mlops_assets.sensors.predictions import scoring_request
from mlops_assets.settings import settings

WATCH_SECONDS: Final = 3.5
"""How long a tick with nothing to do goes on looking at the data: the daemon's loop comes round every 5 s."""

WATCH_STEP_SECONDS: Final = 0.1
WATCH_SHARE: Final = 0.05
"""How much of that time the looking may take; a look is a few `stat` calls for each pipeline."""

READ_SECONDS: Final = 20.0
"""How long reading one repository's head may take; Dagster gives up on a tick after 60 s."""

MOST_ATTEMPTS: Final = 3
AGAIN_SECONDS: Final = 600.0
"""How long after a failed run its wish is asked for again; the second time, twice as long."""

MOST_CHARACTERS: Final = 2000
"""Of a tick's reason: one is kept for every five seconds of a day."""

NOTHING: Final = "nothing is stale"


def build_rematerialize(folders: Sequence[Path], jobs: Sequence[Any]) -> dg.SensorDefinition:
    """One sensor for all pipelines: a tick costs Dagster's daemon more than deciding about a hundred of them.

    Args:
        folders: The pipelines' folders.
        jobs: Their jobs.
    """

    @dg.sensor(
        name=SENSOR,
        jobs=jobs,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks for a run over what is stale in each pipeline, by the Oxen heads and the source files.",
    )
    def rematerialize(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        deadline = time.monotonic() + WATCH_SECONDS
        instance, seen = instance_of(context), json.loads(context.cursor or "{}")
        now = _look(folders, instance)
        # Not only once: a commit touches the repository some time before its branch points to it.
        while not now.requests and context.last_tick_completion_time is not None and _data_moves(now, deadline):
            now = _look(folders, instance)
        heads = {name: one.head.digest for name, one in now.assessed.items()}
        return dg.SensorResult(
            run_requests=now.requests,
            skip_reason=None if now.requests else now.reason,
            asset_events=[_observation(one) for name, one in now.assessed.items() if seen.get(name) != heads[name]],
            cursor=json.dumps(seen | heads),
        )

    return rematerialize


@dataclass
class _Look:
    """What one look at all pipelines found."""

    assessed: dict[str, Assessment] = field(default_factory=dict)
    requests: list[dg.RunRequest] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def add_scoring(self, name: str, now: Assessment) -> None:
        """Ask for predictions, when there is nothing else to do for a pipeline."""
        try:
            request = scoring_request(now, _repository(now.pipeline.repository))
        except MlopsError as error:
            self.reasons.append(f"{name}/predictions: {error}")
        else:
            self.requests += [request] if request else []

    @property
    def reason(self) -> str:
        return textwrap.shorten("; ".join(self.reasons) or NOTHING, MOST_CHARACTERS, placeholder=" ...")


def _look(folders: Sequence[Path], instance: dg.DagsterInstance) -> _Look:
    found = _Look()
    running = active_runs(instance, [folder.name for folder in folders])
    for name, run in running.items():
        found.reasons.append(f"run {run.run_id[:8]} of {name} is {run.status.value.lower()}")
    free = [folder for folder in folders if folder.name not in running]
    for name, now in assess(free, _repository, instance).items():
        if isinstance(now, MlopsError):
            found.reasons.append(f"{name}: {now}")
            continue
        found.assessed[name] = now
        wish = _wish(now, instance)
        if isinstance(wish, dg.RunRequest):
            found.requests.append(wish)
        elif wish != NOTHING:
            found.reasons.append(f"{name}: {wish}")
        elif now.pipeline.spec.sensor:
            found.add_scoring(name, now)
    return found


def _repository(name: str) -> Repository:
    return Repository(settings().repository(name).path, timeout=READ_SECONDS)


def _data_moves(now: _Look, deadline: float) -> bool:
    """Wait for new data; whether some came in time."""
    watched = [(_repository(one.pipeline.repository), one.pipeline.spec.data) for one in now.assessed.values()]
    pause = WATCH_STEP_SECONDS
    while time.monotonic() + pause < deadline:
        time.sleep(pause)
        began = time.monotonic()
        if any(has_moved(repository, data.branch, data.path) for repository, data in watched):
            return True
        pause = max(WATCH_STEP_SECONDS, (time.monotonic() - began) / WATCH_SHARE)
    return False


def _wish(now: Assessment, instance: dg.DagsterInstance) -> dg.RunRequest | str:
    """What to ask for, or why nothing is.

    Dagster drops a request whose key it has seen, so one wish is one run. A run that failed may have met an outage, and
    is asked for again, a few times and ever later.
    """
    name = now.pipeline.name
    if not now.plan.stale:
        return f"blocked: {now.plan.blocked}" if now.plan.blocked else NOTHING
    if not now.pipeline.spec.sensor:
        return f"stale, but its defs.yaml says `sensor: false`; use `mlops run {name}`"
    run_key = now.run_key
    filters = dg.RunsFilter(tags={WISH_TAG: run_key}, statuses=[dg.DagsterRunStatus.FAILURE])
    failed = [one for one in instance.get_run_records(filters) if one.end_time]
    if failed:
        attempts = len({one.dagster_run.get_root_run_id() or one.dagster_run.run_id for one in failed})
        if attempts >= MOST_ATTEMPTS:
            return f"asked for {attempts} times and failed each time; see the runs, and use `mlops run {name}`"
        due = max(one.end_time or 0.0 for one in failed) + attempts * AGAIN_SECONDS
        if time.time() < due:
            return f"asked for and failed; asked for again in {due - time.time():.0f} s"
        run_key = f"{run_key}-{attempts + 1}"
    return dg.RunRequest(run_key=run_key, job_name=job_name(name), asset_selection=now.selection, tags=now.tags)


def _observation(now: Assessment) -> dg.AssetObservation:
    """Tell Dagster's lineage which data version Oxen has; no run is needed for that."""
    commit = now.head.commit
    return dg.AssetObservation(
        asset_key=source_key(now.pipeline.name),
        tags={"dagster/data_version": now.head.digest},
        metadata={
            "oxen commit": commit.id,
            "message": commit.message,
            "author": commit.author,
            "committed": dg.MetadataValue.timestamp(commit.timestamp),
        },
    )
