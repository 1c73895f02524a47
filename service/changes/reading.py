"""The lines of a log of changes, read file by file; what is not as it was written is found."""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from service.changes.files import Place
from service.changes.lines import (
    BEFORE,
    EVENT,
    FORMAT,
    LINE,
    MOST_LINE_BYTES,
    TIME,
    decoded,
    digest,
)

# Of a hash, so many hex digits are kept of every line.
KEPT_DIGITS = 16


class Defect(NamedTuple):
    """What is not as it was written: in which file, at which of its lines (0: the file itself)."""

    file: str
    at: int
    sentence: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.at:,}: {self.sentence}" if self.at else self.sentence


class Gap(NamedTuple):
    """Lines of which nobody knows what they told.

    Attributes:
        first, last: their numbers.
        became: what became of them, in a word or two.
    """

    first: int
    last: int
    became: str


@dataclass
class Chained:
    """What was read of one writer's log.

    Attributes:
        first, last: numbers of the first line and the last; 0: there is none.
        head: the last line's hash.
        lines, files: how many were read.
        begun, ended: times of the first and the last, in seconds since 1970.
        gaps: lines that were altered, or are missing between others.
        defects: what is not as it was written; remarks: what the log itself tells of its gaps.
    """

    writer: str
    first: int = 0
    last: int = 0
    head: str | None = None
    lines: int = 0
    files: int = 0
    begun: float = 0.0
    ended: float = 0.0
    gaps: list[Gap] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    remarks: list[Defect] = field(default_factory=list)
    runs: "list[Run]" = field(default_factory=list)

    def has(self, line: int, head: str) -> bool | None:
        """Whether a line has a hash that begins with these hex digits; None: it is older than the
        lines that are kept.

        Of more than KEPT_DIGITS those are compared.
        """
        if line < self.first:
            return None
        wanted, rest = _number(head), 4 * max(0, KEPT_DIGITS - len(head))
        return any(each.hashes[line - each.first] >> rest == wanted for each in self._with(line))

    def line_of(self, digits: str) -> int | None:
        """The line whose hash begins with these hex digits; None: there is none.

        Of more than KEPT_DIGITS those are compared.
        """
        wanted, rest = _number(digits), 4 * max(0, KEPT_DIGITS - len(digits))
        for run in self.runs:
            for line, each in enumerate(run.hashes, run.first):
                if each >> rest == wanted:
                    return line
        return None

    def time_of(self, line: int) -> float | None:
        """When a line was told; None: it is not there."""
        return next((each.times[line - each.first] for each in self._with(line)), None)

    def _with(self, line: int) -> "Iterator[Run]":
        return (each for each in self.runs if 0 <= line - each.first < len(each.hashes))

    def note(self, number: int, head: str, time: float) -> None:
        """A line was read."""
        if not self.first:
            self.first = number
        if not self.runs or number != self.runs[-1].first + len(self.runs[-1].hashes):
            self.runs.append(Run(number))
        self.runs[-1].hashes.append(_number(head))
        self.runs[-1].times.append(time)


@dataclass
class Run:
    """Lines whose numbers follow one another; of a whole log there is one."""

    first: int
    hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    times: "array[float]" = field(default_factory=lambda: array("d"))


class Line(NamedTuple):
    """A line as it was written: in which file, at which of its lines, and what it tells."""

    file: str
    at: int
    told: dict[str, Any]


def _number(head: str) -> int:
    return int(head[:KEPT_DIGITS], 16)


def read(place: Place, found: Chained) -> Iterator[Line]:
    """Read one writer's log in its order; what is found of it is in `found` once all is read.

    Lines that are none are left out. After a line that does not follow, the next is held against
    it: one that was altered is told once.

    Raises:
        OSError: a file cannot be read.
    """
    paths: list[tuple[int | None, Path]] = [*place.kept().items()]
    goes_on = place.current.exists()
    if goes_on:
        paths.append((None, place.current))
    dropped = dict[int, Line]()
    jumps: list[tuple[Line, int]] = []
    expected: int | None = None
    beginning: Line | None = None
    for number, path in paths:
        found.files += 1
        if not path.is_file():  # a pipe would be waited for without end
            sentence = f"{path.name} is no regular file."
            found.defects.append(Defect(path.name, 0, sentence))
            continue
        for at, line in enumerate(_lines(path, found, grows=number is None), 1):
            try:
                told = decoded(line)
            except ValueError as error:
                found.defects.append(Defect(path.name, at, f"altered: {error}."))
                if at == 1 and number is not None:
                    expected = number + 1
                found.note(found.last + 1, digest(line), found.ended)
                # Told once: the next is held against no hash.
                found.last, found.head = found.last + 1, None
                found.gaps.append(Gap(found.last, found.last, "altered"))
                continue
            one = Line(path.name, at, told)
            if at == 1:
                expected = _check_file(found, one, number, expected)
                beginning = beginning or one
            elif told[EVENT] == "file":
                found.defects.append(
                    Defect(path.name, at, "a file of the log begins here, inside.")
                )
            if one is not beginning:
                if told[LINE] > found.last + 1:
                    jumps.append((one, found.last))
                _check_follows(found, one)
            if told[EVENT] == "dropped" and isinstance(told.get("file"), int):
                dropped[told["file"]] = one
            found.last, found.head = told[LINE], digest(line)
            found.note(found.last, found.head, told[TIME])
            found.lines += 1
            found.begun = found.begun or told[TIME]
            found.ended = told[TIME]
            yield one
        if not path.stat().st_size:
            found.remarks.append(Defect(path.name, 0, f"{path.name} is empty, as after a crash."))
    _check_jumps(found, jumps)
    if paths and not goes_on:
        # A crash between two files leaves that; the head's file tells whether lines are missing.
        name = place.current.name
        found.remarks.append(Defect(name, 0, f"{name}, which goes on, is not there."))
    if beginning is not None:
        _check_beginning(found, beginning, dropped)


def _lines(path: Path, found: Chained, *, grows: bool) -> Iterator[bytes]:
    """The whole lines of a file, without their ends; one that is torn is told."""
    at = 0
    with path.open("rb") as file:
        while line := file.readline(MOST_LINE_BYTES + 1):
            at += 1
            if line.endswith(b"\n"):
                yield line[:-1]
                continue
            rest = len(line) + sum(map(len, iter(lambda: file.read(1 << 20), b"")))
            if grows and rest <= MOST_LINE_BYTES:
                sentence = "it has no end, as after a crash; the next start tells it in a line."
                found.remarks.append(Defect(path.name, at, sentence))
            else:
                sentence = f"altered: {rest:,} bytes are no line."
                found.defects.append(Defect(path.name, at, sentence))


def _check_file(found: Chained, one: Line, number: int | None, expected: int | None) -> int | None:
    """Hold a file's first line against its name and the file before; return the next's number."""

    def add(sentence: str) -> None:
        found.defects.append(Defect(one.file, one.at, sentence))

    told = one.told
    if told[EVENT] != "file":
        add("the file's first lines are missing.")
        return None if number is None else number + 1
    said = told.get("file")
    if told.get("format") != FORMAT:
        add("it is of another format.")
    if told.get("writer") != found.writer:
        add(f"it is the log of another writer, {told.get('writer')!r}.")
    if type(said) is not int or (number is not None and said != number):
        add(f"it is file {said} of the log by its first line, and not by its name.")
    elif expected is not None and said > expected:
        missing = f"file {expected}" if said == expected + 1 else f"files {expected} to {said - 1}"
        add(f"{missing} of the log, before it, is not there.")
    elif expected is not None and said < expected:
        add(f"it is file {said} of the log, which was there before.")
    return said + 1 if type(said) is int else None


def _check_follows(found: Chained, one: Line) -> None:
    """Hold a line against the one before; whether lines are missing shows once all are read."""
    number, before = one.told[LINE], one.told[BEFORE]
    if number <= found.last:
        sentence = (
            f"line {number:,} of the log follows line {found.last:,}: it is in a wrong place."
        )
    elif number == found.last + 1 and found.head is not None and before != found.head:
        sentence = f"line {number:,} of the log follows another line than the one before it."
    else:
        return
    found.defects.append(Defect(one.file, one.at, sentence))


def _check_jumps(found: Chained, jumps: Iterable[tuple[Line, int]]) -> None:
    """Tell the lines that are missing between others, and are nowhere else: of lines that changed
    their places the one that came too late is told.

    Args:
        jumps: lines with too large a number, each with that of the line before it.
    """
    begins, ends = list[int](), list[int]()
    for run in sorted(found.runs, key=lambda run: run.first):
        end = run.first + len(run.hashes) - 1
        if ends and run.first <= ends[-1] + 1:
            ends[-1] = max(end, ends[-1])
        else:
            begins.append(run.first)
            ends.append(end)
    for one, before in jumps:
        first, last = before + 1, one.told[LINE] - 1
        if (at := bisect_right(begins, first) - 1) >= 0:
            first = max(first, ends[at] + 1)
        if (at := bisect_right(begins, last) - 1) >= 0 and ends[at] >= last:
            last = begins[at] - 1
        if first > last:
            continue
        lines, are = lines_from(first, last), "are" if last > first else "is"
        found.gaps.append(Gap(first, last, "missing"))
        sentence = (
            f"line {one.told[LINE]:,} of the log follows line {before:,}: {lines} {are} missing."
        )
        found.defects.append(Defect(one.file, one.at, sentence))


def lines_from(first: int, last: int) -> str:
    """Names lines of a log by their numbers."""
    return f"line {first:,}" if first == last else f"lines {first:,} to {last:,}"


def _check_beginning(found: Chained, first: Line, dropped: dict[int, Line]) -> None:
    """Where a log's first files are gone, some line has to tell that they were dropped."""
    number, before = first.told.get("file"), first.told[BEFORE]
    if first.told[EVENT] != "file" or number == 1:
        if first.told[LINE] != 1 or before is not None:
            sentence = "the log does not begin with its first line."
            found.defects.append(Defect(first.file, first.at, sentence))
        return
    told = dropped.get(number - 1) if isinstance(number, int) else None
    if told is None or told.told.get("head") != before:
        sentence = "the files before it are gone, and no line tells that they were dropped."
        found.defects.append(Defect(first.file, first.at, sentence))
    else:
        last = first.told[LINE] - 1
        sentence = f"lines up to {last:,} were dropped, to make room."
        found.remarks.append(Defect(told.file, told.at, sentence))
