"""The table of streams: which are in memory, which are pinned, which make room for others.

Places are taken on the event loop, when a request arrives; method objects are made, loaded and
dropped on the device thread. With a state folder a stream that is not in memory comes back when it
is asked for, and the least recently used makes room: another thread saves it while its place is
another's already, and until it is saved it comes back as it is. Without a folder, what has adapted
is not thrown away for another's sake before it has been idle for `expiry`.
"""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from weakref import WeakValueDictionary

from service.errors import NotReady, TooManyStreams
from service.events import Events
from service.leases import Leases
from service.metrics import Metrics
from service.saving import Saving
from service.schemas import Discarded
from service.stream_record import StreamRecord, state_bytes

# Streams that cannot be saved one after another: then it is the folder, and all will fail.
MOST_FAILURES = 3
# For how long the device thread takes snapshots before a batch may come between.
SNAPSHOT_SECONDS = 0.002
MOST_SNAPSHOTS = 16
# Streams that have made room and are not saved yet; and of the bytes for streams, one in so many.
MOST_LEAVING, LEAVING_PART = 100, 8


class Streams:
    """The streams in memory, by name, in the order of their last use; those saved behind them.

    At no time are more than `most` in memory, but for those that are being saved to make room:
    at most MOST_LEAVING, which come back to the table if their files cannot be written. Methods
    that read or drop a method object are for the device thread alone; they stand below that line.

    Args:
        saving: the streams that are not in memory.
        writer: runs what waits for the disk, one at a time.
        most: streams that may be in memory at once.
        most_bytes: bytes that their states may take together; a lone stream may take more.
        expiry: seconds without an image after which a stream that cannot be saved makes room.
        leases: tell which streams are ours, where processes share the folder; None: all are.

    Attributes:
        saving: the same; another's once `begin_anew` was called.
    """

    def __init__(
        self,
        saving: Saving,
        writer: Executor,
        events: Events,
        metrics: Metrics,
        *,
        most: int,
        most_bytes: int,
        expiry: float,
        leases: Leases | None = None,
    ) -> None:
        self.saving, self._writer, self._leases = saving, writer, leases
        self._events, self._metrics = events, metrics
        self._most, self._most_bytes, self._expiry = most, most_bytes, expiry
        self._records: dict[str, StreamRecord] = {}
        # Answering their first images, as long as somebody has them; `keep` puts them in the table.
        self._new: WeakValueDictionary[str, StreamRecord] = WeakValueDictionary()
        self._pins: Counter[str] = Counter()
        self._at_work: frozenset[str] = frozenset()
        # What `admit` was told last for a stream that was not in memory.
        self._wait = 1.0
        self._lock = threading.Lock()  # held for moments

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
        """How many streams are not in memory but on disk, or on their way. Reads the folder."""
        return len((self.saving.names() | self.saving.leaving().keys()) - self.records.keys())

    def names(self, *, saved: bool = True) -> list[str]:
        """All streams of ours: in memory, answering their first images, saved or without those."""
        on_disk = (
            [each for each in sorted(self.saving.names()) if self._owns(each)] if saved else ()
        )
        # Not dict(self._new), which other threads may change meanwhile.
        new = {reference.key: None for reference in self._new.valuerefs() if reference()}
        leaving = self.saving.leaving()
        return list(self.records | leaving | new | dict.fromkeys(on_disk))

    def __contains__(self, name: str) -> bool:
        """Whether a stream is in memory, saved or on its way there."""
        return self.at_hand(name) is not None or self.saving.size(name) > 0

    # Places

    def admit(self, name: str, wait: Callable[[], float] = lambda: 1.0) -> None:
        """Take a place for a request of a stream, and pin the stream until `release`.

        Args:
            wait: tells the seconds in which the requests in flight will have been answered.

        Raises:
            TooManyStreams: it has no place and nobody makes room; `retry_after` says when the
                first may.
        """
        with self._lock:
            if not self._has_room(name):
                raise self._refusal(name, wait())
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
        if self._fits(
            len(records) + len(reserved), total + self.saving.fresh_bytes * len(reserved)
        ):
            return True
        staying = [
            record
            for other, record in records.items()
            if other in self._pins or not self._may_go(other, record)
        ]
        total = sum(record.bytes for record in staying) + self.saving.fresh_bytes * len(reserved)
        return self._fits(len(staying) + len(reserved), total)

    def _fits(self, count: int, total_bytes: int) -> bool:
        return count <= self._most and (total_bytes <= self._most_bytes or count == 1)

    def _may_go(self, name: str, record: StreamRecord) -> bool:
        idle = time.monotonic() - record.used
        saving = self.saving
        return saving.takes or idle >= self._expiry or saving.is_saved(name, record)

    def _refusal(self, refused: str, wait: float) -> TooManyStreams:
        saves = self.saving.takes and not self.saving.failing
        seconds = max(1.0, math.ceil(wait if saves else self._time_to_room(refused, wait)))
        count = len((self._records.keys() | self._pins.keys()) - {refused})
        total = sum(record.bytes for record in self._records.values())
        held = (
            f"There are {self._most:,} streams already, the most that are kept"
            if count >= self._most
            else f"The {count:,} streams take {total:,} of the {self._most_bytes:,} bytes for them"
        )
        until = f"those idle for {self._expiry:g} s make room"
        if saves:
            until = "others are still being saved" if self._is_busy else "all are in use"
        elif self.saving.folder is not None:
            until = f"none can be saved now, {until}"
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
        count, total = len(records) + reserved, self.saving.fresh_bytes * reserved
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
            NotReady: it is another process's.
            TooManyStreams: it has been admitted, yet nobody makes room for it.
        """
        if self._leases is not None and not self._leases.holds(name):
            raise NotReady(f"Stream {name} is on its way to another replica.", retry_after=1)
        record = self.in_memory(name)
        if record is not None:
            return record
        leaving = self.saving.on_its_way(name)
        size = self.saving.size(name) if leaving is None else leaving.bytes
        fresh = self.saving.fresh_bytes
        if self._pins[name] and not self._make_room(name, max(fresh, size)):
            with self._lock:
                raise self._refusal(name, self._wait)
        record = self.at_hand(name) or self.load(name)
        self._new[name] = record
        return record

    def in_memory(self, name: str) -> StreamRecord | None:
        """The stream, if it is in memory, be it for the first images that it answers."""
        return self._records.get(name) or self._new.get(name)

    def at_hand(self, name: str) -> StreamRecord | None:
        """The stream, if it is in the table, or on its way to its file and not there yet."""
        with self._lock:  # one whose writing fails is in the table again
            return self._records.get(name) or self.saving.on_its_way(name)

    def is_current(self, name: str, record: StreamRecord) -> bool:
        """Whether what `get` gave is still the stream; not after `forget`."""
        return self.in_memory(name) is record

    def is_at_rest(self, name: str) -> bool:
        """Whether no request is of a stream, and no batch."""
        return name not in self._at_work and not self._pins[name]

    def let_go(self, name: str) -> None:
        """Keep nothing of a stream: another process has it. Its file is left as it is."""
        with self._lock:
            self._new.pop(name, None)
            self._records.pop(name, None)
            self.saving.let_go(name)

    def _owns(self, name: str) -> bool:
        return self._leases is None or self._leases.owns(name)

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
        # More than `most`, because files could not be written, is not for those there to pay for.
        fits = fits or self.bytes <= self._most_bytes
        with self._lock:
            self._records.pop(name, None)
            self._records[name] = record
        self._new.pop(name, None)
        record.used = time.monotonic()
        return fits

    def at_work(self, names: Iterable[str]) -> None:
        """Have none of these streams make room for another, until others are named or none."""
        self._at_work = frozenset(names)

    def load(self, name: str) -> StreamRecord:
        """Make a stream as it was saved, or at the source where nothing fitting was."""
        return self.saving.load(name, pinned=bool(self._pins[name]))

    def _make_room(self, name: str, size: int) -> bool:
        """Let others go until a stream has `size` bytes more; return whether it has."""
        count = len(self._records) + (name not in self._records)
        total = self.bytes + size
        failures = 0
        for other, record in list(self._records.items()):
            if self._fits(count, total):
                return True
            if other == name or other in self._at_work or self._pins[other]:
                continue
            if self.evict(other):
                count, total = count - 1, total - record.bytes
            elif (failures := failures + 1) == MOST_FAILURES:
                break
        return self._fits(count, total)

    def evict(self, name: str) -> bool:
        """Take a stream out of memory, to be saved meanwhile; return whether it went.

        One that cannot be saved goes if it has been idle for long enough, one that was asked for
        meanwhile stays. Where the last file could not be written, one goes when its own has been.
        """
        record, saving = self._records[name], self.saving
        can_be_saved = saving.is_saved(name, record) or self._send(name, record)
        expired = time.monotonic() - record.used >= self._expiry
        with self._lock:
            goes_on = saving.is_leaving(name) and not (saving.failing or record.failed)
            saved = saving.is_saved(name, record) or goes_on
            expired &= saving.failing or not can_be_saved
            if self._pins[name] or not (saved or expired):
                return False
            del self._records[name]
            if not saved:
                saving.drop_change(name)
                saving.changes.note("expired", stream=name, version=record.version)
        reason = "saved" if saved else "expired"
        self._metrics.evicted.labels(reason).inc()
        self._events.note_repeated("evicted", stream=name, reason=reason)
        return True

    def _send(self, name: str, record: StreamRecord) -> bool:
        """Have a stream written, if not too many wait for that; return whether it can be at all."""
        if not self.saving.takes:
            return False
        if not self.saving.is_leaving(name) and not self._is_busy:
            if not self.saving.snapshot(name, record):
                return False
            # Also where a former snapshot waits: its writing may be just over.
            self._writer.submit(self.write, name)
        return True

    @property
    def _is_busy(self) -> bool:
        """Whether as many streams are being saved to make room as may be."""
        leaving = self.saving.leaving()
        gone = [record.bytes for name, record in leaving.items() if name not in self._records]
        return len(gone) >= MOST_LEAVING or sum(gone) > self._most_bytes // LEAVING_PART

    def write(self, name: str) -> bool:
        """Write what waits of a stream, in any other thread; return whether it is saved then.

        One that cannot be written has its place in the table again, as the first to go.
        """
        saving = self.saving
        saved = saving.write(name)
        if not saved:
            with self._lock:
                if saving is not self.saving:
                    return False  # of weights that answer no more
                record = saving.give_up(name)
                if record is not None and name not in self._records:
                    self._records = {name: record, **self._records}
        return saved

    def measure(self, name: str) -> None:
        """Look at a stream after a batch: one that grew may take others' places."""
        record = self._records[name]
        if record.batches >= record.measure_at:
            # Ever more rarely: what grows with every batch is seen before it is an eighth larger.
            record.measure_at = record.batches + 1 + record.batches // 8
            record.bytes = state_bytes(record.method)
            self._make_room(name, 0)

    def forget(self, names: Iterable[str]) -> dict[str, Discarded]:
        """Put streams back to the source; what is saved of them counts no more.

        `Saving.remove` is to follow, in any thread.

        Returns:
            What was thrown away of those that were in memory; not what labels said.
        """
        discarded = {}
        with self._lock:
            leaving = self.saving.leaving()
            for name in names:
                self._new.pop(name, None)
                record = self._records.pop(name, None) or leaving.get(name)
                self.saving.forget(name)
                if record is not None:
                    discarded[name] = Discarded(
                        steps=record.version, pending_batches=record.pending_batches
                    )
        return discarded

    def begin_anew(self, saving: Saving) -> Saving:
        """Have all streams be others', as `saving` has them; places stay taken.

        Returns:
            What those had that were here, and all that was on its way to a file.
        """
        with self._lock:
            former, self.saving = self.saving, saving
            self._records = {}
            self._new.clear()
        return former

    def snapshots(self, names: deque[str]) -> list[str]:
        """Take from `names`, from the left, what can be told of streams in SNAPSHOT_SECONDS.

        Returns:
            Those for which `write` is to follow.
        """
        taken: list[str] = []
        end = time.monotonic() + SNAPSHOT_SECONDS
        while names and len(taken) < MOST_SNAPSHOTS and (not taken or time.monotonic() < end):
            name = names.popleft()
            if not self._owns(name):
                self.saving.disown(name)  # labels came for what is another's by now
                continue
            record = self.at_hand(name)
            if record is None:
                if not self.saving.is_unsaved(name):
                    continue  # it has been written by now; what may come next is not to be dropped
                # Labels came for what is on disk only, or is answering its first images.
                record = self._saved(name)
            if record is None:
                self.saving.drop_change(name)
            elif self.saving.snapshot(name, record):
                taken.append(name)
        return taken

    def _saved(self, name: str) -> StreamRecord | None:
        """The stream as its file has it; None: there is none that counts, or that fits."""
        if not self.saving.size(name):
            return None
        record = self._new.get(name) or self.load(name)
        return record if record.restored else None
