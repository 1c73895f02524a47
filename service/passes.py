"""Batches on the device: their passes, and whose fault it is when one fails."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from service import tracing
from service.errors import DeadlineExpired, PredictionFailed, Refused
from service.pace import Pace
from service.places import Batch, Item, Place, Result, Slices
from service.shedding import Shed
from ttc_core.errors import UserError, told

log = logging.getLogger(__name__)

# Adaptation waits until the answers have left, but not for a client that is slow to read.
DELIVERY_SECONDS = 0.05

ItemIn = TypeVar("ItemIn", contravariant=True)
AnswerOut = TypeVar("AnswerOut", covariant=True)


class Pass(Protocol[AnswerOut]):
    """Images that a worker has answered; what adapting needs of them is in it, and its own."""

    @property
    def failed(self) -> Collection[str]:
        """The streams that failed beside others that did not: nothing of them is in it."""

    @property
    def out_of_memory(self) -> bool:
        """Whether some failed for want of memory: with fewer images they may not."""

    @property
    def rows(self) -> Sequence[AnswerOut | Refused]:
        """The answer of each of the other streams' images, in order; one that failed by itself has
        its error."""


PassMade = TypeVar("PassMade", bound=Pass[Any])


class Worker(Protocol[ItemIn, PassMade]):
    """What runs a batch: one at a time, first `predict`, then `adapt` or `count`."""

    async def predict(
        self, parts: Sequence[tuple[str, Sequence[ItemIn]]], *, learn: bool, shed: Shed | None
    ) -> PassMade:
        """Answer the images of one stream or several: a part for each, (stream, images).

        Args:
            learn: off where it is known that `adapt` will not learn from these images.
            shed: what is given up for lack of time; the answers tell it.

        Raises:
            MemoryError: with fewer images it may not fail.
        """

    async def fails(
        self, stream: str, images: Sequence[ItemIn], *, learn: bool, shed: Shed | None
    ) -> bool:
        """Whether images of a stream fail; nothing else comes of it, neither `adapt` nor `count`
        follows."""

    async def adapt(self, answered: PassMade, *, learn: bool) -> None:
        """Learn from what was answered; without `learn`, only take note of it."""

    async def count(self, answered: PassMade) -> None:
        """Count what was answered; nothing else moves."""


class Passes(Generic[Item, Result]):
    """Runs a batch in one pass, or in those that it takes to leave out who makes it fail.

    Args:
        learns: whether a batch is to be learned from, as things stand, if nothing is shed.
        sheds: what is given up, as things stand; from what is answered so nothing is learned.

    Attributes:
        began, images: of the pass at hand; `began` is None between batches.
    """

    def __init__(
        self,
        worker: Worker[Item, Any],
        learns: Callable[[Batch[Item, Result]], bool],
        sheds: Callable[[], Shed | None],
    ) -> None:
        self._worker, self._learns, self._sheds = worker, learns, sheds
        self.pace = Pace()
        self.began: float | None = None
        self.images = 0
        self._counting: asyncio.Task[None] | None = None

    @property
    def age(self) -> float:
        """Seconds that the worker has been at its pass; 0 without one."""
        return 0.0 if self.began is None else monotonic() - self.began

    @property
    def is_idle(self) -> bool:
        """Whether there is no pass at hand, nor one to be counted."""
        return self.began is None and (self._counting is None or self._counting.done())

    async def counted(self) -> None:
        """Wait until the latest pass from which nothing is learned is counted."""
        if self._counting is not None:
            await self._counting

    async def run(self, batch: Batch[Item, Result]) -> None:
        """Run a batch; all its requests are answered then, or have failed."""
        self.began = monotonic()
        try:
            await self._run(batch)
        finally:
            self.began = None

    async def _run(self, batch: Batch[Item, Result]) -> None:
        """Run a batch, and what fails of it once more in smaller ones: only the culprits fail.

        Of a batch of several streams those are answered and done that the worker answered, and of
        the others each is run by itself: whose failure it was the worker has found out, inside. A
        stream's requests, and whatever failed for want of memory, are run in halves. That calls the
        worker at most twice for each request; how often it runs the network for it is its own.
        """
        # A client that went away, or whose time is over, takes no place in this pass.
        for place in batch.places:
            if place.has_expired:
                place.fail(DeadlineExpired("The request's deadline passed before it was answered."))
        slices = [each for each in batch.slices if not each[0].is_done]
        if not slices:
            return
        batch = replace(batch, slices=slices)
        contexts = [place.context for place in batch.places]
        streams = list(batch.streams)
        with tracing.batch(contexts, streams=streams, images=batch.images, reason=batch.reason):
            rest = await self._run_together(batch)
        for apart in rest:
            await self._run(replace(batch, slices=apart))

    async def _run_together(self, batch: Batch[Item, Result]) -> list[Slices[Item, Result]]:
        """Predict, hand out the answers, then adapt; return what is to be run once more, in which
        batches."""
        began, parts = monotonic(), list(batch.streams.items())
        shed = self._sheds()
        learn = shed is None and self._learns(batch)
        try:
            answered = await self._predict(parts, learn, shed)
        except Refused as error:  # of a whole stream, whoever asks
            if len(parts) > 1:
                return _by_stream(batch.slices)
            batch.fail(error)
            return []
        except Exception as error:
            if len(batch.slices) > 1:
                return (_halves if isinstance(error, MemoryError) else _by_stream)(batch.slices)
            log.error("the model failed on a request of %s: %s", batch.whose, told(error))
            # A network's failure comes with a sentence; anything else is for the log alone.
            sentence = str(error) if isinstance(error, UserError) else "the model failed on it."
            await self._refuse(batch, PredictionFailed(sentence), None)
            return []
        failed = [(at, row) for at, row in enumerate(answered.rows) if isinstance(row, Refused)]
        if failed and len(batch.slices) > 1:
            return (_halves if answered.out_of_memory else _by_stream)(batch.slices)
        if failed:
            await self._take_note(batch, answered, learn=False)
            index, refusal = failed[0]
            all_failed = len(failed) == batch.images  # then it may be one image's fault
            await self._refuse(batch, refusal, None if all_failed else index)
            return []
        rest = [each for each in batch.slices if each[0].stream in answered.failed]
        kept = [each for each in batch.slices if each[0].stream not in answered.failed]
        batch = replace(batch, slices=kept)
        if not learn:
            # What the worker is to note is with it before the next batch is, which need not wait.
            await self.counted()
            self._counting = asyncio.create_task(self._count(batch, answered))
            await asyncio.sleep(0)
        batch.answer([row for row in answered.rows if not isinstance(row, Refused)])
        if learn:
            await _delivered(batch.places)
            await self._take_note(batch, answered, learn=self._learns(batch))
        if not rest:  # else it held others, and what it took to find them
            self.pace.measured(batch.images, monotonic() - began)
        return (_halves if answered.out_of_memory else _by_stream)(rest)

    async def _predict(
        self, parts: Sequence[tuple[str, Sequence[Item]]], learn: bool, shed: Shed | None
    ) -> Pass[Result]:
        self.began, self.images = monotonic(), sum(len(items) for _, items in parts)
        answered: Pass[Result] = await self._worker.predict(parts, learn=learn, shed=shed)
        images = sum(len(items) for stream, items in parts if stream not in answered.failed)
        if not images or len(answered.rows) != images:
            raise ValueError(f"{images} images were to be answered, {len(answered.rows)} were")
        return answered

    async def _take_note(
        self, batch: Batch[Item, Result], answered: Pass[Result], *, learn: bool
    ) -> None:
        """Have the worker learn from the batch, or count it; no answer hangs on that."""
        try:
            if batch.learn:
                await self._worker.adapt(answered, learn=learn)
            else:
                await self._worker.count(answered)
        except Exception:
            log.exception("what follows a batch of %s failed", batch.whose)

    async def _count(self, batch: Batch[Item, Result], answered: Pass[Result]) -> None:
        with tracing.span("count"):
            await self._take_note(batch, answered, learn=False)

    async def _refuse(
        self, batch: Batch[Item, Result], refusal: Refused, index: int | None
    ) -> None:
        """Refuse the only request of a batch, and name the image at fault where it can be found."""
        ((place, start, _),) = batch.slices
        if index is None:
            index = await self._culprit(batch)
        # Whoever sends the request again would teach those of its former batches twice.
        before = f" The first {start} were learned from." if start and batch.learn else ""
        if index is None:
            place.fail(type(refusal)(f"The request's images together: {refusal}{before}"))
        else:
            where = f"Image {start + index + 1} of {place.images}: "
            place.fail(type(refusal)(f"{where}{refusal}{before}", index=start + index))

    async def _culprit(self, batch: Batch[Item, Result]) -> int | None:
        """Find the first image that fails by itself, in passes that add up to one or two batches.

        Returns:
            Its place in the batch; None where the images fail together only.
        """
        ((stream, items),) = batch.streams.items()
        shed = self._sheds()
        learn = shed is None and self._learns(batch)

        async def fails(start: int, stop: int) -> bool:
            self.began, self.images = monotonic(), stop - start
            return await self._worker.fails(stream, items[start:stop], learn=learn, shed=shed)

        start, stop = 0, batch.images
        while stop - start > 1:
            middle = (start + stop) // 2
            start, stop = (start, middle) if await fails(start, middle) else (middle, stop)
        # A lone image has failed already.
        return start if batch.images == 1 or await fails(start, stop) else None


def _halves(slices: Slices[Item, Result]) -> list[Slices[Item, Result]]:
    middle = len(slices) // 2
    return [half for half in (slices[:middle], slices[middle:]) if half]


def _by_stream(slices: Slices[Item, Result]) -> list[Slices[Item, Result]]:
    """Each stream's for itself; those of one alone in halves."""
    found: dict[str, list[tuple[Place[Item, Result], int, int]]] = {}
    for each in slices:
        found.setdefault(each[0].stream, []).append(each)
    return list(found.values()) if len(found) > 1 else _halves(slices)


async def _delivered(places: Sequence[Place[Item, Result]]) -> None:
    """Wait until the answers are with the clients, for a short while at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DELIVERY_SECONDS):
            for place in places:
                if place.is_answered:
                    await place.delivered.wait()
