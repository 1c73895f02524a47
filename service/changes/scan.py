"""What all the logs of a folder say of saved streams, and of themselves."""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeGuard

from service.changes.chain import read_head
from service.changes.files import Place, writers
from service.changes.lines import EVENT, LINE, TIME
from service.changes.merging import begun, by_time
from service.changes.reading import KEPT_DIGITS, Chained, Defect, Gap, Line, lines_from, read
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
    """A stream's file as a line tells that it was written or read."""

    writer: str
    line: int
    time: float
    sha256: str


class Removal(NamedTuple):
    """A line that tells that a stream's file was removed or set aside, and what it had been."""

    writer: str
    line: int
    time: float
    sha256s: frozenset[str]


class Doubt(NamedTuple):
    """A file that is not what the log has as its stream's last.

    Attributes:
        kind: removed: it was, before; older: it was saved so once, and otherwise since; another: it
            was saved so as another stream's; unknown: no line has it.
        file, at: the line that tells of its reading; "", 0: it lies there.
        latest: the line of what was saved last; None: there is none.
        is_removed: that line tells instead that the file was removed.
        others: whose it was.
    """

    kind: Kind
    name: str
    mark: ChangesMark | None
    file: str
    at: int
    latest: int | None
    is_removed: bool
    others: tuple[str, ...]


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
    # Lines after which a process ended unasked; with which one began; before which lines were lost.
    _kills: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    _starts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    _lost: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    # Files that were read before a line of another writer's tells that they were saved.
    _unmet: dict[tuple[str, str], tuple[str, float, Doubt]] = field(default_factory=dict)
    # Of each save, the beginning of its hash, and whose it was by the number of its name.
    _hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    _whose: "array[int]" = field(default_factory=lambda: array("L"))
    _names: dict[str, int] = field(default_factory=dict)

    def whose(self, sha256: str) -> set[str]:
        """The files that any line has this hash of."""
        wanted, at, found = _short(sha256), -1, set[int]()
        while True:
            try:
                at = self._hashes.index(wanted, at + 1)
            except ValueError:
                break
            found.add(self._whose[at])
        return {name for name, number in self._names.items() if number in found} if found else set()

    def doubt(
        self, name: str, sha256: str, mark: ChangesMark | None, file: str = "", at: int = 0
    ) -> Doubt | None:
        """What is to be said of a file; None: it is what was saved last."""
        known, removal = self.last.get(name, {}), self.removals.get(name)
        if any(each.sha256 == sha256 for each in known.values()):
            return None
        latest = max((each.line for each in known.values()), default=None)
        whose = self.whose(sha256)
        kind: Kind = "older" if name in whose else "another" if whose else "unknown"
        if not known and removal is not None:
            latest = removal.line
            kind = "removed" if sha256 in removal.sha256s else kind
        others = tuple(sorted(whose - {name}))
        return Doubt(kind, name, mark, file, at, latest, not known and removal is not None, others)

    def may_be_left(self, writer: str, line: int) -> bool:
        """Whether a process may have saved a file when its log ended in a line, and ended itself
        before that was told."""
        log, head = self.logs.get(writer), self.heads.get(writer)
        if log is None:
            return False
        ends = [*self._kills[writer]]
        if head is None or not head.closed:
            ends.append(log.last)
        behind = log.time_of(line + 1)
        for end in ends:
            ended = log.time_of(end)
            if line == end or (
                line < end
                and behind is not None
                and ended is not None
                and ended - behind <= LEFT_SECONDS
            ):
                return True
        return any(line <= lost <= line + LOST_SPAN for lost in self._lost[writer])

    def may_be_of_a_start(self) -> bool:
        """Whether a process may have saved a file before its log had a head, and ended soon."""
        return any(
            self.may_be_left(writer, line)
            for writer, lines in self._starts.items()
            for line in lines
        )

    def gap_behind(self, name: str) -> str | None:
        """Names lines that cannot be read, and may have told of a file since those that do."""
        known, removal = self.last.get(name, {}), self.removals.get(name)
        for writer, log in self.logs.items():
            latest = known[writer].line if writer in known else 0
            if removal is not None and removal.writer == writer:
                latest = max(latest, removal.line)
            gaps, head = [*log.gaps], self.heads.get(writer)
            if head is not None and head.line > log.last:
                gaps.append(Gap(log.last + 1, head.line, "cut off"))
            for gap in gaps:
                if gap.last > latest:
                    lines = lines_from(gap.first, gap.last)
                    return f"{lines} of {log_of(writer)}, {gap.became},"
        return None

    def take(self, writer: str, line: Line) -> None:
        """Take up what a line tells of files, and of the log itself."""
        told, name, number = line.told, line.told.get("file"), line.told[LINE]
        match told[EVENT]:
            case "save" | "load" if isinstance(name, str):
                self._take_file(writer, line, name)
            case "removed" | "rejected" if isinstance(name, str):
                known = self.last.pop(name, {})
                sha256s = frozenset(each.sha256 for each in known.values())
                self.removals[name] = Removal(writer, number, told[TIME], sha256s)
            case "started":
                self._starts[writer].append(number)
            case "went_on":
                self._take_kill(writer, line)
            case "broken":
                sentence = f"at this start the log was not as it was left: {told.get('reason')}."
                self.defects.append(Defect(line.file, line.at, sentence))
            case "mended":
                sentence = f"a crash tore a line; {told.get('bytes')} bytes of it are kept here."
                self.remarks.append(Defect(line.file, line.at, sentence))
            case "lost":
                self._lost[writer].append(number)
                sentence = f"{told.get('lines')} lines before this one could not be written."
                self.remarks.append(Defect(line.file, line.at, sentence))

    def _take_kill(self, writer: str, line: Line) -> None:
        after, head = line.told.get("after"), line.told.get("head_at")
        if type(after) is not int or type(head) is not int:
            return
        self._kills[writer].append(after)
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
            if found := self.doubt(name, sha256, mark, line.file, line.at):
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
        self._hashes.append(_short(sha256))
        self._whose.append(self._names.setdefault(name, len(self._names)))
        self.last[name] = {**others, writer: Save(writer, told[LINE], time, sha256)}


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
    if log.time_of(mark.line) is None:
        return f"{whose} had {line}, which is missing now."
    return f"{line} of {whose} was another than it is now."


def log_of(writer: str) -> str:
    """Names a writer's log."""
    return f"the log of {writer}" if writer else "the log"


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


def _short(sha256: str) -> int:
    return int(sha256[:KEPT_DIGITS], 16)


def _is_hash(value: object) -> TypeGuard[str]:
    if not isinstance(value, str) or len(value) != 64:
        return False
    return set(value) <= set("0123456789abcdef")
