"""TIPI's perturbation and its two answers, beyond what the golden vectors and the contract hold."""

import pytest
import torch

from tests.fixtures.networks import make_images, make_model
from ttc_core.methods import create
from ttc_core.objective import divergence, entropy

EPSILON = 2 / 255


@pytest.fixture(scope="module")
def model():
    return make_model()


def signs(images):
    random = torch.Generator().manual_seed(5)
    return torch.randint(-1, 2, images.shape, generator=random)


def test_the_loss_is_the_divergence_from_the_plain_answer(model):
    """KL of the perturbed answer from the plain one, plus β times the plain one's entropy."""
    images = make_images(8)
    direction = signs(images)
    start = torch.full_like(images, 0.5, dtype=torch.float) * EPSILON
    method = create("tipi", model, statistics="source", entropy_weight=2.0)
    outcome = method.adapt(method.predict(images, start=start, direction=direction))
    unit = images / 255
    moved = (start + EPSILON * direction).clamp(-EPSILON, EPSILON)
    plain = model.run(model.normalize(unit)).logits
    perturbed = model.run(model.normalize(unit + moved)).logits
    expected = divergence(perturbed, plain).mean() + 2 * entropy(plain).mean()
    assert outcome.loss == pytest.approx(float(expected), rel=1e-4)
    assert outcome.selected == 8


def test_the_direction_is_the_one_in_which_the_divergence_grows(model):
    """Sought by itself, it gives a larger loss than its opposite, from the same start."""
    images = make_images(8)
    start = (2 * torch.rand(images.shape) - 1) * EPSILON
    losses = {}
    for name, direction in (("sought", None), ("random", signs(images))):
        method = create("tipi", model)
        prediction = method.predict(images, start=start, direction=direction)
        losses[name] = method.adapt(prediction).loss
    assert losses["sought"] > losses["random"]


def test_the_answer_after_the_step_is_that_of_the_moved_parameters(model):
    """Adapting makes for good the step that predicting made on a copy."""
    images = make_images(8)
    before, after = create("tipi", model), create("tipi", model, answer="after")
    plain, ahead = before.predict(images), after.predict(images)
    assert not torch.equal(plain.logits, ahead.logits)
    assert ahead.version == 0
    assert after.adapt(ahead) == before.adapt(plain)
    assert after.version == before.version == 1
    torch.testing.assert_close(before.predict(images).logits, ahead.logits)


def test_each_batch_draws_its_own_start_and_a_reset_draws_the_first_again(model):
    """The seed decides, so that a run can be repeated."""
    images = make_images(8)
    method = create("tipi", model)
    losses = [method.adapt(method.predict(images)).loss for _ in range(2)]
    method.reset()
    assert [method.adapt(method.predict(images)).loss for _ in range(2)] == losses
    other = create("tipi", model, seed=1)
    assert other.adapt(other.predict(images)).loss != losses[0]


def test_from_zero_the_direction_is_rounding_noise(model):
    """The divergence of an answer from itself has no slope (METHOD §1.6, trap)."""
    images = make_images(8)
    method = create("tipi", model, start="zero", statistics="source")
    outcome = method.adapt(method.predict(images))
    assert outcome.loss is not None
    assert 0 <= outcome.loss < 0.1
