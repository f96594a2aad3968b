"""The folder of a Space, and pushing it to a server that speaks the Hub's API."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from mlops_assets.deploy.space import CHECKSUMS, SpaceError, build, fresh, push
from mlops_assets_tests.deploy.hub import TOKEN, Hub, hub_server
from mlops_assets_tests.serving.made import TABLE_FEATURES, loaded, publish_images, publish_table, table_contract

PUSH = """
import sys
from pathlib import Path
from mlops_assets.deploy.space import SpaceError, push
try:
    print(*push(Path(sys.argv[1]), sys.argv[2], sys.argv[3], private=True))
except SpaceError as error:
    sys.exit(str(error))
"""
ALONE = """
import json, sys
from pathlib import Path

# Absent, as they may be in a Space: what others use only where it happens to be installed.
sys.modules.update(dict.fromkeys(["torch", "mlflow", "pandera", "pyarrow", "cloudpickle", "psutil"]))
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
from mlops_assets.deploy import space_app
from mlops_assets.serving.pointer import read_pointer
from mlops_assets.serving.slot import Slot

slot = Slot.load(folder, read_pointer(folder / "current.json"))
space_app.playground(slot, Path(sys.argv[2]))
ours = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "mlops_assets"]
print(json.dumps([ours, slot.accuracy, sorted({name.split(".")[0] for name, one in sys.modules.items() if one})]))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hub_server() as running:
        yield running


@pytest.fixture
def space(hub: Hub) -> Hub:
    """The server with no Space."""
    url = hub.url
    vars(hub).update(vars(Hub()), url=url)
    return hub


def built(home: Path, folder: Path, version: int = 1, **changed: object) -> Path:
    folder.mkdir(parents=True)
    build(loaded(home, publish_table(home, version, **changed)), folder, "Flowers, by their size.\nAnd colour.")
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 as a Space: a second's work, which nobody changes."""
    place = tmp_path_factory.mktemp("first")
    return built(place / "home", place / "space")


def pushing(hub: Hub, folder: Path, token: str = TOKEN, space: str = "me/flowers") -> "subprocess.Popen[str]":
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(folder.parent / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", PUSH, str(folder), space, token]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def pushed(hub: Hub, folder: Path, token: str = TOKEN, space: str = "me/flowers") -> tuple[int, str]:
    process = pushing(hub, folder, token, space)
    out, err = process.communicate(timeout=120)
    return process.returncode, (out + err).strip()


def on_disk(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_the_folder_has_the_version_and_nothing_else(tmp_path: Path) -> None:
    home = tmp_path / "home"
    slot = loaded(home, publish_table(home))
    (slot.folder / ".env").write_text("HF_TOKEN=secret")
    (slot.folder / "source" / "flowers" / "notes.txt").write_text("secret")
    folder = tmp_path / "space"
    folder.mkdir()
    sizes = build(slot, folder, "Flowers, by their size.\nAnd colour.")
    files = on_disk(folder)
    assert sizes == {path: len(content) for path, content in files.items()}
    assert not [
        path for path, content in files.items() if b"secret" in content and not path.startswith("mlops_assets/")
    ]
    beside = {path for path in files if not path.startswith(("mlops_assets/", "source/"))}
    assert beside == {
        *("README.md", "SHA256SUMS", "app.py", "contract.json", "current.json", "model.onnx", "requirements.txt")
    }
    assert {path for path in files if path.startswith("source/")} == {
        f"source/{path}" for path in slot.contract.sources
    }
    checked = subprocess.run(
        ["sha256sum", "--check", "--quiet", CHECKSUMS], cwd=folder, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert len(files[CHECKSUMS].splitlines()) == len(files) - 1
    _, front, text = files["README.md"].decode().split("---", 2)
    told = yaml.safe_load(front)
    assert (told["sdk"], told["app_file"], told["sdk_version"]) == ("gradio", "app.py", metadata.version("gradio"))
    assert told["short_description"] == "Flowers, by their size. And colour."
    assert "95.0 %" in text
    assert "`colour`: String, may be null" in text
    again = tmp_path / "again"
    again.mkdir()
    build(slot, again, "Flowers, by their size.\nAnd colour.")
    assert on_disk(again) == files


@pytest.mark.slow
def test_what_the_features_code_imports_is_required(tmp_path: Path) -> None:
    sources = {**table_contract()[0].sources, "flowers/features.py": f"import scipy.special\n{TABLE_FEATURES}"}
    required = (built(tmp_path / "home", tmp_path / "space", sources=sources) / "requirements.txt").read_text()
    assert f"scipy=={metadata.version('scipy')}" in required.splitlines()
    assert "pandera" not in required
    own = tmp_path / "own"
    inputs = [one.model_dump() | {"custom": True} for one in table_contract()[0].inputs]
    assert "pandera==" in (built(own / "home", own / "space", inputs=inputs) / "requirements.txt").read_text()


def test_a_folder_takes_the_place_of_another_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "spaces" / "flowers"
    with fresh(target) as folder:
        (folder / "one").touch()
    with pytest.raises(FileExistsError), fresh(target) as folder:
        folder.mkdir()
    with fresh(target) as folder:
        (folder / "three").touch()
    assert [path.name for path in target.parent.rglob("*")] == ["flowers", "three"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "images"])
def test_the_space_runs_on_its_own_copy_and_what_it_requires(tmp_path: Path, kind: str) -> None:
    home, folder = tmp_path / "home", tmp_path / "space"
    folder.mkdir()
    build(loaded(home, publish_table(home) if kind == "table" else publish_images(home)), folder)
    (examples := tmp_path / "examples").mkdir()
    command = [sys.executable, "-c", ALONE, str(folder), str(examples)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    ours, accuracy, modules = json.loads(done.stdout.splitlines()[-1])
    assert accuracy == [0.95, 0.91, 0.98]
    assert all(Path(path).is_relative_to(folder) for path in ours if path)
    required = {Requirement(line).name for line in (folder / "requirements.txt").read_text().splitlines()}
    distributions = metadata.packages_distributions()
    wanted = closure(required) | {"mlops-assets", "setuptools"}
    known = {module: {normal(name) for name in distributions[module]} for module in modules if module in distributions}
    assert not {module: names for module, names in known.items() if not names & wanted}


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def closure(names: set[str]) -> set[str]:
    """Distributions with all that they require."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = normal(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            wanted = [Requirement(one) for one in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        waiting += [one.name for one in wanted if not one.marker or one.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.slow
def test_a_push_is_one_commit_and_the_next_only_what_changed(space: Hub, first: Path, tmp_path: Path) -> None:
    space.files["ours.md"] = b"not of a push"
    code, said = pushed(space, first)
    assert code == 0, said
    assert space.commits == ["flowers, version 1"]
    assert space.files == {**on_disk(first), "ours.md": b"not of a push"}
    assert space.created[0]["type"] == "space"
    assert space.created[0]["sdk"] == "gradio"
    assert said.split()[-1] == str(len(on_disk(first)))

    code, said = pushed(space, first)
    assert code == 0, said
    assert said.endswith(" 0")
    assert len(space.commits) == 1

    sources = {name: text for name, text in table_contract()[0].sources.items() if name != "flowers/schema.py"}
    second = built(tmp_path / "home", tmp_path / "second", 2, sources=sources)
    code, said = pushed(space, second)
    assert code == 0, said
    assert space.commits == ["flowers, version 1", "flowers, version 2"]
    assert space.files == {**on_disk(second), "ours.md": b"not of a push"}
    assert int(said.split()[-1]) < 12
    assert TOKEN not in said
    assert not [path for path, content in space.files.items() if TOKEN.encode() in content]


@pytest.mark.slow
def test_a_push_that_is_killed_leaves_the_space_as_it_was(space: Hub, first: Path, tmp_path: Path) -> None:
    assert pushed(space, first)[0] == 0
    before = dict(space.files)
    second = built(tmp_path / "home", tmp_path / "second", 2)
    space.hold.clear()
    space.committing.clear()
    process = pushing(space, second)
    assert space.committing.wait(120)
    assert space.files == before
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (space.files, len(space.commits)) == (before, 1)
    space.fail["commit"] = 500  # what was sent is lost with the connection
    space.hold.set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fail", "token", "name", "sentence"),
    [
        ({}, "hf_wrong", "me/flowers", "does not know the token in HF_TOKEN"),
        ({"preupload": 403}, TOKEN, "me/flowers", "may not write to me/flowers (so it is)"),
        ({"commit": 409}, TOKEN, "me/flowers", "somebody else changed me/flowers meanwhile"),
        ({"commit": 500}, TOKEN, "me/flowers", "answered 500 for me/flowers (so it is); the Space is as it was"),
        ({}, TOKEN, "me/flow/ers", "'me/flow/ers' is no name of a Space"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    space: Hub, first: Path, *, fail: dict[str, int], token: str, name: str, sentence: str
) -> None:
    space.fail = fail
    code, said = pushed(space, first, token, name)
    assert code == 1
    assert sentence in said
    assert "\n" not in said
    assert token not in said
    assert not space.commits


@pytest.mark.slow
def test_a_hub_that_is_not_there_is_one_sentence(first: Path) -> None:
    (nowhere := Hub()).url = "http://127.0.0.1:9"
    code, said = pushed(nowhere, first)
    assert (code, said.partition(" (")[0]) == (1, "Hugging Face cannot be reached")


def test_a_package_that_is_missing_is_one_sentence(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(SpaceError, match="huggingface_hub is not installed"):
        push(first, "me/flowers", TOKEN)
