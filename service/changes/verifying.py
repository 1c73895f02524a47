"""Whether a log of changes is as it was written, and saved streams as it has them.

What holds the log from outside is asked, too: the head beside it, and the one in each stream's
file. Whoever rewrites all of them together is found by a head that was kept elsewhere alone. What
nothing vouches for is told apart from what is wrong, and never as if it were right.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import file_digest
from pathlib import Path

from service.changes.chained import Chained, Defect, log_of
from service.changes.files import Place
from service.changes.saved import SavedFile, saved_files
from service.changes.scan import (
    SKEW_SECONDS,
    Doubt,
    Removal,
    Scan,
    misses,
    not_vouched_for,
    scanned,
)
from service.state_folder import stream_of

# A service at work may have written meanwhile: what looks wrong is looked at again so much later.
AGAIN_SECONDS, LOOKS = 2.5, 2
FEWEST_DIGITS = 12


@dataclass
class Verified:
    """What came of it.

    Attributes:
        logs: as they were read.
        files: saved streams that are as the log has them.
        defects: what was altered, cut, swapped, added or replaced.
        unvouched: what may be as it was written, or not: nothing is left to hold it against.
        remarks: what is no sign of either.
    """

    logs: list[Chained]
    files: int = 0
    defects: list[Defect] = field(default_factory=list)
    unvouched: list[Defect] = field(default_factory=list)
    remarks: list[Defect] = field(default_factory=list)

    @property
    def is_vouched_for(self) -> bool:
        """Whether there is a log, and everything was held against something."""
        return bool(self.logs) and not self.defects and not self.unvouched


def verify(
    folder: Path,
    *,
    head: str | None = None,
    line: int | None = None,
    writer: str | None = None,
    restored: Collection[str] = (),
    wait: Callable[[float], None] = time.sleep,
) -> Verified:
    """Hold a --state-dir against its logs of changes; it may be in use.

    Args:
        head: the first hex digits, FEWEST_DIGITS at least, of a hash that was a log's head once.
        line: the number of the line that it was of.
        writer: whose log that was; None: anybody's.
        restored: patterns of streams whose older copies were brought back on purpose.
        wait: waits so many seconds, before what looks wrong is looked at again.

    Raises:
        OSError: something cannot be read.
    """

    def judged(before: Scan, scan: Scan, saved: list[SavedFile]) -> Verified:
        found = _judged(folder, before, scan, saved, restored)
        if head is not None:
            _look_for_head(found, head.lower(), line, writer)
        return found

    before = scanned(folder)
    for _ in range(LOOKS):
        saved = list(saved_files(folder))
        found = judged(before, before, saved)
        if not found.defects and not found.unvouched:
            break
        wait(AGAIN_SECONDS)
        after = scanned(folder)
        found = judged(before, after, saved)
        if not found.defects and not found.unvouched:
            break
        before = after
    return found


def _judged(
    folder: Path, before: Scan, scan: Scan, saved: list[SavedFile], restored: Collection[str]
) -> Verified:
    """Say what is not as it was written.

    Args:
        before: what the logs said before the files were looked at: those may be newer, never older.
        scan: what they say now.
    """
    found, of_files = Verified([*scan.logs.values()]), Verified([])
    right = [each for each in saved if _judge_file(each, before, scan, of_files, restored)]
    found.files = len(right)
    for log in found.logs:
        found.defects += log.defects
        found.remarks += log.remarks
        marks = (each.mark for each in right if each.mark and each.mark.writer == log.writer)
        vouched = max((mark.line for mark in marks), default=0)
        _hold_against_head(log, before, scan, vouched, found)
    found.defects += scan.defects
    found.remarks += scan.remarks
    found.unvouched += scan.unvouched
    for line, mark in scan.marks:
        if sentence := misses(scan, mark):
            sentence = f"{line.told.get('file')}, read here, was saved when {sentence}"
            found.defects.append(Defect(line.file, line.at, sentence))
    for doubt in scan.doubts:
        if doubt.mark is None or not misses(scan, doubt.mark):
            _settle(doubt, scan, found, restored)
    # Behind what is said of the log, of which they may be consequences.
    found.defects += of_files.defects
    found.remarks += of_files.remarks
    found.unvouched += of_files.unvouched
    _look_for_gone(folder, before, scan, saved, found)
    return found


def _judge_file(
    file: SavedFile, before: Scan, scan: Scan, found: Verified, restored: Collection[str]
) -> bool:
    """Say what is wrong with a saved stream; return whether it is as the log has it."""
    stream = stream_of(Path(file.name).name)
    if file.mark is not None and (sentence := misses(scan, file.mark)):
        sentence = f"{file.name} was saved when {sentence}"
        found.defects.append(Defect(file.name, 0, sentence))
    elif file.stream not in (None, stream):
        sentence = f"{file.name} is of another stream, {file.stream}."
        found.defects.append(Defect(file.name, 0, sentence))
    elif lies := before.doubt(file.name, file.sha256, file.mark):
        if lies.kind == "unknown" and file.name in scan.whose(file.sha256):
            return True  # saved since, and told by now
        _settle(lies, scan, found, restored)
    else:
        return True
    return False


def _hold_against_head(
    log: Chained, before: Scan, scan: Scan, vouched: int, found: Verified
) -> None:
    """Find what the head that lies beside a log has against it.

    Args:
        vouched: up to which line streams that are right know the log; their own lines follow.
    """
    name = Place(Path(), log.writer).head.name
    known = scan.heads.get(log.writer)
    last = before.logs[log.writer].last if log.writer in before.logs else 0
    into, sentence = found.defects, ""
    if log.writer not in scan.heads:
        # With its first line alone a log may have been killed before it had a head.
        sentence = f"{name} is not there." if log.last > 1 else ""
    elif known is None:
        sentence = f"{name} is damaged."
    elif known.line > log.last:
        end = f"ends at line {log.last:,}" if log.last else "is gone"
        sentence = f"The log was cut: {name} knows its line {known.line:,}, and it {end}."
    elif log.has(known.line, known.head) is False:
        sentence = f"Line {known.line:,} of the log is another than {name} knows."
    elif known.closed and log.last > known.line:
        sentence = f"Lines were added: the log was closed at line {known.line:,}, and goes on."
    elif last > known.line:
        into = found.unvouched
        sentence = (
            f"{name} names line {known.line:,} of a log that nobody has closed, and that has "
            f"{last:,}: {not_vouched_for(known.line, last, vouched)}"
        )
    if sentence:
        into.append(Defect(name, 0, sentence))


def _settle(doubt: Doubt, scan: Scan, found: Verified, restored: Collection[str]) -> None:
    """Say what a file is that is not its stream's last: wrong, or not vouched for."""
    name, latest, into = doubt.name, doubt.latest, found.defects
    was = name if doubt.reading is None else f"{name} was read, and"
    told = f"line {latest.line:,} of {log_of(latest.writer)}" if latest is not None else ""
    if doubt.kind == "removed":
        sentence = f"{was} is what {told} had removed."
        if scan.may_be_left(doubt):
            into = found.unvouched
    elif doubt.kind == "older":
        stream = stream_of(Path(name).name) or name
        last = f", by {told}" if told else ""
        sentence = f"{was} is an older copy of what was saved last{last}."
        if any(fnmatchcase(stream, each) for each in restored):
            into = found.remarks
            sentence = f"{sentence[:-1]}; it was named as restored."
    elif doubt.kind == "another":
        sentence = f"{was} is what was saved as {' and '.join(doubt.others[:3])}."
    elif sentence := _excuse(doubt, scan):
        into = found.unvouched
        sentence = f"{was} {sentence}"
    elif latest is None:
        sentence = f"{was} is nothing that the log has a line of, though it was there before."
    elif isinstance(latest, Removal):
        sentence = f"{was} is nothing that was saved: {told} tells that it was removed."
    else:
        sentence = f"{was} is not what was saved last, by {told}."
    place = (name, 0) if doubt.reading is None else (doubt.reading.file, doubt.reading.at)
    into.append(Defect(*place, sentence))


def _excuse(doubt: Doubt, scan: Scan) -> str:
    """Why no line may have the hash of a file that is right; "": no reason is known."""
    if scan.may_be_dropped(doubt):
        return "was saved by a line that was dropped, to make room; none has its hash."
    if gap := scan.gap_for(doubt):
        return f"has a hash that no line has: {gap} may have told of it."
    if doubt.mark is None and doubt.latest is None:
        return "is nothing that the log has a line of: it is older, or was put there."
    if scan.may_be_left(doubt):
        return "was saved just before a process ended unasked: no line has its hash."
    return ""


def _look_for_gone(
    folder: Path, before: Scan, scan: Scan, saved: list[SavedFile], found: Verified
) -> None:
    """Find the files that were saved, and are not there though no line tells that they went."""
    there = {each.name for each in saved}
    gone = [name for name in before.last if name not in there and scan.last.get(name)]
    apart: dict[str, int] = defaultdict(int)
    for name in gone:
        inside = Path(name).parent
        if not (folder / inside).is_dir():
            apart[str(inside)] += 1
            continue
        last = max(scan.last[name].values(), key=lambda each: each.time)
        removal = scan.removals.get(name)
        sentence = (
            f"{name} is not there; it was saved by line {last.line:,} of {log_of(last.writer)}."
        )
        into = found.defects
        if removal is not None and removal.writer != last.writer:
            if abs(last.time - removal.time) <= SKEW_SECONDS:
                sentence = f"{sentence[:-1]}, and removed by {removal.writer} about then."
                into = found.unvouched
        elif kept := _kept_aside(folder / name, last.sha256):
            sentence = f"{name} was set aside as {kept}, and a process ended before that was told."
            into = found.unvouched
        elif gap := scan.gap_behind(last):
            sentence = f"{sentence[:-1]}, and {gap} may have told that it went."
            into = found.unvouched
        into.append(Defect(name, 0, sentence))
    for inside_name, count in apart.items():
        sentence = f"{inside_name} is not there any more, with {count:,} saved streams."
        found.defects.append(Defect(inside_name, 0, sentence))


def _kept_aside(path: Path, sha256: str) -> str | None:
    """The name under which a file of this hash was set aside, if it was."""
    for kept in sorted(path.parent.glob(f"{path.stem}.rejected*")):
        if kept.is_file():
            with kept.open("rb") as file:
                if file_digest(file, "sha256").hexdigest() == sha256:
                    return kept.name
    return None


def _look_for_head(found: Verified, head: str, line: int | None, writer: str | None) -> None:
    """Find the line that had a hash once, in a writer's log or in any."""
    what = f"a hash that begins with {head}"
    logs = [log for log in found.logs if writer in (None, log.writer)]
    for log in logs:
        known = log.line_of(head) if line is None else line if log.has(line, head) else None
        if known is not None:
            sentence = f"line {known:,} of {log_of(log.writer)} has {what}."
            found.remarks.append(Defect("", 0, sentence))
            return
    into = found.defects
    whose = "No line has" if line is None else f"Line {line:,} has not"
    sentence = f"{whose} {what}: the log is another since, or cut."
    short = [log_of(log.writer) for log in logs if log.first > (1 if line is None else line)]
    if short:
        into = found.unvouched
        named = "name its number with --line" if line is None else "name whose it was with --writer"
        hint = f"; {named}" if line is None or len(logs) > 1 else ""
        sentence = (
            f"{whose} {what}, and older lines were dropped from {short[0]}, to make room{hint}."
        )
    into.append(Defect("", 0, sentence))
