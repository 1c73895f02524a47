"""A request's body on its way in, within limits of size, memory and time. Knows no images."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request

from service.bounds import PIECE_BYTES
from service.decoding import SMALL_BYTES, Threads
from service.errors import ReceiveTimeout, TooLarge
from service.memory import Memory, Share
from service.settings import Settings
from service.uploads import packing, unpack
from ttc_core.pictures import Buffer

# How long a request that is arriving may go on to when the service drains.
DRAIN_SECONDS = 0.5


@dataclass
class Arrivals:
    """What requests share while they arrive.

    Args:
        check_open: raises what is to be told where a request did not arrive before the service
            ended.
    """

    settings: Settings
    memory: Memory
    threads: Threads
    check_open: Callable[[], None]
    arriving: set[asyncio.Timeout] = field(default_factory=set)

    def drain(self) -> None:
        """What has not arrived soon does not arrive any more."""
        until = asyncio.get_running_loop().time() + DRAIN_SECONDS
        for limit in self.arriving:
            limit.reschedule(min(until, limit.when() or until))


class Reception:
    """A request's body on its way in, within the limits of size, memory and time.

    Args:
        most: bytes, as it comes and unpacked; None: --max-body.

    Attributes:
        bytes: what it holds of the memory.
    """

    def __init__(
        self, arrivals: Arrivals, http: Request, share: Share, most: int | None = None
    ) -> None:
        self._arrivals, self._http, self._share = arrivals, http, share
        max_body = arrivals.settings.max_body
        self._most = max_body if most is None else min(most, max_body)
        self.bytes = 0

    async def receive(self) -> Buffer:
        """Read the body, and unpack it."""
        limit, seconds = self._most, self._arrivals.settings.receive_timeout
        headers, body = self._http.headers, bytearray()
        coding = packing(", ".join(headers.getlist("content-encoding")))
        stated = headers.get("content-length", "0")
        if stated.isdecimal() and (size := int(stated[:19])) > limit:
            raise TooLarge(f"The request has {size:,} bytes; at most {limit:,} are accepted.")
        time_limit = asyncio.timeout(seconds)
        self._arrivals.arriving.add(time_limit)
        try:
            async with time_limit:
                async for chunk in self._http.stream():
                    self._append(chunk, body, "The request")
        except TimeoutError:
            self._arrivals.check_open()  # it may be the drain that ended it
            raise ReceiveTimeout(
                f"The request did not arrive whole in {seconds:g} seconds."
            ) from None
        finally:
            self._arrivals.arriving.discard(time_limit)
        return await self._unpack(body, coding) if coding else body

    def _append(self, more: bytes, body: bytearray, name: str) -> None:
        if len(body) + len(more) > self._most:
            raise TooLarge(f"{name} has more than {self._most:,} bytes, the most accepted.")
        self._share.take(len(more))
        self.bytes += len(more)
        body += more

    async def _unpack(self, body: bytearray, coding: str) -> bytearray:
        piece_bytes = min(PIECE_BYTES, self._most + 1)
        content, pieces = bytearray(), unpack(body, coding, piece_bytes)
        more, small = lambda: next(pieces, b""), len(body) <= SMALL_BYTES
        threads, share = self._arrivals.threads, self._share
        while piece := await threads.run(more, share, piece_bytes, small=small):
            self._append(piece, content, "Unpacked, the request")
        share.take(-len(body))
        self.bytes -= len(body)
        return content
