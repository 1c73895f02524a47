"""The table of streams: which are in memory, which are pinned, which make room for others.

Places are taken on the event loop, when a request arrives; method objects are made, loaded and
dropped on the device thread. With a state folder a stream that is not in memory comes back when it
is asked for, and the least recently used is saved and makes room. Without one, what has adapted is
not thrown away for another's sake before it has been idle for `expiry`.

What is to be saved crosses threads as a snapshot: the device thread takes it between two batches,
another encodes and writes it. A snapshot that something newer of its stream has overtaken, another
one or a reset, is not written any more.
"""

import contextlib
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from service.errors import TooManyStreams
from service.events import Events
from service.metrics import Metrics
from service.schemas import StreamTruth
from service.state_folder import Identity, StateFolder
from service.truth import Truth
from ttc_core.errors import UserError
from ttc_core.methods import Method
from ttc_core.methods.contract import State
from ttc_core.state import StateError, StateUnreadable, size_bytes

# Streams that cannot be saved one after another: then it is the folder, and all will fail.
MOST_FAILURES = 3
# After a file that could not be written no other is tried for so long, but in the background.
RETRY_SECONDS = 1.0
# For how long the device thread takes snapshots before a batch may come between.
SNAPSHOT_SECONDS = 0.002
MOST_SNAPSHOTS = 16


@dataclass
class StreamRecord:
    """A stream: its method object, and what others may read of it from any thread."""

    method: Method
    images: int = 0
    batches: int = 0
    version: int = 0
    pending_batches: int = 0
    drift: float = 0.0
    restored: bool = False
    # Bytes of its state when it was last measured, and the batches at which it will be again.
    bytes: int = 0
    measure_at: int = 0
    used: float = field(default_factory=time.monotonic)
    # The file that it was read from or written to; another in its place is not written over.
    file: Identity | None = None
    # What labels say, as the file has it.
    truth: StreamTruth = field(default_factory=StreamTruth)

    @property
    def is_new(self) -> bool:
        """Whether it is at the source because nothing has moved it yet."""
        return not self.restored and self.batches == 0

    def take_note(self) -> None:
        """Publish where the method stands."""
        self.version = self.method.version
        self.pending_batches = self.method.pending_batches
        self.drift = self.method.drift


@dataclass(frozen=True)
class Snapshot:
    """A stream as it was between two batches, on its way to its file.

    Attributes:
        state: the method's; of_stream: what else is in the file.
        since: when the oldest change came that no file has.
    """

    name: str
    record: StreamRecord
    state: State
    of_stream: dict[str, int]
    since: float


class Streams:
    """The streams in memory, by name, in the order of their last use; those saved behind them.

    At no time are more than `most` in memory. Methods that read or drop a method object are for
    the device thread alone; they stand below that line.

    Args:
        source: a method at the source; streams are forked from it.
        folder: where streams are saved, or None.
        truth: what labels say of the streams; it is in their files.
        most: streams that may be in memory at once.
        most_bytes: bytes that their states may take together; a lone stream may take more.
        expiry: seconds without an image after which a stream that cannot be saved makes room.
    """

    def __init__(
        self,
        source: Method,
        folder: StateFolder | None,
        events: Events,
        metrics: Metrics,
        truth: Truth,
        *,
        most: int,
        most_bytes: int,
        expiry: float,
    ) -> None:
        self._source, self._folder = source, folder
        self._events, self._metrics, self._truth = events, metrics, truth
        self._most, self._most_bytes, self._expiry = most, most_bytes, expiry
        self._records: dict[str, StreamRecord] = {}
        # Answering their first images, as long as somebody has them; `keep` puts them in the table.
        self._new: WeakValueDictionary[str, StreamRecord] = WeakValueDictionary()
        self._pins: Counter[str] = Counter()
        # What `admit` was told last for a stream that was not in memory.
        self._wait = 1.0
        # Since when what is not in its file, by stream; and what is on its way there.
        self._changed: dict[str, float] = {}
        self._leaving: dict[str, Snapshot] = {}
        # Until when no file is tried for a newcomer's sake: the last could not be written.
        self._retry_at = 0.0
        # Reset, but their files are still there, or the folder would not let go of them.
        self._undead: set[str] = set()
        self._fresh_bytes = _state_bytes(source)
        # Held for moments; the other while a file of the folder is written, moved or removed.
        self._lock, self._writing = threading.Lock(), threading.Lock()

    @property
    def records(self) -> dict[str, StreamRecord]:
        """The streams in memory; a copy."""
        with self._lock:
            return dict(self._records)

    @property
    def bytes(self) -> int:
        """Bytes of the states in memory."""
        return sum(record.bytes for record in self.records.values())

    def saved(self) -> int:
        """How many streams are on disk only. Reads the folder."""
        return len(self._on_disk() - self.records.keys())

    def names(self, *, saved: bool = True) -> list[str]:
        """All streams: in memory, answering their first images, saved or without those."""
        on_disk = sorted(self._on_disk()) if saved else ()
        # Not dict(self._new), which other threads may change meanwhile.
        new = {reference.key: None for reference in self._new.valuerefs() if reference()}
        return list(self.records | new | dict.fromkeys(on_disk))

    def __contains__(self, name: str) -> bool:
        """Whether a stream is in memory or saved."""
        return name in self._records or (name not in self._undead and self._is_on_disk(name))

    # Places

    def admit(self, name: str, wait: Callable[[], float]) -> None:
        """Take a place for a request of a stream, and pin the stream until `release`.

        Args:
            wait: tells the seconds in which the requests in flight will have been answered.

        Raises:
            TooManyStreams: it has no place and nobody makes room; `retry_after` says when the
                first may.
        """
        with self._lock:
            if not self._has_room(name):
                raise self._refusal(name, wait(), saves=self._saves)
            if name not in self._records:
                self._wait = wait()
            self._pins[name] += 1

    def release(self, name: str) -> None:
        """Give the place of a request back."""
        with self._lock:
            self._pins[name] -= 1
            if self._pins[name] <= 0:
                del self._pins[name]

    def note_change(self, name: str) -> None:
        """What belongs to a stream is not as its file has it, if there is a folder for files."""
        if self._folder is not None:
            with self._lock:
                self._changed.setdefault(name, time.monotonic())

    def unsaved(self) -> dict[str, float]:
        """Since when each stream has changed that no file has it of; `time.monotonic`."""
        with self._lock:
            leaving = {name: snapshot.since for name, snapshot in self._leaving.items()}
            return {**self._changed, **leaving}

    @property
    def unsaved_age(self) -> float:
        """Seconds since the oldest change that no file has; 0 for none."""
        now = time.monotonic()
        return now - min(self.unsaved().values(), default=now)

    def _has_room(self, name: str) -> bool:
        records = self._records
        if name in records or name in self._pins:
            return True
        reserved = {name, *self._pins} - records.keys()
        total = sum(record.bytes for record in records.values())
        if self._fits(len(records) + len(reserved), total + self._fresh_bytes * len(reserved)):
            return True
        staying = [
            record
            for other, record in records.items()
            if other in self._pins or not self._may_go(other, record)
        ]
        total = sum(record.bytes for record in staying) + self._fresh_bytes * len(reserved)
        return self._fits(len(staying) + len(reserved), total)

    def _fits(self, count: int, total_bytes: int) -> bool:
        return count <= self._most and (total_bytes <= self._most_bytes or count == 1)

    def _may_go(self, name: str, record: StreamRecord) -> bool:
        idle = time.monotonic() - record.used
        return self._saves or idle >= self._expiry or self._is_saved(name, record)

    @property
    def _saves(self) -> bool:
        """Whether the folder takes files, as far as is known."""
        is_full = time.monotonic() < self._retry_at
        return self._folder is not None and self._folder.problem is None and not is_full

    def _refusal(self, refused: str, wait: float, *, saves: bool) -> TooManyStreams:
        seconds = max(1.0, math.ceil(wait if saves else self._time_to_room(refused, wait)))
        count = len((self._records.keys() | self._pins.keys()) - {refused})
        total = sum(record.bytes for record in self._records.values())
        held = (
            f"There are {self._most:,} streams already, the most that are kept"
            if count >= self._most
            else f"The {count:,} streams take {total:,} of the {self._most_bytes:,} bytes for them"
        )
        until = f"those idle for {self._expiry:g} s make room"
        if self._folder is not None:
            until = "all are in use" if saves else f"none can be saved now, {until}"
        return TooManyStreams(
            f"{held}; {until}, enough in {seconds:,.0f} s. Use one of them, or reset one.",
            retry_after=seconds,
        )

    def _time_to_room(self, name: str, wait: float) -> float:
        """Seconds until so many streams may have gone that another has room; with no folder."""
        now, records = time.monotonic(), self._records
        leaving = sorted(
            (
                wait + self._expiry if other in self._pins else record.used + self._expiry - now,
                other,
            )
            for other, record in records.items()
        )
        reserved = len({name, *self._pins} - records.keys())
        count, total = len(records) + reserved, self._fresh_bytes * reserved
        total += sum(record.bytes for record in records.values())
        for seconds, other in leaving:
            count, total = count - 1, total - records[other].bytes
            if self._fits(count, total):
                return seconds
        return wait + self._expiry

    # On the device thread

    def get(self, name: str) -> StreamRecord:
        """The stream in memory; else as it was saved, else at the source, until `keep` for now.

        Raises:
            TooManyStreams: it has been admitted, yet nobody makes room for it.
        """
        record = self._records.get(name) or self._new.get(name)
        if record is not None:
            return record
        size = 0 if self._folder is None else self._folder.size(name)
        if self._pins[name] and not self._make_room(name, max(self._fresh_bytes, size)):
            with self._lock:
                raise self._refusal(name, self._wait, saves=self._saves)
        leaving = self._leaving.get(name)
        record = self._new[name] = self.load(name) if leaving is None else leaving.record
        return record

    def is_current(self, name: str, record: StreamRecord) -> bool:
        """Whether what `get` gave is still the stream; not after `forget`."""
        return (self._records.get(name) or self._new.get(name)) is record

    def keep(self, name: str, record: StreamRecord) -> bool:
        """Keep what `get` gave, as the last that was of use.

        Returns:
            Whether it may learn: a stream whose request has left may have no place, and what all
            have learned may fill the bytes there are.
        """
        is_new = name not in self._records
        fits = self._make_room(name, record.bytes if is_new else 0)
        if is_new and not fits:
            return False
        with self._lock:
            self._records.pop(name, None)
            self._records[name] = record
        self._new.pop(name, None)
        record.used = time.monotonic()
        return fits

    def load(self, name: str) -> StreamRecord:
        """Make a stream as it was saved, or at the source where nothing fitting was."""
        record = StreamRecord(self._source.fork(), bytes=self._fresh_bytes)
        if self._folder is None or name in self._undead:
            return record
        try:
            found = self._folder.load(name, record.method)
        except Exception as error:  # a user's own method may raise anything
            record.method = self._source.fork()
            self._reject(name, error)
            return record
        if found is None:
            return record
        record.restored, (record.file, saved) = True, found
        record.images, record.batches = saved.get("images", 0), saved.get("batches", 0)
        record.truth = StreamTruth(**{key: saved.get(key, 0) for key in StreamTruth.model_fields})
        self._truth.take_up(name, record.truth)
        record.take_note()
        record.bytes = _state_bytes(record.method)
        self._events.note_repeated("restored", stream=name)
        return record

    def _reject(self, name: str, why: Exception) -> None:
        """Put what is no state of the stream out of its way, if that can be told and done."""
        assert self._folder is not None
        if not self._pins[name]:  # asked about, and forgotten with the answer
            self._events.note_repeated(
                "rejected", level=logging.WARNING, stream=name, reason=_reason(why)
            )
            return
        where = "stays where it is"
        # What could not be read or taken up may be good: it is left until the place is needed.
        if isinstance(why, StateError) and not isinstance(why, StateUnreadable):
            try:
                with self._writing:
                    where = f"is now {self._folder.set_aside(name)}"
            except (OSError, UserError) as error:
                where = f"stays where it is ({_reason(error)})"
        self._events.note(
            "rejected",
            message=f"stream {name} starts at the source; its saved state {where}",
            level=logging.WARNING,
            stream=name,
            reason=_reason(why),
        )

    def _make_room(self, name: str, size: int) -> bool:
        """Let others go until a stream has `size` bytes more; return whether it has."""
        count = len(self._records) + (name not in self._records)
        total = self.bytes + size
        failures = 0
        for other, record in list(self._records.items()):
            if self._fits(count, total):
                return True
            if other == name or self._pins[other]:
                continue
            if self.evict(other):
                count, total = count - 1, total - record.bytes
            elif (failures := failures + 1) == MOST_FAILURES:
                break
        return self._fits(count, total)

    def evict(self, name: str) -> bool:
        """Save a stream and take it out of memory; return whether it went.

        One that cannot be saved goes if it has been idle for long enough, one that was asked for
        meanwhile stays.
        """
        record = self._records[name]
        saved = self._is_saved(name, record) or (self._saves and self._save(name, record))
        expired = time.monotonic() - record.used >= self._expiry
        with self._lock:
            if self._pins[name] or not (saved or expired):
                return False
            del self._records[name]
            if not saved:
                self._changed.pop(name, None)
        reason = "saved" if saved else "expired"
        self._metrics.evicted.labels(reason).inc()
        self._events.note_repeated("evicted", stream=name, reason=reason)
        return True

    def measure(self, name: str) -> None:
        """Look at a stream after a batch: one that grew may take others' places."""
        record = self._records[name]
        if record.batches >= record.measure_at:
            # Ever more rarely: what grows with every batch is seen before it is an eighth larger.
            record.measure_at = record.batches + 1 + record.batches // 8
            record.bytes = _state_bytes(record.method)
            self._make_room(name, 0)

    def forget(self, names: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Put streams back to the source; what is saved of them counts no more.

        `remove` is to follow, in any thread.

        Returns:
            The steps and pending batches that were thrown away, of those that were in memory.
        """
        discarded = {}
        with self._lock:
            for name in names:
                self._new.pop(name, None)
                record = self._records.pop(name, None)
                self._changed.pop(name, None)
                self._leaving.pop(name, None)
                if record is not None:
                    discarded[name] = record.version, record.pending_batches
                if self._folder is not None:
                    self._undead.add(name)
        return discarded

    def snapshots(self, names: deque[str]) -> list[Snapshot]:
        """Take from `names`, from the left, what can be told of streams in SNAPSHOT_SECONDS."""
        taken: list[Snapshot] = []
        end = time.monotonic() + SNAPSHOT_SECONDS
        while names and len(taken) < MOST_SNAPSHOTS and (not taken or time.monotonic() < end):
            name = names.popleft()
            record = self._records.get(name)
            if record is None and self._is_on_disk(name) and name not in self._undead:
                # Labels came for what is on disk only, or is answering its first images.
                record = self._new.get(name) or self.load(name)
                record = record if record.restored else None
            if record is not None:
                snapshot = self._snapshot(name, record)
                taken += [snapshot] if snapshot is not None else []
            else:
                with self._lock:
                    self._changed.pop(name, None)
        return taken

    def _snapshot(self, name: str, record: StreamRecord) -> Snapshot | None:
        """What there is to save of a stream; None: it cannot tell."""
        try:
            state = record.method.state()
        except Exception as error:  # a user's own method may raise anything
            self._not_saved(name, error)
            return None
        truth = record.truth = self._truth.take_up(name, record.truth, saving=True)
        counts = {"images": record.images, "batches": record.batches, **truth.model_dump()}
        with self._lock:
            since = self._changed.pop(name, time.monotonic())
            if name in self._leaving:
                since = self._leaving[name].since
            self._leaving[name] = Snapshot(name, record, state, counts, since)
            return self._leaving[name]

    def _save(self, name: str, record: StreamRecord) -> bool:
        snapshot = self._snapshot(name, record)
        return snapshot is not None and self.write(snapshot)

    # Files, from any thread

    def to_save(self, older_than: float) -> deque[str]:
        """The streams that have changed for so many seconds, and those whose file has gone.

        Those that could not be saved before come last.
        """
        if self._folder is None:
            return deque()
        unsaved, limit = self.unsaved(), time.monotonic() - older_than
        due = [name for name, since in unsaved.items() if since <= limit]
        others = [each for each in self.records.items() if each[0] not in unsaved]
        return deque(due + [name for name, record in others if not self._is_saved(name, record)])

    def write(self, snapshot: Snapshot) -> bool:
        """Write what has not been overtaken; return whether its stream is saved then."""
        assert self._folder is not None
        name, record = snapshot.name, snapshot.record
        try:
            with self._writing:
                if self._leaving.get(name) is not snapshot:
                    return True
                is_ours = name in self._undead  # and to be removed, or written over
                if not is_ours and (kept := self._folder.make_way(name, record.file)):
                    self._events.note(
                        "set_aside",
                        message=f"what lay in the place of stream {name} is now {kept}",
                        level=logging.WARNING,
                        stream=name,
                    )
                record.file = self._folder.save(
                    name, record.method, snapshot.state, snapshot.of_stream
                )
                self._retry_at = 0.0
                with self._lock:
                    if self._leaving.get(name) is snapshot:
                        del self._leaving[name]
                        self._undead.discard(name)
        except Exception as error:  # a user's own method may hold anything
            if isinstance(error, OSError):
                self._retry_at = time.monotonic() + RETRY_SECONDS
            with self._lock:
                if self._leaving.get(name) is snapshot:
                    del self._leaving[name]
                    self._changed.pop(name, None)
                    self._changed[name] = snapshot.since
            self._not_saved(name, error)
            return False
        self._metrics.saves.labels("saved").inc()
        return True

    def _not_saved(self, name: str, error: Exception) -> None:
        self._metrics.saves.labels("failed").inc()
        self._events.note_repeated(
            "not_saved", level=logging.ERROR, stream=name, reason=_reason(error)
        )

    def remove(
        self, names: Iterable[str] | None = None
    ) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
        """Remove what is saved of streams that were forgotten; another thread's writing goes on.

        Args:
            names: None: all whose file is still there.

        Returns:
            By stream: the steps and pending batches of what was removed, and why it could not be.
            That is not taken up any more, but another process would.
        """
        discarded: dict[str, tuple[int, int]] = {}
        kept: dict[str, str] = {}
        if self._folder is None:
            return discarded, kept
        for name in list(self._undead) if names is None else names:
            try:
                # Not read while others wait to write.
                counts = self._folder.counts(name, self._source)
                remove: Callable[[str], object] = self._folder.remove
            except StateError:
                counts, remove = (0, 0), self._folder.set_aside
            with self._writing:
                if name not in self._undead:
                    continue  # it has been saved since
                try:
                    with contextlib.suppress(FileNotFoundError):
                        remove(name)
                        discarded[name] = counts
                    self._undead.discard(name)
                except (OSError, UserError) as error:
                    kept[name] = _reason(error)
        self._folder.sync()
        return discarded, kept

    def _is_saved(self, name: str, record: StreamRecord) -> bool:
        file = None if self._folder is None else self._folder.identity(name)
        has_changed = name in self._changed or name in self._leaving
        return file is not None and file == record.file and not has_changed

    def _is_on_disk(self, name: str) -> bool:
        return self._folder is not None and self._folder.size(name) > 0

    def _on_disk(self) -> set[str]:
        return set() if self._folder is None else {*self._folder.names()} - self._undead


def _state_bytes(method: Method) -> int:
    """The size of a method's tensors; 0 where it cannot tell, as saving it will."""
    try:
        return size_bytes(method.state())
    except Exception:  # a user's own method may raise anything
        return 0


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
