"""What loading costs: the definitions and the help of the commands import nothing heavy."""

import json
import os
import subprocess
import sys

HEAVY = ("torch", "mlflow", "pandera", "sklearn", "onnxruntime")

LOADED = f"""
import json, sys
from mlops_assets.definitions import defs
names = [job.name for job in defs().get_repository_def().get_all_jobs()]
print(json.dumps([names, [name for name in {HEAVY!r} if name in sys.modules]]))
"""

HELP = """
import contextlib, io, json, sys
from mlops_assets.cli import app

def told(command):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        app([*command, "--help"], standalone_mode=False)
    return printed.getvalue()

texts = [told(command) for command in json.loads(sys.argv[1])]
print(json.dumps([texts, [name for name in ("dagster", "polars", "torch", "mlflow") if name in sys.modules]]))
"""

COMMANDS = [
    *([name] for name in ("demo", "up", "status", "run", "new", "doctor", "env")),
    *([name] for name in ("serve", "predict", "export", "deploy", "playground", "stream")),
    ["portal"],
    ["data", "incoming"],
    *(["data", name] for name in ("fsck", "growth", "cleanup")),
    *(["store", name] for name in ("ls", "verify", "gc")),
    *(["data", name] for name in ("import", "commit", "log", "diff", "show", "branches", "branch", "merge")),
]


def python(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"COLUMNS": "200"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)


def test_the_definitions_import_nothing_heavy() -> None:
    done = python(LOADED)
    assert done.returncode == 0, done.stderr
    jobs, heavy = json.loads(done.stdout.splitlines()[-1])
    assert "iris_job" in jobs
    assert heavy == []


def test_help_shows_examples_and_imports_nothing() -> None:
    commands = [[], ["data"], ["store"], *COMMANDS]
    done = python(HELP, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    texts, heavy = json.loads(done.stdout.splitlines()[-1])
    assert heavy == []
    for command, text in zip(commands, texts, strict=True):
        _, usage, rest = text.partition("Usage: ")
        assert usage, text
        if command in COMMANDS:
            example = "mlops " + " ".join(command)
            assert example in rest.partition("\n")[2], f"no example of `{example}`:\n{text}"
    assert "mlops demo" in texts[0]
