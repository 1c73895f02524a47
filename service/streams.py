"""The table of streams: which are in memory, which are pinned, which make room for others.

Places are taken on the event loop, when a request arrives; method objects are made, loaded, saved
and dropped on the device thread. With a state folder a stream that is not in memory comes back
when it is asked for, and the least recently used is saved and makes room. Without one, what has
adapted is not thrown away for another's sake before it has been idle for `expiry`.
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from service.errors import TooManyStreams
from service.events import Events
from service.metrics import Metrics
from service.state_folder import Identity, StateFolder
from ttc_core.errors import UserError
from ttc_core.methods import Method
from ttc_core.state import StateError, StateUnreadable, size_bytes

# Streams that cannot be saved one after another: then it is the folder, and all will fail.
MOST_FAILURES = 3


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

    @property
    def is_new(self) -> bool:
        """Whether it is at the source because nothing has moved it yet."""
        return not self.restored and self.batches == 0

    def take_note(self) -> None:
        """Publish where the method stands."""
        self.version = self.method.version
        self.pending_batches = self.method.pending_batches
        self.drift = self.method.drift


class Streams:
    """The streams in memory, by name, in the order of their last use; those saved behind them.

    `admit`, `release` and `records` may be called from any thread, all else from the device's. At
    no time are more than `most` in memory.

    Args:
        source: a method at the source; streams are forked from it.
        folder: where streams are saved, or None.
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
        *,
        most: int,
        most_bytes: int,
        expiry: float,
    ) -> None:
        self._source, self._folder = source, folder
        self._events, self._metrics = events, metrics
        self._most, self._most_bytes, self._expiry = most, most_bytes, expiry
        self._records: dict[str, StreamRecord] = {}
        # Answering their first images, as long as somebody has them; `keep` puts them in the table.
        self._new: WeakValueDictionary[str, StreamRecord] = WeakValueDictionary()
        self._pins: Counter[str] = Counter()
        # What `admit` was told last for a stream that was not in memory.
        self._wait = 1.0
        # Reset, but the folder would not let go of their files.
        self._undead: set[str] = set()
        self._fresh_bytes = _state_bytes(source)
        self._lock = threading.Lock()

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
        return list(self.records | dict(self._new) | dict.fromkeys(on_disk))

    def __contains__(self, name: str) -> bool:
        """Whether a stream is in memory or saved."""
        saved = self._folder is not None and name not in self._undead and self._folder.size(name)
        return name in self._records or bool(saved)

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
            if other in self._pins or not self._may_go(record)
        ]
        total = sum(record.bytes for record in staying) + self._fresh_bytes * len(reserved)
        return self._fits(len(staying) + len(reserved), total)

    def _fits(self, count: int, total_bytes: int) -> bool:
        return count <= self._most and (total_bytes <= self._most_bytes or count == 1)

    def _may_go(self, record: StreamRecord) -> bool:
        return self._saves or time.monotonic() - record.used >= self._expiry

    @property
    def _saves(self) -> bool:
        return self._folder is not None and self._folder.problem is None

    def _refusal(self, refused: str, wait: float, *, saves: bool) -> TooManyStreams:
        seconds = max(1.0, math.ceil(wait if saves else self._time_to_room(refused, wait)))
        count = len((self._records.keys() | self._pins.keys()) - {refused})
        total = sum(record.bytes for record in self._records.values())
        held = (
            f"There are {self._most:,} streams already, the most that are kept"
            if count >= self._most
            else f"The {count:,} streams take {total:,} of the {self._most_bytes:,} bytes for them"
        )
        until = "all are in use" if saves else f"those idle for {self._expiry:g} s make room"
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
        record = self._new[name] = self.load(name)
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
            record.file = self._folder.load(name, record.method)
        except Exception as error:  # a user's own method may raise anything
            record.method = self._source.fork()
            self._reject(name, error)
            return record
        if record.file is None:
            return record
        record.restored = True
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
        saved = self._saves and self._save(name, record)
        expired = time.monotonic() - record.used >= self._expiry
        with self._lock:
            if self._pins[name] or not (saved or expired):
                return False
            del self._records[name]
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

    def forget(self, names: Iterable[str]) -> tuple[int, int, dict[str, str]]:
        """Put streams back to the source, in memory and on disk.

        Returns:
            The steps and pending batches that were thrown away, and why a saved state could not be
            removed, by stream. Such a state is not taken up any more, but another process would.
        """
        steps, pending, kept = 0, 0, {}
        for name in names:
            self._new.pop(name, None)
            with self._lock:
                record = self._records.pop(name, None)
            counts, reason = self._remove(name)
            if record is not None:
                counts = record.version, record.pending_batches
            steps, pending = steps + counts[0], pending + counts[1]
            if reason is not None:
                kept[name] = reason
        if self._folder is not None:
            self._folder.sync()
        return steps, pending, kept

    def _remove(self, name: str) -> tuple[tuple[int, int], str | None]:
        """Remove what is saved of a stream; return its steps and pending batches, or why not."""
        counts = 0, 0
        if self._folder is not None:
            try:
                counts = self._folder.remove(name, self._source)
            except (OSError, UserError) as error:
                self._undead.add(name)
                return counts, _reason(error)
        self._undead.discard(name)
        return counts, None

    def save(self) -> int:
        """Save all that are in memory; return how many could be."""
        saved = sum(self._save(name, record) for name, record in self.records.items())
        for name in list(self._undead):
            if (reason := self._remove(name)[1]) is not None:
                self._events.note("not_removed", level=logging.ERROR, stream=name, reason=reason)
        return saved

    def _save(self, name: str, record: StreamRecord) -> bool:
        assert self._folder is not None
        try:
            if (kept := self._folder.make_way(name, record.file)) is not None:
                self._events.note(
                    "set_aside",
                    message=f"what lay in the place of stream {name} is now {kept}",
                    level=logging.WARNING,
                    stream=name,
                )
            record.file = self._folder.save(name, record.method)
        except Exception as error:  # a user's own method may raise anything
            reason = _reason(error)
            self._events.note_repeated("not_saved", level=logging.ERROR, stream=name, reason=reason)
            return False
        self._undead.discard(name)
        return True

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
