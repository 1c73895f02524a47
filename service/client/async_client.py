"""The client for asyncio."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Any, Self

import httpx
from tenacity import AsyncRetrying

from service.client.calls import (
    READY,
    RELOAD,
    STATUS,
    Call,
    Reply,
    feedback_call,
    predict_call,
    reset_call,
    rollback_call,
    snapshots_call,
)
from service.client.connection import (
    DEFAULT_TIMEOUT,
    DEFAULT_URL,
    UNSENDABLE,
    Connection,
    means_not_ready,
)
from service.client.errors import ServiceError
from service.client.events import EVENTS, PAUSE_SECONDS, Frames
from service.client.images import Images
from service.client.retries import DEFAULT_RETRY_BUDGET, retrying
from service.live.schemas import LiveEvent
from service.schemas import (
    FeedbackResponse,
    PredictResponse,
    ReloadResponse,
    ResetResponse,
    RollbackResponse,
    SnapshotsResponse,
    StatusResponse,
)

# Of events: what is to come of the connection, and those that came first with what read them.
_Begun = tuple[AsyncIterator[bytes], list[LiveEvent], Frames]


class AsyncClient(Connection):
    """Ask the service from asyncio: as `Client`, with `await` and `async with`.

    Args:
        connections: at once, at most; further calls wait for one, as long as for an answer.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        token: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        *,
        connections: int = 100,
        admin_token: str | None = None,
        retry_budget: float = DEFAULT_RETRY_BUDGET,
    ) -> None:
        super().__init__(url, token, timeout, connections, admin_token, retry_budget)
        self._connections = connections
        self._begin(None)

    def _begin(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Have no connections: those of another loop are of no use in this one."""
        self._loop, self._places = loop, asyncio.Semaphore(self._connections)
        # One for each connection, since a pool of httpx looks at all of its own with each request.
        self._all: list[httpx.AsyncClient] = []
        # The last used first: the server is the least likely to have closed it.
        self._idle: list[httpx.AsyncClient] = []

    async def send(self, call: Call[Reply]) -> Reply:
        """Send a prepared call and wait for its answer."""
        return await retrying(AsyncRetrying, self._budget(call))(self._send_once, call)

    async def _send_once(self, call: Call[Reply]) -> Reply:
        return self._read(call, await self._respond(call))

    async def _respond(self, call: Call[Any]) -> httpx.Response:
        try:
            async with self._connection() as connection:
                return await connection.request(**self._request(call))
        except (httpx.RequestError, *UNSENDABLE) as error:
            raise self._no_answer(error) from error

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpx.AsyncClient]:
        if self._loop is not (loop := asyncio.get_running_loop()):
            self._begin(loop)
        places, idle = self._places, self._idle
        try:
            async with asyncio.timeout(self.timeout):
                await places.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout("all connections are in use") from None
        try:
            connection = idle.pop() if idle else self._another()
            try:
                yield connection
            finally:
                idle.append(connection)
        finally:
            places.release()

    def _another(self) -> httpx.AsyncClient:
        connection = httpx.AsyncClient(**self._options)
        self._all.append(connection)
        return connection

    async def predict(
        self,
        images: Images,
        *,
        labels: Sequence[int | None] | None = None,
        ids: Sequence[str | None] | None = None,
        stream: str | None = None,
        top_k: int = 1,
        learn: bool = True,
        context: bool = True,
    ) -> PredictResponse:
        """Classify one image or several, in one request; arguments as in `predict_call`."""
        # In a thread: reading files and encoding pixels would hold up the loop.
        call = await asyncio.to_thread(
            predict_call,
            images,
            labels=labels,
            ids=ids,
            stream=stream,
            top_k=top_k,
            learn=learn,
            context=context,
        )
        return await self.send(call)

    async def feedback(
        self, labels: Iterable[tuple[str, int]], *, stream: str | None = None
    ) -> FeedbackResponse:
        """Tell true classes of images answered before; arguments as in `feedback_call`."""
        return await self.send(feedback_call(labels, stream=stream))

    async def reset(self, stream: str | None = None) -> ResetResponse:
        """Put a stream back to the source model; "*" means all, None the default one."""
        return await self.send(reset_call(stream))

    async def snapshots(self, stream: str | None = None) -> SnapshotsResponse:
        """List the good states of a stream that `rollback` can go back to."""
        return await self.send(snapshots_call(stream))

    async def rollback(self, stream: str | None = None, to: int | None = None) -> RollbackResponse:
        """Bring a stream back to a good state, by its version; None: the last one."""
        return await self.send(rollback_call(stream, to))

    async def reload(self) -> ReloadResponse:
        """Have the model loaded anew; it takes as long as reading and trying it out does."""
        return await self.send(RELOAD)

    async def status(self) -> StatusResponse:
        """Read what is served and how it fares."""
        return await self.send(STATUS)

    async def events(self) -> AsyncGenerator[LiveEvent, None]:
        """As of `Client.events`; one of the connections is taken as long as it goes on."""
        while True:
            async with contextlib.AsyncExitStack() as stack:
                begun: _Begun = await retrying(AsyncRetrying, self.retry_budget)(
                    self._begin_events, stack
                )
                pieces, first, frames = begun
                for event in first:
                    yield event
                try:
                    async for piece in pieces:
                        for event in frames.feed(piece):
                            yield event
                except httpx.RequestError as error:
                    if not self.retry_budget:
                        raise self._no_events(error) from error
            if not self.retry_budget:
                return
            await asyncio.sleep(PAUSE_SECONDS)

    async def _begin_events(self, stack: contextlib.AsyncExitStack) -> _Begun:
        """Connect until something has come; `stack` closes what was opened."""
        frames = Frames(self.url)
        await stack.aclose()  # of a try before
        try:
            connection = await stack.enter_async_context(self._connection())
            response = await stack.enter_async_context(connection.stream(**self._request(EVENTS)))
            if not response.is_success:
                await response.aread()
                raise self._refusal(EVENTS, response)
            frames.check(response.headers.get("Content-Type", ""))
            pieces = response.aiter_bytes()
            async for piece in pieces:
                if first := list(frames.feed(piece)):
                    return pieces, first, frames
        except (httpx.RequestError, *UNSENDABLE) as error:
            raise self._no_events(error) from error
        raise frames.none_came()

    async def ready(self) -> bool:
        """Whether the service answers predictions now, asked once; False: nothing listens, too."""
        try:
            await self.send(READY)
        except ServiceError as error:
            if means_not_ready(error):
                return False
            raise
        return True

    async def close(self) -> None:
        """Close the connections, each of them; the first that fails is told then."""
        closing, self._all, self._idle = self._all, [], []
        closed = await asyncio.gather(*(each.aclose() for each in closing), return_exceptions=True)
        for failed in filter(None, closed):
            raise failed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
