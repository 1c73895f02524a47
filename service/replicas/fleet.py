"""All replicas behind one handle of Ray's: one asked for a stream, or each of them."""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from service.errors import NotReady
from service.replicas import ALL_READY_SECONDS
from service.replicas.passing import Answered, Forwarded
from service.routes.context import STUCK_SECONDS

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger(__name__)

GONE = "The replica that had this request is gone; its stream goes on from its last save."


class Fleet:
    """The replicas of one deployment. For one event loop.

    Args:
        handle: whose requests Ray's consistent-hash router sends by their session.
    """

    def __init__(self, handle: "DeploymentHandle[Any]") -> None:
        self._handle = handle

    async def ask(self, request: Forwarded, stream: str | None) -> Answered:
        """Have the replica of a stream answer a request; None: any.

        Raises:
            NotReady: it ended meanwhile, or there is none.
        """
        handle = self._handle.answer
        if stream is not None:
            handle = handle.options(session_id=stream)
        response = None
        try:
            response = handle.remote(request, stream)
            async with asyncio.timeout(STUCK_SECONDS):
                answered: Answered = await response
        except (asyncio.CancelledError, TimeoutError) as error:
            if response is not None:
                response.cancel()  # type: ignore[no-untyped-call]  # nobody waits any more
            if isinstance(error, TimeoutError):
                raise NotReady("The replicas do not answer.", retry_after=1) from None
            raise
        except Exception as error:  # of Ray's, for whatever became of the replica
            log.warning("a replica did not answer: %s", _first_line(error))
            raise NotReady(GONE, retry_after=1) from error
        return answered

    async def ask_all(
        self, request: Forwarded, stream: str | None = None, *, complete: bool = False
    ) -> list[Answered]:
        """Have all replicas answer a request; those that ended meanwhile are left out.

        Args:
            complete: what was asked is not done where one is.

        Raises:
            NotReady: none did in time, or not all did that have to.
        """
        found = await self.call("answer", request, stream, seconds=STUCK_SECONDS)
        answered = [each for each in found if isinstance(each, Answered)]
        if not answered or (complete and len(answered) < len(found)):
            raise NotReady("Not all replicas answered; ask again.", retry_after=1)
        return answered

    async def call(
        self, method: str, *args: object, seconds: float = ALL_READY_SECONDS
    ) -> list[Any]:
        """Call a method of each replica; what each returned, or the error that it raised.

        Raises:
            NotReady: there is no replica, or one did not return in time.
        """
        try:
            response = self._handle.broadcast(method, *args)
            return await response.results_async(timeout_s=seconds, return_exceptions=True)
        except Exception as error:
            raise NotReady("The replicas do not answer.", retry_after=1) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
