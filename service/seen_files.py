"""What the files of streams were seen to be: of doubted streams, or none of what is served."""

import threading
from collections.abc import Mapping

from service.schemas import KeptOfStream
from ttc_core.state_file import StateOfAnother, StateOutside

# Why a file does not fit that is no state at all.
UNREADABLE = "no state that can be read"


class SeenFiles:
    """The files that were written, or looked at, and of which something is to be told.

    Any thread may use it.
    """

    def __init__(self) -> None:
        self._doubted: dict[str, KeptOfStream] = {}
        self._unfit: dict[str, str] = {}
        self._lock = threading.Lock()  # held for moments

    def note(self, name: str, kept: KeptOfStream | None) -> None:
        """Know what a stream's file keeps, if it is doubted; None: there is none of it."""
        with self._lock:
            self._unfit.pop(name, None)
            self._doubted.pop(name, None)
            if kept is not None and kept.doubted_since is not None:
                self._doubted[name] = kept

    def note_unfit(self, name: str, error: Exception) -> None:
        """What lies in a stream's place is none of what is served, and will be set aside."""
        with self._lock:
            self._doubted.pop(name, None)
            self._unfit[name] = unfit_reason(error)

    @property
    def doubted(self) -> Mapping[str, KeptOfStream]:
        """What the files of doubted streams keep; a copy."""
        with self._lock:
            return dict(self._doubted)

    @property
    def unfit(self) -> Mapping[str, str]:
        """Why each file that will be set aside is none of what is served; a copy."""
        with self._lock:
            return dict(self._unfit)


def unfit_reason(error: Exception) -> str:
    """Why a file is none of what is served; it does not say where the file lies."""
    if isinstance(error, StateOutside):
        return f"outside of the envelope: {error.clause}"
    return error.difference if isinstance(error, StateOfAnother) else UNREADABLE
