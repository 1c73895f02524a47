"""What each method costs: time as a multiple of SOURCE, processor time, memory, a stream's state.

    python -m benchmarks.cost [--model SPEC] [--images 1000] [--rounds 5]

All methods in batches of 100; SOURCE, TTC and the default, learning and not, also in batches of 10
and 1, as they are served; on a GPU where there is one. Each measurement is a process of its own,
since peak memory never falls; round after round, so that all meet the same machine; medians are
told. A pass is one of the network over the whole batch; backward passes count what is
differentiated.
"""

import multiprocessing
import resource
import statistics
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.clock import timed
from benchmarks.passes import recorded
from benchmarks.pictures import CORRUPTION
from service.cli.options import keep_freed_memory
from service.stream_record import state_bytes
from ttc_core.datasets import Geometry, open_data
from ttc_core.evaluate import as_batch, warm_up
from ttc_core.load import load, pick_device
from ttc_core.methods import DEFAULT_METHOD, METHODS, Method, settings_for
from ttc_core.presets import Variant

STILL = Variant(DEFAULT_METHOD, {"learn": "never"})
SERVED = [
    *(Variant(name, settings_for(name, {}, statistics="moving")) for name in ("source", "ttc")),
    *(Variant(DEFAULT_METHOD), STILL),
]
LINES: Mapping[int, list[Variant]] = {
    100: [*map(Variant, METHODS), STILL],
    10: SERVED,
    1: SERVED,
}
"""By the size of the batches."""


class Measured(NamedTuple):
    """What one pass over a stream took.

    Attributes:
        wall, processor: seconds.
        peak: MiB of memory, of the whole process.
        device_peak: MiB of the GPU's memory that torch had at most; 0 without one.
        state: KiB that would be saved of the stream behind it.
        forward, backward: passes for a batch at its end.
    """

    wall: float
    processor: float
    peak: float
    device_peak: float
    state: float
    forward: float
    backward: float


@click.command()
@click.option("--model", "spec", default="bundled", show_default=True)
@click.option("--images", default=1000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(spec: str, images: int, rounds: int) -> None:
    """Print a line for each method."""
    lines = [(variant, size) for size, variants in LINES.items() for variant in variants]
    found: dict[int, list[Measured]] = defaultdict(list)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for _ in range(rounds):
            for number, (variant, size) in enumerate(lines):
                found[number].append(pool.submit(measure, spec, variant, size, images).result())
    median = {
        number: Measured(*map(statistics.median, zip(*each, strict=True)))
        for number, each in found.items()
    }
    per_thousand = 1000 / images
    table = Table(
        *("method", "batch", "time / SOURCE", "processor s / 1,000", "peak MiB", "state KiB"),
        *("forward passes", "backward passes"),
    )
    for number, (variant, size) in enumerate(lines):
        one = median[number]
        source = median[lines.index((LINES[size][0], size))]
        table.add_row(
            f"{variant.method}, not learning" if variant is STILL else variant.method,
            str(size),
            f"{one.wall / source.wall:.2f}",
            f"{one.processor * per_thousand:.2f}",
            f"{one.peak:.0f}",
            f"{one.state:.0f}",
            f"{one.forward:g}",
            f"{one.backward:g}",
        )
    console = Console(width=120)
    console.print(table)
    console.print(
        f"{spec}, {images} images, {rounds} rounds, {torch.get_num_threads()} threads",
        highlight=False,
    )


def measure(spec: str, variant: Variant, size: int, images: int) -> Measured:
    """Answer so many images of the bundled stream in batches, adapting to each."""
    keep_freed_memory()  # as `ttc serve` and `ttc evaluate` do
    model = load(spec, device=pick_device("auto"))
    stream = open_data("bundled", Geometry(model.crop or model.size or 32)).open(
        CORRUPTION, 5, limit=images
    )
    batches = [as_batch(images).contiguous() for images, _ in stream.batches(size)]
    method = variant.create(model, {})
    warm_up(method, images=size)
    with timed() as seconds:
        for batch in batches:
            prediction = method.predict(batch)
            prediction.to_host()
            method.adapt(prediction)
    took = (
        seconds.wall,
        seconds.processor,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0,
        state_bytes(method) / 1024,
    )
    return Measured(*took, *_passes(method, batches[-1]))


def _passes(method: Method, batch: Tensor) -> tuple[float, float]:
    """Forward passes for a batch, in rows an image of it, and backward passes."""
    with recorded() as made:
        method.adapt(method.predict(batch))
    return made.rows / len(batch), made.backward


if __name__ == "__main__":
    main()
