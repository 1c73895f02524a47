"""Whether a log of changes is as it was written, and saved streams as it has them.

What holds the log from outside is asked, too: the head beside it, and the one in each stream's
file. Whoever rewrites all of them together is found by a head that was kept elsewhere alone.
"""

import contextlib
import os
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import file_digest
from heapq import merge
from pathlib import Path
from typing import NamedTuple, TypeGuard

from pydantic import ValidationError

from service.changes.chain import read_head
from service.changes.files import Place, writers
from service.changes.lines import EVENT, LINE, TIME
from service.changes.reading import KEPT_DIGITS, Chained, Defect, Line, read
from service.schemas import ChangesHead, ChangesMark
from service.state_folder import APART, SUFFIX, stream_of
from ttc_core.state import StateError, describe

# A service at work may have written meanwhile: what looks wrong is looked at again so much later.
AGAIN_SECONDS, LOOKS = 2.5, 2
FEWEST_DIGITS = 12


class Save(NamedTuple):
    """A stream's file as a line tells that it was written or read."""

    line: int
    sha256: str
    images: int


class SavedFile(NamedTuple):
    """A stream's file as it lies in the folder; the mark is the log's end when it was written."""

    name: str
    sha256: str
    images: int
    mark: ChangesMark | None


@dataclass
class Scan:
    """All that the logs of a folder say.

    Attributes:
        logs, heads: by writer; a head that is not there is missing, one that is damaged None.
        saves: by file, and by writer, as it was written or read last.
        loads: lines that tell of a file's reading, and the mark in it, if that was not met before.
        defects, remarks: what lines tell, as `Verified` has them.
    """

    logs: dict[str, Chained] = field(default_factory=dict)
    heads: dict[str, ChangesHead | None] = field(default_factory=dict)
    saves: dict[str, dict[str, Save]] = field(default_factory=lambda: defaultdict(dict))
    loads: list[tuple[Line, ChangesMark]] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    remarks: list[Defect] = field(default_factory=list)
    _written: "array[int]" = field(default_factory=lambda: array("Q"))

    def was_written(self, sha256: str) -> bool:
        """Whether any line tells of a file of this hash."""
        return int(sha256[:KEPT_DIGITS], 16) in self._written

    def is_newer(self, name: str, mark: ChangesMark | None, images: int) -> bool:
        """Whether a file was written after the last line that tells of it."""
        known = self.saves.get(name, {})
        own = None if mark is None else known.get(mark.writer)
        is_later = mark is not None and own is not None and mark.line >= own.line
        return is_later or images > max((each.images for each in known.values()), default=-1)

    def take(self, writer: str, line: Line) -> None:
        """Take up what a line tells of files, and of the log itself."""
        told, name = line.told, line.told.get("file")
        match told[EVENT]:
            case "save" | "load" if isinstance(name, str):
                self._take_file(writer, line, name)
            case "removed" | "rejected" if isinstance(name, str):
                self.saves.pop(name, None)
            case "broken":
                sentence = f"at this start the log was not as it was left: {told.get('reason')}."
                self.defects.append(Defect(line.file, line.at, sentence))
            case "mended":
                sentence = f"a crash tore a line; {told.get('bytes')} bytes of it are kept here."
                self.remarks.append(Defect(line.file, line.at, sentence))
            case "lost":
                sentence = f"{told.get('lines')} lines before this one could not be written."
                self.remarks.append(Defect(line.file, line.at, sentence))

    def _take_file(self, writer: str, line: Line, name: str) -> None:
        sha256, images = line.told.get("sha256"), line.told.get("images")
        if not _is_hash(sha256) or not isinstance(images, int):
            return
        if line.told[EVENT] == "load":
            mark = _mark(line.told.get("mark"))
            known = self.saves.get(name)
            is_last = not known or any(each.sha256 == sha256 for each in known.values())
            if not is_last and not self.is_newer(name, mark, images):
                if self.was_written(sha256):
                    sentence = f"{name} was read, an older copy than what was saved last."
                    self.remarks.append(Defect(line.file, line.at, sentence))
                else:
                    sentence = f"{name} was read, and was not what was saved last."
                    self.defects.append(Defect(line.file, line.at, sentence))
            # What is there already need not be kept to be looked for.
            if mark is not None and _misses(self, mark):
                self.loads.append((line, mark))
        self._written.append(int(sha256[:KEPT_DIGITS], 16))
        self.saves[name][writer] = Save(line.told[LINE], sha256, images)


@dataclass
class Verified:
    """What came of it.

    Attributes:
        logs: as they were read.
        files: saved streams that are as the log has them; unknown: those of which it has nothing.
        defects: what was altered, cut, swapped or added; remarks: what is no sign of that.
    """

    logs: list[Chained]
    files: int = 0
    unknown: int = 0
    defects: list[Defect] = field(default_factory=list)
    remarks: list[Defect] = field(default_factory=list)


def verify(
    folder: Path, *, head: str | None = None, wait: Callable[[float], None] = time.sleep
) -> Verified:
    """Hold a --state-dir against its logs of changes; it may be in use.

    Args:
        head: the first hex digits, FEWEST_DIGITS at least, of a hash that was a log's head once.
        wait: waits so many seconds, before what looks wrong is looked at again.

    Raises:
        OSError: something cannot be read.
    """
    before = _scan(folder)
    for _ in range(LOOKS):
        saved = list(_saved_files(folder))
        found = _judged(folder, before, before, saved, head)
        if not found.defects:
            break
        wait(AGAIN_SECONDS)
        after = _scan(folder)
        found = _judged(folder, before, after, saved, head)
        if not found.defects:
            break
        before = after
    return found


def _scan(folder: Path) -> Scan:
    scan = Scan()
    for writer in writers(folder):
        try:
            # Before the lines: those go on while they are read.
            known = read_head(Place(folder, writer).head)
            if known is not None:
                scan.heads[writer] = known
        except ValueError:
            scan.heads[writer] = None
        scan.logs[writer] = Chained(writer)
    for writer, line in lines(folder, scan.logs):
        scan.take(writer, line)
    return scan


def lines(folder: Path, logs: Mapping[str, Chained]) -> Iterator[tuple[str, Line]]:
    """The lines of all writers' logs by their time, each with its writer; `logs` are filled."""

    def of(writer: str) -> Iterator[tuple[str, Line]]:
        for line in read(Place(folder, writer), logs[writer]):
            yield writer, line

    return merge(*map(of, logs), key=lambda each: float(each[1].told[TIME]))


def _saved_files(folder: Path) -> Iterator[SavedFile]:
    for inside in (folder, *sorted(folder.glob(f"{APART}*/"))):
        for path in sorted(inside.glob(f"*{SUFFIX}")):
            if stream_of(path.name) is None or not path.is_file():
                continue
            with contextlib.suppress(FileNotFoundError):  # it has gone since
                yield _saved_file(folder, path)


def _saved_file(folder: Path, path: Path) -> SavedFile:
    """Read a stream's file; all that is told is of one and the same."""
    while True:
        with path.open("rb") as file:
            sha256 = file_digest(file, "sha256").hexdigest()
            try:
                about = describe(path).of_stream
            except StateError:
                about = {}
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break  # nobody has replaced it in between
    images = about.get("images")
    return SavedFile(
        str(path.relative_to(folder)),
        sha256,
        images if isinstance(images, int) else 0,
        _mark(about.get("changes")),
    )


def _judged(
    folder: Path, before: Scan, scan: Scan, saved: list[SavedFile], head: str | None
) -> Verified:
    """Say what is not as it was written.

    Args:
        before: what the logs said before the files were looked at: those may be newer, never older.
        scan: what they say now.
    """
    found = Verified([*scan.logs.values()])
    for log in found.logs:
        found.defects += log.defects
        found.remarks += log.remarks
        found.defects += _beside(log, scan)
    found.defects += scan.defects
    found.remarks += scan.remarks
    for line, mark in scan.loads:
        if sentence := _misses(scan, mark):
            sentence = f"{line.told.get('file')}, read here, was saved when {sentence}"
            found.defects.append(Defect(line.file, line.at, sentence))
    for each in saved:
        known = before.saves.get(each.name, {})
        if each.mark is not None and (sentence := _misses(scan, each.mark)):
            sentence = f"{each.name} was saved when {sentence}"
            found.defects.append(Defect(each.name, 0, sentence))
        elif not known:
            found.unknown += each.mark is None
        elif any(one.sha256 == each.sha256 for one in known.values()):
            found.files += 1
        elif not before.is_newer(each.name, each.mark, each.images):
            what = "an older copy of" if before.was_written(each.sha256) else "not"
            at = max(one.line for one in known.values())
            sentence = f"{each.name} is {what} what was saved last, by line {at:,} of the log."
            found.defects.append(Defect(each.name, 0, sentence))
    _look_for_gone(folder, before, scan, saved, found)
    if head is not None and not any(log.line_of(head.lower()) for log in found.logs):
        sentence = f"No line has a hash that begins with {head}: the log is another since, or cut."
        found.defects.append(Defect("", 0, sentence))
    return found


def _beside(log: Chained, scan: Scan) -> Iterator[Defect]:
    """What the head that lies beside a log has against it."""
    name = Place(Path(), log.writer).head.name
    known = scan.heads.get(log.writer)
    sentence = None
    if log.writer not in scan.heads:
        # With its first line alone a log may have been killed before it had a head.
        sentence = f"{name} is not there." if log.last > 1 else None
    elif known is None:
        sentence = f"{name} is damaged."
    elif known.line > log.last:
        end = f"ends at line {log.last:,}" if log.last else "is gone"
        sentence = f"The log was cut: {name} knows its line {known.line:,}, and it {end}."
    elif log.has(known.line, known.head) is False:
        sentence = f"Line {known.line:,} of the log is another than {name} knows."
    elif known.closed and log.last > known.line:
        sentence = f"Lines were added: the log was closed at {known.line:,}, and has {log.last:,}."
    if sentence is not None:
        yield Defect(name, 0, sentence)


def _misses(scan: Scan, mark: ChangesMark) -> str | None:
    """What a log has not that a file knows of it."""
    log = scan.logs.get(mark.writer)
    whose = f"the log of {mark.writer}" if mark.writer else "the log"
    if log is None:
        return f"{whose} had {mark.line:,} lines; it is not there."
    if mark.line > log.last:
        return f"{whose} had {mark.line:,} lines; it was cut at {log.last:,}."
    if log.has(mark.line, mark.head) is False:
        return f"line {mark.line:,} of {whose} was another."
    return None


def _look_for_gone(
    folder: Path, before: Scan, scan: Scan, saved: list[SavedFile], found: Verified
) -> None:
    """Find the files that were saved, and are not there though no line tells that they went."""
    there = {each.name for each in saved}
    gone = [name for name in before.saves if name not in there and scan.saves.get(name)]
    apart: dict[str, int] = defaultdict(int)
    for name in gone:
        inside = Path(name).parent
        if not (folder / inside).is_dir():
            apart[str(inside)] += 1
            continue
        at = max(one.line for one in scan.saves[name].values())
        sentence = f"{name} is not there; it was saved by line {at:,} of the log."
        found.defects.append(Defect(name, 0, sentence))
    for inside_name, count in apart.items():
        sentence = f"{inside_name} is not there any more, with {count:,} saved streams."
        found.remarks.append(Defect(inside_name, 0, sentence))


def _mark(given: object) -> ChangesMark | None:
    if given is None:
        return None
    try:
        return ChangesMark.model_validate(given)
    except ValidationError:
        return None


def _is_hash(value: object) -> TypeGuard[str]:
    if not isinstance(value, str) or len(value) != 64:
        return False
    try:
        int(value, 16)
    except ValueError:
        return False
    return True
