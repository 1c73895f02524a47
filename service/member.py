"""Being one of several processes that share a folder: each says that it lives, and sees who does.

Below `.leases` of the folder `fleet` tells it from all others: where a machine has not mounted the
shared one, what lies at the same place is not it. Each process has a file, `owners/OWNER`, which it
touches every BEAT_SECONDS and keeps locked as long as it lives.

For how long another's file was not touched each tells by its own clock, from when it saw the file
first as it is: no two clocks are compared, and none that is set is read.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

FOLDER = ".leases"
FLEET = "fleet"
# A process that is not heard of for so long has lost its streams; how often it says that it lives.
LEASE_SECONDS, BEAT_SECONDS = 10.0, 1.0
# Files of processes that are gone for so many leases are removed.
FORGOTTEN_AFTER = 60
MOST_ABOUT_BYTES = 1000

# Tells this machine, since it was started, from all others.
_MACHINE = ""
with contextlib.suppress(OSError):
    _MACHINE = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class NotTheFolder(OSError):
    """What lies at the folder's place is not the fleet's: it is not mounted, or was removed."""


class Seen(NamedTuple):
    """How another's file was when last looked at, and since when it is so; `clock`."""

    modified: int
    since: float


class Member:
    """One process among those that share a folder. Any thread may use it.

    Args:
        state_folder: what they share.
        owner: this process's name: no other ever had it.
        fleet: tells the folder from all others: it is to be there already, with that; None: made
            where it is not, and taken as it is where it is.
        lease_seconds: after which a process that says nothing is gone; the same for all.
        on_silence: is called where it was not said for so long that we live: for a while we were
            gone to the others. They see from now on that we are not.

    Attributes:
        folder: where they have their files; fleet: the same, or what was found or made.
        ended: it is said no more.

    Raises:
        NotTheFolder: it is another. OSError: the folder cannot be written.
    """

    def __init__(
        self,
        state_folder: Path,
        owner: str,
        *,
        fleet: str | None = None,
        lease_seconds: float = LEASE_SECONDS,
        on_silence: Callable[[], object] = lambda: None,
    ) -> None:
        self.owner, self.lease_seconds, self._on_silence = owner, lease_seconds, on_silence
        self.folder = state_folder / FOLDER
        self._owners = self.folder / "owners"
        self._seen: dict[str, Seen] = {}
        self._alive: int | None = None
        self._slot: int | None = None
        self._beating, self.ended = threading.Lock(), threading.Event()
        self.fleet = _fleet_in(self.folder) if fleet is None else fleet
        self._beaten = clock()
        self._begin()
        self.look_around()

    def beat(self) -> None:
        """Say that we live.

        Raises:
            NotTheFolder: the folder is gone. OSError: it cannot be said.
        """
        with self._beating:
            if self.ended.is_set():
                return
            now = clock()
            was_removed = not self._is_there()
            if was_removed:
                self._begin()
            assert self._alive is not None
            before = os.fstat(self._alive).st_mtime
            os.utime(self._alive)
            # We may have been stopped in the midst of this; and the machine with all its clocks,
            # which the folder's tells.
            silent = max(clock() - self._beaten, os.fstat(self._alive).st_mtime - before)
            if was_removed or silent >= self.lease_seconds:
                self._on_silence()
            self._beaten = now

    @property
    def silence(self) -> float:
        """Seconds since we said last that we live."""
        return clock() - self._beaten

    def _begin(self) -> None:
        self._check()
        self._owners.mkdir(exist_ok=True)
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
            found = (self.folder / FLEET).read_text()
        except FileNotFoundError:
            found = ""
        if found.strip() != self.fleet:
            raise NotTheFolder(
                errno.ESTALE, "it is not the folder of this fleet", str(self.folder.parent)
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
            about = json_in(os.pread(descriptor, MOST_ABOUT_BYTES, 0))
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
        now, modified = clock(), os.fstat(descriptor).st_mtime_ns
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
        folder, number = self.folder / "slots", 0
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
        """Be gone."""
        with self._beating:
            self.ended.set()
            if self._alive is not None:
                if self._is_there():
                    self._file(self.owner).unlink(missing_ok=True)
                os.close(self._alive)
                self._alive = None
            if self._slot is not None:
                os.close(self._slot)
                self._slot = None


def clock() -> float:
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


def _is_free(descriptor: int) -> bool:
    """Whether the process that locks a file has ended."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def json_in(text: bytes) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
