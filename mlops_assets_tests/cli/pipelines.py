"""Folders of pipelines to begin from, and a whole run of what was written into one."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from mlops_assets.component import pipeline_definitions
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.pipeline import DEFS, Pipeline
from mlops_assets.provenance import job_name
from mlops_assets.resources.mlflow import MLflowResource
from mlops_assets.resources.oxen import OxenResource
from mlops_assets.resources.store import StoreResource
from mlops_assets.settings import Settings, settings
from mlops_assets_tests.mlflow_fixtures import close_stores


@pytest.fixture
def here() -> Settings:
    return ensure_home(settings())


@pytest.fixture
def defs(tmp_path: Path) -> Path:
    """A folder of pipelines with iris in it."""
    place = tmp_path / "package" / "defs"
    shutil.copytree(DEFS / "iris", place / "iris", ignore=shutil.ignore_patterns("__pycache__"))
    return place


@pytest.fixture
def instance(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    with open_instance(ensure_home(settings())) as opened:
        yield opened
    close_stores()


def run(folder: Path, instance: dg.DagsterInstance, here: Settings) -> dict[str, tuple[bool, str]]:
    """A whole run; the checks with their descriptions."""
    resources = {
        "oxen": OxenResource(home=str(here.home)),
        "store": StoreResource(url=here.store_url),
        "mlflow": MLflowResource(home=str(here.home)),
    }
    platform = dg.Definitions(resources=resources, executor=dg.in_process_executor)
    definitions = dg.Definitions.merge(pipeline_definitions(Pipeline.load(folder)), platform)
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    job = definitions.resolve_job_def(job_name(folder.name))
    result = job.execute_in_process(instance=instance, run_config=quiet)
    return {one.check_name: (one.passed, one.description or "") for one in result.get_asset_check_evaluations()}
