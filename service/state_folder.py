"""The folder that streams are saved in: held by one process, and able to hold anything.

Or shared by processes that have a lease of each stream whose file they write (`leases`).
A stream is the file `NAME.safetensors`; all other files are left alone. What lies in a stream's
place but is not its state is set aside as `NAME.rejected`, and nothing is ever written over it.
Where other weights were loaded into a running service, their streams are in a folder of their own
beside, `weights-DIGEST`.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from service.leases import Leases
from service.schemas import STREAM_NAME
from ttc_core.errors import UserError, shown, told
from ttc_core.guard import saved_snapshots
from ttc_core.methods import Method
from ttc_core.methods.contract import State
from ttc_core.state import (
    Loaded,
    encoded,
    load_state,
    read_counters,
    read_of_stream,
    save_state,
    sync_folder,
)
from ttc_core.state_file import MOST_BYTES, StateError

SUFFIX = ".safetensors"
LEASE = ".lease"
# Who holds a folder that is shared.
REPLICAS = "the replicas of ttc serve --ray"
# Names the weights whose streams lie in the folder itself, once there are others' beside.
OWNER = ".weights"
# Folders of others' streams, each with the digest of its weights behind it.
APART = "weights-"
MOST_DIGEST_BYTES = 64
# Of a file: the inode, and when it was written, in nanoseconds.
Identity = tuple[int, int]
MOST_OWNER_BYTES = 200


class StateFolderError(UserError):
    """The folder cannot be used at all; the text says why."""


class StateFolder:
    """Saved streams by name. One process writes: the lease ends with it, however it ends.

    A folder that cannot be written is read all the same. Any thread may read; one at a time may
    write.

    Args:
        method, model: as the user gave them; files of others do not fit.
        code: digests of their code, `method` and `model`, where it is the user's own.
        leases: of the processes that share the folder; None: it is ours alone.
        inside: the folder's name in the --state-dir, if it is not that itself.

    Raises:
        StateFolderError: it is no folder, cannot be made, or another process holds it.
    """

    def __init__(
        self,
        path: Path,
        *,
        method: str,
        model: str,
        code: Mapping[str, str] | None = None,
        inside: str = "",
        leases: Leases | None = None,
    ) -> None:
        self.path, self._inside, self._leases = path, inside, leases
        self._names: dict[str, Any] = {"name": method, "model": model, "code": dict(code or {})}
        self._lease: int | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise StateFolderError(f"--state-dir {path} cannot be used: {reason}.") from None
        self.problem: str | None = None
        """Why nothing can be saved, as it was at the start; None: it could be at last."""
        try:
            self._hold()
        except OSError as error:
            self.problem = error.strerror or str(error)

    def close(self) -> None:
        """Give the lease up."""
        if self._lease is not None:
            os.close(self._lease)
            self._lease = None

    def names(self) -> list[str]:
        """The streams that have a file here.

        Raises:
            OSError: the folder cannot be read.
        """
        with os.scandir(self.path) as entries:
            found = (stream_of(entry.name) for entry in entries)
            return sorted(stream for stream in found if stream is not None)

    def place(self, stream: str) -> str:
        """Where a stream's file is, from the --state-dir on."""
        return f"{self._inside}/{_file_name(stream)}" if self._inside else _file_name(stream)

    def size(self, stream: str) -> int:
        """Bytes of a stream's file; 0 if there is none, or none that would be read."""
        try:
            status = self._file(stream).stat()
        except OSError:
            return 0
        is_read = stat.S_ISREG(status.st_mode) and status.st_size <= MOST_BYTES
        return status.st_size if is_read else 0

    def identity(self, stream: str) -> Identity | None:
        """Tell a stream's file from any other in its place; None: there is none."""
        try:
            status = self._file(stream).lstat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def of_stream(self, stream: str, method: Method) -> dict[str, Any]:
        """What a stream's file keeps beside the state of a method, which is not read.

        Raises:
            StateError: there is none, or it is none of this stream's.
        """
        return read_of_stream(self._file(stream), method, **self._names)

    def load(self, stream: str, method: Method) -> tuple[Identity, Loaded] | None:
        """Restore a method at the source; return from which file and what else is in it, if any.

        Raises:
            StateError: the file cannot be read, or is none of this stream's; the method is at the
                source.
        """
        path = self._file(stream)
        found = self.identity(stream)  # before it is read: whoever replaces it has another
        return None if found is None else (found, load_state(path, method, **self._names))

    def unfit(self, method: Method) -> str | None:
        """Why the state of a method at the source could not be saved, whatever the folder is."""
        try:
            encoded(method, **self._names)
        except Exception as error:  # a user's own method may raise anything
            return told(error)
        return None

    def make_way(self, stream: str, known: Identity | None) -> Path | None:
        """Set aside what lies in a stream's place, unless it is the known file; return where it is.

        Raises:
            OSError: it cannot be renamed.
        """
        found = self.identity(stream)
        return None if found in (None, known) else self.set_aside(stream)

    def save(
        self,
        stream: str,
        method: Method,
        state: State | None = None,
        of_stream: Mapping[str, Any] | None = None,
    ) -> tuple[Identity | None, str]:
        """Write a stream's state in place of the one before; return which file it is, and its
        SHA-256.

        Args:
            state: as the method gave it before; None: as it is now.
            of_stream: what `load` is to return beside it.

        Raises:
            OSError: it cannot be written; what was saved before is still there.
            LeaseLost: another process has the stream.
            TypeError: no file can hold it.
        """
        file, names = self._file(stream), self._names
        with self._changing(stream):
            sha256 = save_state(file, method, **names, state=state, of_stream=of_stream)
            return self.identity(stream), sha256

    def set_aside(self, stream: str) -> Path:
        """Keep what lies in a stream's place under a name of its own; return that.

        Raises:
            OSError: it cannot be renamed.
            LeaseLost: another process has the stream.
        """
        with self._changing(stream):
            return set_aside(self._file(stream))

    def counts(self, stream: str, method: Method) -> tuple[int, int]:
        """The steps and pending batches that a stream's file holds.

        Raises:
            StateError: there is none, or it is none of this stream's.
        """
        counts = read_counters(self._file(stream), method, **self._names).get("counters", {})
        return _whole(counts.get("steps")), _whole(counts.get("pending_batches"))

    def snapshots(self, stream: str, method: Method) -> dict[int, int]:
        """The versions that a stream's file has snapshots of, and after how many images each was.

        Raises:
            StateError: there is none, or it is none of this stream's.
        """
        path = self._file(stream)
        numbers = read_counters(path, method, **self._names)
        try:
            return saved_snapshots(numbers)
        except (KeyError, ValueError):
            raise StateError(f"The snapshots in {shown(path)} are none.") from None

    def remove(self, stream: str) -> None:
        """Remove a stream's file, if there is one; `sync` makes it last.

        Raises:
            OSError: it is still there.
            LeaseLost: another process has the stream.
        """
        if os.path.lexists(self._file(stream)):
            with self._changing(stream):
                self._file(stream).unlink(missing_ok=True)

    def sync(self) -> None:
        """Make removals outlast a power cut, where the folder allows it."""
        with contextlib.suppress(OSError):
            sync_folder(self.path)

    def _file(self, stream: str) -> Path:
        return self.path / _file_name(stream)

    def _changing(self, stream: str) -> contextlib.AbstractContextManager[object]:
        """Change files of a stream in the block: the folder is held, and the stream ours."""
        self._hold()
        return contextlib.nullcontext() if self._leases is None else self._leases.writing(stream)

    def _hold(self) -> None:
        """Take the lease, or see that it still is ours: folders are deleted and made anew.

        Raises:
            OSError: the folder cannot be written. StateFolderError: another process holds it.
        """
        lease = self.path / LEASE
        if self._lease is not None:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(self._lease), lease.lstat()):
                    return
            self.close()
        self.path.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, "it cannot be written to", str(self.path))
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(lease, flags, 0o644)
        try:
            alone = self._leases is None
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            whose = f"process {os.getpid()} on {socket.gethostname()}" if alone else REPLICAS
            with contextlib.suppress(OSError):  # a full disk: held, but by nobody that is named
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, whose.encode(), 0)
            if alone:  # else it may be another's, who is writing it
                self._remove_unfinished()
        except BlockingIOError:
            owner = os.pread(descriptor, MOST_OWNER_BYTES, 0).decode(errors="replace")
            os.close(descriptor)
            named = shown(owner) or "another process"
            raise StateFolderError(
                f"--state-dir {self.path} is held by {named}; end it, or choose another folder."
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        self._lease, self.problem = descriptor, None

    def _remove_unfinished(self) -> None:
        """Remove what a process that was killed while saving has left."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                whole, _, last = entry.name.rpartition(".")
                if last == "part" and stream_of(whole) is not None:
                    with contextlib.suppress(OSError):
                        os.unlink(entry)


class StateFolders:
    """A --state-dir with the streams of all weights that were served from it, each apart.

    Those of the weights that were there first lie in the folder itself. So weights that come back
    find their streams, after a restart, too.

    Args:
        path, method, model, code: as `StateFolder` has them.

    Raises:
        StateFolderError: as `StateFolder`.
    """

    def __init__(self, path: Path, **names: Any) -> None:
        self._names = names
        self._itself = StateFolder(path, **names)

    def of(self, digest: str) -> StateFolder:
        """The folder of the streams of some weights; `leave` it, or `close`.

        Raises:
            StateFolderError: it cannot be used.
        """
        apart = self._itself.path / f"{APART}{digest}"
        if self._owner() in (None, digest) and not apart.is_dir():
            return self._itself
        return StateFolder(apart, **self._names, inside=apart.name)

    def beside(self, digest: str, served: str) -> StateFolder:
        """As `of`, for weights that are to be served after those that are now.

        Raises:
            StateFolderError: it cannot be used.
        """
        if self._owner() is None:
            owner = self._itself.path / OWNER
            unfinished = owner.with_name(f"{OWNER}.part")
            try:
                unfinished.write_text(served)
                unfinished.replace(owner)
                sync_folder(owner.parent)
            except OSError as error:
                raise StateFolderError(
                    f"--state-dir {self._itself.path} cannot be written to: {error.strerror}."
                ) from None
        return self.of(digest)

    def _owner(self) -> str | None:
        """The weights whose streams lie in the folder itself, if that was ever said."""
        try:
            with (self._itself.path / OWNER).open("rb") as file:
                return file.read(MOST_DIGEST_BYTES).decode(errors="replace").strip() or None
        except OSError:
            return None

    def remove_others(
        self, served: StateFolder, tell: Callable[[list[str]], object]
    ) -> tuple[int, str | None]:
        """Remove the streams of all weights but those that are served.

        Args:
            tell: is given the files that will be removed, from the --state-dir on, before they are.

        Returns:
            How many were, and the first reason why one could not be.
        """
        removed, problem = 0, None
        try:
            apart = sorted(each for each in self._itself.path.glob(f"{APART}*") if each.is_dir())
            folders = [each for each in (self._itself.path, *apart) if each != served.path]
            files = [file for each in folders for file in each.iterdir() if stream_of(file.name)]
            tell([str(file.relative_to(self._itself.path)) for file in files])
            for file in files:
                try:
                    file.unlink(missing_ok=True)  # processes may do this at the same time
                    removed += 1
                except OSError as error:
                    problem = problem or f"{shown(file.name)}: {error.strerror}"
            for folder in folders:
                with contextlib.suppress(OSError):
                    sync_folder(folder)
        except OSError as error:
            problem = problem or f"the state folder: {error.strerror}"
        return removed, problem

    def leave(self, folder: StateFolder) -> None:
        """Give up the folder of weights that are served no more."""
        if folder is not self._itself:
            folder.close()

    def close(self) -> None:
        """Give the lease up."""
        self._itself.close()


def set_aside(path: Path) -> Path:
    """Keep what lies at `path` under a name of its own beside it; return that.

    Raises:
        OSError: it cannot be renamed.
    """
    for number in count():
        kept = path.with_suffix(f".rejected.{number}" if number else ".rejected")
        if not os.path.lexists(kept):
            path.rename(kept)
            sync_folder(path.parent)
            return kept
    raise AssertionError


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _file_name(stream: str) -> str:
    return f"{quote(stream, safe='')}{SUFFIX}"


def stream_of(file_name: str) -> str | None:
    """The stream that a file belongs to; None: no stream has a file of that name."""
    stream = unquote(file_name.removesuffix(SUFFIX))
    # Another spelling of a stream's name would be another file.
    is_stream = STREAM_NAME.fullmatch(stream) and _file_name(stream) == file_name
    return stream if is_stream else None
