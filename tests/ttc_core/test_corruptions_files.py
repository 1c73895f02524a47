"""`ttc corrupt` on images, folders and arrays: what is written, and what is refused."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ttc_core.corruptions import corrupt
from ttc_core.corruptions.files import corrupt_path
from ttc_core.corruptions.pixels import Images


def made_up(*shape: int) -> Images:
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


def write(path: Path, image: Images, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def read(path: Path) -> Images:
    with Image.open(path) as image:
        assert image.format == {".png": "PNG", ".bmp": "BMP"}[path.suffix]
        return np.asarray(image)


def test_a_folder_keeps_its_paths_and_its_order(tmp_path):
    """Every image, at any depth, is corrupted as the stream of sorted paths would be."""
    images = made_up(3, 32, 32, 3)
    for name, image in zip(("a/1.png", "a/2.bmp", "b.PNG"), images, strict=True):
        write(tmp_path / "in" / name, image)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "._b.png").write_text("litter")
    assert corrupt_path(tmp_path / "in", tmp_path / "out", "gaussian_noise", 3, 5) == 3
    expected = corrupt(images, "gaussian_noise", 3, seed=5)
    written = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [str(path.relative_to(tmp_path / "out")) for path in written] == [
        "a/1.png",
        "a/2.bmp",
        "b.PNG",
    ]
    for path, image in zip(written, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), image)


@pytest.mark.parametrize(
    ("source", "target", "written"),
    [
        ("a.png", "b.png", "b.png"),
        ("a.png", "b", "b.png"),
        ("a.png", "b.v2", "b.v2.png"),
        ("a.png", "b.bmp", "b.bmp"),
        ("a.jpg", "b.jpg", "b.png"),
        ("a.webp", "new/b.webp", "new/b.png"),
    ],
)
def test_a_file_is_written_without_loss(tmp_path, source, target, written):
    """Whatever the target is called, no second coding is laid over the corruption."""
    write(tmp_path / source, made_up(16, 24, 3))
    assert corrupt_path(tmp_path / source, tmp_path / target, "contrast", 2, 0) == 1
    decoded = np.asarray(Image.open(tmp_path / source).convert("RGB"))
    expected = corrupt(decoded[None], "contrast", 2)[0]
    np.testing.assert_array_equal(read(tmp_path / written), expected)


def test_a_file_may_go_into_a_folder(tmp_path):
    """A target that is a folder gets a file of the source's name."""
    (tmp_path / "out").mkdir()
    corrupt_path(write(tmp_path / "a.jpg", made_up(8, 8, 3)), tmp_path / "out", "fog", 1, 0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_photographs_are_turned_upright(tmp_path):
    """The orientation that a camera notes is applied, not dropped."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = made_up(8, 20, 3)
    source = write(tmp_path / "a.png", image, exif=exif)
    corrupt_path(source, tmp_path / "b.png", "clean", 1, 0)
    np.testing.assert_array_equal(read(tmp_path / "b.png"), np.rot90(image, -1))


def test_deep_and_grey_images_are_scaled_to_eight_bits(tmp_path):
    """Sixteen bits become eight by their upper half, grey becomes RGB."""
    deep = np.array([[0, 256, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    corrupt_path(tmp_path / "a.png", tmp_path / "b.png", "clean", 1, 0)
    assert read(tmp_path / "b.png").tolist() == [[[0] * 3, [1] * 3, [255] * 3]]


def test_an_array_is_corrupted_in_parts(tmp_path, monkeypatch):
    """The result equals that of the whole array at once, however small the parts."""
    images = made_up(7, 16, 16, 3)
    np.save(tmp_path / "in.npy", images)
    monkeypatch.setattr("ttc_core.corruptions.files._VALUES_AT_ONCE", 3 * 16 * 16 * 3)
    assert corrupt_path(tmp_path / "in.npy", tmp_path / "out", "snow", 4, 2) == 7
    expected = corrupt(images, "snow", 4, seed=2)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npy", "out.npy"]


def missing(root: Path) -> tuple[Path, Path]:
    return root / "nowhere", root / "out"


def broken(root: Path) -> tuple[Path, Path]:
    (root / "broken.png").write_bytes(b"not an image")
    return root / "broken.png", root / "out.png"


def cut_off(root: Path) -> tuple[Path, Path]:
    path = write(root / "cut.png", made_up(64, 64, 3))
    path.write_bytes(path.read_bytes()[:2000])
    return path, root / "out.png"


def other_format(root: Path) -> tuple[Path, Path]:
    return write(root / "a.gif", made_up(8, 8, 3)), root / "out.png"


def nothing(root: Path) -> tuple[Path, Path]:
    (root / "empty").mkdir()
    return root / "empty", root / "out"


def itself(root: Path) -> tuple[Path, Path]:
    path = write(root / "a.png", made_up(8, 8, 3))
    return path, root / "x" / ".." / "a.png"


def within(root: Path) -> tuple[Path, Path]:
    write(root / "in" / "a.png", made_up(8, 8, 3))
    return root / "in", root / "in" / "out"


def through_the_parent(root: Path) -> tuple[Path, Path]:
    write(root / "in" / "in" / "a.png", made_up(8, 8, 3))
    return root / "in", root


def array_itself(root: Path) -> tuple[Path, Path]:
    np.save(root / "a.npy", made_up(1, 8, 8, 3))
    return root / "a.npy", root / "a"


def clash(root: Path) -> tuple[Path, Path]:
    write(root / "in" / "a.png", made_up(8, 8, 3))
    write(root / "in" / "a.jpg", made_up(8, 8, 3))
    return root / "in", root / "out"


def folder_onto_file(root: Path) -> tuple[Path, Path]:
    write(root / "in" / "a.png", made_up(8, 8, 3))
    (root / "out").write_text("")
    return root / "in", root / "out"


def wrong_shape(root: Path) -> tuple[Path, Path]:
    np.save(root / "a.npy", made_up(8, 8, 3))
    return root / "a.npy", root / "out.npy"


def no_images(root: Path) -> tuple[Path, Path]:
    np.save(root / "a.npy", np.zeros((0, 8, 8, 3), np.uint8))
    return root / "a.npy", root / "out.npy"


def no_array(root: Path) -> tuple[Path, Path]:
    (root / "a.npy").write_bytes(b"nonsense")
    return root / "a.npy", root / "out.npy"


def objects(root: Path) -> tuple[Path, Path]:
    np.save(root / "a.npy", np.array([{}], dtype=object))
    return root / "a.npy", root / "out.npy"


def nonsense_header(root: Path) -> tuple[Path, Path]:
    (root / "a.npy").write_bytes(b"\x93NUMPY\x01\x00\x05\x00((((\n")
    return root / "a.npy", root / "out.npy"


def pipe(root: Path) -> tuple[Path, Path]:
    os.mkfifo(root / "a.png")
    return root / "a.png", root / "out.png"


def pipe_as_target(root: Path) -> tuple[Path, Path]:
    os.mkfifo(root / "out.png")
    return write(root / "a.png", made_up(8, 8, 3)), root / "out.png"


def no_bytes(root: Path) -> tuple[Path, Path]:
    (root / "a.png").touch()
    return root / "a.png", root / "out.png"


def litter(root: Path) -> tuple[Path, Path]:
    for name in (".git/a.png", "__MACOSX/a.png", "._b.png"):
        path = root / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    os.mkfifo(root / "in" / "pipe.png")
    (root / "in" / "loop.png").symlink_to("loop.png")
    return root / "in", root / "out"


@pytest.mark.parametrize(
    ("arrange", "error", "sentence"),
    [
        (missing, FileNotFoundError, "no file or folder .*nowhere"),
        (broken, ValueError, "broken.png cannot be read"),
        (cut_off, ValueError, "cut.png cannot be read"),
        (other_format, ValueError, "a.gif cannot be read as an image: it is none of JPEG, PNG"),
        (no_bytes, ValueError, r"a.png cannot be read as an image: it is empty\."),
        (nothing, ValueError, "empty holds no images"),
        (itself, ValueError, "itself or lies within"),
        (within, ValueError, "itself or lies within"),
        (through_the_parent, ValueError, "itself or lies within"),
        (array_itself, ValueError, "itself or lies within"),
        (clash, ValueError, "a.jpg and .*a.png would both be written as .*a.png"),
        (folder_onto_file, ValueError, "is a folder, so .*out must be one"),
        (wrong_shape, ValueError, r"\(N, H, W, 3\) uint8.*holds \(8, 8, 3\) uint8"),
        (no_images, ValueError, "a.npy "),
        (no_array, ValueError, "a.npy cannot be read"),
        (objects, ValueError, "a.npy cannot be read"),
        (nonsense_header, ValueError, "a.npy cannot be read"),
        (pipe, ValueError, "neither a file nor a folder"),
        (pipe_as_target, OSError, "no ordinary file"),
        (litter, ValueError, "in holds no images"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path,
    arrange: Callable[[Path], tuple[Path, Path]],
    error: type[Exception],
    sentence: str,
):
    """One sentence names the file and the reason, and nothing new is left behind."""
    source, target = arrange(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=sentence):
        corrupt_path(source, target, "fog", 1, 0)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_wrong_name_is_refused_before_anything_is_read(tmp_path):
    """The corruption and its severity are checked first."""
    with pytest.raises(ValueError, match="no corruption 'rain'"):
        corrupt_path(tmp_path / "nowhere", tmp_path / "out", "rain", 1, 0)


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    """A full disk in the middle of an array costs neither the earlier file nor the room."""
    np.save(tmp_path / "a.npy", made_up(4, 8, 8, 3))
    (tmp_path / "out.npy").write_bytes(b"earlier")
    before = sorted(tmp_path.iterdir())

    def full(*_: object, **__: object) -> Images:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ttc_core.corruptions.files.corrupt", full)
    with pytest.raises(OSError, match="No space left"):
        corrupt_path(tmp_path / "a.npy", tmp_path / "out.npy", "fog", 1, 0)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "out.npy").read_bytes() == b"earlier"


def test_a_damaged_image_in_a_folder_is_named_with_what_was_written_before(tmp_path):
    """The images before it are whole, and counted."""
    write(tmp_path / "in" / "a.png", made_up(8, 8, 3))
    (tmp_path / "in" / "b.png").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"b\.png cannot be read.*1 of 2 images were written"):
        corrupt_path(tmp_path / "in", tmp_path / "out", "fog", 1, 0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_an_array_of_columns_first_is_corrupted_as_any(tmp_path):
    """Its layout on the disk does not matter."""
    images = made_up(3, 8, 8, 3)
    for name, array in (("c", images), ("f", np.asfortranarray(images))):
        np.save(tmp_path / f"{name}.npy", array)
        corrupt_path(tmp_path / f"{name}.npy", tmp_path / f"{name}-out.npy", "fog", 1, 0)
    assert (np.load(tmp_path / "c-out.npy") == np.load(tmp_path / "f-out.npy")).all()
