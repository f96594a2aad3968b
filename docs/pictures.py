"""Take the documentation's pictures: the demo in a home of its own, real servers, and a browser without a window.

    .venv/bin/python docs/pictures.py            needs Chromium (or Chrome: CHROMIUM=google-chrome) and a few minutes
    .venv/bin/python docs/pictures.py HOME       the same with a home that `mlops demo` has filled
    .venv/bin/python docs/pictures.py HOME mlflow.png    only that one: a busy machine may show a page half-loaded

The pictures go beside this file; look at them before they are committed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from urllib.request import urlopen

HERE = Path(__file__).resolve().parent
MLOPS = str(Path(sys.executable).with_name("mlops"))
CHROMIUM = os.environ.get("CHROMIUM", "chromium")
COLOURS = 128
"""The pages have few colours, and a palette makes the files four times smaller."""

PAGES = {
    "lineage.png": ("{dagster}/locations/mlops_assets/asset-groups/digits/lineage", 2500, 700),
    "dataset.png": ("{dagster}/assets/digits/dataset?view=overview", 1500, 1650),
    "champion.png": ("{dagster}/assets/iris/champion?view=overview", 1900, 1250),
    "mlflow.png": ("{run}/model-metrics", 2000, 1000),
    "models.png": ("{models}/docs", 1300, 1150),
    "playground.png": ("{playground}/", 1300, 640),
    "portal.png": ("{portal}/", 1300, 460),
}
KEPT = {"mlflow.png": 0.745}
"""Share of the width, from the left; MLflow opens its assistant on the right of a new browser."""

WIDTH = 1500
"""Pixels of a picture; a wider page is made smaller."""

LARGEST = 300_000
"""Bytes of a picture: more would make the README slow to open."""


def main() -> None:
    """Run the demo where no home is given, start the servers, and take each page."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(sys.argv[1] if len(sys.argv) > 1 else Path(folder, "home")).absolute()
        names = ("DAGSTER", "MLFLOW", "SERVE", "GRPC", "PORTAL")
        ports = dict(zip((*names, "PLAYGROUND"), free_ports(len(names) + 1), strict=True))
        environment = {**os.environ, "MLOPS_HOME": str(home)}
        environment |= {f"MLOPS_{name}_PORT": str(ports[name]) for name in names}
        if len(sys.argv) == 1:
            subprocess.run([MLOPS, "demo"], env=environment, check=True)
        dagster, mlflow, models, _, portal, playground = (f"http://127.0.0.1:{port}" for port in ports.values())
        with (
            running(["up"], environment, f"{dagster}/server_info", f"{mlflow}/health", f"{models}/v2/health/ready"),
            running(["playground", "digits", "--port", str(ports["PLAYGROUND"])], environment, playground),
            running(["portal"], environment, portal),
        ):
            places = {"dagster": dagster, "models": models, "playground": playground, "portal": portal}
            places["run"] = page_of_champion(mlflow, environment)
            for name in sys.argv[2:] or PAGES:
                page, width, height = PAGES[name]
                take(page.format(**places), HERE / name, width, height, Path(folder, "browser"))


@contextmanager
def running(command: list[str], environment: Mapping[str, str], *addresses: str) -> Iterator[None]:
    """Have an `mlops` command run that answers at some addresses."""
    process = subprocess.Popen([MLOPS, *command], env=environment, stdout=subprocess.DEVNULL)
    try:
        for address in addresses:
            wait_for(address, process)
        yield
    finally:
        process.terminate()
        process.wait(60)


def page_of_champion(mlflow: str, environment: Mapping[str, str]) -> str:
    """Where MLflow shows the run of the champion of digits."""
    command = [MLOPS, "at", "digits", datetime.now().isoformat(), "--json"]  # noqa: DTZ005  the command's local time
    run = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)["run_id"]
    with urlopen(f"{mlflow}/api/2.0/mlflow/runs/get?run_id={run}", timeout=30) as answer:
        experiment = json.load(answer)["run"]["info"]["experiment_id"]
    return f"{mlflow}/#/experiments/{experiment}/runs/{run}"


def take(address: str, target: Path, width: int, height: int, profile: Path) -> None:
    """Photograph a page when it has had time to load its data."""
    from PIL import Image

    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "--force-color-profile=srgb"]
    command += ["--blink-settings=primaryHoverType=2,availableHoverTypes=2"]  # a mouse: charts hide their tools
    command += ["--virtual-time-budget=120000", f"--screenshot={target}", address]
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    picture = Image.open(target).convert("RGB")
    picture = picture.crop((0, 0, round(picture.width * KEPT.get(target.name, 1)), picture.height))
    picture.thumbnail((WIDTH, height), Image.Resampling.LANCZOS)
    picture.quantize(colors=COLOURS).save(target, optimize=True)
    size = target.stat().st_size
    print(f"took {target.name}, {size:,} bytes{', which is too large' if size > LARGEST else ''}")


def wait_for(address: str, process: subprocess.Popen[bytes], seconds: float = 180) -> None:
    """Wait until a server answers that a process is to start."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urlopen(address, timeout=5):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
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
