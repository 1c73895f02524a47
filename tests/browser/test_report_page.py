"""The report's page as a person opens it: from a file, in a browser, without a network."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.rows import every_table
from ttc_core.report import write_report


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report([every_table(folder / "rows.jsonl")], folder / "out")
    return folder / "out" / "index.html"


@pytest.fixture
def open_page(watched_page, page_file) -> Callable[..., Any]:
    """Opens the page, which may ask for nothing but itself."""
    return partial(watched_page, page_file.as_uri(), page_file.as_uri(), "data:")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(open_page, width):
    """Wide tables scroll inside their own boxes, on a telephone too."""
    page = open_page(viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for box in page.query_selector_all(".scroll, figure"):
        assert box.bounding_box()["width"] <= width


def test_every_figure_is_seen(open_page):
    """Decoded, at a readable width, with words for those who cannot see it."""
    page = open_page(viewport={"width": 1280, "height": 800})
    pictures = page.query_selector_all("figure img")
    assert len(pictures) == 3
    for picture in pictures:
        assert picture.evaluate("image => image.complete && image.naturalWidth > 300")
        assert picture.bounding_box()["width"] > 600
        assert len(picture.get_attribute("alt")) > 60


def test_tables_have_all_their_lines(open_page):
    """Seven methods and TTC's variants at batch size 100, each with a number in every column."""
    page = open_page()
    tables = page.query_selector_all("#accuracy > .scroll > table")
    largest = max(tables, key=lambda table: len(table.query_selector_all("tbody tr")))
    lines = largest.query_selector_all("tbody tr")
    assert len(lines) == 7 + 2 + 4
    assert all(len(line.query_selector_all("td")) == 3 for line in lines)
    best = largest.query_selector("td.best")
    assert int(best.evaluate("cell => getComputedStyle(cell).fontWeight")) >= 600
    assert best.get_attribute("title").startswith("95 % interval")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(open_page, scheme):
    """WCAG's contrast of 4.5 for text, headers, links and the paper's lines, day and night."""
    page = open_page(color_scheme=scheme)
    ground = _luminance(page, "body", "backgroundColor")
    assert (ground < 0.1) == (scheme == "dark")
    for selector in ("body", "caption", "nav a", "th", "summary", "figcaption"):
        ink = _luminance(page, selector, "color")
        lighter, darker = max(ink, ground), min(ink, ground)
        assert (lighter + 0.05) / (darker + 0.05) > 4.5, selector


def test_settings_are_there_for_those_who_ask(open_page):
    """Folded away, opened by a click."""
    page = open_page()
    run = page.query_selector("#settings details")
    assert not run.query_selector("dl").is_visible()
    run.query_selector("summary").click()
    assert run.query_selector("dl").is_visible()


def _luminance(page: Any, selector: str, style: str) -> float:
    """WCAG's relative luminance of a colour on the page."""
    text = page.eval_on_selector(selector, f"element => getComputedStyle(element).{style}")
    numbers = [float(part) / 255 for part in text[text.index("(") + 1 : -1].split(",")[:3]]
    linear = [n / 12.92 if n <= 0.04045 else ((n + 0.055) / 1.055) ** 2.4 for n in numbers]
    return sum(w * n for w, n in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
