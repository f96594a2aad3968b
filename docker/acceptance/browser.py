"""A real browser that logs in: headless Chromium, steered over a pipe.

Belongs here: opening pages. Not here: what they must show (`__main__.py`). The standard library is enough.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def program() -> str | None:
    """Where a browser is installed; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of a browser."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = os.fdopen(write, "wb", buffering=0), os.fdopen(read, "rb")
        self._number, self._session = 0, ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, url: str) -> None:
        """Go to an address."""
        self._call("Page.navigate", url=url)

    def text(self) -> str:
        """What a person reads on the page now, its title first."""
        shown = "document.title + ' | ' + (document.body ? document.body.innerText : '')"
        return str(self._call("Runtime.evaluate", expression=shown)["result"].get("value", ""))

    def shows(self, wanted: str, seconds: float = 60) -> bool:
        """Whether a page comes to show a text."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if wanted in self.text():
                return True
            time.sleep(0.5)
        return False

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        self._write.write(json.dumps(message).encode() + b"\0")
        while True:
            told = json.loads(self._message())
            if told.get("id") == self._number:
                return dict(told.get("result", {}))

    def _message(self) -> bytes:
        found = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            if not byte:
                raise OSError("the browser has ended")
            found += byte
        return bytes(found)


@contextmanager
def browser(path: str) -> Iterator[Browser]:
    """Start a browser that takes any certificate, and end it."""
    ours_read, theirs_write = os.pipe()
    theirs_read, ours_write = os.pipe()
    # Chromium wants 3 and 4, which may be taken by now.
    theirs_read, theirs_write = (fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (theirs_read, theirs_write))

    def places() -> None:
        os.dup2(theirs_read, 3)
        os.dup2(theirs_write, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors"]
        process = subprocess.Popen(
            [path, *flags, f"--user-data-dir={profile}", "--remote-debugging-pipe"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),
            preexec_fn=places,  # noqa: PLW1509  no threads here
        )
        os.close(theirs_read)
        os.close(theirs_write)
        try:
            yield Browser(ours_write, ours_read)
        finally:
            process.kill()
            process.wait()
