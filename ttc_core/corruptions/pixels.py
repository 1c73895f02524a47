"""What all families share: the array types, and the way from bytes to [0, 1] and back."""

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]  # (N, H, W, 3) unless a docstring says otherwise
Floats = NDArray[np.floating]  # float64; float32 where the benchmark computes so
Constants = tuple[float, ...]  # what one severity needs, in the order of its table
Table = dict[int, tuple[Constants, Constants, Constants, Constants, Constants]]


def to_unit(images: Images) -> Floats:
    """Return the images scaled to [0, 1], float64, same shape."""
    return images / 255.0


def to_bytes(x: Floats) -> Images:
    """Clip to [0, 1], scale to 0..255 and cut off the fraction; same shape.

    The benchmark's last step is a cast, so it truncates. Rounding would make every
    corruption half a level brighter on average.
    """
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)
