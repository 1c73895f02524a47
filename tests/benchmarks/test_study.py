"""The studies of the default: rows are filled in once, and the table says what it is of."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import study
from benchmarks.places import Place
from benchmarks.streams import Scene
from benchmarks.study import SOURCE, STUDIES, Found, Pass, Study, scenes_of, table
from benchmarks.variants import LINE
from ttc_core.presets import Variant
from ttc_core.rows import Rows

IMAGES = 200


def found(line: str, stream: str, corruption: str, accuracy: float, source: float = 0.5) -> Found:
    right = np.arange(IMAGES) < accuracy * IMAGES
    row = {
        "accuracy": accuracy,
        "source_difference": accuracy - source,
        "source_difference_error": 0.01,
    }
    return Found(line, Pass("here", stream, 0, corruption, None), row, right)


def test_the_table_tells_means_and_the_worst_pass():
    """Over corruptions in a stream; over streams behind them; each line beside the default."""
    rows = [
        *(found(SOURCE, stream, name, 0.5) for stream in "ab" for name in ("fog", "snow")),
        *(found(LINE, stream, name, 0.8) for stream in "ab" for name in ("fog", "snow")),
        *(found("varied", "a", name, 0.7) for name in ("fog", "snow")),
        *(found("varied", "b", name, level) for name, level in (("fog", 0.7), ("snow", 0.46))),
    ]
    made = table(rows, "ablation-tuning")
    assert list(made.header) == ["", "a", "b", "mean", f"less {LINE}", "worst"]
    source, usual, varied = ([cell.text for cell in line] for line in made.lines)
    assert source[:3] == [SOURCE, "50.0", "50.0"]
    assert usual[1:4] == ["+30.0 (+30.0)", "+30.0 (+30.0)", "+30.0"]
    assert varied[1:4] == ["+20.0 (+20.0)", "+8.0 (-4.0)", "+14.0"]
    assert varied[4].startswith("-16.0 ± ")
    assert varied[5] == "-4.0 ± 1.0: here, b, snow"
    assert "here" in made.caption
    assert made.lines[2][2].beside == {"worst": pytest.approx(-4)}


def test_a_line_that_lacks_a_pass_has_no_mean():
    """It would be another figure."""
    rows = [found(line, "a", name, 0.5) for line in (SOURCE, LINE) for name in ("fog", "snow")]
    made = table([*rows, found("varied", "a", "fog", 0.7)], "ablation-tuning")
    assert [cell.value for cell in made.lines[2][1:4]] == [None] * 3


def test_a_place_has_the_streams_that_make_sense_there():
    """Images that have shifted by themselves have no conditions to change."""
    scenes = STUDIES["ablation"].scenes
    everything = [scene.title for scene in scenes]
    titles = {
        name: [scene.title for scene in scenes_of(place, STUDIES["ablation"])]
        for name, place in {
            "usual": Place("a", "bundled", "bundled", ("fog",)),
            "natural": Place("b", "bundled", "bundled"),
            "clip": Place("c", "bundled", "bundled", ("fog",), ("file",)),
        }.items()
    }
    assert titles["usual"] == everything
    assert titles["natural"] == [title for title in everything if title != "changing:100"]
    assert titles["clip"] == ["file"]


@pytest.fixture
def arguments(monkeypatch, tmp_path: Path) -> list[str]:
    """A study of two lines on two streams, at a place that is there and one that is not."""
    scenes = (Scene("one", "", "runs:5"), Scene("two", "", protocol="changing:15"))
    lines = {LINE: Variant("ttc_stream"), "varied": Variant("ttc_stream", {"blend": 0.5})}
    monkeypatch.setitem(STUDIES, "ablation", Study(lambda classes: lines, scenes, 30, 1))
    places = (
        Place("lost", "missing.module:network", "bundled"),
        Place("bundled", "bundled", "bundled", ("fog",)),
    )
    monkeypatch.setitem(study.PLACES, "tuning", places)
    paths = {"--rows": tmp_path / "rows.jsonl", "--out": tmp_path / "out"}
    return ["ablation", *(str(each) for pair in paths.items() for each in pair)]


def test_rows_are_filled_in_once(arguments: list[str], tmp_path: Path):
    """A second run prints the same table; a place that cannot be had is left out, and why."""
    first = CliRunner().invoke(study.main, arguments)
    assert first.exit_code == 0, first.output
    assert "lost is left out: missing.module:network cannot be imported" in first.output
    rows = Rows(tmp_path / "rows.jsonl")
    assert len(rows) == 3 * (2 + 1)  # fog and clean; changes from fog to clean
    assert {row["corruption"] for row in rows} == {"fog", "clean", "changing:fog"}
    made = (tmp_path / "out" / "ablation-tuning.md").read_text()
    assert "| varied |" in made
    again = CliRunner().invoke(study.main, [*arguments, "--minutes", "0"])
    assert again.stdout.strip() == made.strip()
    assert len(Rows(tmp_path / "rows.jsonl")) == len(rows)


def test_a_stream_that_is_too_long_is_left_out_alone(arguments: list[str], tmp_path: Path):
    """And told; the streams behind it are run."""
    given = STUDIES["ablation"]
    longer = Scene("long", "", protocol="changing:500")
    STUDIES["ablation"] = replace(given, scenes=(longer, *given.scenes))
    result = CliRunner().invoke(study.main, arguments)
    assert result.exit_code == 0, result.output
    assert "changing:500 is left out: " in result.output
    assert len(Rows(tmp_path / "rows.jsonl")) == 3 * (2 + 1)


def test_without_time_nothing_is_begun(arguments: list[str], tmp_path: Path):
    """And what is missing is told."""
    result = CliRunner().invoke(study.main, [*arguments, "--minutes", "0"])
    assert result.exit_code == 1
    assert "no rows" in result.output
    assert len(Rows(tmp_path / "rows.jsonl")) == 0


def test_rows_of_former_code_are_others(arguments: list[str], tmp_path: Path, monkeypatch):
    """A change of the methods makes them run again."""
    CliRunner().invoke(study.main, arguments)
    monkeypatch.setattr(study, "methods_digest", lambda: "another")
    CliRunner().invoke(study.main, arguments)
    assert len(Rows(tmp_path / "rows.jsonl")) == 2 * 9
