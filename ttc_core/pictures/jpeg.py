"""JPEG: decoded by libjpeg-turbo, whose warnings are heard."""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from ttc_core.pictures.picture import (
    MAX_STRAY_BYTES,
    Buffer,
    Damaged,
    Picture,
    TooManyParts,
    next_part,
    with_pillow,
)

# A progressive JPEG repaints the whole picture for every scan, and a scan can be 33 bytes long:
# without a bound 0.2 MB keep a core busy for ten seconds. Encoders write about ten scans.
MAX_JPEG_SCANS = 100
_MAX_ATTEMPTS = 4
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
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


def open_jpeg(body: Buffer) -> Picture:
    jpeg = _walk_jpeg(body)
    if not jpeg.frame:
        raise Damaged("it has no frame header")
    return Picture(
        *("JPEG", jpeg.width, jpeg.height),
        load=lambda: _load_jpeg(jpeg),
        plain=lambda: _plain_pixels(jpeg),
    )


def _walk_jpeg(body: Buffer) -> _Jpeg:
    """Collect the parts up to where every coefficient has come."""
    jpeg, view, at, count = _Jpeg(), memoryview(body), 2, 0
    exif: list[bytes] = []
    while not jpeg.is_whole and (found := _MARKER.search(body, at)):
        count = next_part(count)
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
    for number in range(content[0]):
        component = content[1 + 2 * number]
        coefficients = jpeg.missing.get(component)
        if coefficients and jpeg.frame not in _PROGRESSIVE:
            jpeg.missing[component] = [0] * 64  # all at once
            continue
        for place in range(first, min(last, 63) + 1):
            if coefficients and coefficients[place] in (99, precision >> 4):
                coefficients[place] = precision & 15


def _plain_pixels(jpeg: _Jpeg) -> NDArray[np.uint8] | None:
    """The pixels of a colour picture, if its decoder says nothing and nothing turns them."""
    if jpeg.info or len(jpeg.missing) != 3 or not jpeg.is_whole:
        return None
    pixels = np.empty((jpeg.height, jpeg.width, 3), np.uint8)
    return None if _decode_jpeg(jpeg.parts, pixels) else pixels


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
            size = jpeg.width, jpeg.height
            end = b"\xff\xd9" if jpeg.is_closed else b""
            image = with_pillow("JPEG", size, *parts, last, end)
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
    is_padding = not stray.strip(b"\0\xff") or len(stray) <= MAX_STRAY_BYTES
    if not is_padding and (is_closed or b"\xff\0" in stray):
        raise Damaged(warning)
    # A file that was made in its full length and written in part ends in zeros. Zeros are codes
    # too: the pixels must be there without them.
    zeros = 0 if stray.strip(b"\0") else len(scan) - len(scan.rstrip(b"\0")) - 2
    return max(len(stray), zeros)
