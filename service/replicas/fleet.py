"""All replicas behind one handle of Ray's: one asked for a stream, or each of them."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from service.errors import NotReady
from service.member import LEASE_SECONDS
from service.replicas import ALL_READY_SECONDS
from service.replicas.passing import Answered, Forwarded
from service.routes.context import STUCK_SECONDS

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger(__name__)

GONE = "The replica that had this request is gone; its stream goes on from its last save."
# A request that was not answered for so long: whether its replica lives is asked, which a machine
# that is cut off does not say, and may take so long.
PATIENCE_SECONDS, LIVES_SECONDS = LEASE_SECONDS, 5.0
# What all replicas are asked at a time. Each waits for the last of them in a thread.
MOST_CALLS = 32


class Fleet:
    """The replicas of one deployment. For one event loop.

    Args:
        handle: whose requests Ray's consistent-hash router sends by their session.
    """

    def __init__(self, handle: "DeploymentHandle[Any]") -> None:
        self._handle = handle
        self._waiting = ThreadPoolExecutor(MOST_CALLS, thread_name_prefix="fleet")

    async def ask(self, request: Forwarded, stream: str | None) -> Answered:
        """Have the replica of a stream answer a request; None: any.

        Raises:
            NotReady: it ended meanwhile, or does not answer, or there is none.
        """
        handle = self._handle.answer
        if stream is not None:
            handle = handle.options(session_id=stream)
        response = answering = None
        try:
            response = handle.remote(request, stream)
            answering = asyncio.ensure_future(response)
            for _ in range(int(STUCK_SECONDS / PATIENCE_SECONDS)):
                await asyncio.wait({answering}, timeout=PATIENCE_SECONDS)
                if answering.done():
                    answered: Answered = answering.result()
                    return answered
                if stream is not None and not await self._lives(stream):
                    break
            raise NotReady("The replica does not answer.", retry_after=1)
        except (asyncio.CancelledError, NotReady):
            if response is not None:
                response.cancel()  # type: ignore[no-untyped-call]  # nobody waits any more
            raise
        except Exception as error:  # of Ray's, for whatever became of the replica
            log.warning("a replica did not answer: %s", _first_line(error))
            raise NotReady(GONE, retry_after=1) from error
        finally:
            if answering is not None:
                answering.cancel()

    async def _lives(self, stream: str) -> bool:
        """Whether a stream's replica says anything at all."""
        response = self._handle.lives.options(session_id=stream).remote()
        try:
            async with asyncio.timeout(LIVES_SECONDS):
                return bool(await response)
        except TimeoutError:
            response.cancel()  # type: ignore[no-untyped-call]
            return False

    async def ask_all(
        self, request: Forwarded, stream: str | None = None, *, seconds: float = ALL_READY_SECONDS
    ) -> list[Answered]:
        """Have all replicas answer a request.

        Raises:
            NotReady: none did in time.
        """
        found = await self.call("answer", request, stream, seconds=seconds)
        answered = [each for each in found if isinstance(each, Answered)]
        if not answered:
            raise NotReady("The replicas do not answer.", retry_after=1)
        return answered

    async def call(
        self, method: str, *args: object, seconds: float = ALL_READY_SECONDS
    ) -> list[Any]:
        """Call a method of each replica; what each returned, or the error that it raised: a
        TimeoutError where it did not return in time. One that hangs costs the others nothing.

        Raises:
            NotReady: there is no replica.
        """
        try:
            response = self._handle.broadcast(method, *args)
            results = partial(response.results, timeout_s=seconds, return_exceptions=True)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._waiting, results)
        except Exception as error:
            raise NotReady("The replicas do not answer.", retry_after=1) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
