"""A rows file can hold anything, and others may write to it: nothing is lost or glued together."""

import json
import logging
import math
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttc_core.rows import MOST_LINE_BYTES, MOST_ROW_BYTES, Rows, RowsError, read_rows

LINE = b'{"method": "ttc", "corruption": "fog"}'
ROW = {"method": "ttc", "corruption": "fog", "batch_size": 100}


@pytest.mark.parametrize(
    "content",
    [
        b'{"images": [{"id": 1}]}\n',  # of COCO, say: its path is a slip
        b'{"method": 3}\n',
        b"[1, 2]\n",
        b"null\n",
        b"\x1f\x8b\x08\x00\x00\n",
        LINE.decode().encode("utf-16"),
        b"\x00\x00\x00\n",
        LINE + b"\n\x00\x01\x00\n",
        b"\n\n# notes\n",
        b'{"method": "' + b"a" * MOST_LINE_BYTES + b'"}\n',
    ],
    ids=[
        *("json", "method", "array", "null", "gz", "utf-16", "zeros", "bytes", "text", "huge"),
    ],
)
def test_a_file_of_something_else_is_refused_untouched(content, tmp_path):
    """No row is written into what is no rows file, and the sentence names the line."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(RowsError, match=r"Line \d+ of .*rows\.jsonl is no result row"):
        Rows(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + LINE,
        LINE + b"\r\n",
        b"\n\n  " + LINE + b"  \n\n",
        LINE,
        LINE + b"\n" + LINE[:9],
        LINE + b'\n{"method": "\xff\xfe"',
        LINE + b'\n{"a":' * 1,
        LINE + b"\n" + b'{"a":' * 100_000,
        LINE + b'\n{"method": "ttc", "seed": ' + b"9" * 5000 + b"}",
        LINE + b"\n" + bytes(4096),
        LINE + b"\n" + LINE[:9] + bytes(4096),
        LINE + b"\n" + bytes(2 * MOST_LINE_BYTES) + b"\n",
    ],
    ids=[
        *("bom", "crlf", "blank", "unended", "cut", "bytes", "key", "deep", "digits"),
        *("zeros", "cut-zeros", "many-zeros"),
    ],
)
def test_what_is_whole_is_kept_and_the_next_row_begins_on_its_own_line(content, tmp_path, caplog):
    """Marks and line ends of other systems, and a line cut short by a crash."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        rows = Rows(path)
    assert [row["corruption"] for row in rows] == ["fog"]
    rows.append({**ROW, "corruption": "snow"})
    assert [row["corruption"] for row in read_rows(path)] == ["fog", "snow"]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [("a" * MOST_LINE_BYTES, "1,048,... bytes, and 1,047,576 are written"), (10**5000, "digits")],
    ids=["long", "digits"],
)
def test_a_row_that_nobody_could_read_is_refused_before_it_is_measured(value, sentence, tmp_path):
    """One method's settings may be anything, and must not cost the rows of the others."""
    path = tmp_path / "rows.jsonl"
    rows = Rows(path)
    rows.append(ROW)
    odd = {**ROW, "settings": {"x": value}}
    for use in (rows.find, rows.append):
        with pytest.raises(RowsError, match=f"A row of ttc .*{sentence}"):
            use(odd)
    assert len(read_rows(path)) == 1
    assert len(Rows(path)) == 1


def test_a_row_of_the_most_that_is_written_is_read(tmp_path):
    """To the last byte, with the name of its arrays."""
    path = tmp_path / "rows.jsonl"
    fixed = len(json.dumps({**ROW, "corruption": "", "settings": {"x": ""}}))
    row = {**ROW, "corruption": "c" * 200}
    row["settings"] = {"x": "a" * (MOST_ROW_BYTES - fixed - 200)}
    Rows(path).append(row, {"x": np.zeros(1)})
    assert read_rows(path)[0]["details"] is not None
    with pytest.raises(RowsError, match="1,047,577 bytes"):
        Rows(path).append({**row, "batch_size": 1000})


def test_settings_that_are_no_finite_numbers_are_told_apart(tmp_path):
    """Among results such a number is nothing; a limit that is infinite is another than none."""
    path = tmp_path / "rows.jsonl"
    rows = Rows(path)
    values = [None, math.inf, -math.inf, math.nan, np.float32("inf"), [math.inf], {"a": math.nan}]
    for value in values[:4]:
        rows.append({**ROW, "settings": {"cap": value}, "accuracy": math.nan})
    for each in (rows, Rows(path)):
        found = [each.find({**ROW, "settings": {"cap": value}}) for value in values]
        assert found == [*list(each)[:4], list(each)[1], None, None]
    assert {row["accuracy"] for row in rows} == {None}
    written = [rows.append({**row, "details": None}, {"x": np.zeros(1)}) for row in list(rows)]
    assert len({row["details"] for row in written}) == 4


def test_not_a_number_is_null_whoever_wrote_it(tmp_path):
    """Python's own JSON has NaN, which no comparison survives."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"method": "ttc", "entropy": NaN, "accuracy": -Infinity}\n')
    assert read_rows(path) == [{"method": "ttc", "entropy": None, "accuracy": None}]


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop", "below-a-file", "long"])
def test_what_is_no_file_is_refused_at_once(kind, tmp_path):
    """A pipe is not waited for, and a device not read without end."""
    path = tmp_path / "rows.jsonl"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "below-a-file":
        path.touch()
        path = path / "rows.jsonl"
    else:
        path = tmp_path / ("a" * 300)
    for use in (Rows, read_rows):
        with pytest.raises(RowsError, match="cannot be used"):
            use(path)


def test_a_row_that_cannot_be_written_leaves_no_half_of_itself(tmp_path, monkeypatch):
    """On a full disk: a sentence, the rows before it whole, and room is all that the next needs."""
    path = tmp_path / "rows.jsonl"
    rows = Rows(path)
    rows.append(ROW)
    before = path.read_bytes()
    write, written = os.write, []

    def full(file: int, text: bytes) -> int:
        if written:
            raise OSError(28, "No space left on device")
        written.append(write(file, text[:10]))
        return 10

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RowsError, match="No space left"):
        rows.append({**ROW, "corruption": "snow"})
    assert path.read_bytes() == before
    monkeypatch.undo()
    rows.append({**ROW, "corruption": "snow"})
    assert len(read_rows(path)) == len(rows) == 2


def test_arrays_that_cannot_be_written_leave_nothing(tmp_path, monkeypatch):
    """Neither a file of arrays, nor a part of one, nor a row that names it."""
    path = tmp_path / "rows.jsonl"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(RowsError, match="No space left"):
        Rows(path).append(ROW, {"predicted": np.arange(3)})
    assert list((tmp_path / "rows.jsonl.d").iterdir()) == []
    assert read_rows(path) == []


def append_many(path: Path, writer: int) -> None:
    rows = Rows(path)
    for number in range(20):
        rows.append({**ROW, "x": "x" * 5000}, {"who": np.array([writer, number])})


def test_several_processes_append_to_one_file(tmp_path):
    """Every row is whole, and names arrays that are its own."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINE[:7])  # of one that was killed
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(append_many, [path] * 2, range(2)))
    rows = read_rows(path)
    assert len(rows) == 40
    found = []
    for row in rows:
        with np.load(tmp_path / row["details"]) as arrays:
            found.append(tuple(arrays["who"].tolist()))
    assert sorted(found) == [(writer, number) for writer in range(2) for number in range(20)]


def test_old_rows_are_read_and_not_taken_for_new_ones(tmp_path):
    """A row from before the weights were told says nothing of these weights."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    rows = Rows(path)
    assert rows.find(ROW) is not None
    assert rows.find({**ROW, "limit": None}) is not None
    for name in ("model_digest", "data_digest", "device"):
        assert rows.find({**ROW, name: "a"}) is None, name
