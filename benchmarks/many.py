"""Projects of many pipelines, and bare Dagster projects of the same size."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.project import CHECKOUT, Project, copied_project, iris_csv

COUNTS = (1, 10, 100)


@contextmanager
def pipelines(count: int) -> Iterator[Project]:
    """A project of so many copies of iris with nothing stale; trained for a few epochs, as training is not measured."""
    with copied_project() as project:
        defs = project.folder / "mlops_assets" / "defs"
        for other in {folder for folder in defs.iterdir() if folder.is_dir()} - {defs / "iris"}:
            shutil.rmtree(other)
        yaml = defs / "iris" / "defs.yaml"
        yaml.write_text(yaml.read_text().replace("epochs: 200", "epochs: 3"))
        table = project.folder / "iris.csv"
        table.write_text(iris_csv(0))
        project.mlops("data", "import", "iris", str(table), "--no-push")
        project.mlops("run", "iris")
        project.run(str(CHECKOUT / "benchmarks" / "copies.py"), str(count))
        yield project


@contextmanager
def bare(count: int) -> Iterator[Project]:
    """A bare Dagster project of as many assets, checks, jobs and sensors, under the same `dagster.yaml`."""
    from mlops_assets.home import DAGSTER_YAML

    with copied_project(copy=False) as empty:
        home, watched = empty.home / "dagster", empty.folder / "watched"
        home.mkdir(parents=True)
        watched.mkdir()
        (home / "dagster.yaml").write_text(DAGSTER_YAML)
        shutil.copy(CHECKOUT / "benchmarks" / "bare_many.py", empty.folder)
        for number in range(count):
            (watched / f"bare_{number:03d}").write_text("0")
        variables = {
            "BARE_COUNT": str(count),
            "BARE_FOLDER": str(watched),
            "DAGSTER_HOME": str(home),
            "DAGSTER_DISABLE_TELEMETRY": "true",
            "PYTHONWARNINGS": "ignore",
        }
        project = Project(empty.folder, {**empty.environment, **variables})
        with project.instance() as made:
            _ = made.run_storage, made.event_log_storage, made.schedule_storage  # before two processes do
        yield project
