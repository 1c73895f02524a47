"""What processing does to an image: contrast, elastic warp, pixelation and JPEG.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019, section 4.1; constants of CIFAR-10-C (32)
and ImageNet-C (224). Each function takes images (N, H, W, 3) uint8, the constants of one
severity and, where it draws, one generator an image; it returns new images of the same
shape.
"""

import io
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from ttc_core.corruptions.pixels import Constants, Floats, Images, Table, to_bytes, to_unit

CONTRAST: Table = {  # what is left of the distance to the mean
    32: ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
    224: ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
}
# Amplitude and smoothness of the wave, jitter of the affine map, in pixels. The large ones
# are the multiples of 244 that the benchmark has, a slip for 224.
ELASTIC_TRANSFORM: Table = {
    32: ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
    224: (
        (488, 170.8, 24.4),
        (488, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    ),
}
PIXELATE: Table = {  # side of the small image, as a share
    32: ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
    224: ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
}
JPEG_COMPRESSION: Table = {  # quality
    32: ((80,), (65,), (58,), (50,), (40,)),
    224: ((25,), (18,), (15,), (10,), (7,)),
}


def contrast(images: Images, constants: Constants) -> Images:
    """Pull every value towards the mean of its channel."""
    (kept,) = constants
    _, height, width, _ = images.shape
    # Summed as integers: the same to the last bit however many images come together.
    total = images.sum(axis=(1, 2), keepdims=True, dtype=np.int64)
    mean = total / (255.0 * height * width)
    return to_bytes((to_unit(images) - mean) * kept + mean)


def elastic_transform(
    images: Images, constants: Constants, generators: Sequence[Generator]
) -> Images:
    """Tilt the image by a random affine map, then shift every pixel by a smooth random field."""
    amplitude, smoothness, jitter = constants
    count, height, width, _ = images.shape
    moves = np.empty((count, 3, 2))
    field = np.empty((count, 2, height, width))
    for index, generator in enumerate(generators):
        moves[index] = generator.uniform(-jitter, jitter, size=(3, 2))
        field[index] = generator.uniform(-1, 1, size=(2, height, width))

    x = images.astype(np.float32) / np.float32(255)
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    affine = _inverse_affine(moves, height, width)
    from_column, from_row = (a * column + b * row + c for a, b, c in affine)
    tilted = sample(x, from_row, from_column, _mirror)
    if amplitude == 0:
        return to_bytes(tilted)
    shift = (amplitude * _smooth(field, smoothness)).astype(np.float32)
    return to_bytes(sample(tilted, row + shift[:, 1], column + shift[:, 0], _reflect))


def _inverse_affine(moves: Floats, height: int, width: int) -> Floats:
    """Return (2, 3, N, 1, 1): where (x, y, 1) of the tilted image comes from in the original.

    The map is the one that takes three points about the centre to where moves (N, 3, 2),
    in pixels, puts them.
    """
    centre = np.array([width // 2, height // 2], dtype=np.float64)
    reach = max(1, min(height, width) // 3)  # at least 1: three points in one define no map
    points = centre + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = np.concatenate([points + moves, np.ones((len(moves), 3, 1))], axis=2)
    affine = np.linalg.solve(moved, np.broadcast_to(points, moves.shape))  # (N, 3, 2)
    return affine.transpose(2, 1, 0)[..., None, None]


def _smooth(field: Floats, deviation: float) -> Floats:
    """Filter the last two axes by a Gaussian, edges reflected, cut at 3 deviations."""
    height, width = field.shape[-2:]
    if max(height, width) > 512:  # above, the matrices would be larger than they are fast
        sides = (0, 0, deviation, deviation)
        return ndimage.gaussian_filter(field, sides, mode="reflect", truncate=3)
    # Linear and separable: a matrix on each side does all images at once.
    smooth: Floats = _smoother(height, deviation) @ field @ _smoother(width, deviation).T
    return smooth


@lru_cache(maxsize=8)
def _smoother(size: int, deviation: float) -> Floats:
    """Return the filter along one axis as a (size, size) matrix."""
    matrix: Floats = ndimage.gaussian_filter1d(
        np.eye(size), deviation, axis=0, mode="reflect", truncate=3
    )
    return matrix


def _mirror(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Fold an index into 0..size-1: d c b | a b c d | c b a."""
    if size == 1:
        return np.zeros_like(index)
    folded = index % (2 * size - 2)
    return np.minimum(folded, 2 * size - 2 - folded)


def _reflect(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Fold an index into 0..size-1: b a | a b c d | d c."""
    folded = index % (2 * size)
    return np.minimum(folded, 2 * size - 1 - folded)


def sample(
    images: NDArray[np.float32],
    row: Floats,
    column: Floats,
    fold: Callable[[NDArray[np.int64], int], NDArray[np.int64]],
) -> NDArray[np.float32]:
    """Read images (N, H, W, 3) at rows and columns (N, H, W), bilinearly.

    Places outside are folded back by fold, each of the four neighbours on its own: for
    these two borders this equals folding the place itself.
    """
    count, height, width, _ = images.shape
    flat = images.reshape(-1, 3)
    first = (np.arange(count) * (height * width))[:, None, None]
    floor_row, floor_column = np.floor(row), np.floor(column)
    lower = (row - floor_row).astype(np.float32)[..., None]
    right = (column - floor_column).astype(np.float32)[..., None]
    y, x = floor_row.astype(np.int64), floor_column.astype(np.int64)
    rows = [first + fold(y + step, height) * width for step in (0, 1)]
    columns = [fold(x + step, width) for step in (0, 1)]
    upper, below = (
        flat[at + columns[0]] * (1 - right) + flat[at + columns[1]] * right for at in rows
    )
    sampled: NDArray[np.float32] = upper * (1 - lower) + below * lower
    return sampled


def pixelate(images: Images, constants: Constants) -> Images:
    """Shrink by averaging boxes and enlarge again to visible squares."""
    (share,) = constants
    _, height, width, _ = images.shape
    small = (max(1, int(width * share)), max(1, int(height * share)))
    result = np.empty_like(images)
    for image, target in zip(images, result, strict=True):
        shrunk = Image.fromarray(image).resize(small, Image.Resampling.BOX)
        target[...] = np.asarray(shrunk.resize((width, height), Image.Resampling.BOX))
    return result


def jpeg_compression(images: Images, constants: Constants) -> Images:
    """Code as JPEG with half the colour resolution and decode; the constant is the quality."""
    quality = int(constants[0])
    result = np.empty_like(images)
    for image, target in zip(images, result, strict=True):
        coded = io.BytesIO()
        Image.fromarray(image).save(coded, "JPEG", quality=quality)
        with Image.open(coded, formats=["JPEG"]) as decoded:
            target[...] = np.asarray(decoded)
    return result
