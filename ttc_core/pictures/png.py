"""PNG: rows counted and checksums held where the decoder does not look."""

import io
import struct
import zlib
from collections.abc import Sequence

from PIL import Image

from ttc_core.pictures.picture import Buffer, Damaged, Picture, loaded, next_part

_PNG = b"\x89PNG\r\n\x1a\n"
_ADAM7 = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # fmt: skip
# Texts that may say how to turn the picture. An EXIF block has at most 64 KiB, in hex and in lines
# 135 kB; what is behind the first so many bytes of a text is not read.
_PNG_ORIENTATION = ("Raw profile type exif", "XML:com.adobe.xmp")
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_MOST_TEXT = 160_000
_PIECE = 1 << 16


def open_png(body: Buffer) -> Picture:
    width, height = struct.unpack(">II", body[16:24])
    if body[12:16] != b"IHDR":
        raise Damaged("it does not begin with its header")
    return Picture("PNG", width, height, lambda: _load_png(body, (width, height)))


def _load_png(body: Buffer, size: tuple[int, int]) -> Image.Image:
    view, at, count = memoryview(body), 8, 0
    parts: list[Buffer | memoryview] = []
    beside: list[Buffer | memoryview] = []  # the EXIF block, which may say how to turn the picture
    texts: dict[str, tuple[bytes, memoryview]] = {}
    data: list[memoryview] = []
    is_sound = True
    while at + 8 <= len(view):
        count = next_part(count)
        length, name = struct.unpack(">I4s", view[at : at + 8])
        content, chunk = view[at + 8 : at + 8 + length], view[at : at + 12 + length]
        if name == b"IDAT":
            data.append(content)
            if len(chunk) == length + 12:
                is_sound &= zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        elif name == b"IHDR" and parts:
            raise Damaged("it has two headers")
        elif name in (b"IHDR", b"PLTE", b"tRNS") and not data:
            parts.append(chunk)
        elif name == b"eXIf":
            beside = [chunk]
        elif name in _PNG_TEXT:
            for key in _PNG_ORIENTATION:
                if bytes(content[: len(key) + 1]) == key.encode() + b"\0":
                    texts[key] = name, content[len(key) + 1 :]
        elif name == b"IEND":
            break
        at += 12 + length
    head = struct.pack(">I4s", sum(map(len, data)), b"IDAT")
    end: list[Buffer | memoryview] = [head, *data, bytes(8), b"IEND", bytes(4)]
    try:
        image = Image.open(io.BytesIO(b"".join([_PNG, *parts, *beside, *end])), formats=("PNG",))
    except Exception:  # beyond a limit, or nonsense: then it stays as it lies
        image = Image.open(io.BytesIO(b"".join([_PNG, *parts, *end])), formats=("PNG",))
    loaded(image, size)
    for key, (name, content) in texts.items():
        image.info[key] = _text(name, content)
    # Rows that never came are left at 0, and the decoder does not look behind the last one, where
    # it would see that bytes before were others. Interlaced, they lie between those that came.
    last_row = image.crop((0, image.height - 1, *image.size))
    if body[28] or not is_sound or not last_row.getbbox(alpha_only=False):
        _check_rows(data, _png_bytes(bytes(view[16:29])), is_sound)
    return image


def _text(kind: bytes, content: memoryview) -> str:
    """The beginning of a text chunk's text, its key taken off; empty if it is nonsense.

    Not Pillow's: that unpacks a megabyte of each.
    """
    text = bytes(content[:_MOST_TEXT])
    packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"zTXt":
        text = text[1:]  # behind the method; there is one
    elif kind == b"iTXt":  # behind flag, method, language and the key translated
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]
    if packed:
        try:
            text = zlib.decompressobj().decompress(text, _MOST_TEXT)
        except zlib.error:
            return ""
    return text.decode("latin-1")


def _check_rows(data: Sequence[memoryview], expected: int, is_sound: bool) -> None:
    """Count the bytes of the rows, for the decoder is content with fewer.

    Where chunks are not `is_sound` by their own sums, the sum over all rows must be right: zlib
    holds it against them at the end of its stream.
    """
    inflate, count = zlib.decompressobj(), 0
    most = expected if is_sound else expected + _PIECE
    try:
        for part in data:
            for start in range(0, len(part), _PIECE):
                rest: Buffer | memoryview = part[start : start + _PIECE]
                while rest and count < most and not inflate.eof:
                    count += len(inflate.decompress(rest, _PIECE))
                    rest = inflate.unconsumed_tail
        count += len(inflate.decompress(b"", _PIECE))
    except zlib.error as error:
        raise Damaged(str(error)) from error
    if count < expected:
        raise Damaged(f"{count:,} bytes of rows are there of {expected:,}")
    if not (is_sound or inflate.eof):
        raise Damaged("its check sums are wrong")


def _png_bytes(header: bytes) -> int:
    """Return the bytes of all rows, unpacked; each begins with one for its filter."""
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 0)
    # Interlaced, it is seven pictures: left, top, and the steps from pixel to pixel.
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    sizes = (
        (-(-(width - left) // across), -(-(height - top) // down))
        for left, top, across, down in passes
    )
    return sum(lines * (1 + (columns * bits + 7) // 8) for columns, lines in sizes if columns > 0)
