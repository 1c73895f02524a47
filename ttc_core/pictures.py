"""Image files whose pixels are all there, or `Damaged`. Knows Pillow, simplejpeg and zlib only.

Decoders heal in silence: what a file lost comes out grey, shifted or black. And they refuse whole
pictures for what lies beside the pixels: a comment beyond a limit, a missing end. So each format
is taken apart here, only what makes the pixels and turns them upright goes to the decoder, and
what the decoder knows of their state is asked for.
"""

import io
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import (
    Image,
    WebPImagePlugin,  # noqa: F401  registers WebP: else the first odd bytes load all 40 formats
)

Buffer = bytes | bytearray

# A file may be one part after another, of four bytes each: walking them would keep a core busy.
MAX_PARTS = 50_000
# A progressive JPEG repaints the whole picture for every scan, and a scan can be 33 bytes long:
# without a bound 0.2 MB keep a core busy for ten seconds. Encoders write about ten scans.
MAX_JPEG_SCANS = 100
# Webcams leave a few bytes between the last pixel and the end marker; more is picture, shifted.
_MAX_STRAY_BYTES = 8
_MAX_ATTEMPTS = 4

_PNG, _PNG_TEXT = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt")
_ADAM7 = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # fmt: skip
_PNG_ORIENTATION = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_PIECE = 1 << 16
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


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
    """

    format: str
    width: int
    height: int
    load: Callable[[], Image.Image]
    bytes_per_pixel: int = 12  # as decoded, in RGB and turned, at four bytes each


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
        ("JPEG", body.startswith(b"\xff\xd8\xff"), _open_jpeg),
        ("PNG", body.startswith(_PNG), _open_png),
        ("GIF", body.startswith((b"GIF87a", b"GIF89a")), _open_gif),
        ("WEBP", body.startswith(b"RIFF") and body[8:12] == b"WEBP", _open_webp),
        ("BMP", body.startswith(b"BM"), _open_bmp),
    ):
        if name in formats and is_one:
            try:
                return read(body)
            except (IndexError, struct.error):
                raise Damaged("its header is cut short") from None
    image = Image.open(io.BytesIO(body), formats=[name for name in formats if name == "TIFF"])
    return Picture(image.format or "", image.width, image.height, lambda: _loaded(image))


def _next_part(count: int) -> int:
    if count == MAX_PARTS:
        raise TooManyParts(f"it has more than {MAX_PARTS:,} parts")
    return count + 1


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    return image


def _pillow(name: str, *parts: Buffer | memoryview) -> Image.Image:
    return _loaded(Image.open(io.BytesIO(b"".join(parts)), formats=(name,)))


# JPEG

_SOI, _EOI, _SOS, _APP0, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _PROGRESSIVE = frozenset({0xC0, 0xC1, 0xC9}), frozenset({0xC2, 0xCA})
_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD})  # Huffman, arithmetic, quantisation, restarts
_WITHOUT_LENGTH = frozenset({0x01, _SOI, *range(0xD0, 0xD8)})
_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_ODD_SAMPLING = "Could not determine subsampling"
_JFIF = b"\xff\xe0\x00\x10JFIF\0\1\1\0\0\1\0\1\0\0"


@dataclass
class _Jpeg:
    """What a walk over the markers found: the parts that make the pixels, and no others."""

    parts: list[bytes | memoryview] = field(default_factory=lambda: [b"\xff\xd8"])
    frame: int = 0
    width: int = 0
    height: int = 0
    # Of each component the bits that are missing of each coefficient; 99: all.
    missing: dict[int, list[int]] = field(default_factory=dict)
    scans: int = 0
    is_closed: bool = False
    info: dict[str, bytes] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        return bool(self.missing) and not any(map(any, self.missing.values()))


def _open_jpeg(body: Buffer) -> Picture:
    jpeg = _walk_jpeg(body)
    if not jpeg.frame:
        raise Damaged("it has no frame header")
    return Picture("JPEG", jpeg.width, jpeg.height, lambda: _load_jpeg(jpeg))


def _walk_jpeg(body: Buffer) -> _Jpeg:
    """Collect the parts up to where every coefficient has come."""
    jpeg, view, at, count = _Jpeg(), memoryview(body), 2, 0
    exif: list[bytes] = []
    while not jpeg.is_whole and (found := _MARKER.search(body, at)):
        count = _next_part(count)
        code, start, at = body[found.start() + 1], found.start(), found.end()
        if code == _EOI or (code == _SOI and jpeg.scans):
            break
        if code in _WITHOUT_LENGTH:
            continue
        end = at + int.from_bytes(body[at : at + 2], "big")
        if not at + 2 <= end <= len(body):
            break
        part, at = bytes(view[start:end]), end
        content = part[4:]
        if code in _FRAMES:
            if jpeg.frame:
                break
            _read_frame(jpeg, code, content)
            jpeg.parts.append(part)
        elif code == _SOS:
            if not jpeg.frame:
                break
            stop = _SCAN_END.search(body, at)
            at = stop.start() if stop else len(body)
            jpeg.is_closed = stop is not None and body[at + 1] == _EOI
            if jpeg.frame in _SEQUENTIAL:  # some write other numbers here, which say nothing
                part = part[:-3] + b"\0\x3f\0"
            jpeg.parts += [part, view[end:at]]
            _read_scan(jpeg, content)
        elif code in _TABLES:
            jpeg.parts.append(part)
        elif code == _APP0 and content.startswith(b"JFIF\0") and len(content) >= 12:
            jpeg.parts.append(_JFIF)
        elif code == _APP14 and content.startswith(b"Adobe") and len(content) >= 12:
            jpeg.parts.append(part[:15] + bytes([min(part[15], 2)]) + part[16:])
        elif code == _APP1 and content.startswith(b"Exif\0\0") and len(exif) < 16:
            exif.append(content[6:] if exif else content)
        elif code == _APP1 and content.startswith(_XMP):
            jpeg.info["xmp"] = content[len(_XMP) :]
    if exif:
        jpeg.info["exif"] = b"".join(exif)
    return jpeg


def _read_frame(jpeg: _Jpeg, code: int, content: bytes) -> None:
    bits, jpeg.height, jpeg.width, components = struct.unpack(">BHHB", content[:6])
    jpeg.frame = code
    if bits != 8 or components not in (1, 3, 4):
        raise Damaged(f"it has {components} components of {bits} bits; known are 1, 3 and 4 of 8")
    jpeg.missing = {content[6 + 3 * number]: [99] * 64 for number in range(components)}


def _read_scan(jpeg: _Jpeg, content: bytes) -> None:
    """Note what has come with this scan."""
    jpeg.scans += 1
    if jpeg.scans > MAX_JPEG_SCANS:
        raise TooManyParts(f"it has more than {MAX_JPEG_SCANS} scans")
    first, last, precision = content[-3:]
    if jpeg.frame not in _PROGRESSIVE:
        first, last, precision = 0, 63, 0
    for number in range(content[0]):
        coefficients = jpeg.missing.get(content[1 + 2 * number])
        for place in range(first, min(last, 63) + 1):
            if coefficients and coefficients[place] in (99, precision >> 4):
                coefficients[place] = precision & 15


def _load_jpeg(jpeg: _Jpeg) -> Image.Image:
    """Decode with the decoder's warnings for errors."""
    if not jpeg.is_whole:
        raise Damaged("not all of its scans are there")
    channels = len(jpeg.missing)
    pixels = np.empty((jpeg.height, jpeg.width, channels), np.uint8)
    *parts, last = jpeg.parts
    for _ in range(_MAX_ATTEMPTS):
        warning = _decode_jpeg([*parts, last], pixels)
        if not warning:
            break
        if _ODD_SAMPLING in warning:  # TurboJPEG knows six ways; Pillow all, but without warnings
            image = _pillow("JPEG", *parts, last, b"\xff\xd9" if jpeg.is_closed else b"")
            image.info.update(jpeg.info)
            return image
        # It tells its first warning alone: once the bytes are off, whether there is another.
        last = last[: -_bytes_beside_the_pixels(warning, bytes(last), jpeg.is_closed)]
    else:
        raise Damaged(warning)
    # CMYK is stored inverted: Adobe's way has become everybody's.
    mode, raw = {1: ("L", "L"), 3: ("RGB", "RGB"), 4: ("CMYK", "CMYK;I")}[channels]
    image = Image.frombytes(mode, (jpeg.width, jpeg.height), pixels, "raw", raw)
    image.info.update(jpeg.info)
    return image


def _decode_jpeg(parts: Sequence[bytes | memoryview], pixels: NDArray[np.uint8]) -> str:
    """Fill `pixels` and return the decoder's first warning or its error; empty for none."""
    space = {1: "GRAY", 3: "RGB", 4: "CMYK"}[pixels.shape[2]]
    try:
        simplejpeg.decode_jpeg(b"".join([*parts, b"\xff\xd9"]), space, buffer=pixels)
    except ValueError as error:
        return str(error) or "unknown"
    return ""


def _bytes_beside_the_pixels(warning: str, scan: bytes, is_closed: bool) -> int:
    """Return how many bytes at the last scan's end are not of the picture, at least 1.

    If the warning is of bytes behind the last pixel, either they never were of the picture, or
    others were lost and these are its end, shifted.

    Raises:
        Damaged: it is another warning, or they are picture.
    """
    left = re.search(r"(\d+) extraneous bytes before marker 0xd9", warning)
    if left is None:
        raise Damaged(warning)
    stray = scan[-int(left[1]) :]
    is_padding = not stray.strip(b"\0\xff") or len(stray) <= _MAX_STRAY_BYTES
    if not is_padding and (is_closed or b"\xff\0" in stray):
        raise Damaged(warning)
    # A file that was made in its full length and written in part ends in zeros. Zeros are codes
    # too: the pixels must be there without them.
    zeros = 0 if stray.strip(b"\0") else len(scan) - len(scan.rstrip(b"\0")) - 2
    return max(len(stray), zeros)


# PNG


def _open_png(body: Buffer) -> Picture:
    width, height = struct.unpack(">II", body[16:24])
    if body[12:16] != b"IHDR":
        raise Damaged("it does not begin with its header")
    return Picture("PNG", width, height, lambda: _load_png(body))


def _load_png(body: Buffer) -> Image.Image:
    view, at, count = memoryview(body), 8, 0
    parts: list[Buffer | memoryview] = []
    beside: list[Buffer | memoryview] = []  # what may say how to turn the picture
    data: list[memoryview] = []
    is_sound = True
    while at + 8 <= len(view):
        count = _next_part(count)
        length, name = struct.unpack(">I4s", view[at : at + 8])
        content, chunk = view[at + 8 : at + 8 + length], view[at : at + 12 + length]
        if name == b"IDAT":
            data.append(content)
            if len(chunk) == length + 12:
                is_sound &= zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        elif name in (b"IHDR", b"PLTE", b"tRNS") and not data:
            parts.append(chunk)
        elif name == b"eXIf" or (
            name in _PNG_TEXT and bytes(content[:22]).startswith(_PNG_ORIENTATION)
        ):
            beside = [*beside[:4], chunk]
        elif name == b"IEND":
            break
        at += 12 + length
    head = struct.pack(">I4s", sum(map(len, data)), b"IDAT")
    end: list[Buffer | memoryview] = [head, *data, bytes(8), b"IEND", bytes(4)]
    try:
        image = Image.open(io.BytesIO(b"".join([_PNG, *parts, *beside, *end])), formats=("PNG",))
    except Exception:  # beyond a limit, or nonsense: then it stays as it lies
        image = Image.open(io.BytesIO(b"".join([_PNG, *parts, *end])), formats=("PNG",))
    image.load()
    # Rows that never came are left at 0, and the decoder does not look behind the last one, where
    # it would see that bytes before were others. Interlaced, the odd ones come last.
    is_interlaced = body[28] and image.height > 1
    last = image.height // 2 * 2 - 1 if is_interlaced else image.height - 1
    is_blank = not image.crop((0, last, image.width, last + 1)).getbbox(alpha_only=False)
    if is_blank or not is_sound:
        _check_rows(data, _png_bytes(bytes(view[16:29])), is_sound)
    return image


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


# GIF


def _open_gif(body: Buffer) -> Picture:
    view = memoryview(body)
    width, height, flags = struct.unpack("<HHB", view[6:11])
    head = 13 + _palette_bytes(flags)
    at, control, count = head, b"", 0
    while at < len(body) and body[at] != 0x3B:
        count = _next_part(count)
        if body[at] == 0x21:
            end = _after_blocks(body, at + 2)
            if body[at + 1] == 0xF9:
                control = bytes(body[at:end])
            at = end
        elif body[at] == 0x2C:
            left, top, right, bottom, flags = struct.unpack("<HHHHB", body[at + 1 : at + 10])
            right, bottom = left + right, top + bottom
            end = _after_blocks(body, at + 11 + _palette_bytes(flags))
            is_interlaced = flags & 0x40 and bottom - top > 1  # it then ends with the odd rows
            last = top + (bottom - top) // 2 * 2 - 1 if is_interlaced else bottom - 1
            load = partial(
                _load_gif, view[:head], control, view[at:end], last_pixel=(right - 1, last)
            )
            # Pillow makes room for a frame that is larger than its screen.
            return Picture("GIF", max(width, right), max(height, bottom), load)
        else:
            at += 1  # readers pass over odd bytes between blocks
    raise Damaged("it has no frame")


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(body: Buffer, at: int) -> int:
    """Return where a chain of blocks ends; each says its length, the last is empty."""
    while at < len(body) and body[at]:
        at += 1 + body[at]
    return at + 1


def _load_gif(
    head: memoryview, control: bytes, frame: memoryview, *, last_pixel: tuple[int, int]
) -> Image.Image:
    image = _pillow("GIF", head, control, frame, b";")
    # The decoder does not tell when the codes end early. But it fills a frame beforehand, with
    # its transparent colour: a last pixel that takes on any such was never decoded.
    filled = image.info.get("transparency", 0)
    if image.getpixel(last_pixel) == filled:
        other = (filled + 1) % 256
        probe = _pillow("GIF", head, bytes([0x21, 0xF9, 4, 1, 0, 0, other, 0]), frame, b";")
        if probe.getpixel(last_pixel) == other:
            raise Damaged("its codes end before its last pixel")
    return image


# WebP

_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ANMF")
_WEBP_PARTS = (*_WEBP_PIXELS, b"VP8X", b"ANIM", b"ALPH", b"EXIF", b"XMP ")


def _open_webp(body: Buffer) -> Picture:
    view, at, count = memoryview(body), 12, 0
    parts: list[Buffer | memoryview] = []
    size = (0, 0)
    pixels, lost, coded = view[:0], 0, view[:0]
    while at + 8 <= len(view):
        count = _next_part(count)
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
    if lost > _MAX_STRAY_BYTES:
        raise Damaged(f"{lost:,} of its bytes are missing")
    # One colour all over is a zero for 40 blocks of 16 x 16 pixels, at most.
    zeros = 64 + size[0] * size[1] // (16 * 256)
    if bytes(zeros) in bytes(coded):
        raise Damaged(f"more than {zeros:,} zeros lie where pixels were")
    return _pillow("WEBP", b"RIFF", struct.pack("<I4s", 4 + sum(map(len, parts)), b"WEBP"), *parts)


# BMP


def _open_bmp(body: Buffer) -> Picture:
    image = Image.open(io.BytesIO(body[:4096]), formats=("BMP",))  # the palette included
    return Picture("BMP", image.width, image.height, lambda: _pillow("BMP", body))
