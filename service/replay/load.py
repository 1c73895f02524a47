"""How requests leave: in lockstep, in a closed loop or in an open one.

- lockstep: one request, its answer, the next: the same batches as an offline evaluation.
- closed: `concurrency` workers, each as in lockstep; a slow server slows the load down.
- open: requests leave on a schedule, whatever the server does, as cameras do. A latency counts
  from the scheduled time: waiting in the client, too, is waiting.
"""

import asyncio
import time
from dataclasses import dataclass

import httpx
import numpy as np
from numpy.typing import NDArray

from service.client import AsyncClient, Call, Reply, ServiceError
from service.replay.outbox import Batch, Outbox
from service.replay.plan import Arrivals, ReplayPlan
from service.replay.tally import REFUSED, ReplayTally

TRIES = 10
"""How often lockstep sends a request that is refused with 429 or 503, before it gives up."""
LONGEST_RETRY_WAIT = 60.0


class BoundedClient(AsyncClient):
    """Waits for an answer as a whole, whatever is at the other end.

    Its calls raise ServiceError also for answers that cannot be read or do not end in time.
    """

    async def send(self, call: Call[Reply]) -> Reply:
        """Send a prepared call and wait for its answer."""
        try:
            # The timeout is for each part: an answer that comes drop by drop never meets it.
            async with asyncio.timeout(2 * self.timeout):
                return await super().send(call)
        except TimeoutError:
            sentence = f"{self.url} did not end its answer within {2 * self.timeout:g} seconds."
        except (httpx.RequestError, httpx.InvalidURL, OverflowError) as error:
            sentence = f"{self.url} gave no answer that can be read: {error}."
        raise ServiceError(None, sentence)


def schedule(count: int, rate: float, arrivals: Arrivals, seed: int) -> NDArray[np.float64]:
    """When the requests of an open load leave.

    Args:
        count: of requests.
        rate: requests per second, on average.
        arrivals: "even", or "poisson": independent, exponentially distributed gaps.
        seed: of the Poisson arrivals.

    Returns:
        (count,) seconds after the first one, which leaves at 0.
    """
    if arrivals == "even":
        return np.arange(count) / rate
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=max(count - 1, 0))
    return np.concatenate([np.zeros(min(count, 1)), np.cumsum(gaps)])


def retry_wait(asked: float | None) -> float:
    """Seconds to wait before a refused request is sent again, whatever the server asks for."""
    if asked is None or not asked > 0:  # not said, or nonsense
        return 1.0
    return min(asked, LONGEST_RETRY_WAIT)


@dataclass(frozen=True)
class Load:
    """Sends all requests of an outbox, as the plan says, and has their answers counted."""

    plan: ReplayPlan
    client: BoundedClient
    outbox: Outbox
    tally: ReplayTally

    async def run(self) -> None:
        """Return when the last answer is there.

        Raises:
            ServiceError: in lockstep a request failed.
            DataError: images cannot be read.
        """
        modes = {"lockstep": self._lockstep, "closed": self._closed, "open": self._open}
        try:
            await modes[self.plan.mode]()
        except BaseExceptionGroup as group:  # the first is the cause; it ended the others
            raise group.exceptions[0] from None

    async def _lockstep(self) -> None:
        while (batch := await self.outbox.next()) is not None:
            due, tries = self.tally.sends(), 1
            while True:
                try:
                    answer = await self.client.send(batch.call)
                    break
                except ServiceError as error:
                    if error.status not in REFUSED or tries == TRIES:
                        raise
                    tries += 1
                    self.tally.retries += 1
                    await asyncio.sleep(retry_wait(error.retry_after))
            self.tally.answered(batch, answer, due)

    async def _closed(self) -> None:
        async def work() -> None:
            while (batch := await self.outbox.next()) is not None:
                await self._send(batch, self.tally.sends())

        async with asyncio.TaskGroup() as workers:
            for _ in range(self.plan.concurrency):
                workers.create_task(work())

    async def _open(self) -> None:
        plan, in_flight = self.plan, set[asyncio.Task[None]]()
        rate = (plan.rate or 0.0) / plan.batch_size
        offsets = schedule(len(self.outbox), rate, plan.arrivals, plan.seed)

        async def send_late_or_not(batch: Batch, due: float) -> None:
            self.tally.lateness.append(max(self.tally.sends() - due, 0.0))
            await self._send(batch, due)

        async with asyncio.TaskGroup() as requests:
            origin = time.perf_counter()
            for offset in offsets.tolist():
                batch = await self.outbox.next()
                assert batch is not None, "there are as many times as requests"
                await asyncio.sleep(max(origin + offset - time.perf_counter(), 0.0))
                if len(in_flight) >= plan.most_in_flight:
                    self.tally.dropped += batch.count
                    continue
                task = requests.create_task(send_late_or_not(batch, origin + offset))
                in_flight.add(task)
                task.add_done_callback(in_flight.discard)

    async def _send(self, batch: Batch, due: float) -> None:
        try:
            self.tally.answered(batch, await self.client.send(batch.call), due)
        except ServiceError as error:
            self.tally.failed(batch, error)
