"""The whole report: what is written, that it repeats itself, and what it says of damaged rows."""

import builtins
import io
import json
import math
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.rows import answers, every_table, row, write
from ttc_core.errors import UserError
from ttc_core.report import write_report


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report = write_report([every_table(folder / "rows.jsonl")], folder / "out")
    assert report.problems == []
    return folder / "out"


def test_every_table_and_every_figure_is_written(written):
    """Tables as Markdown and CSV, figures as PNG and SVG, and the page."""
    names = {path.name for path in written.iterdir()}
    for table in ("table1", "table5", "table7"):
        assert {f"{table}.md", f"{table}.csv"} <= names
    assert {
        "accuracy.md",
        "accuracy-intervals.md",
        "accuracy-1.csv",
        "mcnemar.md",
        "index.html",
    } <= names
    for figure in ("figure1", "figure2", "figure3"):
        with Image.open(written / f"{figure}.png") as image:
            assert image.width > 600
        assert ElementTree.parse(written / f"{figure}.svg").getroot().tag.endswith("svg")


def test_the_page_asks_nothing_of_a_network(written):
    """No address in it but its own parts; images inside; a policy that forbids the rest."""
    page = Page((written / "index.html").read_text())
    addresses = [
        value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href")
    ]
    assert all(value and value.startswith(("data:image/svg+xml;", "#")) for value in addresses)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    policy = next(attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs)
    assert policy is not None
    assert "default-src 'none'" in policy
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 3
    assert all(len(attrs["alt"] or "") > 60 for attrs in pictures)


def test_the_page_can_be_walked_by_its_contents(written):
    """Every entry leads to a section; tables have captions and scopes."""
    page = Page((written / "index.html").read_text())
    targets = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    sections = {f"#{attrs['id']}" for tag, attrs in page.tags if tag == "section"}
    assert targets <= sections
    assert len(targets) >= 8
    count = sum(tag == "table" for tag, _ in page.tags)
    assert count == sum(tag == "caption" for tag, _ in page.tags) > 8
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")


def test_equal_rows_give_equal_files(written, tmp_path):
    """To the last byte, so that a report can be kept under version control."""
    rows = written.parent / "rows.jsonl"
    write_report([rows], tmp_path / "again")
    for path in written.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_text_from_rows_is_shown_as_text(tmp_path):
    """A rows file from a stranger cannot bring code into the page."""
    trap = "<script>alert(1)</script>"
    rows = [row(f"{trap}:M", trap, 0.5, data=trap, model=f'"><img src=x onerror={trap}>')]
    rows[0]["settings"] = {trap: trap}
    write_report([write(tmp_path / "rows.jsonl", rows)], tmp_path / "out")
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert trap in page.text


def test_damaged_arrays_are_said_and_cost_only_what_needs_them(tmp_path):
    """Missing, cut off, or with objects inside: a sentence, and the tables all the same."""
    path = every_table(tmp_path / "rows.jsonl")
    files = sorted((tmp_path / "rows.jsonl.d").iterdir())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:50])
    with files[2].open("wb") as file:
        np.savez(file, predicted=np.array([{}], dtype=object))
    report = write_report([path], tmp_path / "out")
    assert len(report.problems) >= 3
    for damaged in files[:3]:
        assert any(damaged.name in problem for problem in report.problems)
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert files[0].name in page.text
    assert "SOURCE" in report.accuracy


@pytest.mark.parametrize(
    "damage",
    [
        {"predicted": np.zeros(999, int)},
        {"labels": np.zeros((1000, 2), int)},
        {"predicted": np.full(1000, "a")},
        {"features": np.zeros((1000, 3), np.float32)},
        {"features": np.full((1000, 2), np.nan, np.float32)},
    ],
    ids=["length", "shape", "kind", "channels", "nan"],
)
def test_arrays_of_another_row_are_said(damage: dict[str, Any], tmp_path):
    """By their shape and kind; nothing is drawn or compared from them."""
    rows = [row("tent", "fog", 0.5), row("ttc", "fog", 0.5, channels=[1, 2])]
    good = {**answers(0.5), "features": np.zeros((1000, 2), np.float32)}
    path = write(tmp_path / "rows.jsonl", rows, [answers(0.5), {**good, **damage}])
    report = write_report([path], tmp_path / "out")
    assert len(report.problems) == 1
    assert next(iter(damage)) in report.problems[0]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"method": "tent"}, "has no 'corruption'"),
        (row("tent", "fog", 0.5, correct=2000), "has 2000 right answers to 1000 images"),
        (row("tent", "fog", 7.5), "accuracy 7.5"),
        (row("tent", "fog", 0.5, batch_size=-1), "no possible number for batch_size"),
        (row("tent", "fog", 0.5, refused={"429": 10**400}), "no possible number for refused"),
        (row("tent", "fog", 0.5, ece=-1), "no possible number for ece"),
        (row("tent", "fog", 0.5, images="many"), "has 'many' for images"),
        (row("tent", "fog", 0.5, data=["a"]), "for data"),
        (row("tent", "fog", 0.5, channels=["a"]), "for channels"),
        (row("tent", "fog", 0.5) | {"method": None}, "with a method"),
        (row("tent", "fog", 0.5, images=10**400), "no possible number for images"),
        (row("tent", "fog", 0.5, batch_size=0), "accuracy 0.5"),
    ],
    ids=[
        *(
            "missing",
            "counts",
            "accuracy",
            "negative",
            "refused",
            "calibration",
            "kinds",
            "data",
            "channels",
            "method",
        ),
        *("endless", "no-batch"),
    ],
)
def test_rows_that_are_none_give_a_sentence(line: dict[str, Any], sentence: str, tmp_path):
    """With the file that holds them."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=sentence):
        write_report([tmp_path / "rows.jsonl"], tmp_path / "out")


def test_any_number_may_be_a_setting(tmp_path):
    """Of a method of one's own: what evaluate wrote, report reads, and names apart."""
    values = (-0.5, 0, 2**63, 10**400, math.inf, [-1])
    rows = [
        row("my.own:Method", "fog", 0.5 + 0.01 * place, settings={"x": {"y": value}, "z": -1})
        for place, value in enumerate(values)
    ]
    report = write_report([write(tmp_path / "rows.jsonl", rows)], tmp_path / "out")
    assert report.problems == []
    for place in range(len(values)):
        assert f"{50 + place}.0" in report.accuracy


def test_no_rows_and_no_folder_give_a_sentence(tmp_path):
    """What was looked for, and where."""
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match=r"no rows in .*empty\.jsonl"):
        write_report([tmp_path / "empty.jsonl"], tmp_path / "out")
    rows = write(tmp_path / "rows.jsonl", [row("tent", "fog", 0.5)])
    with pytest.raises(UserError, match="cannot be written"):
        write_report([rows], rows / "out")


def test_the_reference_of_the_comparison_can_be_chosen(written, tmp_path):
    """A method's name; one that is not there is said."""
    rows = written.parent / "rows.jsonl"
    write_report([rows], tmp_path, compare="norm")
    assert "Against NORM" in (tmp_path / "mcnemar.md").read_text()
    assert "Against TENT" in (written / "mcnemar.md").read_text()
    with pytest.raises(UserError, match="no rows of 'smog'"):
        write_report([rows], tmp_path, compare="smog")


def test_tables_do_without_matplotlib(tmp_path, monkeypatch):
    """Only a figure asks for it, and says how to get it."""
    load = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return load(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    tables = write(tmp_path / "rows.jsonl", [row("tent", "fog", 0.5)])
    write_report([tables], tmp_path / "out")
    assert (tmp_path / "out" / "index.html").exists()
    figures = every_table(tmp_path / "figures.jsonl")
    with pytest.raises(UserError, match=r"pip install 'ttc-service\[report\]'"):
        write_report([figures], tmp_path / "more")


def test_a_picture_is_not_blank(written):
    """Each figure has ink of several colours."""
    for name in ("figure1", "figure2", "figure3"):
        image = Image.open(io.BytesIO((written / f"{name}.png").read_bytes())).convert("RGB")
        colours = np.asarray(image.resize((200, 100))).reshape(-1, 3)
        assert len(np.unique(colours, axis=0)) > 50
