"""Result rows: one JSON object a line, appended durably and found again; arrays lie beside.

`evaluate` and `replay` write them, `report` reads them. ROWS.d/ holds a row's arrays, one .npz
each, named in the row as `details`, relative to the folder of the rows file.
"""

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
Arrays = Mapping[str, NDArray[Any]]

# All other fields say what was asked for: method, data, model, corruption, severity, order,
# protocol, batch_size, limit, seed, settings, and how a replay sent it.
RESULT_FIELDS = frozenset(
    {
        "images",
        "correct",
        "accuracy",
        "entropy",
        "selection_rate",
        "steps",
        "seconds",
        "images_per_second",
        "versions",
        "classes",
        "device",
        "server",
        "details",
        "server_accuracy",
        "latency_p50",
        "latency_p90",
        "latency_p99",
        "latency_max",
        "lateness_p99",
        "late",
        "refused",
        "errors",
        "dropped",
        "retries",
    }
)
"""The fields of a row that are results, versions, times or follow from others; two rows that ask
for the same may differ in them alone."""

log = logging.getLogger(__name__)


class Rows:
    """The rows of a file, or of memory alone.

    Args:
        path: the file, made where there is none, continued where there is one; None: rows are
            kept in memory and their arrays are dropped.

    Raises:
        ValueError: the file holds something other than rows.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._rows: list[Row] = []
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()  # what cannot be written fails now, not after an hour
            self._rows = read_rows(path)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def find(self, row: Mapping[str, Any]) -> Row | None:
        """Return the first row that is the same in every field but RESULT_FIELDS, if any."""
        wanted = _asked(_plain(dict(row)))
        return next((known for known in self._rows if _asked(known) == wanted), None)

    def append(self, row: Mapping[str, Any], details: Arrays | None = None) -> Row:
        """Append a row; it is on the disk when this returns.

        Args:
            row: what JSON can hold, NumPy numbers and paths too; nan and infinity become null.
            details: arrays by name, for ROWS.d/.

        Returns:
            The row as written: with `details`, a relative path, or None if nothing was stored.
        """
        written: Row = {**_plain(dict(row)), "details": None}
        if self._path is not None:
            if details is not None:
                # The arrays go first: a row never names a file that is not there.
                written["details"] = self._store(written, details)
            _append_line(self._path, json.dumps(written, allow_nan=False))
        self._rows.append(written)
        return written

    def _store(self, row: Row, details: Arrays) -> str:
        assert self._path is not None
        folder = self._path.with_name(f"{self._path.name}.d")
        folder.mkdir(exist_ok=True)
        taken = {known.get("details") for known in self._rows}
        stem, number = _details_stem(row), 1
        while (name := f"{folder.name}/{stem}{'' if number == 1 else f'-{number}'}.npz") in taken:
            number += 1
        path = self._path.parent / name
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            np.savez_compressed(file, **details)  # type: ignore[arg-type]  # numpy's allow_pickle
        os.replace(unfinished, path)
        return name


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file, in order; a line cut short is left out, with a warning.

    Raises:
        ValueError: a line is no row and was not the beginning of one.
        OSError: the file cannot be read.
    """
    rows: list[Row] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        if not line.startswith(b"{"):
            raise ValueError(
                f"Line {number} of {path} is no result row (a JSON object on one line); "
                "name a rows file, or a file that is not there yet."
            )
        try:
            rows.append(json.loads(line))
        except ValueError:
            log.warning(
                "Line %d of %s is damaged, as by an end in the midst of writing; it is ignored.",
                number,
                path,
            )
    return rows


def _append_line(path: Path, line: str) -> None:
    with path.open("a+b") as file:
        text = line.encode() + b"\n"
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # the line before was cut short
                text = b"\n" + text
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _asked(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in RESULT_FIELDS}


def _details_stem(row: Row) -> str:
    """A readable name that is the same whenever the same is asked for."""
    digest = hashlib.sha256(json.dumps(_asked(row), sort_keys=True).encode()).hexdigest()[:10]
    parts = [row.get(name) for name in ("method", "corruption", "severity", "batch_size")]
    readable = "-".join(str(part) for part in parts if part is not None)
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', readable)}-{digest}"


def _plain(value: Any) -> Any:
    """As it comes back from JSON: lists, dictionaries with text keys, Python's own numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    # A setting of a user's own method may be anything.
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
