"""The requests of a stream, made ahead of their sending."""

import asyncio
from dataclasses import dataclass
from typing import Self

from service.client import Call, ImageLike, predict_call
from service.schemas import PredictResponse
from ttc_core.datasets import Stream

MOST_BYTES_AHEAD = 256 << 20
"""Requests are made before the first one is sent, up to so many bytes; then as they are used."""


@dataclass(frozen=True)
class Batch:
    """The images of a stream from `start` on, as one request."""

    start: int
    count: int
    call: Call[PredictResponse]


class Outbox:
    """The requests of a stream, in order, made ahead in a worker thread.

    What is made before the first request leaves takes nothing of the measured time, just as the
    time of an offline evaluation has no loading and corrupting in it.
    """

    def __init__(self, stream: Stream, batch_size: int, stream_name: str | None) -> None:
        self._stream, self._batch_size, self._stream_name = stream, batch_size, stream_name
        self._bytes_ahead = 0
        self._ready: asyncio.Queue[Batch | None] = asyncio.Queue()
        self._room, self._filled = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._error: Exception | None = None

    def __len__(self) -> int:
        return -(-len(self._stream) // self._batch_size)

    async def __aenter__(self) -> Self:
        self._maker = asyncio.create_task(self._make_all())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._maker.cancel()
        await asyncio.wait([self._maker])

    async def filled(self) -> None:
        """Wait until all requests are made, or as many as may lie ahead."""
        await self._filled.wait()

    async def next(self) -> Batch | None:
        """Take the next request; None after the last.

        Raises:
            DataError: its images cannot be read.
        """
        batch = await self._ready.get()
        if batch is None:
            self._ready.put_nowait(None)  # for the other workers
            if self._error is not None:
                raise self._error
            return None
        self._bytes_ahead -= len(batch.call.body or b"")
        if self._bytes_ahead < MOST_BYTES_AHEAD:
            self._room.set()
        return batch

    async def _make_all(self) -> None:
        try:
            for start in range(0, len(self._stream), self._batch_size):
                await self._room.wait()
                batch = await asyncio.to_thread(self._make, start)
                self._bytes_ahead += len(batch.call.body or b"")
                if self._bytes_ahead >= MOST_BYTES_AHEAD:
                    self._room.clear()
                    self._filled.set()
                self._ready.put_nowait(batch)
        except Exception as error:  # raised where the request is asked for
            self._error = error
        finally:
            self._ready.put_nowait(None)
            self._filled.set()

    def _make(self, start: int) -> Batch:
        part = slice(start, start + self._batch_size)
        positions, labels = self._stream.positions[part], self._stream.labels[part]
        images: list[ImageLike] = (
            list(self._stream.read(positions))
            if self._stream.read_file is None
            else [self._stream.read_file(int(position)) for position in positions]
        )
        call = predict_call(images, labels=labels.tolist(), stream=self._stream_name)
        return Batch(start, len(images), call)
