"""What each method costs, as a multiple of SOURCE, beside the passes that explain it.

    python -m benchmarks.cost [--model SPEC] [--images 1000] [--rounds 5]

All methods answer the same batches of 100 in one process, in turn, round after round; the medians
are compared. A pass is one of the network over the whole batch; backward passes count what is
differentiated.
"""

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.bare_loop import BATCH, CORRUPTION
from service.cli.options import keep_freed_memory
from ttc_core.datasets import Geometry, open_data
from ttc_core.evaluate import as_batch, warm_up
from ttc_core.load import load
from ttc_core.methods import METHODS, Method, create
from ttc_core.model import Output, SourceModel


@click.command()
@click.option("--model", "spec", default="bundled", show_default=True)
@click.option("--images", default=1000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(spec: str, images: int, rounds: int) -> None:
    """Print a line for each method."""
    keep_freed_memory()  # as `ttc serve` and `ttc evaluate` do
    model = load(spec)
    stream = open_data("bundled", Geometry(model.crop or model.size or 32)).open(
        CORRUPTION, 5, limit=images
    )
    batches = [as_batch(images).contiguous() for images, _ in stream.batches(BATCH)]
    methods = {name: create(name, model) for name in METHODS}
    passes = {name: _passes(method, batches[0]) for name, method in methods.items()}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for method in methods.values():
        warm_up(method, images=BATCH)
    for _ in range(rounds):
        for name, method in methods.items():
            seconds[name].append(_seconds(method, batches))
    median = {name: statistics.median(runs) for name, runs in seconds.items()}
    table = Table("method", "time / SOURCE", "forward passes", "backward passes")
    for name in METHODS:
        ratio = median[name] / median["source"]
        counted = [f"{passes[name][kind]:g}" for kind in ("forward", "backward")]
        table.add_row(name, f"{ratio:.2f}", *counted)
    console = Console()
    console.print(table)
    console.print(
        f"{spec}, {images} images in batches of {BATCH}, {rounds} rounds, "
        f"{torch.get_num_threads()} threads, {model.device}",
        highlight=False,
    )


def _seconds(method: Method, batches: list[Tensor]) -> float:
    method.reset()
    started = time.perf_counter()
    for batch in batches:
        prediction = method.predict(batch)
        prediction.to_host()
        method.adapt(prediction)
    return time.perf_counter() - started


def _passes(method: Method, batch: Tensor) -> dict[str, float]:
    """Passes for a batch, over as many images as it has."""
    with _counted() as counter:
        method.adapt(method.predict(batch))
    method.reset()
    return {"forward": counter["forward"] / len(batch), "backward": counter["backward"]}


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Count the images of all forward passes, and the backward passes, meanwhile."""
    counter: Counter[str] = Counter()
    run, grad = SourceModel.run, torch.autograd.grad

    def counting_run(self: SourceModel, inputs: Tensor, **options: Any) -> Output:
        counter["forward"] += len(inputs)
        return run(self, inputs, **options)

    def counting_grad(*arguments: Any, **options: Any) -> Any:
        counter["backward"] += 1
        return grad(*arguments, **options)

    SourceModel.run, torch.autograd.grad = counting_run, counting_grad
    try:
        yield counter
    finally:
        SourceModel.run, torch.autograd.grad = run, grad


if __name__ == "__main__":
    main()
