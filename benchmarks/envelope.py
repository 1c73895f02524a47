"""How far streams go by themselves, which an envelope's bounds are chosen from; and what one costs.

python -m benchmarks.envelope                       # the default on six streams, and TENT, TTC
python -m benchmarks.envelope --cost                # its part of a step's time, on ResNet-20
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator

import click
import torch
from rich.console import Console
from rich.table import Table

from ttc_core.datasets import Geometry, open_data
from ttc_core.envelope.clauses import BUILT_IN, UNBOUNDED, Envelope
from ttc_core.envelope.ledger import Ledger
from ttc_core.envelope.limits import Limits, distance
from ttc_core.evaluate import as_batch
from ttc_core.load import load
from ttc_core.methods import create, settings_for
from ttc_core.methods.parts.learner import AffineLearner
from ttc_core.methods.settings import OptimizerSettings
from ttc_core.model import SourceModel
from ttc_core.zoo.resnet import ResNet

STREAMS = (
    ("gaussian_noise", "iid"),
    ("fog", "iid"),
    ("contrast", "runs:50"),
    ("jpeg_compression", "camera-trap"),
    ("gaussian_noise", "one:3"),
    ("clean", "sorted"),
)
METHODS = ("ttc_stream", "tent", "ttc")
# How often a time is measured, and of how many calls.
TIMES, CALLS = 10, 200


@click.command()
@click.option("--limit", default=600, show_default=True, help="images of a stream")
@click.option("--batch-size", default=10, show_default=True)
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option("--cost", "of_cost", is_flag=True, help="its part of a step's time instead")
def main(limit: int, batch_size: int, methods: str, of_cost: bool) -> None:
    """How far methods go by themselves, over streams."""
    torch.set_num_threads(1)
    if of_cost:
        Console().print(cost())
        return
    for line in maxima(methods.split(","), limit, batch_size):
        click.echo(line)


def maxima(methods: list[str], limit: int, batch_size: int) -> Iterator[str]:
    """Of each method as served, and stream, a row of a table: how far it went at most."""
    model = load("bundled")
    data = open_data("bundled", Geometry(32))
    columns = ("stream", "method", "drift", "largest change", "steps per 1,000")
    yield _row(*columns)
    yield _row(*["---"] * len(columns))
    for name in methods:
        for corruption, order in STREAMS:
            stream = data.open(corruption, 5, limit=limit, order=order, seed=0)
            settings = settings_for(name, {}, statistics="moving")
            guard = "on" if name == "ttc_stream" else "off"
            method = create(name, model, guard=guard, envelope=BUILT_IN, **settings)
            drift = change = 0.0
            steps = images = 0
            for batch, _ in stream.batches(batch_size):
                version = method.version
                method.adapt(method.predict(as_batch(batch)))
                images += len(batch)
                if method.version > version:
                    steps += 1
                    far = model.affine_layout.flattened(method.state()["affine"])
                    drift = max(drift, float(distance(far, model.source_affine)))
                    change = max(change, float((far - model.source_affine).abs().max()))
            yield _row(
                f"{corruption}, {order}",
                name,
                f"{drift:.4f}",
                f"{change:.3f}",
                f"{1000 * steps / images:.1f}",
            )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def cost() -> Table:
    """What a step of TENT takes, with the images that it answers, and the envelope's part of it."""
    model = SourceModel(ResNet(3).eval(), mean=(0.5,) * 3, std=(0.25,) * 3, size=32)
    table = Table("images", "a step, ms", "envelope, µs", "part, %")
    envelope = Envelope.of({"parameters": ["layer*"]})  # so that some are put back in each step
    for count in (1, 10, 100):
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        method = create("tent", model, statistics="moving", envelope=envelope)

        def step() -> None:
            method.adapt(method.predict(images))  # noqa: B023  it is called at once

        whole = _seconds(step, calls=max(3, 20 // count))
        part = _seconds(_of_the_envelope(model, envelope), calls=CALLS)
        part -= _seconds(_of_the_envelope(model, UNBOUNDED, measured=False), calls=CALLS)
        table.add_row(
            str(count), f"{1e3 * whole:.2f}", f"{1e6 * part:.1f}", f"{100 * part / whole:.2f}"
        )
    return table


def _of_the_envelope(
    model: SourceModel, envelope: Envelope, *, measured: bool = True
) -> Callable[[], None]:
    """What it adds to a step: put back, measure the largest change, compare, keep account."""
    limits, ledger = Limits(model, envelope), Ledger()
    learner = AffineLearner(model, OptimizerSettings.create("tent", model.classes, {}))
    source, moved = model.source_affine, model.source_affine * 1.001
    rows = range(10)

    def call() -> None:
        ledger.commit(rows, learned=True)
        if measured:
            learner._may_step(10)
            limits.with_fixed(moved)
            change = (moved - source).abs().max()
            torch.stack([change, change]).tolist()
            limits.are_beyond(0.0, 0.0)
            ledger.cut("parameters")
            ledger.stepped(10)
            min(1.0, limits.weight_of(10))

    return call


def _seconds(call: Callable[[], None], *, calls: int) -> float:
    """The median over TIMES of the mean over so many calls."""
    found = []
    for _ in range(TIMES):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        found.append((time.perf_counter() - started) / calls)
    assert all(map(math.isfinite, found))
    return statistics.median(found)


if __name__ == "__main__":
    main()
