"""Who may write a stream's file where several processes share a state folder: leases, in files.

Below `.leases` of the folder stands one file for each process, `owners/OWNER`, which it touches
every BEAT_SECONDS and keeps locked as long as it lives, and one for each stream,
`streams/NAME.lease`, with its owner and an epoch that grows with every change of hands. An owner
that has not touched its file for as long as a lease lasts has lost its streams, one on this machine
as soon as its lock is free. Who changes a stream's files holds the lock of its lease meanwhile and
looks whether owner and epoch still are its own: a process that slept longer than its lease cannot
write over who came after.

Ages are differences of two files' times, which the folder's file system gave both: clocks of
machines are not compared. The file system is to have locks that hold between all of them (flock: of
a local disk, NFS from version 4, CephFS).
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ttc_core.errors import UserError

log = logging.getLogger(__name__)

FOLDER = ".leases"
# A process that is not heard of for so long has lost its streams; how often it says that it lives.
LEASE_SECONDS, BEAT_SECONDS = 10.0, 1.0
# How long a lease's lock is waited for: whoever has it writes the stream's file.
LOCK_SECONDS, LOCK_PAUSE = 2.0, 0.005
MOST_CLAIM_BYTES = 1000
# Files of owners that are gone for so many leases are removed.
FORGOTTEN_AFTER = 60


# Tells this machine, since it was started, from all others.
_MACHINE = ""
with contextlib.suppress(OSError):
    _MACHINE = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class LeaseLost(UserError):
    """The stream is another process's, or nobody's: what was to be done to its files was not."""


class LeaseBusy(OSError):
    """Another process has had the lease's lock for too long; the text says of which stream."""


class Claim(NamedTuple):
    """Whose a stream is; the owner is "" for nobody."""

    owner: str
    epoch: int


class Leases:
    """The streams of one process among several that share a folder. Any thread may use it.

    Args:
        folder: the state folder.
        owner: this process's name: no other ever had it.
        lease_seconds: after which a process that says nothing has lost its streams; the same for
            all that share the folder.
        on_lost: is called, in any thread, with a stream that turned out to be another's.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        owner: str,
        *,
        lease_seconds: float = LEASE_SECONDS,
        on_lost: Callable[[str], object] = lambda stream: None,
    ) -> None:
        self.owner, self.lease_seconds, self.on_lost = owner, lease_seconds, on_lost
        self._owners, self._streams = folder / FOLDER / "owners", folder / FOLDER / "streams"
        # The epochs of those that are ours, and of those that ever were.
        self._owned: dict[str, int] = {}
        self._epochs: dict[str, int] = {}
        self._alive: int | None = None
        self._beaten = -float("inf")
        self._beating, self._ended = threading.Lock(), threading.Event()
        self._begin()
        self._beaten = time.monotonic()
        self._remove_forgotten()

    # Being alive

    def keep_beating(self) -> None:
        """Say that we live, in a thread of its own, until `close`."""
        interval = min(BEAT_SECONDS, self.lease_seconds / 5)

        def beat() -> None:
            while not self._ended.wait(interval):
                try:
                    self.beat()
                except OSError as error:
                    log.warning("leases cannot be renewed: %s", error.strerror or error)

        threading.Thread(target=beat, name="leases", daemon=True).start()

    def beat(self) -> None:
        """Say that we live; after a sleep of a lease's length see which streams still are ours.

        Raises:
            OSError: it cannot be said.
        """
        with self._beating:
            if self._ended.is_set():
                return
            now = time.monotonic()
            has_slept = now - self._beaten >= self.lease_seconds
            if not self._is_there():
                self._begin()
                has_slept = True
            assert self._alive is not None
            os.utime(self._alive)
        if has_slept:  # from now on nobody takes our streams; what was taken before shows
            for stream in list(self._owned):
                self._see_whether_lost(stream)
        self._beaten = now

    def _begin(self) -> None:
        for each in (self._owners, self._streams):
            each.mkdir(parents=True, exist_ok=True)
        if self._alive is not None:
            os.close(self._alive)
        self._alive = os.open(self._file(self.owner), os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        about = {"machine": _MACHINE, "host": socket.gethostname(), "process": os.getpid()}
        os.pwrite(self._alive, json.dumps(about).encode(), 0)
        os.utime(self._alive)

    def _file(self, owner: str) -> Path:
        return self._owners / quote(owner, safe="")

    def _is_there(self) -> bool:
        """Whether our file is still that of our name: folders are deleted and made anew."""
        if self._alive is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._alive), self._file(self.owner).lstat())
        except OSError:
            return False

    def is_gone(self, owner: str) -> bool:
        """Whether a process has ended or lost its streams.

        Raises:
            OSError: that cannot be told.
        """
        if owner == self.owner:
            return False
        if not owner:
            return True
        try:
            descriptor = os.open(self._file(owner), os.O_RDONLY)
        except FileNotFoundError:
            return True
        try:
            if self._now() - os.fstat(descriptor).st_mtime >= self.lease_seconds:
                return True
            about = _json_in(os.pread(descriptor, MOST_CLAIM_BYTES, 0))
            return bool(_MACHINE) and about.get("machine") == _MACHINE and _is_free(descriptor)
        finally:
            os.close(descriptor)

    def _now(self) -> float:
        """What time it is to the file system."""
        with self._beating:
            if self._alive is None or not self._is_there():
                raise FileNotFoundError(errno.ENOENT, "the leases are closed, or gone")
            os.utime(self._alive)
            return os.fstat(self._alive).st_mtime

    def _remove_forgotten(self) -> None:
        """Remove the files of processes that ended long ago."""
        with contextlib.suppress(OSError):
            limit = self._now() - FORGOTTEN_AFTER * self.lease_seconds
            for each in self._owners.iterdir():
                if each.stat().st_mtime < limit:
                    each.unlink(missing_ok=True)

    def close(self) -> None:
        """Give all streams up: the next who asks has them."""
        with self._beating:
            self._ended.set()
            self._owned.clear()
            if self._alive is not None:
                if self._is_there():
                    self._file(self.owner).unlink(missing_ok=True)
                os.close(self._alive)
                self._alive = None

    # Streams

    def owns(self, stream: str) -> bool:
        """Whether a stream was ours when last we looked."""
        return stream in self._owned

    def holds(self, stream: str) -> bool:
        """Whether a stream is ours for sure: we were heard of within the lease."""
        return stream in self._owned and time.monotonic() - self._beaten < self.lease_seconds

    def owned(self) -> list[str]:
        """The streams that were ours when last we looked; a copy."""
        return list(self._owned)

    def claim(self, stream: str) -> str | None:
        """Have a stream, if it is nobody's or its owner is gone.

        Returns:
            The owner who has it; None: it is ours.

        Raises:
            OSError: the lease cannot be written, or its lock is another's for too long.
        """
        self.beat()
        if self.holds(stream):
            return None
        if self._ended.is_set():
            raise FileNotFoundError(errno.ENOENT, "the leases are closed")
        with self._locked(stream) as lease:
            found = _claim_in(lease)
            if found.owner != self.owner and not self.is_gone(found.owner):
                return found.owner
            epoch = max(found.epoch, self._epochs.get(stream, 0)) + 1
            _write(lease, Claim(self.owner, epoch))
            self._owned[stream] = self._epochs[stream] = epoch
        return None

    def release(self, stream: str) -> None:
        """Give a stream up, if it is ours, be it by its lease alone.

        Raises:
            OSError: it cannot be said: it is ours until we end.
        """
        with self._locked(stream) as lease:
            found = _claim_in(lease)
            if found.owner == self.owner:
                _write(lease, Claim("", found.epoch))
        self._owned.pop(stream, None)

    @contextlib.contextmanager
    def writing(self, stream: str) -> Iterator[int]:
        """Change files of a stream: as long as this is open nobody else has it.

        Raises:
            LeaseLost: it is not ours. OSError: the lease cannot be read, or its lock is another's.
        """
        epoch = self._owned.get(stream)
        if epoch is None:
            raise LeaseLost(f"Stream {stream} is not ours.")
        with self._locked(stream) as lease:
            found = _claim_in(lease)
            if found != (self.owner, epoch):
                self._lose(stream, epoch)
                raise LeaseLost(f"Stream {stream} is {found.owner or 'nobody'}'s by now.")
            yield lease

    def _see_whether_lost(self, stream: str) -> None:
        with contextlib.suppress(LeaseLost, OSError), self.writing(stream):
            pass

    def _lose(self, stream: str, epoch: int) -> None:
        if self._owned.get(stream) == epoch:
            del self._owned[stream]
            self.on_lost(stream)

    @contextlib.contextmanager
    def _locked(self, stream: str) -> Iterator[int]:
        lease = self._lock(stream)
        try:
            yield lease
        finally:
            os.close(lease)

    def _lock(self, stream: str) -> int:
        """A stream's lease, open and locked; not a file that another has taken the place of."""
        path, until = self._streams / _file_name(stream), time.monotonic() + LOCK_SECONDS
        while time.monotonic() < until:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), path.lstat()):
                    return descriptor
            except (BlockingIOError, FileNotFoundError):
                time.sleep(LOCK_PAUSE)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        raise LeaseBusy(
            errno.EAGAIN, f"the lease of stream {stream} is locked by another process", str(path)
        )


def _file_name(stream: str) -> str:
    return f"{quote(stream, safe='')}.lease"  # a stream may be called ..


def _is_free(descriptor: int) -> bool:
    """Whether the process that locks a file has ended."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _json_in(text: bytes) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _claim_in(lease: int) -> Claim:
    """What a lease says; nobody's where it was never written, or is damaged."""
    found = _json_in(os.pread(lease, MOST_CLAIM_BYTES, 0))
    owner, epoch = found.get("owner"), found.get("epoch")
    if not (isinstance(owner, str) and isinstance(epoch, int)):
        return Claim("", 0)
    return Claim(owner, epoch)


def _write(lease: int, claim: Claim) -> None:
    text = json.dumps(claim._asdict()).encode()
    os.pwrite(lease, text, 0)
    os.ftruncate(lease, len(text))
