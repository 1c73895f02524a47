"""The latest answers to images that came with an id: what a label that comes later is held against.

A ring of records of RECORD.itemsize bytes: an answer's number says its place, and with `capacity`
more the next takes it. Where method and source both have an answer, the other's class stands beside
the one that was given. An id is a keyed hash of 128 bits of stream and id: of ten million, two are
one with a probability of 10⁻²⁵, and nobody who does not know the key can look for two. Records of a
bucket are chained by their numbers from the newest to the oldest; a number that has left the ring
ends its chain, so nothing is ever taken out of one. The upper 16 bits of a number are the answer's
confidence in half precision, 0 where it is not known, as in files of former versions.

The file has the same bytes behind a header. Records are written in place by a thread of their own,
each with a check: what a kill or a power cut left half written is not taken up.
"""

import contextlib
import errno
import logging
import os
import secrets
import stat
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.events import Events
from service.settings import MOST_IDS
from service.state_folder import set_aside
from ttc_core.errors import told
from ttc_core.methods.contract import Answers, Right

FILE = "feedback.ids"
RECORD = np.dtype(
    [
        *(("number", "<i8"), ("low", "<u8"), ("high", "<u8")),
        *(("answer", "<i4"), ("label", "<i4"), ("check", "<u8")),
    ]
)
# One of them; faster for one than numpy is.
_RECORD = struct.Struct("<q16siiQ")
# As long as a record: format, capacity, a hash of the class names, the key of the ids' hash.
_HEADER = struct.Struct("<8sQ8s16s")
_FORMAT = b"ttc-ids1"
_NO_LABEL = -1
# An answer in the lower 16 bits; behind them the other's and 1, 0 where there is none; the sign:
# it is the source's that was given. Of more classes than fit none is compared.
_ANSWER, _OTHER_BITS, _OTHER, _BY_SOURCE = 0xFFFF, 16, 0x7FFF, -(1 << 31)
_NUMBER_BITS = 48
_NUMBER = (1 << _NUMBER_BITS) - 1
# A folder that cannot be written is tried again, but not with every batch.
RETRY_SECONDS = 5.0


class Given(NamedTuple):
    """What became of a label.

    Attributes:
        outcome: one of FEEDBACK_OUTCOMES.
        right: whether it says what the answer does.
        confidence: the answer's, where that is known.
        number: of the answer, among all in their order; 0: there is none.
        compared: whether the method's answer is right, and the source's; None: only one is known.
    """

    outcome: str
    right: bool = False
    confidence: float | None = None
    number: int = 0
    compared: Right | None = None


class KnownIds:
    """Remembers the last `capacity` answers by stream and id. Any thread may use it.

    Of one id used again for another image the latest answer counts.

    Args:
        capacity: 1 to MOST_IDS; each takes 57 bytes of memory once it is there, 40 in the file.
        class_names: answers and labels are indices into them; a file of others is set aside.
        path: the file that outlasts the process, or None. Nobody else may write it.
    """

    def __init__(
        self, capacity: int, class_names: tuple[str, ...], path: Path | None, events: Events
    ) -> None:
        self._capacity, self._path, self._events = capacity, path, events
        self._classes = len(class_names)
        names = "\0".join(class_names).encode(errors="surrogatepass")
        self._names_hash = blake2b(names, digest_size=8).digest()
        self._secret = secrets.token_bytes(16)
        # The system gives memory to what is written: an empty ring takes none.
        self._records = np.zeros(capacity, RECORD)
        self._bytes = self._records.view(np.uint8).data
        # The number before each record's in its bucket, and the newest of each bucket; 0 for none.
        self._before = np.zeros(capacity, np.int64).data
        self._newest_of = np.zeros(1 << (capacity - 1).bit_length(), np.int64).data
        self._changed = np.zeros(capacity, np.bool_)
        self._newest = self._known = 0
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ids")
        self._to_write, self._retry_at = False, 0.0
        self._file: int | None = None
        if path is not None:
            self._take_up(path)

    def __len__(self) -> int:
        """How many answers are known by an id."""
        return self._known

    @property
    def newest(self) -> int:
        """The number of the latest answer."""
        return self._newest

    def remember(
        self,
        stream: str,
        name: str,
        answer: int,
        label: int | None,
        confidence: float | None = None,
        compared: Answers | None = None,
    ) -> None:
        """Keep the answer to an image with its confidence, 0 to 1, and a label that came along.

        Args:
            compared: what method and source answer, one of which it is.
        """
        answer = self._packed(answer, compared)
        key, bucket = self._hash(stream, name)
        given = _NO_LABEL if label is None else label
        with self._lock:
            number = self._newest = self._newest + 1
            slot = number % self._capacity
            self._known += not self._record(slot)[0]
            self._before[slot] = self._newest_of[bucket]
            self._newest_of[bucket] = number
            self._put(slot, number | _confidence_bits(confidence), key, answer, given)

    def give(self, stream: str, name: str, label: int) -> Given:
        """Hold a label against the answer."""
        key, bucket = self._hash(stream, name)
        with self._lock:
            number = self._newest_of[bucket]
            while number > max(0, self._newest - self._capacity):
                slot = number % self._capacity
                marked, found, packed, given, _ = self._record(slot)
                if found != key:
                    number = self._before[slot]
                    continue
                outcome = "repeated" if given == label else "contradicting"
                if given == _NO_LABEL:
                    self._put(slot, marked, key, packed, label)
                    outcome = "taken"
                answer, compared = self._unpacked(packed)
                right = compared and (compared.method == label, compared.source == label)
                return Given(outcome, answer == label, _confidence(marked), number, right)
        return Given("unknown")

    def _packed(self, answer: int, compared: Answers | None) -> int:
        if compared is None or self._classes >= _OTHER:
            return answer
        by_source = answer != compared.method
        other = compared.method if by_source else compared.source
        return answer | (other + 1) << _OTHER_BITS | _BY_SOURCE * by_source

    def _unpacked(self, packed: int) -> tuple[int, Answers | None]:
        if self._classes >= _OTHER:
            return packed, None
        answer, other = packed & _ANSWER, (packed >> _OTHER_BITS & _OTHER) - 1
        if other < 0:
            return answer, None
        return answer, Answers(other, answer) if packed < 0 else Answers(answer, other)

    def close(self) -> None:
        """Write what is not written yet, and wait for the disk."""
        self._writer.shutdown()
        if self._path is not None and self._changed.any():
            self._write(self._path)
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._file)
            os.close(self._file)
            self._file = None

    def _hash(self, stream: str, name: str) -> tuple[bytes, int]:
        """What an id is known by, and its bucket."""
        text = f"{stream}\0{name}".encode(errors="surrogatepass")
        key = blake2b(text, digest_size=16, key=self._secret).digest()
        return key, int.from_bytes(key[:8], "little") & (len(self._newest_of) - 1)

    def _record(self, slot: int) -> tuple[int, bytes, int, int, int]:
        return _RECORD.unpack_from(self._bytes, slot * RECORD.itemsize)

    # The file

    def _put(self, slot: int, marked: int, key: bytes, answer: int, label: int) -> None:
        """Set a record, and have it written soon: what changes before is written with it."""
        _RECORD.pack_into(self._bytes, slot * RECORD.itemsize, marked, key, answer, label, 0)
        self._changed[slot] = True
        self._write_soon()

    def _write_soon(self) -> None:
        if self._path is None or self._to_write or time.monotonic() < self._retry_at:
            return
        self._to_write = True
        self._writer.submit(self._write, self._path)

    def write(self) -> None:
        """Have written what could not be before, if there is any."""
        with self._lock:
            if self._retry_at and self._changed.any():
                self._write_soon()

    def _write(self, path: Path) -> None:
        whole = not self._is_in_place(path)
        with self._lock:  # never while waiting for the disk
            self._to_write = False
            slots = np.flatnonzero(self._changed)
            if whole:
                slots = np.arange(min(self._newest + 1, self._capacity))
            records = self._records[slots]
            self._changed[slots] = False
        records["check"] = _checks(records)
        try:
            if whole:
                self._write_whole(path, records)
            else:
                ends = np.flatnonzero(np.diff(slots) != 1) + 1
                for at, run in zip((0, *ends), np.split(records, ends), strict=True):
                    self._write_at(int(slots[at]), run)
        except OSError as error:
            with self._lock:
                self._changed[slots] = True
                self._retry_at = time.monotonic() + RETRY_SECONDS
            self._events.note_repeated(
                "ids_not_saved", level=logging.ERROR, reason=error.strerror or told(error)
            )

    def _is_in_place(self, path: Path) -> bool:
        """Whether the open file is the one of that name: folders are deleted and made anew."""
        try:
            return self._file is not None and os.path.samestat(os.fstat(self._file), os.stat(path))
        except OSError:
            return False

    def _write_whole(self, path: Path, records: NDArray[np.void]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.part")
        unfinished.unlink(missing_ok=True)
        with unfinished.open("xb") as file:
            file.write(_HEADER.pack(_FORMAT, self._capacity, self._names_hash, self._secret))
            file.write(records.tobytes())
            file.flush()
            os.fsync(file.fileno())
            unfinished.replace(path)
            if self._file is not None:
                os.close(self._file)
            self._file = os.dup(file.fileno())

    def _write_at(self, slot: int, records: NDArray[np.void]) -> None:
        assert self._file is not None
        data = records.tobytes()
        if os.pwrite(self._file, data, (1 + slot) * RECORD.itemsize) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _take_up(self, path: Path) -> None:
        """Know what the file knows; one that is not ours is set aside."""
        try:
            self._load(path)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            try:
                where = f"is now {set_aside(path)}"
            except OSError:
                # It may be good: nothing is written over it.
                where, self._path = "stays where it is, and no id is saved", None
            self._events.note(
                "rejected",
                message=f"labels for earlier images will be unknown; {path} {where}",
                level=logging.WARNING,
                reason=getattr(error, "strerror", None) or str(error),
            )

    def _load(self, path: Path) -> None:
        """Read the file's records and chain them anew.

        Raises:
            OSError: it cannot be read. ValueError: it is no file of ids, or of other classes.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is no ordinary file")
            head = file.read(_HEADER.size).ljust(_HEADER.size, b"\0")
            form, capacity, names, secret = _HEADER.unpack(head)
            fits = status.st_size <= (1 + capacity) * RECORD.itemsize
            if form != _FORMAT or not 1 <= capacity <= MOST_IDS or not fits:
                raise ValueError("it holds no ids of this program")
            if names != self._names_hash:
                raise ValueError("it is of a model with other classes")
            records = np.fromfile(file, RECORD)
        records = records.compress(self._sound(records, capacity))
        if not len(records):
            return
        numbers = records["number"] & _NUMBER
        self._secret, self._newest = secret, int(numbers.max())
        in_ring = numbers > self._newest - self._capacity
        records, numbers = records.compress(in_ring), numbers.compress(in_ring)
        self._known = len(records)
        self._records[numbers % self._capacity] = records
        # By bucket, and in each from the oldest to the newest.
        buckets = records["low"] & np.uint64(len(self._newest_of) - 1)
        order = np.lexsort((numbers, buckets))
        number, buckets = numbers.take(order), buckets.take(order)
        is_last = np.append(buckets[:-1] != buckets[1:], True)
        before, newest_of = np.asarray(self._before), np.asarray(self._newest_of)
        before[number[1:][~is_last[:-1]] % self._capacity] = number[:-1][~is_last[:-1]]
        newest_of[buckets[is_last]] = number[is_last]

    def _sound(self, records: NDArray[np.void], capacity: int) -> NDArray[np.bool_]:
        """Which records of a file are whole, and in their place."""
        marked, answer, label = records["number"], records["answer"], records["label"]
        other = np.zeros_like(answer)
        if self._classes < _OTHER:
            answer, other = answer & _ANSWER, answer >> _OTHER_BITS & _OTHER
        number = marked & _NUMBER
        confidence = (marked >> _NUMBER_BITS).astype(np.uint16).view(np.float16)
        sound: NDArray[np.bool_] = records["check"] == _checks(records)
        sound &= (number > 0) & (confidence >= 0) & (confidence <= 1)
        sound &= number % capacity == np.arange(len(records))
        sound &= (answer >= 0) & (answer < self._classes) & (other <= self._classes)
        sound &= (label >= _NO_LABEL) & (label < self._classes)
        return sound


def _confidence_bits(confidence: float | None) -> int:
    """A confidence as it stands in a record's number."""
    half = struct.pack("<e", 0.0 if confidence is None else min(confidence, 1.0))
    return int.from_bytes(half, "little") << _NUMBER_BITS


def _confidence(marked: int) -> float | None:
    """What stands there, None for nothing."""
    (confidence,) = struct.unpack("<e", (marked >> _NUMBER_BITS).to_bytes(2, "little"))
    return confidence or None


def _checks(records: NDArray[np.void]) -> NDArray[np.uint64]:
    """(N,) a number for each record that follows from all of it."""
    words = records.view("<u8").reshape(-1, RECORD.itemsize // 8)[:, :-1]
    check = np.full(len(records), 0x9E3779B97F4A7C15, np.uint64)
    for column in words.T:
        check = (check ^ column) * np.uint64(0xFF51AFD7ED558CCD)
        check ^= check >> np.uint64(32)
    return check
