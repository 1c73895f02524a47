"""What was read of one writer's log of changes: its lines' numbers, hashes and times, and its gaps.

A line's number is what it tells; its position is where it was read, counted from the first line's
number on. In a log as it was written they are the same; in any other a number may come twice, or
stand in a wrong place, and positions alone tell what came before what.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# Of a hash, so many hex digits are kept of every line.
KEPT_DIGITS = 16


class Defect(NamedTuple):
    """What is not as it was written: in which file, at which of its lines (0: the file itself)."""

    file: str
    at: int
    sentence: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.at:,}: {self.sentence}" if self.at else self.sentence


class Line(NamedTuple):
    """A line as it was written: in which file, at which of its lines, its position in the log, and
    what it tells."""

    file: str
    at: int
    position: int
    told: dict[str, Any]


class Gap(NamedTuple):
    """Lines of which nobody knows what they told.

    Attributes:
        behind, before: positions of the lines around them.
        first, last: their numbers.
        became: what became of them, in a word or two.
    """

    behind: int
    before: int
    first: int
    last: int
    became: str


class _Run(NamedTuple):
    """Lines whose numbers follow one another; of a whole log there is one.

    Attributes:
        first: number of the first; begin: how many lines were read before it.
    """

    first: int
    begin: int


@dataclass
class Chained:
    """What was read of one writer's log.

    Attributes:
        first: number of the first line; last: the largest. 0: there is none.
        head: the hash of the line that was read last; None: that was altered, or there is none.
        lines, files: how many were read, without those that are no lines.
        begun, ended: times of the first and of the one that was read last, in seconds since 1970.
        gaps: lines that were altered, are missing or were cut off.
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
    _runs: list[_Run] = field(default_factory=list)
    _hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    _times: "array[float]" = field(default_factory=lambda: array("d"))

    @property
    def position(self) -> int:
        """Of the line that was read last; 0: there is none."""
        return self.first - 1 + len(self._hashes) if self.first else 0

    def note(self, number: int, head: str, time: float) -> int:
        """A line was read; return its position."""
        self.first = self.first or number
        self.last = max(self.last, number)
        run, count = self._runs[-1] if self._runs else None, len(self._hashes)
        if run is None or number - run.first != count - run.begin:
            self._runs.append(_Run(number, count))
        self._hashes.append(shortened(head))
        self._times.append(time)
        return self.position

    def has(self, line: int, head: str) -> bool | None:
        """Whether a line has a hash that begins with these hex digits; None: it is older than the
        lines that are kept.

        Of more than KEPT_DIGITS those are compared.
        """
        return None if line < self.first else self.position_of(line, head) is not None

    def is_there(self, line: int) -> bool:
        """Whether there is a line of this number."""
        return next(self._with(line), None) is not None

    def position_of(self, line: int, head: str) -> int | None:
        """Where a line of this number and hash was read; None: nowhere."""
        wanted, rest = shortened(head), 4 * max(0, KEPT_DIGITS - len(head))
        found = (each for each in self._with(line) if self._hashes[each] >> rest == wanted)
        return next((self.first + each for each in found), None)

    def line_of(self, digits: str) -> int | None:
        """The line whose hash begins with these hex digits; None: there is none.

        Of more than KEPT_DIGITS those are compared.
        """
        wanted, rest = shortened(digits), 4 * max(0, KEPT_DIGITS - len(digits))
        for at, each in enumerate(self._hashes):
            if each >> rest == wanted:
                run = self._runs[bisect_right(self._runs, at, key=lambda run: run.begin) - 1]
                return run.first + at - run.begin
        return None

    def time_at(self, position: int) -> float | None:
        """When the line at a position was told; None: there is none."""
        at = position - self.first
        return self._times[at] if 0 <= at < len(self._times) else None

    def missing(self, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int] | None]:
        """Of numbers from a first to a last, those from the first to the last that no line has;
        None: there are lines of all of them."""
        begins, ends = list[int](), list[int]()
        for begin, end in sorted(self._spans()):
            if ends and begin <= ends[-1] + 1:
                ends[-1] = max(end, ends[-1])
            else:
                begins.append(begin)
                ends.append(end)
        for first, last in spans:
            if (at := bisect_right(begins, first) - 1) >= 0:
                first = max(first, ends[at] + 1)
            if (at := bisect_right(begins, last) - 1) >= 0 and ends[at] >= last:
                last = begins[at] - 1
            yield (first, last) if first <= last else None

    def _spans(self) -> Iterator[tuple[int, int]]:
        """The first number and the last of each run, the last run first."""
        end = len(self._hashes)
        for run in reversed(self._runs):
            yield run.first, run.first + end - run.begin - 1
            end = run.begin

    def _with(self, line: int) -> Iterator[int]:
        """How many lines were read before each of this number."""
        for run, (first, last) in zip(reversed(self._runs), self._spans(), strict=True):
            if first <= line <= last:
                yield run.begin + line - first


def lines_from(first: int, last: int) -> str:
    """Names lines of a log by their numbers."""
    return f"line {first:,}" if first == last else f"lines {first:,} to {last:,}"


def log_of(writer: str) -> str:
    """Names a writer's log."""
    return f"the log of {writer}" if writer else "the log"


def shortened(sha256: str) -> int:
    """So much of a hash as is kept of every line."""
    return int(sha256[:KEPT_DIGITS], 16)
