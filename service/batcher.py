"""Group images into batches of one stream. Knows neither HTTP nor torch."""

import asyncio
import contextlib
import contextvars
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from service import tracing
from service.errors import (
    DeadlineExpired,
    NotReady,
    PredictionFailed,
    QueueFull,
    Refused,
    TooLarge,
)

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")
AdaptPolicy = Literal["always", "idle", "never"]

# Adaptation waits until the answers have left, but not for a client that is slow to read.
DELIVERY_SECONDS = 0.05


ItemIn = TypeVar("ItemIn", contravariant=True)
AnswerOut = TypeVar("AnswerOut", covariant=True)


class Worker(Protocol[ItemIn, AnswerOut]):
    """What runs a batch: one at a time, first `predict`, then `adapt`."""

    async def predict(self, stream: str, items: Sequence[ItemIn]) -> Sequence[AnswerOut | Refused]:
        """Answer each item, in order; one that failed by itself gets its error."""

    async def adapt(self, stream: str, *, learn: bool) -> None:
        """Learn from the batch just answered; without `learn`, only take note of it."""


class Observer(Protocol):
    """What wants to know about the queue."""

    def batch_closed(self, reason: str, images: int) -> None: ...

    def waited(self, seconds: float) -> None: ...


class Place(Generic[Item, Answer]):
    """A request's place in the queue, taken when it has arrived whole.

    It is `count`ed when the number of its images is known, `fill`ed when they are decoded, and
    left again if anything goes wrong before.
    """

    def __init__(
        self, batcher: "Batcher[Item, Answer]", stream: str, arrived: float, deadline: float | None
    ) -> None:
        self._batcher = batcher
        # What the request's own log lines and spans know of it.
        self.context = contextvars.copy_context()
        self.stream, self.arrived, self.deadline = stream, arrived, deadline
        self.images = 0
        self.items: Sequence[Item] | None = None
        self.filled = arrived
        self.taken = 0
        self.queue_seconds = 0.0
        self.delivered = asyncio.Event()
        self._answers: list[Answer] = []
        self._done: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()

    def count(self, images: int) -> None:
        """State how many images come.

        Raises:
            QueueFull: there is no room for them now.
            TooLarge: there never would be.
        """
        self._batcher.make_room(images, instead_of=self)
        self.images = images

    def fill(self, items: Sequence[Item]) -> None:
        """Hand in the decoded images; from now on they may be batched."""
        if len(items) != self.images:
            raise ValueError(f"{self.images} images were counted, {len(items)} came")
        self.items = items
        self.filled = time.monotonic()
        self._batcher.changed()

    async def answers(self) -> list[Answer]:
        """Wait for the answers, in order.

        Raises:
            Refused: the deadline passed, the model failed on them, or the service stopped.
        """
        return await asyncio.shield(self._done)

    def leave(self) -> None:
        """Give the place up; harmless when answered already."""
        if not self._done.done():
            self._batcher.remove(self)
            self._done.cancel()
        self.delivered.set()

    def fail(self, error: Refused) -> None:
        """Answer the whole request with an error."""
        if not self._done.done():
            self._batcher.remove(self)
            self._done.set_exception(error)
            # The client may have gone: then nobody asks for the error, and that is no mistake.
            self._done.exception()

    def answer(self, answers: Sequence[Answer]) -> None:
        """Add the answers of one of its batches; after the last, the request is answered."""
        self._answers.extend(answers)
        if len(self._answers) == self.images and not self._done.done():
            self._done.set_result(self._answers)

    @property
    def expires(self) -> float:
        """When it is no longer to be run; never, once the first of its batches has begun."""
        return math.inf if self.deadline is None or self.taken else self.deadline

    @property
    def is_done(self) -> bool:
        return self._done.done()

    @property
    def is_answered(self) -> bool:
        """Whether all answers are there (they may still be on their way to the client)."""
        return self._done.done() and not self._done.cancelled()


@dataclass(frozen=True)
class Batch(Generic[Item, Answer]):
    """Parts of requests of one stream, in order of arrival: (place, first image, last + 1)."""

    stream: str
    parts: tuple[tuple[Place[Item, Answer], int, int], ...]
    reason: str

    @property
    def images(self) -> int:
        return sum(stop - start for _, start, stop in self.parts)


class Batcher(Generic[Item, Answer]):
    """Group requests of one stream, in order of arrival, at most `max_batch` images together.

    Every place ends: in its answers, an error, or left by its own request; on draining too. A
    request of at most `max_batch` images is never split; a longer one fills batches of its own.
    Among the batches that may close, the one with the oldest request is next.

    Args:
        max_wait: seconds the oldest image waits for company while the worker is free. While it is
            busy images gather anyway.
        max_images: how many may wait.
        adapt: learn from every batch, from those with nothing waiting behind, or from none.
    """

    def __init__(
        self,
        worker: Worker[Item, Answer],
        observer: Observer,
        *,
        max_batch: int,
        max_wait: float,
        max_images: int,
        adapt: AdaptPolicy = "always",
    ) -> None:
        self._worker, self._observer = worker, observer
        self._max_batch, self._max_wait, self._max_images = max_batch, max_wait, max_images
        self._adapt = adapt
        self._queues: dict[str, deque[Place[Item, Answer]]] = {}
        self._changed = asyncio.Event()
        self._draining = False
        self._running = False
        self._batch_began: float | None = None
        self._seconds_per_image = 0.0

    # What a request does

    def enter(self, stream: str, *, deadline: float | None = None) -> Place[Item, Answer]:
        """Take a place at the end of the stream's queue.

        Args:
            deadline: monotonic time after which the request is not to be run.

        Raises:
            QueueFull, NotReady: no place is to be had.
        """
        self.check_open()
        place = Place(self, stream, time.monotonic(), deadline)
        self._queues.setdefault(stream, deque()).append(place)
        return place

    def check_open(self) -> None:
        """Raise NotReady or QueueFull if a request had better not come at all."""
        if self._draining or not self._running:
            raise NotReady("The service is starting or shutting down; try again shortly.")
        self.make_room(1)

    def make_room(self, images: int, *, instead_of: Place[Item, Answer] | None = None) -> None:
        """Raise unless `images` more can wait, counting anew the place that has them."""
        if images > self._max_images:
            raise TooLarge(
                f"The request has {images:,} images; at most {self._max_images:,} can wait at once."
            )
        waiting = self.waiting_images - (_images_waiting(instead_of) if instead_of else 0)
        if waiting + images > self._max_images:
            raise QueueFull(
                f"The queue is full: {waiting:,} of at most {self._max_images:,} images wait.",
                retry_after=self.retry_after(),
            )

    def retry_after(self) -> float:
        """Seconds in which what waits now will probably have been answered; at least 1."""
        return max(1.0, math.ceil(self.waiting_images * self._seconds_per_image))

    def remove(self, place: Place[Item, Answer]) -> None:
        """Take a place out of the queue."""
        queue = self._queues.get(place.stream)
        if queue is not None:
            with contextlib.suppress(ValueError):
                queue.remove(place)
            if not queue:
                del self._queues[place.stream]
        self.changed()

    def changed(self) -> None:
        """Have the loop look at the queues again."""
        self._changed.set()

    # What others see

    @property
    def waiting_images(self) -> int:
        """Images in the queue, decoded or not; a request not yet counted is one."""
        return sum(_images_waiting(place) for queue in self._queues.values() for place in queue)

    @property
    def oldest_age(self) -> float:
        """Seconds since the oldest waiting request arrived; 0 for none."""
        oldest = min((queue[0].arrived for queue in self._queues.values()), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    @property
    def is_idle(self) -> bool:
        return not self._queues and self._batch_began is None

    @property
    def batch_age(self) -> float:
        """Seconds that the worker has been at its batch; 0 without one."""
        return 0.0 if self._batch_began is None else time.monotonic() - self._batch_began

    @property
    def is_running(self) -> bool:
        """Whether the loop takes requests; not before it runs, nor while draining."""
        return self._running and not self._draining

    def drain(self) -> None:
        """Take no more requests; answer those that wait without delay."""
        self._draining = True
        self.changed()

    # The loop

    async def run(self) -> None:
        """Form batches and run them until drained and empty. The lifespan owns this task."""
        while True:
            try:
                await self._loop()
                return
            except Exception as error:
                log.exception(
                    "the batching loop failed; it starts again",
                    extra={"fields": {"event": "batching_restarted", "reason": repr(error)}},
                )

    async def _loop(self) -> None:
        self._running = True
        try:
            while (batch := await self._next_batch()) is not None:
                self._batch_began = time.monotonic()
                try:
                    await self._run_batch(batch)
                except Exception:
                    # Whatever this was, the next request must not suffer.
                    log.exception("a batch of stream %s failed", batch.stream)
                    _fail(batch, PredictionFailed("The service failed on this request."))
                finally:
                    self._batch_began = None
        finally:
            self._running = False
            stopped = NotReady("The service stopped before it came to this request.")
            for queue in list(self._queues.values()):
                for place in list(queue):
                    place.fail(stopped)

    async def _next_batch(self) -> Batch[Item, Answer] | None:
        while True:
            self._changed.clear()
            now = time.monotonic()
            self._expire(now)
            closable: list[Batch[Item, Answer]] = []
            wake = math.inf
            for stream, queue in self._queues.items():
                parts, full = self._compose(queue)
                if not parts:
                    continue
                due = parts[0][0].arrived + self._max_wait
                if full or self._draining or due <= now:
                    reason = "full" if full else "drain" if self._draining else "wait"
                    closable.append(Batch(stream, tuple(parts), reason))
                else:
                    wake = min(wake, due)
            if closable:
                batch = min(closable, key=lambda batch: batch.parts[0][0].arrived)
                self._take(batch)
                return batch
            if self._draining and not self._queues:
                return None
            expiries = (place.expires for queue in self._queues.values() for place in queue)
            wake = min(wake, *expiries, math.inf)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if wake == math.inf else max(0.0, wake - now)):
                    await self._changed.wait()

    def _expire(self, now: float) -> None:
        for queue in list(self._queues.values()):
            for place in list(queue):
                if place.expires <= now:
                    place.fail(
                        DeadlineExpired("The request's deadline passed before its turn came.")
                    )

    def _compose(
        self, queue: deque[Place[Item, Answer]]
    ) -> tuple[list[tuple[Place[Item, Answer], int, int]], bool]:
        """Return what the next batch of a stream would hold, and whether it can hold no more.

        A request still being decoded ends the batch: those behind it keep the order of arrival.
        """
        parts: list[tuple[Place[Item, Answer], int, int]] = []
        room = self._max_batch
        for place in queue:
            if place.items is None:
                return parts, False
            rest = place.images - place.taken
            if rest >= self._max_batch and not parts:
                return [(place, place.taken, place.taken + self._max_batch)], True
            if rest > room:
                return parts, True
            parts.append((place, place.taken, place.images))
            room -= rest
        return parts, room == 0

    def _take(self, batch: Batch[Item, Answer]) -> None:
        queue = self._queues[batch.stream]
        for place, _, stop in batch.parts:
            place.taken = stop
            if stop == place.images:
                queue.popleft()
        if not queue:
            del self._queues[batch.stream]

    async def _run_batch(self, batch: Batch[Item, Answer]) -> None:
        """Run a batch; if its forward pass fails, each request alone: only the culprit fails."""
        # A client that went away between two batches of its request takes no place in this one.
        parts = tuple(part for part in batch.parts if not part[0].is_done)
        if not parts:
            return
        batch = Batch(batch.stream, parts, batch.reason)
        contexts = [place.context for place, _, _ in parts]
        with tracing.batch(contexts, stream=batch.stream, images=batch.images, reason=batch.reason):
            answered = await self._run_together(batch)
        if not answered:
            for part in parts:
                await self._run_batch(Batch(batch.stream, (part,), batch.reason))

    async def _run_together(self, batch: Batch[Item, Answer]) -> bool:
        """Predict, hand out the answers, then adapt; return whether its requests are answered."""
        parts = batch.parts
        started = time.monotonic()
        for place, start, _ in parts:
            if start == 0:
                place.queue_seconds = started - place.filled
                self._observer.waited(place.queue_seconds)
                place.context.run(tracing.stage, "queue", place.queue_seconds)
        self._observer.batch_closed(batch.reason, batch.images)
        items = [item for place, start, stop in parts for item in (place.items or ())[start:stop]]
        try:
            answers = await self._worker.predict(batch.stream, items)
        except Exception as error:
            if len(parts) > 1:
                return False
            log.error("the model failed on a request of stream %s: %r", batch.stream, error)
            refusal = error if isinstance(error, Refused) else None
            _fail(batch, refusal or PredictionFailed("The model failed on it."))
            return True
        _hand_out(batch, answers)
        await _delivered([place for place, _, _ in parts])
        learn = self._adapt == "always" or (self._adapt == "idle" and not self._queues)
        await self._worker.adapt(batch.stream, learn=learn)
        seconds = (time.monotonic() - started) / len(items)
        weight = 0.2 if self._seconds_per_image else 1.0
        self._seconds_per_image += weight * (seconds - self._seconds_per_image)
        return True


def _images_waiting(place: Place[Item, Answer]) -> int:
    return max(1, place.images - place.taken)


def _hand_out(batch: Batch[Item, Answer], answers: Sequence[Answer | Refused]) -> None:
    """Give each request its rows; one with a failed row fails as a whole, and alone."""
    if len(answers) != batch.images:
        raise ValueError(f"{batch.images} images were to be answered, {len(answers)} were")
    position = 0
    for place, start, stop in batch.parts:
        rows = answers[position : position + stop - start]
        position += stop - start
        good: list[Answer] = []
        for offset, row in enumerate(rows):
            if isinstance(row, Refused):
                where = f"Image {start + offset + 1} of {place.images}: "
                place.fail(type(row)(where + str(row), index=start + offset))
                break
            good.append(row)
        else:
            place.answer(good)


def _fail(batch: Batch[Item, Answer], error: Refused) -> None:
    for place, _, _ in batch.parts:
        place.fail(error)


async def _delivered(places: Sequence[Place[Item, Answer]]) -> None:
    """Wait until the answers are with the clients, for a short while at most."""
    waits = [place.delivered.wait() for place in places if place.is_answered]
    if waits:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DELIVERY_SECONDS):
                await asyncio.gather(*waits)
