"""Many pipelines at once: what is remembered between two looks is never older than files, Oxen and event log."""

import os
import shutil
from functools import partial
from pathlib import Path

import dagster as dg
import pytest

from mlops_assets.assessment import Assessment, active_runs, has_moved
from mlops_assets.data import samples
from mlops_assets.errors import MlopsError
from mlops_assets.provenance import asset_key
from mlops_assets_tests.materialized import Several, several

__all__ = ["several"]

pytestmark = pytest.mark.slow


def edit_unseen(path: Path, old: str, new: str) -> None:
    """Change a file in place, and leave it its size and its time."""
    assert len(old) == len(new)
    text, status = path.read_text(), path.stat()
    assert old in text
    path.write_text(text.replace(old, new))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_an_edit_is_seen_whatever_the_files_stamp_says(several: Several) -> None:
    assert several.stale() == {}
    edit_unseen(several.folders[0] / "defs.yaml", "learning_rate: 0.01", "learning_rate: 0.02")
    assert several.stale() == {"one": ["model", "evaluation", "champion", "deployment"]}
    edit_unseen(several.folders[0] / "defs.yaml", "learning_rate: 0.02", "learning_rate: 0.01")
    assert several.stale() == {}
    edit_unseen(several.folders[1] / "features.py", "sepal_length", "sepal_width ")
    assert several.stale() == {"two": ["features", "model", "evaluation", "champion", "deployment"]}


def test_what_did_not_change_is_not_parsed_again(several: Several) -> None:
    before = several.look()
    edit_unseen(several.folders[0] / "defs.yaml", "learning_rate: 0.01", "learning_rate: 0.02")
    after = several.look()
    for now in (before["two"], after["two"], after["one"]):
        assert isinstance(now, Assessment)
    assert after["two"].pipeline is before["two"].pipeline
    assert after["one"].pipeline is not before["one"].pipeline


def test_new_data_is_seen_at_once(several: Several) -> None:
    assert several.stale() == {}
    repository = several.here.repository("two")
    assert not has_moved(repository, "main", "iris.csv")
    repository.commit("second", files={"iris.csv": samples.iris_uci().write_csv().encode()})
    assert has_moved(repository, "main", "iris.csv")
    assert not has_moved(several.here.repository("one"), "main", "iris.csv")
    assert list(several.stale()) == ["two"]
    assert not has_moved(repository, "main", "iris.csv"), "it was looked at since"


def test_a_wiped_asset_is_wanted_again(several: Several) -> None:
    assert several.stale() == {}
    several.instance.wipe_assets([asset_key("one", "evaluation")])
    assert several.stale() == {"one": ["evaluation", "champion", "deployment"]}


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda folder, store: (folder / "defs.yaml").unlink(), r"defs\.yaml does not exist"),
        (lambda folder, store: (folder / "defs.yaml").write_text("type: other"), "a pipeline starts with"),
        (lambda folder, store: (folder / "model.py").write_text("def ("), r"model\.py:1: not valid Python"),
        (lambda folder, store: (folder / "model.py").write_text("x = " + "-" * 20_000 + "1"), "nests too deeply"),
        (lambda folder, store: shutil.rmtree(store), "no Oxen repository"),
        (
            lambda folder, store: (shutil.rmtree(store / "refs"), (store / "refs").write_text("")),
            r"one cannot be .*refs",
        ),
    ],
)
def test_one_that_cannot_be_assessed_does_not_stop_the_others(several: Several, broken, said: str) -> None:
    broken(several.folders[0], several.here.repository("one").path / ".oxen")
    now = several.look()
    assert isinstance(now["one"], MlopsError)
    assert pytest.RaisesExc(MlopsError, match=said).matches(now["one"]), str(now["one"])
    assert isinstance(now["two"], Assessment)


@pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning")  # Dagster's own use of it
def test_a_run_is_of_all_pipelines_that_it_touches(several: Several) -> None:
    def made(name: str) -> dg.AssetsDefinition:
        @dg.asset(key=asset_key(name, "model"))
        def model() -> None: ...

        return model

    jobs = dg.Definitions(
        assets=[made("one"), made("two")],
        jobs=[dg.define_asset_job("one_job", selection=dg.AssetSelection.assets(asset_key("one", "model")))],
    )
    create, look = several.instance.create_run_for_job, partial(active_runs, several.instance)
    assert look(["one", "two"]) == {}
    run = create(jobs.resolve_job_def("one_job"), status=dg.DagsterRunStatus.STARTING)
    assert look(["one", "two"]) == {"one": run}
    both = frozenset({asset_key("one", "model"), asset_key("two", "model")})
    by_hand = create(
        jobs.resolve_implicit_global_asset_job_def(), status=dg.DagsterRunStatus.STARTED, asset_selection=both
    )
    assert look(["two"]) == {"two": by_hand}
    assert set(look(["one", "two"])) == {"one", "two"}
