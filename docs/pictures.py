"""Take the README's pictures: the demo in a home of its own, real servers, and a browser without a window.

    .venv/bin/python docs/pictures.py

needs Chromium (or Chrome: `CHROMIUM=google-chrome`) and two minutes. The pictures go beside this file; look at them
before they are committed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

HERE = Path(__file__).resolve().parent
MLOPS = str(Path(sys.executable).with_name("mlops"))
CHROMIUM = os.environ.get("CHROMIUM", "chromium")
COLOURS = 128
"""The pages have few colours, and a palette makes the files four times smaller."""

PAGES = {
    "lineage.png": ("{dagster}/locations/mlops_assets/asset-groups/digits/lineage", 2500, 560),
    "dataset.png": ("{dagster}/assets/digits/dataset?view=overview", 1500, 1900),
    "champion.png": ("{dagster}/assets/iris/champion?view=overview", 1500, 1180),
    "mlflow.png": ("{run}/model-metrics", 2000, 1000),
}
KEPT = {"mlflow.png": 0.745}
"""Share of the width, from the left; MLflow opens its assistant on the right of a new browser."""

WIDTH = 1500
"""Pixels of a picture; a wider page is made smaller."""


def main() -> None:
    """Run the demo, start the servers, and take each page."""
    with tempfile.TemporaryDirectory() as folder:
        dagster, mlflow, serve, grpc = free_ports(4)
        home = Path(folder, "home")
        environment = {
            **os.environ,
            "MLOPS_HOME": str(home),
            "MLOPS_DAGSTER_PORT": str(dagster),
            "MLOPS_MLFLOW_PORT": str(mlflow),
            "MLOPS_SERVE_PORT": str(serve),
            "MLOPS_GRPC_PORT": str(grpc),
        }
        told = subprocess.run([MLOPS, "demo"], env=environment, check=True, capture_output=True, text=True).stdout
        run = [line.split()[-1] for line in told.splitlines() if "MLflow run http" in line][-1]
        servers = subprocess.Popen([MLOPS, "up"], env=environment, stdout=subprocess.DEVNULL)
        try:
            places = {"dagster": f"http://127.0.0.1:{dagster}", "run": run}
            for address in (f"{places['dagster']}/server_info", f"http://127.0.0.1:{mlflow}/health"):
                wait_for(address)
            for name, (page, width, height) in PAGES.items():
                take(page.format(**places), HERE / name, width, height, Path(folder, "browser"))
                print(f"took {name}")
        finally:
            servers.terminate()
            servers.wait(60)


def take(address: str, target: Path, width: int, height: int, profile: Path) -> None:
    """Photograph a page when it has had time to load its data."""
    from PIL import Image

    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "--force-color-profile=srgb"]
    command += ["--virtual-time-budget=30000", f"--screenshot={target}", address]
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    picture = Image.open(target).convert("RGB")
    picture = picture.crop((0, 0, round(picture.width * KEPT.get(target.name, 1)), picture.height))
    picture.thumbnail((WIDTH, height), Image.Resampling.LANCZOS)
    picture.quantize(colors=COLOURS).save(target, optimize=True)


def wait_for(address: str, seconds: float = 90) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urlopen(address, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in bound]


if __name__ == "__main__":
    main()
