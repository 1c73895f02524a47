"""From any picture to the upright RGB square that a model reads. Pillow and numpy only.

The service and the offline evaluation of image folders call these same functions, so that one
file gives the same pixels on both ways.
"""

import contextlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ttc_core.interpolation import Interpolation

_SIXTEEN_BIT = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
# Of an EXIF block; they are to be in ascending order, and the orientation is number 274.
_MOST_TAGS = 1000
# Characters of a text that are read: an EXIF block of 64 KiB in hex, and in lines.
_MOST_TEXT = 160_000
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I"}  # types of a tag's value
_TURN_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Geometry:
    """The size at which a model reads images, and how they are brought to it; see `fit`."""

    size: int | None = None
    crop: int | None = None
    interpolation: Interpolation = "bilinear"

    def __str__(self) -> str:
        if self.size is None:
            return "images as they come"
        if self.crop is None:
            return f"images resized to {self.size} × {self.size} ({self.interpolation})"
        return (
            f"images resized to a shorter side of {self.size} ({self.interpolation}), the middle "
            f"{self.crop} × {self.crop} of them"
        )

    def fit(self, image: Image.Image) -> Image.Image:
        """Bring an RGB picture to this size; see `fit`."""
        return fit(image, self.size, self.crop, self.interpolation)

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """Decode and resize as the server would: (H, W, 3)."""
        return np.asarray(self.fit(to_rgb(image)))

    def apply_all(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bring images (n, H, W, 3) of one size to the model's; as they are if that is theirs."""
        if len(images) == 0 or self.size is None:
            return images
        if images.shape[1:3] == (self.crop or self.size,) * 2:
            return images
        return np.stack([self.apply(Image.fromarray(image)) for image in images])


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode a picture and return it upright, in RGB, 8 bits a channel.

    - The EXIF orientation is applied, if it is among the first thousand tags; a damaged EXIF
      block counts as none.
    - Of an animation, the frame at which the image stands: the first, if just opened.
    - Transparent pixels are composed onto white, as a page shows them.
    - Greys are repeated in the three channels; 16-bit greys are divided by 257, so that 65535
      is 255 (their transparent key colour, if any, is ignored).
    - Palette, CMYK, YCbCr, HSV and LAB by Pillow's conversion; colour profiles are ignored.

    Args:
        image: any size of at least 1 x 1, any Pillow mode. Its pixels are loaded, not changed.

    Returns:
        An image of mode RGB: `image` itself where nothing had to be done.

    Raises:
        ValueError: the mode has no defined RGB: floating point, or integers outside 0..65535.
        Exception: whatever Pillow raises for damaged bytes (OSError, SyntaxError, and others).
    """
    image.load()
    turn = _turn_upright(image)
    if image.mode in _SIXTEEN_BIT:
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = _onto_white(image)
    elif image.mode == "F":
        raise ValueError(
            "floating-point pixels have no fixed range of brightness; save as 8 or 16 bits"
        )
    elif image.mode != "RGB":
        image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def resized_size(width: int, height: int, *, size: int | None, crop: int | None) -> tuple[int, int]:
    """Return the (width, height) to which `fit` resizes, before it crops.

    The long side can come out long: 1 x 4000 with size 256 and a crop gives 256 x 1,024,000.

    Args:
        width, height: of the picture, in pixels, at least 1.
        size, crop: as in `fit`.

    Raises:
        ValueError: size or crop below 1, crop without size, or crop above size.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, or None; got {size}")
    if crop is not None and (size is None or not 1 <= crop <= size):
        raise ValueError(f"crop must be between 1 and size ({size}) pixels, or None; got {crop}")
    if size is None:
        return width, height
    if crop is None:
        return size, size
    if width == height == crop:
        return width, height  # cut to the model's size before: not to be resampled again
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def fit(
    image: Image.Image,
    size: int | None,
    crop: int | None,
    interpolation: Interpolation = "bilinear",
) -> Image.Image:
    """Bring a picture to the size that a model reads; twice gives the same as once.

    Size and crop as torchvision's Resize (antialiased) and CenterCrop have them, bit for bit:

    - size None: returned as it is.
    - crop None: resized to exactly size x size; the aspect is not kept.
    - both: the shorter side is resized to `size`, the aspect kept, then the centre
      crop x crop is cut out.

    A picture that already has the final size is returned as it is, bit for bit; so is what
    comes from an earlier `fit`.

    Args:
        image: mode RGB, from `to_rgb`.
        size: in pixels, at least 1, or None.
        crop: in pixels, from 1 to size, or None.
        interpolation: as the model was trained; Pillow takes all pixels into account with each but
            nearest.

    Raises:
        ValueError: size or crop out of these ranges.
    """
    target = resized_size(image.width, image.height, size=size, crop=crop)
    if image.size != target:
        # No reducing_gap, no JPEG draft: both are shortcuts that change pixels with the size and
        # the format of what was sent, and accuracy is compared to the last image. And noise, of
        # which a draft is the average, would no longer be seen as such (`ttc_core.grain`).
        image = image.resize(target, Image.Resampling[interpolation.upper()])
    if crop is not None and image.size != (crop, crop):
        left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
        image = image.crop((left, top, left + crop, top + crop))
    return image


def _turn_upright(image: Image.Image) -> Image.Transpose | None:
    # Not Pillow's getexif: it makes an object of each of 65,535 tags, which takes half a second.
    # TIFF, the one format that has its tags elsewhere, comes upright from `load`.
    try:
        return _TURN_UPRIGHT.get(_orientation(image.info) or 1)
    except Exception:
        return None  # cameras do write broken EXIF; viewers show such pictures as they lie


def _orientation(info: Mapping[Any, Any]) -> int | None:
    """The orientation in the EXIF block, else in the XMP text, of what an image has besides."""
    block = info.get("exif")
    if block is None:  # ImageMagick's way in PNG: as text, below three lines of head
        lines = info.get("Raw profile type exif", "")[:_MOST_TEXT].split("\n", 3)
        block = bytes.fromhex("".join(lines[3:]))  # which passes over the ends of lines
    block = re.sub(b"^(Exif\0\0){1,2}", b"", block)
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    found = None
    if order is not None:
        with contextlib.suppress(struct.error):
            (start,) = struct.unpack_from(f"{order}4xI", block)
            (count,) = struct.unpack_from(f"{order}H", block, start)
            tags = memoryview(block)[start + 2 :][: 12 * min(count, _MOST_TAGS)]
            entries = struct.iter_unpack(f"{order}HHI4s", tags[: len(tags) // 12 * 12])
            for tag, kind, number, value in entries:
                if tag == ExifTags.Base.Orientation and number == 1 and kind in _WHOLE_NUMBERS:
                    (found,) = struct.unpack_from(order + _WHOLE_NUMBERS[kind], value)
    if found is None:
        text = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
        text = text[:_MOST_TEXT]
        text = text.encode(errors="replace") if isinstance(text, str) else text
        match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', text)
        found = int(match[1]) if match else None
    return found


def _to_eight_bits(image: Image.Image) -> Image.Image:
    # Pillow's own conversion to 8 bits clips at 255, which turns nearly all greys white.
    wide = image.convert("I")
    darkest, brightest = cast(tuple[int, int], wide.getextrema())
    if darkest < 0 or brightest > 65535:
        raise ValueError(
            f"integer pixels must be between 0 and 65535; got {darkest} to {brightest}"
        )
    grey = wide.point(lambda value: value * (1 / 257) + 0.5).convert("L")  # + 0.5: to nearest
    grey.info.pop("transparency", None)  # counted in 16 bits, it would name another grey here
    return grey


def _onto_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, (255, 255, 255))
    overlay = image.convert("RGBA")
    white.paste(overlay, mask=overlay)
    return white
