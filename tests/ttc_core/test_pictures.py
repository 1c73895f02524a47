"""A file is judged by its pixels: all there, and it is read; some lost, and it is `Damaged`."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from ttc_core.corruptions.files import corrupt_path
from ttc_core.datasets.files import ImageFiles
from ttc_core.datasets.stream import DataError
from ttc_core.geometry import Geometry, to_rgb
from ttc_core.pictures import MAX_PARTS, Damaged, TooManyParts, open_picture
from ttc_core.pictures.bmp import MAX_RUN_BYTES

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
RANDOM = np.random.default_rng(0)
BLOCKS = RANDOM.integers(1, 256, (30, 40, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
SCENE = Image.fromarray(BLOCKS)
SCRAP = RANDOM.bytes(1500)


def write(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def read(body):
    """As `load` has it, which `plain` has to the bit, where it has pixels."""
    picture = open_picture(body, FORMATS)
    upright, plain = np.asarray(to_rgb(picture.load())), picture.plain()
    assert plain is None or np.array_equal(plain, upright)
    return upright


def pillow(body):
    return np.asarray(to_rgb(Image.open(io.BytesIO(body))))


JPEGS = {
    "baseline": write(SCENE, "JPEG"),
    "full colour": write(SCENE, "JPEG", subsampling=0, optimize=True, quality=95),
    "progressive": write(SCENE, "JPEG", progressive=True),
    "restarts": write(SCENE, "JPEG", restart_marker_rows=1),
    "progressive restarts": write(SCENE, "JPEG", progressive=True, restart_marker_blocks=7),
    "grey": write(SCENE.convert("L"), "JPEG"),
    "cmyk": write(SCENE.convert("CMYK"), "JPEG"),
    "mpo": write(SCENE, "MPO", save_all=True, append_images=[SCENE.rotate(90)]),
}
ALONE = [name for name in JPEGS if name != "mpo"]  # one picture in the file
WITHOUT_END = JPEGS["baseline"][:-2]
# What may come for the end-of-image marker, or before it.
ENDS = {
    "nothing": b"",
    "two zeros": b"\0\0",
    "a sector of zeros": bytes(5000),
    "erased flash": b"\xff" * 5000 + b"\xff\xd9",
    "a recorder's trailer": b"dhav\1\2\3\4",
    "a trailer before the end": b"dhav\1\2\3\4\xff\xd9",
    "text": b"recorded by a camera " * 20,
    "the next picture": b"\xff\xd8\xff\xdb\0\4\0\0",
    "random bytes": b"\xff\xd9" + SCRAP,
}


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_decodes_as_pillow_has_it(name):
    """Bit for bit, whatever its kind: accuracy is compared to the last image."""
    assert np.array_equal(read(JPEGS[name]), pillow(JPEGS[name]))


def test_pixels_are_plain_where_nothing_turns_or_converts_them():
    """A whole JPEG in colour, and none that is grey, turned or damaged."""
    turned = Image.Exif()
    turned[0x0112] = 6
    bodies = [
        *(JPEGS["baseline"], JPEGS["progressive"], JPEGS["grey"], JPEGS["cmyk"]),
        *(write(SCENE, "JPEG", exif=turned), JPEGS["baseline"][:-900] + b"\xff\xd9"),
    ]
    plain = [open_picture(body, FORMATS).plain() is not None for body in bodies]
    assert plain == [True, True, False, False, False, False]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(1, 1), (17, 5), (64, 33)])
def test_a_jpeg_of_any_sampling_decodes_as_pillow_has_it(mode, progressive, subsampling, size):
    """Also where the colours of CMYK are sampled in ways that TurboJPEG does not know."""
    picture = SCENE.resize(size).convert(mode)
    sampling = {} if mode == "L" else {"subsampling": subsampling}
    body = write(picture, "JPEG", progressive=progressive, **sampling)
    assert np.array_equal(read(body), pillow(body))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", ALONE)
def test_a_jpeg_is_whole_whatever_stands_at_its_end(name, end):
    """Cameras and recorders cut or pad the end; every pixel is there."""
    assert np.array_equal(read(JPEGS[name][:-2] + ENDS[end]), pillow(JPEGS[name]))


BESIDE = {
    "a picture in a segment": b"\xff\xe5" + struct.pack(">H", 9002) + JPEGS["baseline"][:9000],
    "markers in a comment": b"\xff\xfe\0\x0a\xff\xd8\xff\xd9\xff\xda\xff\xc0",
    "fill bytes": b"\xff" * 300,
    "nonsense for exif": b"\xff\xe1\0\x0eExif\0\0junk!!",
    "nonsense for a profile": b"\xff\xe2\0\x12ICC_PROFILE\0\x09\x01xx",
    "another major version": b"\xff\xe0\0\x10JFIF\0\x09\1\0\0\1\0\1\0\0",
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_jpeg_is_whole_whatever_stands_beside_its_pixels(name):
    """Markers in a segment are none; metadata need not make sense."""
    for body in (JPEGS["baseline"], JPEGS["progressive"]):
        assert np.array_equal(read(body[:2] + BESIDE[name] + body[2:]), pillow(body))


def losses(body):
    """A picture that lost data in its middle, in the ways in which files do."""
    half = len(body) // 2
    head, tail = body[:half], body[half + 1500 :]
    return {
        "cut": head,
        "cut and closed": head + b"\xff\xd9",
        "a piece lost": head + tail,
        "a piece lost, and the end": head + tail[:-2],
        "a piece of zeros": head + bytes(1500) + tail,
        "a piece of ones": head + b"\xff" * 1500 + tail,
        "a piece of another file": head + SCRAP + tail,
        "a piece twice": head + body[half - 1500 :],
        "the rest zeros": head + bytes(len(tail)),
        "bytes too many": head + b"recorder" * 50 + body[half:],
        "its last bytes lost": body[:-120] + b"\xff\xd9",
    }


@pytest.mark.parametrize("loss", losses(b""))
@pytest.mark.parametrize("name", ALONE)
def test_a_jpeg_that_lost_pixels_is_damaged(name, loss):
    """The decoder would paint them grey or shift them, and say nothing."""
    with pytest.raises(Damaged):
        read(losses(JPEGS[name])[loss])


def test_a_progressive_jpeg_without_its_last_scans_is_damaged():
    """It decodes without a warning, coarse or without colour."""
    body = JPEGS["progressive"]
    at, scans = 0, []
    while (at := body.find(b"\xff\xda", at + 1)) > 0:
        scans.append(at)
    for start in scans[1:]:
        with pytest.raises(Damaged, match="scans"):
            read(body[: body.rindex(b"\xff\xc4", 0, start)] + b"\xff\xd9")


def bmp_of_runs(runs):
    """A BMP of 40 x 30 pixels and 256 greys: a length and a grey for each run of equal ones."""
    greys = b"".join(bytes([grey] * 3 + [0]) for grey in range(256))
    info = struct.pack("<IiiHHIIiiII", 40, 40, 30, 1, 8, 1, len(runs), 0, 0, 256, 0)
    start = 14 + len(info) + len(greys)
    head = struct.pack("<IHHI", start + len(runs), 0, 0, start)
    return b"BM" + head + info + greys + runs


def test_a_file_of_countless_parts_is_refused_at_once():
    """Segments, chunks and blocks of no content cost a walker most, and runs of two bytes."""
    png, gif = write(SCENE, "PNG"), write(SCENE, "GIF")
    whole = bmp_of_runs(b"\x28\7\0\0" * 30)
    assert (read(whole) == 7).all()
    for body in (
        b"\xff\xd8" + b"\xff\xe5\0\2" * (MAX_PARTS + 1),
        png[:33] + (bytes(4) + b"tIME" + bytes(4)) * (MAX_PARTS + 1) + png[33:],
        gif[:13] + b"\x21\xfe\0" * (MAX_PARTS + 1),
        gif[:13] + b"\x21\xfe" + b"\1c" * (MAX_PARTS + 1) + b"\0" + gif[13:],
        b"RIFF\0\0\0\0WEBP" + b"junk\0\0\0\0" * (MAX_PARTS + 1),
        bmp_of_runs(b"\0\2\0\0" * (MAX_RUN_BYTES // 4) + b"\x28\7\0\0" * 30),
    ):
        with pytest.raises((TooManyParts, Damaged)):
            read(body)


def test_a_script_cannot_have_damage_healed(monkeypatch):
    """Many set this switch of Pillow's at their top: then what was lost would be grey."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    body = write(SCENE, "BMP")
    with pytest.raises((Damaged, OSError, ValueError)):
        read(body[: len(body) // 2])


def webp_chunk(name, content):
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def two_sizes():
    """Files that state a small size, and then have pixels of a large one."""
    small = struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    body = write(SCENE, "PNG")
    yield "png", body[:8] + chunk(b"IHDR", small) + body[8:]
    body = JPEGS["baseline"]
    at = body.index(b"\xff\xc0")
    frame = body[at : at + 2 + int.from_bytes(body[at + 2 : at + 4], "big")]
    yield "jpeg", body[:at] + frame[:5] + b"\0\2\0\2" + frame[9:] + body[at:]
    yield "gif", b"GIF89a\2\0\2\0" + write(SCENE, "GIF")[10:]
    canvas = webp_chunk(b"VP8X", bytes(4) + b"\1\0\0\1\0\0")
    pixels = write(SCENE, "WEBP", lossless=True)[12:]
    for name, chunks in (("webp", canvas + pixels), ("webp twice", canvas * 2 + pixels)):
        yield name, b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


@pytest.mark.parametrize("name", ["png", "jpeg", "gif", "webp", "webp twice"])
def test_a_file_has_the_size_that_was_read_or_is_damaged(name):
    """Limits and memory are held against that: a larger one in its place would pass them."""
    picture = open_picture(dict(two_sizes())[name], FORMATS)
    try:
        assert picture.load().size == (picture.width, picture.height)
    except (Damaged, OSError):
        assert name != "gif"  # its frame may be larger than its screen, and that was read


def test_damage_in_a_folder_of_images_is_told_with_the_file(tmp_path):
    """A data set is held to the server's rule: no accuracy is measured on grey halves."""
    damaged, whole = tmp_path / "0" / "half.jpg", tmp_path / "1" / "end.jpg"
    for path, body in (
        (damaged, losses(JPEGS["baseline"])["cut and closed"]),
        (whole, WITHOUT_END),
    ):
        path.parent.mkdir()
        path.write_bytes(body)
    files = ImageFiles([whole, damaged].__getitem__, Geometry(32))
    assert files.read(np.array([0])).shape == (1, 32, 32, 3)
    with pytest.raises(DataError, match=r"half\.jpg cannot be read as an image"):
        files.read(np.arange(2))
    with pytest.raises(ValueError, match=r"half\.jpg cannot be read"):
        corrupt_path(tmp_path, tmp_path.with_name("out"), "fog", 3, seed=0)


# PNG


def chunk(name, content, *, checksum=None):
    proved = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", proved)


def png(rows, *more, size=(20, 12), depth=8, colour=2, interlace=0, packed=zlib.compress):
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlace)
    pieces = [chunk(b"IHDR", header), *more, chunk(b"IDAT", packed(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


ROWS = b"".join(b"\0" + RANDOM.integers(1, 256, 60, dtype=np.uint8).tobytes() for _ in range(12))


@pytest.mark.parametrize(
    "beside",
    [
        pytest.param(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3 << 20))), id="text bomb"),
        pytest.param(
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(3 << 20))),
            id="xmp bomb",
        ),
        pytest.param(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(9 << 20))), id="profile bomb"),
        pytest.param(chunk(b"iCCP", b"x\0\7junk"), id="profile of nonsense"),
        pytest.param(chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"), id="exif of nonsense"),
        pytest.param(chunk(b"gAMA", b"1234", checksum=7), id="wrong checksum beside"),
        pytest.param(chunk(b"acTL", b""), id="animation of nothing"),
    ],
)
def test_a_png_is_whole_whatever_stands_beside_its_pixels(beside):
    """Metadata beyond a limit of the library, or broken, takes no pixel away."""
    expected = read(png(ROWS))
    assert np.array_equal(read(png(ROWS, beside)), expected)
    assert np.array_equal(read(png(ROWS)[:-12] + beside + chunk(b"IEND", b"")), expected)


EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
TURNED = {
    "Raw profile type exif": b"\nexif\n      32\n" + EXIF.hex().encode() + b"\n",
    "XML:com.adobe.xmp": b'<x tiff:Orientation="6"/>',
}


@pytest.mark.parametrize("behind", [b"", b"\n" * (1 << 20), b"00" * (1 << 19)])
@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iTXt, packed"])
@pytest.mark.parametrize("key", TURNED)
def test_what_turns_a_png_is_read_from_the_beginning_of_a_text(key, kind, behind):
    """A megabyte of it would take 80 ms for a picture of one pixel."""
    text = TURNED[key] + behind
    packed = text if kind in ("tEXt", "iTXt") else zlib.compress(text)
    head = {"tEXt": b"", "zTXt": b"\0", "iTXt": b"\0\0\0\0", "iTXt, packed": b"\1\0en\0\0"}[kind]
    beside = chunk(kind[:4].encode(), key.encode() + b"\0" + head + packed)
    picture = open_picture(png(ROWS, *[beside] * 9), FORMATS).load()
    assert sum(len(value) for value in picture.info.values() if isinstance(value, str)) <= 160_000
    assert to_rgb(picture).size == (12, 20)


def test_a_png_is_whole_without_its_end_or_a_chunks_checksum():
    """Of the data, zlib's own checksum speaks; where that is cut off, the count of its rows."""
    body = png(ROWS)
    for whole in (body[:-12], body[:-3], body[:-16], body[:-20], body + SCRAP):
        assert np.array_equal(read(whole), read(body))
    assert np.array_equal(read(body[:-16] + b"\0\0\0\0" + body[-12:]), read(body))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(png(ROWS[: len(ROWS) // 2]), id="half its rows"),
        pytest.param(png(ROWS[:-1]), id="a byte"),
        pytest.param(png(b""), id="all"),
        pytest.param(png(bytes(7), size=(8, 8), depth=1, colour=0), id="a black row"),
        pytest.param(png(ROWS[:200], interlace=1), id="interlaced rows"),
        pytest.param(png(ROWS[:25], size=(64, 1), interlace=1), id="all passes but one, of a row"),
        pytest.param(png(b"\x09" + ROWS[1:]), id="a filter"),
        pytest.param(
            png(ROWS, packed=lambda rows: zlib.compress(rows, 0)[:99] + b"x" * 200), id="data"
        ),
        pytest.param(png(ROWS)[:200], id="its second half"),
        pytest.param(png(ROWS)[:200] + png(ROWS)[260:], id="a piece"),
    ],
)
def test_a_png_that_lost_pixels_is_damaged(body):
    """Also where the stream of its rows ends early in good order: those missing would be black."""
    with pytest.raises((Damaged, OSError, SyntaxError)):
        read(body)


@pytest.mark.parametrize("lost", [60, 300, 1000])
def test_a_picture_whose_last_bytes_were_never_written_is_damaged(lost):
    """Room set aside and not filled is 0; a decoder that is done with its rows looks no further."""
    noisy = Image.fromarray(RANDOM.integers(90, 99, (64, 80, 3), dtype=np.uint8))
    body = write(noisy, "PNG")
    with pytest.raises(Damaged):
        read(body[: -12 - lost] + bytes(lost) + body[-12:])
    body = write(noisy, "WEBP", lossless=True)
    with pytest.raises(Damaged, match="zeros"):
        read(body[: -lost - 1500] + bytes(lost + 1500))


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_a_webp_of_one_colour_is_whole(options):
    """An encoder ends it in zeros."""
    assert not read(write(Image.new("RGB", (3000, 3000)), "WEBP", **options)).any()


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 5), (8, 8), (9, 7)])
@pytest.mark.parametrize(("depth", "colour"), [(1, 0), (16, 2), (8, 6)])
def test_a_black_png_is_whole(size, depth, colour, interlace):
    """Black is a picture too, if all of its rows are there."""
    row = (size[0] * depth * {0: 1, 2: 3, 6: 4}[colour] + 7) // 8 + 1
    rows = bytes(row * size[1] * (8 if interlace else 1))  # interlaced, more than needed
    assert read(png(rows, size=size, depth=depth, colour=colour, interlace=interlace)).any() == (
        colour == 6  # transparent: white
    )


# GIF, WebP, BMP


def gif(codes, *, size=10, interlaced=False):
    """A GIF of 256 greys and codes of 9 bits each."""
    packed = sum(code << 9 * place for place, code in enumerate(codes))
    data = packed.to_bytes((9 * len(codes) + 7) // 8, "little")
    palette = b"".join(bytes([grey] * 3) for grey in range(256))
    frame = struct.pack("<HHHHB", 0, 0, size, size, 0x40 if interlaced else 0)
    screen = struct.pack("<HHBBB", size, size, 0xF7, 0, 0)
    blocks = bytes([8, len(data)]) + data + b"\0;"
    return b"GIF89a" + screen + palette + b"\x2c" + frame + blocks


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("grey", [0, 1, 254, 255])
def test_a_gif_whose_codes_end_early_is_damaged(grey, interlaced):
    """The decoder is content, and the rest of the frame has the background's colour."""
    whole = gif([256] + [grey] * 100 + [257], interlaced=interlaced)
    assert (read(whole) == grey).all()
    assert (read(whole[:-1]) == grey).all()
    for count in (0, 50, 99):
        with pytest.raises((Damaged, OSError)):
            read(gif([256] + [grey] * count + [257], interlaced=interlaced))


def test_a_gif_of_endless_comments_is_read():
    """What stands before the frame is passed over."""
    body = gif([256] + [7] * 100 + [257])
    at = body.index(b"\x2c", 780)
    comment = b"\x21\xfe" + (b"\xff" + b"c" * 255) * 20_000 + b"\0"
    assert (read(body[:at] + comment + body[at:]) == 7).all()


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"icc_profile": b"junk" * 99}])
def test_a_webp_is_judged_by_its_data_not_by_its_size_field(options):
    """A wrong field, or bytes behind, take no pixel away; a cut does, whatever the field says."""
    body = write(SCENE, "WEBP", **options)
    for size in (0, 12, len(body) - 10, 2**31):
        stated = body[:4] + struct.pack("<I", size) + body[8:]
        assert np.array_equal(read(stated + b"junk"), pillow(body))
    half = body[: len(body) // 2]
    for cut in (half, half[:4] + struct.pack("<I", len(half) - 8) + half[8:]):
        with pytest.raises(Damaged, match="missing"):
            read(cut)


NOISE = Image.fromarray(RANDOM.normal(127, 40, (240, 320, 3)).clip(0, 255).astype(np.uint8))
CODED = {
    "jpeg": write(NOISE, "JPEG", subsampling=0, quality=95),
    "png": write(NOISE.convert("L"), "PNG"),
    "transparent png": write(NOISE.convert("RGBA"), "PNG"),
    "gif": write(NOISE.convert("L"), "GIF"),
    "webp": write(NOISE, "WEBP"),
    "lossless webp": write(NOISE, "WEBP", lossless=True),
}


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("name", CODED)
def test_a_file_that_was_written_in_part_and_is_zeros_from_there_is_damaged(name, share):
    """Copies and recorders make a file in its full length first; zeros are codes of pixels too."""
    body = CODED[name]
    written = int(share * len(body))
    with pytest.raises((Damaged, OSError, zlib.error)):
        read(body[:written] + bytes(len(body) - written))


@pytest.mark.parametrize("name", CODED)
def test_a_file_with_zeros_for_a_block_or_without_it_is_damaged(name):
    """A disk's block that came back empty, and one that is not there."""
    body = CODED[name]
    at = len(body) // 2
    for block in (bytes(4096), b""):
        with pytest.raises((Damaged, OSError, zlib.error)):
            read(body[:at] + block + body[at + 4096 :])
    with pytest.raises((Damaged, OSError, zlib.error)):
        read(body[:at] + body[at + 300 :])


@pytest.mark.parametrize("colour", ["black", "white", "grey"])
def test_a_picture_of_one_colour_is_whole_though_its_data_are_zeros(colour):
    """The encoder writes hardly anything else; metadata may be zeros too, and cut short."""
    flat = Image.new("RGB", (2000, 2000), colour)
    for options in ({}, {"lossless": True}, {"exif": b"Exif\0\0" + bytes(5000)}):
        body = write(flat, "WEBP", **options)
        assert np.array_equal(read(body), pillow(body))
    assert np.array_equal(read(body[:-3000]), pillow(body))


def test_a_bmp_is_judged_by_its_rows_not_by_its_size_field():
    """Writers leave these fields at 0; a row that is missing is damage."""
    body = write(SCENE, "BMP")
    for field in (2, 34):
        stated = body[:field] + bytes(4) + body[field + 4 :]
        assert np.array_equal(read(stated + b"junk"), BLOCKS)
    for cut in (body[:-1], body[:-2000], body[: len(body) // 2]):
        with pytest.raises(OSError, match="truncated"):
            read(cut)
