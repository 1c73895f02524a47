"""The source with early layers that follow: a second opinion, and estimates on real streams."""

import numpy as np
import pytest
import torch

from tests.fixtures.networks import make_images, make_model
from ttc_core.corruptions import corrupt
from ttc_core.datasets import open_data
from ttc_core.evaluate import as_batch
from ttc_core.geometry import Geometry
from ttc_core.guard.estimate import Judge, harm
from ttc_core.guard.restyled import Restyled
from ttc_core.load import load
from ttc_core.methods import create


def normalized(model, images):
    return model.normalize(model.to_unit(images))


def follow(restyled, inputs, size):
    """Answers to all inputs in batches of this size, each committed."""
    found = []
    for batch in inputs.split(size):
        logits, restyled.style = restyled.answers(batch)
        found.append(logits)
    return torch.cat(found)


def test_it_begins_at_the_source_and_moves_only_what_is_committed():
    """To ask changes nothing; a reset is the start again."""
    model = make_model()
    restyled, inputs = Restyled(model), normalized(model, make_images(8))
    before = restyled.style
    first, after = restyled.answers(inputs)
    assert restyled.style is before
    assert torch.equal(restyled.answers(inputs)[0], first)
    restyled.style = after
    assert not torch.equal(restyled.answers(inputs)[0], first)
    restyled.reset()
    assert torch.equal(restyled.answers(inputs)[0], first)


def test_a_saved_style_goes_on_the_same():
    """And one of another network is refused."""
    model = make_model()
    restyled, other = Restyled(model), Restyled(model)
    inputs = normalized(model, make_images(8))
    follow(restyled, inputs, 4)
    other.restore(restyled.state())
    assert torch.equal(restyled.answers(inputs)[0], other.answers(inputs)[0])
    for wrong in (torch.zeros(3), None):
        with pytest.raises(ValueError, match="another network"):
            other.restore({"style": {"moments": wrong, "images": 1}})


@pytest.fixture(scope="module")
def bundled():
    return load("bundled")


@pytest.fixture(scope="module")
def pictures():
    """160 images (H, W, 3), shuffled, and their labels."""
    stream = open_data("bundled", Geometry(32)).open("clean", 5, limit=160)
    batches = list(stream)
    return [np.concatenate([np.asarray(each[part]) for each in batches]) for part in (0, 1)]
