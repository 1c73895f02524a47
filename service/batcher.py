"""Group images into batches of one stream. Knows neither HTTP nor torch."""

import asyncio
import contextlib
import contextvars
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from service.pace import Pace
from ttc_core.errors import UserError, told

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")
AdaptPolicy = Literal["always", "idle", "never"]

# Adaptation waits until the answers have left, but not for a client that is slow to read.
DELIVERY_SECONDS = 0.05
# A pass that takes longer will not end: nobody is kept waiting for it.
HUNG_SECONDS = 300.0
# A batch at hand that takes so many times its like's time may have hung, and tells no more.
MOST_SLOWER = 10.0


ItemIn = TypeVar("ItemIn", contravariant=True)
AnswerOut = TypeVar("AnswerOut", covariant=True)


class Worker(Protocol[ItemIn, AnswerOut]):
    """What runs a batch: one at a time, first `predict`, then `adapt` or `count`."""

    async def predict(
        self, stream: str, items: Sequence[ItemIn], *, learn: bool = True
    ) -> Sequence[AnswerOut | Refused]:
        """Answer each item, in order; one that failed by itself gets its error.

        Args:
            learn: off where it is known that `adapt` will not learn from these items.
        """

    async def adapt(self, stream: str, *, learn: bool) -> None:
        """Learn from the batch just answered; without `learn`, only take note of it."""

    async def count(self, stream: str) -> None:
        """Count the batch just answered; nothing else moves."""


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
        self,
        batcher: "Batcher[Item, Answer]",
        stream: str,
        arrived: float,
        deadline: float | None,
        learn: bool = True,
    ) -> None:
        self._batcher = batcher
        # What the request's own log lines and spans know of it.
        self.context = contextvars.copy_context()
        self.stream, self.arrived, self.deadline = stream, arrived, deadline
        self.learn = learn
        self.images = 0
        self.items: Sequence[Item] | None = None
        self.filled = arrived
        self.taken = 0
        self.queue_seconds = 0.0
        self.delivered = asyncio.Event()
        self._answers: list[Answer] = []
        loop = asyncio.get_running_loop()
        self._done: asyncio.Future[list[Answer]] = loop.create_future()
        if deadline is not None:
            timer = loop.call_later(max(0.0, deadline - arrived), self._expire)
            self._done.add_done_callback(lambda _: timer.cancel())

    def count(self, images: int) -> None:
        """State how many images come, 1 or more.

        Raises:
            QueueFull: there is no room for them now.
            TooLarge: there never would be.
        """
        if images < 1:
            raise ValueError(f"a request has 1 image or more; got {images}")
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

    def _expire(self) -> None:
        if not self.taken:
            self.fail(DeadlineExpired("The request's deadline passed before its turn came."))

    @property
    def has_expired(self) -> bool:
        """Whether it is no longer to be run; never, once a part of it was answered."""
        return self.deadline is not None and not (self._answers or self.deadline > time.monotonic())

    @property
    def is_done(self) -> bool:
        return self._done.done()

    @property
    def is_answered(self) -> bool:
        """Whether all answers are there (they may still be on their way to the client)."""
        return self._done.done() and not self._done.cancelled()


@dataclass(frozen=True)
class Batch(Generic[Item, Answer]):
    """Parts of requests of one stream, in order of arrival: (place, first image, last + 1).

    All of them are to be learned from, or none.
    """

    stream: str
    parts: tuple[tuple[Place[Item, Answer], int, int], ...]
    reason: str

    @property
    def learn(self) -> bool:
        return self.parts[0][0].learn

    @property
    def items(self) -> list[Item]:
        return [
            item for place, start, stop in self.parts for item in (place.items or ())[start:stop]
        ]

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
        self._batch_images = 0
        self._pace = Pace()

    # What a request does

    def enter(
        self, stream: str, *, deadline: float | None = None, learn: bool = True
    ) -> Place[Item, Answer]:
        """Take a place at the end of the stream's queue.

        Args:
            deadline: monotonic time after which the request is not to be run.
            learn: off: it is answered, and nothing moves.

        Raises:
            QueueFull, NotReady: no place is to be had.
        """
        self.check_open()
        place = Place(self, stream, time.monotonic(), deadline, learn)
        self._queues.setdefault(stream, deque()).append(place)
        return place

    def check_open(self) -> None:
        """Raise NotReady or QueueFull if a request had better not come at all."""
        if self._draining or not self._running:
            raise NotReady("The service is starting or shutting down; try again shortly.")
        if self.batch_age > HUNG_SECONDS:
            raise _hung()
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
        total = 0.0
        for queue in self._queues.values():
            full, rest = divmod(sum(map(_images_waiting, queue)), self._max_batch)
            total += full * self._pace.seconds(self._max_batch)
            total += self._pace.seconds(rest) if rest else 0.0
        if self._batch_began is not None and (expected := self._pace.seconds(self._batch_images)):
            # A batch that takes longer than its like tells of those behind it.
            total *= min(max(1.0, self.batch_age / expected), MOST_SLOWER)
            total += max(0.0, expected - self.batch_age)
        return max(1.0, math.ceil(total))

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
        batch: Batch[Item, Answer] | None = None
        try:
            while (batch := await self._next_batch()) is not None:
                await self._run_guarded(batch)
                batch = None  # its images need no memory any more
        finally:
            self._running = False
            stopped = NotReady("The service stopped before it came to this request.")
            for place in self._places(batch):
                place.fail(stopped)

    async def _run_guarded(self, batch: Batch[Item, Answer]) -> None:
        """Run a batch; whatever happens to it, the next must not suffer, nor wait for ever."""
        self._batch_began = time.monotonic()
        self._watch(batch)
        try:
            await self._run_batch(batch)
        except Exception:
            log.exception("a batch of stream %s failed", batch.stream)
            _fail(batch, PredictionFailed("The service failed on this request."))
        finally:
            self._watcher.cancel()
            self._batch_began = None

    def _watch(self, batch: Batch[Item, Answer]) -> None:
        """Come again until the worker has not returned for too long; then answer everybody."""
        rest = HUNG_SECONDS - self.batch_age
        if rest > 0:
            self._watcher = asyncio.get_running_loop().call_later(rest, self._watch, batch)
            return
        for place in self._places(batch):
            place.fail(_hung())

    def _places(self, batch: Batch[Item, Answer] | None) -> list[Place[Item, Answer]]:
        """Who waits for an answer: in the batch, and in the queues."""
        waiting = [place for queue in self._queues.values() for place in queue]
        return waiting + [place for place, _, _ in (batch.parts if batch else ())]

    async def _next_batch(self) -> Batch[Item, Answer] | None:
        while True:
            self._changed.clear()
            now = time.monotonic()
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
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if wake == math.inf else max(0.0, wake - now)):
                    await self._changed.wait()

    def _compose(
        self, queue: deque[Place[Item, Answer]]
    ) -> tuple[list[tuple[Place[Item, Answer], int, int]], bool]:
        """Return what the next batch of a stream would hold, and whether it can hold no more.

        A request still being decoded ends the batch: those behind it keep the order of arrival.
        So does one that is not to be learned from behind those that are, and the reverse.
        """
        parts: list[tuple[Place[Item, Answer], int, int]] = []
        room = self._max_batch
        for place in queue:
            if place.items is None:
                return parts, False
            if parts and place.learn != parts[0][0].learn:
                return parts, True
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
        """Count a batch and the waits of its requests, once; then run it."""
        now = time.monotonic()
        for place, start, _ in batch.parts:
            if start == 0:
                place.queue_seconds = now - place.filled
                self._observer.waited(place.queue_seconds)
                place.context.run(tracing.stage, "queue", place.queue_seconds)
        self._observer.batch_closed(batch.reason, batch.images)
        await self._run(batch)

    async def _run(self, batch: Batch[Item, Answer]) -> None:
        """Run a batch; if a row fails, run its requests in halves: only the culprits fail.

        That takes at most twice as many passes as there are requests, and few for one culprit.
        """
        # A client that went away, or whose time is over, takes no place in this pass.
        for place, _, _ in batch.parts:
            if place.has_expired:
                place.fail(DeadlineExpired("The request's deadline passed before it was answered."))
        parts = tuple(part for part in batch.parts if not part[0].is_done)
        if not parts:
            return
        batch = replace(batch, parts=parts)
        contexts = [place.context for place, _, _ in parts]
        with tracing.batch(contexts, stream=batch.stream, images=batch.images, reason=batch.reason):
            answered = await self._run_together(batch)
        if not answered:
            for half in (parts[: len(parts) // 2], parts[len(parts) // 2 :]):
                await self._run(replace(batch, parts=half))

    async def _run_together(self, batch: Batch[Item, Answer]) -> bool:
        """Predict, hand out the answers, then adapt; return whether its requests are answered."""
        began = time.monotonic()
        learn = batch.learn and self._learns_now
        try:
            rows = await self._predict(batch.stream, batch.items, learn)
        except Refused as error:  # of the whole stream, whoever asks
            _fail(batch, error)
            return True
        except Exception as error:
            if len(batch.parts) > 1:
                return False
            log.error("the model failed on a request of stream %s: %s", batch.stream, told(error))
            # A network's failure comes with a sentence; anything else is for the log alone.
            sentence = str(error) if isinstance(error, UserError) else "the model failed on it."
            await self._fail_culprit(batch, PredictionFailed(sentence))
            return True
        failed = [index for index, row in enumerate(rows) if isinstance(row, Refused)]
        if failed and len(batch.parts) > 1:
            return False
        if failed:
            await self._take_note(batch, learn=False)
            refusal = rows[failed[0]]
            assert isinstance(refusal, Refused)
            only = failed[0] if len(failed) < len(rows) or len(rows) == 1 else None
            await self._fail_culprit(batch, refusal, only)
            return True
        _hand_out(batch, [row for row in rows if not isinstance(row, Refused)])
        await _delivered([place for place, _, _ in batch.parts])
        await self._take_note(batch, learn=learn and self._learns_now)
        self._pace.measured(batch.images, time.monotonic() - began)
        return True

    @property
    def _learns_now(self) -> bool:
        return self._adapt == "always" or (self._adapt == "idle" and not self._queues)

    async def _predict(
        self, stream: str, items: list[Item], learn: bool
    ) -> Sequence[Answer | Refused]:
        self._batch_began, self._batch_images = time.monotonic(), len(items)
        # A worker of few lines need not know of what is not asked of it.
        options = {} if learn else {"learn": False}
        rows = await self._worker.predict(stream, items, **options)
        if len(rows) != len(items):
            raise ValueError(f"{len(items)} images were to be answered, {len(rows)} were")
        return rows

    async def _take_note(self, batch: Batch[Item, Answer], *, learn: bool) -> None:
        """Have the worker learn from the batch, or count it; no answer hangs on that."""
        try:
            if batch.learn:
                await self._worker.adapt(batch.stream, learn=learn)
            else:
                await self._worker.count(batch.stream)
        except Exception:
            log.exception("what follows a batch of stream %s failed", batch.stream)

    async def _fail_culprit(
        self, batch: Batch[Item, Answer], refusal: Refused, index: int | None = None
    ) -> None:
        """Refuse the only request of a batch, and name the image at fault where it can be found."""
        ((place, start, stop),) = batch.parts
        if index is None:
            index = 0 if stop - start == 1 else await self._culprit(batch)
        if index is None:
            place.fail(type(refusal)(f"The request's images together: {refusal}"))
        else:
            where = f"Image {start + index + 1} of {place.images}: "
            place.fail(type(refusal)(f"{where}{refusal}", index=start + index))

    async def _culprit(self, batch: Batch[Item, Answer]) -> int | None:
        """Find the first image that fails by itself, in passes that add up to one or two batches.

        Returns:
            Its place in the batch; None where the images fail together only.
        """
        learn = batch.learn and self._learns_now

        async def fails(start: int, stop: int) -> bool:
            try:
                rows = await self._predict(batch.stream, batch.items[start:stop], learn)
            except Exception:
                return True
            return any(isinstance(row, Refused) for row in rows)

        start, stop = 0, batch.images
        while stop - start > 1:
            middle = (start + stop) // 2
            start, stop = (start, middle) if await fails(start, middle) else (middle, stop)
        return start if await fails(start, stop) else None


def _images_waiting(place: Place[Item, Answer]) -> int:
    return max(1, place.images - place.taken)


def _hung() -> NotReady:
    return NotReady(
        f"The device has not returned from a batch for {HUNG_SECONDS:g} seconds; the service is "
        "to be started again, or --max-batch is too large for it."
    )


def _hand_out(batch: Batch[Item, Answer], answers: Sequence[Answer]) -> None:
    """Give each request its rows."""
    position = 0
    for place, start, stop in batch.parts:
        place.answer(answers[position : position + stop - start])
        position += stop - start


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
