"""What the formats share: a file whose header is read, what it lost, and Pillow."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

Buffer = bytes | bytearray

# A file may be one part after another, of four bytes each: walking them would keep a core busy.
MAX_PARTS = 50_000
# Webcams leave a few bytes between the last pixel and the end marker; more is picture, shifted.
MAX_STRAY_BYTES = 8


class Damaged(ValueError):
    """Pixels are missing or wrong."""


class TooManyParts(ValueError):
    """The file is in more pieces than a picture needs."""


@dataclass(frozen=True)
class Picture:
    """A file whose header is read.

    Args:
        format: as Pillow names it.
        width, height: in pixels, before the EXIF orientation is applied; 0 is possible.
        bytes_per_pixel: the most memory that `load` and the conversion to upright RGB take.
        load: decodes, and returns a Pillow image with the EXIF block in its `info`. Raises
            Damaged, or whatever Pillow raises for damaged bytes.
        plain: decodes likewise, where nothing turns or converts the pixels: (H, W, 3) uint8; None
            where something does, or `load` has more to say.
    """

    format: str
    width: int
    height: int
    load: Callable[[], Image.Image]
    bytes_per_pixel: int = 12  # as decoded, in RGB and turned, at four bytes each
    plain: Callable[[], NDArray[np.uint8] | None] = lambda: None


def next_part(count: int) -> int:
    if count == MAX_PARTS:
        raise TooManyParts(f"it has more than {MAX_PARTS:,} parts")
    return count + 1


def loaded(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Decode an opened file, if it is as large as was read: limits were held against that."""
    if image.size != size:
        raise Damaged(f"it states two sizes, {size} and {image.size}")
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # scripts of a user's own set it, at any moment
    image.load()
    return image


def with_pillow(name: str, size: tuple[int, int], *parts: Buffer | memoryview) -> Image.Image:
    return loaded(Image.open(io.BytesIO(b"".join(parts)), formats=(name,)), size)
