"""What the log of changes costs: time beside the answers, bytes a day, and the time to verify it.

    python -m benchmarks.changes [--streams 50] [--batches 200] [--rounds 10]

Two engines with the bundled model and the default method answer and learn in turns, one image at a
time, and save what has changed after each round; the one tells its log, the other has none. All is
processor time, which other jobs on the machine blur least. Beside the ratio stands the share that
the log's own work takes: noting each batch, and writing two lines a stream and round.
"""

import asyncio
import logging
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from service import engine as engine_module
from service.answering import Image
from service.changes.chain import Chain
from service.changes.changes import Changes
from service.changes.files import Place
from service.changes.verifying import verify
from service.engine import Engine
from service.events import Events
from service.metrics import Metrics
from ttc_core.envelope.verdicts import NO_VERDICTS
from ttc_core.guard import default_mode
from ttc_core.load import load
from ttc_core.methods import Adaptation, Method, create, settings_for

MINUTES_A_DAY = 24 * 60
MANY = 20_000


class Untold(Changes):
    """A log that nothing is noted in."""

    def __init__(self, folder: Path | None, events: Events, **options: object) -> None:
        super().__init__(None, events)


def made(source: Method, folder: Path, changes: type[Changes]) -> Engine:
    metrics = Metrics(CollectorRegistry(), classes=source.model.classes, model={})
    engine_module.Changes = changes  # type: ignore[misc]
    return Engine(source, metrics, method_name="ttc_stream", model_spec="bundled", state_dir=folder)


async def round_of(engine: Engine, images: list[Image], streams: int, batches: int) -> float:
    """Processor seconds of so many batches of one image, and of saving what they changed."""
    began = time.process_time()
    for number in range(batches):
        part = (f"camera-{number % streams}", [images[number % len(images)]])
        await engine.adapt(await engine.predict([part]), learn=True)
    await engine.save()
    return time.process_time() - began


def noting_seconds(changes: Changes) -> float:
    """What a thread gives to having a batch noted."""
    outcome = Adaptation(selected=1, stepped=True)
    began = time.thread_time()
    for number in range(MANY):
        changes.learned(
            f"camera-{number % 100}",
            1,
            outcome,
            version_before=number,
            version=number + 1,
            drift=0.01,
            verdicts=NO_VERDICTS,
        )
    return (time.thread_time() - began) / MANY


def writing(folder: Path) -> tuple[float, float, float]:
    """Processor seconds to write a line, its bytes, and seconds to verify one."""
    line = {
        **{"time": 1764453600.123, "event": "steps", "stream": "camera-123", "seconds": 60.001},
        **{"images": 600, "batches": 600, "selected": 412, "steps": 598, "drift": 0.012345},
        **{"version_before": 120_345, "version": 120_943, "skipped": {"none_selected": 2}},
    }
    chain = Chain(Place(folder), most_bytes=64 << 20, most_files=32)
    began = time.process_time()
    for _ in range(MANY // 500):
        chain.append([line] * 500)
    chain.sync(closed=True)
    took = time.process_time() - began
    chain.close()
    size = sum(path.stat().st_size for path in folder.glob("changes.jsonl*"))
    began = time.process_time()
    assert not verify(folder).defects
    return took / MANY, size / MANY, (time.process_time() - began) / MANY


@click.command()
@click.option("--streams", default=50, show_default=True)
@click.option("--batches", default=200, show_default=True, help="in a round")
@click.option("--rounds", default=10, show_default=True)
def main(streams: int, batches: int, rounds: int) -> None:
    """Print processor time a batch with and without the log, their ratio, and bytes a day."""
    logging.disable(logging.INFO)
    model = load("bundled", device="cpu")
    chosen = settings_for("ttc_stream", {}, statistics="moving")
    source = create("ttc_stream", model, guard=default_mode("ttc_stream"), **chosen)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    images = [Image(each) for each in pixels]
    took: dict[str, list[float]] = {"with the log": [], "without": []}
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name, each) for each in ("told", "untold", "lines")]
        told = made(source.fork(), folders[0], Changes)
        untold = made(source.fork(), folders[1], Untold)
        try:
            for number in range(rounds + 1):
                pairs = list(zip(took, (told, untold), strict=True))
                for which, engine in pairs if number % 2 else pairs[::-1]:
                    found = asyncio.run(round_of(engine, images, streams, batches))
                    took[which] += [found] if number else []  # the first is to warm up
            noting = noting_seconds(told.changes)
        finally:
            told.close()
            untold.close()
        line_seconds, line_bytes, verify_seconds = writing(folders[2])
        saves = [
            len(line)
            for path in folders[0].glob("changes.jsonl*")
            for line in path.read_bytes().splitlines()
            if b'"event":"save"' in line
        ]
    console, table = Console(width=100), Table("", "processor ms a batch")
    for which, seconds in took.items():
        table.add_row(which, f"{1000 * np.median(seconds) / batches:.3f}")
    console.print(table)
    ratios = np.divide(took["with the log"], took["without"])
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    console.print(f"With the log over without: {middle:.3f} (quartiles {low:.3f} to {high:.3f})")
    batch = float(np.median(took["without"])) / batches
    # A line of steps and a line of a save for each stream that is at work in a round.
    own = noting + 2 * min(streams, batches) / batches * line_seconds
    console.print(
        f"Noting a batch: {1e6 * noting:.1f} µs; a line: {1e6 * line_seconds:.1f} µs; "
        f"together {own / batch:.2%} of a batch."
    )
    day = MINUTES_A_DAY * (line_bytes + float(np.mean(saves)))
    console.print(
        f"A line of steps has {line_bytes:.0f} bytes, of a save {np.mean(saves):.0f}: "
        f"a stream that learns all day {day / 1e6:.2f} MB, a thousand {day / 1e3:,.0f} MB a day."
    )
    console.print(f"Verifying: {1 / verify_seconds:,.0f} lines a second of processor time.")


if __name__ == "__main__":
    main()
