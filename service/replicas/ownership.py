"""Which streams this replica has: taken over from others before their requests are answered, handed
over when others ask. Knows neither Ray nor HTTP.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial

from service.errors import NotReady
from service.handing_over import HandingOver
from service.leases import Leases
from service.routes.context import Taken

log = logging.getLogger(__name__)

# How long a stream is waited for that is another's before its client is told to come back, and how
# often its lease is looked at meanwhile.
TAKE_OVER_SECONDS, LOOK_SECONDS = 15.0, 0.05
# How long the requests of a stream are waited for that is asked for.
FINISH_SECONDS, FINISH_PAUSE = 10.0, 0.005
# How often the leases of streams of which nothing is left are given up.
SWEEP_SECONDS = 30.0


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
        # Those on their way to another replica: each event is set when that is over.
        self._leaving = dict[str, asyncio.Event]()
        self._taking = dict[str, asyncio.Task[None]]()
        self._tasks = set[asyncio.Task[object]]()
        loop = asyncio.get_running_loop()
        leases.on_lost = lambda stream: loop.call_soon_threadsafe(self._lost, stream)

    @contextlib.asynccontextmanager
    async def having(self, stream: str) -> AsyncIterator[None]:
        """Answer a request of a stream in the block: it is ours until then.

        Of a stream of which nothing is known afterwards nothing is left.

        Raises:
            NotReady: another replica has it, and did not hand it over in time.
        """
        until = time.monotonic() + TAKE_OVER_SECONDS
        while not self.leases.holds(stream) or stream in self._leaving:
            if stream in self._leaving:
                await self._wait_for(stream, until)
            else:
                await self._take(stream)
        self._requests[stream] += 1
        try:
            yield
        finally:
            self._requests[stream] -= 1
            if not self._requests[stream]:
                del self._requests[stream]
                if not self._handing_over.is_kept(stream):
                    self._begin(self._drop(stream))

    async def _wait_for(self, stream: str, until: float) -> None:
        """Wait until a stream has gone where it was asked for, and has been had there."""
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._leaving[stream].wait()
        except TimeoutError:
            raise NotReady(
                f"Stream {stream} is on its way to another replica.", retry_after=1
            ) from None

    async def _take(self, stream: str) -> None:
        """Take a stream over, once for all requests that wait for it."""
        task = self._taking.get(stream)
        if task is None:
            task = asyncio.create_task(self._take_over(stream), name=f"taking {stream}")
            self._taking[stream] = task
            task.add_done_callback(lambda _: self._taking.pop(stream))
        await asyncio.shield(task)

    async def _take_over(self, stream: str) -> None:
        began, asking = time.monotonic(), None
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
            # Its lease tells when it was let go: no other replica, which may hang, is waited for.
            if asking is None or asking.done():
                asking = self._begin(self._asked(owner, stream))
            await asyncio.sleep(LOOK_SECONDS)

    async def _asked(self, owner: str, stream: str) -> None:
        await self._ask(owner, stream)

    async def take_free(self, streams: list[str]) -> Taken:
        """Take those of some streams that are nobody's, or whose owner is gone."""

        def claim() -> list[str]:
            others = []
            for stream in streams:
                owner: str | None = "of whom cannot be told"
                with contextlib.suppress(OSError):
                    owner = self.leases.claim(stream)
                if owner is not None:
                    others.append(stream)
            return others

        others = await asyncio.to_thread(claim)
        leaving = frozenset(self._leaving)
        return Taken(leaving.union(others), frozenset(self.leases.owned()) - leaving)

    async def let_go(self, stream: str) -> bool:
        """Hand a stream over, if it is ours: its requests are answered first, and it is saved.

        Returns:
            Whether it is nobody's now.
        """
        # Who asked for it is to have it first.
        return await self._give(stream, self._handing_over.hand_over, 2 * LOOK_SECONDS)

    async def _drop(self, stream: str) -> bool:
        """Give a stream up of which nothing is known."""
        if self._requests[stream]:
            return False
        return await self._give(stream, self._handing_over.drop)

    async def sweep(self) -> None:
        """Give those up of which nothing is left: they were reset, or had to make room."""
        owned, is_kept = self.leases.owned(), self._handing_over.is_kept
        empty = await asyncio.to_thread(lambda: [each for each in owned if not is_kept(each)])
        for stream in empty:
            await self._drop(stream)

    async def keep_sweeping(self) -> None:
        """Do so again and again."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self.sweep()

    async def _give(
        self, stream: str, give: Callable[[str], Awaitable[bool]], head_start: float = 0.0
    ) -> bool:
        if stream in self._leaving or stream in self._taking:
            return False
        gone = self._leaving[stream] = asyncio.Event()
        try:
            async with asyncio.timeout(FINISH_SECONDS):
                while self._requests[stream]:
                    await asyncio.sleep(FINISH_PAUSE)
            if self.leases.owns(stream) and not await give(stream):
                return False
            is_saved = await asyncio.to_thread(self._handing_over.is_saved, stream)
            await asyncio.to_thread(partial(self.leases.release, stream, is_kept=is_saved))
        except (TimeoutError, OSError) as error:
            log.warning("stream %s is not handed over: %s", stream, error)
            return False
        finally:
            del self._leaving[stream]
            asyncio.get_running_loop().call_later(head_start, gone.set)
        return True

    def _lost(self, stream: str) -> None:
        self._begin(self._handing_over.forget(stream))

    def _begin(self, call: Coroutine[object, object, object]) -> asyncio.Task[object]:
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
