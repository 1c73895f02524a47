"""Data from a factory of one's own: what it may yield, and what is said of anything else."""

import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.fixtures.datasets import AS_IT_IS, LABELS, N, pictures, read_all
from ttc_core.corruptions import corrupt
from ttc_core.datasets import (
    DataError,
    open_data,
)


def yields(*pairs: object) -> Callable[[], Iterator[object]]:
    return lambda: iter(pairs)


@pytest.fixture
def factories(monkeypatch):
    """Put functions into an importable module called my_data."""

    def make(**functions: object) -> None:
        module = type(sys)("my_data")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, "my_data", module)

    return make


def test_a_factory_yields_batches_of_any_size(factories):
    """Pairs of images and labels, put one after another."""
    images = pictures()
    factories(make=yields((images[:5], LABELS[:5]), (images[5:], list(LABELS[5:]))))
    data = open_data("my_data:make", AS_IT_IS)
    got, labels = read_all(data.open("clean", 5))
    np.testing.assert_array_equal(got, images)
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        pytest.param([], r"my_data:make must yield", id="nothing"),
        pytest.param([(pictures() / 255, LABELS)], r"uint8 \(N, H, W, 3\); it gave float", id="f"),
        pytest.param([(pictures()[..., 0], LABELS)], r"\(12, 8, 8\)", id="grey"),
        pytest.param([(pictures(), LABELS[:3])], r"12 images but 3 labels", id="labels"),
        pytest.param([(pictures(), LABELS[:, None])], r"labels \(n,\) .*\(12, 1\)", id="column"),
        pytest.param([(pictures(), np.eye(12)[LABELS])], r"labels \(n,\)", id="one-hot"),
        pytest.param([(pictures(), LABELS + 0.5)], r"of whole numbers; it gave float64", id="half"),
        pytest.param([(pictures(), LABELS * np.nan)], r"of whole numbers", id="nan"),
        pytest.param([3], r"my_data:make must yield", id="no-pair"),
    ],
)
def test_a_factory_that_yields_something_else_is_told_so(pairs, sentence, factories):
    """By its name, with what was expected."""
    factories(make=yields(*pairs))
    with pytest.raises(DataError, match=sentence):
        open_data("my_data:make", AS_IT_IS)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("cifar10", r"'cifar10' names no data; accepted are bundled, cifar10c:DIR"),
        ("cifar10c:", r"names no data"),
        ("", r"names no data"),
        ("no.such.module:make", r"no\.such\.module:make cannot be imported"),
    ],
)
def test_a_spec_that_names_no_data_gives_a_sentence(spec, sentence):
    """With what is accepted."""
    with pytest.raises(DataError, match=sentence):
        open_data(spec, AS_IT_IS)


def test_a_factory_is_never_held_in_memory_whole(factories):
    """What it yields goes to a file that has no name, and is mapped."""
    factories(make=lambda: ((pictures(100, 32, seed), np.arange(100) % 7) for seed in range(5)))
    data = open_data("my_data:make", AS_IT_IS)
    assert isinstance(data._images, np.memmap)
    got, labels = read_all(data.open("clean", 5), 64)
    np.testing.assert_array_equal(got[300:400], pictures(100, 32, 3))
    assert not isinstance(got, np.memmap)
    assert len(labels) == 500


def test_a_factory_that_fails_half_way_is_told_so(factories):
    """Its own error, by its name."""

    def make():
        yield pictures(), LABELS
        raise KeyError("no more")

    factories(make=make)
    with pytest.raises(DataError, match="my_data:make failed: KeyError: 'no more'"):
        open_data("my_data:make", AS_IT_IS)


def test_a_factory_yields_one_size(factories):
    """Two sizes cannot be one stream."""
    factories(make=yields((pictures(), LABELS), (pictures(side=9), LABELS)))
    with pytest.raises(DataError, match=r"gave images of \(8, 8, 3\) and of \(9, 9, 3\)"):
        open_data("my_data:make", AS_IT_IS)


@pytest.mark.parametrize("name", ["gaussian_noise", "glass_blur", "fog", "contrast"])
def test_corruption_depends_on_neither_order_nor_cut(name, factories):
    """An image is corrupted as the one at its place in the file, however it is reached."""
    images = pictures(N, 32)
    factories(make=yields((images, LABELS)))
    data = open_data("my_data:make", AS_IT_IS)
    expected = corrupt(images, name, 4, seed=3)
    for order in ("file", "iid", "sorted", "dirichlet:1"):
        stream = data.open(name, 4, order=order, seed=3)
        for size in (1, 5, 100):
            got, _ = read_all(stream, size)
            np.testing.assert_array_equal(got, expected[stream.positions])
    assert stream.severity == 4
    limited, _ = read_all(data.open(name, 4, limit=4, seed=3))
    np.testing.assert_array_equal(limited, expected[:4])


def endless():
    while True:
        yield pictures(), LABELS


def empty_for_ever():
    while True:
        yield pictures(0), LABELS[:0]


def ends_the_process():
    yield pictures(), LABELS
    raise SystemExit(3)


@pytest.mark.parametrize("make", [endless, empty_for_ever])
def test_a_factory_that_does_not_end_is_ended(make, factories, monkeypatch):
    """It does not fill the disk; a limit takes the first images of it."""
    monkeypatch.setattr("ttc_core.datasets.clean.MOST_IMAGES", 100)
    factories(make=make)
    with pytest.raises(DataError, match=r"has not ended.*--limit"):
        open_data("my_data:make", AS_IT_IS)


def test_a_limit_takes_the_first_images_of_an_endless_factory(factories):
    """No more is asked of it than is needed."""
    factories(make=endless)
    stream = open_data("my_data:make", AS_IT_IS, limit=17).open("clean", 5, limit=17)
    assert len(read_all(stream)[0]) == 17


def test_a_factory_that_ends_the_process_does_not(factories):
    """A sentence, as for every other failure."""
    factories(make=ends_the_process)
    with pytest.raises(DataError, match="SystemExit: 3"):
        open_data("my_data:make", AS_IT_IS)


@pytest.mark.parametrize(
    "pair",
    [
        (pictures()[:, :0], LABELS),
        (pictures(), np.full(N, 1e30)),
        (pictures(), np.full(N, np.nan)),
        (pictures(), [None] * N),
        (pictures(), "ab"),
        {"images": 1},
        3,
        (pictures(),),
        (pictures(), LABELS, LABELS),
    ],
    ids=["flat", "large", "nan", "none", "text", "dict", "number", "alone", "three"],
)
def test_odd_pairs_are_told(pair, factories):
    """With what is expected."""
    factories(make=yields(pair))
    with pytest.raises(DataError, match="my_data:make"):
        open_data("my_data:make", AS_IT_IS)
