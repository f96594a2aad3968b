"""The playgrounds of all champions, as a process that follows them."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from mlops_assets_tests.processes.conftest import free_ports
from mlops_assets_tests.processes.project import script
from mlops_assets_tests.serving.made import TABLE_SAMPLE, publish_images, publish_table
from mlops_assets_tests.waiting import wait_for

pytestmark = pytest.mark.slow


def test_all_champions_have_a_page_and_a_new_one_takes_over(tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    temporary.mkdir()
    publish_table(home)
    publish_images(home)
    (port,) = free_ports(1)
    url, log = f"http://127.0.0.1:{port}/playground/", tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [script("mlops"), "playground", "--port", str(port)],
            env=os.environ | {"MLOPS_HOME": str(home), "TMPDIR": str(temporary)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def shows(text: str) -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return text in httpx.get(url, timeout=5).text
        except httpx.HTTPError:
            return False

    try:
        wait_for(lambda: shows('<a href="flowers/">flowers</a>, version 1'), "the playgrounds", 120)
        assert shows('<a href="scans/">scans</a>, version 1')
        assert "flowers, version 1" in httpx.get(f"{url}flowers/", timeout=60).raise_for_status().text
        row = TABLE_SAMPLE[0]
        given = {"data": [row["length"], row["width"], row["colour"] or "unknown"]}
        call = f"{url}flowers/gradio_api/call/classify"
        event = httpx.post(call, json=given, timeout=60).raise_for_status().json()["event_id"]
        name, data = re.findall(r"event: (\w+)\ndata: (.*)", httpx.get(f"{call}/{event}", timeout=60).text)[-1]
        assert name == "complete"
        assert set(json.loads(data)[0]) == {"label", "confidences"}

        publish_table(home, 2)
        wait_for(lambda: shows("flowers</a>, version 2"), "the new version", 60)
        assert len(list(temporary.glob("mlops-playground-*"))) == 1
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert list(temporary.glob("mlops-playground-*")) == []
