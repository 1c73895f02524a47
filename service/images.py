"""Turn the bytes of an image into an array, within limits. Knows neither HTTP nor torch."""

import math
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import TooLarge, UnknownType, Unreadable
from ttc_core.geometry import Geometry, resized_size
from ttc_core.grain import Grain, fitted
from ttc_core.pictures import Buffer, Damaged, Picture, TooManyParts, open_picture

# No TIFF: a tile may be far larger than its picture, so a file of 16 x 16 pixels and 0.8 MB
# makes libtiff fill 0.8 GB, and no header that Pillow shows tells so beforehand.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_NAMES = ("jpeg jpg pjpeg", "png x-png apng", "webp", "gif", "bmp x-bmp x-ms-bmp")
MEDIA_TYPES = {
    f"image/{name}": format_
    for format_, names in zip(FORMATS, _NAMES, strict=True)
    for name in names.split()
}
# Of a picture that is decoded where it came in; the worst that was made for it takes 8 ms.
TINY_PIXELS = 64 * 64
TINY_BYTES = 3 * TINY_PIXELS
# Tables, comments and the camera's own: of what has more the size takes a while to find.
MOST_PARTS_BEFORE_FRAME = 32
# Markers without a length (TEM, RSTn, SOI, EOI), a scan, whose data follow, and bytes that fill.
_NO_PART = frozenset((0x00, 0x01, *range(0xD0, 0xDB), 0xFF))
# Marker, length, then of a frame: bits, height, width.
_PART = struct.Struct(">BBHBHH")
# Of pixels on their way from floating-point numbers: those twice, whole ones, a picture, its bytes.
_BYTES_PER_PIXEL = 3 * (4 + 4 + 1) + 4 + 3
_ACCEPTED = "JPEG, PNG, WebP, GIF and BMP"


def read_header(body: Buffer, geometry: Geometry, *, max_pixels: int, max_side: int) -> Picture:
    """Hold what a picture's header says against the limits; no pixel is decoded.

    What the bytes are is read from the bytes, never from a media type.

    Args:
        body: one whole file: JPEG, PNG, WebP, GIF or BMP; of an animation the first frame.
        geometry: the model's.
        max_pixels: most pixels (width x height) as sent, and again once resized; beyond
            178,956,970 Pillow's own limit holds.
        max_side: most pixels along one side, as sent.

    Raises:
        Unreadable: empty, of another format, or its header is damaged.
        TooLarge: more pixels, a longer side or more parts than allowed.
        ValueError: its size and crop contradict each other: a mistake of ours, not the client's.
    """
    if not body:
        raise Unreadable(f"The image is empty (0 bytes); accepted are {_ACCEPTED}.")
    try:
        picture = open_picture(body, FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(
            "The image has more pixels than the decoder opens; "
            f"at most {max_pixels:,} pixels are accepted."
        ) from error
    except TooManyParts as error:
        raise TooLarge(f"The image cannot be decoded in good time: {error}.") from error
    except MemoryError as error:
        raise _too_much_memory() from error
    except Exception as error:
        known = isinstance(error, Damaged)
        why = error if known else "they are damaged, cut short, or of another format"
        raise Unreadable(
            f"The {len(body):,} bytes are not an image that can be read: {why}; "
            f"accepted are {_ACCEPTED}."
        ) from error
    if min(picture.width, picture.height) < 1:
        raise Unreadable(
            f"The image is {picture.width:,} x {picture.height:,} pixels; it has no content."
        )
    check_size(picture.width, picture.height, geometry, max_pixels=max_pixels, max_side=max_side)
    return picture


def check_size(
    width: int, height: int, geometry: Geometry, *, max_pixels: int, max_side: int
) -> None:
    """Hold an image's width and height, in pixels, against the limits of `read_header`.

    Raises:
        TooLarge: more pixels, or a longer side, than allowed.
    """
    if max(width, height) > max_side:
        raise TooLarge(
            f"The image is {width:,} x {height:,} pixels; "
            f"at most {max_side:,} pixels along a side are accepted."
        )
    accepted = f"pixels; at most {max_pixels:,} pixels are accepted."
    if width * height > max_pixels:
        raise TooLarge(f"The image is {width:,} x {height:,} = {width * height:,} {accepted}")
    size = geometry.size
    resized = math.prod(resized_size(width, height, size=size, crop=geometry.crop))
    if resized > max(max_pixels, (size or 0) ** 2):
        raise TooLarge(
            f"The image of {width:,} x {height:,} pixels is too narrow: with its shorter side "
            f"resized to {size} it has {resized:,} {accepted}"
        )


def is_tiny(body: Buffer) -> bool:
    """Whether a body is a picture whose way to a thread and back takes longer than itself.

    Texts that unpack to much are none, nor are formats whose size takes a while to find.
    """
    if len(body) > TINY_BYTES:
        return False
    if body.startswith(b"\x89PNG\r\n\x1a\n") and len(body) >= 24:
        width, height = struct.unpack(">II", body[16:24])
        return width * height <= TINY_PIXELS and not (b"zTXt" in body or b"iTXt" in body)
    return body.startswith(b"\xff\xd8\xff") and _pixels_of_jpeg(body) <= TINY_PIXELS


def _pixels_of_jpeg(body: Buffer) -> float:
    """As its frame's header says; infinite where that is not among the first parts."""
    at = 2
    for _ in range(MOST_PARTS_BEFORE_FRAME):
        if at + _PART.size > len(body):
            break
        mark, code, length, _, height, width = _PART.unpack_from(body, at)
        if mark != 0xFF or length < 2 or code in _NO_PART:
            break
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            return float(width * height)
        at += 2 + length
    return math.inf


def memory_needed(picture: Picture, geometry: Geometry) -> tuple[int, int]:
    """Return the bytes that `decode` takes at most while it runs, and those of its array."""
    return _memory(picture.width, picture.height, picture.bytes_per_pixel, geometry)


def memory_of_pixels(width: int, height: int, geometry: Geometry) -> tuple[int, int]:
    """The same for `fit_pixels`, and pixels that are made of floating-point numbers."""
    return _memory(width, height, _BYTES_PER_PIXEL, geometry)


def _memory(width: int, height: int, bytes_per_pixel: int, geometry: Geometry) -> tuple[int, int]:
    size, crop = geometry.size, geometry.crop
    resized_width, resized_height = resized_size(width, height, size=size, crop=crop)
    side = crop or size
    working = width * height * bytes_per_pixel
    if size is not None:
        working += 8 * resized_width * resized_height  # resized along one side, then the other
    return working, 3 * (side * side if side else resized_width * resized_height)


def decode(picture: Picture, geometry: Geometry) -> tuple[NDArray[np.uint8], Grain | None]:
    """Return a picture as the model reads it: upright, RGB, resized and cropped.

    See `ttc_core.geometry` for the rules of conversion.

    Returns:
        (H, W, 3) uint8, contiguous, read-only; (crop or size) pixels square, unless size is None.
        And what `ttc_core.grain.fitted` saw of it before.

    Raises:
        Unreadable: damaged or cut short: not all of its pixels are there.
        TooLarge: more parts than allowed, or it needs more memory than there is.
    """
    side = geometry.crop or geometry.size
    try:
        if (picture.width, picture.height) == (side, side):
            pixels = picture.plain()  # through an image of Pillow's it takes twice as long
            if pixels is not None:
                pixels.flags.writeable = False
                return pixels, None
        return fitted(picture.load(), geometry)
    except TooManyParts as error:
        raise TooLarge(f"The image cannot be decoded in good time: {error}.") from error
    except MemoryError as error:
        raise _too_much_memory() from error
    except Exception as error:  # damaged bytes come up as a dozen types, none promised by Pillow
        why = f" ({error})" if isinstance(error, Damaged) else ""
        raise Unreadable(
            f"The {picture.format} image is damaged or cut short: its pixels cannot be decoded"
            f"{why}."
        ) from error


def fit_pixels(
    pixels: NDArray[np.uint8], geometry: Geometry
) -> tuple[NDArray[np.uint8], Grain | None]:
    """Bring pixels (H, W, 3) to the size that the model reads, as `decode` does those of a file.

    Raises:
        TooLarge: it needs more memory than there is.
    """
    side = geometry.crop or geometry.size
    try:
        if side is None or pixels.shape[:2] == (side, side):
            pixels.flags.writeable = False
            return pixels, None
        return fitted(Image.fromarray(pixels), geometry)
    except MemoryError as error:
        raise _too_much_memory() from error


def check_media_type(content_type: str | None) -> None:
    """Accept the type that a client states for an image; what the bytes are is `decode`'s matter.

    Args:
        content_type: a Content-Type header with or without parameters; None where there is none.
            Accepted are the media types of FORMATS, application/octet-stream, and none at all.

    Raises:
        UnknownType: any other; the sentence lists what is accepted.
    """
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type not in MEDIA_TYPES and media_type not in ("", "application/octet-stream"):
        raise UnknownType(
            f"The media type {media_type[:80]!r} is not accepted; accepted are image/jpeg, "
            "image/png, image/webp, image/gif, image/bmp and application/octet-stream."
        )


def _too_much_memory() -> TooLarge:
    return TooLarge("The image needs more memory than the server has to decode it.")
