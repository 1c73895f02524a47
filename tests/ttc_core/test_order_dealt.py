"""Orders that deal images class by class, as cameras send them: runs, one class, bursts, few."""

import numpy as np
import pytest

from ttc_core.order import (
    deals,
    images_asked,
    order_indices,
    run_lengths,
    with_class_index,
)

LABELS = np.random.default_rng(0).integers(0, 10, 2000)
NAMES = ("Bag", "Coat", "bag", "Ankle boot")
DEALT = ("runs:50", "one:3", "camera-trap", "limited:2")


def dealt(order: str, labels=LABELS, **options) -> np.ndarray:
    return labels[order_indices(labels, order, **options)]


@pytest.mark.parametrize("order", DEALT)
@pytest.mark.parametrize("limit", [1, 7, 450, 3000])
def test_the_limit_is_the_length_of_the_stream(order, limit):
    """Also beyond what there is; and the same in every run, another with another seed."""
    places = order_indices(LABELS, order, limit=limit, seed=3)
    assert len(places) == limit
    np.testing.assert_array_equal(places, order_indices(LABELS, order, limit=limit, seed=3))
    if limit > 7:
        assert (places != order_indices(LABELS, order, limit=limit, seed=4)).any()


@pytest.mark.parametrize("order", DEALT)
def test_no_image_comes_again_while_its_class_has_others(order):
    """After n images of a class of m, each came n // m times, or once more."""
    places = order_indices(LABELS, order, limit=3000, seed=1)
    for label in np.unique(LABELS[places]):
        times = np.bincount(places[LABELS[places] == label], minlength=len(LABELS))
        assert np.ptp(times[label == LABELS]) <= 1
    assert len(np.unique(places)) < 3000, "some come again"


def test_they_are_dealt_from_all_images():
    """Not from the first N, as other orders are."""
    assert order_indices(LABELS, "runs:5", limit=100).max() > 1000
    assert order_indices(LABELS, "iid", limit=100).max() < 100
    assert [deals(order) for order in (*DEALT, "file", "iid", "sorted")] == [True] * 4 + [False] * 3
    assert images_asked("runs:5", 100) is None
    assert images_asked("sorted", 100) == 100


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("length", [1, 3, 50])
def test_runs_are_of_one_length_and_of_another_class_each(length, seed):
    """All L images, the last what is left; every class comes, and none twice in a row."""
    stream = dealt(f"runs:{length}", limit=1003, seed=seed)
    lengths = run_lengths(stream)
    assert (lengths[:-1] == length).all()
    assert lengths[-1] == 1003 % length or length == 1
    if length < 50:
        shares = np.bincount(stream, minlength=10) / 1003
        assert shares.min() > 0.05


def test_a_run_longer_than_its_class_deals_it_again():
    """With two classes they take turns."""
    labels = np.array([0, 1, 1])
    assert dealt("runs:4", labels, limit=8).tolist() in ([0] * 4 + [1] * 4, [1] * 4 + [0] * 4)
    assert len(dealt(f"runs:{10**9 - 1}", labels, limit=5)) == 5


def test_one_class_is_that_class_alone():
    """Without a limit all its images, once each."""
    places = order_indices(LABELS, "one:3")
    assert sorted(places) == np.flatnonzero(LABELS == 3).tolist()
    assert set(dealt("one:3", limit=5000)) == {3}


@pytest.mark.parametrize("seed", range(5))
def test_a_camera_trap_sends_bursts_of_mostly_two_classes(seed):
    """3 to 10 images each, never twice the same; two classes 71 %, the others alike."""
    stream = dealt("camera-trap", limit=2000, seed=seed)
    lengths = run_lengths(stream)
    assert set(lengths[:-1]) == set(range(3, 11))
    shares = np.sort(np.bincount(stream, minlength=10) / 2000)[::-1]
    assert shares[:2].sum() == pytest.approx(0.71, abs=0.015)
    assert shares[:2] == pytest.approx(0.355, abs=0.02)
    assert shares[2:] == pytest.approx(0.29 / 8, abs=0.01)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_a_camera_trap_of_few_classes(classes):
    """With two there are no others; with three the third comes between the two."""
    stream = dealt("camera-trap", np.arange(600) % classes, limit=1000, seed=2)
    assert run_lengths(stream)[:-1].max() <= 10
    shares = np.sort(np.bincount(stream) / 1000)[::-1]
    assert shares[:2].sum() == pytest.approx(1 if classes == 2 else 0.71, abs=0.02)


@pytest.mark.parametrize("few", [1, 2, 10])
def test_limited_has_few_classes_in_the_first_half(few):
    """M of them, shuffled; then all, as often as in the data."""
    stream = dealt(f"limited:{few}", limit=1001, seed=5)
    assert len(set(stream[:500])) == few
    frequent = np.bincount(stream[500:], minlength=10) / 501
    assert frequent == pytest.approx(np.bincount(LABELS) / len(LABELS), abs=0.05)
    if few > 1:
        assert run_lengths(stream[:500]).mean() < 2.5


def test_there_need_be_no_limit():
    """Then there are as many images as the data has."""
    assert [len(order_indices(LABELS, o)) for o in ("runs:7", "camera-trap", "limited:3")] == [
        2000
    ] * 3


@pytest.mark.parametrize(
    ("order", "labels", "said"),
    [
        ("one:12", LABELS, "one:12 has no images; the data has 10 classes, by index 0 to 9"),
        ("one:Bag", LABELS, "one:Bag has no images"),
        ("limited:11", LABELS, "limited:11 needs 11 classes; the data has 10"),
        ("runs:5", np.zeros(9, int), "runs:5 needs images of two classes"),
        ("camera-trap", np.zeros(9, int), "camera-trap needs images of two classes"),
    ],
)
def test_what_the_classes_do_not_allow_is_refused(order, labels, said):
    """With a sentence that says what there is."""
    with pytest.raises(ValueError, match=said):
        order_indices(labels, order, limit=5)


@pytest.mark.parametrize(
    ("given", "index"),
    [("3", 3), ("Coat", 1), ("coat", 1), ("Bag", 0), ("bag", 2), (" ankle boot ", 3), ("03", 3)],
)
def test_a_class_may_be_given_by_name(given, index):
    """As the model names it, case aside where that leaves one; or by index."""
    assert with_class_index(f"one:{given}", NAMES) == f"one:{index}"
    assert with_class_index("runs:3", NAMES) == "runs:3"


@pytest.mark.parametrize("given", ["BAG", "4", "-1", "hat", "1" * 20])
def test_an_unknown_class_is_refused(given):
    """The classes are told, by index and by name."""
    with pytest.raises(ValueError, match="there are 0 to 3, or by name Bag, Coat, bag, Ankle boot"):
        with_class_index(f"one:{given}", NAMES)
