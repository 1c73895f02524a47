"""Load in an open loop: requests leave at a rate, whatever the server does, and are timed.

A latency counts from when a request was due: waiting in the client is waiting, too. How late the
client itself was is told, since a busy one would measure itself.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools
import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.closed_loop import Request

CONNECTIONS = 128
LAST_ANSWERS = 10.0
"""Seconds that answers may come later than the last request left."""


@dataclass(frozen=True)
class Timed:
    """What became of the requests.

    Attributes:
        latencies: seconds, (N,), from when each was due; infinite without an answer of 200.
        lateness: seconds, (N,), by which the client came to each too late.
    """

    latencies: NDArray[np.float64]
    lateness: NDArray[np.float64]

    @property
    def unanswered(self) -> int:
        """Requests without an answer of 200."""
        return int(np.isinf(self.latencies).sum())

    def latency(self, percent: float) -> float:
        """Seconds within which so many of all requests were answered; infinite if fewer were."""
        return float(np.percentile(self.latencies, percent, method="higher"))


def open_loop(
    url: str, requests: Sequence[Request], rate: float, seconds: float, *, seed: int = 0
) -> Timed:
    """Send the requests in turn for so many seconds, at a mean rate a second, as Poisson has it.

    Raises:
        ValueError: the rate or the seconds are not above 0.
        OSError: nothing listens there.
    """
    if rate <= 0 or seconds <= 0:
        raise ValueError(f"rate and seconds must be above 0; got {rate} and {seconds}.")
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(1, round(rate * seconds)))
    return uvloop.run(_Load(url, requests, gaps.cumsum()).run())


class _Load:
    """Which requests are due when, which connections are free, what came of each request."""

    def __init__(self, url: str, requests: Sequence[Request], due: NDArray[np.float64]) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port or 80
        self._wire = [_wire(parts.netloc, request) for request in requests]
        self._due = due.tolist()
        self.latencies = np.full(len(due), np.inf)
        self._lateness = np.zeros(len(due))
        self._waiting: deque[int] = deque()
        self._free: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._opening: set[asyncio.Future[None]] = set()
        self._ended = False
        self._left = len(due)
        self._over = asyncio.Event()
        self._began = 0.0

    async def run(self) -> Timed:
        for _ in range(min(CONNECTIONS, len(self._due))):
            await self._connect()
        self._began = time.perf_counter()
        for number, due in enumerate(self._due):
            # A timer may be early by a fraction of a millisecond.
            while (ahead := self._began + due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            self._lateness[number] = time.perf_counter() - self._began - due
            self._waiting.append(number)
            self._send()
        try:
            async with asyncio.timeout(LAST_ANSWERS):
                await self._over.wait()
        except TimeoutError:
            pass  # without an answer
        self._ended = True
        for connection in list(self._open):
            connection.close()
        return Timed(self.latencies, self._lateness)

    def _send(self) -> None:
        while self._waiting and self._free:
            number = self._waiting.popleft()
            self._free.pop().send(number, self._wire[number % len(self._wire)])

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: _Connection(self), self._host, self._port)

    def opened(self, connection: "_Connection") -> None:
        """It has just been opened."""
        self._open.add(connection)
        self.freed(connection)

    def freed(self, connection: "_Connection") -> None:
        """It can take a request."""
        self._free.append(connection)
        self._send()

    def lost(self, connection: "_Connection", number: int | None) -> None:
        """It was closed, as servers do with idle ones; what it was to send another sends anew."""
        self._open.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        if self._ended:
            return
        if number is not None:
            self._waiting.appendleft(number)
        opening = asyncio.ensure_future(self._connect())
        self._opening.add(opening)
        opening.add_done_callback(self._opened_or_not)

    def _opened_or_not(self, opening: "asyncio.Future[None]") -> None:
        self._opening.discard(opening)
        opening.exception()  # nobody listens any more: requests stay without an answer

    def answered(self, number: int, status: int) -> None:
        """An answer is whole."""
        if status == 200:
            self.latencies[number] = time.perf_counter() - self._began - self._due[number]
        self._left -= 1
        if not self._left:
            self._over.set()


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._number: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._load.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        number, self._number = self._number, None
        self._load.lost(self, number)

    def close(self) -> None:
        self._transport.close()

    def send(self, number: int, wire: bytes) -> None:
        self._number, self._parser = number, httptools.HttpResponseParser(self)
        self._transport.write(wire)

    def data_received(self, data: bytes) -> None:
        if self._number is not None:
            self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        number, self._number = self._number, None
        assert number is not None
        self._load.answered(number, self._parser.get_status_code())
        if not self._parser.should_keep_alive():
            self._transport.close()
        elif not self._transport.is_closing():
            self._load.freed(self)


def _wire(host: str, request: Request) -> bytes:
    head = (
        f"POST {request.target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {request.content_type}"
        f"\r\nContent-Length: {len(request.body)}\r\n\r\n"
    )
    return head.encode() + request.body
