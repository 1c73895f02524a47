"""What sharing a pass costs: images a second of many streams beside those of one.

    python -m benchmarks.shared [--model SPEC] [--side 32] [--rounds 3] [--batches 8]

Batches of a hundred images go through the engine, as the queue hands them over: all of one stream,
ten of each of ten, or one of each of a hundred, and of a thousand that take turns. Seconds are
processor time, so that what else the machine does counts little; of a few rounds, taken in turns,
the quickest counts.
"""

import asyncio
import time
from collections.abc import Sequence
from functools import cache
from itertools import cycle

import click
import torch
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from benchmarks.pictures import CORRUPTION
from service.answering import Image
from service.engine import Engine
from service.metrics import Metrics
from ttc_core.datasets import Geometry, open_data
from ttc_core.guard import default_mode
from ttc_core.load import load
from ttc_core.methods import create, settings_for

STREAMS = (1, 10, 100, 1000)
BATCH = 100
# By name: the method, and whether it learns.
WAYS = {
    "SOURCE": ("source", False),
    "TTC": ("ttc", True),
    "TTC, not learning": ("ttc", False),
    "the default": ("ttc_stream", True),
    "the default, not learning": ("ttc_stream", False),
}


def parts_of(
    images: Sequence[Image], streams: int, batch: int
) -> list[tuple[str, Sequence[Image]]]:
    """The parts of a batch: as many streams as fit take turns, so many images of each."""
    each = max(1, BATCH // streams)
    first = batch * (BATCH // each)
    return [
        (f"camera {(first + number) % streams}", images[number * each : (number + 1) * each])
        for number in range(BATCH // each)
    ]


@cache
def frames(side: int) -> list[Image]:
    """A thousand bundled images under noise, at the model's size."""
    stream = open_data("bundled", Geometry(side)).open(CORRUPTION, 5, limit=1000)
    return [Image(pixels) for pixels in stream.read(stream.positions)]


async def seconds(engine: Engine, streams: int, batches: int, side: int, learn: bool) -> float:
    """Processor seconds an image of streams that have had some hundred images each."""
    images = frames(side)
    batch_of = cycle(images[first : first + BATCH] for first in range(0, len(images), BATCH))

    async def served(parts: Sequence[tuple[str, Sequence[Image]]]) -> None:
        answered = await engine.predict(parts, learn=learn)
        if learn:
            await engine.adapt(answered, learn=True)
        else:
            await engine.count(answered)

    for _ in range(3):
        known = await engine.predict([("camera 0", next(batch_of))])
        await engine.adapt(known, learn=True)
    state = engine.streams["camera 0"].method.state()
    for number in range(1, streams):
        record = engine.table.get(name := f"camera {number}")
        record.method.restore(state)
        engine.table.keep(name, record)
    began = 0.0
    for batch in range(1 + batches):
        parts = parts_of(next(batch_of), streams, batch)
        if batch == 1:
            began = time.process_time()
        await served(parts)
    return (time.process_time() - began) / (batches * BATCH)


def measured(spec: str, way: str, streams: int, batches: int, side: int) -> float:
    """Processor seconds an image of so many streams, on an engine of their own."""
    name, learn = WAYS[way]
    model = load(spec)
    settings = settings_for(name, {}, statistics="moving")
    source = create(name, model, guard=default_mode(name), **settings)
    metrics = Metrics(CollectorRegistry(), classes=model.classes, model={})
    engine = Engine(source, metrics, method_name=name, model_spec=spec, threads=1)
    try:
        return asyncio.run(seconds(engine, streams, batches, side, learn))
    finally:
        engine.close()


@click.command()
@click.option("--model", "spec", default="bundled", show_default=True)
@click.option("--side", default=32, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--batches", default=8, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(WAYS)), help="of the ways")
def main(spec: str, side: int, rounds: int, batches: int, only: Sequence[str]) -> None:
    """Print images a second of processor time, and what they are of one stream's."""
    torch.set_num_threads(1)
    table = Table("images/s", *(f"{streams:,}" for streams in STREAMS))
    for way in only or WAYS:
        runs = [
            [measured(spec, way, streams, batches, side) for streams in STREAMS]
            for _ in range(rounds)
        ]
        best = [1 / min(found) for found in zip(*runs, strict=True)]
        table.add_row(way, *(f"{rate:.1f} ({rate / best[0]:.2f})" for rate in best))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
