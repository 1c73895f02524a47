"""What lasts is finite, and what is not to be learned from costs no graph."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.contract import same
from tests.fixtures.networks import MEAN, SIZE, STD, make_images, make_model, make_network
from ttc_core.methods import METHODS, PAPER_METHODS, create
from ttc_core.methods.parts.statistics import MovingShare
from ttc_core.model import SourceModel

LEARNERS: dict[str, dict[str, Any]] = {
    "tent": {},
    "eta": {"entropy_fraction": 1.0, "redundancy_margin": 1.01},
    "tipi": {},
    "ttc": {"samples_per_step": 6},
}
SIX = 6


@pytest.mark.parametrize("statistics", ["batch", "moving"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", LEARNERS)
def test_a_step_to_what_is_no_number_is_not_taken(name, optimizer, statistics):
    """A learning rate beyond reason: parameters, optimizer, statistics and counters stay."""
    model = make_model()
    given = {"statistics": statistics, "optimizer": optimizer}
    method = create(name, model, **given, lr=0.01, **LEARNERS[name])
    method.adapt(method.predict(make_images(SIX)))
    hasty = create(name, model, **given, lr=1e38, **LEARNERS[name])
    hasty.restore(method.state())
    before = hasty.state()
    for seed in (1, 2):
        outcome = hasty.adapt(hasty.predict(make_images(SIX, seed)))
        assert (outcome.skipped, outcome.stepped, outcome.loss) == ("non_finite", False, None)
        assert same(hasty.state(), before)
    assert outcome.drift == hasty.drift == method.drift
    assert hasty.predict(make_images(SIX)).is_finite()


def test_a_step_beyond_the_networks_precision_is_not_taken():
    """Masters of float32 would hold 1e6; the network of half precision would not."""
    model = SourceModel(make_network("batch-norm").half(), mean=MEAN, std=STD, size=SIZE)
    method = create("tent", model, lr=1e6)
    before = method.state()
    assert method.adapt(method.predict(make_images(SIX))).skipped == "non_finite"
    assert same(method.state(), before)


def test_a_step_at_the_streams_end_is_undone_alike():
    """Nothing was stepped, and what waits still waits."""
    method = create("ttc", make_model(), samples_per_step=100, lr=1e38, flush_at_end=True)
    method.adapt(method.predict(make_images(SIX)))
    before = method.state()
    assert method.end() is False
    assert same(method.state(), before)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("name", ["norm", "t3a", *LEARNERS])
def test_moments_that_are_no_numbers_are_not_taken(name, learn, value):
    """Answers may be finite though a square overflowed; it would spoil every later answer."""
    method = create(name, make_model(), statistics="moving", **LEARNERS.get(name, {}))
    method.adapt(method.predict(make_images(SIX)))
    before = method.state()
    prediction = method.predict(make_images(SIX, 1))
    share = prediction.pending.share
    assert isinstance(share, MovingShare)
    broken = share.moments["norm1"].clone()
    broken[1, 3] = value
    share = MovingShare(share.images, {**share.moments, "norm1": broken})
    prediction = replace(prediction, pending=replace(prediction.pending, share=share))
    assert method.adapt(prediction, learn=learn).skipped == "non_finite"
    assert same(method.state(), before)


VARIANTS = [
    *((name, {}) for name in METHODS),
    *((name, {"statistics": "moving"}) for name in PAPER_METHODS if name != "source"),
    ("tent", {"flip": True}),
    ("ttc", {"rla": False}),
    ("tipi", {"entropy_weight": 1.0}),
    ("tipi", {"answer": "after"}),
]


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_without_learning_no_graph_is_kept(name, settings):
    """The same answers to the last bit, the same move of the statistics, and nothing held."""
    method = create(name, make_model(), **settings)
    images = make_images(SIX)
    method.adapt(method.predict(images))
    expected = method.predict(images)
    held: list[int] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: held.append(tensor.nbytes) or tensor, lambda tensor: tensor
    )
    with hooks:
        prediction = method.predict(images, learn=False)
    for part in ("logits", "probabilities", "entropy", "selected"):
        assert torch.equal(getattr(prediction, part), getattr(expected, part))
    assert held == [] or settings.get("answer") == "after"  # whose answer needs a gradient
    for value in vars(prediction.pending).values():
        assert not (isinstance(value, Tensor) and value.requires_grad)
    other = method.fork()
    other.restore(method.state())
    method.adapt(prediction, learn=False)
    other.adapt(expected, learn=False)
    assert same(method.state(), other.state())


@pytest.mark.parametrize("name", LEARNERS)
def test_what_was_answered_without_a_graph_cannot_be_learned_from(name):
    """A mistake of the caller's, and said as one; nothing has moved."""
    method = create(name, make_model(), statistics="moving", **LEARNERS[name])
    before = method.state()
    with pytest.raises(ValueError, match="made with learn=False"):
        method.adapt(method.predict(make_images(SIX), learn=False))
    assert same(method.state(), before)


def test_forks_of_t3a_share_the_first_supports():
    """A thousand classes' supports are read from the head once."""
    method = create("t3a", make_model())
    first = method.fork().state
    method.adapt(method.predict(make_images(SIX)))
    fork = method.fork()
    assert same(fork.state(), first())
    assert fork._memory.kept.features.data_ptr() == method._first_supports.features.data_ptr()
