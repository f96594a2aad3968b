"""A pipeline with everything real around it, driven tick by tick in one process."""

import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from mlops_assets.component import pipeline_definitions
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.oxen.repository import Repository
from mlops_assets.oxen.tree import Commit
from mlops_assets.pipeline import DEFS, STAGES, Pipeline
from mlops_assets.provenance import SENSOR, job_name
from mlops_assets.resources.mlflow import MLflowResource
from mlops_assets.resources.oxen import OxenResource
from mlops_assets.resources.store import StoreResource
from mlops_assets.sensors.rematerialize import build_rematerialize
from mlops_assets.settings import Settings, settings
from mlops_assets.tracking.runs import Tracking
from mlops_assets_tests.mlflow_fixtures import close_stores

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class Loop:
    """A copy of a shipped pipeline in a folder of the test's own."""

    here: Settings
    instance: dg.DagsterInstance
    folder: Path
    cursor: str | None = None
    run_keys: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def repository(self) -> Repository:
        return self.here.repository(self.name)

    @property
    def resources(self) -> dict[str, dg.ConfigurableResource]:
        return {
            "oxen": OxenResource(home=str(self.here.home)),
            "store": StoreResource(url=self.here.store_url),
            "mlflow": MLflowResource(home=str(self.here.home)),
        }

    def definitions(self) -> dg.Definitions:
        pipeline = pipeline_definitions(Pipeline.load(self.folder))
        sensor = build_rematerialize([self.folder], list(pipeline.jobs or ()))
        platform = dg.Definitions(sensors=[sensor], resources=self.resources, executor=dg.in_process_executor)
        definitions = dg.Definitions.merge(pipeline, platform)
        definitions.get_repository_def()
        return definitions

    def commit(self, table: pl.DataFrame | bytes, message: str = "change") -> Commit | None:
        self.repository.init()
        content = table if isinstance(table, bytes) else table.write_csv().encode()
        return self.repository.commit(message, files={"iris.csv": content})

    def edit(self, file: str, old: str, new: str) -> None:
        text = (self.folder / file).read_text()
        assert old in text
        (self.folder / file).write_text(text.replace(old, new))

    def tick(self) -> dg.RunRequest | str:
        """Evaluate the real sensor, as the daemon would; a request, or why there is none."""
        definitions = self.definitions()
        result = self.evaluate(definitions)
        self.cursor = result.cursor
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        if not result.run_requests:
            assert isinstance(result.skip_reason, dg.SkipReason)
            return str(result.skip_reason.skip_message)
        (request,) = result.run_requests
        if request.run_key in self.run_keys:
            return "asked for before"
        self.run_keys.add(request.run_key)
        return request

    def evaluate(self, definitions: dg.Definitions) -> dg.SensorResult:
        """Call the sensor of a code location that may have been loaded before the files changed."""
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        result = definitions.get_repository_def().get_sensor_def(SENSOR)(context)
        assert isinstance(result, dg.SensorResult)
        return result

    def run(
        self, selection: list[dg.AssetKey] | None = None, tags: Mapping[str, str] | None = None
    ) -> dg.ExecuteInProcessResult:
        """Run a selection, by default everything, as the UI's button would."""
        job = self.definitions().resolve_job_def(job_name(self.name))
        return job.execute_in_process(
            instance=self.instance, run_config=QUIET, asset_selection=selection, tags=tags, raise_on_error=False
        )

    def settle(self) -> list[str]:
        """One tick, and the run it asks for; the names of the stages that were materialized."""
        request = self.tick()
        if isinstance(request, str):
            return []
        return made(self.run(list(request.asset_selection or []), request.tags))


def made(result: dg.ExecuteInProcessResult) -> list[str]:
    """The stages that a run materialized."""
    return [
        event.step_materialization_data.materialization.asset_key.path[-1]
        for event in result.all_events
        if event.is_step_materialization
    ]


@contextmanager
def looping(here: Settings, folder: Path, *, epochs: int = 40) -> Iterator[Loop]:
    """The shipped pipeline of the folder's name, trained briefly, over a home."""
    shutil.copytree(DEFS / folder.name, folder)
    yaml = folder / "defs.yaml"
    yaml.write_text(re.sub(r"epochs: \d+", f"epochs: {epochs}", yaml.read_text()))
    with open_instance(here) as instance:
        yield Loop(here, instance, folder)


@contextmanager
def living_in(home: Path) -> Iterator[None]:
    """Have this process use a home, as `_own_home` has a test use its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOPS_HOME", str(home))
        patch.setenv("DAGSTER_HOME", str(home / "dagster"))
        settings.cache_clear()
        yield
    settings.cache_clear()


def prepare(
    place: Path,
    name: str,
    files: Mapping[str, bytes],
    *,
    epochs: int = 40,
    change: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Fill a folder with a home in which a pipeline has run once, over these files, and with the pipeline's folder."""
    with living_in(place / "home"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests that do as this does name what they ignore
        with looping(ensure_home(settings()), place / "defs" / name, epochs=epochs) as loop:
            change(loop.folder)
            loop.repository.init()
            loop.repository.commit("first", files=files)
            assert loop.settle() == list(STAGES)
        close_stores()


@contextmanager
def copied(template: Path, place: Path) -> Iterator[Loop]:
    """A copy of what `prepare` made: homes can be moved."""
    for name in ("home", "defs"):
        shutil.copytree(template / name, place / name, dirs_exist_ok=True)
    (folder,) = (place / "defs").iterdir()
    here = ensure_home(settings())
    with open_instance(here) as instance:
        yield Loop(here, instance, folder)
    close_stores()


def trainings(loop: Loop) -> int:
    """How many MLflow runs trained a model."""
    client = Tracking.embedded(loop.here.home).client
    experiment = client.get_experiment_by_name(loop.name)
    return len(client.search_runs([experiment.experiment_id], "tags.`mlops.recipe` != ''")) if experiment else 0
