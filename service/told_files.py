"""The files of streams, and what the log of changes is told of each that is read or changed."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from service.changes.changes import Changes
from service.kept import kept_of
from service.schemas import Discarded, KeptOfStream
from service.state_folder import Identity, StateFolder
from service.stream_record import StreamRecord
from ttc_core.methods import Method
from ttc_core.methods.contract import State
from ttc_core.state import Loaded
from ttc_core.state_file import StateError

# A file is removed once the log tells it on disk, or after so long if it cannot.
TOLD_SECONDS = 2.0


def tell_removed(changes: Changes, files: Iterable[tuple[str | None, str]]) -> None:
    """Tell that files, (stream, place) each, will be removed, and wait until that is on disk.

    Before it is done: a file that went without a line is one that somebody took away.
    """
    for stream, place in files:
        changes.note("removed", stream=stream, file=place)
    changes.wait(TOLD_SECONDS)


class ToldFiles:
    """The files of a folder. As with that, one thread at a time may write."""

    def __init__(self, folder: StateFolder, changes: Changes) -> None:
        self.folder, self._changes = folder, changes

    def tell_loaded(
        self, name: str, loaded: Loaded, kept: KeptOfStream, record: StreamRecord
    ) -> None:
        """Tell that a stream is as its file had it."""
        self._changes.note(
            "load",
            stream=name,
            file=self.folder.place(name),
            sha256=loaded.sha256,
            mark=kept.changes and kept.changes.model_dump(),
            images=record.images,
            version=record.version,
            drift=record.drift,
        )

    def save(
        self, name: str, method: Method, state: State, kept: KeptOfStream, version: int
    ) -> Identity | None:
        """Write a stream's file, with where the log stood; return which it is.

        Raises:
            as `StateFolder.save`.
        """
        kept_beside = kept.model_copy(update={"changes": self._changes.head})
        file, sha256 = self.folder.save(
            name, method, state, kept_beside.model_dump(exclude_defaults=True)
        )
        self._changes.note(
            "save",
            stream=name,
            file=self.folder.place(name),
            sha256=sha256,
            images=kept.images,
            version=version,
        )
        return file

    def make_way(self, name: str, known: Identity | None) -> Path | None:
        """Set aside what lies in a stream's place, unless it is the known file; return where it is.

        Raises:
            OSError: it cannot be renamed.
        """
        kept = self.folder.make_way(name, known)
        if kept is not None:
            self._tell_rejected(name, kept, "it was not the stream's")
        return kept

    def set_aside(self, name: str, why: str) -> Path:
        """Keep what lies in a stream's place under another name; return that.

        Raises:
            OSError: it cannot be renamed.
        """
        kept = self.folder.set_aside(name)
        self._tell_rejected(name, kept, why)
        return kept

    def _tell_rejected(self, name: str, kept: Path, why: str) -> None:
        place = self.folder.place(name)
        self._changes.note("rejected", stream=name, file=place, kept=kept.name, reason=why)

    def holds(self, name: str, source: Method) -> Discarded | None:
        """What a stream's file holds; None: it is none of the stream's, or there is none.

        Args:
            source: a method at the source, whose stream it is.
        """
        with contextlib.suppress(StateError):
            # Not read while others wait to write.
            steps, pending = self.folder.counts(name, source)
            beside = kept_of(name, self.folder.of_stream(name, source))
            return Discarded(
                steps=steps,
                pending_batches=pending,
                labelled=beside.labelled,
                correct=beside.correct,
            )
        return None
