"""The lines of a log of changes, read file by file; what is not as it was written is found."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from service.changes.chained import Chained, Defect, Gap, Line, lines_from
from service.changes.files import Place, opened
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


def read(place: Place, found: Chained) -> Iterator[Line]:
    """Read one writer's log in its order; what is found of it is in `found` once all is read.

    Lines that are none are left out. After a line that does not follow, the next is held against
    it: one that was altered is told once. A file that its writer drops meanwhile is left out.

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
    previous = 0  # the number of the line before
    altered: list[str] = []  # the hashes of the first lines, before any that tells its number
    for number, path in paths:
        if (file := opened(path)) is None:
            if path.exists():
                found.files += 1
                sentence = f"{path.name} is no regular file."
                found.defects.append(Defect(path.name, 0, sentence))
            continue
        found.files += 1
        for at, line in enumerate(_lines(file, path.name, found, grows=number is None), 1):
            try:
                told = decoded(line)
            except ValueError as error:
                found.defects.append(Defect(path.name, at, f"altered: {error}."))
                if at == 1 and number is not None:
                    expected = number + 1
                if found.position:
                    previous = _note_altered(found, [digest(line)], previous + 1)
                else:
                    altered.append(digest(line))
                found.head = None  # told once: the next is held against no hash
                continue
            if altered:
                previous = _note_altered(found, altered, told[LINE] - len(altered))
                altered = []
            is_first, head = not found.position, digest(line)
            one = Line(path.name, at, found.note(told[LINE], head, told[TIME]), told)
            if at == 1:
                expected = _check_file(found, one, number, expected)
            elif told[EVENT] == "file":
                found.defects.append(
                    Defect(path.name, at, "a file of the log begins here, inside.")
                )
            if is_first:
                beginning = one
            else:
                if told[LINE] > previous + 1:
                    jumps.append((one, previous))
                _check_follows(found, one, previous)
            if told[EVENT] == "dropped" and isinstance(told.get("file"), int):
                dropped[told["file"]] = one
            previous, found.head = told[LINE], head
            found.lines += 1
            found.begun = found.begun or told[TIME]
            found.ended = told[TIME]
            yield one
    _note_altered(found, altered, 1)
    _check_jumps(found, jumps)
    if paths and not goes_on:
        # A crash between two files leaves that; the head's file tells whether lines are missing.
        name = place.current.name
        found.remarks.append(Defect(name, 0, f"{name}, which goes on, is not there."))
    if beginning is not None:
        _check_beginning(found, beginning, dropped)
    order = {path.name: at for at, (_, path) in enumerate(paths)}
    found.defects.sort(key=lambda each: (order[each.file], each.at))


def _note_altered(found: Chained, heads: Iterable[str], first: int) -> int:
    """Have lines that were altered the numbers from one on; return that of the last."""
    number = max(1, first) - 1
    for head in heads:
        number += 1
        at = found.note(number, head, found.ended)
        found.gaps.append(Gap(at - 1, at + 1, number, number, "altered"))
    return number


def _lines(file: BinaryIO, name: str, found: Chained, *, grows: bool) -> Iterator[bytes]:
    """The whole lines of a file, without their ends; one that is torn is told."""
    at = 0
    with file:
        while line := file.readline(MOST_LINE_BYTES + 1):
            at += 1
            if line.endswith(b"\n"):
                yield line[:-1]
                continue
            rest = len(line) + sum(map(len, iter(lambda: file.read(1 << 20), b"")))
            if grows and rest <= MOST_LINE_BYTES:
                sentence = "it has no end, as after a crash; the next start tells it in a line."
                found.remarks.append(Defect(name, at, sentence))
            else:
                sentence = f"altered: {rest:,} bytes are no line."
                found.defects.append(Defect(name, at, sentence))
    if not at:
        found.remarks.append(Defect(name, 0, f"{name} is empty, as after a crash."))


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


def _check_follows(found: Chained, one: Line, previous: int) -> None:
    """Hold a line against the one before; whether lines are missing shows once all are read.

    Args:
        previous: the number of the line before.
    """
    number, before = one.told[LINE], one.told[BEFORE]
    if number <= previous:
        sentence = f"line {number:,} of the log follows line {previous:,}: it is in a wrong place."
    elif number == previous + 1 and found.head is not None and before != found.head:
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
    jumps = [*jumps]
    spans = ((previous + 1, one.told[LINE] - 1) for one, previous in jumps)
    for (one, previous), span in zip(jumps, found.missing(spans), strict=True):
        if span is None:
            continue
        lines, are = lines_from(*span), "are" if span[1] > span[0] else "is"
        found.gaps.append(Gap(one.position - 1, one.position, *span, "missing"))
        number = one.told[LINE]
        sentence = f"line {number:,} of the log follows line {previous:,}: {lines} {are} missing."
        found.defects.append(Defect(one.file, one.at, sentence))


def _check_beginning(found: Chained, first: Line, dropped: dict[int, Line]) -> None:
    """Where a log's first files are gone, some line has to tell that they were dropped."""
    number, before = first.told.get("file"), first.told[BEFORE]
    if first.told[EVENT] != "file" or number == 1:
        if first.told[LINE] != 1 or before is not None:
            sentence = "the log does not begin with its first line."
            found.defects.append(Defect(first.file, first.at, sentence))
            found.gaps.append(Gap(0, 1, 1, first.told[LINE] - 1, "missing"))
        return
    told = dropped.get(number - 1) if isinstance(number, int) else None
    if told is None or told.told.get("head") != before:
        sentence = "the files before it are gone, and no line tells that they were dropped."
        found.defects.append(Defect(first.file, first.at, sentence))
    else:
        last = first.told[LINE] - 1
        sentence = f"lines up to {last:,} were dropped, to make room."
        found.remarks.append(Defect(told.file, told.at, sentence))
