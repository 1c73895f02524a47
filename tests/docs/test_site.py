"""`make docs`: the site is built whole, without a network; a link that leads nowhere ends it."""

import re
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.fixtures.site import copied, make_docs

ROOT = Path(__file__).parents[2]
CONFIG = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
# What a page loads by itself; a link is followed by a reader alone.
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


def listed(nav: object) -> Iterator[str]:
    """The pages of the navigation, at any depth."""
    if isinstance(nav, str):
        yield nav
    else:
        for each in nav.values() if isinstance(nav, dict) else nav:  # type: ignore[attr-defined]
            yield from listed(each)


class Page(HTMLParser):
    """What a built page names: its anchors, links, what it loads, and words outside of code."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.paragraphs: list[str] = []
        self._within: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given["id"]} if "id" in given else set()
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if LOADED.get(tag) in given and given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(given[LOADED[tag]])
        if tag == "p":
            self.paragraphs.append("")
        if tag in ("p", "code", "pre"):
            self._within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._within:
            del self._within[len(self._within) - 1 - self._within[::-1].index(tag) :]

    def handle_data(self, data: str) -> None:
        if self._within[-1:] == ["p"]:
            self.paragraphs[-1] += data


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    return copied(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def pages(checkout) -> dict[Path, Page]:
    """Every page of the site, by its file."""
    done = make_docs(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: Page(path) for path in (checkout / "build" / "site").rglob("*.html")}


def test_every_page_is_in_the_navigation() -> None:
    """And what is there is a page."""
    there = {
        str(path.relative_to(ROOT))
        for folder in ("docs", "docker/runbooks")
        for path in (ROOT / folder).rglob("*.md")
    }
    others = {"README.md", "CHANGELOG.md", "DECISIONS.md", "LOG.md"}
    others |= {"examples/README.md", "conformance/README.md"}
    found = list(listed(CONFIG["nav"]))
    assert set(found) == there | others
    assert len(found) == len(set(found))


def test_each_link_of_the_site_leads_to_a_page_and_an_anchor(pages) -> None:
    """Of the site itself."""
    site = next(path for path in pages if path.name == "404.html").parent
    for page in pages.values():
        if (
            page.path.name == "404.html"
        ):  # its links begin at the site's root, wherever that will be
            continue
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto", "data", "javascript"):
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{page.path.relative_to(site)}: {link}"
            anchor = unquote(parts.fragment)
            if anchor and target.suffix == ".html":
                assert anchor in pages[target].anchors, f"{page.path.relative_to(site)}: {link}"


def test_nothing_is_loaded_from_elsewhere(pages) -> None:
    """Neither fonts nor scripts nor pictures, by pages or by their styles."""
    for page in pages.values():
        assert not [name for name in page.loaded if re.match(r"(https?:)?//", name)], page.path
    site = next(path for path in pages if path.name == "404.html").parent
    styles = list(site.rglob("*.css"))
    assert styles
    for style in styles:
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text()), style


def test_no_list_or_table_is_left_as_text(pages) -> None:
    """What a repository's page shows as such, the site does, too. The log and the decisions are
    written as they come: there a list may stand below its sentence without a line between."""
    for page in pages.values():
        if page.path.parent.name in ("LOG", "DECISIONS"):
            continue
        for paragraph in page.paragraphs:
            assert not re.search(r"^(?:\s*[-*] |\d+\. |\s*\|.*\|\s*$)", paragraph, re.MULTILINE), (
                f"{page.path}: {paragraph[:200]}"
            )


def test_links_that_lead_nowhere_end_it(checkout, pages) -> None:
    """To a page, and to an anchor of one; the place is named."""
    page = checkout / "docs" / "queue.md"
    page.write_text(f"{page.read_text()}\nSee [a](nowhere.md), [b](guard.md#nowhere).\n")
    done = make_docs(checkout)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert said.count("docs/queue.md") == 2
    assert "page does not exist" in said
    assert "anchor does not exist" in said
