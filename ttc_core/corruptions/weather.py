"""Weather between the camera and the scene: snow, frost, fog, and brightness.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019, section 4.1; constants of CIFAR-10-C (32)
and ImageNet-C (224). Each function takes images (N, H, W, 3) uint8, the constants of one
severity and, where it draws, one generator an image; it returns new images of the same
shape.

Frost differs: the benchmark lays photographs of ice over the image, and nobody states who
holds the rights in them. We draw frost of the same colours, contrast and grain instead.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from ttc_core.corruptions.blur import enlarge, smear
from ttc_core.corruptions.pixels import Constants, Floats, Images, Table, to_bytes, to_unit

SNOW: Table = {  # mean, deviation, zoom and threshold of the flakes; streak radius, deviation; mix
    32: (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    224: (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
}
FROST: Table = {  # weight of the image, weight of the frost, scale of the frost
    32: ((1, 0.2, 1), (1, 0.3, 1), (0.9, 0.4, 1), (0.85, 0.4, 1), (0.75, 0.45, 1)),
    224: ((1, 0.4, 5), (0.8, 0.6, 5), (0.7, 0.7, 5), (0.65, 0.7, 5), (0.6, 0.75, 5)),
}
FOG: Table = {  # thickness, decay of the roughness from one scale to the next
    32: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    224: ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
}
BRIGHTNESS: Table = {  # added to the value of HSV
    32: ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
    224: ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
}


def snow(images: Images, constants: Constants, generators: Sequence[Generator]) -> Images:
    """Whiten the image and let streaks of flakes fall over it."""
    mean, deviation, zoom, threshold, radius, streak, mix = constants
    count, height, width, _ = images.shape
    layer = np.empty((count, height, width))
    angles = np.empty(count)
    for index, generator in enumerate(generators):
        layer[index] = generator.normal(mean, deviation, size=(height, width))
        angles[index] = generator.uniform(-135, -45)
    near = enlarge(layer.transpose(1, 2, 0), zoom).transpose(2, 0, 1)[..., None]
    flakes = to_bytes(np.where(near < threshold, 0, near))
    streaks = to_unit(smear(flakes, radius, streak, angles))

    x = images.astype(np.float32) / np.float32(255)
    grey = x @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    white = np.maximum(x, grey[..., None] * np.float32(1.5) + np.float32(0.5))
    whitened = np.float32(mix) * x + np.float32(1 - mix) * white
    return to_bytes(whitened + streaks + streaks[:, ::-1, ::-1])


class _Ice(NamedTuple):
    """What we keep of one photograph of the benchmark: two measures of its colours."""

    mean: tuple[int, int, int]  # RGB
    deviation: int


# The benchmark draws five pictures of which the second and the third are the same.
_PICTURES = (0, 1, 1, 2, 3)
_ICE = (
    _Ice((78, 149, 166), 43),
    _Ice((201, 205, 214), 23),
    _Ice((138, 153, 166), 31),
    _Ice((112, 123, 135), 44),
)
# Grain by scale: deviation of the filter in pixels, share of the variance. Scale 1 mimics how
# the benchmark shrinks its photographs without anti-aliasing, which leaves them noisy; scale 5
# is fitted to how fast neighbours part in the benchmark's own pictures at full size.
_GRAINS = {
    1: ((0.3, 0.20), (1.5, 0.12), (16, 0.68)),
    5: ((0.5, 0.20), (3, 0.25), (80, 0.55)),
}


def frost(images: Images, constants: Constants, generators: Sequence[Generator]) -> Images:
    """Lay a random piece of a frosted window over each image."""
    image_weight, frost_weight, scale = constants
    _, height, width, _ = images.shape
    pieces = np.empty_like(images)
    for piece, generator in zip(pieces, generators, strict=True):
        picture = frost_picture(_PICTURES[generator.integers(5)], int(scale))
        # The pictures wrap around, so an image larger than one still finds a place.
        tall, wide, _ = picture.shape
        top = generator.integers(tall - height if tall > height else tall)
        left = generator.integers(wide - width if wide > width else wide)
        rows, columns = (top + np.arange(height)) % tall, (left + np.arange(width)) % wide
        piece[...] = picture[rows[:, None], columns]
    return to_bytes((image_weight * images + frost_weight * pieces) / 255)


@cache
def frost_picture(number: int, scale: int) -> Images:
    """Draw frost: (120 scale, 180 scale, 3) uint8, always the same, wrapping at its edges.

    Args:
        number: which of the four mixtures of colour and contrast, 0 to 3.
        scale: 1 for images of about 32 pixels, 5 for those of about 224.
    """
    shape = (120 * scale, 180 * scale)
    generator = np.random.default_rng((number, scale))
    field = np.zeros(shape)
    for deviation, share in _GRAINS[scale]:
        grain = ndimage.gaussian_filter(generator.standard_normal(shape), deviation, mode="wrap")
        field += np.sqrt(share) * (grain - grain.mean()) / grain.std()
    ice = _ICE[number]
    picture = np.array(ice.mean) + ice.deviation * (field / field.std())[..., None]
    drawn: Images = np.rint(np.clip(picture, 0, 255)).astype(np.uint8)
    return drawn


def fog(images: Images, constants: Constants, generators: Sequence[Generator]) -> Images:
    """Add a cloud, then scale so that the brightest value stays what it was."""
    thickness, decay = constants
    _, height, width, _ = images.shape
    cloud = plasma(max(height, width), decay, generators)[:, :height, :width, None]
    x = to_unit(images)
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    return to_bytes((x + thickness * cloud) * brightest / (brightest + thickness))


def plasma(size: int, decay: float, generators: Sequence[Generator]) -> Floats:
    """Draw one cloud a generator by diamond-square on a torus.

    Args:
        size: pixels that the cloud has to cover, at least 1.
        decay: how much less noise each finer scale gets, at least 1; larger is smoother.

    Returns:
        (N, S, S) with S the power of two >= max(size, 2); minimum 0 and maximum 1 in each.
    """
    side = max(2, 1 << (size - 1).bit_length())
    draws = np.empty((len(generators), side * side - 1))
    for row, generator in zip(draws, generators, strict=True):
        generator.random(out=row)
    clouds = np.zeros((len(generators), side, side))
    used, step, amplitude = 0, side, 100.0

    def mean_and_noise(sum_of_four: Floats) -> Floats:
        nonlocal used
        cells = sum_of_four[0].size if len(sum_of_four) else 0
        noise = draws[:, used : used + cells].reshape(sum_of_four.shape)
        used += cells
        # The published code multiplies by the amplitude twice; so do we.
        return sum_of_four / 4 + amplitude * (amplitude * (2 * noise - 1))

    while step >= 2:
        half = step // 2
        corner = clouds[:, ::step, ::step]
        beside, below = np.roll(corner, -1, axis=2), np.roll(corner, -1, axis=1)
        centre = mean_and_noise(corner + below + beside + np.roll(beside, -1, axis=1))
        clouds[:, half::step, half::step] = centre
        above, left = np.roll(centre, 1, axis=1), np.roll(centre, 1, axis=2)
        clouds[:, ::step, half::step] = mean_and_noise(centre + above + corner + beside)
        clouds[:, half::step, ::step] = mean_and_noise(centre + left + corner + below)
        step, amplitude = half, amplitude / decay

    clouds -= clouds.min(axis=(1, 2), keepdims=True)
    clouds /= clouds.max(axis=(1, 2), keepdims=True)
    return clouds


def brightness(images: Images, constants: Constants) -> Images:
    """Add to the value of HSV; hue and saturation stay."""
    (added,) = constants
    x = to_unit(images)
    value = x.max(axis=3, keepdims=True)
    brighter = np.clip(value + added, 0, 1)
    # With hue and saturation fixed, red, green and blue keep their share of the value.
    share = 1 - np.divide(value - x, value, out=np.zeros_like(x), where=value > 0)
    return to_bytes(share * brighter)
