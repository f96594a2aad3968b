"""A real browser, driven over its debugging protocol: it logs in as a person would, and tells what went wrong."""

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """A tab.

    Attributes:
        complaints: What pages wrote to the console as errors, refused by their policy, or threw.
        failures: Requests that were answered with 400 or more, or not at all.
    """

    def __init__(self, connection: ClientConnection, user: str, password: str) -> None:
        self._connection, self._user, self._password = connection, user, password
        self._number = 0
        self.complaints: list[str] = []
        self.failures: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Fetch.enable", handleAuthRequests=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser for something, and see to what happens meanwhile."""
        message = self._answer(method, **parameters)
        assert "error" not in message, message
        return dict(message["result"])

    def _answer(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        wanted = self._number
        self._connection.send(json.dumps({"id": wanted, "method": method, "params": parameters}))
        while True:
            message: dict[str, Any] = json.loads(self._connection.recv(timeout=180))
            if message.get("id") == wanted:
                return message
            self._happened(message.get("method", ""), message.get("params", {}))

    def _happened(self, event: str, told: dict[str, Any]) -> None:
        match event:
            case "Fetch.requestPaused":
                self._send("Fetch.continueRequest", requestId=told["requestId"])
            case "Fetch.authRequired":
                answer = {"response": "ProvideCredentials", "username": self._user, "password": self._password}
                self._send("Fetch.continueWithAuth", requestId=told["requestId"], authChallengeResponse=answer)
            case "Runtime.exceptionThrown":
                self.complaints.append(str(told["exceptionDetails"].get("exception", {}).get("description")))
            case "Runtime.consoleAPICalled" if told["type"] == "error":
                self.complaints.append(" ".join(str(one.get("value", one)) for one in told["args"]))
            case "Log.entryAdded" if told["entry"]["level"] == "error":
                self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
            case "Network.responseReceived" if told["response"]["status"] >= 400:
                self.failures.append(f"{told['response']['status']} {told['response']['url']}")

    def _send(self, method: str, **parameters: Any) -> None:
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page; of a promise, what it brings."""
        told = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return told["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 180) -> None:
        """Until an expression in the page is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            told = self._answer("Runtime.evaluate", expression=f"!!({expression})", returnByValue=True)
            # No result: the page is just being replaced by the next one.
            if told.get("result", {}).get("result", {}).get("value"):
                return
            time.sleep(0.2)
        text = self.ask("document.body && document.body.innerText")
        raise AssertionError(f"waited for {expression}\n{self.complaints}\n{self.failures}\n{text}")

    def picture(self, path: Path, width: int, height: int, *, dark: bool = False) -> None:
        """A screenshot."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browsing(profile: Path, user: str = "", password: str = "") -> Iterator[Page]:
    """A browser with one tab and a profile of its own; certificates are taken as they are."""
    assert CHROMIUM
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--remote-debugging-port=0", "--ignore-certificate-errors", "--no-first-run", f"--user-data-dir={profile}"),
        *("--disable-background-networking", "--disable-component-update", "--no-proxy-server", "about:blank"),
    ]
    profile.mkdir(parents=True, exist_ok=True)
    with (profile / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as browser:
        try:
            with connect(_tab(profile, browser), max_size=1 << 28, open_timeout=120, proxy=None) as connection:
                yield Page(connection, user, password)
        finally:
            browser.terminate()


def _tab(profile: Path, browser: "subprocess.Popen[bytes]") -> str:
    import httpx

    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and browser.poll() is None:
        found = re.search(r"DevTools listening on ws://([^/]+)/", (profile / "log").read_text(errors="replace"))
        if found:
            tabs = httpx.get(f"http://{found[1]}/json/list", trust_env=False, timeout=60).json()
            pages = [tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"]
            if pages:
                return str(pages[0])
        time.sleep(0.1)
    raise AssertionError((profile / "log").read_text(errors="replace"))
