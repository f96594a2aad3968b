"""All pipelines at a glance: what is stale and why, the champion, what answers, and the last run.

Belongs here: gathering, once for `mlops status` and the portal page. Not here: judging (`assessment.py`), and showing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlops_assets.errors import MlopsError
from mlops_assets.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

    from mlops_assets.assessment import Assessment
    from mlops_assets.report import ChampionFacts

SERVED_SECONDS: Final = 2.0
"""How long the model server may take to say what it answers with."""


@dataclass(frozen=True)
class Overview:
    """A pipeline now.

    Attributes:
        now: Its data and what is stale, or why that cannot be told.
        champion: The newest decision about it; None before the first.
        running: A run that is queued or under way.
        last_run: The newest run.
    """

    name: str
    now: Assessment | MlopsError
    champion: ChampionFacts | None
    running: dg.DagsterRun | None
    last_run: dg.DagsterRun | None


def overviews(folders: Sequence[Path], here: Settings, instance: dg.DagsterInstance) -> list[Overview]:
    """What is to be known of pipelines, from Oxen, their files and Dagster; asks no server of ours."""
    from mlops_assets.assessment import active_runs, assess
    from mlops_assets.report import all_champion_facts, last_runs

    names = [folder.name for folder in folders]
    champions, runs = all_champion_facts(instance, names), last_runs(instance, names)
    running = active_runs(instance, names)
    return [
        Overview(name, now, champions.get(name), running.get(name), runs.get(name))
        for name, now in assess(folders, here.repository, instance).items()
    ]


def served_versions(here: Settings) -> Mapping[str, int | None] | None:
    """By pipeline, the version that the model server answers with; None where it has a champion and cannot serve it.

    None for all when no model server answers.
    """
    import httpx

    try:
        told = httpx.get(f"{here.serve_url}/health", timeout=SERVED_SECONDS, trust_env=False).json()["pipelines"]
        return {name: one["version"] for name, one in told.items()}
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
        return None  # none is up, or something else listens there
