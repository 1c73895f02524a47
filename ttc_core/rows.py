"""Result rows: one JSON object a line, appended durably and found again; arrays lie beside.

`evaluate` and `replay` write them, `report` reads them. ROWS.d/ holds a row's arrays, one .npz
each, named in the row as `details`, relative to the folder of the rows file.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttc_core.errors import UserError
from ttc_core.files import check_regular, written_whole

Row = dict[str, Any]
Arrays = Mapping[str, NDArray[Any]]

MOST_LINE_BYTES = 1 << 20
# The name of its arrays is added when they are written.
MOST_ROW_BYTES = MOST_LINE_BYTES - 1000

# All other fields say what was asked for, of what, where and how: see `setting`.
RESULT_FIELDS = frozenset(
    {"images", "judged", "asked", "refused", "errors", "dropped", "skipped", "retries"}
    | {"restarted"}
    | {"correct", "accuracy", "server_accuracy", "entropy", "selection_rate", "steps", "details"}
    | {"window_accuracy", "worst_window", "source_difference", "source_difference_error"}
    | {"ece", "ece_error", "nll", "nll_error", "calibrated", "suspects"}
    | {
        f"estimated_{what}{end}"
        for what in ("accuracy", "source_accuracy", "difference")
        for end in ("", "_low", "_high")
    }
    | {"compared", "held", "guard_acts", "envelope_verdicts"}
    | {"latency_p50", "latency_p90", "latency_p99", "latency_max", "lateness_p99", "late"}
    | {"utility", "availability", "timeliness", "alignment", "period_seconds", "patience_seconds"}
    | {"spent_seconds", "learned_images", "accuracy_learning", "accuracy_frozen"}
    | {"seconds", "images_per_second", "threads", "versions", "classes", "server"}
)
"""The fields of a row that are results, versions, times or follow from others; two rows that ask
for the same may differ in them alone."""
SERVER_FIELDS = ("adapt", "guard", "max_batch", "max_wait", "precision")
"""Of a replay's `server`: what answers and their times depend on."""
OPTIONAL_FIELDS = frozenset(
    {"severity", "limit", "concurrency", "rate", "arrivals", "stream", "channels", "history"}
    | {"mix", "unknown", "visit", "record_temperature", "period", "budget", "envelope"}
    | {"after_severity", "after_images", "mean", "std", "model_code", *SERVER_FIELDS}
)
"""The fields that a row may rightly be without; any other that is null or missing is unknown."""

_OF_A_METHOD = (
    *("method", "settings", "record_temperature", "batch_size", "channels", "guard"),
    "envelope",
)
UNKNOWN = "unknown"

log = logging.getLogger(__name__)


class RowsError(UserError):
    """A rows file cannot be read or written."""


def setting(row: Mapping[str, Any]) -> Row:
    """What tells a row from others: all fields but RESULT_FIELDS; one that is null says nothing.

    Two rows with one setting are two measurements of the same. Everything that compares rows (what
    `evaluate` still has to run, each table and figure) goes by this: a field that is added to rows
    tells them apart everywhere. A row without a `mode` was not sent to a server: it is offline; one
    whose guard is off is as those from before there was any, and so is one in the precision that
    the network has by itself, which its `model_digest` tells apart.
    """
    told = {**row, "mode": row.get("mode") or "offline"}
    if isinstance(server := row.get("server"), Mapping):
        told |= {name: server.get(name) for name in SERVER_FIELDS}
    if told.get("guard") == "off":
        del told["guard"]
    if told.pop("weights_precision", "float32") == told.get("precision"):
        del told["precision"]
    return {
        name: value
        for name, value in told.items()
        if value is not None and name not in RESULT_FIELDS
    }


def same_images(row: Mapping[str, Any]) -> str:
    """Equal where two rows are of the same network's answers to the same images in one order."""
    told = setting(row)
    return as_key({name: told[name] for name in told if name not in _OF_A_METHOD})


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names, sorted, that have not the same value in all of some settings."""
    names = sorted({name for each in settings for name in each})
    return [
        name
        for name in names
        if len({as_key([each[name]] if name in each else []) for each in settings}) > 1
    ]


def as_key(value: Any) -> str:
    """Equal where two values of rows are: 1, 1.0 and true are three.

    A method of a user's own may make something else of each. Where a setting is declared to be a
    float its method has made 1.0 of a 1 before a row is written.
    """
    return json.dumps(value, sort_keys=True)


def value_text(value: Any) -> str:
    """A value of a setting as people read it, whole: others differ in its last digit alone."""
    if isinstance(value, list | tuple):
        return "/".join(map(value_text, value))
    return json.dumps(value) if isinstance(value, bool | dict) else str(value)


def stated(told: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """What a setting says under these names, each with its value: `mode open`.

    A digest of the model covers its preprocessing, which then need not be said.
    """
    covered = ("mean", "std") if "model_digest" in told else ()
    return [
        f"{name.replace('_', ' ')} {value_text(told.get(name, UNKNOWN))}"
        for name in names
        if (name in told or name not in OPTIONAL_FIELDS) and name not in covered
    ]


def averaged(corruptions: Iterable[str]) -> list[str]:
    """What an average is over: neither clean images nor mixtures, which hold the others again."""
    return [name for name in corruptions if name != "clean" and name.partition(":")[0] != "mixed"]


def asked_images(row: Mapping[str, Any]) -> int:
    """How many images a row was to have answers to; `images` is how many it has.

    A replay that met a full or failing server has fewer.
    """
    if row.get("asked") is not None:
        return int(row["asked"])
    missing = [
        sum(each.values()) if isinstance(each, dict) else each or 0  # old rows do not tell it
        for each in map(row.get, ("refused", "errors", "dropped"))
    ]
    return int(row.get("images") or 0) + int(sum(missing))


class Rows:
    """The rows of a file, or of memory alone.

    Args:
        path: the file, made where there is none, continued where there is one; None: rows are
            kept in memory and their arrays are dropped.

    Other processes may append to the same file meanwhile.

    Raises:
        RowsError: the file holds something other than rows, or cannot be read or written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._rows: list[Row] = []
        if path is not None:
            with _reasons(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                check_regular(path)
                path.open("ab").close()  # what cannot be written fails now, not after an hour
            self._rows = read_rows(path)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def find(self, row: Mapping[str, Any]) -> Row | None:
        """Return the first row of the same setting, if any.

        Raises:
            RowsError: a row of this setting could not be written: known before it is measured.
        """
        wanted = setting(self._as_written(row))
        key = as_key(wanted)
        alike = (known for known in self._rows if setting(known) == wanted)
        # To Python 1 is True.
        return next((known for known in alike if as_key(setting(known)) == key), None)

    def arrays(self, row: Mapping[str, Any]) -> dict[str, NDArray[Any]] | None:
        """What lies beside one of the rows; None where nothing does that can be read."""
        if self._path is None or not row.get("details"):
            return None
        path = self._path.parent / str(row["details"])
        try:
            check_regular(path)
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except Exception:  # numpy promises no particular types for damaged files
            return None

    def append(self, row: Mapping[str, Any], details: Arrays | None = None) -> Row:
        """Append a row; it is on the disk when this returns.

        Args:
            row: what JSON can hold, NumPy numbers and paths too. Nan and infinity become null,
                among the settings text.
            details: arrays by name, for ROWS.d/.

        Returns:
            The row as written: with `details`, a relative path, or None if nothing was stored.

        Raises:
            RowsError: it cannot be written; the rows before it are kept.
        """
        written: Row = {**self._as_written(row), "details": None}
        if self._path is not None:
            with _reasons(self._path), _locked(self._path) as file:
                if details is not None:
                    # The arrays go first: a row never names a file that is not there.
                    written["details"] = self._store(written, details)
                _append_line(file, json.dumps(written, allow_nan=False))
        self._rows.append(written)
        return written

    def _as_written(self, row: Mapping[str, Any]) -> Row:
        """The row as it comes back from the file; RowsError where it would not."""
        written: Row = plain(row)
        if self._path is not None:
            try:
                size = len(json.dumps(written, allow_nan=False))
            except ValueError as error:  # a number of thousands of digits
                raise RowsError(
                    f"A row of {row.get('method')} cannot be written: {error}."
                ) from error
            if size > MOST_ROW_BYTES:
                raise RowsError(
                    f"A row of {row.get('method')} would have {size:,} bytes, and "
                    f"{MOST_ROW_BYTES:,} are written; settings are no place for data."
                )
        return written

    def _store(self, row: Row, details: Arrays) -> str:
        assert self._path is not None
        taken = {known.get("details") for known in read_rows(self._path, warn=False)}
        folder, stem, number = f"{self._path.name}.d", _details_stem(row), 1
        while (name := f"{folder}/{stem}{'' if number == 1 else f'-{number}'}.npz") in taken:
            number += 1
        save_arrays(self._path.parent / name, details)
        return name


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write an .npz file, whole or not at all; raises OSError where that cannot be."""
    with written_whole(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's allow_pickle


def read_rows(path: Path, *, warn: bool = True) -> list[Row]:
    """Read the rows of a file, in order; a line cut short is left out, with a warning.

    So are the zeros that a power cut leaves behind rows.

    Raises:
        RowsError: a line is no row and was not the beginning of one, or the file cannot be read.
    """
    rows: list[Row] = []
    with _reasons(path):
        check_regular(path)
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MOST_LINE_BYTES + 1):
                number += 1
                row = _parsed(line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip())
                if rows and not line.strip(b"\0\r\n"):
                    row = {}
                elif row is None or len(line) > MOST_LINE_BYTES:
                    raise RowsError(
                        f"Line {number} of {path} is no result row (a JSON object on one line, "
                        "with a method); name a rows file, or a file that is not there yet."
                    )
                if row:
                    rows.append(row)
                elif warn and line.strip():
                    log.warning(
                        "Line %d of %s is damaged, as by an end in the midst of writing; it is "
                        "ignored.",
                        number,
                        path,
                    )
    return rows


def _parsed(line: bytes) -> Row | None:
    """A row; nothing for an empty line or the beginning of one; None for anything else."""
    if not line:
        return {}
    if not line.startswith(b"{"):
        return None
    try:
        row = json.loads(line, parse_constant=lambda _: None)  # as we write them: nan is null
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) and isinstance(row.get("method"), str) else None


@contextlib.contextmanager
def _reasons(path: Path) -> Iterator[None]:
    """Turn what the system says of a file into a sentence."""
    try:
        yield
    except OSError as error:
        raise RowsError(
            f"The rows file {path} cannot be used: {error.strerror or error}."
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open a file to append to; no other process of ours does so meanwhile."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _append_line(file: int, line: str) -> None:
    length = os.fstat(file).st_size
    text = line.encode() + b"\n"
    if length and os.pread(file, 1, length - 1) != b"\n":  # the line before was cut short
        text = b"\n" + text
    try:
        while text:
            text = text[os.write(file, text) :]
        os.fsync(file)
    except OSError:
        os.ftruncate(file, length)  # no half of a row
        raise


def _details_stem(row: Row) -> str:
    """A readable name that is the same whenever the same is asked for."""
    digest = hashlib.sha256(as_key(setting(row)).encode()).hexdigest()[:10]
    parts = [row.get(name) for name in ("method", "corruption", "severity", "batch_size")]
    readable = "-".join(str(part) for part in parts if part is not None)
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', readable)[:150]}-{digest}"


def plain(value: Any, *, is_setting: bool = False) -> Any:
    """As it comes back from JSON: lists, dictionaries with text keys, Python's own numbers."""
    if isinstance(value, Mapping):
        return {
            str(key): plain(item, is_setting=is_setting or key == "settings")
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(item, is_setting=is_setting) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value) if is_setting else None  # infinity is another setting than none
    # A setting of a user's own method may be anything.
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
