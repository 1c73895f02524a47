"""Rows are durable, found again, and survive an end in the midst of writing."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from ttc_core.rows import RESULT_FIELDS, Rows, as_key, read_rows

ASKED = {
    "method": "ttc",
    "data": "bundled",
    "model": "bundled",
    "corruption": "fog",
    "severity": 5,
    "order": "file",
    "protocol": "episodic",
    "batch_size": 100,
    "limit": None,
    "seed": 0,
    "settings": {"learning_rate": 0.001, "betas": (0.9, 0.999)},
}
ROW = {**ASKED, "images": 200, "accuracy": 0.5, "seconds": 1.5, "versions": {"python": "3.11"}}


def test_a_row_is_in_the_file_as_soon_as_it_is_appended(tmp_path):
    """Another reader sees the whole line before anything is closed, in a folder made for it."""
    path = tmp_path / "new" / "rows.jsonl"
    Rows(path).append(ROW)
    assert json.loads(path.read_text()) == {**ROW, "details": None} | {
        "settings": {"learning_rate": 0.001, "betas": [0.9, 0.999]}
    }
    assert path.read_bytes().endswith(b"\n")


def test_rows_are_continued_in_order(tmp_path):
    """A second run appends behind the first one's rows and sees both."""
    path = tmp_path / "rows.jsonl"
    Rows(path).append(ROW)
    again = Rows(path)
    again.append({**ROW, "corruption": "snow"})
    assert [row["corruption"] for row in again] == ["fog", "snow"]
    assert read_rows(path) == list(again)
    assert len(again) == 2


def test_find_ignores_results_and_nothing_else(tmp_path):
    """What was asked for finds its row, tuples and all; any other question does not."""
    rows = Rows(tmp_path / "rows.jsonl")
    rows.append(ROW)
    found = Rows(tmp_path / "rows.jsonl").find(ASKED)
    assert found is not None
    assert found["accuracy"] == 0.5
    for name in ASKED:
        assert rows.find({**ASKED, name: "another"}) is None, name
    assert rows.find({**ASKED, "limit": 200}) is None
    assert rows.find({**ASKED, **dict.fromkeys(RESULT_FIELDS)}) == found


@pytest.mark.parametrize("value", [True, 1, 1.0, [True], [1], {"deep": True}, {"deep": 1}])
def test_a_truth_value_is_no_number(tmp_path, value):
    """A method may do something else with each: 1 finds neither the row of true nor that of 1.0."""
    rows = Rows(tmp_path / "rows.jsonl")
    others = [True, 1, 1.0, [True], [1], {"deep": True}, {"deep": 1}]
    for other in others:
        if as_key(other) != as_key(value):
            rows.append({**ROW, "settings": {"own": other}})
    asked = {**ROW, "settings": {"own": value}}
    assert len(rows) == len(others) - 1
    assert rows.find(asked) is None
    rows.append(asked)
    found = Rows(tmp_path / "rows.jsonl").find(asked)
    assert found is not None
    assert type(found["settings"]["own"]) is type(value)


def test_numbers_of_numpy_become_plain_and_not_a_number_becomes_null(tmp_path):
    """Every line is JSON that any other program reads."""
    path = tmp_path / "rows.jsonl"
    row = {"images": np.int64(3), "entropy": float("nan"), "accuracy": np.float32(0.5)}
    Rows(path).append({**row, "data": tmp_path, "settings": {"dtype": np.float32}})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "images": 3,
        "entropy": None,
        "accuracy": 0.5,
        "data": str(tmp_path),
        "settings": {"dtype": str(np.float32)},
        "details": None,
    }


def test_arrays_lie_beside_the_rows_and_are_named_relative_to_them(tmp_path):
    """Folder and file can be moved together; a repeated row overwrites no other row's arrays."""
    path = tmp_path / "rows.jsonl"
    rows = Rows(path)
    first = rows.append(ROW, {"predicted": np.arange(3)})
    second = rows.append(ROW, {"predicted": np.arange(4)})
    assert first["details"].startswith("rows.jsonl.d/ttc-fog-5-100-")
    for row, count in ((first, 3), (second, 4)):
        with np.load(path.parent / row["details"]) as arrays:
            assert len(arrays["predicted"]) == count


def test_the_file_of_arrays_has_the_same_name_in_every_run(tmp_path):
    """Arrays whose row was never written are overwritten by the next try, not left beside it."""
    names = {
        Rows(tmp_path / run / "rows.jsonl").append(ROW, {"x": np.zeros(1)})["details"]
        for run in ("a", "b")
    }
    assert len(names) == 1


@pytest.mark.parametrize("cut", [1, 20, -2], ids=["first-byte", "early", "before-the-end"])
def test_a_damaged_last_line_is_ignored_and_the_file_goes_on_below_it(tmp_path, caplog, cut):
    """A killed process costs its own row; a sentence says so, and later rows are whole."""
    path = tmp_path / "rows.jsonl"
    Rows(path).append(ROW)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:cut])
    with caplog.at_level(logging.WARNING):
        rows = Rows(path)
    assert "Line 2" in caplog.text
    assert len(rows) == 1
    rows.append({**ROW, "corruption": "snow"})
    assert [row["corruption"] for row in read_rows(path)] == ["fog", "snow"]


def test_a_whole_last_line_without_its_end_counts(tmp_path):
    """Only the newline is missing: the row is kept, and the next one does not stick to it."""
    path = tmp_path / "rows.jsonl"
    Rows(path).append(ROW)
    path.write_bytes(path.read_bytes()[:-1])
    Rows(path).append(ROW)
    assert len(read_rows(path)) == 2


def test_a_file_of_something_else_is_refused_untouched(tmp_path):
    """A mistyped path never has rows written into it."""
    path = tmp_path / "notes.txt"
    path.write_text("My notes.\n")
    with pytest.raises(ValueError, match=r"Line 1 of .*notes\.txt is no result row"):
        Rows(path)
    assert path.read_text() == "My notes.\n"


def test_without_a_path_rows_stay_in_memory(tmp_path, monkeypatch):
    """`--json` is optional; nothing is written without it."""
    monkeypatch.chdir(tmp_path)
    rows = Rows(None)
    assert rows.append(ROW, {"predicted": np.arange(3)})["details"] is None
    assert rows.find(ASKED) is not None
    assert list(Path().iterdir()) == []
