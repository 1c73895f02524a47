"""GIF: the first frame, whose codes may end early."""

import struct
from functools import partial

from PIL import Image

from ttc_core.pictures.picture import Buffer, Damaged, Picture, next_part, with_pillow


def open_gif(body: Buffer) -> Picture:
    view = memoryview(body)
    width, height, flags = struct.unpack("<HHB", view[6:11])
    head = 13 + _palette_bytes(flags)
    at, control, count = head, b"", 0
    while at < len(body) and body[at] != 0x3B:
        count = next_part(count)
        if body[at] == 0x21:
            end, count = _after_blocks(body, at + 2, count)
            if body[at + 1] == 0xF9:
                control = bytes(body[at:end])
            at = end
        elif body[at] == 0x2C:
            left, top, right, bottom, flags = struct.unpack("<HHHHB", body[at + 1 : at + 10])
            right, bottom = left + right, top + bottom
            end, count = _after_blocks(body, at + 11 + _palette_bytes(flags), count)
            is_interlaced = flags & 0x40 and bottom - top > 1  # it then ends with the odd rows
            last = top + (bottom - top) // 2 * 2 - 1 if is_interlaced else bottom - 1
            size = max(width, right), max(height, bottom)  # Pillow makes room for a larger frame
            frame = view[:head], control, view[at:end]
            return Picture("GIF", *size, partial(_load_gif, size, *frame, (right - 1, last)))
        else:
            at += 1  # readers pass over odd bytes between blocks
    raise Damaged("it has no frame")


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(body: Buffer, at: int, count: int) -> tuple[int, int]:
    """Return where a chain of blocks ends, each of which says its length, and how many parts.

    Encoders fill blocks, with 255 bytes; only the short ones count as parts.
    """
    while at < len(body) and body[at]:
        if body[at] < 128:
            count = next_part(count)
        at += 1 + body[at]
    return at + 1, count


def _load_gif(
    size: tuple[int, int],
    head: memoryview,
    control: bytes,
    frame: memoryview,
    last_pixel: tuple[int, int],
) -> Image.Image:
    image = with_pillow("GIF", size, head, control, frame, b";")
    # The decoder does not tell when the codes end early. But it fills a frame beforehand, with
    # its transparent colour: a last pixel that takes on any such was never decoded.
    filled = image.info.get("transparency", 0)
    if image.getpixel(last_pixel) == filled:
        other = (filled + 1) % 256
        control = bytes([0x21, 0xF9, 4, 1, 0, 0, other, 0])
        probe = with_pillow("GIF", size, head, control, frame, b";")
        if probe.getpixel(last_pixel) == other:
            raise Damaged("its codes end before its last pixel")
    return image
