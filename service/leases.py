"""Who may write a stream's file where several processes share a state folder: leases, in files.

Below `.leases` of the folder stands one file for each process, `owners/OWNER`, which it touches
every BEAT_SECONDS and keeps locked as long as it lives, and one for each stream,
`streams/NAME.lease`, with its owner and an epoch that grows with every change of hands. An owner
that has not touched its file for as long as a lease lasts has lost its streams, one on this machine
as soon as its lock is free. Who changes a stream's files holds the lock of its lease meanwhile and
looks whether owner and epoch still are its own: a process that slept longer than its lease cannot
write over who came after. `fleet` tells this folder from any other: where a machine has not mounted
the shared one, what lies at the same place is not it.

For how long an owner's file was not touched each process tells by its own clock, from when it saw
the file first as it is: no two clocks are compared, and none that is set is read. The file system
is to have locks that hold between all of them (flock: a local disk, NFS from version 4, CephFS).
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from ttc_core.errors import UserError

log = logging.getLogger(__name__)

FOLDER = ".leases"
FLEET = "fleet"
SUFFIX = ".lease"
# A process that is not heard of for so long has lost its streams; how often it says that it lives.
LEASE_SECONDS, BEAT_SECONDS = 10.0, 1.0
# How often it looks at others' files: of one that is asked about later it knows since when.
LOOK_BEATS = 5
# How long a lease's lock is waited for: whoever has it writes the stream's file.
LOCK_SECONDS, LOCK_PAUSE = 2.0, 0.005
MOST_CLAIM_BYTES = 1000
# A lease has so many bytes, if they suffice: to change hands it need not grow, as on a full disk.
CLAIM_BYTES = 200
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


class NotTheFolder(OSError):
    """What lies at the folder's place is not the fleet's: it is not mounted, or was removed."""


class Claim(NamedTuple):
    """Whose a stream is; the owner is "" for nobody."""

    owner: str
    epoch: int


class Seen(NamedTuple):
    """How an owner's file was when last looked at, and since when it is so; `_clock`."""

    modified: int
    since: float


class Leases:
    """The streams of one process among several that share a folder. Any thread may use it.

    Args:
        folder: the state folder.
        owner: this process's name: no other ever had it.
        fleet: tells the folder from all others: it is to be there already, with that; None: made
            where it is not, and taken as it is where it is.
        lease_seconds: after which a process that says nothing has lost its streams; the same for
            all that share the folder.
        on_lost: is called, in any thread, with a stream that turned out to be another's.

    Attributes:
        fleet: the same, or what was found or made.

    Raises:
        NotTheFolder: it is another. OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        owner: str,
        *,
        fleet: str | None = None,
        lease_seconds: float = LEASE_SECONDS,
        on_lost: Callable[[str], object] = lambda stream: None,
    ) -> None:
        self.owner, self.lease_seconds, self.on_lost = owner, lease_seconds, on_lost
        self._folder = folder / FOLDER
        self._owners, self._streams = self._folder / "owners", self._folder / "streams"
        # The epochs of those that are ours; and the last of any that ever was.
        self._owned: dict[str, int] = {}
        self._epoch = 0
        # Those of which we have to look first whether they still are.
        self._doubted: set[str] = set()
        self._seen: dict[str, Seen] = {}
        self._alive: int | None = None
        self._slot: int | None = None
        self._beaten = -float("inf")
        self._beating, self._ended = threading.Lock(), threading.Event()
        self.fleet = _fleet_in(self._folder) if fleet is None else fleet
        began = _clock()
        self._begin()
        self._beaten = began
        self.look_around()

    # Being alive

    def keep_beating(self) -> None:
        """Say that we live, in a thread of its own, until `close`."""
        interval = min(BEAT_SECONDS, self.lease_seconds / 5)

        def beat() -> None:
            beats = 0
            while not self._ended.wait(interval):
                beats += 1
                try:
                    self.beat()
                    if beats % LOOK_BEATS == 0:
                        self.look_around()
                except OSError as error:
                    log.warning("leases cannot be renewed: %s", error.strerror or error)

        threading.Thread(target=beat, name="leases", daemon=True).start()

    def beat(self) -> None:
        """Say that we live; after a lease's length without that see which streams still are ours.

        Raises:
            NotTheFolder: the folder is gone. OSError: it cannot be said.
        """
        self._touch()
        for stream in list(self._doubted):
            self._see_whether_lost(stream)
            if _clock() - self._beaten >= BEAT_SECONDS:
                self._touch()  # of thousands it takes longer than a lease

    def _touch(self) -> None:
        """Say that we live; where it was not said for too long, doubt that streams are ours."""
        with self._beating:
            if self._ended.is_set():
                return
            now = _clock()
            was_removed = not self._is_there()
            if was_removed:
                self._begin()
            assert self._alive is not None
            before = os.fstat(self._alive).st_mtime
            os.utime(self._alive)
            # We may have been stopped in the midst of this; and the machine with all its clocks,
            # which the folder's tells.
            silent = max(_clock() - self._beaten, os.fstat(self._alive).st_mtime - before)
            if was_removed or silent >= self.lease_seconds:
                self._doubted |= self._owned.keys()
            self._beaten = now

    def _begin(self) -> None:
        self._check()
        for each in (self._owners, self._streams):
            each.mkdir(exist_ok=True)
        if self._alive is not None:
            os.close(self._alive)
            self._alive = None
        self._alive = os.open(self._file(self.owner), os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        about = {"machine": _MACHINE, "host": socket.gethostname(), "process": os.getpid()}
        os.pwrite(self._alive, json.dumps(about).encode(), 0)
        os.utime(self._alive)

    def _check(self) -> None:
        """See that the folder is that of our fleet."""
        try:
            found = (self._folder / FLEET).read_text()
        except FileNotFoundError:
            found = ""
        if found.strip() != self.fleet:
            raise NotTheFolder(
                errno.ESTALE, "it is not the folder of this fleet", str(self._folder.parent)
            )

    def _file(self, owner: str) -> Path:
        return self._owners / quote(owner, safe="")

    def _is_there(self) -> bool:
        """Whether our file is still that of our name: folders are deleted, or not there."""
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
            if self._silence(owner, descriptor) >= self.lease_seconds:
                return True
            about = _json_in(os.pread(descriptor, MOST_CLAIM_BYTES, 0))
            return bool(_MACHINE) and about.get("machine") == _MACHINE and _is_free(descriptor)
        finally:
            os.close(descriptor)

    def lives(self, owner: str) -> bool:
        """Whether a process says that it lives; it takes a lease's length to see that it does not.

        Raises:
            OSError: that cannot be told.
        """
        before = None
        while not self.is_gone(owner):
            seen = self._seen[owner].modified
            if before is not None and seen != before:
                return True
            before = seen
            time.sleep(self.lease_seconds / 50)
        return False

    def _silence(self, owner: str, descriptor: int) -> float:
        """For how many seconds, as far as we have seen, an owner has not touched its file."""
        now, modified = _clock(), os.fstat(descriptor).st_mtime_ns
        seen = self._seen.get(owner)
        if seen is None or seen.modified != modified:
            seen = self._seen[owner] = Seen(modified, now)
        return now - seen.since

    def look_around(self) -> None:
        """Look since when others have been silent; remove files of those that ended long ago."""
        names = set[str]()
        with contextlib.suppress(OSError):
            for path in self._owners.iterdir():
                owner = unquote(path.name)
                if owner == self.owner:
                    continue
                names.add(owner)
                with contextlib.suppress(FileNotFoundError):
                    # Opened: a network's file system then looks at its server.
                    descriptor = os.open(path, os.O_RDONLY)
                    try:
                        silence = self._silence(owner, descriptor)
                    finally:
                        os.close(descriptor)
                    if silence >= FORGOTTEN_AFTER * self.lease_seconds:
                        path.unlink(missing_ok=True)
            for owner in self._seen.keys() - names:
                del self._seen[owner]

    def slot(self) -> int:
        """The lowest number that no other process has, ours until `close`; found when first asked.

        Raises:
            OSError: there is none: the folder cannot be written.
        """
        folder, number = self._folder / "slots", 0
        folder.mkdir(exist_ok=True)
        while True:
            descriptor = os.open(folder / str(number), os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                number += 1
                continue
            self._slot = descriptor
            return number

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
            if self._slot is not None:
                os.close(self._slot)
                self._slot = None

    # Streams

    def owns(self, stream: str) -> bool:
        """Whether a stream was ours when last we looked."""
        return stream in self._owned

    def holds(self, stream: str) -> bool:
        """Whether a stream is ours for sure: we were heard of within the lease."""
        is_heard = _clock() - self._beaten < self.lease_seconds
        return stream in self._owned and stream not in self._doubted and is_heard

    def owned(self) -> list[str]:
        """The streams that were ours when last we looked; a copy."""
        return list(self._owned)

    def names(self) -> set[str]:
        """The streams that have a lease, whosever they are. Reads the folder.

        Raises:
            OSError: it cannot be read.
        """
        with os.scandir(self._streams) as entries:
            names = [entry.name for entry in entries]
        return {unquote(name.removesuffix(SUFFIX)) for name in names if name.endswith(SUFFIX)}

    def claim(self, stream: str) -> str | None:
        """Have a stream, if it is nobody's or its owner is gone.

        Returns:
            The owner who has it; None: it is ours.

        Raises:
            OSError: the lease cannot be written, or its lock is another's for too long.
        """
        self._touch()
        if self._ended.is_set():
            raise FileNotFoundError(errno.ENOENT, "the leases are closed")
        if stream in self._doubted:
            self._see_whether_lost(stream)
        if self.holds(stream):
            return None
        with self._locked(stream) as lease:
            found = _claim_in(lease)
            if found.owner != self.owner and not self.is_gone(found.owner):
                return found.owner
            self._epoch = epoch = max(found.epoch, self._epoch) + 1
            _write(lease, Claim(self.owner, epoch))
            self._owned[stream] = epoch
            self._doubted.discard(stream)
        return None

    def release(self, stream: str, *, is_kept: bool = True) -> None:
        """Give a stream up, if it is ours, be it by its lease alone.

        Args:
            is_kept: something is saved of it; else nothing is left of the lease either.

        Raises:
            OSError: it cannot be said: it is ours until we end.
        """
        with self._locked(stream) as lease:
            found = _claim_in(lease)
            if not is_kept and found.owner in (self.owner, ""):
                # Who waits for its lock sees that it is gone.
                (self._streams / _file_name(stream)).unlink(missing_ok=True)
            elif found.owner == self.owner:
                _write(lease, Claim("", found.epoch))
            self._owned.pop(stream, None)
            self._doubted.discard(stream)

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
            self._doubted.discard(stream)
            yield lease

    def _see_whether_lost(self, stream: str) -> None:
        with contextlib.suppress(OSError):  # it stays in doubt
            try:
                with self.writing(stream):
                    pass
            except LeaseLost:
                self._doubted.discard(stream)

    def _lose(self, stream: str, epoch: int) -> None:
        if self._owned.get(stream) == epoch:
            del self._owned[stream]
            self._doubted.discard(stream)
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


def _clock() -> float:
    """Seconds, those in which the machine slept too; nobody sets it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _fleet_in(folder: Path) -> str:
    """What tells a folder from all others; made where it was never said.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FLEET
    unfinished = path.with_name(f"{FLEET}.{secrets.token_hex(8)}")
    if not path.exists():
        unfinished.write_text(f"{secrets.token_hex(16)}\n")
        with contextlib.suppress(FileExistsError):  # another was first
            os.link(unfinished, path)
        unfinished.unlink()
    return path.read_text().strip()


def _file_name(stream: str) -> str:
    return f"{quote(stream, safe='')}{SUFFIX}"  # a stream may be called ..


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
    """Have a lease say something else, in one write of the same length: none is ever cut short."""
    text = json.dumps(claim._asdict()).encode().ljust(CLAIM_BYTES)
    os.pwrite(lease, text, 0)
    if os.fstat(lease).st_size > len(text):  # another version's, or damage
        os.ftruncate(lease, len(text))
