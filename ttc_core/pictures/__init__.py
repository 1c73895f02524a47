"""Image files whose pixels are all there, or `Damaged`. Knows Pillow, simplejpeg and zlib only.

Decoders heal in silence: what a file lost comes out grey, shifted or black. And they refuse whole
pictures for what lies beside the pixels: a comment beyond a limit, a missing end. So each format
is taken apart here, only what makes the pixels and turns them upright goes to the decoder, and
what the decoder knows of their state is asked for.
"""

import io
import struct
from collections.abc import Sequence

from PIL import Image, UnidentifiedImageError

from ttc_core.pictures.bmp import open_bmp
from ttc_core.pictures.gif import open_gif
from ttc_core.pictures.jpeg import MAX_JPEG_SCANS, open_jpeg
from ttc_core.pictures.picture import MAX_PARTS, Buffer, Damaged, Picture, TooManyParts, loaded
from ttc_core.pictures.png import open_png
from ttc_core.pictures.webp import open_webp

__all__ = [
    "MAX_JPEG_SCANS",
    "MAX_PARTS",
    "Buffer",
    "Damaged",
    "Picture",
    "TooManyParts",
    "open_picture",
]


def open_picture(body: Buffer, formats: Sequence[str]) -> Picture:
    """Read a file's header; of an animation, the first frame's.

    Args:
        body: the whole file. What is behind the picture or beside it does not matter.
        formats: those that are taken, as Pillow names them.

    Raises:
        Damaged: it has no usable header. TooManyParts: see MAX_PARTS, MAX_JPEG_SCANS.
        Exception: whatever Pillow raises for what is none of `formats`.
    """
    for name, is_one, read in (
        ("JPEG", body.startswith(b"\xff\xd8\xff"), open_jpeg),
        ("PNG", body.startswith(b"\x89PNG\r\n\x1a\n"), open_png),
        ("GIF", body.startswith((b"GIF87a", b"GIF89a")), open_gif),
        ("WEBP", body.startswith(b"RIFF") and body[8:12] == b"WEBP", open_webp),
        ("BMP", body.startswith(b"BM"), open_bmp),
    ):
        if name in formats and is_one:
            try:
                return read(body)
            except (IndexError, struct.error):
                raise Damaged("its header is cut short") from None
    try:
        image = Image.open(io.BytesIO(body), formats=[name for name in formats if name == "TIFF"])
    except UnidentifiedImageError:
        said = f"it is none of {', '.join(formats)}" if body else "it is empty"
        raise UnidentifiedImageError(said) from None
    return Picture(image.format or "", image.width, image.height, lambda: loaded(image, image.size))
