"""BMP: judged by its rows."""

import io

from PIL import Image

from ttc_core.pictures.picture import Buffer, Picture, with_pillow


def open_bmp(body: Buffer) -> Picture:
    image = Image.open(io.BytesIO(body[:4096]), formats=("BMP",))  # the palette included
    return Picture("BMP", image.width, image.height, lambda: with_pillow("BMP", body))
