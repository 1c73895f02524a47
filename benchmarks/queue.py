"""What the queue itself costs, by the number of streams that wait in it.

    python -m benchmarks.queue

No network, no model: a worker that answers at once. Seconds are those of this thread, so that
what else the machine does counts little.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click
from rich.console import Console
from rich.table import Table

from service.batcher import Batcher

STREAMS = (10, 100, 2000)
PACES = 3  # of which the quickest counts: a busy machine only ever adds


@dataclass(frozen=True)
class Pass:
    """What the worker says: as many rows as there were images."""

    rows: Sequence[str]


class Refill:
    """A worker that takes no time. Whoever was answered waits again: as many do all the time."""

    def __init__(self) -> None:
        self.batcher: Batcher[str, str]
        self.left = 0
        self.open, self.ended = asyncio.Event(), asyncio.Event()

    async def predict(
        self, parts: Sequence[tuple[str, Sequence[str]]], *, learn: bool = True
    ) -> Pass:
        await self.open.wait()
        for stream, _ in parts:
            self.left -= 1
            if self.left > 0:
                wait_with(self.batcher, stream)
            elif self.left == 0:
                self.open.clear()
                self.ended.set()
        return Pass([image for _, items in parts for image in items])

    async def adapt(self, answered: Pass, *, learn: bool) -> None: ...

    async def count(self, answered: Pass) -> None: ...


class Nobody:
    """Hears of every batch and wants to know nothing."""

    def batch_closed(self, reason: str, images: int) -> None: ...

    def waited(self, seconds: float) -> None: ...


def wait_with(batcher: Batcher[str, str], stream: str) -> None:
    """Have a request of one image, whose client is quick, wait in a stream's queue."""
    place = batcher.enter(stream)
    place.count(1)
    place.delivered.set()
    place.fill(["image"])


def seconds(work: Callable[[], object], times: int) -> float:
    """Seconds of this thread that a piece of work takes, over so many."""
    began = time.thread_time()
    for _ in range(times):
        work()
    return (time.thread_time() - began) / times


async def cost(streams: int, *, batches: int = 2000, max_wait: float = 0.0) -> dict[str, float]:
    """Seconds that the queue takes for each of its works while so many streams wait."""
    worker = Refill()
    worker.batcher = batcher = Batcher(
        worker, Nobody(), max_batch=100, max_wait=max_wait, max_images=10 * streams + 1000
    )
    loop = asyncio.create_task(batcher.run())
    await asyncio.sleep(0)
    for number in range(streams + 1):  # the first goes to the worker and is held there
        wait_with(batcher, f"camera {number}")
    await asyncio.sleep(0)

    def arrive() -> None:
        place = batcher.enter("camera 1")
        place.count(1)
        place.fill(["image"])
        place.leave()

    found = {
        "an arrival": seconds(arrive, 200),
        "Retry-After": seconds(batcher.retry_after, 200),
        "oldest age": seconds(lambda: batcher.oldest_age, 200),
    }
    await asyncio.sleep(max_wait)
    worker.left = batches
    began = time.thread_time()
    worker.open.set()
    await worker.ended.wait()
    found["a batch"] = (time.thread_time() - began) / batches
    worker.left = -streams - 1
    worker.open.set()
    batcher.drain()
    await loop
    return found


def quickest(streams: int, *, batches: int = 2000, times: int = PACES) -> dict[str, float]:
    """The least of each over a few measurements."""
    runs = [asyncio.run(cost(streams, batches=batches)) for _ in range(times)]
    return {work: min(run[work] for run in runs) for work in runs[0]}


@click.command()
@click.option("--batches", default=2000, show_default=True)
def main(batches: int) -> None:
    """Print what each work of the queue costs, and how it grows with the streams."""
    table = Table("microseconds", *(f"{streams:,} waiting" for streams in STREAMS), "last / first")
    found = [quickest(streams, batches=batches) for streams in STREAMS]
    for work in found[0]:
        each = [1e6 * costs[work] for costs in found]
        table.add_row(work, *(f"{cost:.1f}" for cost in each), f"{each[-1] / each[0]:.1f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
