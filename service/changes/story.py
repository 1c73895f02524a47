"""What became of one stream, out of the log of changes: a row for what belongs together."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from service.changes.files import Place, opened, writers
from service.changes.lines import EVENT, TIME, decoded
from service.changes.merging import begun, by_time
from ttc_core.errors import UserError, shown

# Steps that are so much apart are two rows: nobody sent anything in between.
PAUSE_SECONDS = 300.0
_UNITS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400}
_AGO = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?(s|min|m|h|d)")
ALL = "*"
_STREAM = re.compile(rb'"stream":"([A-Za-z0-9._:-]{1,64})"')
# Of the whole process: they are in the story of each of its streams.
_OF_ALL = frozenset({"started", "stopped", "weights", "lost", "mended", "broken", "dropped"})
# With these a start begins, before it is told.
_OF_A_START = frozenset({"file", "mended", "broken", "went_on", "dropped"})
# What a line tells as a number, as numbers by name, and as values by name by name.
_NUMBERS = ("images", "selected", "steps", "seconds", "drift", "lines")
_NUMBERS_BY_NAME = ("skipped", "evidence")
_VERDICTS, _SETTINGS = "verdicts", "settings"
_MAPPINGS_BY_NAME = (_VERDICTS, _SETTINGS)
MOST = 1e30


class Told(NamedTuple):
    """A line of a log, and whose that is.

    Attributes:
        ended: of a start, when the writer's last line before it was told; None: it is the first.
        in_order: of a start, whether the process before it had ended in order.
    """

    writer: str
    fields: dict[str, Any]
    ended: float | None = None
    in_order: bool = False


class Row(NamedTuple):
    """What belongs together: from when to when, in seconds since 1970, and what it was."""

    begun: float
    ended: float
    what: str
    images: int | None = None
    version: str = ""
    drift: float | None = None
    more: str = ""


def moment(text: str, now: float) -> float:
    """Seconds since 1970 of `2h`, `30min`, `7d` before now, or of a time in ISO 8601 (UTC).

    Raises:
        UserError: it is neither.
    """
    if ago := _AGO.fullmatch(text.strip()):
        return now - float(ago[1]) * _UNITS[ago[2]]
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UserError(
            f"--since takes 90s, 30min, 2h, 7d or a time like 2026-11-29T18:30; got {shown(text)}."
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def lines_of(folder: Path, stream: str, since: float) -> Iterator[Told]:
    """The lines that tell of a stream, by their time; those of the whole process, too.

    Whether the log is as it was written is not looked at; what is no line is left out.

    Raises:
        OSError: a file cannot be read. UserError: there is no log.
    """
    places = _places(folder)
    logs = ((begun(place), _of_writer(place, stream, since)) for place in places)
    return by_time(logs, lambda each: float(each.fields[TIME]))


def streams_in(folder: Path) -> Iterator[str]:
    """The streams that the log has lines of, one for each line, in no order.

    Raises:
        OSError: a file cannot be read. UserError: there is no log.
    """
    for place in _places(folder):
        for path in (*place.kept().values(), place.current):
            if (file := opened(path)) is not None:
                with file:
                    names = (_STREAM.search(line) for line in file)
                    yield from (name[1].decode() for name in names if name)


def _places(folder: Path) -> list[Place]:
    found = writers(folder)
    if not found:
        raise UserError(f"There is no log of changes in {shown(folder)}.")
    return [Place(folder, writer) for writer in found]


def _of_writer(place: Place, stream: str, since: float) -> Iterator[Told]:
    named = {f'"stream":"{name}"'.encode() for name in (stream, ALL)}
    last = b""  # before what begins a start
    for path in (*place.kept().values(), place.current):
        if (file := opened(path)) is None:
            continue
        with file:
            # A file that is full was written to last when its last line came.
            if os.fstat(file.fileno()).st_mtime < since:
                continue
            for line in file:
                is_ours = any(name in line for name in named)
                if not is_ours and b'"stream":"' in line:
                    last = line
                    continue
                try:
                    fields = decoded(line.rstrip(b"\n"))
                except ValueError:
                    continue
                event = fields[EVENT]
                is_ours = fields.get("stream") in (stream, ALL) or event in _OF_ALL
                if is_ours and fields[TIME] >= since:
                    ended, in_order = _end(last) if event == "started" else (None, False)
                    yield Told(place.writer, _plausible(fields), ended, in_order)
                if event not in _OF_A_START:
                    last = line


def _end(last: bytes) -> tuple[float | None, bool]:
    """When a process told its last line, and whether that was that it ends."""
    try:
        fields = decoded(last.rstrip(b"\n"))
    except ValueError:
        return None, False
    return fields[TIME], fields[EVENT] == "stopped"


def _plausible(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a line tells, without what is not what this program writes: anybody may have."""
    found = dict(fields)
    for name in _NUMBERS:
        if not _is_number(found.get(name)):
            found.pop(name, None)
    for name in (*_NUMBERS_BY_NAME, *_MAPPINGS_BY_NAME):
        given = found.pop(name, None)
        if isinstance(given, Mapping):
            is_value = _is_mapping if name in _MAPPINGS_BY_NAME else _is_number
            found[name] = {each: value for each, value in given.items() if is_value(value)}
    if _VERDICTS in found:
        found[_VERDICTS] = {
            verdict: {clause: count for clause, count in counts.items() if _is_number(count)}
            for verdict, counts in found[_VERDICTS].items()
        }
    return found


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= MOST  # type: ignore[arg-type]


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


@dataclass
class _Learning:
    """Steps and saves that follow one another, as one row."""

    writer: str
    begun: float
    ended: float
    version_before: object = None
    version: object = None
    drift: float | None = None
    images: int = 0
    selected: int = 0
    steps: int = 0
    saves: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, fields: Mapping[str, Any]) -> None:
        self.ended = fields[TIME]
        if fields[EVENT] == "save":
            self.saves += 1
            return
        if self.version is None:
            self.version_before = fields.get("version_before")
        self.version, self.drift = fields.get("version"), fields.get("drift")
        self.images += fields.get("images", 0)
        self.selected += fields.get("selected", 0)
        self.steps += fields.get("steps", 0)
        self.skipped.update(fields.get("skipped", {}))
        verdicts = fields.get(_VERDICTS, {})
        self.cut.update(verdicts.get("cut", {}))
        self.dropped.update(verdicts.get("dropped", {}))

    def row(self) -> Row:
        more = []
        if self.version is not None:
            more.append(f"{self.selected:,} selected, {_count(self.steps, 'step')}")
        more += [
            f"{_count(count, 'batch', 'batches')} {why}" for why, count in self.skipped.items()
        ]
        for verdict, counts in (("cut", self.cut), ("dropped", self.dropped)):
            if counts:
                each = ", ".join(f"{clause} {count:,}" for clause, count in counts.items())
                more.append(f"envelope {verdict}: {each}")
        if self.saves:
            more.append(f"saved {_count(self.saves, 'time')}")
        if self.writer:
            more.append(f"by {self.writer}")
        moved = "" if self.version is None else _moved(self.version_before, self.version)
        what = "saved" if self.version is None else "learned"
        images = None if self.version is None else self.images
        return Row(self.begun, self.ended, what, images, moved, self.drift, "; ".join(more))


def story(told: Iterable[Told], *, one_writer: bool) -> list[Row]:
    """The rows that lines make, by the time at which they begin.

    Args:
        one_writer: all are of one; else what one's whole process did is told only where the stream
            was with it then, or afterwards.
    """
    rows = list(_rows(told, one_writer=one_writer))
    return rows if one_writer else sorted(rows, key=lambda row: row.begun)


def _rows(told: Iterable[Told], *, one_writer: bool) -> Iterator[Row]:
    learning: _Learning | None = None
    owner = ""
    waiting: dict[str, list[Row]] = {}
    settings: dict[str, Mapping[str, Any]] = {}
    for each in told:
        fields, event = each.fields, each.fields[EVENT]
        if event in ("steps", "save"):
            since = max(0.0, fields[TIME] - fields.get("seconds", 0.0))
            is_another = learning and (
                since - learning.ended > PAUSE_SECONDS or learning.writer != each.writer
            )
            if learning and (is_another or waiting.get(each.writer)):
                yield learning.row()
                learning = None
            owner = each.writer
            yield from waiting.pop(owner, ())
            learning = learning or _Learning(owner, since, fields[TIME])
            learning.add(fields)
            continue
        rows = [_row(each)]
        if event == "started":
            if each.ended is not None:
                why = "" if each.in_order else "killed, or the machine failed"
                why = "; ".join(filter(None, (why, each.writer and f"by {each.writer}")))
                rows.insert(0, Row(each.ended, fields[TIME], "not running", more=why))
            known, settings = settings.get(each.writer), {**settings, each.writer: fields}
            if known is not None and (differs := "; ".join(_differing(known, fields))):
                rows.append(Row(fields[TIME], fields[TIME], "settings changed", more=differs))
        is_here = one_writer or (each.writer == owner and event != "started")
        if event in _OF_ALL and not is_here:
            waiting.setdefault(each.writer, []).extend(rows)
            continue
        if learning is not None:
            yield learning.row()
            learning = None
        if event not in _OF_ALL:
            owner = each.writer
        yield from waiting.pop(each.writer, ())
        yield from rows
    if learning is not None:
        yield learning.row()


def _row(told: Told) -> Row:
    """The row of a line that stands by itself."""
    fields, writer = told.fields, told.writer
    event, now = str(fields[EVENT]), fields[TIME]
    moved = _moved(fields.get("version_before"), fields.get("version"))
    more = [_more(fields), *([f"by {writer}"] if writer else [])]
    what = _WHAT.get(event, event.replace("_", " "))
    what = f"would {_WOULD.get(event, event)} (observed)" if fields.get("observed") else what
    images, drift = fields.get("images"), fields.get("drift")
    return Row(now, now, what, images, moved, drift, "; ".join(filter(None, more)))


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What one start has otherwise than the one before."""
    old, new = _flat(before), _flat(now)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name} {old.get(name)} → {new.get(name)}"


def _flat(started: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: started.get(name) for name in ("program", "model", "digest", "envelope")}
    for whose, values in started.get(_SETTINGS, {}).items():
        found |= {f"{whose}.{name}": value for name, value in values.items()}
    return found


_WHAT = {
    "hold": "held: the source answers",
    "release": "released: it answers itself",
    "roll_back": "brought back",
    "load": "read from its file",
    "removed": "its file removed",
    "rejected": "its file set aside",
    "weights": "other weights",
    "expired": "forgotten, unsaved",
    "second_view_off": "mirror images left out",
    "lost": "gap in the log",
    "mended": "gap in the log",
    "broken": "the log was not as it was left",
    "dropped": "older lines dropped",
}
_WOULD = {"roll_back": "bring it back"}


def _more(fields: Mapping[str, Any]) -> str:
    """What else a line tells, in words."""
    event = fields[EVENT]
    if event == "started":
        names = ("program", "method", "model", "digest", "settings_digest", "envelope")
        return ", ".join(f"{name} {fields[name]}" for name in names if fields.get(name))
    if event == "weights":
        former, now = fields.get("former_envelope"), fields.get("envelope")
        envelope = "" if former == now else f", envelope {former} → {now}"
        return f"{fields.get('former_digest')} → {fields.get('digest')}{envelope}"
    if event == "lost":
        return f"{_count(fields.get('lines', 0), 'line')} could not be written"
    if event == "mended":
        return "a crash tore a line"
    parts = [str(fields[name]) for name in ("by", "reason") if fields.get(name)]
    if fields.get("stream") == ALL:
        parts.append("all streams")
    evidence = fields.get("evidence") or {}
    parts += [f"{name.replace('_', ' ')} {number:g}" for name, number in evidence.items()]
    return ", ".join(parts)


def _moved(before: object, version: object) -> str:
    if version is None:
        return "" if before is None else f"{before} →"
    return f"{version}" if before in (None, version) else f"{before} → {version}"


def _count(count: int, one: str, several: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def show(rows: Iterable[Row], console: Console) -> int:
    """Print a line for each row; return how many there were. Times are UTC.

    A line ends at a terminal's edge, and goes on where it is piped.
    """
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("from", "to", "what", "images", "version", "drift", "more"):
        is_number = name in ("images", "version", "drift")
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    count = 0
    for row in rows:
        count += 1
        cells = (
            _at(row.begun),
            _until(row),
            row.what,
            "" if row.images is None else f"{row.images:,}",
            row.version,
            "" if row.drift is None else f"{row.drift:.4f}",
            row.more,
        )
        table.add_row(*(Text(shown(cell) if cell else "") for cell in cells))
    if not count:
        return 0
    table.width = Measurement.get(console, console.options.update(width=100_000), table).maximum
    if console.is_terminal:
        console.print(table)
        return count
    with console.capture() as printed:
        console.print(table, crop=False)
    for line in printed.get().splitlines():
        console.out(line.rstrip(), highlight=False)
    return count


def as_json(told: Told) -> str:
    """A line as it stands in the log, with its writer."""
    return json.dumps({**told.fields, "writer": told.writer}, sort_keys=True)


def _until(row: Row) -> str:
    """When it ended, where that is not when it began; with the day, where that is another."""
    (day, _), (ends, at) = _at(row.begun).split(), _at(row.ended).split()
    return "" if row.ended - row.begun < 1 else at if ends == day else f"{ends} {at}"


def _at(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%F %T}"
