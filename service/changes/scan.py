"""What all the logs of a folder say of saved streams, and of themselves."""

import math
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeGuard

from service.changes.chain import read_head
from service.changes.chained import Chained, Defect, Gap, Line, lines_from, log_of, shortened
from service.changes.files import Place, writers
from service.changes.lines import EVENT, LINE, TIME
from service.changes.merging import begun, by_time
from service.changes.reading import read
from service.changes.saved import mark_of
from service.schemas import ChangesHead, ChangesMark

# A file is saved, and the line of that on disk, within so long of each other; a kill leaves the
# file alone.
LEFT_SECONDS = 30.0
# Clocks of machines that share a folder differ by so much at most.
SKEW_SECONDS = 60.0
# Lines that were lost were noted within so many of those that were not.
LOST_SPAN = 25_000

Kind = Literal["removed", "older", "another", "unknown"]


class Save(NamedTuple):
    """A stream's file as a line tells that it was written or read; where that was read, and when
    it was told."""

    writer: str
    line: int
    position: int
    time: float
    sha256: str


class Removal(NamedTuple):
    """A line that tells that a stream's file was removed or set aside, and what it had been."""

    writer: str
    line: int
    position: int
    time: float
    sha256s: frozenset[str]


class Doubt(NamedTuple):
    """A file that is not what the log has as its stream's last.

    Attributes:
        kind: removed: it was, before; older: it was saved so once, and otherwise since; another: it
            was saved so as another stream's; unknown: no line has it.
        reader, reading: whose log tells of its reading, and the line; None: it lies there.
        latest: what was told of the file last, before that; None: nothing was.
        others: whose it was.
    """

    kind: Kind
    name: str
    mark: ChangesMark | None
    reader: str
    reading: Line | None
    latest: Save | Removal | None
    others: tuple[str, ...]


class _End(NamedTuple):
    """Where a process ended unasked, or lines were lost: behind which position, and when."""

    position: int
    time: float


@dataclass
class Scan:
    """All that the logs of a folder say.

    Attributes:
        logs, heads: by writer; a head that is not there is missing, one that is damaged None.
        last: by file, and by writer, as it was written or read last.
        removals: by file, its last.
        marks: lines that tell of a file's reading, and the mark in it, if that was not met before.
        doubts: files that were read, and were not what was saved last.
        defects, remarks, unvouched: what lines tell, as `Verified` has them.
    """

    logs: dict[str, Chained] = field(default_factory=dict)
    heads: dict[str, ChangesHead | None] = field(default_factory=dict)
    last: dict[str, dict[str, Save]] = field(default_factory=lambda: defaultdict(dict))
    removals: dict[str, Removal] = field(default_factory=dict)
    marks: list[tuple[Line, ChangesMark]] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    remarks: list[Defect] = field(default_factory=list)
    unvouched: list[Defect] = field(default_factory=list)
    # Where processes ended unasked; positions with which a log began; and before which lines were
    # lost.
    _kills: dict[str, list[_End]] = field(default_factory=lambda: defaultdict(list))
    _starts: dict[str, int] = field(default_factory=dict)
    _lost: dict[str, list[_End]] = field(default_factory=lambda: defaultdict(list))
    # Files that were read before a line of another writer's tells that they were saved.
    _unmet: dict[tuple[str, str], tuple[str, float, Doubt]] = field(default_factory=dict)
    # Of each save, the beginning of its hash, and whose it was by the number of its name.
    _hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    _whose: "array[int]" = field(default_factory=lambda: array("L"))
    _names: dict[str, int] = field(default_factory=dict)

    def whose(self, sha256: str) -> set[str]:
        """The files that any line has this hash of."""
        wanted, at, found = shortened(sha256), -1, set[int]()
        while True:
            try:
                at = self._hashes.index(wanted, at + 1)
            except ValueError:
                break
            found.add(self._whose[at])
        return {name for name, number in self._names.items() if number in found} if found else set()

    def doubt(
        self,
        name: str,
        sha256: str,
        mark: ChangesMark | None,
        reader: str = "",
        reading: Line | None = None,
    ) -> Doubt | None:
        """What is to be said of a file; None: it is what was saved last."""
        known, removal = self.last.get(name, {}), self.removals.get(name)
        if any(each.sha256 == sha256 for each in known.values()):
            return None
        whose = self.whose(sha256)
        kind: Kind = "older" if name in whose else "another" if whose else "unknown"
        if not known and removal is not None and sha256 in removal.sha256s:
            kind = "removed"
        latest = max(known.values(), key=lambda each: each.time, default=removal)
        others = tuple(sorted(whose - {name}))
        return Doubt(kind, name, mark, reader, reading, latest, others)

    def may_be_left(self, doubt: Doubt) -> bool:
        """Whether a process may have saved a file, or was to remove it, and ended unasked before
        that was told or done; and nothing was told of the file since."""
        mark, latest = doubt.mark, doubt.latest
        if doubt.kind == "removed" and latest is not None:
            return self._may_be_left(doubt, latest.writer, latest.position)
        if mark is None:  # it may have been saved before its log had a head
            return any(self._may_be_left(doubt, *each) for each in self._starts.items())
        log = self.logs.get(mark.writer)
        position = None if log is None else log.position_of(mark.line, mark.head)
        return position is not None and self._may_be_left(doubt, mark.writer, position)

    def _may_be_left(self, doubt: Doubt, writer: str, position: int) -> bool:
        """The same, of what was done when a log had so many lines."""
        log, head = self.logs[writer], self.heads.get(writer)
        ends = [*self._kills[writer]]
        if head is None or not head.closed:
            ends.append(_End(log.position, log.ended))
        behind = log.time_at(position + 1)
        ends = [end for end in ends if behind is None or end.time - behind <= LEFT_SECONDS]
        ends += [each for each in self._lost[writer] if each.position - position <= LOST_SPAN]
        return any(
            position <= end.position and _was_last(doubt, writer, end.position, end.time, end.time)
            for end in ends
        )

    def may_be_dropped(self, doubt: Doubt) -> bool:
        """Whether the line that told of a file's saving was dropped, and none tells of it since."""
        mark = doubt.mark
        log = None if mark is None else self.logs.get(mark.writer)
        if log is None or mark is None or mark.line + 1 >= log.first:
            return False
        return _was_last(doubt, mark.writer, 0, 0.0, log.begun)

    def gap_for(self, doubt: Doubt) -> str | None:
        """Names lines that cannot be read, and may have told what is not known of a file."""
        mark = doubt.mark
        if mark is None:
            return next((gap for writer in self.logs if (gap := self._gap(doubt, writer, 0))), None)
        log = self.logs.get(mark.writer)
        if log is None:
            return None
        return self._gap(doubt, mark.writer, log.position_of(mark.line, mark.head) or 0)

    def gap_behind(self, latest: Save) -> str | None:
        """Names lines that cannot be read, and may have told that a file went, after its last
        save."""
        doubt = Doubt("unknown", "", None, "", None, latest, ())
        return self.gap_for(doubt)

    def _gap(self, doubt: Doubt, writer: str, position: int) -> str | None:
        """Names the first gap of a log behind a position, and behind what is known of a file."""
        log, head = self.logs[writer], self.heads.get(writer)
        gaps = [*log.gaps]
        if head is not None and head.line > log.last:
            cut = Gap(log.position, log.position + 1, log.last + 1, head.line, "cut off")
            gaps.append(cut)
        for gap in gaps:
            begun, ended = log.time_at(gap.behind) or 0.0, log.time_at(gap.before) or math.inf
            if gap.behind >= position and _was_last(doubt, writer, gap.behind, begun, ended):
                lines = lines_from(gap.first, gap.last)
                return f"{lines} of {log_of(writer)}, {gap.became},"
        return None

    def take(self, writer: str, line: Line) -> None:
        """Take up what a line tells of files, and of the log itself."""
        told, name = line.told, line.told.get("file")
        match told[EVENT]:
            case "save" | "load" if isinstance(name, str):
                self._take_file(writer, line, name)
            case "removed" | "rejected" if isinstance(name, str):
                known = self.last.pop(name, {})
                sha256s = frozenset(each.sha256 for each in known.values())
                self.removals[name] = Removal(
                    writer, told[LINE], line.position, told[TIME], sha256s
                )
            case "started" if self.logs[writer].first == 1:
                self._starts.setdefault(writer, line.position)
            case "went_on":
                self._take_kill(writer, line)
            case "broken":
                sentence = f"at this start the log was not as it was left: {told.get('reason')}."
                self.defects.append(Defect(line.file, line.at, sentence))
                self._take_cut(writer, line)
            case "mended":
                sentence = f"a crash tore a line; {told.get('bytes')} bytes of it are kept here."
                self.remarks.append(Defect(line.file, line.at, sentence))
            case "lost":
                self._lost[writer].append(_End(line.position - 1, told[TIME]))
                sentence = f"{told.get('lines')} lines before this one could not be written."
                self.remarks.append(Defect(line.file, line.at, sentence))

    def _take_cut(self, writer: str, line: Line) -> None:
        """Of lines that were cut off before a start, their numbers are used anew since."""
        known, number = line.told.get("known_line"), line.told[LINE]
        if type(known) is int and known >= number:
            gap = Gap(line.position - 1, line.position, number, known, "cut off before a start")
            self.logs[writer].gaps.append(gap)

    def _take_kill(self, writer: str, line: Line) -> None:
        after, head, log = line.told.get("after"), line.told.get("head_at"), self.logs[writer]
        if type(after) is not int or type(head) is not int:
            return
        # Between that line and this one, others may tell what a crash tore.
        ended = log.time_at(line.position - line.told[LINE] + after)
        self._kills[writer].append(
            _End(line.position - 1, line.told[TIME] if ended is None else ended)
        )
        if after > head:
            name = Place(Path(), writer).head.name
            sentence = (
                f"a process had ended unasked before this line, when {name} named line {head:,}: "
                f"{not_vouched_for(head, after)}"
            )
            self.unvouched.append(Defect(line.file, line.at, sentence))

    def _take_file(self, writer: str, line: Line, name: str) -> None:
        told, sha256 = line.told, line.told.get("sha256")
        if not _is_hash(sha256):
            return
        time = told[TIME]
        if told[EVENT] == "load":
            mark = mark_of(told.get("mark"))
            if found := self.doubt(name, sha256, mark, writer, line):
                self.doubts.append(found)
                self._unmet[name, sha256] = writer, time, found
            # What is there already need not be kept to be looked for.
            if mark is not None and misses(self, mark):
                self.marks.append((line, mark))
            others = self.last.get(name, {})
        else:
            if met := self._unmet.pop((name, sha256), None):
                reader, read_at, found = met
                if reader != writer and time - read_at <= SKEW_SECONDS:
                    self.doubts.remove(found)
            # Whoever saves has the stream: what others saved before is older, if clocks agree.
            known = self.last.get(name, {})
            others = {w: each for w, each in known.items() if time - each.time <= SKEW_SECONDS}
        self._hashes.append(shortened(sha256))
        self._whose.append(self._names.setdefault(name, len(self._names)))
        self.last[name] = {**others, writer: Save(writer, told[LINE], line.position, time, sha256)}


def scanned(folder: Path) -> Scan:
    """Read all the logs of a folder.

    Raises:
        OSError: something cannot be read.
    """
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

    return by_time(
        ((begun(Place(folder, writer)), of(writer)) for writer in logs),
        lambda each: float(each[1].told[TIME]),
    )


def misses(scan: Scan, mark: ChangesMark) -> str | None:
    """What a log has not that a file knows of it; what follows "it was saved when "."""
    log = scan.logs.get(mark.writer)
    whose, line = log_of(mark.writer), f"line {mark.line:,}"
    if log is None or not log.last:
        return f"{whose} had {line}, and there is no such log now."
    if mark.line > log.last:
        return f"{whose} had {line}, and it ends at line {log.last:,} now: it was cut."
    if log.has(mark.line, mark.head) is not False:
        return None
    if not log.is_there(mark.line):
        return f"{whose} had {line}, which is missing now."
    return f"{line} of {whose} was another than it is now."


def not_vouched_for(head: int, last: int, vouched: int = 0) -> str:
    """Of lines that were behind a head which nobody had closed.

    Args:
        head: the line that the head names; last: the log's last.
        vouched: up to which line saved streams know the log; 0: none does.
    """
    behind = f"nothing outside of the log vouches for {lines_from(max(head, vouched) + 1, last)}."
    if vouched <= head:
        return behind
    return f"saved streams vouch for lines up to {vouched:,}, {behind}"


def _was_last(doubt: Doubt, writer: str, position: int, begun: float, ended: float) -> bool:
    """Whether what is known of a file was told before something may have happened to it that is
    not; and it was read after that, if it was.

    Args:
        writer, position: the line of a log behind which it may have.
        begun, ended: the times between which it may have.
    """
    latest, reading = doubt.latest, doubt.reading
    if latest is not None:
        is_before = latest.position <= position
        if not (is_before if latest.writer == writer else latest.time <= ended + SKEW_SECONDS):
            return False
    if reading is None:
        return True
    is_behind = reading.position > position
    return is_behind if doubt.reader == writer else reading.told[TIME] >= begun - SKEW_SECONDS


def _is_hash(value: object) -> TypeGuard[str]:
    if not isinstance(value, str) or len(value) != 64:
        return False
    return set(value) <= set("0123456789abcdef")
