"""What happened to the service and its streams: kept for /status, logged, told to who listens."""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from service import tracing
from service.errors import NotReady

log = logging.getLogger(__name__)

EVENTS_KEPT = 100
# How long what repeats counts as one event: a skip a batch would bury everything else.
REPEAT_SECONDS = 60.0
MOST_REPEATED = 1000
LONGEST_TEXT = 1000
MOST_LISTENERS = 32
# Events that wait for a listener; of more, the oldest are lost to it.
EVENTS_WAITING = 100


@dataclass
class _Repeated:
    """An event that may come again: its entry, and what the log has of it."""

    entry: dict[str, Any]
    logged: float
    untold: int = 0


class Listener:
    """The events since `Events.subscribe`, for one task: `async for event in listener`.

    A task that is too slow loses the oldest, and is told how many by an event `lost` with a
    `count` in their place.
    """

    def __init__(self) -> None:
        self._waiting: deque[dict[str, Any]] = deque(maxlen=EVENTS_WAITING)
        self._lost = 0
        self._lock = threading.Lock()
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Event()

    def tell(self, entry: dict[str, Any]) -> None:
        """Put an event behind the others that wait; any thread may."""
        with self._lock:
            self._lost += len(self._waiting) == EVENTS_WAITING
            self._waiting.append(entry)
            if len(self._waiting) > 1:
                return  # the loop knows that something waits
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens
            self._loop.call_soon_threadsafe(self._told.set)

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            with self._lock:
                lost, self._lost = self._lost, 0
                event = self._waiting.popleft() if self._waiting and not lost else None
            if lost:
                yield {"time": time.time(), "event": "lost", "count": lost}
            elif event is not None:
                yield event
            else:
                await self._told.wait()
                self._told.clear()


class Events:
    """The latest events, oldest first. Any thread may add one."""

    def __init__(self) -> None:
        self._kept: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self._repeated: dict[tuple[object, ...], _Repeated] = {}
        self._listeners: set[Listener] = set()
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(list(self._kept))

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[Listener]:
        """Hear of events as they come until the block ends; one that repeats comes once a minute.

        Raises:
            NotReady: MOST_LISTENERS are listening.
        """
        listener = Listener()
        with self._lock:
            if len(self._listeners) >= MOST_LISTENERS:
                raise NotReady(f"{MOST_LISTENERS} are listening to events, the most that may.")
            self._listeners.add(listener)
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)

    def note(
        self,
        event: str,
        *,
        message: str | None = None,
        level: int = logging.INFO,
        error: BaseException | None = None,
        **fields: Any,
    ) -> None:
        """Keep an event and log it.

        Args:
            event: its kind in a word.
            message: the log line's sentence, where the word is not enough.
            error: whose traceback the log shows.
            fields: what else there is to tell: the stream, the reason.
        """
        fields = _cut(fields)
        with self._lock:
            self._keep(event, fields)
        log.log(
            level, message or event, exc_info=error, extra={"fields": {"event": event, **fields}}
        )

    def note_repeated(
        self,
        event: str,
        *,
        level: int = logging.INFO,
        varying: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Keep and log what may happen with every batch.

        What is the same within a minute, but for `varying`, is one entry with a `count`; from the
        second on it has the time of the `latest`, and what varies as it was then. The log has the
        first at once, then at most one line a minute, whose `count` is of those since the line
        before; those after its last line are counted in `/status` and the metric alone. Of more
        than MOST_REPEATED that differ within a minute, the further ones are one entry without
        fields.
        """
        more = varying or {}
        with self._lock:
            count, fields = self._repeat(event, _cut(fields), more)
        if count:
            told = {"event": event, **fields, **more, "count": count}
            log.log(level, event, extra={"fields": told})

    def _repeat(
        self, event: str, fields: dict[str, Any], varying: Mapping[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """Note it once more; return how many the log is to be told of, and what it may tell."""
        now = time.monotonic()
        key: tuple[object, ...] = (event, *sorted(fields.items()))
        if key not in self._repeated and len(self._repeated) >= MOST_REPEATED:
            # They stand in the order in which they were logged: the first that is young ends it.
            for old in list(takewhile(lambda k: self._is_old(k, now), self._repeated)):
                del self._repeated[old]
            if len(self._repeated) >= MOST_REPEATED:
                key, fields = (event,), {}
        last = self._repeated.get(key)
        if last is not None and not self._is_old(key, now):
            last.entry.update(varying, count=last.entry["count"] + 1, latest=time.time())
            last.untold += 1
            return 0, fields
        self._repeated.pop(key, None)
        self._repeated[key] = _Repeated(self._keep(event, {**fields, **varying, "count": 1}), now)
        return 1 + (last.untold if last is not None else 0), fields

    def _is_old(self, key: tuple[object, ...], now: float) -> bool:
        return now - self._repeated[key].logged >= REPEAT_SECONDS

    def _keep(self, event: str, fields: dict[str, Any]) -> dict[str, Any]:
        entry = {"time": time.time(), "event": event, **fields, **tracing.ids()}
        self._kept.append(entry)
        for listener in self._listeners:
            listener.tell(dict(entry))  # its count may rise while it is read
        return entry


def _cut(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields with their texts cut: some are a user's own, of any length."""
    return {
        name: f"{value[:LONGEST_TEXT]}…"
        if isinstance(value, str) and len(value) > LONGEST_TEXT
        else value
        for name, value in fields.items()
    }
