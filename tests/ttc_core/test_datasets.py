"""Where images come from: the right ones, with the right labels, whatever the order and cut."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.fixtures.datasets import AS_IT_IS, LABELS, N, pictures, read_all
from ttc_core.corruptions import corrupt
from ttc_core.datasets import (
    STREAM_FILE,
    WORDNET_IDS_FILE,
    DataError,
    Geometry,
    ImageNetC,
    open_data,
)
from ttc_core.zoo import fashion_mnist

# Bundled


def test_the_bundled_stream_is_ready_to_use():
    """2,000 pictures of the model's size, grey in three channels, all ten classes."""
    stream = open_data("bundled", Geometry(32)).open("clean", 5)
    images, labels = read_all(stream, 500)
    assert images.shape == (2000, 32, 32, 3)
    assert images.dtype == np.uint8
    assert (images[..., 0] == images[..., 2]).all()
    assert sorted(set(labels)) == list(range(10))
    assert np.bincount(labels).min() > 150
    assert (stream.severity, stream.read_file) == (None, None)


@pytest.mark.skipif(
    not fashion_mnist.DIRECTORY.is_dir(), reason=f"no Fashion-MNIST at {fashion_mnist.DIRECTORY}"
)
def test_the_bundled_stream_is_the_beginning_of_the_test_set():
    """Unchanged and unselected: the first 2,000 test pictures in their order."""
    originals, labels = fashion_mnist.read_split(fashion_mnist.DIRECTORY, "t10k")
    with np.load(STREAM_FILE) as file:
        np.testing.assert_array_equal(file["pictures"], originals[:2000])
        np.testing.assert_array_equal(file["labels"], labels[:2000])


# The layout of CIFAR-10-C


def cifar(
    folder: Path, labels: NDArray[np.generic], rows: int, name: str = "fog", seed: int = 0
) -> NDArray[np.uint8]:
    folder.mkdir(exist_ok=True)
    images = pictures(rows, seed=seed)
    np.save(folder / "labels.npy", labels)
    np.save(folder / f"{name}.npy", images)
    return images


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("repeated", [True, False], ids=["labels-5n", "labels-n"])
def test_five_severities_lie_in_blocks(severity, repeated, tmp_path):
    """R = 5n, with the labels once or five times: the block of the severity asked for."""
    images = cifar(tmp_path, np.tile(LABELS, 5) if repeated else LABELS, 5 * N)
    stream = open_data(f"cifar10c:{tmp_path}", AS_IT_IS).open("fog", severity)
    got, labels = read_all(stream)
    assert stream.severity == severity
    np.testing.assert_array_equal(got, images[(severity - 1) * N : severity * N])
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("repeated", [True, False], ids=["labels-5n", "labels-n"])
def test_a_single_severity_has_no_name(repeated, tmp_path):
    """R = n: the row says null, and the severity asked for is not looked at."""
    images = cifar(tmp_path, np.tile(LABELS, 5) if repeated else LABELS, N)
    stream = open_data(f"cifar10c:{tmp_path}", AS_IT_IS).open("fog", 9)
    assert stream.severity is None
    got, labels = read_all(stream)
    np.testing.assert_array_equal(got, images)
    np.testing.assert_array_equal(labels, LABELS)


def test_labels_that_are_no_repeats_are_taken_once(tmp_path):
    """A length divisible by five is no reason to cut: the values decide."""
    labels = np.arange(10)
    cifar(tmp_path, labels, 10)
    stream = open_data(f"cifar10c:{tmp_path}", AS_IT_IS).open("fog", 5)
    np.testing.assert_array_equal(stream.labels, labels)


def test_clean_images_are_a_file_like_any_other(tmp_path):
    """clean.npy beside the corruptions, read as it is."""
    images = cifar(tmp_path, LABELS, N, name="clean")
    got, _ = read_all(open_data(f"cifar10c:{tmp_path}", AS_IT_IS).open("clean", 5))
    np.testing.assert_array_equal(got, images)


def test_the_large_files_are_mapped_not_loaded(tmp_path, monkeypatch):
    """Opening reads headers; a batch reads its own rows."""
    cifar(tmp_path, LABELS, 5 * N)
    loaded = []
    load = np.lib.format.open_memmap

    def watched(*args, **options):
        array = load(*args, **options)
        loaded.append(array)
        return array

    monkeypatch.setattr(np.lib.format, "open_memmap", watched)
    stream = open_data(f"cifar10c:{tmp_path}", AS_IT_IS).open("fog", 5)
    assert len(loaded) == 2
    assert all(isinstance(array, np.memmap) for array in loaded)
    images, _ = next(stream.batches(3))
    assert images.shape == (3, 8, 8, 3)
    assert not isinstance(images, np.memmap)


def test_the_models_size_applies_to_arrays_too(tmp_path):
    """A 32-pixel file for a network of another size is resized as the server would."""
    images = cifar(tmp_path, LABELS, N)
    stream = open_data(f"cifar10c:{tmp_path}", Geometry(12, 10)).open("fog", 5)
    got, _ = read_all(stream)
    assert got.shape == (N, 10, 10, 3)
    np.testing.assert_array_equal(got[0], Geometry(12, 10).apply(Image.fromarray(images[0])))


def nothing(folder: Path) -> None:
    folder.mkdir(exist_ok=True)


def spoil(what: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        cifar(folder, LABELS, N)
        if what == "rows":
            np.save(folder / "fog.npy", pictures(N + 1))
        elif what == "floats":
            np.save(folder / "fog.npy", pictures().astype(np.float32))
        elif what == "shape":
            np.save(folder / "fog.npy", pictures().transpose(0, 3, 1, 2))
        elif what == "labels":
            np.save(folder / "labels.npy", LABELS + 5)
        elif what == "negative":
            np.save(folder / "labels.npy", LABELS - 1)
        elif what == "fractions":
            np.save(folder / "labels.npy", LABELS / 2)
        elif what == "objects":
            np.save(folder / "fog.npy", np.array([{}], dtype=object), allow_pickle=True)
        elif what == "truncated":
            (folder / "fog.npy").write_bytes((folder / "fog.npy").read_bytes()[:-100])
        elif what == "zero":
            (folder / "fog.npy").write_bytes(b"")
        elif what == "grey":
            np.save(folder / "fog.npy", pictures()[..., 0])
        elif what == "rgba":
            np.save(folder / "fog.npy", np.concatenate([pictures(), pictures()[..., :1]], 3))
        elif what == "rubbish":
            (folder / "fog.npy").write_bytes(b"rubbish")
        elif what == "archive":
            with (folder / "fog.npy").open("wb") as file:
                np.savez(file, pictures())
        elif what == "header":
            array = (folder / "fog.npy").read_bytes()
            (folder / "fog.npy").write_bytes(array[:10] + b"(" * 40 + array[50:])
        elif what == "empty":
            np.save(folder / "labels.npy", LABELS[:0])
        else:
            (folder / what).unlink()

    return write


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        pytest.param(nothing, r"labels\.npy is missing; expected are labels\.npy and", id="none"),
        pytest.param(spoil("fog.npy"), r"fog\.npy is missing", id="no-corruption"),
        pytest.param(spoil("rows"), r"fog\.npy has 13 rows for 12 labels.*12, or 60", id="rows"),
        pytest.param(spoil("floats"), r"fog\.npy must hold uint8 .*float32", id="floats"),
        pytest.param(spoil("shape"), r"must hold uint8 \(N, H, W, 3\).*\(12, 3, 8, 8\)", id="nchw"),
        pytest.param(spoil("labels"), r"labels\.npy holds labels from 5 to 11.*0 to 9", id="range"),
        pytest.param(spoil("negative"), r"labels\.npy holds labels from -1", id="negative"),
        pytest.param(spoil("fractions"), r"labels\.npy must hold whole numbers", id="fractions"),
        pytest.param(spoil("empty"), r"labels\.npy must hold whole numbers", id="empty"),
        pytest.param(spoil("objects"), r"fog\.npy is no readable \.npy file", id="pickled"),
        pytest.param(spoil("truncated"), r"fog\.npy is no readable \.npy file", id="truncated"),
        pytest.param(spoil("zero"), r"fog\.npy is no readable \.npy file", id="zero-bytes"),
        pytest.param(spoil("grey"), r"must hold uint8 \(N, H, W, 3\).*\(12, 8, 8\)", id="grey"),
        pytest.param(spoil("rgba"), r"must hold uint8 \(N, H, W, 3\).*8, 4\)", id="rgba"),
        pytest.param(spoil("rubbish"), r"fog\.npy is no readable \.npy file", id="rubbish"),
        pytest.param(spoil("archive"), r"fog\.npy is no readable \.npy file", id="archive"),
        pytest.param(spoil("header"), r"fog\.npy is no readable \.npy file", id="header"),
    ],
)
def test_a_file_that_does_not_fit_is_named(write, sentence, tmp_path):
    """The file, what it holds, and what was expected."""
    write(tmp_path / "data")
    with pytest.raises(DataError, match=sentence):
        open_data(f"cifar10c:{tmp_path}/data", AS_IT_IS).open("fog", 5)


def test_a_hundred_classes_are_cifar100c(tmp_path):
    """The same layout; labels up to 99 are refused in the smaller one only."""
    cifar(tmp_path, LABELS + 80, N)
    assert open_data(f"cifar100c:{tmp_path}", AS_IT_IS).open("fog", 5).labels.max() == 86
    with pytest.raises(DataError, match="0 to 9"):
        open_data(f"cifar10c:{tmp_path}", AS_IT_IS)


@pytest.mark.parametrize("severity", [0, 6])
def test_a_severity_that_is_not_there_is_refused(severity, tmp_path):
    """Where the file has five."""
    cifar(tmp_path, LABELS, 5 * N)
    with pytest.raises(ValueError, match="severity must be 1 to 5"):
        open_data(f"cifar10c:{tmp_path}", AS_IT_IS).open("fog", severity)


def test_the_check_data_is_read_as_it_is(shared_data):
    """The real layout, 800 images a corruption."""
    stream = open_data(f"cifar10c:{shared_data}/cifar10c", Geometry(32)).open("fog", 5)
    assert (len(stream), stream.severity) == (800, None)
    images, labels = next(stream.batches(100))
    np.testing.assert_array_equal(images, np.load(shared_data / "cifar10c" / "fog.npy")[:100])
    np.testing.assert_array_equal(labels, np.load(shared_data / "cifar10c" / "labels.npy")[:100])


# Folders


def folder(root: Path, names: list[str], side: int = 8) -> dict[str, NDArray[np.uint8]]:
    images = {}
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for file in ("b.png", "a.PNG"):
            images[f"{name}/{file}"] = pictures(1, side, seed=2 * number + (file == "b.png"))[0]
            Image.fromarray(images[f"{name}/{file}"]).save(root / name / file, format="PNG")
        (root / name / "notes.txt").write_text("no image")
    return images


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        pytest.param(["cat", "ant", "bee"], [0, 0, 1, 1, 2, 2], id="by-name"),
        pytest.param(["7", "10", "0"], [0, 0, 10, 10, 7, 7], id="by-index"),
        pytest.param(["7", "10", "x"], [0, 0, 1, 1, 2, 2], id="mixed-is-by-name"),
    ],
)
def test_a_folders_classes_are_its_subfolders(names, labels, tmp_path):
    """Whole numbers are class indices; names are numbered in sorted order."""
    images = folder(tmp_path, names)
    stream = open_data(f"folder:{tmp_path}", AS_IT_IS).open("clean", 5)
    got, got_labels = read_all(stream)
    assert got_labels.tolist() == labels
    expected = [images[f"{name}/{file}"] for name in sorted(names) for file in ("a.PNG", "b.png")]
    np.testing.assert_array_equal(got, np.stack(expected))


def test_folders_with_numbers_that_do_not_fit_are_refused(tmp_path):
    """A model without class names takes them as indices; by rank they would be other classes."""
    folder(tmp_path, ["5", "6", "7", ".cache"])
    with pytest.raises(DataError, match=r"named like none of the model's 3 classes.*or 0 to 2"):
        open_data(f"folder:{tmp_path}", AS_IT_IS, ["0", "1", "2"])


def labels_of_folders(root: Path, names: list[str], class_names: list[str]) -> dict[str, int]:
    folder(root, names)
    stream = open_data(f"folder:{root}", AS_IT_IS, class_names).open("clean", 5)
    return dict(zip(sorted(names), stream.labels[::2].tolist(), strict=True))


@pytest.mark.parametrize(
    ("class_names", "expected"),
    [
        pytest.param(["C", "C++", "C#", "Java"], {"C": 0, "C++": 1, "C#": 2, "java": 3}, id="c"),
        pytest.param(["1.0", "10", "2"], {"1.0": 0, "10": 1}, id="versions"),
        pytest.param(["+", "-", "ok"], {"-": 1, "+": 0, "OK": 2}, id="signs"),
        pytest.param(["é", "É", "ok"], {"É": 1, "e\u0301": 0}, id="accents"),
        pytest.param(["crane", "dog", "crane"], {"Dog": 1}, id="alike-but-not-needed"),
        pytest.param(["crane", "dog", "crane"], {"0": 0, "2": 2}, id="alike-by-index"),
        pytest.param(["1.0", "1 0", *"23456789", "x"], {"10": 10, "3": 3}, id="numbers"),
    ],
)
def test_a_folder_is_the_class_of_its_very_name(class_names, expected, tmp_path):
    """Case and signs are overlooked only where one class alone can be meant."""
    assert labels_of_folders(tmp_path, list(expected), class_names) == expected


@pytest.mark.parametrize(
    ("class_names", "names", "sentence"),
    [
        (["crane", "dog", "crane"], ["crane"], "/crane may be each of the classes 0, 2; .* 0 to 2"),
        (["C", "C++", "Java"], ["c"], "/c may be each of the classes 0, 1; .* 0 to 2"),
        (["C", "D", "Java"], ["C", "C++"], r"/C\+\+ and C are named like one class; .* 0 to 2"),
        (["+", "-", "Java"], ["*"], r"/\* is named like none of the model's 3 classes"),
    ],
)
def test_a_folder_that_may_be_of_several_classes_is_refused(class_names, names, sentence, tmp_path):
    """The sentence asks for indices, which always work."""
    with pytest.raises(DataError, match=sentence):
        labels_of_folders(tmp_path, names, class_names)


def test_what_is_hidden_or_no_file_is_passed_over(tmp_path):
    """A folder of a version control system, a folder named like an image."""
    folder(tmp_path, ["a", "b"])
    (tmp_path / ".git").mkdir()
    (tmp_path / "a" / "c.png").mkdir()
    stream = open_data(f"folder:{tmp_path}", AS_IT_IS).open("clean", 5)
    assert len(read_all(stream)[0]) == 4


def test_a_clean_folder_gives_its_files_as_they_are(tmp_path):
    """The bytes, for a client to send; of corrupted images there are none."""
    folder(tmp_path, ["a", "b"])
    data = open_data(f"folder:{tmp_path}", AS_IT_IS)
    stream = data.open("clean", 5)
    assert stream.read_file is not None
    assert stream.read_file(0) == (tmp_path / "a" / "a.PNG").read_bytes()
    assert data.open("fog", 5).read_file is None


def test_images_of_a_folder_come_at_the_models_size(tmp_path):
    """Decoded and resized as by the server, then corrupted."""
    images = folder(tmp_path, ["a"], side=40)
    data = open_data(f"folder:{tmp_path}", Geometry(36, 32))
    got, _ = read_all(data.open("clean", 5))
    expected = Geometry(36, 32).apply(Image.fromarray(images["a/a.PNG"]))
    np.testing.assert_array_equal(got[0], expected)
    corrupted, _ = read_all(data.open("contrast", 3))
    np.testing.assert_array_equal(corrupted, corrupt(got, "contrast", 3))


def test_folders_that_cannot_be_read_give_a_sentence(tmp_path):
    """Not there, no images, a damaged file, sizes that cannot be stacked."""
    with pytest.raises(DataError, match="There is no folder"):
        open_data(f"folder:{tmp_path}/none", AS_IT_IS)
    with pytest.raises(DataError, match=r"holds no images; expected are .*<class name or index>"):
        open_data(f"folder:{tmp_path}", AS_IT_IS)
    folder(tmp_path, ["a"])
    Image.fromarray(pictures(1, 9)[0]).save(tmp_path / "a" / "c.png")
    with pytest.raises(DataError, match="differ in size"):
        read_all(open_data(f"folder:{tmp_path}", AS_IT_IS).open("clean", 5))
    assert len(read_all(open_data(f"folder:{tmp_path}", Geometry(8)).open("clean", 5))[0]) == 3
    (tmp_path / "a" / "d.jpg").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"d\.jpg cannot be read as an image"):
        read_all(open_data(f"folder:{tmp_path}", Geometry(8)).open("clean", 5))


@pytest.mark.parametrize("kind", ["bundled", "cifar10c", "cifar100c", "imagenetc"])
def test_a_model_of_other_classes_is_refused(kind, tmp_path):
    """Before an hour of chance-level answers."""
    spec = kind if kind == "bundled" else f"{kind}:{tmp_path}"
    with pytest.raises(DataError, match=f"{kind} has 1.* classes and the model 7;"):
        open_data(spec, AS_IT_IS, list("abcdefg"))


# Limits, orders, corruption


def test_the_limit_is_taken_before_the_order(tmp_path):
    """The first N in file order, then sorted: whichever classes those have."""
    images = cifar(tmp_path, LABELS, N)
    data = open_data(f"cifar10c:{tmp_path}", AS_IT_IS)
    stream = data.open("fog", 5, limit=9, order="sorted")
    got, labels = read_all(stream)
    assert labels.tolist() == [0, 0, 1, 1, 2, 3, 4, 5, 6]
    assert stream.positions.tolist() == [0, 7, 1, 8, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(got, images[stream.positions])
    assert len(data.open("fog", 5, limit=1000)) == N


@pytest.mark.parametrize("order", ["iid", "dirichlet:0.5"])
def test_the_seed_decides_the_order(order, tmp_path):
    """Equal seeds give equal streams; images keep their labels."""
    images = cifar(tmp_path, LABELS, N)
    data = open_data(f"cifar10c:{tmp_path}", AS_IT_IS)
    one, two, other = (data.open("fog", 5, order=order, seed=seed) for seed in (1, 1, 2))
    assert one.positions.tolist() == two.positions.tolist() != other.positions.tolist()
    got, labels = read_all(one)
    np.testing.assert_array_equal(labels, LABELS[one.positions])
    np.testing.assert_array_equal(got, images[one.positions])


def test_the_last_batch_may_be_short(tmp_path):
    """Every image comes once."""
    cifar(tmp_path, LABELS, N)
    stream = open_data(f"cifar10c:{tmp_path}", AS_IT_IS).open("fog", 5)
    assert [len(labels) for _, labels in stream.batches(5)] == [5, 5, 2]


@pytest.mark.parametrize("spec", ["bundled", "cifar10c"])
def test_an_unknown_corruption_is_refused(spec, tmp_path):
    """With the names that there are."""
    cifar(tmp_path, LABELS, N)
    data = open_data(spec if spec == "bundled" else f"cifar10c:{tmp_path}", AS_IT_IS)
    with pytest.raises(ValueError, match=r"no corruption 'smog'; there are clean, gaussian_noise"):
        data.open("smog", 5)


def test_imagenet_c_numbers_classes_by_all_thousand_ids(tmp_path):
    """A class is its WordNet id's rank among ImageNet's thousand, not among the folders there."""
    ids = WORDNET_IDS_FILE.read_text().split()
    for rank in (999, 3, 500):
        folder = tmp_path / "fog" / "5" / ids[rank]
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 30), (rank % 256, 0, 0)).save(folder / "one.JPEG")
    stream = ImageNetC(tmp_path, Geometry(24, 16)).open("fog", 5)
    assert len(ids) == 1000
    assert stream.labels.tolist() == [3, 500, 999]
    assert stream.read(stream.positions).shape == (3, 16, 16, 3)
    assert stream.read_file(0) == (tmp_path / "fog" / "5" / ids[3] / "one.JPEG").read_bytes()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        pytest.param(None, "fog/5 is missing", id="no-severity"),
        pytest.param("fog/5/dogs", "none of ImageNet's 1,000", id="not-a-wordnet-id"),
        pytest.param("fog/5/n01440764", "holds no images", id="empty"),
    ],
)
def test_imagenet_c_names_what_is_wrong(tmp_path, made, words):
    """The folder at fault and what was expected are in the sentence."""
    if made:
        (tmp_path / made).mkdir(parents=True)
    with pytest.raises(DataError, match=words):
        ImageNetC(tmp_path, Geometry(24, 16)).open("fog", 5)
