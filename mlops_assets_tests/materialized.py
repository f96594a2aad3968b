"""Materializations as the platform records them, written without running anything."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from mlops_assets.assessment import Assessment, assess
from mlops_assets.data import samples
from mlops_assets.errors import MlopsError
from mlops_assets.fingerprint import Recipe
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.pipeline import BLOCKING_CHECKS, DEFS, STAGES, Pipeline, Stage
from mlops_assets.provenance import RECIPE, asset_key, provenance_metadata, read_state
from mlops_assets.settings import Settings, settings
from mlops_assets.staleness import Wanted, recipe
from mlops_assets_tests.loop import living_in
from mlops_assets_tests.templates import made_once


def report(instance: dg.DagsterInstance, pipeline: str, stage: Stage, digest: str, made_by: Recipe) -> None:
    """A stage's materialization, without its checks."""
    metadata = provenance_metadata(made_by, digest)
    instance.report_runless_asset_event(dg.AssetMaterialization(asset_key(pipeline, stage), metadata=metadata))


def report_check(
    instance: dg.DagsterInstance, pipeline: str, stage: Stage, check: str, made_by: Recipe, *, passed: bool = True
) -> None:
    """The result of a stage's blocking check."""
    evaluation = dg.AssetCheckEvaluation(
        asset_key=asset_key(pipeline, stage),
        check_name=check,
        passed=passed,
        blocking=True,
        metadata={RECIPE: made_by.key},
    )
    instance.report_runless_asset_event(evaluation)


def settle(instance: dg.DagsterInstance, pipeline: Pipeline, source: str) -> None:
    """Everything that a pipeline wants for a source, so that nothing of it is stale."""
    wanted = Wanted.of(pipeline, source)
    for stage in STAGES:
        made_by = recipe(stage, pipeline.name, wanted, read_state(instance, pipeline.name), tick="")
        assert made_by
        report(instance, pipeline.name, stage, f"{stage}-of-{source}", made_by)
        for check in BLOCKING_CHECKS[stage]:
            report_check(instance, pipeline.name, stage, check, made_by)


@dataclass
class Several:
    """Copies of iris with data of their own and nothing stale."""

    here: Settings
    instance: dg.DagsterInstance
    folders: list[Path]

    def look(self) -> dict[str, Assessment | MlopsError]:
        return assess(self.folders, self.here.repository, self.instance)

    def stale(self) -> dict[str, list[str]]:
        """The stale stages by pipeline, where there are any."""
        found = {name: list(now.plan.stale) for name, now in self.look().items() if isinstance(now, Assessment)}
        return {name: stages for name, stages in found.items() if stages}


NAMES = ("one", "two")


def _make_several(place: Path) -> None:
    with living_in(place / "home"), open_instance(ensure_home(settings())) as instance:
        for name in NAMES:
            folder = Path(shutil.copytree(DEFS / "iris", place / "defs" / name))
            repository = settings().repository(name)
            repository.init()
            commit = repository.commit("first", files={"iris.csv": samples.iris().write_csv().encode()})
            assert commit
            settle(instance, Pipeline.load(folder), repository.digest("iris.csv", commit.id))


@pytest.fixture
def several(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Iterator[Several]:
    template = made_once(tmp_path_factory, "several", _make_several)
    for name in ("home", "defs"):
        shutil.copytree(template / name, tmp_path / name)
    here = ensure_home(settings())
    with open_instance(here) as instance:
        yield Several(here, instance, [tmp_path / "defs" / name for name in NAMES])
