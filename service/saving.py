"""What is saved of streams: what has changed since, what is on its way to its file, the files.

What is to be saved crosses threads as a snapshot: the device thread takes it between two batches,
another encodes and writes it. A snapshot that something newer of its stream has overtaken, another
one or a reset, is not written any more. Knows no table: a stream may be in it or not.
"""

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from service.changes.changes import Changes
from service.events import Events
from service.kept import bring_back, kept_of, to_keep
from service.leases import LeaseLost
from service.metrics import Metrics
from service.schemas import Discarded, KeptOfStream
from service.seen_files import SeenFiles
from service.state_folder import StateFolder
from service.stream_record import StreamRecord, state_bytes
from service.told_files import ToldFiles, tell_removed
from service.truth import Truth
from ttc_core.errors import UserError
from ttc_core.guard import Unwatched, mode_of, watching
from ttc_core.methods import Method
from ttc_core.methods.contract import State
from ttc_core.state_file import StateError, StateUnreadable

# After a file that could not be written no other is tried for so long, but in the background.
RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Snapshot:
    """A stream as it was between two batches, on its way to its file.

    Attributes:
        record: the stream itself; it may have gone on since, if somebody else has it too.
        state: the method's; kept: what else is in the file.
        since: when the oldest change came that no file has.
        version: optimizer steps that are in it.
    """

    record: StreamRecord
    version: int
    state: State
    kept: KeptOfStream
    since: float


class Saving:
    """The saved streams and those on their way there.

    `load` and `snapshot` are for the device thread alone; whoever writes or removes waits for the
    disk, and may be any thread but that one.

    Args:
        source: a method at the source.
        folder: where streams are saved, or None.
        truth: what labels say of the streams; it is in their files.
        changes: where it stands what was written, read and removed.

    Attributes:
        changes: the same.
        source: streams are forked from it; with a folder it keeps what a guard had in saved
            streams, where none is on.
        failing: the last file could not be written; none is given up for another before one was.
        answers_from: the number of the latest answer that other weights gave before: what labels
            say of those up to it is nothing to the streams of these.
    """

    def __init__(
        self,
        source: Method,
        folder: StateFolder | None,
        events: Events,
        metrics: Metrics,
        truth: Truth,
        changes: Changes,
    ) -> None:
        is_unwatched = folder is not None and mode_of(source) == "off"
        self.source: Method = Unwatched(source) if is_unwatched else source
        self.answers_from = 0
        self._events, self._metrics, self._truth = events, metrics, truth
        self.changes = changes
        self._files = None if folder is None else ToldFiles(folder, changes)
        # Since when what is not in its file, by stream; and what is on its way there.
        self._changed: dict[str, float] = {}
        self._leaving: dict[str, Snapshot] = {}
        self.failing = False
        # Until when no file is tried for a newcomer's sake: the last could not be written.
        self._retry_at = 0.0
        # Reset, but their files are still there, or the folder would not let go of them.
        self._undead: set[str] = set()
        self._seen = SeenFiles()
        self.fresh_bytes = state_bytes(source)
        # Held for moments; the other while a file of the folder is written, moved or removed.
        self._lock, self._writing = threading.Lock(), threading.Lock()

    @property
    def folder(self) -> StateFolder | None:
        """Where streams are saved."""
        return None if self._files is None else self._files.folder

    @property
    def takes(self) -> bool:
        """Whether it is worth a try to write to the folder."""
        is_full = time.monotonic() < self._retry_at
        return self.folder is not None and self.folder.problem is None and not is_full

    def note_change(self, name: str) -> None:
        """What belongs to a stream is not as its file has it, if there is a folder for files."""
        if self.folder is not None:
            with self._lock:
                self._changed.setdefault(name, time.monotonic())

    def drop_change(self, name: str) -> None:
        """There is nothing of a stream to be saved."""
        with self._lock:
            self._changed.pop(name, None)
            self._leaving.pop(name, None)

    def unsaved(self) -> dict[str, float]:
        """Since when each stream has changed that no file has it of; `time.monotonic`."""
        with self._lock:
            leaving = {name: snapshot.since for name, snapshot in self._leaving.items()}
            return {**self._changed, **leaving}

    def is_unsaved(self, name: str) -> bool:
        """Whether a stream has changed, and no file has it."""
        with self._lock:
            return name in self._changed or name in self._leaving

    @property
    def unsaved_streams(self) -> int:
        """How many streams have changed since their file was written; 0 without a folder."""
        return len(self.unsaved())

    @property
    def unsaved_age(self) -> float:
        """Seconds since the oldest change that no file has; 0 for none."""
        now = time.monotonic()
        return now - min(self.unsaved().values(), default=now)

    def to_save(self, older_than: float, records: Mapping[str, StreamRecord]) -> deque[str]:
        """The streams that have changed for so many seconds, and those whose file has gone.

        Those that could not be saved before come last.
        """
        if self.folder is None:
            return deque()
        unsaved, limit = self.unsaved(), time.monotonic() - older_than
        due = [name for name, since in unsaved.items() if since <= limit]
        others = [each for each in records.items() if each[0] not in unsaved]
        return deque(due + [name for name, record in others if not self.is_saved(name, record)])

    def is_saved(self, name: str, record: StreamRecord) -> bool:
        """Whether a stream's file has all of it."""
        file = None if self.folder is None else self.folder.identity(name)
        return file is not None and file == record.file and not self.is_unsaved(name)

    def leaving(self) -> dict[str, StreamRecord]:
        """The streams on their way to their file, as long as they are not there; a copy."""
        with self._lock:
            return {name: snapshot.record for name, snapshot in self._leaving.items()}

    def on_its_way(self, name: str) -> StreamRecord | None:
        """The stream on its way to its file, as long as it is not there."""
        with self._lock:
            snapshot = self._leaving.get(name)
            return None if snapshot is None else snapshot.record

    def is_leaving(self, name: str) -> bool:
        """Whether all of a stream is on its way."""
        with self._lock:
            return name in self._leaving and name not in self._changed

    def names(self) -> set[str]:
        """The streams with a file that counts. Reads the folder."""
        return set() if self.folder is None else {*self.folder.names()} - self._undead

    def size(self, name: str) -> int:
        """Bytes of a stream's file; 0: there is none that counts."""
        return 0 if self.folder is None or name in self._undead else self.folder.size(name)

    def snapshots(self, name: str) -> dict[int, int] | None:
        """The versions that a stream's file has snapshots of, and after how many images each was.

        The stream is not loaded. None: there is no file that counts.

        Raises:
            StateError: it is none of this stream's.
        """
        if self.folder is None or self.size(name) == 0:
            return None
        return self.folder.snapshots(name, self.source)

    def doubted(self) -> dict[str, KeptOfStream]:
        """Of the streams with a file, or on their way there, that a guard would have the source
        answer, what it keeps; a copy. None without a guard.

        Those are known that were written since the start, or that `look_at` has seen.
        """
        if "guard" not in watching(self.source):
            return {}
        with self._lock:
            files = self._seen.doubted
            found = {name: each for name, each in files.items() if name not in self._undead}
            found |= {name: snapshot.kept for name, snapshot in self._leaving.items()}
        return {name: each for name, each in found.items() if each.doubted_since is not None}

    def unfit(self) -> Counter[str]:
        """How many of the files that `look_at` has seen will be set aside, by why."""
        with self._lock:
            unfit = self._seen.unfit
            return Counter(why for name, why in unfit.items() if name not in self._undead)

    # On the device thread

    def load(self, name: str, *, pinned: bool) -> StreamRecord:
        """Make a stream as it was saved, or at the source where nothing fitting was.

        Args:
            pinned: somebody needs its place: what lies there and is no state goes out of the way.
        """
        record = self._at_source()
        if self._files is None or name in self._undead:
            return record
        try:
            found = self._files.folder.load(name, record.method)
            if found is None:
                self._seen.note(name, None)
                return record
            saved = kept_of(name, found[1].of_stream)
            bring_back(record, saved)
            record.take_note()
        except Exception as error:  # a user's own method may raise anything
            self._reject(name, error, pinned)
            return self._at_source()
        record.restored, record.file = True, found[0]
        self._truth.take_up(name, record.truth)
        before = min(saved.answers_from, record.answers_from)
        record.answers_from = max(before, self.answers_from)
        record.bytes = state_bytes(record.method)
        self._files.tell_loaded(name, found[1], saved, record)
        self._events.note_repeated("restored", stream=name)
        return record

    def _at_source(self) -> StreamRecord:
        method = self.source.fork()
        return StreamRecord(
            method,
            bytes=self.fresh_bytes,
            answers_from=self._truth.newest,
            details=method.details,
        )

    def _reject(self, name: str, why: Exception, pinned: bool) -> None:
        """Put what is no state of the stream out of its way, if that can be told and done."""
        assert self._files is not None
        # What could not be read or taken up may be good: it is left until the place is needed.
        is_none = isinstance(why, StateError) and not isinstance(why, StateUnreadable)
        if is_none:
            self._seen.note_unfit(name, why)
        if not pinned:  # asked about, and forgotten with the answer
            self._events.note_repeated(
                "rejected", level=logging.WARNING, stream=name, reason=_reason(why)
            )
            return
        where = "stays where it is"
        if is_none:
            try:
                with self._writing:
                    where = f"is now {self._files.set_aside(name, _reason(why))}"
                    self._seen.note(name, None)
            except (OSError, UserError) as error:
                where = f"stays where it is ({_reason(error)})"
        self._events.note(
            "rejected",
            message=f"stream {name} starts at the source; its saved state {where}",
            level=logging.WARNING,
            stream=name,
            reason=_reason(why),
        )

    def snapshot(self, name: str, record: StreamRecord) -> bool:
        """Have what there is to save of a stream wait for `write`; return whether it can tell."""
        try:
            state = record.method.state()
        except Exception as error:  # a user's own method may raise anything
            self._not_saved(name, error)
            return False
        with self._lock:  # a label is counted and noted before, or noted again behind
            record.truth = self._truth.take_up(name, record.truth, saving=True)
            kept = to_keep(name, record)
            since = self._changed.pop(name, time.monotonic())
            if name in self._leaving:
                since = self._leaving[name].since
            self._leaving[name] = Snapshot(record, record.version, state, kept, since)
        return True

    def let_go(self, name: str) -> None:
        """Know nothing of a stream any more: another process has it, and its file."""
        self.drop_change(name)
        self._seen.note(name, None)
        with self._lock:
            self._undead.discard(name)

    def is_undead(self, name: str) -> bool:
        """Whether a stream was reset, and its file is still there."""
        return name in self._undead

    def disown(self, name: str) -> None:
        """Have nothing of another process's stream wait to be saved: that one saves it."""
        self.drop_change(name)
        self._truth.give_up(name)

    def forget(self, name: str) -> None:
        """What is saved of a stream counts no more; `remove` is to follow, in any thread."""
        self.drop_change(name)
        if self.folder is not None:
            self._undead.add(name)

    # Files, from any other thread

    def look_at(self, name: str) -> None:
        """Learn from a stream's file whether it is doubted, or fits, without loading the stream.

        A file that cannot be read is told of when it is loaded.
        """
        if self.folder is None:
            return
        with self._writing, contextlib.suppress(StateUnreadable):
            if self.folder.identity(name) is None:
                return  # it was reset, or set aside, meanwhile
            try:
                self._seen.note(name, kept_of(name, self.folder.of_stream(name, self.source)))
            except StateUnreadable:
                raise
            except StateError as error:
                self._seen.note_unfit(name, error)

    def write(self, name: str) -> bool:
        """Write what waits of a stream, the latest only; return whether its file has it then.

        What could not be written goes on waiting, until `give_up`.
        """
        assert self._files is not None
        while (snapshot := self._leaving.get(name)) is not None:
            record = snapshot.record
            try:
                with self._writing:
                    if self._leaving.get(name) is not snapshot:
                        continue
                    is_ours = name in self._undead  # and to be removed, or written over
                    if not is_ours and (kept := self._files.make_way(name, record.file)):
                        self._events.note(
                            "set_aside",
                            message=f"what lay in the place of stream {name} is now {kept}",
                            level=logging.WARNING,
                            stream=name,
                        )
                    record.file = self._files.save(
                        name, record.method, snapshot.state, snapshot.kept, snapshot.version
                    )
                    self._retry_at, self.failing, record.failed = 0.0, False, False
                    self._seen.note(name, snapshot.kept)
                    with self._lock:
                        if self._leaving.get(name) is snapshot:
                            del self._leaving[name]
                            self._undead.discard(name)
            except LeaseLost as error:
                self.drop_change(name)  # whoever has it goes on with it
                self._not_saved(name, error)
                return False
            except Exception as error:  # a user's own method may hold anything
                if isinstance(error, OSError):
                    self._retry_at = time.monotonic() + RETRY_SECONDS
                self.failing = record.failed = True
                self._not_saved(name, error)
                return False
            self._metrics.saves.labels("saved").inc()
        return True

    def give_up(self, name: str) -> StreamRecord | None:
        """A stream that could not be written waits for another try; return it, unless forgotten."""
        with self._lock:
            snapshot = self._leaving.pop(name, None)
            if snapshot is None:
                return None
            self._changed.pop(name, None)
            self._changed[name] = snapshot.since
            return snapshot.record

    def _not_saved(self, name: str, error: Exception) -> None:
        self._metrics.saves.labels("failed").inc()
        self._events.note_repeated(
            "not_saved", level=logging.ERROR, stream=name, reason=_reason(error)
        )

    def remove(
        self, names: Iterable[str] | None = None
    ) -> tuple[dict[str, Discarded], dict[str, str]]:
        """Remove what is saved of streams that were forgotten; another thread's writing goes on.

        Args:
            names: None: all whose file is still there.

        Returns:
            By stream: what was removed, and why it could not be. That is not taken up any more,
            but another process would.
        """
        discarded: dict[str, Discarded] = {}
        kept: dict[str, str] = {}
        files = self._files
        if files is None:
            return discarded, kept
        asked = [*(self._undead if names is None else names)]
        found = {name: files.holds(name, self.source) for name in asked}
        whole = [name for name, what in found.items() if what is not None]
        tell_removed(self.changes, [(name, files.folder.place(name)) for name in whole])
        for name, what in found.items():
            remove: Callable[[str], object] = files.folder.remove
            if what is None:
                remove = partial(files.set_aside, why="it was reset")
            with self._writing:
                if name not in self._undead:
                    continue  # it has been saved since
                try:
                    with contextlib.suppress(FileNotFoundError):
                        remove(name)
                        discarded[name] = what or Discarded()
                    self._seen.note(name, None)
                    with self._lock:
                        self._undead.discard(name)
                except (OSError, UserError) as error:
                    kept[name] = _reason(error)
        files.folder.sync()
        return discarded, kept


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
