"""A request's place in the queue, and batches of what waits there. Knows neither HTTP nor torch."""

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from service.errors import ClientGone, DeadlineExpired, PredictionFailed, Refused

Item = TypeVar("Item")
Result = TypeVar("Result")


class Queue(Protocol):
    """Where places are, as one of them sees it: `Lines`.

    Attributes:
        taken: how many batches were taken so far.
    """

    taken: int

    def count(self, place: "Place[Any, Any]", images: int) -> None:
        """A place will have so many images, or there is no room for them."""

    def look(self, stream: str) -> None:
        """Something of a stream has changed."""

    def remove(self, place: "Place[Any, Any]") -> None:
        """A place is given up."""


class Place(Generic[Item, Result]):
    """A request's place in the queue, taken when it has arrived whole.

    It is `count`ed when the number of its images is known, `fill`ed when they are decoded, and
    left again if anything goes wrong before.
    """

    def __init__(self, lines: Queue, stream: str, deadline: float | None, learn: bool) -> None:
        self._lines = lines
        # What the request's own log lines and spans know of it.
        self.context = contextvars.copy_context()
        self.stream, self.deadline, self.learn = stream, deadline, learn
        self.arrived = self.filled = monotonic()
        self.images = self.taken = 0
        self._batches_before = 0
        self.items: Sequence[Item] | None = None
        self.queue_seconds = 0.0
        self.delivered = asyncio.Event()
        self._answers: list[Result] = []
        loop = asyncio.get_running_loop()
        self._done: asyncio.Future[list[Result]] = loop.create_future()
        if deadline is not None:
            timer = loop.call_later(max(0.0, deadline - self.arrived), self._expire)
            self._done.add_done_callback(lambda _: timer.cancel())

    def count(self, images: int) -> None:
        """State how many images come, 1 or more.

        Raises:
            QueueFull: there is no room for them now.
            TooLarge: there never would be.
        """
        if images < 1:
            raise ValueError(f"a request has 1 image or more; got {images}")
        self._lines.count(self, images)

    def fill(self, items: Sequence[Item]) -> None:
        """Hand in the decoded images; from now on they may be batched."""
        if len(items) != self.images:
            raise ValueError(f"{self.images} images were counted, {len(items)} came")
        self.items, self.filled = items, monotonic()
        self._batches_before = self._lines.taken
        self._lines.look(self.stream)

    async def answers(self) -> list[Result]:
        """Wait for the answers, in order.

        Raises:
            Refused: the deadline passed, the model failed on them, or the service stopped.
            ClientGone: nobody waits any more.
        """
        return await asyncio.shield(self._done)

    def on_end(self, call: Callable[[], None]) -> None:
        """Call it once the request is answered, failed or gone."""
        self._done.add_done_callback(lambda _: call())

    def leave(self) -> None:
        """Give the place up; harmless when answered already."""
        if not self._done.done():
            self._lines.remove(self)
            self._done.cancel()
        self.delivered.set()

    def fail(self, error: Refused | ClientGone) -> None:
        """Answer the whole request with an error, which nobody may wait for any more."""
        if not self._done.done():
            self._lines.remove(self)
            self._done.set_exception(error)
            # The client may have gone: then nobody asks for the error, and that is no mistake.
            self._done.exception()

    def turn_away(self, error: Refused, begun: int) -> None:
        """Fail with an error that may have the client send the request again.

        With another one if that would teach its images twice: the device has had the first
        `begun`, and whether it learned from them, or still will, is not known here.
        """
        if begun and self.learn:
            error = PredictionFailed(
                f"{error} Of the request's {self.images} images the first {begun} may have been "
                "learned from."
            )
        self.fail(error)

    def answer(self, answers: Sequence[Result]) -> None:
        """Add the answers of one of its batches; after the last, the request is answered."""
        self._answers.extend(answers)
        if len(self._answers) == self.images and not self._done.done():
            self._done.set_result(self._answers)

    def _expire(self) -> None:
        if not self.taken:
            self.fail(DeadlineExpired("The request's deadline passed before its turn came."))

    @property
    def waiting(self) -> int:
        """Images that wait; one where their number is not known yet."""
        return max(1, self.images - self.taken)

    @property
    def passed(self) -> int:
        """How many batches were taken since it could have been in one."""
        return self._lines.taken - self._batches_before

    @property
    def has_expired(self) -> bool:
        """Whether it is no longer to be run; never, once a part of it was answered."""
        return self.deadline is not None and not (self._answers or self.deadline > monotonic())

    @property
    def is_done(self) -> bool:
        return self._done.done()

    @property
    def is_answered(self) -> bool:
        """Whether all answers are there (they may still be on their way to the client)."""
        return self._done.done() and not self._done.cancelled()


# Of requests: (place, first image, last + 1) each.
Slices = Sequence[tuple[Place[Item, Result], int, int]]


@dataclass(frozen=True)
class Batch(Generic[Item, Result]):
    """Parts of requests, stream after stream in order of arrival.

    All of them are to be learned from, or none.
    """

    slices: Slices[Item, Result]
    reason: str

    @property
    def streams(self) -> dict[str, list[Item]]:
        """By stream, its images."""
        found: dict[str, list[Item]] = {}
        for place, start, stop in self.slices:
            found.setdefault(place.stream, []).extend((place.items or ())[start:stop])
        return found

    @property
    def whose(self) -> str:
        """For people: the stream, or how many there are."""
        names = dict.fromkeys(place.stream for place in self.places)
        return f"stream {next(iter(names))}" if len(names) == 1 else f"{len(names)} streams"

    @property
    def learn(self) -> bool:
        return self.slices[0][0].learn

    @property
    def places(self) -> list[Place[Item, Result]]:
        return [place for place, _, _ in self.slices]

    @property
    def images(self) -> int:
        return sum(stop - start for _, start, stop in self.slices)

    def answer(self, answers: Sequence[Result]) -> None:
        """Give each request its rows."""
        position = 0
        for place, start, stop in self.slices:
            place.answer(answers[position : position + stop - start])
            position += stop - start

    def fail(self, error: Refused) -> None:
        """Answer all its requests with an error; nothing was learned from this batch."""
        for place, start, _ in self.slices:
            place.turn_away(error, start)
