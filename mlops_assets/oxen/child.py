"""Starting the worker and understanding how it ended.

Belongs here: the process, its time limit, and the translation of answers, signals and panics into named errors. Not
here: what the operations do (``worker``).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from mlops_assets.oxen import errors, worker
from mlops_assets.oxen.errors import NotWritable, OperationTimeout, OxenError, StoreCorrupt
from mlops_assets.oxen.work import LOCKED, unwritable

_FOREIGN_LOCK_SECONDS = 10.0  # how long a program outside this package is waited for
_DAMAGE = {signal.SIGBUS, signal.SIGSEGV, signal.SIGILL, signal.SIGABRT}
_GRACE = 5.0  # the worker's own alarm comes after ours, and counts only when this process is gone


def call(operation: str, store: Path, *, seconds: float, payload: bytes = b"", **arguments: Any) -> Any:
    """Run one operation of the worker and return its answer.

    Whatever happens here (a timeout, Ctrl-C), no child is left, and with it no lock.

    Args:
        operation: One of the worker's.
        store: The repository's ``.oxen`` directory.
        seconds: Time limit, waiting for other writers included.
        payload: Bytes that follow the request.
        **arguments: What the operation takes, as JSON.

    Raises:
        OxenError: The operation failed; the subclass says how.
    """
    request = json.dumps(
        arguments
        | {
            "operation": operation,
            "store": str(store),
            "payload": len(payload),
            "seconds": seconds + _GRACE,
            "sys_path": [entry for entry in sys.path if entry] + [str(Path(__file__).parents[2])],
            "extension": extension_file(),
            "foreign_seconds": _FOREIGN_LOCK_SECONDS,
        }
    ).encode()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: os.environ[name] for name in os.environ if not name.startswith("OXEN_")} | {"RUST_BACKTRACE": "0"},
        start_new_session=True,  # its own group: one signal ends it, and the terminal's Ctrl-C reaches us alone
    )
    try:
        out, err = process.communicate(request + b"\n" + payload, timeout=seconds)
    except subprocess.TimeoutExpired:
        _kill(process)
        out, _ = process.communicate()
        raise OperationTimeout(_timeout_text(operation, store, seconds, out)) from None
    except BaseException:
        _kill(process)
        raise
    return _answer(operation, store, process.returncode, out, err)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _timeout_text(operation: str, store: Path, seconds: float, out: bytes) -> str:
    if operation != "heads" and LOCKED.encode() not in out:
        return (
            f"{store.parent} was locked by another writer for {seconds:g} s while '{operation}' waited; "
            "wait for it to end, or allow a longer timeout."
        )
    return f"'{operation}' on {store.parent} did not end within {seconds:g} s and was stopped; allow a longer timeout."


def _answer(operation: str, store: Path, code: int, out: bytes, err: bytes) -> Any:
    mark = worker.ANSWER.encode()
    line = next((line for line in reversed(out.splitlines()) if line.startswith(mark)), None)
    if line is None:
        raise _death(operation, store, code, err)
    answer: dict[str, Any] = json.loads(line[len(mark) :])
    if "error" not in answer:
        return answer["value"]
    kind, text = answer["error"], answer["text"]
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, OxenError):
        raise known(text if str(store.parent) in text else f"{store.parent}: {text}")
    if reason := unwritable(text):
        raise NotWritable(
            f"'{operation}' cannot write to {store.parent} ({reason}); free space or mend the rights and try again: "
            "what was committed before is intact."
        )
    raise OxenError(
        f"'{operation}' on {store.parent} failed in Oxen ({kind}: {text}); mend what it names and try again."
    )


def _death(operation: str, store: Path, code: int, err: bytes) -> OxenError:
    last = err.decode(errors="replace").strip().splitlines()[-1:]
    if -code in _DAMAGE:
        return StoreCorrupt(
            f"Oxen crashed ({signal.Signals(-code).name}) in '{operation}' on {store.parent}, as it does on a damaged "
            "database; restore its .oxen folder from a backup."
        )
    if code == -signal.SIGALRM:
        return OperationTimeout(f"'{operation}' on {store.parent} did not end in time; allow a longer timeout.")
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}, {last}"
    return OxenError(
        f"'{operation}' on {store.parent} was ended {how}; look for a lack of memory or disk, and try again."
    )


@cache
def extension_file() -> str:
    """Find Oxen's compiled module without importing anything of it."""
    spec = importlib.util.find_spec("oxen")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(place).glob("oxen_py*.so")):
            return str(found)
    raise OxenError("the package 'oxenai' is not installed here; install it with 'pip install oxenai'.")
