"""Writes the reports of a pull request's run as one comment, or renews the comment that is there.

Runs with the right to comment, over files that the pull request's own code has made. So their text is for people alone:
it is cut to a comment's length, notifies nobody, and which pull request it belongs to is never taken from it.

Belongs here: the calls of GitHub's API. Not here: making reports (`mlops trial`). Needs Python alone, so that nothing
has to be installed where that right is.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

MARK: Final = "<!-- mlops-report -->"
"""The first line of the comment, by which it is found again."""

AUTHOR: Final = "github-actions[bot]"
"""Whose comment is renewed: anybody may write the mark."""

INTRODUCTION: Final = (
    "Trained by this pull request's own code in a throw-away home, and compared with the champion. The figures are as "
    "trustworthy as that code; the gate decides anew once it is merged."
)

MOST_CHARACTERS: Final = 60_000
"""GitHub takes 65,536."""

PAGE: Final = 100
SECONDS: Final = 30


def main(folder: Path) -> int:
    """Comment on the open pull request that the run was for; 1 when GitHub refuses."""
    head, commit = os.environ["HEAD"], os.environ["HEAD_SHA"]
    try:
        found = _ask("GET", f"pulls?state=open&head={quote(head, safe=':')}")
        numbers = [one["number"] for one in found if one["head"]["sha"] == commit]
        for number in numbers:
            _comment(number, text(folder))
    except HTTPError as error:
        print(f"GitHub answered {error.code} to {error.url}", file=sys.stderr)
        return 1
    print(f"commented on {numbers}" if numbers else f"no open pull request has {commit} as its head any more")
    return 0


def text(folder: Path) -> str:
    """The comment: the mark, what the reader should know, and the reports by name."""
    files = sorted(path for path in folder.glob("*.md") if path.is_file() and not path.is_symlink())
    reports = [path.read_bytes()[: 4 * MOST_CHARACTERS].decode(errors="replace") for path in files]
    body = "\n\n".join([MARK, INTRODUCTION, *reports] if reports else [MARK, INTRODUCTION, "The run made no report."])
    # A zero-width space after it: an at sign would notify whom the text names.
    body = body.replace("@", "@\u200b")
    return body if len(body) <= MOST_CHARACTERS else body[:MOST_CHARACTERS] + "\n\n(cut off; see the run's artifact)"


def _comment(number: int, body: str) -> None:
    for one in _comments(number):
        if one["user"]["login"] == AUTHOR and one["body"].startswith(MARK):
            _ask("PATCH", f"issues/comments/{one['id']}", {"body": body})
            return
    _ask("POST", f"issues/{number}/comments", {"body": body})


def _comments(number: int) -> Iterator[Any]:
    page, some = 1, [None] * PAGE
    while len(some) == PAGE:
        some = _ask("GET", f"issues/{number}/comments?per_page={PAGE}&page={page}")
        yield from some
        page += 1


def _ask(method: str, path: str, content: dict[str, str] | None = None) -> Any:
    """One call of the API, with the address, repository and token of the run."""
    url = f"{os.environ['GITHUB_API_URL']}/repos/{os.environ['GITHUB_REPOSITORY']}/{path}"
    headers = {"Authorization": f"Bearer {os.environ['GITHUB_TOKEN']}", "Accept": "application/vnd.github+json"}
    data = None if content is None else json.dumps(content).encode()
    request = Request(url, data=data, headers=headers, method=method)  # noqa: S310  the address is the runner's
    with urlopen(request, timeout=SECONDS) as answer:  # noqa: S310  likewise
        return json.load(answer)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
