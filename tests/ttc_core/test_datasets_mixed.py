"""Streams in which each image has a corruption of its own, drawn by the seed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ttc_core.corruptions import CORRUPTIONS
from ttc_core.datasets import (
    WORDNET_IDS_FILE,
    CleanData,
    DataError,
    DataSet,
    Geometry,
    check_corruption,
    open_data,
)
from ttc_core.datasets.stream import mixed_corruptions

N = 40
LABELS = np.arange(N) % 7
NAMES = ("clean", "brightness", "contrast")
MIXTURE = "mixed:contrast+clean+brightness"


def pictures(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (N, 16, 16, 3), np.uint8)


def in_memory(folder: Path) -> DataSet:
    return CleanData(pictures(), LABELS, Geometry(16))


def cifar_c(folder: Path) -> DataSet:
    np.save(folder / "labels.npy", LABELS)
    for number, name in enumerate(NAMES):
        np.save(folder / f"{name}.npy", pictures(number))
    return open_data(f"cifar10c:{folder}", Geometry(16))


def imagenet_c(folder: Path) -> DataSet:
    ids = WORDNET_IDS_FILE.read_text().split()
    for number, name in enumerate(NAMES):
        for place, picture in enumerate(pictures(number)):
            directory = folder / name / "3" / ids[LABELS[place]]
            directory.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(directory / f"{place:03}.png")
    return open_data(f"imagenetc:{folder}", Geometry(16))


def files(folder: Path) -> DataSet:
    for place, picture in enumerate(pictures()):
        directory = folder / str(LABELS[place])
        directory.mkdir(exist_ok=True)
        Image.fromarray(picture).save(directory / f"{place:03}.png")
    return open_data(f"folder:{folder}", Geometry(16))


@pytest.mark.parametrize("layout", [in_memory, cifar_c, imagenet_c, files])
def test_each_image_is_as_in_one_of_the_streams_that_are_mixed(layout, tmp_path: Path):
    """At its place, with its label, whatever the order, the limit and the batch size."""
    data = layout(tmp_path)
    mixed = data.open(MIXTURE, 3, seed=4)
    assert mixed.corruption == "mixed:clean+brightness+contrast"
    places = np.arange(N)
    alone = np.stack([data.open(name, 3, seed=4).read(places) for name in NAMES])
    got = np.concatenate([images for images, _ in mixed.batches(7)])
    drawn = [
        next(i for i in range(len(NAMES)) if np.array_equal(alone[i, place], got[place]))
        for place in places
    ]
    assert np.bincount(drawn, minlength=3).min() > 5
    for order, limit in (("iid", None), ("sorted", 25), ("file", 10)):
        stream = data.open(MIXTURE, 3, seed=4, order=order, limit=limit)
        for images, labels in stream.batches(6):
            assert len(images) == len(labels)
        images = np.concatenate([images for images, _ in stream.batches(6)])
        np.testing.assert_array_equal(images, got[stream.positions])
        np.testing.assert_array_equal(stream.labels, mixed.labels[stream.positions])


def test_the_seed_decides_which_corruption_an_image_gets():
    """Equal seeds, equal streams."""
    data = CleanData(pictures(), LABELS, Geometry(16))
    one, two, other = (
        data.open("mixed:clean+contrast", 5, seed=seed).read(np.arange(N)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_files_are_sent_as_they_are_where_all_are_files(tmp_path: Path):
    """The benchmark's own JPEGs, from the folder that was drawn."""
    data = imagenet_c(tmp_path)
    stream = data.open(MIXTURE, 3)
    assert stream.read_file is not None
    (tmp_path / "one.png").write_bytes(stream.read_file(5))
    sent = np.asarray(Image.open(tmp_path / "one.png"))
    np.testing.assert_array_equal(sent, stream.read(np.array([5]))[0])
    assert CleanData(pictures(), LABELS, Geometry(16)).open("mixed", 3).read_file is None


def test_mixed_alone_is_all_fifteen():
    """And has one name, however it is asked for."""
    assert mixed_corruptions("mixed") == CORRUPTIONS
    data = CleanData(pictures(), LABELS, Geometry(16))
    whole = "mixed:" + "+".join(reversed(CORRUPTIONS))
    assert data.open(whole, 5).corruption == data.open("mixed", 5).corruption == "mixed"
    assert data.open("mixed", 5).severity == 5


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mixed:fog", "two or more"),
        ("mixed:", "no corruption '' to mix"),
        ("mixed:fog+fog", "different"),
        ("mixed:fog+smog", "no corruption 'smog' to mix; there are clean"),
        ("mixture", "no corruption 'mixture'; there are clean"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(name, sentence):
    """With what is accepted."""
    with pytest.raises(ValueError, match=sentence):
        check_corruption(name)


def test_a_mixture_needs_the_same_images_under_each_corruption(tmp_path: Path):
    """A benchmark of which a file is missing is named."""
    data = imagenet_c(tmp_path)
    next((tmp_path / "contrast").rglob("*.png")).unlink()
    with pytest.raises(DataError, match="contrast has 39 and clean 40"):
        data.open(MIXTURE, 3)
