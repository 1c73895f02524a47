"""A request's way from its bytes to its answers: read, take a place, decode, wait."""

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.requests import ClientDisconnect, Request

from service import tracing
from service.batcher import Batcher
from service.engine import Answer, Engine, Image
from service.errors import OutOfRange, QueueFull, ReceiveTimeout, Refused, TooLarge, Unreadable
from service.images import decode, memory_needed, read_header
from service.lines import Place
from service.metrics import Metrics
from service.schemas import LateLabel
from service.settings import Settings
from service.uploads import (
    PIECE_BYTES,
    Upload,
    codings,
    gunzip,
    memory_to_parse,
    parse_labels,
    parse_upload,
)
from ttc_core.model import SourceModel
from ttc_core.pictures import Buffer, Picture

T = TypeVar("T")
File = TypeVar("File")

# Images decoded by one thread at a time: enough to be worth the way, few enough to share out.
DECODE_CHUNK = 25
# In the request's scope: called when the whole answer has been handed to the server.
DELIVERED = "ttc.delivered"
# In the request's scope: what its log line and its span tell besides.
NOTES = "ttc.notes"


class ClientGone(Exception):
    """The client closed the connection; nobody waits for an answer."""


@dataclass(frozen=True)
class Answered:
    """The answers to a request, with the seconds it spent in each stage."""

    upload: Upload
    answers: list[Answer]
    decode_seconds: float
    queue_seconds: float
    forward_seconds: float


@dataclass
class _Hold:
    """What a request has taken, `lent` for a while, and whether it wants its images decoded."""

    bytes: int = 0
    lent: int = 0
    wanted: bool = True
    admitted: bool = False


@dataclass(frozen=True)
class _Chunk(Generic[File]):
    """Some images of a request: those from `start` on, of `count` in all."""

    files: Sequence[File]
    start: int
    count: int

    def each(self, hold: _Hold, do: Callable[[File], T]) -> list[T]:
        """Do it with each; a refusal says with which it was. Runs in a thread of the pool."""
        done = []
        for index, file in enumerate(self.files, self.start):
            if not hold.wanted:
                raise ClientGone
            try:
                done.append(do(file))
            except Refused as error:
                others = " None of the request's images was processed." if self.count > 1 else ""
                raise type(error)(
                    f"Image {index + 1} of {self.count}: {error}{others}", index=index
                ) from error
        return done


class Intake:
    """Takes requests in, within every limit on size, count and time.

    The event loop reads bytes and waits; parsing and decoding run in a pool of threads. Memory is
    set aside before it is used: what lasts until the answer at once or not at all, what a piece
    of work takes for a while as soon as others have given theirs back.
    """

    def __init__(
        self,
        settings: Settings,
        model: SourceModel,
        engine: Engine,
        batcher: Batcher[Image, Answer],
        metrics: Metrics,
    ) -> None:
        self._settings, self._model, self._engine = settings, model, engine
        self._batcher, self._metrics = batcher, metrics
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._bytes_held = self._bytes_lent = 0
        self._lending, self._returned = asyncio.Lock(), asyncio.Event()

    def close(self) -> None:
        """End the decoding threads."""
        self._pool.shutdown()

    async def predict(
        self,
        request: Request,
        *,
        stream: str,
        ids: list[str],
        labels: list[str],
        timeout: float | None,
        most_images: int,
        learn: bool = True,
    ) -> Answered:
        """Answer a request's images, all or none.

        Args:
            timeout: seconds from now after which the request is not to be run.
            most_images: of which the answer is not too long.
            learn: off: nothing is learned from the images, and nothing moves.

        Raises:
            Refused: the request is turned away. ClientGone: nobody waits any more.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        images = 0
        hold = _Hold()
        place: Place[Image, Answer] | None = None
        gone: asyncio.Task[None] | None = None
        notes: dict[str, str | int] = {"stream": stream}
        request.scope[NOTES] = notes
        try:
            self._batcher.check_open()
            body = await self._receive(request, hold)
            if learn:  # nobody holds a stream's place by sending slowly
                self._engine.admit(stream, self._batcher.retry_after)
                hold.admitted = True
            gone = asyncio.create_task(_gone(request, hold))
            place = self._batcher.enter(stream, deadline=deadline, learn=learn)
            request.scope[DELIVERED] = place.delivered.set
            upload = await self._parse(request, body, ids, labels, hold)
            del body
            images = notes["images"] = len(upload.images)
            if images > most_images:
                raise OutOfRange(
                    f"With as many classes for each image as top_k says, at most {most_images:,} "
                    f"images are answered in one request; got {images:,}."
                )
            place.count(images)
            items = await self._decode(upload, hold)
            self._give_back(sum(map(len, upload.images)), hold)
            upload.images.clear()  # the pixels are there; the files need no memory any more
            decode_seconds = time.monotonic() - place.arrived
            self._metrics.stage_seconds.labels("decode").observe(decode_seconds)
            tracing.stage("decode", decode_seconds)
            place.fill(items)
            answers = await self._answers(place, gone)
        except Refused as error:
            if error.reason is not None:
                self._metrics.rejected.labels(error.reason).inc(max(1, images))
            raise
        except (ClientGone, ClientDisconnect):
            self._metrics.cancelled.inc(max(1, images))
            raise ClientGone from None
        finally:
            if hold.admitted:
                self._engine.release(stream)
            if gone is not None:
                gone.cancel()
            hold.wanted = False  # what is still being decoded stops at its next image
            self._bytes_held -= hold.bytes
            if place is not None and not place.is_answered:
                place.leave()
        return Answered(
            upload,
            answers,
            decode_seconds,
            place.queue_seconds,
            forward_seconds=max(answer.forward_seconds for answer in answers),
        )

    async def labels(self, request: Request) -> list[LateLabel]:
        """Read the labels that came later for images answered before, all or none.

        Raises:
            Refused: the request is turned away. ClientGone: nobody waits any more.
        """
        hold = _Hold()
        try:
            body, content_type = await self._receive(request, hold), _content_type(request)
            async with self._lend(memory_to_parse(body, content_type), hold):
                return await self.in_pool(
                    lambda: parse_labels(body, content_type, classes=self._model.classes)
                )
        except ClientDisconnect:
            raise ClientGone from None
        finally:
            self._bytes_held -= hold.bytes

    async def _receive(self, request: Request, hold: _Hold) -> bytearray:
        """Read the request's body, within the limits of size, memory and time, and unpack it."""
        limit = self._settings.max_body
        coded = codings(", ".join(request.headers.getlist("content-encoding")))
        stated = request.headers.get("content-length", "0")
        if stated.isdecimal() and (size := int(stated[:19])) > limit:
            raise TooLarge(f"The request has {size:,} bytes; at most {limit:,} are accepted.")
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.receive_timeout):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > limit:
                        raise TooLarge(
                            f"The request has more than {limit:,} bytes, the most accepted."
                        )
                    self._take_memory(len(chunk), hold)
                    body += chunk
        except TimeoutError:
            raise ReceiveTimeout(
                f"The request did not arrive whole in {self._settings.receive_timeout:g} seconds."
            ) from None
        return await self._gunzip(body, hold) if coded else body

    async def _gunzip(self, body: bytearray, hold: _Hold) -> bytearray:
        content, limit = bytearray(), self._settings.max_body
        pieces = gunzip(body)
        while True:
            async with self._lend(PIECE_BYTES, hold):
                piece = await self.in_pool(lambda: next(pieces, b""))
            if not piece:
                break
            if len(content) + len(piece) > limit:
                raise TooLarge(
                    f"Unpacked, the request has more than {limit:,} bytes, the most accepted."
                )
            self._take_memory(len(piece), hold)
            content += piece
        self._give_back(len(body), hold)
        return content

    async def _parse(
        self, request: Request, body: Buffer, ids: list[str], labels: list[str], hold: _Hold
    ) -> Upload:
        content_type = _content_type(request)
        async with self._lend(memory_to_parse(body, content_type), hold):
            upload = await self.in_pool(
                lambda: parse_upload(
                    body,
                    content_type,
                    ids=ids,
                    labels=labels,
                    classes=self._model.classes,
                    max_images=self._settings.max_images,
                    max_image_bytes=self._settings.max_image_bytes,
                )
            )
        self._give_back(len(body) - sum(map(len, upload.images)), hold)
        return upload

    async def in_pool(self, call: Callable[[], T]) -> T:
        """Run what would keep the event loop busy in a thread."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._pool, context.run, call)

    def _take_memory(self, size_bytes: int, hold: _Hold) -> None:
        """Set memory aside for a request until it is answered."""
        limit = self._settings.max_queue_bytes
        needed = hold.bytes - hold.lent + size_bytes
        if needed > limit:
            raise TooLarge(
                f"The request needs {needed:,} bytes of memory to be decoded; there are {limit:,} "
                "for all requests. Send fewer or smaller images at once."
            )
        if self._bytes_held + size_bytes > limit:
            raise QueueFull(
                f"The requests being answered fill the memory set aside for them ({limit:,} "
                "bytes).",
                retry_after=self._batcher.retry_after(),
            )
        self._bytes_held += size_bytes
        hold.bytes += size_bytes

    def _give_back(self, size_bytes: int, hold: _Hold) -> None:
        self._bytes_held -= size_bytes
        hold.bytes -= size_bytes

    @asynccontextmanager
    async def _lend(self, size_bytes: int, hold: _Hold) -> AsyncIterator[None]:
        """Set memory aside for a piece of work; wait, in turn, for what others give back."""
        limit = self._settings.max_queue_bytes
        async with self._lending:
            while (
                self._bytes_lent
                and self._bytes_held + size_bytes > limit >= hold.bytes - hold.lent + size_bytes
            ):
                self._returned.clear()
                await self._returned.wait()
            self._take_memory(size_bytes, hold)
            self._bytes_lent += size_bytes
            hold.lent += size_bytes
        try:
            yield
        finally:
            self._bytes_lent -= size_bytes
            hold.lent -= size_bytes
            self._give_back(size_bytes, hold)
            self._returned.set()

    async def _decode(self, upload: Upload, hold: _Hold) -> Sequence[Image]:
        """Read all headers, then decode in the memory that they ask for."""
        s, model = self._settings, self._model
        geometry: dict[str, int | None] = {"size": model.size, "crop": model.crop}

        def open_one(file: Buffer) -> Picture:
            return read_header(file, **geometry, max_pixels=s.max_pixels, max_side=s.max_side)

        async def open_chunk(chunk: _Chunk[Buffer]) -> list[Picture]:
            return await self.in_pool(lambda: chunk.each(hold, open_one))

        def decode_one(item: tuple[Picture, int | None, str | None, int]) -> Image:
            return Image(decode(item[0], **geometry), item[1], item[2])

        async def decode_chunk(
            chunk: _Chunk[tuple[Picture, int | None, str | None, int]],
        ) -> list[Image]:
            async with self._lend(max(working for *_, working in chunk.files), hold):
                return await self.in_pool(lambda: chunk.each(hold, decode_one))

        pictures = await self._in_chunks(upload.images, open_chunk)
        needs = [memory_needed(picture, model.size, model.crop) for picture in pictures]
        self._take_memory(sum(lasting for _, lasting in needs), hold)
        working = [
            memory + len(file) for (memory, _), file in zip(needs, upload.images, strict=True)
        ]
        items = list(zip(pictures, upload.labels, upload.ids, working, strict=True))
        images = await self._in_chunks(items, decode_chunk)
        if len({image.pixels.shape for image in images}) > 1:
            raise OutOfRange(
                "The images of a request must be of one size: the model takes them as they come."
            )
        return images

    async def _in_chunks(
        self, files: Sequence[File], do: Callable[[_Chunk[File]], Awaitable[list[T]]]
    ) -> list[T]:
        """Work in order, some images at a time, so that no request keeps all threads busy."""
        done: list[T] = []
        step = DECODE_CHUNK * self._settings.decode_threads
        for first in range(0, len(files), step):
            starts = range(first, min(first + step, len(files)), DECODE_CHUNK)
            chunks = await asyncio.gather(
                *(do(_Chunk(files[at : at + DECODE_CHUNK], at, len(files))) for at in starts),
                return_exceptions=True,
            )
            for chunk in chunks:  # the first failure in the order of the request is the one told
                if isinstance(chunk, BaseException):
                    raise chunk
                done += chunk
        return done

    async def _answers(self, place: Place[Image, Answer], gone: asyncio.Task[None]) -> list[Answer]:
        """Wait for the answers, or for the client to go away."""
        answers = asyncio.ensure_future(place.answers())
        try:
            await asyncio.wait((answers, gone), return_when=asyncio.FIRST_COMPLETED)
            if answers.done():
                return answers.result()
            raise ClientGone
        finally:
            answers.cancel()


def _content_type(request: Request) -> str | None:
    stated = request.headers.getlist("content-type")
    if len(stated) > 1:
        raise Unreadable(f"The request has {len(stated)} Content-Types; send one.")
    return stated[0] if stated else None


async def _gone(request: Request, hold: _Hold) -> None:
    """Return when the client has closed the connection; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    hold.wanted = False
