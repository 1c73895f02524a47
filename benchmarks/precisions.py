"""What a precision brings on this device: images a second, accuracy, memory, for each network.

    python -m benchmarks.precisions [--device auto] [--images 1000] [--rounds 3]

The bundled network answers and learns from its stream; a ResNet-50 of no weights has photographs of
224 pixels, for its time alone. SOURCE and the default, in batches of several sizes, as served.
Rounds go over all, so that each meets the same machine; medians are told. It is what is to be run
first on a GPU, by `make gpu`.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple, get_args

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.clock import timed
from benchmarks.pictures import CORRUPTION
from service.cli.options import keep_freed_memory
from ttc_core.datasets import Geometry, open_data
from ttc_core.evaluate import as_batch, warm_up
from ttc_core.load import load, pick_device
from ttc_core.methods import DEFAULT_METHOD
from ttc_core.model import Precision
from ttc_core.presets import Variant

BUNDLED, LARGE = "bundled", "torchvision/resnet50?weights=none"
NETWORKS = (BUNDLED, LARGE)
METHODS = ("source", DEFAULT_METHOD)
SIZES = (1, 16, 64)
# Of the larger network so many times fewer, where there is no GPU.
FEWER = 25


class Case(NamedTuple):
    """What is measured."""

    network: str
    method: str
    size: int
    precision: Precision


class Measured(NamedTuple):
    """What came of it.

    Attributes:
        rate: images a second.
        right: the share of answers that were right; NaN for a network of no weights.
        peak: MiB of the GPU's memory that torch had at most; 0 without one.
    """

    rate: float
    right: float
    peak: float


@click.command()
@click.option("--device", "named", default="auto", show_default=True)
@click.option("--network", "networks", multiple=True, default=NETWORKS, show_default=True)
@click.option("--images", default=1000, show_default=True, help="of the bundled stream")
@click.option("--rounds", default=3, show_default=True)
def main(named: str, networks: tuple[str, ...], images: int, rounds: int) -> None:
    """Print a line for each network, method and size of batch."""
    keep_freed_memory()  # as `ttc serve` and `ttc evaluate` do
    device = pick_device(named)
    cases = list(_cases(networks))
    found: dict[Case, list[Measured]] = defaultdict(list)
    for _ in range(rounds):
        for case in cases:
            found[case].append(measure(case, device, images))
    table = Table(
        *("network", "method", "batch", "images/s", "in bfloat16", "times"),
        *("right, %", "in bfloat16, %", "peak MiB", "in bfloat16, MiB"),
    )
    for case in cases:
        if case.precision == "float32":
            whole, reduced = (
                Measured(*map(statistics.median, zip(*found[each], strict=True)))
                for each in (case, case._replace(precision="bfloat16"))
            )
            table.add_row(
                *(case.network, case.method, str(case.size)),
                *(f"{whole.rate:.1f}", f"{reduced.rate:.1f}", f"{reduced.rate / whole.rate:.2f}"),
                *(f"{100 * each.right:.1f}" for each in (whole, reduced)),
                *(f"{each.peak:.0f}" for each in (whole, reduced)),
            )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    console = Console(width=140)
    console.print(table)
    console.print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")


def measure(case: Case, device: torch.device, images: int) -> Measured:
    """Answer and learn from so many images in batches."""
    model = load(case.network, device=device).compute_in(case.precision)
    method = Variant(case.method).create(model, {})
    if case.network == LARGE and device.type == "cpu":
        images //= FEWER
    batches, labels = _images(case, images)
    warm_up(method, images=case.size)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    right = 0
    with timed() as seconds:
        for batch, given in zip(batches, labels, strict=True):
            prediction = method.predict(batch)
            right += int((prediction.to_host().predicted == given).sum())
            method.adapt(prediction)
    count = sum(map(len, batches))
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
    share = right / count if case.network == BUNDLED else float("nan")
    return Measured(count / seconds.wall, share, peak)


def _images(case: Case, count: int) -> tuple[list[Tensor], list[NDArray[np.int64]]]:
    """Batches (N, 3, size, size) of uint8, and their labels; at least one batch."""
    count = max(case.size, count)
    if case.network == BUNDLED:
        stream = open_data("bundled", Geometry(32)).open(CORRUPTION, 5, limit=count)
        pairs = list(stream.batches(case.size))
        return [as_batch(each).contiguous() for each, _ in pairs], [labels for _, labels in pairs]
    drawn = torch.Generator().manual_seed(0)
    shape = (count, 3, 224, 224)
    photographs = torch.randint(0, 256, shape, dtype=torch.uint8, generator=drawn)
    batches = [photographs[at : at + case.size] for at in range(0, count, case.size)]
    return batches, [np.full(len(each), -1) for each in batches]


def _cases(networks: Iterable[str]) -> Iterator[Case]:
    for network in networks:
        for method in METHODS:
            for size in SIZES:
                for precision in get_args(Precision):
                    yield Case(network, method, size, precision)


if __name__ == "__main__":
    main()
