"""Which streams this replica has: taken over from others before their requests are answered, handed
over when others ask. Knows neither Ray nor HTTP.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

from service.errors import NotReady
from service.handing_over import HandingOver
from service.leases import Leases

log = logging.getLogger(__name__)

# How long a stream is waited for that is another's before its client is told to come back, and how
# often its lease is looked at meanwhile.
TAKE_OVER_SECONDS, LOOK_SECONDS = 15.0, 0.05
# How long the requests of a stream are waited for that is asked for.
FINISH_SECONDS, FINISH_PAUSE = 10.0, 0.005


class Ownership:
    """The streams of this replica, each with the requests that are of it.

    Args:
        ask: asks the owner of a stream, by both names, to hand it over; returns once it was asked.
    """

    def __init__(
        self,
        leases: Leases,
        handing_over: HandingOver,
        ask: Callable[[str, str], Awaitable[object]],
    ) -> None:
        self.leases = leases
        self._handing_over, self._ask = handing_over, ask
        self._requests = Counter[str]()
        self._leaving = set[str]()
        self._taking = dict[str, asyncio.Task[None]]()
        self._losing = set[asyncio.Task[None]]()
        loop = asyncio.get_running_loop()
        leases.on_lost = lambda stream: loop.call_soon_threadsafe(self._lost, stream)

    @contextlib.asynccontextmanager
    async def having(self, stream: str) -> AsyncIterator[None]:
        """Answer a request of a stream in the block: it is ours until then.

        Raises:
            NotReady: another replica has it, and did not hand it over in time.
        """
        while not self.leases.holds(stream) or stream in self._leaving:
            if stream in self._leaving:
                raise NotReady(f"Stream {stream} is on its way to another replica.", retry_after=1)
            await self._take(stream)
        self._requests[stream] += 1
        try:
            yield
        finally:
            self._requests[stream] -= 1
            if not self._requests[stream]:
                del self._requests[stream]

    async def _take(self, stream: str) -> None:
        """Take a stream over, once for all requests that wait for it."""
        task = self._taking.get(stream)
        if task is None:
            task = asyncio.create_task(self._take_over(stream), name=f"taking {stream}")
            self._taking[stream] = task
            task.add_done_callback(lambda _: self._taking.pop(stream))
        await asyncio.shield(task)

    async def _take_over(self, stream: str) -> None:
        began = time.monotonic()
        while True:
            try:
                owner = await asyncio.to_thread(self.leases.claim, stream)
            except OSError as error:
                log.warning("stream %s cannot be taken: %s", stream, error.strerror or error)
                raise NotReady(
                    f"The lease of stream {stream} cannot be had: {error.strerror}.", retry_after=1
                ) from error
            waited = time.monotonic() - began
            if owner is None:
                log.info("stream %s is ours, after %.3f s", stream, waited)
                return
            if waited >= TAKE_OVER_SECONDS:
                raise NotReady(f"Stream {stream} is still another replica's.", retry_after=1)
            await self._ask(owner, stream)
            await asyncio.sleep(LOOK_SECONDS)

    async def take_free(self, streams: list[str]) -> None:
        """Take those of some streams that are nobody's, or whose owner is gone."""

        def claim() -> None:
            for stream in streams:
                with contextlib.suppress(OSError):
                    self.leases.claim(stream)

        await asyncio.to_thread(claim)

    async def let_go(self, stream: str) -> bool:
        """Hand a stream over, if it is ours: its requests are answered first, and it is saved.

        Returns:
            Whether it is nobody's now.
        """
        if stream in self._leaving or stream in self._taking:
            return False
        self._leaving.add(stream)
        try:
            async with asyncio.timeout(FINISH_SECONDS):
                while self._requests[stream]:
                    await asyncio.sleep(FINISH_PAUSE)
            if self.leases.owns(stream) and not await self._handing_over.hand_over(stream):
                return False
            await asyncio.to_thread(self.leases.release, stream)
        except (TimeoutError, OSError) as error:
            log.warning("stream %s is not handed over: %s", stream, error)
            return False
        finally:
            self._leaving.discard(stream)
        return True

    def _lost(self, stream: str) -> None:
        task = asyncio.create_task(self._handing_over.forget(stream), name=f"losing {stream}")
        self._losing.add(task)
        task.add_done_callback(self._losing.discard)
