"""The child process that alone calls Oxen: one operation, then exit.

Oxen keeps RocksDB's lock on the branches until its process ends, freezes all threads while it works, reports bad input
by Rust panics, and dies with the process when a database is damaged. So each operation runs here, started by
``child.call`` as ``python -I -S worker.py``: without site-packages, and with Oxen's extension module loaded from its
file, a whole operation takes about 30 ms.

Reads from stdin one line of JSON and the bytes it announces, answers with one marked line on stdout (Oxen prints to
stdout as well). Not here: the operations (``branching``, ``staging``, ``merging``, ``cleaning``), each imported when it
is asked for.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
from typing import Any

ANSWER = "\x1emlops-answer "
OPERATIONS = {
    "init": "branching",
    "heads": "branching",
    "branch": "branching",
    "delete": "branching",
    "commit": "staging",
    "merge": "merging",
    "cleanup": "cleaning",
}


def main() -> None:
    """Serve the one request on stdin."""
    request = json.loads(sys.stdin.buffer.readline())
    payload = sys.stdin.buffer.read(request["payload"])
    # The default action of SIGALRM ends the process even in the middle of Rust, and even when the parent is gone.
    signal.setitimer(signal.ITIMER_REAL, request["seconds"])
    sys.path.extend(request["sys_path"])
    name = request["operation"]
    answer: dict[str, Any]
    try:
        operation = getattr(importlib.import_module(f"mlops_assets.oxen.{OPERATIONS[name]}"), name)
        answer = {"value": operation(request, payload)}
    except BaseException as error:  # noqa: BLE001 -- a Rust panic is a BaseException
        answer = {"error": type(error).__name__, "text": str(error)}
        if isinstance(error, OSError):
            answer["errno"] = error.errno
    sys.stdout.write(f"\n{ANSWER}{json.dumps(answer)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
