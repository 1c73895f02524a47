"""Images made of files: parsed, checked, decoded, in threads that requests share fairly."""

import asyncio
import contextvars
import math
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from service.answering import Image
from service.errors import ClientGone, of_image
from service.images import (
    TINY_PIXELS,
    check_size,
    decode,
    fit_pixels,
    is_tiny,
    memory_needed,
    memory_of_pixels,
    read_header,
)
from service.memory import Share
from service.settings import Settings
from service.uploads import Upload, check_upload
from ttc_core.model import SourceModel
from ttc_core.pictures import Buffer, Picture

T = TypeVar("T")
Item = TypeVar("Item")

# Images decoded by one thread before it is another request's turn, and pixels of them.
DECODE_CHUNK = 25
CHUNK_PIXELS = 1_000_000
# The most bytes and pixels of a request that need not wait for larger ones.
SMALL_BYTES = 1 << 20
SMALL_PIXELS = 4_000_000
# How far threads at large requests step back behind the event loop, the device's and small ones:
# on few cores a small pass took three times as long beside them.
STEP_BACK = 10


def step_back(by: int = STEP_BACK) -> None:
    """Leave the processors to the other threads, where a thread by itself can: on Linux."""
    if sys.platform == "linux":  # elsewhere it is the whole process that would
        os.nice(by)


# The memory in which one small image is parsed and decoded in one go.
AT_ONCE_BYTES = 6 << 20


class Threads:
    """Threads for what would keep the event loop busy: some for small requests, as many for large.

    So a small one waits for no larger one, and large ones take turns, a piece of work at a time.
    """

    def __init__(self, count: int) -> None:
        kinds = (True, False)
        self._pools = {
            small: ThreadPoolExecutor(count, "decode", None if small else step_back)
            for small in kinds
        }
        self._turns = {small: asyncio.Semaphore(count) for small in kinds}
        self._lending = {small: asyncio.Lock() for small in kinds}

    def close(self) -> None:
        """End them."""
        for pool in self._pools.values():
            pool.shutdown()

    async def run(
        self, call: Callable[[], T], share: Share, memory: int, at_best: int = 0, *, small: bool
    ) -> T:
        """Do it when its turn comes, in `memory` bytes that it takes for a while.

        Args:
            at_best: the bytes that it has rather, where they are there at once.
        """
        context, loop = contextvars.copy_context(), asyncio.get_running_loop()
        lending = self._lending[small]
        async with self._turns[small]:
            if memory < at_best and not lending.locked() and share.memory.has(at_best):
                memory = at_best
            async with share.lend(memory, lending):
                return await loop.run_in_executor(self._pools[small], context.run, call)


class Decoding:
    """One request's images on their way from files to pixels.

    While `wanted` is true somebody waits for them; else they end with ClientGone.
    """

    def __init__(
        self, settings: Settings, model: SourceModel, threads: Threads, share: Share
    ) -> None:
        self._settings, self._model, self._threads, self._share = settings, model, threads, share
        self._small = self.wanted = True
        self.images = 0  # known once their files are checked

    async def parse(
        self, parse: Callable[[Buffer], Upload], body: Buffer, memory: Callable[[Buffer], int]
    ) -> tuple[Upload, Sequence[Image]]:
        """Take a body apart; one small image is decoded in the same go, a tiny one at once."""
        self._small = len(body) <= SMALL_BYTES
        needed = memory(body) if self._small else await self._run(partial(memory, body), 0)

        def first(most_pixels: float = math.inf) -> tuple[Upload, Sequence[Image]]:
            upload, s = parse(body), self._settings
            check_upload(upload, self._model.classes, s.max_images, s.max_image_bytes)
            self.images = len(upload.images)
            if self.images == 1 and self._share.lent >= AT_ONCE_BYTES:
                (picture,) = self._each(self._open, upload.images)
                takes = needed + len(upload.images[0]) + sum(self._memory(picture))
                # Not all decoders find the size where `is_tiny` does.
                fits = picture.width * picture.height <= most_pixels
                if fits and takes <= AT_ONCE_BYTES:
                    given = (picture, upload.labels[0], upload.ids[0])
                    return upload, self._each(self._decode, [given])
            return upload, ()

        if is_tiny(body) and self._share.memory.has(AT_ONCE_BYTES):
            with self._share.lend_now(AT_ONCE_BYTES):
                upload, images = first(TINY_PIXELS)
        else:
            upload, images = await self._run(first, needed, AT_ONCE_BYTES if self._small else 0)
        self._share.take(sum(image.pixels.nbytes for image in images))
        return upload, images

    async def decode(self, upload: Upload) -> Sequence[Image]:
        """Read all headers, then decode in the memory that they ask for; the pixels' is kept."""
        none = [0] * len(upload.images)
        pictures = await self._in_chunks(self._open, upload.images, none, none)
        needs = [self._memory(picture) for picture in pictures]
        self._share.take(sum(lasting for _, lasting in needs))
        sizes = list(map(len, upload.images))
        pixels = [picture.width * picture.height for picture in pictures]
        self._small = sum(sizes) <= SMALL_BYTES and sum(pixels) <= SMALL_PIXELS
        working = [memory + size for (memory, _), size in zip(needs, sizes, strict=True)]
        items = list(zip(pictures, upload.labels, upload.ids, strict=True))
        return await self._in_chunks(self._decode, items, pixels, working)

    async def fit(
        self,
        frame: Callable[[int], NDArray[np.uint8]],
        sides: tuple[int, int],
        ids: Sequence[str | None],
    ) -> Sequence[Image]:
        """Make images of pixels: one for each of `ids`.

        Args:
            frame: gives those of image n, from 0: (H, W, 3) of its own. Runs in a thread.
            sides: H and W.
        """
        count, s, geometry = len(ids), self._settings, self._model.geometry
        height, width = sides
        check_size(width, height, geometry, max_pixels=s.max_pixels, max_side=s.max_side)
        self.images, pixels = count, height * width
        working, lasting = memory_of_pixels(width, height, geometry)
        self._share.take(count * lasting)
        self._small = count * 3 * pixels <= SMALL_BYTES

        def fit(index: int) -> Image:
            fitted_to, grain = fit_pixels(frame(index), geometry)
            return Image(fitted_to, None, ids[index], grain=grain)

        return await self._in_chunks(fit, range(count), [pixels] * count, [working] * count)

    def _open(self, file: Buffer) -> Picture:
        s = self._settings
        return read_header(file, self._model.geometry, max_pixels=s.max_pixels, max_side=s.max_side)

    def _memory(self, picture: Picture) -> tuple[int, int]:
        return memory_needed(picture, self._model.geometry)

    def _decode(self, item: tuple[Picture, int | None, str | None]) -> Image:
        picture, label, name = item
        pixels, grain = decode(picture, self._model.geometry)
        return Image(pixels, label, name, grain=grain)

    async def _run(self, call: Callable[[], T], memory: int, at_best: int = 0) -> T:
        return await self._threads.run(call, self._share, memory, at_best, small=self._small)

    async def _in_chunks(
        self,
        do: Callable[[Item], T],
        items: Sequence[Item],
        pixels: Sequence[int],
        memory: Sequence[int],
    ) -> list[T]:
        """Work in order, a chunk a thread at a time, in the memory of its largest image."""
        done: list[T] = []
        chunks, threads = list(_chunks(pixels)), self._settings.decode_threads

        def work(chunk: slice) -> Coroutine[None, None, list[T]]:
            each = partial(self._each, do, items[chunk], chunk.start, len(items))
            return self._run(each, max(memory[chunk]))

        for first in range(0, len(chunks), threads):
            some = map(work, chunks[first : first + threads])
            # The first failure in the order of the request is the one that is told.
            for result in await asyncio.gather(*some, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result
                done += result
        return done

    def _each(
        self, do: Callable[[Item], T], items: Sequence[Item], start: int = 0, count: int = 1
    ) -> list[T]:
        """Do it with some of `count`; a refusal says with which it was. Runs in a thread."""
        done = []
        others = " None of the request's images was processed." if count > 1 else ""
        for index, item in enumerate(items, start):
            if not self.wanted:
                raise ClientGone
            with of_image(index, count, others):
                done.append(do(item))
        return done


def _chunks(pixels: Sequence[int]) -> Iterator[slice]:
    """Cut images into chunks, each ended by its number or by its pixels."""
    start = total = 0
    for stop, more in enumerate(pixels, 1):
        total += more
        if stop - start == DECODE_CHUNK or total >= CHUNK_PIXELS or stop == len(pixels):
            yield slice(start, stop)
            start, total = stop, 0
