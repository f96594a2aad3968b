"""A source is followed: real schedules and sensors, real runs, a real HTTP server, SQLite and folders."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import yaml
from pydantic import ValidationError

from mlops_assets.assessment import REASON_TAG
from mlops_assets.assets.dataset import OXEN_COMMIT
from mlops_assets.data import samples
from mlops_assets.data.readers import read_table
from mlops_assets.pipeline import STAGES, Pipeline
from mlops_assets.provenance import import_job_name, import_key, latest_metadata, source_key
from mlops_assets.spec import PipelineSpec
from mlops_assets.spec_file import SpecError, load_spec
from mlops_assets_tests.data.test_download import serving
from mlops_assets_tests.loop import QUIET, Loop

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:(Parameter|Function) `(execution_type|(multi_)?observable_source_asset):dagster.BetaWarning"
    ),
    pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning"),  # Dagster's own use of it
]

ORIGIN = "    origin: {sample: iris}\n"


def give_source(loop: Loop, source: str) -> None:
    loop.edit("defs.yaml", ORIGIN, f"{ORIGIN}    source: {{{source}}}\n")


def fetch(loop: Loop, *, tick: str = "2024-01-01T03:00:00") -> dg.ExecuteInProcessResult | str:
    """One tick of the real schedule, and the run it asks for; or why there is none."""
    repository = loop.definitions().get_repository_def()
    at = datetime.fromisoformat(tick).replace(tzinfo=UTC)
    context = dg.build_schedule_context(instance=loop.instance, scheduled_execution_time=at)
    data = repository.get_schedule_def("iris_import").evaluate_tick(context)
    if data.skip_message:
        return data.skip_message
    (request,) = data.run_requests or ()
    job = loop.definitions().resolve_job_def(import_job_name("iris"))
    return job.execute_in_process(instance=loop.instance, run_config=QUIET, tags=request.tags, raise_on_error=False)


def outcome(loop: Loop) -> str:
    return str(latest_metadata(loop.instance, [import_key("iris")])[0]["outcome"].value)


def failure(result: dg.ExecuteInProcessResult | str) -> str:
    assert isinstance(result, dg.ExecuteInProcessResult)
    assert not result.success
    return str(result.failure_data_for_node("iris__import"))


def database(loop: Loop, table: pl.DataFrame) -> str:
    file = loop.folder.parent / "flowers.db"
    with sqlite3.connect(file) as made:
        made.execute("DROP TABLE IF EXISTS flowers")
        made.execute(f"CREATE TABLE flowers ({', '.join(table.columns)})")
        made.executemany(f"INSERT INTO flowers VALUES ({', '.join('?' * table.width)})", table.rows())
    made.close()
    return f"sqlite:///{file}"


@pytest.mark.slow
def test_a_table_of_a_database_is_followed_and_runs_nothing_where_it_is_unchanged(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_source(loop, 'sql: "SELECT * FROM flowers", database: FLOWERS, schedule: "0 * * * *"')
    monkeypatch.setenv("FLOWERS", database(loop, samples.iris()))
    assert fetch(loop).success
    (first,) = loop.repository.log()
    assert first.message.startswith("import 150 rows from sqlite:////")
    assert first.message.endswith("flowers.db (FLOWERS): SELECT * FROM flowers")
    metadata = latest_metadata(loop.instance, [import_key("iris")])[0]
    assert metadata["outcome"].value == f"committed {first.id}"
    assert (metadata["dagster/row_count"].value, metadata[OXEN_COMMIT].value) == (150, first.id)
    assert metadata["bytes"].value > 1000
    assert loop.settle() == list(STAGES), "the sensor follows by itself"

    database(loop, samples.iris().sample(fraction=1.0, shuffle=True, seed=1))
    assert fetch(loop, tick="2024-01-01T04:00:00").success
    assert outcome(loop) == "unchanged"
    assert loop.repository.log() == [first]
    assert loop.tick() == "nothing is stale"

    database(loop, samples.iris().drop("species"))
    assert "the query gives no column 'species' to be the target" in failure(fetch(loop))
    assert loop.repository.log() == [first]
    assert loop.tick() == "nothing is stale"

    database(loop, samples.iris_uci())
    assert fetch(loop).success
    assert len(loop.repository.log()) == 2
    request = loop.tick()
    assert isinstance(request, dg.RunRequest)
    assert "dataset" in request.tags[REASON_TAG]
    monkeypatch.setenv("FLOWERS", "postgresql://me:hunter2@127.0.0.1:1/flowers?sslpassword=hunter3")
    assert "the query fails on postgresql://127.0.0.1:1/flowers" in failure(fetch(loop))
    assert holding(loop, b"127.0.0.1:1/flowers"), "what is kept is looked at where it is"
    assert not holding(loop, b"hunter")


def holding(loop: Loop, text: bytes) -> list[Path]:
    """The files of the home that a text is in: databases, logs, what Oxen has."""
    return [file for file in loop.here.home.rglob("*") if file.is_file() and text in file.read_bytes()]


@pytest.mark.slow
def test_an_address_is_asked_once_where_it_is_unchanged(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("FLOWERS_TOKEN", "hunter2")
    with serving() as server:
        server.content = samples.iris().write_csv().encode()
        address = server.url.replace("file.tar.gz", "iris.csv")
        give_source(loop, f'url: "{address}?key=hunter3", token: FLOWERS_TOKEN, schedule: "@daily"')
        assert fetch(loop).success
        (first,) = loop.repository.log()
        assert first.message == f"import {address}"
        assert server.asked[0]["Authorization"] == "Bearer hunter2"
        assert fetch(loop).success
        assert outcome(loop) == "unchanged"
        assert server.asked[1]["If-None-Match"] == server.etag
        assert len(server.asked) == 2

        loop.commit(samples.iris_uci(), "by hand")
        assert fetch(loop).success
        assert "If-None-Match" not in server.asked[2], "the branch has something else by now"
        assert loop.repository.digest("iris.csv", loop.repository.resolve("main")) == loop.repository.digest(
            "iris.csv", first.id
        )
        server.statuses = [404]
        assert f"{address} cannot be fetched (status 404 Not Found)" in failure(fetch(loop))
    assert not list((loop.here.home / "downloads").glob("*/iris.csv*")), "nothing of it is left"
    assert not holding(loop, b"hunter")


FETCH = """
import sys
from contextlib import nullcontext
from pathlib import Path
from mlops_assets import doors
from mlops_assets.intake import commit
from mlops_assets.oxen.repository import Repository
from mlops_assets.pipeline import Pipeline
home, pipeline = Path(sys.argv[1]), Pipeline.load(Path(sys.argv[2]))
repository, source = Repository(home / "oxen" / "iris"), pipeline.spec.data.source
print("begins", flush=True)
meter = lambda title: nullcontext(lambda done, total: None)
with doors.opened(pipeline, source, repository, home, tell=print, meter=meter) as intake:
    print("fetched" if intake else "unchanged", flush=True)
    sys.stdin.read()
    if intake:
        commit(repository, pipeline, intake, "fetched")
"""


@pytest.mark.slow
def test_a_hand_waits_until_a_schedule_has_committed_what_it_fetched(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def started() -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", FETCH, str(loop.here.home), str(loop.folder)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    with serving() as server:
        server.content = samples.iris().write_csv().encode()
        give_source(loop, f"url: '{server.url.replace('file.tar.gz', 'iris.csv')}'")
        with started() as schedule:
            assert schedule.stdout
            assert [schedule.stdout.readline() for _ in range(2)] == [b"begins\n", b"fetched\n"]
            with started() as hand:
                assert hand.stdin
                assert hand.stdout
                assert hand.stdout.readline() == b"begins\n"
                hand.stdin.close()
                with pytest.raises(subprocess.TimeoutExpired):
                    hand.wait(0.5)
                assert len(server.asked) == 1
                schedule.communicate()
                assert hand.stdout.readline() == b"unchanged\n"
        assert (schedule.returncode, hand.returncode) == (0, 0)
    assert [commit.message for commit in loop.repository.log()] == ["fetched"]


@pytest.mark.slow
def test_a_tick_waits_for_the_run_before(loop: Loop) -> None:
    give_source(loop, 'folder: exports, schedule: "0 * * * *"')
    job = loop.definitions().resolve_job_def(import_job_name("iris"))
    run = loop.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert fetch(loop) == f"run {run.run_id[:8]} is still fetching it"
    assert "is started" not in str(loop.tick()), "and holds up no other run"


@pytest.mark.slow
def test_a_folder_is_followed_and_a_file_that_does_not_fit_leaves_the_last_version(loop: Loop) -> None:
    give_source(loop, 'folder: exports/*.csv, schedule: "0 * * * *"')
    assert f"{loop.folder}/exports/*.csv has no table" in failure(fetch(loop))
    assert not loop.repository.exists()
    exports = loop.folder / "exports"
    exports.mkdir()
    for name, rows in (("b.csv", samples.iris().tail(70)), ("a.csv", samples.iris().head(80))):
        rows.drop("id").write_csv(exports / name)
    assert fetch(loop).success
    (first,) = loop.repository.log()
    assert first.message == "import 2 files exports/*.csv"
    table = read_table(loop.repository.materialize("iris.csv", first.id, loop.here.home / "cache"))
    assert table.equals(samples.iris().select(pl.all().cast(pl.String))), "in name order, and numbered"
    (exports / "c.csv").write_text("species\nsetosa\n")
    assert "c.csv has no column 'sepal_length', which a.csv has" in failure(fetch(loop))
    assert loop.repository.log() == [first]


@pytest.mark.slow
def test_a_source_adds_one_asset_upstream_and_changes_no_recipe(loop: Loop) -> None:
    before, keys = Pipeline.load(loop.folder), _keys(loop)
    give_source(loop, "folder: exports")
    after = Pipeline.load(loop.folder)
    assert {stage: after.code_version(stage) for stage in STAGES} == {
        stage: before.code_version(stage) for stage in STAGES
    }
    definitions = loop.definitions()
    graph = definitions.resolve_asset_graph()
    assert _keys(loop) == keys | {import_key("iris")}
    assert graph.get(source_key("iris")).parent_keys == {import_key("iris")}
    everything = definitions.resolve_job_def("iris_job").asset_layer.selected_asset_keys
    assert import_key("iris") not in everything, "to train again is not to fetch again"
    assert [schedule.name for schedule in definitions.schedules or ()] == [], "without a cron expression"


def _keys(loop: Loop) -> set[dg.AssetKey]:
    return set(loop.definitions().resolve_asset_graph().get_all_asset_keys())


@pytest.mark.slow
def test_oxens_data_are_observed_below_a_source_too(loop: Loop) -> None:
    give_source(loop, "folder: exports")
    commit = loop.commit(samples.iris())
    assert commit is not None
    observing = dg.define_asset_job("observing", selection=dg.AssetSelection.assets(source_key("iris")))
    definitions = dg.Definitions.merge(loop.definitions(), dg.Definitions(jobs=[observing]))
    result = definitions.resolve_job_def("observing").execute_in_process(instance=loop.instance, run_config=QUIET)
    (event,) = result.get_asset_observation_events()
    assert event.asset_observation_data.asset_observation.data_version == loop.repository.digest("iris.csv", commit.id)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{}", "source: give one of folder, sql and url (got none)"),
        ("{folder: a, url: 'http://h/x.csv'}", "give one of folder, sql and url (got folder, url)"),
        ("{sql: SELECT 1}", "`sql` needs `database`, the name of the environment variable"),
        ("{folder: a, database: X}", "`database` is for `sql`; leave it out"),
        ("{sql: SELECT 1, database: 'postgresql://u:hunter2@h/d'}", "the name of an environment variable is needed"),
        ("{url: 'https://u:hunter2@h/x.csv'}", "user and password do not belong into an address"),
        ("{url: 'https://:hunter2@h/x.csv'}", "user and password do not belong into an address"),
        ("{url: 'https://u:hunter2/x.csv'}", "this is no address; look at its host and its port"),
        ("{url: 'https://u:hunter2@[h/x.csv'}", "this is no address"),
        ("{token: 'hunter2-', url: 'https://h/x.csv'}", "the name of an environment variable is needed"),
        ("'https://u:hunter2@h/x.csv'", "a section of fields is needed, and this is 'https://...@h/x.csv'"),
        ("{urls: 'https://u:hunter2@h/x.csv'}", "unknown field 'urls'"),
        ("{url: 'ftp://u:hunter2@h/x.csv'}", "an address that begins with https:// or http:// is needed"),
        ("{folder: a, schedule: hourly}", "not a cron expression; five fields"),
        ("{folders: a}", "unknown field 'folders'; did you mean 'folder'?"),
    ],
)
def test_a_wrong_source_is_one_line_with_its_place(
    tmp_path: Path, change: Callable[[str, str], Path], source: str, said: str
) -> None:
    file = change(ORIGIN, f"    source: {source}\n")
    with pytest.raises(SpecError) as caught:
        load_spec(file)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{file}:12: attributes.data.source")
    assert said in line
    assert "hunter2" not in line
    with pytest.raises(ValidationError) as shown:  # Dagster's reader prints what was given
        PipelineSpec.model_validate(yaml.safe_load(file.read_text())["attributes"])
    assert "hunter2" not in f"{shown.value} {shown.value.errors()}"


@pytest.fixture
def change(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes iris' YAML with a part replaced."""
    from mlops_assets.pipeline import DEFS

    def write(old: str, new: str) -> Path:
        text = (DEFS / "iris" / "defs.yaml").read_text()
        assert old in text
        (tmp_path / "defs.yaml").write_text(text.replace(old, new))
        return tmp_path / "defs.yaml"

    return write
