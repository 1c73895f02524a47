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
from service.lines import Lines
from service.shedding import Shed

STREAMS = (10, 100, 2000)
TIMES = 3  # of which the quickest counts: a busy machine only ever adds


@dataclass(frozen=True)
class Pass:
    """What the worker says: as many rows as there were images."""

    rows: Sequence[str]
    failed: Sequence[str] = ()
    out_of_memory: bool = False


class Refill:
    """A worker that takes no time; whoever was answered waits again, so that as many always do."""

    def __init__(self) -> None:
        self.batcher: Batcher[str, str]
        self.left = 0
        self.open, self.ended = asyncio.Event(), asyncio.Event()

    async def predict(
        self, parts: Sequence[tuple[str, Sequence[str]]], *, learn: bool, shed: Shed | None
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

    async def fails(
        self, stream: str, images: Sequence[str], *, learn: bool, shed: Shed | None
    ) -> bool:
        return False

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


async def forming(streams: int, batches: int) -> float:
    """Seconds of forming a batch alone, without the worker, while so many streams wait."""
    lines = Lines[str, str](100, 0.0, 2 * streams, lambda: 1.0)

    def wait(stream: str) -> None:
        place = lines.enter(stream, None, True)
        place.count(1)
        place.fill(["image"])

    for number in range(streams):
        wait(f"camera {number}")
    taken = 0.0
    for _ in range(batches):
        began = time.thread_time()
        batch = await lines.next()
        assert batch is not None
        lines.served(batch, time.monotonic())
        taken += time.thread_time() - began
        wait(next(iter(batch.streams)))
    return taken / batches


async def cost(streams: int, *, batches: int) -> dict[str, float]:
    """Seconds that the queue takes for each of its works while so many streams wait."""
    worker = Refill()
    worker.batcher = batcher = Batcher(
        worker, Nobody(), max_batch=100, max_wait=0.0, max_images=2 * streams
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
        "forming a batch": await forming(streams, batches),
        "an arrival": seconds(arrive, 1000),
        "Retry-After": seconds(batcher.retry_after, 1000),
        "oldest age": seconds(lambda: batcher.oldest_age, 1000),
    }
    worker.left = batches
    began = time.thread_time()
    worker.open.set()
    await worker.ended.wait()
    found["a batch, all told"] = (time.thread_time() - began) / batches
    worker.left = -streams - 1
    worker.open.set()
    batcher.drain()
    await loop
    return found


def quickest(streams: Sequence[int], *, batches: int) -> list[dict[str, float]]:
    """The least of a few measurements of each, taken in turns."""
    runs = [[asyncio.run(cost(count, batches=batches)) for count in streams] for _ in range(TIMES)]
    return [
        {work: min(run[work] for run in of_count) for work in of_count[0]}
        for of_count in zip(*runs, strict=True)
    ]


@click.command()
@click.option("--batches", default=2000, show_default=True)
def main(batches: int) -> None:
    """Print what each work of the queue costs, and how it grows with the streams."""
    table = Table("microseconds", *(f"{streams:,} waiting" for streams in STREAMS), "last / first")
    found = quickest(STREAMS, batches=batches)
    for work in found[0]:
        each = [1e6 * costs[work] for costs in found]
        table.add_row(work, *(f"{cost:.1f}" for cost in each), f"{each[-1] / each[0]:.1f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
