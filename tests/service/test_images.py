"""Bytes become an array within the limits, or a Refused with a sentence; never anything else."""

import io
import resource
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import Refused, TooLarge, UnknownType, Unreadable
from service.images import FORMATS, MEDIA_TYPES, check_media_type, decode, read_header
from ttc_core.geometry import Geometry
from ttc_core.pictures import MAX_JPEG_SCANS, jpeg

NOISE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
RED, BLUE = Image.new("RGB", (9, 6), "red"), Image.new("RGB", (9, 6), "blue")


def read(body, size=None, crop=None, max_pixels=4096 * 4096, max_side=8192):
    geometry = Geometry(size, crop)
    picture = read_header(body, geometry, max_pixels=max_pixels, max_side=max_side)
    return decode(picture, geometry)[0]


def write(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def png_chunk(name, content):
    crc = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + crc


def one_bit_png(width, height, compressed_rows):
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", compressed_rows)
        + png_chunk(b"IEND", b"")
    )


def peak_memory_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


PICTURE = Image.fromarray(NOISE)
VALID = {
    "png": write(PICTURE, "PNG"),
    "png-palette": write(PICTURE.quantize(16), "PNG", transparency=0),
    "png-animated": write(PICTURE, "PNG", save_all=True, append_images=[PICTURE.rotate(180)]),
    "jpeg": write(PICTURE, "JPEG"),
    "jpeg-progressive": write(PICTURE, "JPEG", progressive=True),
    "jpeg-exif": write(
        PICTURE,
        "JPEG",
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    ),
    "jpeg-cmyk": write(PICTURE.convert("CMYK"), "JPEG"),
    "mpo": write(PICTURE, "MPO", save_all=True, append_images=[PICTURE.rotate(180)]),
    "webp": write(PICTURE, "WEBP"),
    "webp-lossless": write(PICTURE, "WEBP", lossless=True),
    "webp-animated": write(PICTURE, "WEBP", save_all=True, append_images=[PICTURE.rotate(180)]),
    "gif": write(PICTURE, "GIF"),
    "gif-animated": write(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(180)]),
    "bmp": write(PICTURE, "BMP"),
    "bmp-palette": write(PICTURE.quantize(16), "BMP"),
}
REFUSED_FORMATS = {
    "tiff": write(PICTURE, "TIFF"),
    "tiff-deflate": write(PICTURE, "TIFF", compression="tiff_adobe_deflate"),
    "ppm": write(PICTURE, "PPM"),
    "ico": write(PICTURE, "ICO"),
    "pdf": write(PICTURE, "PDF"),
}


@pytest.mark.parametrize("name", VALID)
def test_every_accepted_format_is_read(name):
    """Any accepted file gives the right shape, type and layout, and nearly the right colours."""
    upright = np.rot90(NOISE, -1) if name == "jpeg-exif" else NOISE
    array = read(VALID[name])
    assert (array.shape, array.dtype) == (upright.shape, np.uint8)
    assert array.flags.c_contiguous
    assert abs(array.mean() - upright.mean()) < 16


@pytest.mark.parametrize("name", ["png", "webp-lossless", "bmp"])
@pytest.mark.parametrize(("size", "crop"), [(None, None), (12, None), (14, 12), (12, 12)])
def test_lossless_pixels_of_the_final_size_are_bit_identical(name, size, crop):
    """What a client brought to the model's size is what the model sees."""
    square = np.ascontiguousarray(NOISE[:, :12])
    file_format, _, lossless = name.partition("-")
    body = write(
        Image.fromarray(square), file_format.upper(), **({lossless: True} if lossless else {})
    )
    assert np.array_equal(read(body, size, crop), square)


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize(("size", "crop", "side"), [(8, None, 8), (10, 8, 8), (32, 24, 24)])
def test_the_answer_has_the_models_size(name, size, crop, side):
    """Whatever was sent, the array fits into a batch."""
    assert read(VALID[name], size, crop).shape == (side, side, 3)


def test_one_pixel_is_an_image():
    """The smallest image is enlarged like any other."""
    assert np.array_equal(
        read(write(Image.new("RGB", (1, 1), "red"), "PNG"), 4), np.full((4, 4, 3), (255, 0, 0))
    )


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("MPO", {})],
)
def test_an_animation_is_its_first_frame(file_format, options):
    """Also for a camera's JPEG that carries a second picture."""
    body = write(RED, file_format, save_all=True, append_images=[BLUE], **options)
    red, green, blue = read(body).reshape(-1, 3).mean(axis=0)
    assert red > 250
    assert green < 5
    assert blue < 5


def test_an_inverted_cmyk_jpeg_has_its_colours():
    """Adobe stores CMYK inverted; the reader undoes it."""
    body = write(RED.convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in body
    assert np.abs(read(body).astype(int) - (255, 0, 0)).max() < 20


@pytest.mark.parametrize("name", VALID)
def test_truncated_files_are_refused_or_whole(name):
    """Cut anywhere, a file is Unreadable; only what ends after its first frame still reads."""
    whole = read(VALID[name])
    for length in range(1, len(VALID[name]), 7):
        try:
            array = read(VALID[name][:length])
        except Unreadable:
            continue
        assert np.array_equal(array, whole)


def test_half_a_camera_picture_is_refused():
    """No half grey picture is ever classified."""
    scene = np.random.default_rng(1).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    for file_format in ("JPEG", "PNG", "WEBP", "BMP"):
        body = write(Image.fromarray(scene), file_format)
        with pytest.raises(Unreadable):
            read(body[: len(body) // 2])


def test_no_bytes_are_refused():
    """An empty body has its own sentence."""
    with pytest.raises(Unreadable, match=r"empty \(0 bytes\)"):
        read(b"")


# Named, since a PDF's bytes hold the second at which a worker made it.
NO_IMAGES = {"json": b"{}", "svg": b"<svg/>", "zeros": b"\0" * 1000, **REFUSED_FORMATS}


@pytest.mark.parametrize("body", NO_IMAGES.values(), ids=NO_IMAGES)
def test_what_is_no_accepted_image_is_refused_with_what_is(body):
    """Other formats and no formats get one answer: what is accepted."""
    with pytest.raises(Unreadable, match="accepted are JPEG, PNG, WebP, GIF and BMP"):
        read(body)


def test_what_is_wrong_with_a_header_is_told():
    """Not only that it cannot be read."""
    body = bytearray(write(PICTURE, "JPEG"))
    body[body.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(Unreadable, match=r"3 components of 12 bits.*accepted are JPEG"):
        read(bytes(body))


def test_a_huge_header_is_refused_at_once_with_little_memory():
    """30,000 x 30,000 pixels are announced in the header: nothing is decoded."""
    body = one_bit_png(30_000, 30_000, b"")
    before = peak_memory_mb()
    with pytest.raises(TooLarge, match="at most 8,192 pixels along a side"):
        read(body)
    assert peak_memory_mb() - before < 50


def test_a_real_compression_bomb_is_refused_at_once(monkeypatch):
    """A complete 13,000 x 13,000 PNG in 21 kB: Pillow alone would only warn."""
    compressor, row = zlib.compressobj(9), bytes(1 + 13_000 // 8)
    rows = b"".join(compressor.compress(row) for _ in range(13_000)) + compressor.flush()
    body = one_bit_png(13_000, 13_000, rows)
    assert len(body) < 50_000
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("pixels are decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(TooLarge, match="at most 8,192 pixels along a side"):
            read(body)
        with pytest.raises(TooLarge, match=r"169,000,000 pixels; at most 1,000 pixels"):
            read(body, max_pixels=1000, max_side=20_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning made an error is the same refusal
        with pytest.raises(TooLarge):
            read(body)


@pytest.mark.parametrize(
    ("limits", "accepted"),
    [
        ({"max_pixels": 240, "max_side": 20}, True),
        ({"max_pixels": 239, "max_side": 20}, False),
        ({"max_pixels": 240, "max_side": 19}, False),
    ],
)
def test_limits_are_inclusive(limits, accepted):
    """20 x 12 = 240 pixels pass limits of exactly that, and no smaller ones."""
    if accepted:
        assert read(VALID["png"], **limits).shape == (12, 20, 3)
    else:
        with pytest.raises(TooLarge, match=r"20 x 12 .*accepted\.$"):
            read(VALID["png"], **limits)


def test_a_narrow_image_is_refused_before_it_is_enlarged():
    """1 x 8,000 pixels are few, but 256 x 2,048,000 would fill two gigabytes."""
    body = write(Image.new("RGB", (1, 8000)), "PNG")
    assert read(body, 32).shape == (32, 32, 3)
    with pytest.raises(TooLarge, match="524,288,000 pixels"):
        read(body, 256, 224)


def test_the_models_own_size_is_never_too_large():
    """A limit below the model's square binds what is sent, not what the model asks for."""
    assert read(VALID["png"], 64, max_pixels=240).shape == (64, 64, 3)


def test_a_jpeg_of_many_scans_is_refused_at_once(monkeypatch):
    """Each scan of 33 bytes repaints the picture; thousands would hold a core for minutes."""
    body = write(Image.new("RGB", (512, 512)), "JPEG", progressive=True)
    at = body.index(b"\xff\xda")
    scan = body[at : body.index(b"\xff\xc4", at)]
    many = body[:at] + 10_000 * scan + body[at:]
    monkeypatch.setattr(jpeg, "_decode_jpeg", lambda *_: pytest.fail("pixels are decoded"))
    with pytest.raises(TooLarge, match=f"more than {MAX_JPEG_SCANS} scans"):
        read(many)


def test_contradicting_geometry_is_our_mistake_not_the_clients():
    """A crop above the size is a wrong setting and does not come out as a Refused."""
    with pytest.raises(ValueError, match="crop must be"):
        read(VALID["png"], 8, 9)


def array_or_refused(body):
    """Read it for a small model under tight limits; anything else than these two ends fails."""
    try:
        array = read(body, 16, 12, max_pixels=10_000, max_side=1000)
    except Refused:
        return
    assert (array.shape, array.dtype) == ((12, 12, 3), np.uint8)


MAGIC = [
    b"",
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"RIFF\0\0\0\0WEBPVP8X",
    b"BM",
    b"II*\0",
    b"MM\0*",
]
WITH_WARNINGS = pytest.mark.filterwarnings("ignore")  # Pillow warns of odd files, at its own whim


@WITH_WARNINGS
@given(magic=st.sampled_from(MAGIC), rest=st.binary(max_size=300))
def test_any_bytes_are_an_array_or_refused(magic, rest):
    """No bytes bring any other exception, also behind the first bytes of a known format."""
    array_or_refused(magic + rest)


@WITH_WARNINGS
@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    name=st.sampled_from([*VALID, *REFUSED_FORMATS]),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=6),
    keep=st.floats(0, 1) | st.just(1.0),
    repeat=st.integers(1, 3),
)
@example(name="png", edits=[(0.09, b"\0\0\0\0")], keep=1.0, repeat=1)
def test_any_damage_to_a_file_is_an_array_or_refused(name, edits, keep, repeat):
    """Overwritten, cut or repeated: a real file that went wrong never brings another exception."""
    body = bytearray({**VALID, **REFUSED_FORMATS}[name])
    for where, change in edits:
        at = int(where * len(body))
        body[at : at + len(change)] = change
    array_or_refused(bytes(body[: int(keep * len(body))]) * repeat)


@WITH_WARNINGS
@given(
    chunks=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    b"tRNS",
                    b"PLTE",
                    b"iCCP",
                    b"eXIf",
                    b"zTXt",
                    b"iTXt",
                    b"acTL",
                    b"fcTL",
                    b"fdAT",
                    b"gAMA",
                    b"pHYs",
                    b"IHDR",
                ]
            ),
            st.binary(max_size=40),
        ),
        max_size=4,
    ),
    depth=st.sampled_from([1, 2, 4, 8, 16]),
    colour_type=st.sampled_from([0, 2, 3, 4, 6]),
    pixels=st.binary(max_size=200),
)
def test_any_png_chunks_are_an_array_or_refused(chunks, depth, colour_type, pixels):
    """With valid checksums, so that the parsers behind them are reached."""
    header = struct.pack(">IIBBBBB", 6, 5, depth, colour_type, 0, 0, 0)
    pieces = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    array_or_refused(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*piece) for piece in pieces))


def test_too_little_memory_is_too_large(monkeypatch):
    """A picture that does not fit into memory is the request's failure, not the server's end."""

    def no_memory(image):
        raise MemoryError

    monkeypatch.setattr("ttc_core.grain.to_rgb", no_memory)
    with pytest.raises(TooLarge, match="memory"):
        read(VALID["png"])


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/octet-stream",
        "image/jpeg",
        "IMAGE/PNG",
        "image/webp; q=1",
        *MEDIA_TYPES,
    ],
)
def test_media_types_of_the_formats_are_accepted(content_type):
    """In any case, with parameters, and none at all."""
    check_media_type(content_type)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "image/tiff", "image/svg+xml", "image", "json"]
)
def test_other_media_types_are_refused_with_what_is_accepted(content_type):
    """The sentence names what came and what is taken."""
    with pytest.raises(
        UnknownType, match=rf"'{content_type}'.*accepted are image/jpeg".replace("+", r"\+")
    ):
        check_media_type(content_type)


def test_every_format_has_a_media_type():
    """What can be read can also be announced, and the other way round."""
    assert set(MEDIA_TYPES.values()) == set(FORMATS)
