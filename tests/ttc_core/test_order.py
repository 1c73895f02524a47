"""The orders of a stream: permutations with the shape that their names promise."""

import numpy as np
import pytest

from ttc_core.order import check_order, note_on_runs, order_indices, run_lengths

LABELS = np.random.default_rng(0).integers(0, 10, 1000)


@pytest.mark.parametrize("order", ["file", "iid", "sorted", "dirichlet:0.1", "dirichlet:100"])
def test_every_order_is_a_permutation(order):
    """Each image comes exactly once, and the same in every run."""
    places = order_indices(LABELS, order, seed=3)
    assert sorted(places) == list(range(1000))
    np.testing.assert_array_equal(places, order_indices(LABELS, order, seed=3))


def test_file_sorted_and_iid_do_what_they_say():
    """As filed; by class with file order within; permuted by the seed."""
    np.testing.assert_array_equal(order_indices(LABELS, "file"), np.arange(1000))
    places = order_indices(LABELS, "sorted")
    assert (np.diff(LABELS[places]) >= 0).all()
    for label in range(10):
        members = places[LABELS[places] == label]
        assert (np.diff(members) > 0).all()
    iid = order_indices(LABELS, "iid", seed=5)
    np.testing.assert_array_equal(iid, np.random.default_rng(5).permutation(1000))
    assert run_lengths(LABELS[iid]).mean() < 1.3


def test_a_small_concentration_makes_long_runs():
    """dirichlet:D goes from nearly sorted to nearly mixed as D grows, seed by seed."""
    runs = [
        np.mean(
            [
                run_lengths(LABELS[order_indices(LABELS, f"dirichlet:{d}", seed=seed)]).mean()
                for seed in range(5)
            ]
        )
        for d in (0.001, 0.1, 1, 1000)
    ]
    assert runs == sorted(runs, reverse=True)
    assert runs[0] > 3 * runs[-1]
    assert runs[-1] < 1.3


def test_slots_follow_one_another_and_are_shuffled():
    """With a tiny D each class falls into one slot whole: blocks of whole classes, mixed within."""
    labels = np.repeat(np.arange(4), 50)
    blocks_by_seed = []
    for seed in range(5):
        stream = labels[order_indices(labels, "dirichlet:0.00001", seed=seed)]
        spans = sorted(
            (np.flatnonzero(stream == label)[0], np.flatnonzero(stream == label)[-1])
            for label in range(4)
        )
        blocks = [spans[0]]
        for start, end in spans[1:]:
            if start > blocks[-1][1]:
                blocks.append((start, end))
            else:
                blocks[-1] = (blocks[-1][0], max(end, blocks[-1][1]))
        assert all((end - start + 1) % 50 == 0 for start, end in blocks)
        blocks_by_seed.append(len(blocks))
        if len(blocks) < 4:
            assert run_lengths(stream).mean() < 50, "classes that share a slot are mixed"
    assert max(blocks_by_seed) > 1
    assert min(blocks_by_seed) < 4


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_images_are_no_special_case(count):
    """One image, one class, fewer images than classes."""
    for order in ("iid", "sorted", "dirichlet:0.5"):
        assert sorted(order_indices(np.zeros(count, np.int64), order)) == list(range(count))


@pytest.mark.parametrize(
    "order",
    [
        *("mixed", "", "dirichlet", "dirichlet:", "dirichlet:0", "dirichlet:-1", "dirichlet:x"),
        *("runs", "runs:0", "runs:x", "runs:1.5", "one", "one: ", "camera-trap:2", "limited:0"),
        *("runs:05", "runs:+5", "runs: 5", "runs:1_0", "runs:٣"),
    ],
)
def test_other_orders_are_refused(order):
    """With those that there are."""
    with pytest.raises(
        ValueError, match=r"order must be file, iid, sorted, dirichlet:D .*limited:M"
    ):
        check_order(order)


@pytest.mark.parametrize(
    ("labels", "lengths"),
    [([], []), ([3], [1]), ([1, 1, 2, 2, 2, 1], [2, 3, 1]), ([0, 1, 0, 1], [1, 1, 1, 1])],
)
def test_run_lengths(labels, lengths):
    """How many of one class follow one another, in order."""
    assert run_lengths(np.array(labels, np.int64)).tolist() == lengths


def test_the_runs_of_a_dirichlet_order_are_always_told():
    """And those of any other where they are long."""
    labels = np.array([1, 1, 1, 2, 2, 2, 2, 2, 1], np.int64)
    assert "3.0 images long on average, 3 in the middle, 5 at most" in note_on_runs(labels, "file")
    assert note_on_runs(LABELS, "file") is None
    assert "long on average" in note_on_runs(LABELS, "dirichlet:10")
