"""A request's way from its bytes to its answers: read, take a place, decode, wait."""

import asyncio
import contextvars
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from service import tracing
from service.batcher import Batcher, Place
from service.engine import Answer, Engine, Image
from service.errors import OutOfRange, QueueFull, ReceiveTimeout, Refused, TooLarge
from service.images import decode
from service.metrics import Metrics
from service.settings import Settings
from service.uploads import Upload, parse_upload
from ttc_core.model import SourceModel

T = TypeVar("T")

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
    """What a request has taken, and whether it still wants its images decoded."""

    bytes: int = 0
    wanted: bool = True


class Intake:
    """Takes requests in, within every limit on size, count and time.

    The event loop reads bytes and waits; parsing and decoding run in a pool of threads.
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
        self._bytes_held = 0

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
    ) -> Answered:
        """Answer a request's images, all or none.

        Args:
            timeout: seconds from now after which the request is not to be run.
            most_images: of which the answer is not too long.

        Raises:
            Refused: the request is turned away. ClientGone: nobody waits any more.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        images = 0
        body = bytearray()
        hold = _Hold()
        place: Place[Image, Answer] | None = None
        notes: dict[str, str | int] = {"stream": stream}
        request.scope[NOTES] = notes
        try:
            self._batcher.check_open()
            self._engine.admit(stream)
            await self._receive(request, body, hold)
            place = self._batcher.enter(stream, deadline=deadline)
            request.scope[DELIVERED] = place.delivered.set
            upload = await self.in_pool(
                lambda: parse_upload(
                    bytes(body),
                    request.headers.get("content-type"),
                    ids=ids,
                    labels=labels,
                    classes=self._model.classes,
                    max_images=self._settings.max_images,
                    max_image_bytes=self._settings.max_image_bytes,
                )
            )
            images = notes["images"] = len(upload.images)
            if images > most_images:
                raise OutOfRange(
                    f"With as many classes for each image as top_k says, at most {most_images:,} "
                    f"images are answered in one request; got {images:,}."
                )
            place.count(images)
            items = await self._decode(upload, hold)
            upload.images.clear()  # the pixels are there; the files need no memory any more
            decode_seconds = time.monotonic() - place.arrived
            self._metrics.stage_seconds.labels("decode").observe(decode_seconds)
            tracing.stage("decode", decode_seconds)
            place.fill(items)
            answers = await self._answers(place, request)
        except Refused as error:
            if error.reason is not None:
                self._metrics.rejected.labels(error.reason).inc(max(1, images))
            raise
        except (ClientGone, ClientDisconnect):
            self._metrics.cancelled.inc(max(1, images))
            raise ClientGone from None
        finally:
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

    async def _receive(self, request: Request, body: bytearray, hold: "_Hold") -> None:
        """Read the request into `body`, within the limits of size, memory and time."""
        limit = self._settings.max_body
        stated = request.headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > limit:
            raise TooLarge(
                f"The request has {int(stated):,} bytes; at most {limit:,} are accepted."
            )
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

    async def in_pool(self, call: Callable[[], T]) -> T:
        """Run what would keep the event loop busy in a thread."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._pool, context.run, call)

    def _take_memory(self, size_bytes: int, hold: "_Hold") -> None:
        """Set memory aside for a request until it is answered."""
        if self._bytes_held + size_bytes > self._settings.max_queue_bytes:
            raise QueueFull(
                "The requests being answered fill the memory set aside for them "
                f"({self._settings.max_queue_bytes:,} bytes).",
                retry_after=self._batcher.retry_after(),
            )
        self._bytes_held += size_bytes
        hold.bytes += size_bytes

    async def _decode(self, upload: Upload, hold: "_Hold") -> Sequence[Image]:
        """Decode in order, some images at a time, so that no request keeps all threads busy."""
        files = list(zip(upload.images, upload.labels, strict=True))
        images: list[Image] = []
        step = DECODE_CHUNK * self._settings.decode_threads
        for first in range(0, len(files), step):
            starts = range(first, min(first + step, len(files)), DECODE_CHUNK)
            chunks = await asyncio.gather(
                *(self.in_pool(partial(self._decode_chunk, files, at, hold)) for at in starts),
                return_exceptions=True,
            )
            for chunk in chunks:  # the first failure in the order of the request is the one told
                if isinstance(chunk, BaseException):
                    raise chunk
                self._take_memory(sum(image.pixels.nbytes for image in chunk), hold)
                images += chunk
        if len({image.pixels.shape for image in images}) > 1:
            raise OutOfRange(
                "The images of a request must be of one size: the model takes them as they come."
            )
        return images

    def _decode_chunk(
        self, files: list[tuple[bytes, int | None]], start: int, hold: "_Hold"
    ) -> list[Image]:
        s, model = self._settings, self._model
        images = []
        for index, (file, label) in enumerate(files[start : start + DECODE_CHUNK], start):
            if not hold.wanted:
                break
            try:
                pixels = decode(
                    file,
                    size=model.size,
                    crop=model.crop,
                    max_pixels=s.max_pixels,
                    max_side=s.max_side,
                )
            except Refused as error:
                others = " None of the request's images was processed." if len(files) > 1 else ""
                raise type(error)(
                    f"Image {index + 1} of {len(files)}: {error}{others}", index=index
                ) from error
            images.append(Image(pixels, label))
        return images

    async def _answers(self, place: Place[Image, Answer], request: Request) -> list[Answer]:
        """Wait for the answers, or for the client to go away."""
        answers = asyncio.ensure_future(place.answers())
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((answers, gone), return_when=asyncio.FIRST_COMPLETED)
            if answers.done():
                return answers.result()
            raise ClientGone
        finally:
            gone.cancel()
            answers.cancel()


async def _disconnected(request: Request) -> None:
    """Return when the client has closed the connection; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
