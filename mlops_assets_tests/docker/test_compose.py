"""What `docker/` promises without an engine: `make docker-test` proves the rest."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops_assets.fingerprint import PACKAGE_ROOT
from mlops_assets.settings import Settings

DOCKER = PACKAGE_ROOT.parent / "docker"
ONCE = {"setup", "bucket"}
"""Services that do their work and end."""


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"])


def test_only_nginx_has_a_port_and_listens_here_unless_told_otherwise(services: dict[str, dict[str, Any]]) -> None:
    published = {name: one["ports"] for name, one in services.items() if "ports" in one}
    assert set(published) == {"nginx"}
    assert all(port.startswith("${MLOPS_BIND:-127.0.0.1}:") for port in published["nginx"])


def test_what_serves_comes_back_is_looked_after_and_has_its_limits(services: dict[str, dict[str, Any]]) -> None:
    for name, one in services.items():
        if name in ONCE:
            continue
        assert one["restart"] == "unless-stopped", name
        assert one["init"] is True, name
        assert "mem_limit" in one, name
        assert {"max-size", "max-file"} == set(one["logging"]["options"]), name
        theirs = name in {"prometheus", "grafana", "s3"}
        assert theirs or "healthcheck" in one, name


def test_ours_can_gain_no_rights_and_no_secret_is_written_down(services: dict[str, dict[str, Any]]) -> None:
    for name, one in services.items():
        if re.search(r"-(code|dagster|mlflow|models|playground):", one["image"]) and name not in ONCE:
            assert one["cap_drop"] == ["ALL"], name
            assert one["security_opt"] == ["no-new-privileges:true"], name
        for variable, value in (one.get("environment") or {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY", variable):
                assert str(value).startswith("/run/mlops/"), f"{name}: {variable}"


def test_each_image_is_one_of_the_dockerfile(services: dict[str, dict[str, Any]]) -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE))
    ours = {match[1] for one in services.values() if (match := re.search(r"\}-(\w+):", one["image"]))}
    assert ours <= targets
    assert ours == {"nginx", "code", "dagster", "mlflow", "models", "playground"}


def test_every_setting_that_is_passed_on_is_one(services: dict[str, dict[str, Any]]) -> None:
    known = {field.validation_alias or f"MLOPS_{name.upper()}" for name, field in Settings.model_fields.items()}
    of_scripts = {"MLOPS_HOSTNAME", "MLOPS_POSTGRES", "MLOPS_WORKER_HOST", "MLOPS_WORKER_PORT", "MLOPS_WORKER_LOCATION"}
    worker = yaml.safe_load((DOCKER / "compose.worker.yaml").read_text())["services"]
    for name, one in [*services.items(), *worker.items()]:
        given = {variable for variable in one.get("environment") or {} if variable.startswith("MLOPS_")}
        assert given <= known | of_scripts, name


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_first_start_makes_secrets_and_the_second_keeps_them(tmp_path: Path) -> None:
    web = tmp_path / "web"
    for folder in [
        web,
        *(tmp_path / "secrets" / name for name in ("postgres", "dagster", "mlflow", "grafana", "s3", "trust")),
    ]:
        folder.mkdir(parents=True)

    def start() -> dict[str, str]:
        command = ["sh", str(DOCKER / "setup.sh"), str(tmp_path / "secrets"), str(web)]
        subprocess.run(command, check=True, capture_output=True)
        return {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}

    first = start()
    made = {name: text.strip() for name, text in first.items() if name.endswith(("password", "-key"))}
    assert len(made) == 6
    assert len(set(made.values())) == 6, "each is another one"
    assert all(re.fullmatch("[0-9a-f]{32,}", one) for one in made.values())
    assert made["web/first-password"] not in first["web/users"], "only its hash is kept for nginx"
    assert stat.S_IMODE((web / "first-password").stat().st_mode) & 0o077 == 0
    assert start() == first


def test_others_software_sees_its_own_secret_alone(services: dict[str, dict[str, Any]]) -> None:
    def secrets(name: str) -> set[str]:
        volumes = [one.partition(":")[0] for one in services[name].get("volumes", [])]
        return {volume.removeprefix("secrets-") for volume in volumes if volume.startswith("secrets-")}

    wanted = {
        "postgres": {"postgres"},
        "grafana": {"grafana"},
        "s3": {"s3"},
        "mlflow": {"mlflow"},
        "bucket": {"mlflow"},
    }
    wanted |= {"dagster": {"dagster"}, "daemon": {"dagster"}, "portal": {"dagster"}, "code": {"dagster", "mlflow"}}
    assert {name: secrets(name) for name in services if name != "setup" and secrets(name)} == wanted
    for name in ("prometheus", "grafana", "s3"):
        assert "default" not in services[name]["networks"], f"{name} reaches Dagster's gRPC"


@pytest.mark.parametrize("given", ["", "postgresql+psycopg2://somebody:else@elsewhere/dagster"])
def test_programs_get_their_databases_from_the_secrets(tmp_path: Path, given: str) -> None:
    for name, password in {"dagster": "abc\n", "mlflow": "def\n"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "password").write_text(password)
    environment = {"PATH": os.environ["PATH"], "MLOPS_SECRETS": str(tmp_path), "MLOPS_DAGSTER_DATABASE": given}
    command = ["sh", str(DOCKER / "bin" / "entrypoint.sh"), "env"]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    variables = dict(line.split("=", 1) for line in told.splitlines())
    assert variables["MLOPS_DAGSTER_DATABASE"] == (given or "postgresql+psycopg2://dagster:abc@postgres:5432/dagster")
    assert variables["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg2://mlflow:def@postgres:5432/mlflow"
    assert "AWS_SECRET_ACCESS_KEY" not in variables


@pytest.mark.parametrize(
    "files",
    [["compose.yaml"], ["compose.yaml", "compose.with-worker.yaml"], ["compose.worker.yaml", "compose.gpu.yaml"]],
    ids=" ".join,
)
def test_compose_understands_its_files(files: list[str]) -> None:
    compose = shutil.which("docker-compose")
    if compose is None:
        pytest.skip("docker-compose is not installed")
    names = ("MLOPS_PRIVATE_ADDRESS", "MLOPS_WORKER_HOST", "MLOPS_MAIN_HOST", "MLOPS_WORKER_MLFLOW")
    environment = os.environ | dict.fromkeys(names, "10.0.0.1")
    command = [compose, *(flag for file in files for flag in ("--file", str(DOCKER / file))), "config", "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
