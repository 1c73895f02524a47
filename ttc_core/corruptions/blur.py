"""Blur of the lens and of the hand: defocus, frosted glass, motion and zoom.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019, section 4.1; constants of CIFAR-10-C (32)
and ImageNet-C (224), lengths in pixels. The corruptions take images (N, H, W, 3) uint8,
the constants of one severity and, where they draw, one generator an image; they return
new images of the same shape.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from ttc_core.corruptions.pixels import Constants, Floats, Images, Table, to_bytes, to_unit

DEFOCUS_BLUR: Table = {  # radius of the disk, deviation that softens its rim
    32: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    224: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
}
GLASS_BLUR: Table = {  # deviation of the blur, reach of the shuffle, passes
    32: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    224: ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
}
MOTION_BLUR: Table = {  # radius, deviation of the streak
    32: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    224: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
}
ZOOM_BLUR: Table = {  # stop and step of np.arange(1, stop, step), the factors
    32: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    224: ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
}


def defocus_blur(images: Images, constants: Constants) -> Images:
    """Replace every pixel by the mean over a disk with a softened rim."""
    radius, softness = constants
    kernel = _disk(radius, softness)[None, :, :, None]
    # The benchmark's border is OpenCV's default: mirrored, the edge pixel not repeated.
    return to_bytes(ndimage.correlate(to_unit(images), kernel, mode="mirror"))


def _disk(radius: float, softness: float) -> Floats:
    """Return the kernel of a disk, (K, K), sum 1, with float32 precision as published."""
    reach, window = (8, 3) if radius <= 8 else (int(radius), 5)
    line = np.arange(-reach, reach + 1)
    disk = (line[:, None] ** 2 + line[None, :] ** 2 <= radius**2).astype(np.float32)
    disk /= disk.sum()
    soft = np.exp(-((np.arange(window) - window // 2) ** 2) / (2 * softness**2))
    soft /= soft.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, soft, axis=axis, mode="mirror")
    return disk.astype(np.float64)


def glass_blur(images: Images, constants: Constants, generators: Sequence[Generator]) -> Images:
    """Blur, let pixels take the place of near ones, blur again."""
    deviation, reach, passes = constants[0], int(constants[1]), int(constants[2])
    height, width = images.shape[1:3]
    moved = max(0, height - 2 * reach) * max(0, width - 2 * reach)
    offsets = np.empty((len(images), passes, moved, 2), dtype=np.int64)
    for row, generator in zip(offsets, generators, strict=True):
        row[...] = generator.integers(-reach, reach, size=row.shape)
    shuffled = to_bytes(_soften(to_unit(images), deviation))
    for step in range(passes):
        shuffled = shuffle(shuffled, reach, offsets[:, step])
    return to_bytes(_soften(to_unit(shuffled), deviation))


def _soften(x: Floats, deviation: float) -> Floats:
    """Blur (N, H, W, 3) by a Gaussian cut at four deviations, edges replicated."""
    return ndimage.gaussian_filter(x, (0, deviation, deviation, 0), mode="nearest", truncate=4)


def shuffle(images: Images, reach: int, offsets: NDArray[np.int64]) -> Images:
    """One pass of glass: from the lower right up, each inner pixel becomes a near one.

    Args:
        images: (N, H, W, 3) uint8.
        reach: how far away the near one may be, at least 1.
        offsets: (N, P, 2) pairs (dx, dy) in [-reach, reach - 1] for the P inner pixels,
            rows H - reach down to reach + 1 and within them the columns likewise.

    The published code reads like a swap of two pixels, but both sides are views of the
    same array, so that it copies: the place copied from keeps its colour.
    """
    count, height, width, _ = images.shape
    rows = np.arange(height - reach, reach, -1)
    columns = np.arange(width - reach, reach, -1)
    if len(rows) == 0 or len(columns) == 0:
        return images.copy()
    row, column = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))
    here = row * width + column
    from_row, from_column = row + offsets[:, :, 1], column + offsets[:, :, 0]
    source = from_row * width + from_column

    # A source that the pass has already written gives what it was given itself. So each
    # pixel points to its source, as it was before the pass (index < size) or as it is
    # after it (index + size); following the pointers twice as far each time ends quickly.
    size = height * width
    written = (source > here) & (from_row <= height - reach) & (from_row > reach)
    written &= (from_column <= width - reach) & (from_column > reach)
    target = np.tile(np.arange(size), (count, 2))
    target[:, size + here] = source + size * written
    while True:
        further = np.take_along_axis(target, target, axis=1)
        if np.array_equal(further, target):
            break
        target = further
    flat = images.reshape(count, size, 3)
    return np.take_along_axis(flat, target[:, size:, None], axis=1).reshape(images.shape)


def motion_blur(images: Images, constants: Constants, generators: Sequence[Generator]) -> Images:
    """Smear each image along one line, at an angle drawn from [-45, 45) degrees."""
    radius, deviation = constants
    angles = np.array([generator.uniform(-45, 45) for generator in generators])
    return smear(images, radius, deviation, angles)


def smear(images: Images, radius: float, deviation: float, degrees: Floats) -> Images:
    """Motion blur as ImageMagick computes it: one-sided, the pixel itself counting most.

    Args:
        images: (N, H, W, C) uint8.
        radius: the streak is 2 ceil(radius) + 1 pixels long.
        deviation: of the half Gaussian along the streak, in pixels.
        degrees: (N,) angles; 0 takes from the right, 90 from below.
    """
    count, height, width, _ = images.shape
    reach = 2 * math.ceil(radius)
    distance = np.arange(reach + 1)
    weights = np.exp(-(distance**2) / (2 * deviation**2))
    weights /= weights.sum()
    angles = np.radians(degrees)
    down = np.ceil(np.outer(distance, np.sin(angles)) - 0.5).astype(np.int64)
    right = np.ceil(np.outer(distance, np.cos(angles)) - 0.5).astype(np.int64)

    margin = (reach, reach)
    padded = np.pad(images, ((0, 0), margin, margin, (0, 0)), mode="edge")
    windows = sliding_window_view(padded, (height, width), axis=(1, 2))
    windows = windows.transpose(0, 1, 2, 4, 5, 3)  # image, shift down, shift right, H, W, C
    total = np.zeros(images.shape)
    image = np.arange(count)
    for weight, y, x in zip(weights, down, right, strict=True):
        total += weight * windows[image, reach + y, reach + x]
    quantum = np.floor(total * 257 + 0.5)  # ImageMagick rounds to 16 bits, its reader cuts to 8
    return (quantum // 257).astype(np.uint8)


def zoom_blur(images: Images, constants: Constants) -> Images:
    """Average the image and its enlargements about the centre, as if zooming while exposed."""
    stop, step = constants
    # 1 + k * step differs in the last bit, which flips roundings of the enlarged size; and
    # only np.arange itself includes the stop value where the benchmark does.
    factors = np.arange(1, stop, step)
    count, height, width, _ = images.shape
    pixels = images.transpose(1, 2, 0, 3).reshape(height, width, count * 3)
    x = pixels.astype(np.float32) / np.float32(255)
    total = np.zeros_like(x)
    for factor in factors:
        total += enlarge(x, float(factor)).astype(np.float32)
    mean = (x + total) / np.float32(len(factors) + 1)
    mean = np.clip(mean, 0, 1) * np.float32(255)
    blurred = mean.astype(np.uint8).reshape(height, width, count, 3)
    return np.ascontiguousarray(blurred.transpose(2, 0, 1, 3))


def enlarge(x: Floats, factor: float) -> Floats:
    """Enlarge the centre of (H, W, ...) by factor >= 1, bilinearly, to the same shape.

    The layout lets one call treat many images: they are the last axis.
    """
    return _enlarge_rows(_enlarge_rows(x, factor).swapaxes(0, 1), factor).swapaxes(0, 1)


def _enlarge_rows(x: Floats, factor: float) -> Floats:
    size = len(x)
    crop = math.ceil(size / factor)
    enlarged = round(crop * factor)
    step = (crop - 1) / (enlarged - 1) if enlarged > 1 else 0.0  # the end points coincide
    position = (np.arange(size) + (enlarged - size) // 2) * step
    low = np.minimum(position.astype(np.int64), crop - 1)
    high = np.minimum(low + 1, crop - 1)
    weight = (position - low)[:, None, None]
    start = (size - crop) // 2
    rows: Floats = x[start + low] * (1 - weight) + x[start + high] * weight
    return rows
