"""BMP: judged by its rows."""

import io

from PIL import Image

from ttc_core.pictures.picture import Buffer, Picture, TooManyParts, with_pillow

# Pillow decodes runs of equal pixels in Python, two bytes at a time, while no other thread runs.
MAX_RUN_BYTES = 1 << 20


def open_bmp(body: Buffer) -> Picture:
    image = Image.open(io.BytesIO(body[:4096]), formats=("BMP",))  # the palette included
    for decoder, _, start, _ in image.tile:
        if decoder == "bmp_rle" and len(body) - start > MAX_RUN_BYTES:
            raise TooManyParts(f"its runs take more than {MAX_RUN_BYTES:,} bytes")
    return Picture("BMP", *image.size, lambda: with_pillow("BMP", image.size, body))
