"""What holds for every page, told from its text alone: commands that exist, links that lead somewhere."""

import ast
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from mlops_assets.cli import app
from mlops_assets.settings import PROJECT
from mlops_assets_tests.docs.pages import DOCS, Command, Page, all_pages, printed

PAGES = all_pages()
REASONS = (
    "installs from a package index",
    "needs Docker",
    "needs promtool and Docker",
    "needs GitHub",
    "needs a GPU",
    "needs PostgreSQL",
    "needs a broker",
    "needs a Hugging Face account",
    "downloads from another host",
    "takes minutes",
    "the names of the pipelines are yours",
)
"""Why a command may not be run here; another reason names the test that runs it."""

MOST_NOT_RUN = 0.3
"""Share of all commands, server pages aside."""

TYPED = (
    "mlops",
    "make",
    "docker",
    "docker-compose",
    "curl",
    "dagster",
    "dg",
    "mlflow",
    "python",
    "pip",
    "git",
    "export",
)


def commands(group: Any, prefix: str) -> Iterator[tuple[str, set[str]]]:
    """Every command, with its options."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield (
                f"{prefix} {name}",
                {option for one in command.params for option in one.opts if option.startswith("-")},
            )


KNOWN = dict(commands(typer.main.get_command(app), "mlops"))


def of(page: Page) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_commands_are_shown_in_consoles(page: Page) -> None:
    assert [
        f"line {fence.line}: {line}"
        for fence in page.fences
        if fence.language in {"", "sh", "bash", "shell"}
        for line in fence.text.splitlines()
        if line.removeprefix("$ ").split(" ")[0] in TYPED
    ] == [], "write them as a `console`, each behind '$ ', so that a test runs them"


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_what_is_not_run_has_a_reason_of_the_list(page: Page) -> None:
    for fence in page.fences:
        assert fence.commands if fence.language == "console" else not (fence.not_run or fence.first)
        if fence.not_run and fence.not_run not in REASONS:
            test = fence.not_run.split(" ")[0]
            assert test.startswith("mlops_assets_tests/"), f"line {fence.line}: {fence.not_run!r} is no reason"
            assert (PROJECT / test).is_file(), f"line {fence.line}: there is no {test}"


def test_most_commands_are_run() -> None:
    fences = [fence for page in PAGES for fence in page.consoles if "Docker" not in fence.not_run]
    not_run = sum(len(fence.commands) for fence in fences if fence.not_run)
    assert not_run < MOST_NOT_RUN * sum(len(fence.commands) for fence in fences)


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_commands_and_their_options_exist(page: Page) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    for place, words in typed(page):
        if words[0] == "make":
            assert {word for word in words[1:] if re.fullmatch(r"[a-z-]+", word)} <= targets, f"{place}: {words}"
        elif words[0] == "mlops":
            length = next((size for size in (3, 2) if " ".join(words[:size]) in KNOWN), None)
            assert length or (len(words) < 3 and is_group(words)), f"{place}: there is no {' '.join(words[:3])!r}"
            options = {option for one in words for option in re.findall(r"^(--[a-z-]+)", one)}
            missing = options - KNOWN[" ".join(words[:length])] if length else set()
            assert not missing, f"{place}: {' '.join(words[:length])} has no {missing}"


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_links_lead_somewhere(page: Page) -> None:
    for link in page.links:
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.path.parent / file).resolve() if file else page.path
        assert target.is_file(), f"{page.name}: {link} is no file"
        if anchor:
            assert anchor in Page(target).anchors, f"{page.name}: {link} has no such heading: {Page(target).anchors}"


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_python_parses(page: Page) -> None:
    for fence in page.fences:
        if fence.language == "python":
            ast.parse(
                textwrap.dedent(fence.text).replace("return ", "", 1) if fence.text.startswith(" ") else fence.text
            )


def test_pictures_are_small_and_used() -> None:
    used = {(page.path.parent / link).resolve() for page in PAGES for link in page.links}
    pictures = {*DOCS.glob("*.png"), *DOCS.glob("*.svg")}
    assert pictures
    assert pictures <= used
    assert [picture.name for picture in pictures if picture.stat().st_size > 300_000] == []


@pytest.mark.parametrize(
    ("shown", "real", "matches"),
    [
        (["version 1, accuracy 0.93"], "version 1, accuracy 0.95\n", True),
        (["version 1, accuracy 0.93"], "version 2, accuracy 0.93\n", False),
        (["committed c279d55fe7ef x"], "committed 793515168628 x\n\n", True),
        (["committed c279d55fe7ef x"], "committed nothing\n", False),
        (["...", "last"], "one\ntwo\nlast\n", True),
        (["...", "last"], "one\nlast\nmore\n", False),
        (["{p: 0.852..."], "{p: 0.85218185, q: 0.000052920208}\n", True),
        (["because ...; done"], "because n > 0.9; done\n", True),
        (["because ...; done"], "because n > 0.9\n", False),
        (["│ a │ 7 rows │"], "│ a  │ 7 rows   │\n", True),
        (["│ a │ 7 rows │"], "│ a  │ 8 rows   │\n", False),
        (["00:21:47 made in 3 s"], "01:02:03 made in 11 s\n", True),
        (["00:21:47 made", "00:21:48 told"], "01:02:03 made\n         told\n", True),
    ],
)
def test_an_output_is_compared_up_to_what_differs_from_run_to_run(shown: list[str], real: str, matches: bool) -> None:
    command = Command("x", tuple(shown), 1)
    assert bool(command.pattern().fullmatch(printed(real))) == matches


def typed(page: Page) -> Iterator[tuple[str, list[str]]]:
    """The commands of a page as words, from consoles and from code within sentences."""
    for fence in page.consoles:
        for command in fence.commands:
            for line in re.split(r" (?:&&|\|) |; | +# .*", command.text.split("\n")[0]):
                if line:
                    yield f"{page.name}:{command.line}", [re.sub(r"^\S*/", "", line.split()[0]), *line.split()[1:]]
    for code in re.findall(r"(?<!`)`((?:mlops|make) [a-z][^`\n]*)`(?!`)", page.text):
        yield page.name, code.replace("|", " ").split()[:2] if "|" in code else code.split()


def is_group(words: list[str]) -> bool:
    return len(words) == 1 or any(one.name == words[1] for one in app.registered_groups)
