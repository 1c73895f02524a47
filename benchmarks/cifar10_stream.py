"""The 10,000 CIFAR-10 test images beside the checkout, as DATA: benchmarks.cifar10_stream:load.

They are JPEG files in a zip archive, class folder by class folder; the stream mixes them by a
fixed permutation. The JPEG coding alone costs a ResNet-20 ten points: compare methods on this
stream with each other, not with published CIFAR-10-C figures.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "cifar10"

Pair = tuple[NDArray[np.uint8], NDArray[np.int64]]


def load() -> Iterator[Pair]:
    """Yield the images (10000, 32, 32, 3) and labels (10000,), once."""
    yield read("test")


def read(split: str) -> Pair:
    """The images (N, 32, 32, 3) and labels (N,) of "train" or "test", in the permutation."""
    with zipfile.ZipFile(FOLDER / f"{split}.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[-2] for name in names})
        images = [np.asarray(Image.open(archive.open(name)).convert("RGB")) for name in names]
    labels = [classes.index(name.split("/")[-2]) for name in names]
    order = np.random.RandomState(0).permutation(len(names))
    return np.stack(images)[order], np.array(labels, np.int64)[order]
