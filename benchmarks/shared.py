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

import click
import numpy as np
import torch
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from service.answering import Image
from service.engine import Engine
from service.metrics import Metrics
from ttc_core.guard import default_mode
from ttc_core.load import load
from ttc_core.methods import create, settings_for

STREAMS = (1, 10, 100, 1000)
BATCH = 100
# By name: the method, and whether it learns.
WAYS = {
    "SOURCE": ("source", True),
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


async def seconds(engine: Engine, streams: int, batches: int, side: int, learn: bool) -> float:
    """Processor seconds an image, once every stream is known."""
    generator = np.random.default_rng(0)
    known = 2 * max(1, streams // BATCH)
    began = 0.0
    for batch in range(known + batches):
        pixels = generator.integers(0, 256, (BATCH, 8, 8, 3), dtype=np.uint8)
        smooth = pixels.repeat(side // 8, 1).repeat(side // 8, 2)
        parts = parts_of([Image(each) for each in smooth], streams, batch)
        if batch == known:
            began = time.process_time()
        answered = await engine.predict(parts, learn=learn)
        if learn:
            await engine.adapt(answered, learn=True)
        else:
            await engine.count(answered)
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
