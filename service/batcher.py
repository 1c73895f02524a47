"""The queue: requests take places in lines, batches of them run. Knows neither HTTP nor torch."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Generic, Literal, Protocol, TypeVar

from service import tracing
from service.errors import NotReady, PredictionFailed
from service.lines import Lines
from service.passes import Passes, Worker
from service.places import Batch, Item, Place, Result
from service.shedding import LOOK_SECONDS, GivenUp, Load, Shed, Shedding

log = logging.getLogger(__name__)

T = TypeVar("T")
AdaptPolicy = Literal["always", "auto", "idle", "never"]

# A pass that takes longer will not end: nobody is kept waiting for it.
HUNG_SECONDS = 300.0
# A batch at hand that takes so many times its like's time may have hung, and tells no more.
MOST_SLOWER = 10.0
# The queue stands where somebody has let so many batches pass: not who sends a request once the
# last is answered, however slow the device is, nor two of them.
PASSED = 2
# Of the images that may wait, the share by which their number has grown within GROWTH_SECONDS that
# is as much load as one that waits too long. How many wait tells nothing: behind many cameras that
# each wait for an answer as many are always there, however fast the device is.
MOST_GROWTH = 0.2
GROWTH_SECONDS = 1.0


class Observer(Protocol):
    """What wants to know about the queue."""

    def batch_closed(self, reason: str, images: int) -> None: ...

    def waited(self, seconds: float) -> None: ...


class Batcher(Generic[Item, Result]):
    """Group requests, a stream's in order of arrival, at most `max_batch` images together.

    Every place ends: in its answers, an error, or left by its own request; on draining too. A
    request of at most `max_batch` images is never split; a longer one fills batches of its own.

    Args:
        max_wait: seconds the oldest image waits for company while the worker is free. While it is
            busy images gather anyway.
        max_images: how many may wait.
        adapt: learn from every batch, from those while nothing is shed, from those with nothing
            waiting behind, or from none.
        shedding: with `auto`, what is given up under load.
        shed_after: seconds beyond `max_wait` that somebody waits where the load is 1.
        shares: whether the worker answers images of several streams at once. If not, a batch has
            one stream's.
    """

    def __init__(
        self,
        worker: Worker[Item, Any],
        observer: Observer,
        *,
        max_batch: int,
        max_wait: float,
        max_images: int,
        adapt: AdaptPolicy = "always",
        shedding: Shedding | None = None,
        shed_after: float = 0.5,
        shares: bool = False,
    ) -> None:
        if (adapt == "auto") == (shedding is None):
            raise ValueError(f"shedding goes with adapt=auto; got {shedding} with {adapt}")
        self._observer, self._adapt = observer, adapt
        self._shedding, self._shed_after = shedding, shed_after
        self._max_wait, self._max_images = max_wait, max_images
        self._lines = Lines[Item, Result](
            max_batch, max_wait, max_images, self.retry_after, shares=shares
        )
        self._passes = Passes[Item, Result](worker, self._learns, lambda: self.shed)
        self._draining = self._running = False
        # What is to be done between two batches, and who waits for that.
        self._between: tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]] | None = None
        # That waited within the last GROWTH_SECONDS, and since when that is counted.
        self._fewest, self._counted_from = 0, -math.inf

    # What a request does

    def enter(
        self, stream: str, *, deadline: float | None = None, learn: bool = True
    ) -> Place[Item, Result]:
        """Take a place at the end of the stream's queue.

        Args:
            deadline: monotonic time after which the request is not to be run.
            learn: off: it is answered, and nothing moves.

        Raises:
            QueueFull, NotReady: no place is to be had.
        """
        self.check_open()
        return self._lines.enter(stream, deadline, learn)

    def check_open(self) -> None:
        """Raise NotReady or QueueFull if a request had better not come at all."""
        if not self.is_running:
            raise NotReady("The service is starting or shutting down; try again shortly.")
        if self.batch_age > HUNG_SECONDS:
            raise _hung()
        self._lines.make_room(1)

    def retry_after(self) -> float:
        """Seconds in which what waits now will probably have been answered; at least 1."""
        pace, age = self._passes.pace, self.batch_age
        batches = self._lines.batches.items()
        total = sum(count * pace.seconds(size) for size, count in batches)
        if self._passes.began is not None and (expected := pace.seconds(self._passes.images)):
            # A batch that takes longer than its like tells of those behind it.
            total *= min(max(1.0, age / expected), MOST_SLOWER)
            total += max(0.0, expected - age)
        return max(1.0, math.ceil(total))

    # What others see

    @property
    def waiting_images(self) -> int:
        """Images in the queue, decoded or not; a request not yet counted is one."""
        return self._lines.images

    @property
    def oldest_age(self) -> float:
        """Seconds since the oldest waiting request arrived; 0 for none."""
        oldest = next(iter(self._lines), None)
        return 0.0 if oldest is None else monotonic() - oldest.arrived

    @property
    def shed(self) -> Shed | None:
        """What is given up for lack of time."""
        return None if self._shedding is None else self._shedding.shed

    @property
    def given_up(self) -> GivenUp | None:
        """The same, since when and why."""
        return None if self._shedding is None else self._shedding.given_up

    @property
    def load(self) -> Load:
        """How long somebody waits who has let batches pass, and how many more wait than a moment
        ago; both 0 where nobody has."""
        standing = (p for p in self._lines if self._lines.may_run(p) and not p.taken)
        oldest = next(standing, None)
        waited, more = 0.0, 0
        if oldest is not None and oldest.passed >= PASSED:
            due = max(oldest.filled, oldest.arrived + self._max_wait)
            waited = max(0.0, monotonic() - due)
            more = max(0, self._lines.images - self._fewest)
        return Load(
            waited=waited,
            most_waited=self._shed_after,
            more=more,
            most_more=MOST_GROWTH * self._max_images,
            waiting=self._lines.images,
        )

    @property
    def is_idle(self) -> bool:
        return not self._lines and self._passes.is_idle

    @property
    def batch_age(self) -> float:
        """Seconds that the worker has been at its batch; 0 without one."""
        return self._passes.age

    @property
    def is_running(self) -> bool:
        """Whether the loop takes requests; not before it runs, nor while draining."""
        return self._running and not self._draining

    def drain(self) -> None:
        """Take no more requests; answer those that wait without delay."""
        self._draining = True
        self._lines.drain()

    async def between_batches(self, call: Callable[[], Awaitable[T]]) -> T:
        """Have something done between two batches, while no request is answered in part.

        One at a time may ask. Requests go on being taken meanwhile; they wait.

        Raises:
            NotReady: there is no loop that would; or whatever the call raises.
        """
        if not self._running:
            raise NotReady("The service is starting or shutting down; try again shortly.")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._between = call, done
        self._lines.pause()
        return await done

    async def keep_looking(self) -> None:
        """See the load where no batch is taken either, without end."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                self._look()
            except Exception:
                log.exception("the load was not seen")

    # The loop

    async def run(self) -> None:
        """Form batches and run them until drained and empty. The lifespan owns this task."""
        batch: Batch[Item, Result] | None = None
        while True:
            self._running = True
            try:
                while (batch := await self._lines.next()) is not None or self._between:
                    if batch is None:
                        await self._stand_between()
                    else:
                        await self._run(batch)
                    batch = None  # its images need no memory any more
                await self._passes.counted()
                return
            except Exception as error:
                log.exception(
                    "the batching loop failed; it starts again",
                    extra={"fields": {"event": "batching_restarted", "reason": repr(error)}},
                )
            finally:
                self._running = False
                stopped = NotReady("The service stopped before it had answered this request.")
                self._fail_all(batch, stopped)
                if self._between is not None and not self._between[1].done():
                    self._between[1].set_exception(stopped)
                self._between = None
                self._lines.resume()

    async def _stand_between(self) -> None:
        """Do what somebody wants done between two batches."""
        assert self._between is not None
        (call, done), self._between = self._between, None
        await self._passes.counted()
        try:
            result = None if done.cancelled() else await call()
            if not done.done():
                done.set_result(result)
        except Exception as error:
            if not done.done():
                done.set_exception(error)
        finally:
            self._lines.resume()

    async def _run(self, batch: Batch[Item, Result]) -> None:
        """Run a batch; whatever happens to it, the next must not suffer, nor wait for ever."""
        began = monotonic()
        watch = asyncio.create_task(self._watch(batch))
        try:
            self._look()
            self._observe(batch, began)
            await self._passes.run(batch)
        except Exception:
            log.exception("a batch of %s failed", batch.whose)
            batch.fail(PredictionFailed("The service failed on this request."))
        finally:
            watch.cancel()
            self._lines.served(batch, began)

    def _look(self) -> None:
        if self._shedding is None:
            return
        now, waiting = monotonic(), self._lines.images
        if now - self._counted_from > GROWTH_SECONDS:
            self._fewest, self._counted_from = waiting, now
        self._fewest = min(self._fewest, waiting)
        self._shedding.look(self.load)

    def _observe(self, batch: Batch[Item, Result], now: float) -> None:
        """Count a batch and the waits of its requests, once."""
        for place, start, _ in batch.slices:
            if start == 0:
                place.queue_seconds = now - place.filled
                self._observer.waited(place.queue_seconds)
                place.context.run(tracing.stage, "queue", place.queue_seconds)
        self._observer.batch_closed(batch.reason, batch.images)

    async def _watch(self, batch: Batch[Item, Result]) -> None:
        """Answer everybody once the worker has not returned for too long."""
        while (rest := HUNG_SECONDS - self.batch_age) > 0:
            await asyncio.sleep(rest)
        self._fail_all(batch, _hung())

    def _fail_all(self, batch: Batch[Item, Result] | None, error: NotReady) -> None:
        """Refuse who waits for an answer, in the lines and in the batch at hand."""
        for place in [*self._lines, *(batch.places if batch else ())]:
            place.turn_away(error, place.taken)

    def _learns(self, batch: Batch[Item, Result]) -> bool:
        policy = self._adapt in ("always", "auto") or (self._adapt == "idle" and not self._lines)
        return batch.learn and policy


def _hung() -> NotReady:
    return NotReady(
        f"The device has not returned from a batch for {HUNG_SECONDS:g} seconds; the service is "
        "to be started again, or --max-batch is too large for it."
    )
