"""Whether a picture is noise and nothing else, looked at in its own pixels: numpy and Pillow only.

A picture made smaller is an average of its pixels, and the average of noise is an even grey. So it
is looked at before; what is found goes with the picture to whoever judges it (`ttc_core.frames`).
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ttc_core.geometry import Geometry, to_rgb

# Structure is looked for in the means of blocks of so many pixels a side at least, and about so
# many in each direction. Of pictures too small for LEAST_BLOCKS of them (24 × 24) none is noise.
BLOCK, BLOCKS, LEAST_BLOCKS = 4, 8, 36
# Of a large picture, so many pixels a side from the middle of each block stand for all of it: what
# it costs hardly depends on its size.
TILE = 8
CHANNELS = 3

Numbers = NDArray[np.float64]


class Grain(NamedTuple):
    """How much of a picture is unrelated pixels.

    Attributes:
        structure: the variance between parts of it, over what unrelated pixels would have: about 1
            of noise, 15 and more of photographs; below 1 of many textures that fill a picture.
        deviation: the standard deviation of its pixels, in levels of 255.
        relation: the correlation of its pixels with those near them, 0 to 1: up to 0.15 of noise
            (0.35 below 48 pixels), 0.45 and more of textures.
    """

    structure: float
    deviation: float
    relation: float


def fitted(image: Image.Image, geometry: Geometry) -> tuple[NDArray[np.uint8], Grain | None]:
    """Bring a picture to the size that a model reads, as `Geometry.apply` does.

    Returns:
        The pixels (H, W, 3), read-only, and the grain of the picture as it came; None where its
        pixels are the same, or too few to tell.
    """
    upright = to_rgb(image)
    image = geometry.fit(upright)
    return np.asarray(image), None if image is upright else grain_of(upright)


def grain_of(image: Image.Image) -> Grain | None:
    """The grain of an RGB picture of any size; None below 24 × 24 pixels."""
    rows, columns = (min(BLOCKS, side // BLOCK) for side in (image.height, image.width))
    if rows * columns < LEAST_BLOCKS:
        return None
    height, width = image.height // rows, image.width // columns
    side = min(TILE, height, width)
    left = (width - side) // 2
    tiles = np.empty((rows, side, columns, side, CHANNELS), np.uint8)
    for row in range(rows):
        top = row * height + (height - side) // 2
        strip = np.asarray(image.crop((0, top, columns * width, top + side)))
        parts = strip.reshape(side, columns, width, CHANNELS)
        tiles[row] = parts[:, :, left : left + side]
    greys = greys_of(np.moveaxis(tiles, 4, 0)).reshape(1, rows * side, columns * side)
    between, of_pixels = variance(sums(greys, side)) / side**4, variance(greys)
    (structure,) = structure_of(between, of_pixels, side)
    related = relation(greys[0], side)
    return Grain(float(structure), float(of_pixels[0] ** 0.5) / CHANNELS, related)


def greys_of(channels: NDArray[np.uint8]) -> NDArray[np.int16]:
    """The sums of three channels (3, …)."""
    greys: NDArray[np.int16] = channels[0].astype(np.int16)
    greys += channels[1]
    greys += channels[2]
    return greys


def sums(greys: NDArray[np.int16], side: int) -> NDArray[np.int32]:
    """(N, rows, columns) of the whole blocks, `side` pixels a side, of pictures (N, H, W)."""
    count, height, width = greys.shape
    rows, columns = height // side, width // side
    strips = greys[:, : rows * side].reshape(count, rows, side, width).sum(2, dtype=np.int32)
    strips = strips[..., : columns * side].reshape(count, rows, columns, side)
    blocks: NDArray[np.int32] = strips.sum(3, dtype=np.int32)
    return blocks


def structure_of(between: Numbers, of_pixels: Numbers, side: int) -> Numbers:
    """(N,) as `Grain` has it, from variances (N,): of blocks' means, and of pixels.

    Args:
        side: of a block, in pixels. What is in a picture tells more in larger blocks, and noise
            that a codec or a smaller size went over has some relation: so the root counts.
    """
    unrelated = of_pixels / side**2 * (side / BLOCK) ** 0.5
    found: Numbers = np.zeros_like(between)
    np.divide(between, unrelated, out=found, where=unrelated > 0)
    return found


def relation(greys: NDArray[np.int16], side: int) -> float:
    """The largest correlation, either way, of pixels near each other in one image (H, W).

    Args:
        side: pixels of one tile are compared with each other, `side` a side. So far apart, across
            and down, that a quarter of a tile's pixels have a partner, or nearer.
    """
    rows, columns = (length // side for length in greys.shape)
    if not rows * columns:
        return 0.0
    blocks = greys[: rows * side, : columns * side].reshape(rows, side, columns, side)
    tiles = blocks.swapaxes(1, 2).reshape(-1, side**2)
    levels = tiles - tiles.mean(dtype=np.float64)
    products = levels.T @ levels
    mean_square = float(products.trace()) / side**2
    if not mean_square:
        return 0.0
    numbers, counts, near = displacements(side)
    found = np.bincount(numbers, products.ravel())[near] / counts[near]
    return float(np.abs(found).max()) / mean_square


@cache
def displacements(side: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """How pixels of a tile lie to each other.

    Returns:
        The number of the displacement of each of the side⁴ pairs; by number, of how many pairs it
        is; and by number, whether it is compared.
    """
    down, across = (place.ravel() for place in np.indices((side, side)))
    numbers = (down[:, None] - down) * (2 * side) + across[:, None] - across
    numbers = (numbers - numbers.min()).ravel()
    counts = np.bincount(numbers)
    return numbers, counts, (counts >= side**2 / 4) & (counts < side**2)


def variance(numbers: NDArray[Any]) -> Numbers:
    """(N,) of the whole numbers (N, H, W) of each image."""
    each = numbers.astype(np.int64)
    # Python's whole numbers: the square of a sum over 2,100 × 2,100 pixels is beyond 64 bits.
    count, sums = each[0].size, each.sum(axis=(1, 2)).astype(object)
    squares = np.einsum("nhw,nhw->n", each, each).astype(object)
    found: Numbers = ((count * squares - sums**2) / count**2).astype(np.float64)
    return found
