"""Algorithm 1 of the paper, typed in whole with plain PyTorch, equals our TTC to the last bit."""

import pytest
import torch

from benchmarks.algorithm_1 import Algorithm1
from ttc_core.datasets import Geometry, open_data
from ttc_core.evaluate import as_batch
from ttc_core.load import load
from ttc_core.methods import create


@pytest.mark.parametrize(
    ("batch_size", "q", "images"),
    [
        pytest.param(100, 2, 500, id="batches-of-100", marks=pytest.mark.slow),
        pytest.param(20, 10, 240, id="batches-of-20"),
    ],
)
def test_ttc_is_algorithm_1_to_the_last_bit(batch_size, q, images):
    """Every logit of every batch, and every adapted parameter at the end."""
    model = load("bundled")
    ours = create("ttc", model)
    copy = load("bundled")
    theirs = Algorithm1(copy.module, copy.split, copy._mean, copy._std, q)
    stream = open_data("bundled", Geometry(32)).open("gaussian_noise", 5, limit=images)
    for number, (batch, _) in enumerate(stream.batches(batch_size), start=1):
        pixels = as_batch(batch)
        expected = theirs(pixels.contiguous())
        prediction = ours.predict(pixels)
        assert torch.equal(prediction.logits, expected), f"batch {number}"
        assert ours.adapt(prediction).stepped == (number % q == 0)
    own = dict(copy.module.named_parameters())
    adapted = ours.state()["affine"]
    assert len(adapted) == 38
    for name, value in adapted.items():
        assert torch.equal(value, own[name]), name
        assert not torch.equal(value, model.affine[name]), f"{name} has not moved"
