"""JPEG files to post: the bundled images at 32 pixels, and photographs of 640 × 480."""

import io
from functools import cache

import numpy as np
from PIL import Image

from ttc_core.datasets import Geometry, open_data

CORRUPTION = "gaussian_noise"
QUALITY = 90
PHOTOGRAPHS = 64
SIZE = (640, 480)


@cache
def bundled(count: int) -> tuple[bytes, ...]:
    """The first so many bundled images under noise."""
    stream = open_data("bundled", Geometry(32)).open(CORRUPTION, 5, limit=count)
    return tuple(_jpeg(Image.fromarray(pixels)) for pixels in stream.read(stream.positions))


@cache
def photographs(count: int = PHOTOGRAPHS) -> tuple[bytes, ...]:
    """Parts of scikit-learn's two photographs, no two alike; about 100 kB each."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    whole = [
        Image.fromarray(pixels).resize((960, 720), Image.Resampling.BICUBIC)
        for pixels in load_sample_images().images
    ]
    found = []
    for number in range(count):
        left, top = (int(random.integers(0, 960 - 640)), int(random.integers(0, 720 - 480)))
        part = whole[number % 2].crop((left, top, left + SIZE[0], top + SIZE[1]))
        found.append(_jpeg(part))
    return tuple(found)


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
