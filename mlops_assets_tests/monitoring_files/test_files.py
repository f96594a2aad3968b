"""The files of Prometheus and Grafana: their rules come when they should, and name only metrics that there are."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from mlops_assets.services import Service, answers, started
from mlops_assets.settings import PROJECT
from mlops_assets_tests.processes.conftest import free_ports

PROMETHEUS = PROJECT / "docker" / "prometheus"
GRAFANA = PROJECT / "docker" / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
BUILT_IN = {"ALERTS", "up"}
"""Prometheus' own series."""


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if not program:
        pytest.skip("no promtool is installed (Debian: prometheus)")
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=PROMETHEUS)


def panels(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_text())["panels"]
    return found


def expressions(file: Path) -> list[str]:
    """What a dashboard's panels ask for, with its variable filled in as Grafana does."""
    return [target["expr"].replace("$pipeline", ".*") for panel in panels(file) for target in panel["targets"]]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_configuration_and_rules_are_sound() -> None:
    done = promtool("check", "config", "prometheus.yaml")
    assert done.returncode == 0, done.stderr
    done = promtool("check", "rules", "--lint-fatal", "rules.yaml")
    assert done.returncode == 0, done.stderr


def test_alerts_come_when_they_should_and_each_is_tried() -> None:
    done = promtool("test", "rules", "rules_test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    tried = set(re.findall(r"alertname: (\w+)", (PROMETHEUS / "rules_test.yaml").read_text()))
    assert tried == {rule["alert"] for rule in rules() if "alert" in rule}


def test_every_alert_says_what_to_do_and_is_in_the_documentation() -> None:
    text = (PROJECT / "docs" / "operations" / "monitoring.md").read_text()
    for rule in rules():
        if "alert" in rule:
            assert set(rule["annotations"]) == {"summary", "action"}
            assert rule["labels"]["severity"] in {"warning", "critical"}
            assert f"`{rule['alert']}`" in text


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_can_be_loaded_and_asked(file: Path, tmp_path: Path) -> None:
    board = json.loads(file.read_text())
    assert board["uid"]
    assert "id" not in board, "Grafana gives it one"
    ids = [panel["id"] for panel in panels(file)]
    assert len(set(ids)) == len(ids)
    assert {panel["type"] for panel in panels(file)} <= {"stat", "table", "timeseries"}, "panels that Grafana has"
    written = tmp_path / "rules.yaml"
    asked = [{"record": f"asked:{number}", "expr": text} for number, text in enumerate(expressions(file))]
    written.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": asked}]}))
    done = promtool("check", "rules", written)
    assert done.returncode == 0, done.stderr


def test_dashboards_lie_apart_and_ask_the_provisioned_source() -> None:
    assert len({json.loads(file.read_text())["uid"] for file in DASHBOARDS}) == len(DASHBOARDS) == 2
    provisioning = GRAFANA / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    for file in DASHBOARDS:
        taken: list[tuple[int, int]] = []
        for panel in panels(file):
            each = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert each == [{"type": source["type"], "uid": source["uid"]}] * len(each)
            at = panel["gridPos"]
            assert at["x"] + at["w"] <= 24
            taken += [(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])]
        assert len(taken) == len(set(taken)), "panels lie on each other"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "mlops.yaml").read_text())["providers"]
    compose = yaml.safe_load((PROJECT / "docker" / "compose.yaml").read_text())["services"]["grafana"]
    mounted = [volume.split(":") for volume in compose["volumes"]]
    assert ["./grafana/dashboards", provider["options"]["path"], "ro"] in mounted


def test_grafana_lets_nobody_in_by_default_and_tells_nobody_about_itself() -> None:
    compose = yaml.safe_load((PROJECT / "docker" / "compose.yaml").read_text())["services"]["grafana"]
    environment = compose["environment"]
    assert environment["GF_SECURITY_ADMIN_PASSWORD__FILE"].startswith("/run/")
    assert "GF_SECURITY_ADMIN_PASSWORD" not in environment
    assert environment.get("GF_AUTH_ANONYMOUS_ENABLED", "false") == "false"
    for name in ("REPORTING_ENABLED", "CHECK_FOR_UPDATES", "CHECK_FOR_PLUGIN_UPDATES"):
        assert environment[f"GF_ANALYTICS_{name}"] == "false"
    assert environment["GF_SERVER_ROOT_URL"].endswith("/grafana/")
    assert "ports" not in compose


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[set[str]]:
    """The names of all series that a real model server and a real portal show."""
    folder = tmp_path_factory.mktemp("scraped")
    serve, grpc, portal = free_ports(3)
    environment = {
        "MLOPS_HOME": str(folder / "home"),
        "MLOPS_SERVE_PORT": str(serve),
        "MLOPS_GRPC_PORT": str(grpc),
        "MLOPS_PORTAL_PORT": str(portal),
        "MLOPS_SERVE_URL": f"http://127.0.0.1:{serve}",
        "PYTHONWARNINGS": "ignore",
    }
    mlops = [sys.executable, "-c", "from mlops_assets.cli import main; main()"]
    services = [
        Service(
            "the model server",
            [*mlops, "serve"],
            folder / "serve.log",
            ready=lambda: answers(f"http://127.0.0.1:{serve}/v2/health/live"),
            environment=environment,
        ),
        Service(
            "the portal",
            [*mlops, "portal"],
            folder / "portal.log",
            ready=lambda: "mlops_pipeline_stale_stages" in page(portal),
            environment=environment,
        ),
    ]
    with started(services):
        yield series(page(serve)) | series(page(portal))


def page(port: int) -> str:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60, trust_env=False).text
    except httpx.HTTPError:
        return ""


def series(text: str) -> set[str]:
    """The names that a page of metrics gives to Prometheus."""
    found = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        found |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return found


@pytest.mark.slow
def test_every_metric_that_is_named_is_there(scraped: set[str]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = [rule["expr"] for rule in rules()] + [text for file in DASHBOARDS for text in expressions(file)]
    named = {name for text in asked for name in re.findall(r"\b(?:mlops|process)[\w:]+|\bup\b|\bALERTS\b", text)}
    assert len(named) > 20
    assert named <= scraped | recorded | BUILT_IN, named - scraped - recorded - BUILT_IN
