"""How requests leave: in lockstep, in a closed loop or in an open one.

- lockstep: one request, its answer, the next: the same batches as an offline evaluation.
- closed: `concurrency` workers, each as in lockstep; a slow server slows the load down.
- open: requests leave on a schedule, whatever the server does, as cameras do. A latency counts
  from the scheduled time: waiting in the client, too, is waiting.
"""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from service.client import AsyncClient, Call, Reply, ServiceError
from service.replay.outbox import Batch, Outbox
from service.replay.plan import Arrivals, ReplayPlan
from service.replay.tally import ReplayTally
from service.schemas import StatusResponse

TRIES = 10
"""How often lockstep sends a request that is refused with 429 or 503, before it gives up."""
LONGEST_RETRY_WAIT = 60.0

Answer = TypeVar("Answer")


class BoundedClient(AsyncClient):
    """Waits for an answer as a whole, whatever is at the other end.

    Its calls raise ServiceError also for answers that cannot be read or do not end in time.
    """

    async def send(self, call: Call[Reply]) -> Reply:
        """Send a prepared call and wait for its answer."""
        return await self._bounded(super().send(call))

    async def send_timed(self, call: Call[Reply]) -> tuple[Reply, float]:
        """Send a prepared call; returns its answer, and how many seconds the server took for it.

        Raises:
            ServiceError: also for an answer that does not say so.
        """
        response = await self._bounded(self._respond(call))
        answer = self._read(call, response)
        seconds = seconds_told(response.headers.get("Server-Timing", ""))
        if seconds is None:
            raise ServiceError(
                response.status_code,
                f"{self.url} does not tell in Server-Timing how long an answer took; is it the "
                "service itself that answers, and does what is between let headers through?",
            )
        return answer, seconds

    async def at_rest(self, pause: float = 0.01) -> StatusResponse:
        """Wait until nothing is queued, predicted or adapted: counters are then whole.

        Args:
            pause: seconds between the first two questions; then they become rarer.

        Returns:
            The status then; after `timeout` seconds the last one, which is not `idle`.
        """
        deadline = time.monotonic() + self.timeout
        while not (status := await self.status()).idle and time.monotonic() < deadline:
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.5)
        return status

    async def _bounded(self, answer: Awaitable[Answer]) -> Answer:
        try:
            # The timeout is for each part: an answer that comes drop by drop never meets it.
            async with asyncio.timeout(2 * self.timeout):
                return await answer
        except TimeoutError:
            sentence = f"{self.url} did not end its answer within {2 * self.timeout:g} seconds."
        except (httpx.RequestError, httpx.InvalidURL, OverflowError) as error:
            sentence = f"{self.url} gave no answer that can be read: {error}."
        raise ServiceError(None, sentence)


def seconds_told(server_timing: str) -> float | None:
    """Read how long the server took for an answer from its Server-Timing header.

    Args:
        server_timing: stages with milliseconds: `decode;dur=0.40, queue;dur=0.01, forward;…`.

    Returns:
        Seconds, all stages but `adapt`, which is the previous batch's; None where none is told.
    """
    total, found = 0.0, False
    for stage in server_timing.split(","):
        name, *parameters = (part.strip() for part in stage.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key != "dur" or name == "adapt":
                continue
            try:
                milliseconds = float(value)
            except ValueError:
                return None
            if not 0 <= milliseconds < float("inf"):
                return None
            total, found = total + milliseconds / 1000, True
    return total if found else None


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
                    if error.status is None or not error.may_repeat or tries == TRIES:
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
