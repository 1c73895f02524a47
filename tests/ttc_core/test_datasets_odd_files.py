"""A user's folders and arrays can hold anything: litter is passed over, the rest is said."""

import logging
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.datasets import AS_IT_IS, LABELS, N, pictures, read_all
from ttc_core.datasets import DataError, Geometry, open_data

NAMES = ["cat", "dog"]


@pytest.fixture
def folder(tmp_path) -> Path:
    for number, name in enumerate(NAMES):
        (tmp_path / name).mkdir()
        for file in range(2):
            image = Image.fromarray(pictures(1, seed=2 * number + file)[0])
            image.save(tmp_path / name / f"{file}.png")
    return tmp_path


def count(folder: Path) -> int:
    stream = open_data(f"folder:{folder}", AS_IT_IS, NAMES).open("clean", 5)
    return len(read_all(stream)[1])


def test_litter_is_passed_over(folder):
    """Of other systems, editors and version control; pipes, loops and devices, too."""
    for litter in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png", ".hidden.jpg", "notes.txt"):
        (folder / "cat" / litter).write_bytes(b"\x00\x05\x16\x07")
    for hidden in (".git", "__MACOSX"):
        (folder / hidden).mkdir()
        (folder / hidden / "0.png").write_bytes(b"")
    os.mkfifo(folder / "cat" / "pipe.png")
    (folder / "cat" / "loop.png").symlink_to("loop.png")
    (folder / "cat" / "zero.png").symlink_to("/dev/zero")
    (folder / "cat" / "gone.png").symlink_to("nowhere.png")
    (folder / "cat" / "folder.png").mkdir()
    (folder / "cat" / "up").symlink_to(folder)
    (folder / "loop").symlink_to("loop")
    (folder / "labels.csv").touch()
    assert count(folder) == 4


def test_what_is_left_out_is_counted_once(folder, caplog):
    """Another format, a link to nothing, a pipe, files beside the folders; not what is hidden."""
    with caplog.at_level(logging.WARNING):
        assert count(folder) == 4
    assert caplog.text == ""
    (folder / "0.png").write_bytes(b"")
    (folder / "dog" / "a.tif").write_bytes(b"")
    (folder / "dog" / ".a.png").write_bytes(b"")
    (folder / "dog" / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "cat" / "pipe\x1b[2J.png")
    with caplog.at_level(logging.WARNING):
        assert count(folder) == 4
    (record,) = caplog.records
    assert record.getMessage() == (
        f"Left out of {folder} as no images in its folders: 4 (the first is 0.png); taken are "
        ".bmp, .gif, .jpeg, .jpg, .png, .webp."
    )
    (folder / "0.png").unlink()
    count(folder)
    assert "(the first is cat/pipe?[2J.png)" in caplog.records[1].getMessage()


def test_a_file_that_is_no_image_is_named_with_what_is_taken(folder):
    """By its own name, without what would move a cursor, and not by a name of Python's."""
    (folder / "cat" / "0\x1b[2J.png").write_text("no image")
    with pytest.raises(DataError) as failed:
        count(folder)
    assert str(failed.value) == (
        f"{folder}/cat/0?[2J.png cannot be read as an image: it is none of JPEG, PNG, WEBP, BMP, "
        "GIF."
    )


@pytest.mark.parametrize(
    "name", [b"\xff\xfe.png", "猫.png".encode(), b"a b'\"$.PNG", b"-rf.png"], ids=repr
)
def test_files_may_be_named_in_any_encoding(name, folder):
    """A name is bytes."""
    os.rename(os.fsencode(folder / "cat" / "0.png"), os.fsencode(folder / "cat") + b"/" + name)
    assert count(folder) == 4


@pytest.mark.parametrize(
    "content",
    [b"", b"GIF89a", b"fLaC", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n" + b"\0" * 99],
    ids=repr,
)
def test_a_file_that_is_no_image_is_named(content, folder):
    """Whatever it is called; no other program is started for it."""
    (folder / "dog" / "1.png").write_bytes(content)
    with pytest.raises(DataError, match=r"dog/1\.png cannot be read as an image"):
        count(folder)


@pytest.mark.parametrize("name", ["9" * 5000, "٣", "-1", "1e3", "2", "bird"], ids=lambda s: s[:5])
def test_a_folder_that_is_no_class_is_named(name, tmp_path):
    """Numbers of any length and script among them."""
    name = name[:250]
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="named like none"):
        open_data(f"folder:{tmp_path}", AS_IT_IS, NAMES)


@pytest.mark.parametrize("kind", ["folder", "imagenetc", "cifar10c"])
def test_a_path_that_the_system_refuses_gives_a_sentence(kind, tmp_path):
    """Too long, a loop, below a file."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for path in ("a" * 300, "loop", "file", "file/x"):
        with pytest.raises(DataError):
            open_data(f"{kind}:{tmp_path / path}", AS_IT_IS).open("fog", 5)


def test_a_folder_that_may_not_be_read_gives_a_sentence(folder, monkeypatch):
    """Access is denied to one class."""
    listed = os.listdir

    def denied(path: Path) -> list[str]:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(DataError, match="dog cannot be read: Permission denied"):
        count(folder)


def test_a_file_that_vanishes_gives_a_sentence(folder):
    """Between listing and reading, also where bytes are sent as they are."""
    stream = open_data(f"folder:{folder}", AS_IT_IS, NAMES).open("clean", 5)
    (folder / "cat" / "0.png").unlink()
    assert stream.read_file is not None
    with pytest.raises(DataError, match=r"cat/0\.png cannot be read"):
        stream.read_file(0)
    with pytest.raises(DataError, match=r"cat/0\.png cannot be read"):
        read_all(stream)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


HEADERS = {
    "more-than-there-is": "{'descr': '|u1', 'fortran_order': False, 'shape': (12, 8, 8, 3)}",
    "astronomic": "{'descr': '|u1', 'fortran_order': False, 'shape': (10**30, 8, 8, 3)}",
    "numbers": "{'descr': '|u1', 'fortran_order': False, 'shape': (999999999999999999, 9, 9, 3)}",
    "negative": "{'descr': '|u1', 'fortran_order': False, 'shape': (-12, 8, 8, 3)}",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (12, 8, 8, 3)}",
    "no-type": "{'descr': 'zz', 'fortran_order': False, 'shape': (12, 8, 8, 3)}",
    "empty": "{'descr': '|u1', 'fortran_order': False, 'shape': (12, 0, 8, 3)}",
    "code": "__import__('os').abort()",
    "nested": "(" * 5000,
    "zeros": "\0" * 100,
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("name", ["labels.npy", "fog.npy"])
def test_an_array_of_nonsense_is_named(name, header, tmp_path):
    """Nothing in it is run, nothing allocated."""
    np.save(tmp_path / "labels.npy", LABELS)
    np.save(tmp_path / "fog.npy", pictures())
    (tmp_path / name).write_bytes(npy(header))
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        open_data(f"cifar10c:{tmp_path}", AS_IT_IS).open("fog", 5)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.astype(float),
        LABELS - 1,
        LABELS + 8,
        LABELS[:, None],
        LABELS.astype(bool),
        LABELS.astype("U1"),
        np.full(N, 2**63, np.uint64),
        np.array(3),
        LABELS[:0],
    ],
    ids=["float", "negative", "large", "column", "bool", "text", "overflow", "one", "none"],
)
def test_labels_that_are_none_are_named(labels, tmp_path):
    """Whole numbers 0 to 9, one an image."""
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(DataError, match=r"labels\.npy"):
        open_data(f"cifar10c:{tmp_path}", AS_IT_IS)


@pytest.mark.parametrize("type_", [">i8", "<u2", "|i1"])
def test_arrays_of_any_layout_are_read_right(type_, tmp_path):
    """Columns first, and numbers as other machines write them."""
    images = pictures()
    np.save(tmp_path / "labels.npy", LABELS.astype(type_))
    np.save(tmp_path / "fog.npy", np.asfortranarray(images))
    got, labels = read_all(open_data(f"cifar10c:{tmp_path}", AS_IT_IS).open("fog", 5))
    assert (got == images).all()
    assert (labels == LABELS).all()


# Whether it is the same data


def test_the_digest_tells_other_images_and_labels_apart(tmp_path):
    """It is of what is stored, whatever the order; one pixel or label makes another."""
    images = pictures()

    def digest(pixels: np.ndarray, labels: np.ndarray, **how: object) -> str:
        np.save(tmp_path / "labels.npy", labels)
        np.save(tmp_path / "fog.npy", pixels)
        stream = open_data(f"cifar10c:{tmp_path}", AS_IT_IS).open("fog", 5, **how)  # type: ignore[arg-type]
        return stream.digest

    first = digest(images, LABELS)
    assert digest(images, LABELS) == digest(images, LABELS, order="iid") == first
    assert digest(images, np.roll(LABELS, 1)) != first
    assert digest(images, LABELS, limit=5) != first
    changed = images.copy()
    changed[-1, -1, -1, -1] ^= 1
    assert digest(changed, LABELS) != first
    assert digest(changed, LABELS, limit=5) == digest(images, LABELS, limit=5)


@pytest.mark.parametrize("corruption", ["clean", "fog", "mixed"])
def test_the_digest_of_a_folder_is_of_its_files(corruption, folder):
    """The same names may hold other pictures tomorrow."""

    def digest() -> str:
        data = open_data(f"folder:{folder}", Geometry(8), NAMES)
        return data.open(corruption, 5).digest

    first = digest()
    assert digest() == first
    Image.fromarray(pictures(1, seed=9)[0]).save(folder / "dog" / "1.png")
    assert digest() != first
