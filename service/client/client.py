"""The client for ordinary code, which waits where it asks."""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Self

import httpx
from tenacity import Retrying

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


class Client(Connection):
    """Ask the service from ordinary code; a context manager, safe to share between threads.

    Args:
        url: of the service, with a path if it is served under one.
        token: what the server's --token says, if it has one.
        admin_token: what its --admin-token says, for resets, rollbacks and
            reloads; either stands for both.
        timeout: seconds to wait for connecting, and for an answer.
        connections: at once, at most.
        retry_budget: seconds since a call began, within which it is sent again where nothing of it
            was accepted: the service itself refused it (429, 503), or there was no connection. In
            between it waits as long as Retry-After says, and a random time that grows. 0: never.

    Every method raises ServiceError when no result came. A request whose answer was lost is not
    sent again: the service may have learned from its images.

    Raises:
        ValueError: the URL is none, the budget is below 0, or a token has a line end or another
            control character.
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
        self._http = httpx.Client(**self._options)

    def send(self, call: Call[Reply]) -> Reply:
        """Send a prepared call and wait for its answer."""
        answer: Reply = retrying(Retrying, self._budget(call))(self._send_once, call)
        return answer

    def _send_once(self, call: Call[Reply]) -> Reply:
        try:
            response = self._http.request(**self._request(call))
        except (httpx.RequestError, *UNSENDABLE) as error:
            raise self._no_answer(error) from error
        return self._read(call, response)

    def predict(
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
        call = predict_call(
            images,
            labels=labels,
            ids=ids,
            stream=stream,
            top_k=top_k,
            learn=learn,
            context=context,
        )
        return self.send(call)

    def feedback(
        self, labels: Iterable[tuple[str, int]], *, stream: str | None = None
    ) -> FeedbackResponse:
        """Tell true classes of images answered before; arguments as in `feedback_call`."""
        return self.send(feedback_call(labels, stream=stream))

    def reset(self, stream: str | None = None) -> ResetResponse:
        """Put a stream back to the source model; "*" means all, None the default one."""
        return self.send(reset_call(stream))

    def snapshots(self, stream: str | None = None) -> SnapshotsResponse:
        """List the good states of a stream that `rollback` can go back to."""
        return self.send(snapshots_call(stream))

    def rollback(self, stream: str | None = None, to: int | None = None) -> RollbackResponse:
        """Bring a stream back to a good state, by its version; None: the last one."""
        return self.send(rollback_call(stream, to))

    def reload(self) -> ReloadResponse:
        """Have the model loaded anew; it takes as long as reading and trying it out does."""
        return self.send(RELOAD)

    def status(self) -> StatusResponse:
        """Read what is served and how it fares."""
        return self.send(STATUS)

    def events(self) -> Generator[LiveEvent, None, None]:
        """Yield what the live page shows: a LiveState, then a LiveTick a second, without end.

        Where the connection is lost, or the service ends, another is asked for within the retry
        budget, and begins with a LiveState; without a budget the iteration ends with the service.

        Raises:
            ServiceError: the service refuses, or nothing came within the budget.
        """
        while True:
            with ExitStack() as stack:
                pieces, first, frames = retrying(Retrying, self.retry_budget)(
                    self._begin_events, stack
                )
                yield from first
                try:
                    for piece in pieces:
                        yield from frames.feed(piece)
                except httpx.RequestError as error:
                    if not self.retry_budget:
                        raise self._no_events(error) from error
            if not self.retry_budget:
                return
            time.sleep(PAUSE_SECONDS)

    def _begin_events(self, stack: ExitStack) -> tuple[Iterator[bytes], list[LiveEvent], Frames]:
        """Connect until something has come; `stack` closes what was opened."""
        frames = Frames(self.url)
        stack.close()  # of a try before
        try:
            response = stack.enter_context(self._http.stream(**self._request(EVENTS)))
            if not response.is_success:
                response.read()
                raise self._refusal(EVENTS, response)
            frames.check(response.headers.get("Content-Type", ""))
            pieces = response.iter_bytes()
            for piece in pieces:
                if first := list(frames.feed(piece)):
                    return pieces, first, frames
        except (httpx.RequestError, *UNSENDABLE) as error:
            raise self._no_events(error) from error
        raise frames.none_came()

    def ready(self) -> bool:
        """Whether the service answers predictions now, asked once; False: nothing listens, too."""
        try:
            self.send(READY)
        except ServiceError as error:
            if means_not_ready(error):
                return False
            raise
        return True

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
