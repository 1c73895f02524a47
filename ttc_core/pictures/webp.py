"""WebP: judged by its pixel chunks, not by the sizes it states."""

import struct
from collections.abc import Sequence

from PIL import (
    Image,
    WebPImagePlugin,  # noqa: F401  registers WebP: else the first odd bytes load all 40 formats
)

from ttc_core.pictures.picture import (
    MAX_STRAY_BYTES,
    Buffer,
    Damaged,
    Picture,
    next_part,
    with_pillow,
)

_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ANMF")
_WEBP_PARTS = (*_WEBP_PIXELS, b"VP8X", b"ANIM", b"ALPH", b"EXIF", b"XMP ")


def open_webp(body: Buffer) -> Picture:
    view, at, count = memoryview(body), 12, 0
    parts: list[Buffer | memoryview] = []
    size = (0, 0)
    pixels, lost, coded = view[:0], 0, view[:0]
    while at + 8 <= len(view):
        count = next_part(count)
        name, length = struct.unpack("<4sI", view[at : at + 8])
        content = view[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
        if name not in _WEBP_PARTS or (pixels and name in _WEBP_PIXELS):
            continue
        if name in (*_WEBP_PIXELS, b"ALPH"):
            lost = max(lost, length - len(content))
        if name in (b"VP8 ", b"VP8L"):
            coded = content
        if size == (0, 0):
            size = _webp_size(name, content)
        if name in _WEBP_PIXELS:
            pixels = content
        parts += [struct.pack("<4sI", name, len(content)), content, bytes(len(content) % 2)]
    if not pixels:
        raise Damaged("it has no pixels")
    return Picture("WEBP", *size, lambda: _load_webp(parts, size, coded, lost), bytes_per_pixel=22)


def _webp_size(name: bytes, content: memoryview) -> tuple[int, int]:
    if name == b"VP8X":
        return tuple(  # type: ignore[return-value]
            1 + int.from_bytes(content[start : start + 3], "little") for start in (4, 7)
        )
    if name == b"VP8L":
        packed = int.from_bytes(content[1:5], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    if name == b"VP8 ":
        width, height = struct.unpack("<HH", content[6:10])
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _load_webp(
    parts: Sequence[Buffer | memoryview], size: tuple[int, int], coded: memoryview, lost: int
) -> Image.Image:
    # Its decoder makes pixels of any bytes, and tells of missing ones near the end alone.
    if lost > MAX_STRAY_BYTES:
        raise Damaged(f"{lost:,} of its bytes are missing")
    # One colour all over is a zero for 40 blocks of 16 x 16 pixels, at most.
    zeros = 64 + size[0] * size[1] // (16 * 256)
    if bytes(zeros) in bytes(coded):
        raise Damaged(f"more than {zeros:,} zeros lie where pixels were")
    return with_pillow(
        "WEBP", size, b"RIFF", struct.pack("<I4s", 4 + sum(map(len, parts)), b"WEBP"), *parts
    )
