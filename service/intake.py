"""A request's way in three stages: its bytes received, images made of them, images answered.

    async with Submission(intake, "camera-7", http=request) as submission:
        await submission.receive()
        images = await submission.decode(parse)
        answered = await submission.answer(images)

Whoever has files of another origin begins with `decode`, whoever has pixels with `fit`, and of the
model's size with `answer`. Where only the body says what stream it is of, `name` comes behind
`receive`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request

from service import tracing
from service.answering import Image, ImageAnswer
from service.batcher import Batcher
from service.decoding import SMALL_BYTES, Decoding, Threads
from service.engine import Engine
from service.errors import ClientGone, OutOfRange, Refused, of_image
from service.memory import Memory, Share
from service.metrics import Metrics
from service.places import Place
from service.receiving import Arrivals, Reception
from service.schemas import STREAM_NAME, STREAM_WORDS, LateLabel
from service.settings import Settings
from service.uploads import (
    Upload,
    check_count,
    check_label,
    content_type,
    memory_to_parse,
    parse_labels,
)
from ttc_core.model import SourceModel
from ttc_core.pictures import Buffer

T = TypeVar("T")

# Most requests are answered sooner: only of others it is watched whether somebody still waits.
PRESENCE_SECONDS = 0.02
# In the request's scope: called when the whole answer has been handed to the server.
DELIVERED = "ttc.delivered"
# In the request's scope: what its log line and its span tell besides.
NOTES = "ttc.notes"


@dataclass(frozen=True)
class AnsweredRequest:
    """The answers to a request, in order, with the seconds that it spent in each stage."""

    answers: list[ImageAnswer]
    seconds: dict[str, float]


@dataclass
class Intake:
    """What all requests share on their way: the limits, memory and threads."""

    settings: Settings
    model: SourceModel
    engine: Engine
    batcher: Batcher[Image, ImageAnswer]
    metrics: Metrics

    def __post_init__(self) -> None:
        self.memory = Memory(self.settings.max_queue_bytes, self.batcher.retry_after)
        self.threads = Threads(self.settings.decode_threads)
        self.arrivals = Arrivals(self.settings, self.memory, self.threads, self.batcher.check_open)

    async def labels(self, http: Request) -> list[LateLabel]:
        """Read the labels that came later for images answered before, all or none.

        Raises:
            Refused: the request is turned away. ClientGone: nobody waits any more.
        """
        async with self.received(http) as (body, share):
            stated = content_type(http.headers)
            parse = partial(parse_labels, body, stated, classes=self.model.classes)
            small = len(body) <= SMALL_BYTES
            return await self.threads.run(parse, share, memory_to_parse(body, stated), small=small)

    @asynccontextmanager
    async def received(
        self, http: Request, most: int | None = None
    ) -> AsyncIterator[tuple[Buffer, Share]]:
        """The body of a request without images, and its share of the memory.

        Args:
            most: bytes that it may have, unpacked too; None: --max-body. Whom no token is asked of
                is not to fill the memory of those who have one.

        Raises:
            Refused: the request is turned away. ClientGone: nobody waits any more.
        """
        share = Share(self.memory)
        try:
            yield await Reception(self.arrivals, http, share, most).receive(), share
        except ClientDisconnect:
            raise ClientGone from None
        finally:
            share.take(-share.held)

    def close(self) -> None:
        """End the threads."""
        self.threads.close()


class Submission:
    """The images of one request on their way to their answers, all or none.

    Whatever it holds is given back in the end; refusals and clients that went away are counted.

    Args:
        stream: None where the body has to be read first: `name` says it.
        http: whose bytes are received, and whose client may go away; None: of another origin.
        timeout: seconds from now after which the request is not to be run.
        learn: off: nothing is learned from the images, and nothing moves.

    Raises:
        Refused: the request is turned away. ClientGone: nobody waits any more.
    """

    def __init__(
        self,
        intake: Intake,
        stream: str | None,
        *,
        http: Request | None = None,
        timeout: float | None = None,
        learn: bool = True,
    ) -> None:
        self._intake, self._http, self._learn = intake, http, learn
        self._stream = "" if stream is None else stream
        self._is_named = stream is not None
        self._began = time.monotonic()
        self._deadline = None if timeout is None else self._began + timeout
        self._share = Share(intake.memory)
        self._decoding = Decoding(intake.settings, intake.model, intake.threads, self._share)
        self._place: Place[Image, ImageAnswer] | None = None
        self._watching: asyncio.Task[None] | asyncio.TimerHandle | None = None
        self._admitted = False
        self._body: Buffer = b""
        self._bytes = 0  # of the body, then its files, then their pixels
        self._notes: dict[str, str | int] = {"stream": stream} if stream is not None else {}
        if http is not None:
            http.scope[NOTES] = self._notes

    async def __aenter__(self) -> Self:
        with self._counted():
            if self._is_named:
                self._check_stream()
            self._intake.batcher.check_open()
        return self

    def _check_stream(self) -> None:
        if not STREAM_NAME.fullmatch(self._stream):
            raise OutOfRange(f"stream: {STREAM_WORDS}; got {self._stream[:80]!r}.")

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._admitted:
            self._intake.engine.table.release(self._stream)
        if self._watching is not None:
            self._watching.cancel()
        self._no_longer()
        self._share.take(-self._share.held)
        if self._place is not None and not (self._place.is_answered and self._http):
            self._place.leave()
        if self._decoding.images:
            self._notes["images"] = self._decoding.images
        with self._counted():
            if error is not None:
                raise error

    @contextmanager
    def _counted(self) -> Iterator[None]:
        metrics, images = self._intake.metrics, max(1, self._decoding.images)
        try:
            yield
        except Refused as error:
            if error.reason is not None:
                metrics.rejected.labels(error.reason).inc(images)
            raise
        except (ClientGone, ClientDisconnect):
            metrics.cancelled.inc(images)
            raise ClientGone from None

    # Bytes received

    async def receive(self) -> Buffer:
        """Read the body, and take a place in the queue, if it is known of which stream."""
        assert self._http is not None
        reception = Reception(self._intake.arrivals, self._http, self._share)
        self._body = await reception.receive()
        self._bytes = reception.bytes
        if self._is_named:
            self._enter_watched(self._http)
        return self._body

    def name(self, stream: str, *, timeout: float | None = None, learn: bool = True) -> None:
        """Say what only the body told, as the arguments of the class; take a place in the queue.

        `timeout` counts from when the submission began.
        """
        assert self._http is not None
        self._stream, self._learn, self._is_named = stream, learn, True
        self._check_stream()
        self._notes["stream"] = stream
        self._deadline = None if timeout is None else self._began + timeout
        self._enter_watched(self._http)

    def _enter_watched(self, http: Request) -> None:
        loop, place = asyncio.get_running_loop(), self._enter()
        self._watching = loop.call_later(PRESENCE_SECONDS, self._watch, http, place)

    def keep(self, size_bytes: int) -> None:
        """Have memory, until the images are made, for what was read out of the body beside it."""
        self._hold(self._bytes + size_bytes)

    async def work(self, call: Callable[[], T], memory: int) -> T:
        """Do in a thread what would keep the event loop busy; it takes `memory` bytes meanwhile."""
        small = self._bytes <= SMALL_BYTES
        return await self._intake.threads.run(call, self._share, memory, small=small)

    def _watch(self, http: Request, place: Place[Image, ImageAnswer]) -> None:
        """From now on, notice when the client closes the connection; the body has been read."""

        async def wait_until_gone() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass
            place.fail(ClientGone())

        self._watching = asyncio.create_task(wait_until_gone())

    def _no_longer(self) -> None:
        """Have what is still being decoded stop at its next image."""
        self._decoding.wanted = False

    def _enter(self) -> Place[Image, ImageAnswer]:
        """Take the place in the queue, when all has arrived that the request brings."""
        if self._place is None:
            engine, batcher = self._intake.engine, self._intake.batcher
            if self._learn:  # nobody holds a stream's place by sending slowly
                engine.table.admit(self._stream, batcher.retry_after)
                self._admitted = True
            self._place = batcher.enter(self._stream, deadline=self._deadline, learn=self._learn)
            self._place.on_end(self._no_longer)  # when its time is over, say
            if self._http is not None:
                self._http.scope[DELIVERED] = self._place.delivered.set
        return self._place

    def _hold(self, size_bytes: int) -> None:
        """Have so much memory for what has become of the body."""
        self._share.take(size_bytes - self._bytes)
        self._bytes = size_bytes

    # Images made of them

    async def decode(
        self,
        parse: Callable[[Buffer], Upload],
        memory: Callable[[Buffer], int] = lambda _: 0,
        *,
        most_images: int | None = None,
    ) -> Sequence[Image]:
        """Make images of files.

        Args:
            parse: takes the body apart, if there is one, and gives the files. Runs in a thread.
            memory: tells the bytes that it takes while it runs.
            most_images: of which the answer is not too long.
        """
        place = self._enter()
        try:
            return await self._decoded(place, parse, memory, most_images)
        except ClientGone:
            await self._tell_if_over(place)
            raise

    async def _tell_if_over(self, place: Place[Image, ImageAnswer]) -> None:
        """Raise what a place ended in, if it has: its time is over, say."""
        if place.is_done:
            await place.answers()

    async def _decoded(
        self,
        place: Place[Image, ImageAnswer],
        parse: Callable[[Buffer], Upload],
        memory: Callable[[Buffer], int],
        most_images: int | None,
    ) -> Sequence[Image]:
        upload, images = await self._decoding.parse(parse, self._body, memory)
        self._body = b""
        self._hold(sum(map(len, upload.images)))
        count = self._decoding.images
        if most_images is not None and count > most_images:
            raise OutOfRange(
                f"With as many classes for each image as top_k says, at most {most_images:,} "
                f"images are answered in one request; got {count:,}."
            )
        place.count(count)
        images = images or await self._decoding.decode(upload)
        self._hold(0)
        upload.images.clear()  # the pixels are there; the files need no memory any more
        self._bytes = sum(image.pixels.nbytes for image in images)
        return images

    async def fit(
        self,
        frame: Callable[[int], NDArray[np.uint8]],
        sides: tuple[int, int],
        ids: Sequence[str | None],
    ) -> Sequence[Image]:
        """Make images of pixels, as `Decoding.fit` does, of the body or of another origin.

        The caller keeps the body no longer: from here on it needs no memory.
        """
        check_count(len(ids), self._intake.settings.max_images)
        place = self._enter()
        place.count(len(ids))
        try:
            images = await self._decoding.fit(frame, sides, ids)
        except ClientGone:
            await self._tell_if_over(place)
            raise
        self._body = b""
        self._hold(0)
        self._bytes = sum(image.pixels.nbytes for image in images)
        return images

    # Images answered

    async def answer(self, images: Sequence[Image]) -> AnsweredRequest:
        """Wait until images, (H, W, 3) uint8 of the model's size, are answered."""
        intake, place = self._intake, self._enter()
        if not self._decoding.images:  # they were never files
            check_count(len(images), intake.settings.max_images)
            self._decoding.images = len(images)
            place.count(len(images))
        _check(images, intake.model)
        self._hold(sum(image.pixels.nbytes for image in images))
        decode_seconds = time.monotonic() - place.arrived
        intake.metrics.spent("decode", decode_seconds)
        tracing.stage("decode", decode_seconds)
        place.fill(images)
        answers = await place.answers()
        # A long request is answered in several passes.
        forward = sum({id(each.answers): each.forward_seconds for each in answers}.values())
        seconds = {"decode": decode_seconds, "queue": place.queue_seconds, "forward": forward}
        return AnsweredRequest(answers, seconds)


def _check(images: Sequence[Image], model: SourceModel) -> None:
    """Raise OutOfRange unless they are what the model takes."""
    side = model.crop or model.size
    for index, image in enumerate(images):
        shape, kind = image.pixels.shape, image.pixels.dtype
        taken = (side, side, 3) if side else (*images[0].pixels.shape[:2], 3)
        with of_image(index, len(images)):
            check_label(image.label, model.classes)
            if shape != taken or kind != "uint8":
                raise OutOfRange(
                    f"its pixels are {shape} {kind}, not {taken} uint8. The images of a request "
                    "must be of one size: the model takes them as they come."
                )
