"""Whether memory stays flat over a long stream: python -m benchmarks.memory [--images 200000].

Two data sets of so many images are made in a temporary folder: a CIFAR-10-C file, and ImageNet-C
folders of links to a few JPEGs. A tiny network answers them in batches of 100. The unshared memory
of the process is printed at each tenth; exit status 1 if the last is 32 MiB above the second.
"""

import os
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

from ttc_core.datasets import WORDNET_IDS_FILE, Geometry, Stream, open_data
from ttc_core.evaluate import answered
from ttc_core.methods import create
from ttc_core.model import SourceModel

BATCH = 100
MOST_GROWTH = 32.0
FILES_A_FOLDER = 200


@click.command()
@click.option("--images", default=200_000, show_default=True)
def main(images: int) -> None:
    """Print a column for each data set."""
    measured = {}
    with tempfile.TemporaryDirectory() as name:
        for kind, write in (("cifar10c", _write_cifar), ("imagenetc", _write_imagenet)):
            folder = Path(name) / kind
            folder.mkdir()
            write(folder, images)
            data = open_data(
                f"{kind}:{folder}", Geometry(64) if kind == "imagenetc" else Geometry()
            )
            measured[kind] = _pass(data.open("fog", 5), 10 if kind == "cifar10c" else 1000)
    table = Table("images answered", *(f"{kind}, MiB" for kind in measured))
    for tenth in range(10):
        cells = [f"{values[tenth]:.0f}" for values in measured.values()]
        table.add_row(f"{(tenth + 1) * images // 10:,}", *cells)
    Console().print(table)
    if any(values[-1] > values[1] + MOST_GROWTH for values in measured.values()):
        sys.exit("Memory grows with the stream.")


def _write_cifar(folder: Path, images: int) -> None:
    np.save(folder / "labels.npy", np.arange(images) % 10)
    array = np.lib.format.open_memmap(
        folder / "fog.npy", mode="w+", dtype=np.uint8, shape=(images, 32, 32, 3)
    )
    noise = np.random.default_rng(0).integers(0, 256, (1000, 32, 32, 3), np.uint8)
    for start in range(0, images, 1000):
        array[start : start + 1000] = noise[: images - start]


def _write_imagenet(folder: Path, images: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{number}.JPEG")
    for number, wordnet_id in enumerate(WORDNET_IDS_FILE.read_text().split()):
        first = number * FILES_A_FOLDER
        if first >= images:
            break
        target = folder / "fog" / "5" / wordnet_id
        target.mkdir(parents=True)
        for place in range(first, min(first + FILES_A_FOLDER, images)):
            os.symlink(folder / f"{place % 8}.JPEG", target / f"{place:08}.JPEG")


def _pass(stream: Stream, classes: int) -> list[float]:
    """The process's unshared memory in MiB after each tenth of the stream."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    module = network.append(nn.Linear(4, classes))
    model = SourceModel(module, mean=(0.5,) * 3, std=(0.25,) * 3, size=None)
    memory: list[float] = []
    for tally in answered(create("tent", model), stream, BATCH):
        if tally.images >= (len(memory) + 1) * (len(stream) // 10):
            memory.append(_unshared())
    return memory


def _unshared() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
