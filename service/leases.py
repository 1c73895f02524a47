"""Who may write a stream's file where several processes share a state folder: leases, in files.

Each stream has one, `.leases/streams/NAME.lease`, with its owner and an epoch that grows with every
change of hands. An owner that has not said for as long as a lease lasts that it lives (`member`)
has lost its streams, one on this machine as soon as its lock is free. Who changes a stream's files
holds the lock of its lease meanwhile and looks whether owner and epoch still are its own: a process
that slept longer than its lease cannot write over who came after. The file system is to have locks
that hold between all of them (flock: a local disk, NFS from version 4, CephFS).
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from service.member import BEAT_SECONDS, LEASE_SECONDS, Member, json_in
from ttc_core.errors import UserError

log = logging.getLogger(__name__)

SUFFIX = ".lease"
# How often others' files are looked at: of one that is asked about later it is known since when.
LOOK_BEATS = 5
# How long a lease's lock is waited for: whoever has it writes the stream's file.
LOCK_SECONDS, LOCK_PAUSE = 2.0, 0.005
MOST_CLAIM_BYTES = 1000
# A lease has so many bytes, if they suffice: to change hands it need not grow, as on a full disk.
CLAIM_BYTES = 200


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
        fleet: tells the folder from all others: it is to be there already, with that; None: made
            where it is not, and taken as it is where it is.
        lease_seconds: after which a process that says nothing has lost its streams; the same for
            all that share the folder.
        on_lost: is called, in any thread, with a stream that turned out to be another's.

    Attributes:
        member: says that we live, and sees who does.

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
        self.owner, self.on_lost = owner, on_lost
        # The epochs of those that are ours; and the last of any that ever was.
        self._owned: dict[str, int] = {}
        self._epoch = 0
        # Those of which we have to look first whether they still are.
        self._doubted: set[str] = set()
        self.member = Member(
            folder, owner, fleet=fleet, lease_seconds=lease_seconds, on_silence=self._doubt
        )
        self._streams = self.member.folder / "streams"
        self._streams.mkdir(exist_ok=True)

    def keep_beating(self) -> None:
        """Say that we live, in a thread of its own, until `close`."""
        interval = min(BEAT_SECONDS, self.member.lease_seconds / 5)

        def beat() -> None:
            beats = 0
            while not self.member.ended.wait(interval):
                beats += 1
                try:
                    self.beat()
                    if beats % LOOK_BEATS == 0:
                        self.member.look_around()
                except OSError as error:
                    log.warning("leases cannot be renewed: %s", error.strerror or error)

        threading.Thread(target=beat, name="leases", daemon=True).start()

    def beat(self) -> None:
        """Say that we live; after a lease's length without that see which streams still are ours.

        Raises:
            NotTheFolder: the folder is gone. OSError: it cannot be said.
        """
        self.member.beat()
        for stream in list(self._doubted):
            self._see_whether_lost(stream)
            if self.member.silence >= BEAT_SECONDS:
                self.member.beat()  # of thousands it takes longer than a lease

    def _doubt(self) -> None:
        self._doubted |= self._owned.keys()

    def close(self) -> None:
        """Give all streams up: the next who asks has them."""
        self._owned.clear()
        self.member.close()

    def owns(self, stream: str) -> bool:
        """Whether a stream was ours when last we looked."""
        return stream in self._owned

    def holds(self, stream: str) -> bool:
        """Whether a stream is ours for sure: we were heard of within the lease."""
        is_heard = self.member.silence < self.member.lease_seconds
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
        self.member.beat()
        if self.member.ended.is_set():
            raise FileNotFoundError(errno.ENOENT, "the leases are closed")
        if stream in self._doubted:
            self._see_whether_lost(stream)
        if self.holds(stream):
            return None
        with self._locked(stream) as lease:
            found = _claim_in(lease)
            if found.owner != self.owner and not self.member.is_gone(found.owner):
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


def _file_name(stream: str) -> str:
    return f"{quote(stream, safe='')}{SUFFIX}"  # a stream may be called ..


def _claim_in(lease: int) -> Claim:
    """What a lease says; nobody's where it was never written, or is damaged."""
    found = json_in(os.pread(lease, MOST_CLAIM_BYTES, 0))
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
