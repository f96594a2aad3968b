"""The site as it is built: whole, without links that lead nowhere, and without anything of another host."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
import typer
import yaml

from mlops_assets.cli import app
from mlops_assets.settings import Settings
from mlops_assets_tests.docs.pages import DOCS
from mlops_assets_tests.docs.test_pages import commands

pytestmark = pytest.mark.slow

CONFIGURATION = DOCS / "site" / "mkdocs.yml"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LOADED = {
    "link": "href",
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "object": "data",
    "video": "src",
}


class Elements(HTMLParser):
    """The attributes of all elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("docs") / "site"
    command = [str(Path(sys.executable).with_name("mkdocs")), "build", "--strict", "-f", str(CONFIGURATION)]
    done = subprocess.run([*command, "-d", str(target)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return target


def test_every_page_is_in_the_navigation_and_there(site: Path) -> None:
    told = str(yaml.load(CONFIGURATION.read_text(), Loader=yaml.BaseLoader)["nav"])
    for page in DOCS.rglob("*.md"):
        name = str(page.relative_to(DOCS))
        assert f"'{name}'" in told
        assert (site / name).with_suffix(".html").is_file()


def test_links_and_anchors_lead_somewhere(site: Path) -> None:
    pages = {path: Elements(path.read_text()).found for path in site.rglob("*.html") if path.name != "404.html"}
    anchors = {path: {given["id"] for _, given in found if given.get("id")} for path, found in pages.items()}
    for path, found in pages.items():
        for tag, given in found:
            link = urlsplit(given.get("href", "") if tag == "a" else given.get(LOADED.get(tag, ""), ""))
            if link.scheme or link.netloc or not (link.path or link.fragment):
                continue
            target = (path.parent / unquote(link.path)).resolve() if link.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.name}: {tag} {link.geturl()}"
            if tag == "a" and link.fragment and target in anchors and not link.fragment.startswith("__"):
                assert unquote(link.fragment) in anchors[target], f"{path.name}: {link.geturl()}"


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    for path in site.rglob("*.html"):
        found = Elements(path.read_text()).found
        policies = [given["content"] for tag, given in found if given.get("http-equiv") == "Content-Security-Policy"]
        assert len(policies) == 1, path
        assert "default-src 'self'" in policies[0]
        assert "http" not in policies[0]
        for tag, given in found:
            address = urlsplit(given.get(LOADED.get(tag, ""), ""))
            loads = tag != "link" or given.get("rel") not in {"canonical", "next", "prev"}
            assert not (loads and address.netloc), f"{path.name}: {tag} {address.geturl()}"
    for path in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)]*", path.read_text()) == [], path


def test_the_search_has_an_index_of_its_own(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())
    assert {"gate.html#errors", "concepts.html#the-words"} <= {one["location"] for one in index["docs"]}


def test_the_references_are_written_from_the_code(site: Path) -> None:
    shown, told = (site / "commands.html").read_text(), (site / "settings.html").read_text()
    for name, options in commands(typer.main.get_command(app), "mlops"):
        assert f'id="{name.replace(" ", "-")}"' in shown
        assert all(option in shown for option in options)
    for name, field in Settings.model_fields.items():
        assert f"<code>{field.validation_alias or f'MLOPS_{name.upper()}'}</code>" in told


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_shows_a_page_and_is_refused_nothing(site: Path, tmp_path: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=site)
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom"]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}/concepts.html"
        done = subprocess.run([*command, address], capture_output=True, text=True, timeout=300, check=False)
        server.shutdown()
    assert 'id="the-recipe-and-the-store"' in done.stdout
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
