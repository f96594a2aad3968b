"""Checks of the proxy: a real nginx, with certificates and logins that are right and wrong."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets.doctor import server_proxy
from mlops_assets.doctor.examination import Examination, Finding, examination, findings
from mlops_assets.settings import Settings, settings
from mlops_assets_tests.doctor.entry import LOGIN, certificate, nginx, users
from mlops_assets_tests.processes.conftest import free_ports

NAME = "mlops.test"

SERVER = """
server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {pem};
    ssl_certificate_key {key};
    {rest}
}}
"""


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Ports by what is right or wrong there; the folder of the trusted certificates is `trusted`."""
    folder = tmp_path_factory.mktemp("entry")
    names = ["good", "open", "short", "expired", "other"]
    found = dict(zip(names, free_ports(len(names)), strict=True))
    closed = f"auth_basic mlops; auth_basic_user_file {users(folder)};"
    certificates = {
        "good": certificate(folder, NAME),
        "open": certificate(folder, NAME, days=89),
        "short": certificate(folder, NAME, days=10.5),
        "expired": certificate(folder, NAME, days=-2),
        "other": certificate(folder, "other.test"),
    }
    servers = ""
    for name, pem in certificates.items():
        rest = "location / { return 200 ok; }" if name == "open" else closed
        servers += SERVER.format(port=found[name], pem=pem, key=pem.with_suffix(".key"), rest=rest)
    trusted = folder / "trusted.pem"
    trusted.write_text("".join(pem.read_text() for pem in certificates.values()))
    with pytest.MonkeyPatch.context() as patch, nginx(folder / "nginx", servers):
        patch.setenv("SSL_CERT_FILE", str(trusted))
        yield found


def looking(port: int, scheme: str = "https") -> Examination:
    here = Settings(public_url=f"{scheme}://{NAME}")
    here.proxy_at = f"{scheme}://127.0.0.1:{port}"
    return Examination(here, deep=False)


def told(check: str, found: list[Finding]) -> list[tuple[str, str]]:
    assert {one.check for one in found} <= {check}
    return [(one.result, one.found) for one in found]


def test_nothing_is_told_without_a_public_url() -> None:
    with examination(settings()) as look:
        for check in (server_proxy.certificate, server_proxy.proxy, server_proxy.logged_in):
            assert list(check(look)) == []


def test_a_sound_entry(ports: dict[str, int]) -> None:
    look = looking(ports["good"])
    ((result, what),) = told("certificate", list(server_proxy.certificate(look)))
    assert (result, "(89 days)" in what) == ("ok", True)
    ((result, what),) = told("proxy", list(server_proxy.proxy(look)))
    assert (result, what) == ("ok", f"https://{NAME} lets nobody in without a login")
    ((result, what),) = told("proxy, logged in", list(server_proxy.logged_in(look)))
    assert (result, what.startswith("not looked at: ")) == ("ok", True)


@pytest.mark.parametrize(
    ("port", "result", "said"),
    [
        ("short", "warning", "(10 days) only"),
        ("expired", "problem", f"that of {NAME} has expired on 20"),
        ("other", "warning", "Hostname mismatch"),
    ],
)
def test_a_certificate_that_is_not_sound(ports: dict[str, int], port: str, result: str, said: str) -> None:
    (found,) = server_proxy.certificate(looking(ports[port]))
    assert (found.result, said in found.found) == (result, True), found
    assert found.fix


def test_a_certificate_of_nobody_known_and_no_login_for_it(
    ports: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", LOGIN[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", LOGIN[1])
    look = looking(ports["good"])
    (found,) = server_proxy.certificate(look)
    assert (found.result, "is not trusted here: self-signed certificate" in found.found) == ("warning", True)
    assert "SSL_CERT_FILE" in found.fix
    (found,) = server_proxy.proxy(look)
    assert found.result == "ok"
    (found,) = findings("proxy, logged in", lambda: server_proxy.logged_in(look))
    assert (found.result, "so no login is sent" in found.found) == ("problem", True)
    assert "SSL_CERT_FILE" in found.fix


def test_an_entry_without_a_login(ports: dict[str, int]) -> None:
    found = list(server_proxy.proxy(looking(ports["open"])))
    assert [one.result for one in found] == ["problem"] * len(server_proxy.CLOSED)
    assert found[0].found == f"https://{NAME}/ answers 200 without a login"
    assert "auth_basic" in found[0].fix


def test_a_wrong_login(ports: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", LOGIN[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another-password")
    (found,) = server_proxy.logged_in(looking(ports["good"]))
    assert (found.result, found.found) == ("problem", f"https://{NAME} refuses the login")
    assert "another-password" not in str(found)


def test_plain_http_and_a_proxy_that_is_down(ports: dict[str, int]) -> None:
    (found,) = server_proxy.certificate(looking(ports["good"], "http"))
    assert (found.result, found.found) == ("problem", f"http://{NAME} sends logins in the open")
    (closed,) = free_ports(1)
    for check in (server_proxy.certificate, server_proxy.proxy):
        (found,) = findings("proxy", lambda check=check: check(looking(closed)))
        assert (found.result, "start" in found.fix) == ("problem", True)
        assert "Connection refused" in found.found


@pytest.mark.parametrize(("answer", "result"), [("301 https://mlops.test$request_uri", "ok"), ("200 ok", "problem")])
def test_http_leads_to_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, result: str) -> None:
    pem, (http, https) = certificate(tmp_path, NAME), free_ports(2)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    monkeypatch.setattr(server_proxy, "HTTP_PORT", http)
    monkeypatch.setattr(server_proxy, "HTTPS_PORT", https)
    closed = f"auth_basic mlops; auth_basic_user_file {users(tmp_path)};"
    servers = SERVER.format(port=https, pem=pem, key=pem.with_suffix(".key"), rest=closed)
    servers += f"server {{ listen 127.0.0.1:{http}; return {answer}; }}"
    with nginx(tmp_path / "nginx", servers):
        (found,) = server_proxy.proxy(looking(https))
    assert found.result == result, found
    if result == "problem":
        assert found.found == "http://127.0.0.1 answers 200 instead of HTTPS"
