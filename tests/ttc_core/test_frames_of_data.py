"""Of the images that the service is shown with, at most one in a thousand is called faulty."""

import numpy as np
import pytest

from ttc_core.corruptions import CORRUPTIONS, corrupt
from ttc_core.datasets import Geometry, mixed_in, open_data
from ttc_core.evaluate import as_batch
from ttc_core.frames import Frames

MOST_FALSE = 0.001


def suspects(images: np.ndarray) -> list[str]:
    """The kinds found in a stream, in batches of 100."""
    frames, found = Frames(), []
    for start in range(0, len(images), 100):
        look = frames.look(as_batch(images[start : start + 100]))
        frames.commit(look)
        found += filter(None, look.kinds)
    return found


@pytest.fixture(scope="module")
def bundled():
    stream = open_data("bundled", Geometry(32)).open("clean", 5)
    return np.concatenate([images for images, _ in stream.batches(500)])


def test_clean_images_are_ordinary(bundled):
    """All 2,000, most of which are black for the greater part."""
    assert len(suspects(bundled)) <= MOST_FALSE * len(bundled)


def test_corrupted_images_are_ordinary(bundled):
    """Under each of the fifteen, at the highest severity."""
    part = bundled[::20]
    found = {name: suspects(corrupt(part, name, 5)) for name in CORRUPTIONS}
    assert {name: kinds for name, kinds in found.items() if kinds} == {}


def test_every_kind_is_seen_among_them(bundled):
    """Each fault in place of an image, with ordinary ones around it."""
    draw = np.random.default_rng(0)
    images = bundled[:6].copy()
    images[1] = images[0]
    images[2], images[4] = 0, 255
    images[3] = draw.integers(0, 256, images[3].shape)
    images[5] = corrupt(images[5:6], "brightness", 5)[0]
    images[5, 20:] = (0, 135, 0)
    assert suspects(images) == ["frozen", "black", "noise", "white", "torn"]


@pytest.mark.parametrize(("kind", "least"), [("noise", 1.0), ("frozen", 0.1)])
def test_what_is_mixed_in_is_seen(kind, least):
    """All of the noise; of a frame that comes again at random places, where two come together."""
    stream = open_data("bundled", Geometry(32)).open("clean", 5, limit=500)
    mixed = mixed_in(stream, {kind: 0.2}, severity=5, seed=0)
    found = suspects(np.concatenate([images for images, _ in mixed.batches(500)]))
    assert set(found) == {kind}
    assert least * 100 <= len(found) <= 100
