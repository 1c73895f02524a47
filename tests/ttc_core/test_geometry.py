"""The rules of conversion to upright RGB, and of resizing and cropping."""

import io
import math
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from ttc_core.geometry import Geometry, fit, resized_size, to_rgb
from ttc_core.interpolation import INTERPOLATIONS
from ttc_core.pictures import open_picture

ASYMMETRIC = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)

# How a camera that was held so stores an upright scene: the inverse of the turn that EXIF asks for.
STORED = {
    1: lambda scene: scene,
    2: lambda scene: scene[:, ::-1],
    3: lambda scene: scene[::-1, ::-1],
    4: lambda scene: scene[::-1],
    5: lambda scene: scene.swapaxes(0, 1),
    6: lambda scene: np.rot90(scene, 1),
    7: lambda scene: scene[::-1, ::-1].swapaxes(0, 1),
    8: lambda scene: np.rot90(scene, -1),
}


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def through_file(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return Image.open(file)


def png(width, height, depth, colour_type, rows, *chunks):
    """Write a PNG by hand: 16 bits a channel and odd chunks that Pillow cannot save."""

    def chunk(name, content):
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    pieces = [
        chunk(b"IHDR", header),
        *(chunk(name, content) for name, content in chunks),
        chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
        chunk(b"IEND", b""),
    ]
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(pieces)))


def test_rgb_comes_back_as_the_same_object():
    """Nothing to do means nothing is copied."""
    image = Image.fromarray(ASYMMETRIC)
    assert to_rgb(image) is image


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        pytest.param("1", 1, (255, 255, 255), id="one-bit"),
        pytest.param("L", 77, (77, 77, 77), id="grey"),
        pytest.param("LA", (77, 255), (77, 77, 77), id="grey-opaque"),
        pytest.param("LA", (77, 0), (255, 255, 255), id="grey-transparent"),
        pytest.param("RGBA", (9, 8, 7, 255), (9, 8, 7), id="opaque"),
        pytest.param("RGBA", (9, 8, 7, 0), (255, 255, 255), id="transparent-is-white"),
        pytest.param("RGBA", (0, 0, 0, 128), (127, 127, 127), id="half-transparent"),
        pytest.param("RGBX", (9, 8, 7, 0), (9, 8, 7), id="padding-is-not-alpha"),
        pytest.param("CMYK", (0, 255, 255, 0), (255, 0, 0), id="cmyk-red"),
        pytest.param("HSV", (0, 255, 255), (255, 0, 0), id="hsv-red"),
        pytest.param("YCbCr", (128, 128, 128), (128, 128, 128), id="ycbcr-grey"),
        pytest.param("I;16", 65535, (255, 255, 255), id="sixteen-bit-white"),
        pytest.param("I;16", 32768, (128, 128, 128), id="sixteen-bit-middle-does-not-clip"),
        pytest.param("I;16B", 257, (1, 1, 1), id="sixteen-bit-big-endian"),
        pytest.param("I", 65535, (255, 255, 255), id="sixteen-bits-in-thirty-two"),
    ],
)
def test_every_kind_of_pixel_has_its_rgb(mode, colour, expected):
    """The conversion rule of each mode, on one pixel."""
    assert pixels(to_rgb(Image.new(mode, (1, 1), colour))) == [[list(expected)]]


def test_lab_is_converted_by_its_colour_space():
    """White in LAB is white, within the rounding of a conversion in 8 bits."""
    [[white]] = pixels(to_rgb(Image.new("LAB", (1, 1), (255, 128, 128))))
    assert white == pytest.approx([255] * 3, abs=2)


@pytest.mark.parametrize("mode", Image.MODES)
def test_any_mode_of_pillow_is_converted_or_refused_with_a_sentence(mode):
    """No mode raises anything but ValueError, and none but floats and premultiplied grey does."""
    image = Image.new(mode, (2, 3))
    if mode in ("F", "La"):
        with pytest.raises(ValueError, match=r"floating-point|conversion"):
            to_rgb(image)
    else:
        assert to_rgb(image).mode == "RGB"


@pytest.mark.parametrize("value", [-1, 65536])
def test_integers_outside_sixteen_bits_are_refused(value):
    """Nobody said how bright they are; clipping would make up an answer."""
    with pytest.raises(ValueError, match="between 0 and 65535"):
        to_rgb(Image.new("I", (2, 2), value))


def test_all_sixteen_bit_greys_are_scaled_to_the_nearest():
    """Every one of the 65,536 greys is value / 257, to the nearest of the 256."""
    grey = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    converted = np.asarray(to_rgb(through_file(Image.fromarray(grey), "PNG")))
    assert np.array_equal(converted[..., 0], np.rint(grey / 257))
    assert (converted == converted[..., :1]).all()


def test_a_key_colour_of_a_sixteen_bit_grey_is_ignored():
    """The key is counted in 16 bits; applied to 8 bits it would whiten another grey."""
    rows = [struct.pack(">2H", 100, 25700)]
    assert pixels(to_rgb(png(2, 1, 16, 0, rows, (b"tRNS", struct.pack(">H", 100))))) == [
        [[0] * 3, [100] * 3]
    ]


def test_sixteen_bit_colour_keeps_its_high_byte():
    """A 48-bit PNG is read with 8 bits a channel."""
    rows = [struct.pack(">3H", 0xFFFF, 0x80FF, 0x0100)]
    assert pixels(to_rgb(png(1, 1, 16, 2, rows))) == [[[255, 128, 1]]]


@pytest.mark.parametrize(
    ("transparency", "first"),
    [
        pytest.param(None, [10, 20, 30], id="none"),
        pytest.param(0, [255, 255, 255], id="one-index"),
        pytest.param(b"\x00\xff", [255, 255, 255], id="alpha-of-each-colour"),
    ],
)
def test_palettes_give_their_colours(transparency, first):
    """Palette images are looked up; transparent entries are white."""
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    options = {} if transparency is None else {"transparency": transparency}
    assert pixels(to_rgb(through_file(image, "PNG", **options))) == [[first, [40, 50, 60]]]


def test_a_transparent_key_colour_is_white():
    """An RGB or grey PNG may name one colour that is transparent."""
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    assert pixels(to_rgb(through_file(image, "PNG", transparency=(1, 2, 3)))) == [
        [[255] * 3, [4, 5, 6]]
    ]
    grey = Image.fromarray(np.array([[7, 8]], dtype=np.uint8))
    assert pixels(to_rgb(through_file(grey, "PNG", transparency=7))) == [[[255] * 3, [8] * 3]]


@given(alpha=st.integers(0, 255), colour=st.integers(0, 255))
def test_transparency_blends_with_white(alpha, colour):
    """Each channel is the weighted mean of colour and white, to the nearest."""
    [[converted]] = pixels(to_rgb(Image.new("RGBA", (1, 1), (colour, colour, colour, alpha))))
    assert converted == pytest.approx([(colour * alpha + 255 * (255 - alpha)) / 255] * 3, abs=0.51)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_all_orientations_show_the_same_picture(orientation, file_format):
    """However the camera was held, the picture comes out upright, once."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](ASYMMETRIC)))
    options = {"lossless": True} if file_format == "WEBP" else {}
    opened = through_file(stored, file_format, exif=exif, **options)
    assert pixels(to_rgb(opened)) == ASYMMETRIC.tolist()


def test_a_jpeg_is_turned_too():
    """JPEG is lossy, so one bright corner tells where the picture's top left went."""
    scene = np.zeros((16, 32, 3), dtype=np.uint8)
    scene[:8, :8] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored = Image.fromarray(np.ascontiguousarray(STORED[6](scene)))
    upright = np.asarray(to_rgb(through_file(stored, "JPEG", exif=exif)))
    assert upright.shape == scene.shape
    assert upright[:8, :8].min() > 200
    assert upright[8:].max() < 50


def exif_of(tags, order=">", kind=3):
    """An EXIF block that turns by a quarter, in front of so many tags of no use."""
    value = {1: "Bxxx", 3: "Hxx", 4: "I"}[kind]
    first = struct.pack(f"{order}HHI{value}", 0x0112, kind, 1, 6)
    rest = b"".join(struct.pack(f"{order}HHII", 0x9000, 4, 1, 0) for _ in range(tags))
    head = {">": b"MM", "<": b"II"}[order] + struct.pack(f"{order}HI", 42, 8)
    return b"Exif\0\0" + head + struct.pack(f"{order}H", tags + 1) + first + rest


def lines_run(call):
    """How many lines of Python a call takes."""
    count = 0

    def trace(_frame, event, _argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "JPEG"])
def test_an_exif_block_takes_no_more_work_than_a_thousand_tags(file_format):
    """A file may have 65,535 of them, at half a second of Python, for a picture of one pixel."""
    tags = 5000 if file_format == "JPEG" else 65_534  # one segment of it has 65,533 bytes
    options = {"exif": exif_of(tags)}
    if file_format == "WEBP":
        options["lossless"] = True
    file = io.BytesIO()
    Image.fromarray(ASYMMETRIC).save(file, file_format, **options)
    picture = open_picture(file.getvalue(), (file_format,)).load()
    assert lines_run(lambda: to_rgb(picture)) < 3000
    assert to_rgb(picture).size == ASYMMETRIC.shape[:2]  # turned


@pytest.mark.parametrize("before", [0, 150_000, 160_000])
def test_of_a_text_the_beginning_is_read(before):
    """Whoever unpacked it: an EXIF block in hex is no longer, and a search takes time."""
    picture = Image.fromarray(ASYMMETRIC)
    as_it_lies, turned = picture.size, picture.size[::-1]
    picture.info["xmp"] = b" " * before + b'tiff:Orientation="6"'
    assert to_rgb(picture).size == (turned if before < 160_000 else as_it_lies)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4], ids=["byte", "short", "long"])
@pytest.mark.parametrize("cut", [0, 13], ids=["whole", "cut-short"])
def test_an_orientation_is_found_however_it_is_written(order, kind, cut):
    """In either order of bytes, as any whole number, and where the tags behind it are damaged."""
    image = Image.fromarray(ASYMMETRIC)
    block = exif_of(3, order, kind)
    image.info["exif"] = block[: len(block) - cut]
    assert to_rgb(image).size == ASYMMETRIC.shape[:2]


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0rubbish"]
)
def test_damaged_exif_counts_as_none(exif):
    """A picture with a broken EXIF block is shown as it lies, as viewers do."""
    image = Image.fromarray(ASYMMETRIC)
    assert pixels(to_rgb(through_file(image, "PNG", exif=exif))) == ASYMMETRIC.tolist()


@pytest.mark.parametrize(
    ("sent", "size", "crop", "resized", "final"),
    [
        pytest.param((640, 480), None, None, (640, 480), (640, 480), id="as-it-is"),
        pytest.param((640, 480), 32, None, (32, 32), (32, 32), id="exact"),
        pytest.param((640, 480), 256, 224, (341, 256), (224, 224), id="landscape"),
        pytest.param((480, 640), 256, 224, (256, 341), (224, 224), id="portrait"),
        pytest.param((100, 100), 256, 224, (256, 256), (224, 224), id="enlarged-square"),
        pytest.param((256, 300), 256, 224, (256, 300), (224, 224), id="only-cropped"),
        pytest.param((224, 224), 256, 224, (224, 224), (224, 224), id="already-cropped"),
        pytest.param((640, 500), 256, 224, (327, 256), (224, 224), id="width-rounded-down"),
        pytest.param((500, 640), 256, 224, (256, 327), (224, 224), id="height-rounded-down"),
        pytest.param((1, 1), 8, 8, (8, 8), (8, 8), id="one-pixel"),
        pytest.param((1, 40), 8, 4, (8, 320), (4, 4), id="narrow"),
    ],
)
def test_sizes_after_resize_and_crop(sent, size, crop, resized, final):
    """The sizes that torchvision's Resize and CenterCrop give."""
    assert resized_size(*sent, size=size, crop=crop) == resized
    assert fit(Image.new("RGB", sent), size, crop).size == final


@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    crop=st.none() | st.integers(1, 40),
    margin=st.integers(0, 8),
)
def test_fitting_twice_is_fitting_once(width, height, crop, margin):
    """What was brought to size here and sent elsewhere is not resampled there: same pixels."""
    size = 24 if crop is None else crop + margin
    noise = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    once = fit(Image.fromarray(noise), size, crop)
    assert once.size == ((crop or size),) * 2
    assert pixels(fit(once, size, crop)) == pixels(once)


SIZES = ((640, 427), (427, 640), (333, 501), (1001, 77), (97, 64), (225, 224), (30, 20))


@pytest.fixture(scope="module")
def photographs():
    """Two photographs (640 x 427), and parts of them in odd sizes."""
    china, flower = map(Image.fromarray, load_sample_images().images)
    return [china, flower, *(china.resize(size, Image.Resampling.LANCZOS) for size in SIZES)]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("size", "crop"), [(256, 224), (232, 224), (235, 223), (32, 32)])
def test_pixels_are_those_of_torchvisions_transforms(interpolation, size, crop, photographs):
    """Bit for bit, as `weights.transforms()` prepares a photograph, whatever its size and shape."""
    prepared = ImageClassification(
        crop_size=crop,
        resize_size=size,
        interpolation=InterpolationMode(interpolation),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    for photograph in photographs:
        ours = Geometry(size, crop, interpolation).apply(photograph)
        theirs = (prepared(photograph) * 255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(ours, theirs, str(photograph.size))


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("side", "share"), [(224, 0.875), (224, 0.9), (256, 0.95), (299, 1.0)])
def test_pixels_are_those_of_timms_transforms(mode, interpolation, side, share, photographs):
    """Bit for bit, as `create_transform` prepares a photograph for evaluation."""
    timm = pytest.importorskip("timm")
    if mode == "squash":
        share = 1.0
    prepared = timm.data.create_transform(
        (3, side, side),
        interpolation=interpolation,
        crop_pct=share,
        crop_mode=mode,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    size = math.floor(side / share)
    geometry = Geometry(size, None if mode == "squash" else side, interpolation)
    for photograph in photographs:
        theirs = (prepared(photograph) * 255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(geometry.apply(photograph), theirs, str(photograph.size))


@pytest.mark.parametrize(("size", "crop"), [(None, None), (7, None), (9, 7), (7, 7)])
def test_a_picture_of_the_final_size_is_not_touched(size, crop):
    """It passes bit for bit, in fact as the same object."""
    image = Image.fromarray(ASYMMETRIC).crop((0, 0, 7, 7))
    assert fit(image, size, crop) is image


def test_the_crop_is_the_centre():
    """A picture whose shorter side is right is cut, not resampled; odd margins go as torchvision's.

    torchvision rounds half to even: margins of 1.5 pixels start the cut at 2, of 0.5 at 0.
    """
    image = Image.fromarray(ASYMMETRIC)  # 7 x 5
    assert pixels(fit(image, 5, 4)) == ASYMMETRIC[0:4, 2:6].tolist()
    assert pixels(fit(image, 5, 3)) == ASYMMETRIC[1:4, 2:5].tolist()


def test_shrinking_is_antialiased():
    """Every pixel counts: stripes one pixel wide become the grey between, not one of the two."""
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    shrunk = np.asarray(fit(Image.fromarray(stripes), 8, None)).astype(int)
    assert abs(shrunk - 127.5).max() < 5


@pytest.mark.parametrize(("size", "crop"), [(0, None), (-1, None), (None, 8), (8, 9), (8, 0)])
def test_contradicting_sizes_are_refused(size, crop):
    """A crop needs a size at least as large, and both are at least one pixel."""
    with pytest.raises(ValueError, match=r"must be .* got"):
        fit(Image.new("RGB", (8, 8)), size, crop)
