"""The entry itself: who is let in, what is closed, limits, and what is said when a service is away."""

import base64
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import grpc
import httpx
import pytest

from mlops_assets.serving import open_inference_pb2 as messages
from mlops_assets.serving.grpc_v2 import SERVICE
from mlops_assets_tests.proxy.conftest import SHIPPED, Entry, command, entering, render, script
from mlops_assets_tests.proxy.test_scripts import own_certificate
from mlops_assets_tests.serving.asking import app_of, listening
from mlops_assets_tests.serving.grpc_servers import typed
from mlops_assets_tests.serving.made import TABLE_SAMPLE, publish_table
from mlops_assets_tests.waiting import wait_for


def test_the_shipped_configuration_is_sound(tmp_path: Path) -> None:
    assert script("setup.sh", tmp_path / "web", "localhost").returncode == 0
    render(tmp_path)
    done = subprocess.run(command(tmp_path, "-t"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr
    left = [path.name for path in (tmp_path / "run").rglob("*.conf") if re.search(r"\$\{[A-Z]", path.read_text())]
    assert left == []


@pytest.mark.parametrize("path", ["/", "/dagster/", "/mlflow/", "/v2", "/docs", "/health", "/playground/", "/nothing"])
def test_nothing_is_open(entry: Entry, path: str) -> None:
    for user, password in (("", ""), ("admin", "wrong"), ("stranger", entry.password), ("admin", "")):
        with entry.client(user, password) as client:
            answer = client.get(path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Basic realm="mlops"')
        assert "Please log in" in answer.json()["error"]


def test_only_whether_it_lives_is_for_everybody(entry: Entry) -> None:
    with entry.client("") as client:
        answer = client.get("/healthz")
    assert (answer.status_code, answer.text) == (200, "ok\n")


def test_plain_http_and_other_names_lead_to_the_entry(entry: Entry) -> None:
    plain = httpx.get(f"http://127.0.0.1:{entry.http_port}/mlflow/?a=b", trust_env=False, timeout=60)
    assert (plain.status_code, plain.headers["location"]) == (308, f"{entry.url}/mlflow/?a=b")
    with entry.client() as client:
        other = client.get("/v2", headers={"Host": "evil.example"})
    assert (other.status_code, other.headers["location"]) == (308, f"{entry.url}/v2")


def test_old_tls_is_refused_and_http2_spoken(entry: Entry) -> None:
    old = ssl.create_default_context(cafile=str(entry.certificate))
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_ciphers("AES256-SHA256")  # a key exchange without forward secrecy
    new = entry.tls
    new.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", entry.port)) as bare, pytest.raises(ssl.SSLError):
        old.wrap_socket(bare, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", entry.port)) as bare:
        spoken = new.wrap_socket(bare, server_hostname="localhost")
        assert (spoken.version(), spoken.selected_alpn_protocol()) == ("TLSv1.3", "h2")
        spoken.close()


@pytest.mark.parametrize("flags", [0, ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN])  # Python 3.13's
def test_who_names_the_certificate_trusts_it(entry: Entry, flags: int) -> None:
    strict = entry.tls
    strict.verify_flags |= flags
    assert httpx.get(f"{entry.url}/healthz", verify=strict, trust_env=False, timeout=60).text == "ok\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_trusts_the_certificate_that_it_is_given(entry: Entry) -> None:
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", f"{entry.url}/healthz"]
    given = subprocess.run([*command, "--cacert", entry.certificate], capture_output=True, text=True, check=False)
    assert given.stdout == "ok\n", given.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 60, "and nobody else does"


def test_users_come_and_go_without_a_restart(entry: Entry) -> None:
    assert script("users.sh", entry.folder / "web", "add", "ann", given="a long password\n").returncode == 0
    with entry.client("ann", "a long password") as client:
        assert client.get("/v2").status_code == 200
        assert script("users.sh", entry.folder / "web", "remove", "ann").returncode == 0
        assert client.get("/v2").status_code == 401


def test_models_answer_over_rest(entry: Entry) -> None:
    with entry.client() as client:
        assert client.get("/v2/models/flowers").json()["name"] == "flowers"
        answer = client.post("/models/flowers/predict", json={"rows": list(TABLE_SAMPLE)})
        assert (answer.status_code, answer.json().get("model_version")) == (200, "1"), answer.text
        assert client.post("/invocations", json={"dataframe_records": list(TABLE_SAMPLE)}).status_code == 200
        assert client.get("/openapi.json").json()["openapi"]
        assert client.get("/docs").status_code == client.get("/docs/swagger-ui.css").status_code == 200
        assert client.get("/health").json()["ready"] is True


def test_models_answer_over_grpc_to_who_logs_in(entry: Entry) -> None:
    trusted = grpc.ssl_channel_credentials(entry.certificate.read_bytes())
    login = base64.b64encode(f"admin:{entry.password}".encode()).decode()
    with grpc.secure_channel(f"localhost:{entry.port}", trusted, options=[("grpc.enable_http_proxy", 0)]) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        given = typed().SerializeToString()
        answer = messages.ModelInferResponse.FromString(
            infer(given, timeout=60, metadata=[("authorization", f"Basic {login}")])
        )
        assert (answer.model_name, answer.model_version) == ("flowers", "1")
        with pytest.raises(grpc.RpcError) as refused:
            infer(given, timeout=60)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    "path",
    [
        *("/metrics", "/metrics/", "//metrics", "/v2/../metrics", "/v2/%2e%2e/metrics", "/v2/..%2fmetrics"),
        *("/dagster/metrics", "/mlflow/metrics", "/playground/metrics", "/grafana/metrics"),
        "/_entry/error.html",
    ],
)
def test_what_is_for_nobody_outside_is_closed(entry: Entry, path: str) -> None:
    status, body = raw(entry, path)
    assert status in {404, 502}  # 502: of the portal, which does not run here
    assert "python_info" not in body
    assert "request_seconds" not in body


@pytest.mark.parametrize(
    "path", ["/../../../etc/passwd", "/docs/..%2f..%2f..%2fetc/passwd", "/docs/%2e%2e/%2e%2e/etc/passwd"]
)
def test_no_path_leads_to_files(entry: Entry, path: str) -> None:
    status, body = raw(entry, path)
    assert status in {400, 404, 502}
    assert "root:" not in body


def raw(entry: Entry, path: str, method: str = "GET", *headers: str) -> tuple[int, str]:
    """A path that no client may mend on its way."""
    login = base64.b64encode(f"admin:{entry.password}".encode()).decode()
    lines = ["Host: localhost", f"Authorization: Basic {login}", *headers]
    request = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "Connection: close", "", ""])
    with (
        socket.create_connection(("127.0.0.1", entry.port)) as bare,
        entry.tls.wrap_socket(bare, server_hostname="localhost") as spoken,
    ):
        spoken.sendall(request.encode())
        answer = b"".join(iter(lambda: spoken.recv(1 << 16), b"")).decode(errors="replace")
    return int(answer.split()[1]), answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "SELF"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
    ],
)
def test_pages_of_others_may_not_ask_in_somebodys_name(entry: Entry, headers: dict[str, str], status: int) -> None:
    headers = {name: entry.url if value == "SELF" else value for name, value in headers.items()}
    with entry.client() as client:
        assert client.get("/v2", headers=headers).status_code == status


@pytest.mark.parametrize("path", ["/dagster/graphql", "//dagster//graphql", "/x/%2e./dagster/%67raphql"])
def test_a_link_from_elsewhere_changes_nothing_in_dagster(entry: Entry, path: str) -> None:
    status, answer = raw(entry, f"{path}?query=mutation")
    assert (status, "by POST" in answer) == (405, True)
    assert raw(entry, f"{path}?query=mutation", "HEAD")[0] == 405
    assert raw(entry, f"{path}?query=mutation", "GET", "Upgrade: h2c")[0] == 405
    assert raw(entry, path, "GET", "Upgrade: websocket")[0] == 502  # it does not run here
    assert raw(entry, path, "POST", "Content-Length: 0")[0] == 502
    assert raw(entry, path, "POST", "Origin: https://evil.example")[0] == 403
    assert raw(entry, "/dagster/runs")[0] == 502


def test_who_does_not_answer_is_named(entry: Entry) -> None:
    with entry.client(headers={"Accept": "text/html,*/*"}) as browser, entry.client() as program:
        page = browser.get("/dagster/")
        assert (page.status_code, page.headers["content-type"]) == (502, "text/html; charset=utf-8")
        assert "<h1>Dagster does not answer</h1>" in page.text
        assert "docker/server ps" in page.text
        assert 'http-equiv="refresh"' in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "MLflow does not answer" in program.post("/mlflow/api/2.0/mlflow/runs/create", json={}).json()["error"]
        off = browser.get("/playground/")
        assert off.status_code == 503
        assert "The playground is not running" in off.text
        assert 'http-equiv="refresh"' not in off.text
        assert "Grafana is not running" in program.get("/grafana/").json()["error"]


def test_the_log_has_what_helps_and_no_secret(entry: Entry) -> None:
    with entry.client() as client:
        client.get("/v2?token=s3cret", headers={"Cookie": "s3cret", "Referer": "https://s3cret", "User-Agent": 'a"b\\'})
    with entry.client("s3cret-typed-as-name", "x") as client:
        client.get("/v2?token=s3cret", headers={"User-Agent": "the last"})
    # Each of nginx's processes writes its own lines, after its answers.
    wait_for(lambda: 'a\\"b' in entry.log and "the last" in entry.log and entry.log.endswith("\n"), "both lines")
    lines = [json.loads(line) for line in entry.log.splitlines()]
    (line,) = [line for line in lines if line["agent"] == 'a"b\\']
    assert (line["path"], line["user"], line["status"], line["service"]) == ("/v2", "admin", 200, "The model server")
    assert "s3cret" not in entry.log
    assert entry.password not in entry.log + (entry.folder / "errors").read_text()


def test_answers_tell_browsers_to_be_careful(entry: Entry) -> None:
    with entry.client() as client:
        headers = client.get("/v2").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "SAMEORIGIN"
    assert headers["server"] == "nginx"
    assert "strict-transport-security" not in headers


@pytest.mark.slow
def test_limits_hold(tmp_path: Path, entry: Entry) -> None:
    models = (entry.folder / "run" / "conf.d" / "20-entry.conf").read_text()
    (upstream,) = re.findall(r"set \$models (\S+);", models)
    limits = {"MLOPS_REQUEST_LIMIT": "1k", "MLOPS_API_RATE": "1r/m", "MLOPS_API_BURST": "3", "MLOPS_HSTS_SECONDS": "60"}
    with entering(tmp_path, MLOPS_MODELS_UPSTREAM=upstream, **limits) as small, small.client() as client:
        large = client.post("/models/flowers/predict", content=b"x" * 2000)
        assert (large.status_code, "larger than" in large.json()["error"]) == (413, True)
        answers = [client.get("/v2/health/live") for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 4 + [429] * 2
        assert "wait a moment" in answers[-1].json()["error"]
        assert client.get("/mlflow/").status_code == 502, "pages have a limit of their own"
        assert answers[0].headers["strict-transport-security"] == "max-age=60"


@pytest.mark.slow
def test_whoever_guesses_is_slowed_down_and_keeps_nobody_else_out(tmp_path: Path) -> None:
    with entering(tmp_path, MLOPS_PAGES_RATE="1r/m", MLOPS_PAGES_BURST="3") as entry:
        assert script("users.sh", tmp_path / "web", "add", "ann", given="a long password\n").returncode == 0
        with entry.client(password="wrong") as guesser, entry.client("ann", "a long password") as ann:
            assert [guesser.get("/").status_code for _ in range(6)] == [401] * 4 + [429] * 2
            assert [ann.get("/").status_code for _ in range(6)] == [502] * 4 + [429] * 2
            assert "in your name" in ann.get("/").json()["error"]
            assert ann.get("/healthz").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trusted", "told", "seen"),
    [
        ("", "192.0.2.7", "127.0.0.1"),
        ("10.0.0.0/8 127.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("10.0.0.0/8 127.0.0.1", "made-up, 192.0.2.7, 10.1.2.3", "192.0.2.7"),
        ("10.0.0.0/8", "192.0.2.7", "127.0.0.1"),
    ],
)
def test_only_a_trusted_proxy_says_where_somebody_comes_from(
    tmp_path: Path, trusted: str, told: str, seen: str
) -> None:
    with entering(tmp_path, MLOPS_TRUSTED_PROXIES=trusted) as entry, entry.client("") as client:
        client.get("/", headers={"X-Forwarded-For": told})
        wait_for(lambda: entry.log.endswith("\n"), "the log, which comes after the answer")
        assert json.loads(entry.log)["address"] == seen


@pytest.mark.slow
def test_nginx_takes_a_certificate_that_was_renewed_or_replaced(tmp_path: Path) -> None:
    with entering(tmp_path) as entry, ExitStack() as stack:
        web = tmp_path / "web"

        def served() -> bool:
            return ssl.get_server_certificate(("127.0.0.1", entry.port)) == entry.certificate.read_text()

        assert served()
        own_certificate(web, "/O=mlops self-signed/CN=mlops", 5)
        assert not served()
        command = [SHIPPED / "keep.sh", web, "localhost", "0.1", "kill", "-HUP", str(entry.process)]
        keeper = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
        stack.callback(keeper.terminate)
        assert keeper.stdout
        assert b"made a self-signed certificate for localhost" in keeper.stdout.readline()
        wait_for(served, "the renewed certificate")
        (web / "key.pem").unlink()  # half of a pair changes nothing, and is no end
        own_certificate(web, "/O=Some Authority/CN=a.example", 90)
        wait_for(served, "the certificate of a person")
        assert keeper.poll() is None


class Names(threading.Thread):
    """A name server that knows one address, for whatever name it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.address = ""
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.at = "{}:{}".format(*self.socket.getsockname())

    def run(self) -> None:
        while True:
            asked, sender = self.socket.recvfrom(512)
            if not asked:
                return
            question = asked[12 : asked.index(b"\0", 12) + 5]
            known = bytes([0xC0, 12, 0, 1, 0, 1, 0, 0, 2, 88, 0, 4]) + socket.inet_aton(self.address or "0.0.0.0")
            flags = b"\x81\x80\0\x01\0\x01\0\0\0\0" if self.address else b"\x81\x83\0\x01\0\0\0\0\0\0"
            self.socket.sendto(asked[:2] + flags + question + (known if self.address else b""), sender)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.socket.getsockname())
        self.join()
        self.socket.close()


@pytest.mark.slow
def test_a_service_is_found_when_it_comes_and_when_it_comes_back_elsewhere(tmp_path: Path) -> None:
    publish_table(tmp_path / "home")
    app = app_of(tmp_path / "home")
    with Names() as names, listening(app) as first:
        port = first.rpartition(":")[2]
        variables = {"NGINX_LOCAL_RESOLVERS": names.at, "MLOPS_MODELS_UPSTREAM": f"models:{port}"}
        with entering(tmp_path, **variables) as entry, entry.client() as client:
            assert client.get("/v2").status_code == 502, "it is not there yet, and nginx is"
            names.address = "127.0.0.1"
            wait_for(lambda: client.get("/v2").status_code == 200, "the service")
            names.address = "127.0.0.2"  # where nobody listens
            wait_for(lambda: client.get("/v2").status_code == 502, "the move")
            names.address = "127.0.0.1"
            wait_for(lambda: client.get("/v2").status_code == 200, "the way back")
