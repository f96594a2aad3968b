"""The model server runs with the packages of its image alone."""

import os
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from mlops_assets.services import answers
from mlops_assets_tests.processes.conftest import free_ports
from mlops_assets_tests.processes.project import script
from mlops_assets_tests.serving.made import TABLE_SAMPLE, publish_table
from mlops_assets_tests.waiting import wait_for

pytestmark = pytest.mark.slow

WITHOUT = {"torch", "dagster", "dagster_mlflow", "mlflow", "gradio", "pandera", "pyarrow", "scipy", "sklearn", "oxen"}
"""What the server's image does not have, and nothing that it runs may ask for."""

MISSING = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {WITHOUT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


def test_it_answers_without_what_training_needs(tmp_path: Path) -> None:
    home = tmp_path / "home"
    publish_table(home)
    http, grpc = free_ports(2)
    log = tmp_path / "serve.log"
    (tmp_path / "sitecustomize.py").write_text(MISSING)  # Python reads it first, in the server and in its workers
    environment = {
        "PYTHONPATH": str(tmp_path),
        "MLOPS_HOME": str(home),
        "MLOPS_SERVE_PORT": str(http),
        "MLOPS_GRPC_PORT": str(grpc),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [script("mlops"), "serve"],
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{http}/v2/health/ready"), log.read_text() or "an answer")
        asked = {"rows": [{name: value for name, value in TABLE_SAMPLE[0].items() if name != "count"}]}
        told = httpx.post(f"http://127.0.0.1:{http}/models/flowers/predict", json=asked, trust_env=False, timeout=60)
        assert told.status_code == 200, told.text
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(180) == 0, log.read_text()
