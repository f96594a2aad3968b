"""The registry as a light process reads it: the embedded database and a real MLflow server say the same."""

import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets.errors import MlopsError
from mlops_assets.registry import watch
from mlops_assets.registry.aliases import point
from mlops_assets.serving.pointer import pointer_file, read_pointer
from mlops_assets.serving.registry import Embedded, Registered, RegistryUnknown, Server, registry_of
from mlops_assets.serving.slots import Slots
from mlops_assets.serving.watcher import CONTRACT_ARTIFACT, MODEL_ARTIFACT, Watcher
from mlops_assets.settings import Settings
from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.runs import Tracking
from mlops_assets_tests.mlflow_fixtures import close_stores, mlflow_server
from mlops_assets_tests.serving.made import register_version, table_contract
from mlops_assets_tests.serving.world import SPEC

WANTED = {"flowers": "champion", "other": "champion"}


def test_the_settings_say_which_registry(tmp_path: Path) -> None:
    assert isinstance(registry_of(Settings(home=tmp_path)), Embedded)
    assert isinstance(registry_of(Settings(home=tmp_path, mlflow_tracking_uri="http://127.0.0.1:1")), Server)


def test_what_the_embedded_database_says(tracking: Tracking, home: Path, tmp_path: Path) -> None:
    contract, model = table_contract()
    registry = Embedded(home)
    assert registry.behind(WANTED) == {}
    for _ in range(2):
        register_version(tracking, tmp_path, contract, model)
    assert registry.behind(WANTED) == {}
    point(tracking, "flowers", "Champion", 2)
    point(tracking, "flowers", "challenger", 1)
    run = tracking.client.get_model_version("flowers", "2").run_id
    assert registry.behind(WANTED) == {"flowers": Registered(2, run)}
    assert registry.behind({"flowers": "production"}) == {}
    assert registry.behind({}) == {}
    assert registry.tags("flowers", 2)[keys.CONTRACT] == hashlib.sha256(contract.to_bytes()).hexdigest()
    assert registry.tags("flowers", 9) == {}
    assert registry.metrics(run)["test_accuracy"] == 0.9
    assert registry.metrics("nobody") == {}
    assert registry.artifact(run, CONTRACT_ARTIFACT) == contract.to_bytes()
    assert registry.artifact(run, MODEL_ARTIFACT) == model
    with pytest.raises(RegistryUnknown, match="cannot be read"):
        registry.artifact(run, "serving/other.json")
    with pytest.raises(RegistryUnknown, match="which is not below its home"):
        registry.artifact("nobody", CONTRACT_ARTIFACT)


def test_files_that_lie_elsewhere_are_not_read(tracking: Tracking, home: Path) -> None:
    (home / "mlflow" / "secret").write_text("x")
    for number, place in enumerate(("mlops-home:/../", "mlops-home:/%2e%2e/", f"file://{home}/mlflow")):
        experiment = tracking.client.create_experiment(f"stray{number}", place)
        run = tracking.client.create_run(experiment).info.run_id
        with pytest.raises(RegistryUnknown, match="which is not below its home"):
            Embedded(home).artifact(run, "secret")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"registered_models": [3]}', b'{"registered_models": 3}']
)
def test_another_kind_of_server_is_one_sentence(body: bytes) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        registry = Server(f"http://127.0.0.1:{server.server_port}")
        try:
            for ask in (
                lambda: registry.behind(WANTED),
                lambda: registry.tags("flowers", 1),
                lambda: registry.metrics("x"),
            ):
                try:
                    assert ask() in ({}, None)
                except watch.RegistryUnreachable as error:
                    assert "\n" not in str(error)  # noqa: PT017  `{}` is what a server without models says
        finally:
            server.shutdown()
            thread.join()


def test_nobody_there_is_one_sentence() -> None:
    with pytest.raises(watch.RegistryUnreachable, match=r"shows its registry at http://127\.0\.0\.1:1 "):
        Server("http://127.0.0.1:1").behind(WANTED)


@pytest.fixture(scope="module")
def kept(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(store_template, tmp_path_factory.mktemp("registry") / "home"))


@pytest.fixture(scope="module")
def server(kept: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    with mlflow_server(kept) as started:
        yield started


@pytest.mark.slow
def test_a_server_says_the_same_until_it_is_gone(
    server: tuple[str, "subprocess.Popen[bytes]"], kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, process = server
    monkeypatch.setattr(watch, "SECONDS", 60.0)  # on a busy machine this server may take its time
    monkeypatch.setenv("MLOPS_HOME", str(kept))
    embedded, remote = Tracking.embedded(kept), Tracking(url)
    (tmp_path / "files").mkdir()
    versions = [
        register_version(tracking, tmp_path / "files", *table_contract(seed))
        for seed, tracking in ((1, embedded), (2, embedded))
    ]
    contract, model = table_contract(3)
    served = contract.model_copy(
        update={
            "pipeline": "other",
            "sources": {name.replace("flowers", "other"): text for name, text in contract.sources.items()},
        }
    )
    register_version(remote, tmp_path / "files", served, model)
    point(embedded, "flowers", "champion", versions[0])
    point(remote, "other", "champion", 1)

    asked, direct = Server(url), Embedded(kept)
    found = asked.behind(WANTED)
    assert found == direct.behind(WANTED)
    assert set(found) == {"flowers", "other"}
    for name, one in found.items():
        assert asked.tags(name, one.version) == direct.tags(name, one.version)
        assert asked.metrics(one.run_id) == direct.metrics(one.run_id)
    run = found["flowers"].run_id
    assert asked.artifact(run, CONTRACT_ARTIFACT) == direct.artifact(run, CONTRACT_ARTIFACT)
    assert asked.artifact(found["other"].run_id, MODEL_ARTIFACT) == model
    assert asked.behind({"flowers": "production"}) == {}
    for wrong in (lambda: asked.artifact(run, "serving/none.json"), lambda: asked.artifact("nobody", "x")):
        with pytest.raises(MlopsError) as refused:
            wrong()
        assert "\n" not in str(refused.value)
    with pytest.raises(RegistryUnknown, match=rf"run {run} has no file serving/none\.json"):
        asked.artifact(run, "serving/none.json")
    with pytest.raises(MlopsError):
        asked.tags("flowers", 99)
    remote.client.delete_registered_model("other")
    register_version(remote, tmp_path / "files", served, model)
    point(remote, "other", "champion", 1)
    again = asked.behind(WANTED)
    assert again == direct.behind(WANTED)
    assert again["other"] != found["other"], "a model that is registered anew counts from 1 again"

    folders = []
    for name in ("flowers", "other"):
        folders.append(tmp_path / "defs" / name)
        folders[-1].mkdir(parents=True)
        (folders[-1] / "defs.yaml").write_text(SPEC.replace("production", "champion"))
    home = tmp_path / "worker"
    watcher, slots = Watcher(home, asked, lambda: folders), Slots(home)

    def look() -> dict[str, int]:
        watcher.look()
        slots.refresh()
        return {name: slots[name].version for name in slots.names()}

    assert look() == {"flowers": 1, "other": 1}
    point(remote, "flowers", "champion", versions[1])
    assert look() == {"flowers": 2, "other": 1}
    remote.client.delete_registered_model_alias("other", "champion")
    assert look() == {"flowers": 2}
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert look() == {"flowers": 2}
    pointer = read_pointer(pointer_file(home, "flowers"))
    assert pointer is not None
    assert pointer.problem == ""
    with pytest.raises(watch.RegistryUnreachable):
        asked.behind(WANTED)
    close_stores()
