"""Requests one at a time, and how long the server says that its pipeline was busy with each.

The clock is the pipeline's own: an image that comes while it is busy is not sent, and what the
client needs to send, wait and count takes nothing of the measured time. So a period may be shorter
than a request takes over HTTP, and a replay tells the same beside a slow client.
"""

import asyncio
from dataclasses import replace

import numpy as np

from service.client import Call, ServiceError
from service.replay import utility
from service.replay.load import BoundedClient
from service.replay.outbox import Outbox
from service.replay.plan import ReplayPlan
from service.replay.tally import ReplayTally
from service.schemas import PredictResponse, StatusResponse
from ttc_core.datasets import DataSet
from ttc_core.errors import UserError
from ttc_core.rows import Row

TIMES = ("prediction_seconds", "adaptation_seconds")
"""Columns, (N,) each, of seconds for the request that an image came with; nan if it was skipped."""
MEASURED_REQUESTS = 100
"""What SOURCE takes is measured over so many requests."""
KEPT_UP = 95
"""Percent of SOURCE's requests that are done within the period: SOURCE itself keeps up."""


class Pipeline:
    """Sends one request at a time, and reads of the server how long it was busy with it."""

    def __init__(self, client: BoundedClient) -> None:
        self._client = client
        self._adapted: float | None = None
        self._pause = 0.0

    async def ask(self, call: Call[PredictResponse]) -> tuple[PredictResponse, float]:
        """Send a request to the server at rest; returns its answer, and the seconds it took."""
        if self._adapted is None:
            self._adapted = await self._adapted_in_all()
        return await self._client.send_timed(call)

    async def adapted(self) -> float:
        """Wait until the server has learned from what it answered last; returns the seconds."""
        # Who asks while it adapts makes it slower.
        await asyncio.sleep(self._pause)
        before, self._adapted = self._adapted or 0.0, await self._adapted_in_all()
        seconds = max(0.0, self._adapted - before)  # a server started anew counts from 0
        self._pause = 2 * seconds
        return seconds

    async def _adapted_in_all(self) -> float:
        status = await self._client.at_rest(pause=0.002)
        if not status.idle:
            raise ServiceError(
                None,
                f"{self._client.url} is not at rest after {self._client.timeout:g} s, so that it "
                "cannot tell how long one image takes; is another client there?",
            )
        total = status.counters.get("adapt_seconds_total")
        if total is None:
            raise ServiceError(
                None,
                f"{self._client.url}/status has no adapt_seconds_total among its counters; is the "
                "server of the client's version?",
            )
        return total


async def source_period(
    plan: ReplayPlan, client: BoundedClient, data: DataSet, status: StatusResponse
) -> float:
    """Seconds that SOURCE takes for a request like the plan's; the server must serve SOURCE.

    Another method cannot stand in for it, not even while it learns nothing: what its own answers
    cost, a second view say, is overhead and would be hidden.

    Raises:
        UserError: the server serves another method.
        ServiceError: a request failed, or the server does not tell its times.
    """
    if status.method != "source":
        raise UserError(
            f"--period is needed: it is what SOURCE takes, and {client.url} serves "
            f"{status.method}. Where `ttc serve --method source` answers, the same replay measures "
            "it and tells it."
        )
    images = MEASURED_REQUESTS * plan.batch_size
    stream = await asyncio.to_thread(
        data.open,
        plan.corruptions[0],
        plan.severity,
        limit=images if plan.limit is None else min(images, plan.limit),
        order="file",
        seed=plan.seed,
    )
    pipeline, seconds = Pipeline(client), []
    async with Outbox(stream, plan.batch_size, plan.stream) as outbox:
        while (batch := await outbox.next()) is not None:
            _, prediction = await pipeline.ask(batch.call)
            seconds.append(prediction + await pipeline.adapted())
    return float(np.percentile(seconds, KEPT_UP))


async def run_under_time(
    plan: ReplayPlan,
    period: float | None,
    client: BoundedClient,
    outbox: Outbox,
    tally: ReplayTally,
) -> Row:
    """Send the requests of an outbox as time allows; returns what utility adds to a row.

    Args:
        period: seconds; None in amortised mode, which has none.

    Raises:
        ServiceError: a request failed, or the server does not tell its times.
        DataError: an image of the stream cannot be read.
    """
    pipeline, learned = Pipeline(client), np.zeros(tally.length, bool)
    predictions, adaptations = (np.full(tally.length, np.nan) for _ in TIMES)
    number, free, busy, spent = 0, 0.0, 0.0, 0.0
    while (batch := await outbox.next()) is not None:
        arrival, number = number * (period or 0.0), number + 1
        if plan.mode == "discrete" and arrival < free:
            tally.skipped += batch.count
            continue
        call, learn = batch.call, plan.budget is None or spent < plan.budget
        if not learn:
            call = replace(call, params=call.params | {"learn": "false"})
        due = tally.sends()
        answer, prediction = await pipeline.ask(call)
        tally.answered(batch, answer, due)
        adaptation = await pipeline.adapted()
        images = slice(batch.start, batch.start + batch.count)
        predictions[images], adaptations[images], learned[images] = prediction, adaptation, learn
        free, spent = arrival + prediction + adaptation, spent + adaptation
        busy += prediction + adaptation
    tally.columns |= zip(TIMES, (predictions, adaptations), strict=True)
    tally.seconds = busy
    predicted, labels = tally.columns["predicted"], tally.columns["labels"]
    judged, right = labels >= 0, predicted == labels
    if period is None:
        worth = utility.amortised(right[judged], learned[judged])
        return worth | {"spent_seconds": spent, "learned_images": int(learned.sum())}
    if plan.mode == "discrete":
        worth = utility.discrete((predicted >= 0)[judged], right[judged])
        return worth | {"period_seconds": period}
    size = plan.batch_size
    late = utility.overheads(predictions[::size], adaptations[::size], period)
    kept = np.repeat(utility.discounts(late, period), size)[: tally.length]
    worth = utility.continuous(right[judged], kept[judged])
    return worth | {"period_seconds": period, "patience_seconds": utility.patience(period)}
