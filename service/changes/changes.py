"""What is to stand in the log of changes: noted by any thread, written by one of its own.

Whoever notes a change waits for nothing. What cannot be written waits; beyond MOST_WAITING it is
lost, and how many lines were is a line itself.
"""

import contextlib
import logging
import math
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from service.changes.chain import Chain
from service.changes.files import Place
from service.changes.sums import Sum
from service.events import Events
from service.schemas import ALL_STREAMS, ChangesMark
from ttc_core.envelope.verdicts import Verdicts
from ttc_core.errors import told
from ttc_core.methods import Adaptation

# Lines come together for so long before they are written and synced.
FLUSH_SECONDS = 1.0
# After what could not be written.
RETRY_SECONDS = 5.0
# What a stream learns is a line in so many seconds, unless it is saved before; looked at so often.
SUM_SECONDS, LOOK_SECONDS = 60.0, 10.0
MOST_WAITING = 20_000
# Written at once: a file is as much longer than it should be, at most.
MOST_AT_ONCE = 500
LONGEST_TEXT = 1000
# What was learned before these is told before: so the log has all that a saved stream has.
_BEHIND = frozenset(
    {"save", "reset", "roll_back", "second_view_off", "weights", "expired", "stopped"}
)


class Changes:
    """The log of changes of one writer in a --state-dir; without one, nothing is noted.

    Args:
        writer: whose log, where several processes share the folder.
        most_bytes, most_files: as `Chain` has them.

    Attributes:
        lost: lines that were not written and never will be.
    """

    def __init__(
        self,
        folder: Path | None,
        events: Events,
        *,
        writer: str = "",
        most_bytes: int = 64 << 20,
        most_files: int = 32,
    ) -> None:
        self._events = events
        self._chain = None
        if folder is not None:
            place = Place(folder, writer)
            self._chain = Chain(place, most_bytes=most_bytes, most_files=most_files)
        self._sums: dict[str, Sum] = {}
        self._waiting: deque[dict[str, Any]] = deque()
        self.lost = self._untold = 0
        self._lock = threading.Lock()  # held for moments
        # Something is to be written; and that at once. Who waits for it.
        self._noted, self._soon = threading.Event(), threading.Event()
        self._waiters: list[threading.Event] = []
        self._ends = False
        self._thread = threading.Thread(target=self._keep_writing, name="changes", daemon=True)
        if self._chain is not None:
            self._thread.start()

    @property
    def head(self) -> ChangesMark | None:
        """The latest line that is certainly on disk; None: there is none."""
        return None if self._chain is None else self._chain.synced

    def note(self, event: str, *, stream: str | None = None, **fields: Any) -> None:
        """Have a line tell a change.

        Args:
            event: its kind in a word.
            stream: whose; "*": that of all.
            fields: what else there is to tell, as JSON has it; texts are cut.
        """
        if self._chain is None:
            return
        line: dict[str, Any] = {"event": event, **{n: _cut(v) for n, v in fields.items()}}
        if stream is not None:
            line["stream"] = stream
        with self._lock:
            now = time.time()  # here, so that no line has a later time than the one behind it
            line["time"] = round(now, 3)
            if event in _BEHIND:
                of_all = stream is None or stream == ALL_STREAMS
                for name in [*self._sums] if of_all else [stream]:
                    if name is not None and (each := self._sums.pop(name, None)) is not None:
                        self._have_wait(each.told(name, now))
            self._have_wait(line)
        self._noted.set()

    def learned(
        self,
        stream: str,
        images: int,
        outcome: Adaptation,
        *,
        version_before: int,
        version: int,
        drift: float | None,
        verdicts: Verdicts,
    ) -> None:
        """Add what came of a batch to what its stream learned of late.

        Args:
            version_before, version: the stream's, before and after; drift: after it, if known.
            verdicts: what the envelope cut of it, and what it dropped.
        """
        if self._chain is None:
            return
        with self._lock:
            each = self._sums.get(stream)
            if each is None and len(self._sums) >= MOST_WAITING:
                self.lost += 1
                self._untold += 1
                return
            if each is None:
                each = self._sums[stream] = Sum(time.time(), version_before)
            each.add(images, outcome, version, drift, verdicts)

    def close(self) -> None:
        """Write what there is to write, as far as that can be done now, and end."""
        if self._chain is None:
            return
        self._ends = True
        self._soon.set()
        self._noted.set()
        self._thread.join()

    def wait(self, seconds: float) -> bool:
        """Wait until all that was noted is on disk; return whether it is, after so long at most."""
        if self._chain is None:
            return True
        written = threading.Event()
        with self._lock:
            self._waiters.append(written)
        self._soon.set()
        self._noted.set()
        return written.wait(seconds)

    def _have_wait(self, line: dict[str, Any]) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self.lost += 1
            self._untold += 1
        else:
            self._waiting.append(line)

    # In the thread of its own

    def _keep_writing(self) -> None:
        assert self._chain is not None
        ending = failed = False
        while not ending:
            self._noted.wait(LOOK_SECONDS)
            self._soon.wait(RETRY_SECONDS if failed else FLUSH_SECONDS)
            self._noted.clear()
            self._soon.clear()
            ending = self._ends
            # While nothing can be written they go on: one line for the whole time.
            if ending or not failed:
                self._end_sums(math.inf if ending else time.time() - SUM_SECONDS)
            failed = not self._write(self._chain, closed=ending)
            if failed:
                self._noted.set()
        if failed:
            self._give_up(self._chain)
        self._chain.close()

    def _end_sums(self, begun: float) -> None:
        """Tell what streams learned since such a moment or longer ago."""
        with self._lock:
            now = time.time()
            for name in [name for name, each in self._sums.items() if each.since <= begun]:
                self._waiting.append(self._sums.pop(name).told(name, now))

    def _give_up(self, chain: Chain) -> None:
        """Tell how many lines will never be written; that one may still find a place."""
        with self._lock:
            self.lost += len(self._waiting)
            lines = len(self._waiting) + self._untold
        with contextlib.suppress(Exception):
            chain.append([{"time": round(time.time(), 3), "event": "lost", "lines": lines}])
            chain.sync(closed=True)

    def _write(self, chain: Chain, *, closed: bool) -> bool:
        """Write all that waits; return whether it could be."""
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
            waiters, self._waiters = self._waiters, []
            untold, self._untold = self._untold, 0
            if untold:
                waiting.append({"time": round(time.time(), 3), "event": "lost", "lines": untold})
        try:
            while waiting:
                part = [waiting[at] for at in range(min(MOST_AT_ONCE, len(waiting)))]
                chain.append(part)
                for _ in part:
                    waiting.popleft()
            if closed or not chain.is_synced:
                chain.sync(closed=closed)
        except Exception as error:  # nothing that goes wrong here is to end the service
            with self._lock:
                if untold and waiting:
                    waiting.pop()
                    self._untold += untold
                self._waiters += waiters
                self._waiting.extendleft(reversed(waiting))
                while len(self._waiting) > MOST_WAITING:
                    self._waiting.pop()
                    self.lost += 1
                    self._untold += 1
            self._events.note_repeated(
                "changes_not_written", level=logging.ERROR, reason=told(error)
            )
            return False
        for each in waiters:
            each.set()
        return True


def _cut(value: Any) -> Any:
    is_long = isinstance(value, str) and len(value) > LONGEST_TEXT
    return f"{value[:LONGEST_TEXT]}…" if is_long else value
