"""Who reads `GET /events`: each gets every frame, or loses some and begins anew.

One task makes frames for all, once a second; a reader holds a few at most, so that one on a poor
line, or in a tab that sleeps, costs no memory. Knows nothing of HTTP.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from service.errors import NotReady
from service.events import Events
from service.live.frames import Frames
from service.metrics import Metrics

log = logging.getLogger(__name__)

MOST_READERS = 100
FRAME_SECONDS = 1.0
# Frames that wait for a reader; of one more, all are lost to it.
MOST_WAITING = 3
# Where nothing else is sent for so long, an empty comment is: proxies end what is silent.
QUIET_SECONDS = 15.0
# Where EventSource has lost the connection, it comes again after so many milliseconds.
HELLO = b"retry: 2000\n\n"
COMMENT = b": \n\n"
END = b"event: end\ndata: {}\n\n"


class Reader:
    """One who reads frames: `async for frame in reader`, until the end.

    Attributes:
        is_behind: it has come, or has lost frames: its next one is to be a state.
        asks: it waits for that.
    """

    def __init__(self, asked: asyncio.Event) -> None:
        self.is_behind, self.asks = True, False
        self._asked, self._told = asked, asyncio.Event()
        self._waiting: deque[bytes] = deque()
        self._has_begun = self._ended = False

    def give(self, frame: bytes, *, is_state: bool = False) -> int:
        """Put a frame behind those that wait; return how many it has lost by that."""
        if is_state:
            self.is_behind = self.asks = False
            self._has_begun = True
        if self.is_behind:
            return int(self._has_begun and not self.asks)
        self._waiting.append(frame)
        if len(self._waiting) > MOST_WAITING:
            lost = len(self._waiting)
            self.begin_anew()
            return lost
        self._told.set()
        return 0

    def begin_anew(self) -> None:
        """What waits is of no use any more: have the next frame be a state."""
        self._waiting.clear()
        self.is_behind = True
        self._told.set()

    def end(self) -> None:
        """Send it the last frame, and no other."""
        self._waiting.clear()
        self._ended = True
        self._told.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield HELLO
        while not self._ended:
            if self._waiting:
                yield self._waiting.popleft()
                continue
            if self.is_behind and not self.asks:
                self.asks = True
                self._asked.set()
            self._told.clear()
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    await self._told.wait()
            except TimeoutError:
                yield COMMENT
        yield END


class Live:
    """The readers, and the task that makes their frames.

    Args:
        most: readers at a time.
        is_ending: whether the server of the application that we are mounted in has been told to
            end; our own says so by `end`.

    Attributes:
        ended: nobody is sent anything any more.
    """

    def __init__(
        self,
        frames: Frames,
        metrics: Metrics,
        events: Events,
        *,
        most: int = MOST_READERS,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._frames, self._metrics, self._events = frames, metrics, events
        self._most, self._is_ending = most, is_ending
        self._readers: set[Reader] = set()
        self._asked = asyncio.Event()
        self.ended = False
        metrics.live_readers.set_function(lambda: len(self._readers))

    def join(self) -> Reader:
        """Take in one more reader, who is to `leave`.

        Raises:
            NotReady: there are as many as may be, or the service is shutting down.
        """
        if self.ended:
            raise NotReady("The service is shutting down.")
        if len(self._readers) >= self._most:
            raise NotReady(
                f"{self._most} read /events already, the most that may at a time.", retry_after=5
            )
        reader = Reader(self._asked)
        self._readers.add(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        """Hold nothing for a reader any more."""
        self._readers.discard(reader)

    def end(self) -> None:
        """Send all readers their last frame."""
        self.ended = True
        self._asked.set()
        for reader in self._readers:
            reader.end()

    async def keep_making(self) -> None:
        """Make frames, one a second and a state for whoever asks, until the end."""
        hearing = asyncio.create_task(self._hear(), name="live events")
        loop = asyncio.get_running_loop()
        due = loop.time()
        is_failing = False
        with ThreadPoolExecutor(1, thread_name_prefix="live") as thread:
            try:
                while not self.ended:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(due):
                            await self._asked.wait()
                    self._asked.clear()
                    is_due = loop.time() >= due
                    if is_due:
                        due = max(due + FRAME_SECONDS, loop.time())
                    if self._is_ending():
                        self.end()
                    try:
                        await self._make(thread, is_due=is_due)
                        is_failing = False
                    except Exception:
                        if not is_failing:  # the same each second tells nothing
                            log.exception("frames of /events cannot be made")
                        is_failing = True
            finally:
                hearing.cancel()

    async def _hear(self) -> None:
        with self._events.subscribe() as listener:
            self._frames.new_events.extend(self._events)
            async for event in listener:
                self._frames.new_events.append(event)

    async def _make(self, thread: ThreadPoolExecutor, *, is_due: bool) -> None:
        asking = [reader for reader in self._readers if reader.asks]
        made = await asyncio.get_running_loop().run_in_executor(
            thread,
            partial(
                self._frames.make,
                is_due=is_due,
                watched=bool(self._readers),
                wants_state=bool(asking),
            ),
        )
        for reader in list(self._readers):
            if made.state is not None and reader in asking:
                reader.give(made.state, is_state=True)
            elif made.is_anew:
                reader.begin_anew()
            elif made.tick is not None:
                self._metrics.live_dropped.inc(reader.give(made.tick))
            # A hundred states written in one turn of the loop would hold up answers.
            await asyncio.sleep(0)
