"""Figure 1 without a figure: what repeated entropy minimisation does to one answer."""

import numpy as np
import pytest

from ttc_core.entropy_minimisation import SETTINGS, minimise_entropy, simulate


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_largest_probability_grows_to_one(classes):
    """Whichever class was ahead wins, step by step, and the others vanish."""
    path = minimise_entropy(classes, steps=200, lr=1.0, seed=3)
    assert path.shape == (201, classes)
    np.testing.assert_allclose(path.sum(axis=1), 1, atol=1e-5)
    winner = path[0].argmax()
    assert (np.diff(path[:, winner]) >= -1e-6).all()
    assert path[-1, winner] > 0.99


def test_two_classes_follow_the_derivative():
    """One step is z − lr · ∂H/∂z, with ∂H/∂z_k = −p_k (ln p_k + H)."""
    before, after = minimise_entropy(2, steps=1, lr=0.5, seed=0)
    entropy = -(before * np.log(before)).sum()
    logits = np.log(before) + 0.5 * before * (np.log(before) + entropy)
    np.testing.assert_allclose(after, np.exp(logits) / np.exp(logits).sum(), atol=1e-6)


def test_a_figure_has_several_numbers_of_classes():
    """One path for each K of the settings, and the same whenever it is asked for."""
    paths, again = simulate(), simulate()
    assert list(paths) == [f"probabilities_{classes}" for classes in SETTINGS["classes"]]
    assert all(np.array_equal(paths[name], again[name]) for name in paths)
    assert paths["probabilities_1000"].shape == (SETTINGS["steps"] + 1, 1000)
