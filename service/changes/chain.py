"""The log of changes as it is written, by one thread at a time: lines behind lines, file by file.

What is there is never written over, but for a last line that a crash tore: that is kept, as a text,
in the lines that take its place. What does not go on from its own head is told in a line `broken`,
what goes on where nobody had closed it in a line `went_on`, and so both stay seen.
"""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from service.changes.files import Place
from service.changes.lines import FORMAT, LINE, MOST_LINE_BYTES, TIME, decoded, digest, encoded
from service.schemas import ChangesHead, ChangesMark
from service.state_folder import set_aside
from ttc_core.state import sync_folder

# Of a line that a crash tore, so much is kept in a line: as a text it may be five times as long.
MOST_TORN_BYTES = 8192
MOST_HEAD_BYTES = 1024


class End(NamedTuple):
    """Where a file's last whole line ends.

    Attributes:
        line, head: that line's number and hash; 0 and None: there is none.
        size: bytes up to its end; torn: what stands behind, and has no end.
    """

    line: int
    head: str | None
    size: int
    torn: bytes


class Chain:
    """Appends to the log of one writer; it is opened by the first line, and by the first after a
    failure.

    Args:
        most_bytes: a file that has so many is full, and the next one goes on.
        most_files: files that are kept; of more, the oldest goes.

    Attributes:
        synced: the latest line that outlasts a power cut; until one was written, that of the head
            as it was found. None: there is none.
    """

    def __init__(self, place: Place, *, most_bytes: int, most_files: int) -> None:
        self._place, self._most_bytes, self._most_files = place, most_bytes, most_files
        self._file: int | None = None
        self._number = self._size = self._line = 0
        self._time = 0.0  # of what the log tells of itself
        self._head: str | None = None
        self.synced: ChangesMark | None = None
        with contextlib.suppress(OSError, ValueError):
            if known := read_head(place.head):
                self.synced = ChangesMark(writer=place.writer, line=known.line, head=known.head)

    @property
    def is_synced(self) -> bool:
        """Whether all lines outlast a power cut."""
        synced = 0 if self.synced is None else self.synced.line
        return self._file is None or self._line == synced

    def append(self, told: Sequence[Mapping[str, Any]]) -> None:
        """Put lines behind those that are there: all of them, or none.

        Args:
            told: `event`, `time` and whatever else there is to tell, of each.

        Raises:
            OSError: they cannot be written; what was there before is still whole.
        """
        if not told:
            return
        # What comes before the first of these is told as of its time: it may have waited.
        self._time = told[0][TIME]
        if self._file is None:
            self._open()
        elif not self._is_there():
            self._begin([_broken(self._taken_away())])
        if self._size >= self._most_bytes:
            self._rotate()
        self._put(told)

    def sync(self, *, closed: bool = False) -> None:
        """Make all lines outlast a power cut, and note the last as the head.

        Args:
            closed: none is to follow, before the log is opened again.

        Raises:
            OSError: they may not.
        """
        if self._file is None or self._head is None:
            return
        os.fsync(self._file)
        self.synced = ChangesMark(writer=self._place.writer, line=self._line, head=self._head)
        self._note_head(closed=closed)

    def close(self) -> None:
        """Give the file up; another may go on with it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> None:
        """Find the end of what is there, and mend it."""
        place = self._place
        place.folder.mkdir(parents=True, exist_ok=True)
        notes: list[dict[str, Any]] = []
        self._file = _descriptor(place.current)
        try:
            try:
                end = end_of(self._file)
                number = int(first_of(self._file)["file"]) if end.line else 0
            except (ValueError, KeyError, TypeError):
                aside = set_aside(place.current)
                what = f"{place.current.name} did not end in a line; it is {aside.name}"
                notes.append(_broken(what))
                self.close()
                self._file = _descriptor(place.current, is_new=True)
                end, number = End(0, None, 0, b""), 0
            # A number that a full file has already would have that file written over.
            number = max([number, *(each + 1 for each in place.kept())]) if end.line else 0
            self._number, self._size = number, end.size
            self._line, self._head = end.line, end.head
            if not end.line:
                notes += self._go_on_from_kept()
            for start in range(0, len(end.torn), MOST_TORN_BYTES):
                torn = end.torn[start : start + MOST_TORN_BYTES]
                text = torn.decode(errors="backslashreplace")
                notes.append(_told("mended", torn=text, bytes=len(torn)))
            notes += self._compared_with_head()
            if not end.line:
                self._number += 1
                notes.insert(0, self._first_line(self._number))
            self._put(notes, torn=end.torn)
            self.sync()  # from here on it is seen that the log was cut
            sync_folder(place.folder)
            self._drop()
        except BaseException:
            self.close()
            raise

    def _go_on_from_kept(self) -> list[dict[str, Any]]:
        """Go on from the last full file, where there is none that grows; what is wrong with it."""
        number, path = next(reversed(self._place.kept().items()), (0, None))
        self._number = number
        if path is None:
            return []
        try:
            with path.open("rb") as file:
                end = end_of(file.fileno())
        except ValueError:
            return [_broken(f"{path.name} does not end in a line")]
        self._line, self._head = end.line, end.head
        return [_broken(f"{path.name} does not end in a whole line")] if end.torn else []

    def _compared_with_head(self) -> list[dict[str, Any]]:
        """Hold what is there against its head, which is open from now on; what differs."""
        path = self._place.head
        try:
            known = read_head(path)
        except ValueError:
            return [_broken(f"{path.name} is damaged")]
        if known is None:
            # The first line alone may have been all before a kill.
            return [_broken(f"{path.name} is not there")] if self._line > 1 else []
        reason = None
        if known.line > self._line:
            reason = f"{path.name} knows line {known.line:,}; the log ended at {self._line:,}"
        elif known.line < self._line and known.closed:
            reason = f"the log was closed at line {known.line:,}, and went on to {self._line:,}"
        elif known.line == self._line and known.head != self._head:
            reason = f"line {self._line:,} is another than {path.name} knows"
        if reason is not None:
            # The head stays as it is until that is told: else a first write that fails, or a kill,
            # would leave nothing to tell it by.
            return [_broken(reason, known_line=known.line, known_head=known.head)]
        if known.closed:
            write_head(path, known.model_copy(update={"closed": False}))
            sync_folder(path.parent)  # lines that outlast it would look as if somebody added them
            return []
        return [_told("went_on", after=self._line, head_at=known.line)]

    def _taken_away(self) -> str:
        """What became of the file that grew; whatever lies in its place is set aside."""
        current = self._place.current
        what = f"{current.name} was taken away from its writer"
        if os.path.lexists(current):
            what = f"{what}; what lay in its place is {set_aside(current).name}"
        return what

    def _is_there(self) -> bool:
        """Whether the file that grows still is the one at hand: folders are deleted."""
        assert self._file is not None
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self._file), self._place.current.lstat())
        return False

    def _begin(self, notes: Sequence[Mapping[str, Any]] = ()) -> None:
        """Have another file go on, where none is; its first line names the one before, and holds
        its hash."""
        self.close()
        self._place.folder.mkdir(parents=True, exist_ok=True)
        number = max([self._number, *self._place.kept()]) + 1
        self._file, self._size = _descriptor(self._place.current, is_new=True), 0
        try:
            self._put([self._first_line(number), *notes])
            os.fsync(self._file)
            sync_folder(self._place.folder)
        except BaseException:
            self.close()
            raise
        self._number = number

    def _first_line(self, number: int) -> dict[str, Any]:
        """What the first line of the `number`-th file tells."""
        previous = self._place.full(number - 1).name if number > 1 else None
        about = {"format": FORMAT, "writer": self._place.writer, "file": number}
        return _told("file", **about, previous=previous)

    def _rotate(self) -> None:
        assert self._file is not None
        os.fsync(self._file)
        self._place.current.rename(self._place.full(self._number))
        self._begin()
        self._drop()

    def _drop(self) -> None:
        """Remove the oldest files beyond those that are kept, and tell it first."""
        kept = self._place.kept()
        for number in list(kept)[: max(0, len(kept) + 1 - self._most_files)]:
            path, last, first = kept[number], None, None
            with contextlib.suppress(ValueError), path.open("rb") as file:
                first, last = first_of(file.fileno()).get(LINE), end_of(file.fileno())
            about = {"first": first, "last": last.line, "head": last.head} if last else {}
            self._put([_told("dropped", file=number, name=path.name, **about)])
            self.sync()
            path.unlink()

    def _put(self, told: Sequence[Mapping[str, Any]], *, torn: bytes = b"") -> None:
        """Write lines behind the last, over what a crash has torn, which is put back if they cannot
        be."""
        assert self._file is not None
        data, line, head = bytearray(), self._line, self._head
        for each in told:
            line += 1
            text = encoded(line, head, {TIME: self._time, **each})
            head = digest(text)
            data += text + b"\n"
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._size + written)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
                os.pwrite(self._file, torn, self._size)
            raise
        if torn:
            os.ftruncate(self._file, self._size + len(data))  # it may have been longer
        self._size, self._line, self._head = self._size + len(data), line, head

    def _note_head(self, *, closed: bool) -> None:
        assert self._head is not None
        writer = self._place.writer
        head = ChangesHead(writer=writer, line=self._line, head=self._head, closed=closed)
        write_head(self._place.head, head)


def end_of(descriptor: int) -> End:
    """Find where a file's last whole line ends.

    Raises:
        ValueError: that is no line of the log, or there is none among so many bytes.
    """
    size = os.fstat(descriptor).st_size
    start = max(0, size - 2 * MOST_LINE_BYTES)
    whole, newline, torn = os.pread(descriptor, size - start, start).rpartition(b"\n")
    if not newline:
        if start:
            raise ValueError("it does not end in a line")
        return End(0, None, 0, torn)
    last = whole.rpartition(b"\n")[2]
    return End(decoded(last)[LINE], digest(last), size - len(torn), torn)


def first_of(descriptor: int) -> dict[str, Any]:
    """What the first line of a file tells.

    Raises:
        ValueError: it is no line that begins a file of the log.
    """
    first = decoded(os.pread(descriptor, MOST_LINE_BYTES + 1, 0).partition(b"\n")[0])
    if first["event"] != "file" or first.get("format") != FORMAT:
        raise ValueError("it does not begin as a file of the log")
    return first


def read_head(path: Path) -> ChangesHead | None:
    """Read which line was the last that was on disk; None: there is no such file.

    Raises:
        ValueError: it says nothing that can be read.
        OSError: the system does not let it be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        text = file.read(MOST_HEAD_BYTES)
    try:
        return ChangesHead.model_validate_json(text)
    except ValidationError:
        raise ValueError("it is damaged") from None


def write_head(path: Path, head: ChangesHead) -> None:
    """Replace what `read_head` reads, whole or not at all."""
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("w") as file:
        file.write(json.dumps(head.model_dump(), sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave an empty file of that name
    unfinished.replace(path)


def _descriptor(path: Path, *, is_new: bool = False) -> int:
    """Open a file that grows, or make it; whatever else has its name is left alone.

    Args:
        is_new: there is none of that name, or it is an error.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_EXCL if is_new else 0)
    descriptor = os.open(path, flags, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return descriptor


def _told(event: str, **fields: Any) -> dict[str, Any]:
    """What the log tells of itself; its time is that of the line that it comes before."""
    return {"event": event, **fields}


def _broken(reason: str, **fields: Any) -> dict[str, Any]:
    return _told("broken", reason=reason, **fields)
