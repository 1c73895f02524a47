"""ETA's selection and weights, beyond what the golden vectors and the contract hold."""

import math

import pytest
import torch

from tests.fixtures.networks import CLASSES, make_images, make_model
from ttc_core.methods import create


@pytest.fixture(scope="module")
def model():
    return make_model()


def test_only_sure_answers_are_selected_at_first(model):
    """H(x) < fraction · ln K; nothing is redundant before anything was learned."""
    prediction = create("eta", model, entropy_fraction=0.7).predict(make_images(32))
    expected = prediction.entropy < 0.7 * math.log(CLASSES)
    assert torch.equal(prediction.selected, expected)
    assert 0 < expected.sum() < 32


def test_answers_like_those_learned_from_are_left_out(model):
    """|cos| to the moving mean of the selected answers must stay below the margin."""
    method = create("eta", model, entropy_fraction=0.95, redundancy_margin=0.8)
    first = method.predict(make_images(32))
    method.adapt(first)
    mean = first.probabilities[first.selected].mean(dim=0)
    torch.testing.assert_close(method.state()["mean_answer"]["probabilities"], mean)
    second = method.predict(make_images(32, seed=1))
    reliable = second.entropy < 0.95 * math.log(CLASSES)
    likeness = torch.cosine_similarity(mean[None], second.probabilities)
    assert torch.equal(second.selected, reliable & (likeness < 0.8))
    assert 0 < second.selected.sum() < reliable.sum()
    method.adapt(second)
    moved = 0.9 * mean + 0.1 * second.probabilities[second.selected].mean(dim=0)
    torch.testing.assert_close(method.state()["mean_answer"]["probabilities"], moved)


def test_sure_answers_weigh_more(model):
    """L = mean of exp(E0 − H)·H over the selected."""
    method = create("eta", model, entropy_fraction=0.9, redundancy_margin=1.01)
    prediction = method.predict(make_images(32))
    entropies = prediction.entropy[prediction.selected]
    weights = torch.exp(0.9 * math.log(CLASSES) - entropies)
    outcome = method.adapt(prediction)
    assert outcome.loss == pytest.approx(float((weights * entropies).mean()), rel=1e-5)
    assert outcome.entropy == pytest.approx(float(entropies.mean()), rel=1e-5)


def test_nothing_sure_moves_nothing_and_forgets_nothing(model):
    """No step, and the mean answer stays."""
    method = create("eta", model, entropy_fraction=0.9, redundancy_margin=1.01)
    method.adapt(method.predict(make_images(16)))
    mean = method.state()["mean_answer"]["probabilities"]
    prediction = method.predict(make_images(16, seed=1))
    prediction.selected[:] = False
    assert method.adapt(prediction).skipped == "none_selected"
    assert method.state()["mean_answer"]["probabilities"].equal(mean)
    method.reset()
    assert method.state()["mean_answer"] == {}
