"""The playground, as a process of its own: by its API, and in a browser."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from mlops_assets.deploy import space_app
from mlops_assets.deploy.space import build
from mlops_assets.deploy.space_app import measured
from mlops_assets_tests.processes.conftest import free_ports
from mlops_assets_tests.serving.made import TABLE_SAMPLE, loaded, publish_images, publish_table, table_contract
from mlops_assets_tests.waiting import wait_for


class Playground:
    """A Space's `app.py`, run."""

    def __init__(self, folder: Path, log: Path) -> None:
        (port,) = free_ports(1)
        self.url, self.log = f"http://127.0.0.1:{port}", log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "app.py"],
                cwd=folder,
                env=os.environ | {"GRADIO_SERVER_PORT": str(port), "MLOPS_HOST": "127.0.0.1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(self.url, timeout=5, verify=False).status_code == 200
        except httpx.HTTPError:
            return False

    def ask(self, *values: Any) -> tuple[str, Any]:
        """What a person is shown: an event, and the classes with their probabilities or the error."""
        asked = httpx.post(f"{self.url}/gradio_api/call/classify", json={"data": values}, timeout=60)
        event = asked.raise_for_status().json()["event_id"]
        told = httpx.get(f"{self.url}/gradio_api/call/classify/{event}", timeout=60).text
        name, data = re.findall(r"event: (\w+)\ndata: (.*)", told)[-1]
        return name, json.loads(data)


@pytest.fixture(scope="module")
def playgrounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Playground]]:
    home = tmp_path_factory.mktemp("home")
    running = {}
    try:
        for name, publish in {"flowers": publish_table, "scans": publish_images}.items():
            folder = home / name
            folder.mkdir()
            build(loaded(home, publish(home)), folder)
            running[name] = Playground(folder, home / f"{name}.log")
        for one in running.values():
            wait_for(one.answers, "the playground", 120)
        yield running
    finally:
        for one in running.values():
            one.process.terminate()
            one.process.wait(60)


def picture(height: int, width: int) -> dict[str, Any]:
    """An image as Gradio's API takes it."""
    pixels = np.random.default_rng(5).integers(0, 256, (height, width), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    data = base64.b64encode(file.getvalue()).decode()
    return {"url": f"data:image/png;base64,{data}", "meta": {"_type": "gradio.FileData"}}


def test_the_accuracy_is_told_with_its_interval(tmp_path: Path) -> None:
    slot = loaded(tmp_path, publish_table(tmp_path))
    assert measured(slot) == "Right on 95.0 % of the test rows (95 % interval: 91.0 to 98.0 %)."
    slot.accuracy = None
    assert measured(slot) == "Its accuracy is not known."


def test_a_row_goes_through_the_form_unchanged(tmp_path: Path) -> None:
    kinds = {
        "flag": {"dtype": "Boolean"},
        "maybe": {"dtype": "Boolean", "nullable": True},
        "day": {"dtype": "Date", "nullable": True},
        "whole": {"dtype": "Int64", "nullable": True},
        "kind": {"dtype": "Enum", "categories": ["a", "b"]},
        "text": {"dtype": "String"},
    }
    inputs = [one.model_dump() for one in table_contract()[0].inputs] + [
        {"name": name, **kinds[name]} for name in kinds
    ]
    values = [
        (True, None, "2026-02-03", 3, "a", "x"),
        (False, True, None, None, "b", ""),
        (True, False, None, 0, "b", ""),
    ]
    sample = [{**row, **dict(zip(kinds, more, strict=True))} for row, more in zip(TABLE_SAMPLE, values, strict=True)]
    slot = loaded(tmp_path, publish_table(tmp_path, inputs=inputs, sample=sample))
    for shown, row in zip(space_app._rows(slot), sample, strict=True):
        given = space_app._row(slot, tuple(shown))
        assert given == {name: value for name, value in row.items() if name != "count"}
        slot.from_records([given])


@pytest.mark.slow
def test_a_form_is_answered_as_the_model_answers(playgrounds: dict[str, Playground], tmp_path: Path) -> None:
    slot = loaded(tmp_path, publish_table(tmp_path))
    for row, wanted in zip(TABLE_SAMPLE, slot.contract.answers, strict=True):
        event, (label,) = playgrounds["flowers"].ask(row["length"], row["width"], row["colour"] or "unknown")
        assert event == "complete"
        given = {one["label"]: one["confidence"] for one in label["confidences"]}
        assert [given[name] for name in slot.contract.classes] == pytest.approx(wanted, abs=1e-5)
        assert label["label"] == slot.contract.classes[int(np.argmax(wanted))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ((99, 3.5, "red"), "row 0, column 'length': 99.0 is refused by in_range"),
        ((None, 3.5, "red"), "column 'length': a value is needed"),
    ],
)
def test_what_cannot_be_answered_is_said(
    playgrounds: dict[str, Playground], values: tuple[Any, ...], sentence: str
) -> None:
    event, told = playgrounds["flowers"].ask(*values)
    assert event == "error"
    assert sentence in told["error"]


@pytest.mark.slow
def test_images_are_answered_whatever_their_size(playgrounds: dict[str, Playground]) -> None:
    for size in ((8, 8), (60, 90)):
        event, (label,) = playgrounds["scans"].ask(picture(*size))
        assert event == "complete"
        assert len(label["confidences"]) == 10
    event, told = playgrounds["scans"].ask(None)
    assert (event, told["error"].partition(";")[0]) == ("error", "there is no image")


@pytest.mark.slow
def test_the_page_shows_the_answer_and_loads_nothing_from_elsewhere(
    playgrounds: dict[str, Playground], tmp_path: Path
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    command = [
        *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--virtual-time-budget=60000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"),
    ]
    page = ""

    def answered() -> bool:
        nonlocal page
        url = playgrounds["flowers"].url
        page = subprocess.run([*command, url], capture_output=True, text=True, timeout=120, check=True).stdout
        return "versicolor" in page

    wait_for(answered, "the form's first answer", 240)
    assert "flowers, version 1" in page
    assert "95 % interval: 91.0 to 98.0 %" in page
    shown = re.sub(r"<[^>]+>", " ", page)
    for said in ("length", "width", "colour", "versicolor", "100%", "unknown"):
        assert said in shown
    loaded_from = re.findall(r"<(?:script|link|img|iframe|source)[^>]+(?:src|href)=\"(https?://[^\"/]+)", page)
    assert set(loaded_from) <= {playgrounds["flowers"].url}
    assert "fonts.googleapis.com" not in page
