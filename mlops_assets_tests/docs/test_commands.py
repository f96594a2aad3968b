"""Every command of the site and of the README, typed as a reader types it, and what it prints."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets_tests.docs.pages import DOCS, Page, all_pages
from mlops_assets_tests.docs.reader import Reader

pytestmark = pytest.mark.slow

QUICKSTART = Page(DOCS / "quickstart.md")
FOLLOWING = [
    page for page in all_pages() if page.path != QUICKSTART.path and any(not fence.not_run for fence in page.consoles)
]


@pytest.fixture(scope="module")
def reader(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader who has been through the quickstart; so its page is tested, and all others have a home with models."""
    made = Reader.new(tmp_path_factory.mktemp("quickstart") / "mlops_assets", store_template)
    made.read(QUICKSTART)
    yield made
    shutil.rmtree(made.root)


@pytest.mark.parametrize("page", FOLLOWING, ids=lambda page: page.name)
def test_a_page_does_what_it_shows(reader: Reader, tmp_path: Path, page: Page) -> None:
    reader.another(tmp_path / "mlops_assets").read(page)
