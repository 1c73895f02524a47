"""What every method promises about what it learns, and about what it says of it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.fixtures.contract import (
    BATCH,
    MOVED,
    Case,
    batches,
    eta,
    follows,
    moves,
    same,
    same_answers,
    ttc_stream,
    walk,
    without_what_follows,
)
from tests.fixtures.networks import CLASSES, SIZE, make_images, make_model
from ttc_core.methods import create
from ttc_core.model import SourceModel
from ttc_core.objective import entropy

FOLLOWED = ("batch", "moving")


def test_only_what_the_class_says_ever_moves(method):
    """`adapts` is the whole truth about affine parameters, moments and supports."""
    before = method.state()
    walk(method, batches(5))
    after = method.state()
    moved = {part for part in MOVED if not same(before.get(part, {}), after.get(part, {}))}
    expected = set(method.adapts)
    if not follows(method):
        expected -= {"moments"}
    assert moved == expected
    assert set(before.get("affine", {})) <= set(method.model.affine)


def test_what_moves_is_named_as_in_the_network(learner):
    """`state()["affine"]` can be put into the network itself."""
    walk(learner, batches(4))
    affine = learner.state()["affine"]
    own = dict(learner.model.module.named_parameters())
    assert {name: value.shape for name, value in affine.items()} == {
        name: own[name].shape for name in own if name.startswith("norm")
    }


def test_a_batch_in_which_nothing_is_selected_moves_no_parameter(learner):
    """No step, no gradient kept, no NaN from a mean over nothing; moving statistics excepted."""
    learner.adapt(learner.predict(batches(1)[0]))
    before = learner.state()
    prediction = learner.predict(make_images(BATCH, seed=5))
    prediction = replace(prediction, selected=torch.zeros_like(prediction.selected))
    outcome = learner.adapt(prediction)
    assert outcome.skipped == "none_selected"
    assert (outcome.selected, outcome.stepped, outcome.loss) == (0, False, None)
    after = learner.state()
    assert same(without_what_follows(after), without_what_follows(before))
    assert same(after["moments"], before["moments"]) != follows(learner)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
def test_an_answer_that_is_no_number_teaches_nothing(method, value):
    """One broken pixel: parameters, statistics, optimizer and counters stay, and say why."""
    walk(method, batches(3))
    before = method.state()
    ahead = method.predict(make_images(BATCH, seed=9))
    images = make_images(BATCH) / 255
    images[2, 1, 3, 3] = value
    prediction = method.predict(images)
    assert not prediction.is_finite()
    outcome = method.adapt(prediction)
    assert same(method.state(), before)
    assert not outcome.stepped
    if method.adapts:
        assert outcome.skipped == "non_finite"
    assert same_answers(method.predict(make_images(BATCH, seed=9)), ahead)


@pytest.mark.parametrize("statistics", FOLLOWED)
def test_a_loss_that_is_no_number_teaches_nothing(device, statistics):
    """Finite answers whose similarity term overflows: the batch is as if it had not been."""
    network = make_model().module
    with torch.no_grad():
        network.get_submodule("head").weight *= 1e25
    model = SourceModel(network, mean=(0.5,) * 3, std=(0.2,) * 3, size=SIZE).to(device)
    method = create("ttc", model, ga=False, statistics=statistics, sigma=100.0)
    before = method.state()
    prediction = method.predict(make_images(BATCH))
    assert prediction.is_finite()
    assert method.adapt(prediction).skipped == "non_finite"
    assert same(method.state(), before)


@pytest.mark.parametrize(
    "case",
    [
        *(Case(name, {"statistics": each}) for name in ("tent", "ttc") for each in FOLLOWED),
        *(eta(statistics=each) for each in FOLLOWED),
        ttc_stream(),
    ],
    ids=lambda case: case.id,
)
@pytest.mark.parametrize("factor", [math.nan, math.inf], ids=["nan", "inf"])
def test_a_gradient_that_is_no_number_teaches_nothing(case, factor, models):
    """Finite answers, but their entropy's gradient overflows: nothing moves, nothing is kept."""
    method = create(case.name, models("batch-norm"), **case.settings)
    walk(method, batches(3))
    before = method.state()
    prediction = method.predict(make_images(BATCH))
    assert prediction.pending.entropy is not None
    pending = replace(prediction.pending, entropy=prediction.pending.entropy * factor)
    assert method.adapt(replace(prediction, pending=pending)).skipped == "non_finite"
    assert same(method.state(), before)


@pytest.mark.parametrize(
    "case", [Case("tent"), ttc_stream(samples_per_step=1)], ids=lambda case: case.id
)
def test_a_step_that_is_no_number_is_as_if_it_had_not_been(case, models):
    """What waits for it, and what was learned before, are the same to the last bit."""
    method = create(case.name, models("batch-norm"), **case.settings)
    walk(method, batches(3))
    before = method.state()
    assert method.drift > 0
    wild = create(case.name, models("batch-norm"), **{**case.settings, "lr": 3e38})
    wild.restore(before)
    assert wild.adapt(wild.predict(make_images(BATCH))).skipped == "non_finite"
    assert same(wild.state(), before)


def test_adapting_works_where_gradients_are_switched_off(method):
    """A caller's `no_grad` changes nothing, around predict, adapt or both."""
    images = batches(4)
    twin = method.fork()
    expected = walk(method, images)
    with torch.no_grad():
        assert same(walk(twin, images), expected)
    assert same(twin.state(), method.state())


def test_a_prediction_made_before_a_step_can_still_be_adapted(method):
    """Two batches in flight: the older graph is still whole after the newer one's step."""
    old, new = batches(2)
    method.adapt(method.predict(make_images(BATCH, seed=5)))
    waiting = method.predict(old)
    method.adapt(method.predict(new))
    before = method.state()
    outcome = method.adapt(waiting)
    assert outcome.skipped is None
    assert same(method.state(), before) != moves(method)
    assert method.predict(old).is_finite()


def test_without_learning_only_moving_statistics_move(method):
    """`learn=False` sheds the gradient, not the batch's share in the statistics."""
    walk(method, batches(3))
    before = method.state()
    outcome = method.adapt(method.predict(make_images(BATCH, seed=8)), learn=False)
    after = method.state()
    assert (outcome.loss, outcome.stepped) == (None, False)
    assert same(without_what_follows(after), without_what_follows(before))
    assert same(after.get("moments"), before.get("moments")) != follows(method)


def test_answers_are_what_their_names_say(method):
    """Shapes, rows that sum to 1, their entropy within [0, ln K]; without a prior the logits'."""
    walk(method, batches(3))
    prediction = method.predict(make_images(BATCH, seed=4))
    assert prediction.logits.shape == prediction.probabilities.shape == (BATCH, CLASSES)
    assert prediction.entropy.shape == prediction.selected.shape == (BATCH,)
    assert prediction.selected.dtype == torch.bool
    assert not prediction.logits.requires_grad
    assert len(prediction) == BATCH
    if "prior" not in method.settings:
        torch.testing.assert_close(prediction.probabilities, prediction.logits.softmax(dim=1))
    sums = prediction.probabilities.sum(dim=1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    of_answers = entropy(prediction.probabilities.log())
    torch.testing.assert_close(prediction.entropy, of_answers, atol=1e-5, rtol=1e-5)
    assert prediction.entropy.min() >= 0
    assert prediction.entropy.max() <= math.log(CLASSES) + 1e-6
    assert prediction.selected.any() == method.selects


def test_the_answers_on_the_host_equal_the_tensors(method):
    """One transfer loses nothing: numpy arrays of the same values, types and version."""
    walk(method, batches(2))
    prediction = method.predict(make_images(BATCH, seed=4))
    answers = prediction.to_host()
    for name in ("logits", "probabilities", "entropy", "selected"):
        np.testing.assert_array_equal(getattr(answers, name), getattr(prediction, name).cpu())
    assert answers.selected.dtype == np.bool_
    assert answers.version == prediction.version
    np.testing.assert_array_equal(answers.predicted, prediction.probabilities.argmax(dim=1).cpu())


def test_an_adaptation_says_what_happened(learner):
    """The loss given to backward, its terms, the images it is over, the drift after it."""
    prediction = learner.predict(batches(1)[0])
    outcome = learner.adapt(prediction)
    assert outcome.skipped is None
    assert outcome.selected == int(prediction.selected.sum())
    assert outcome.loss is not None
    assert outcome.entropy is not None
    assert math.isfinite(outcome.loss)
    assert outcome.stepped == (learner.pending_batches == 0)
    walk(learner, batches(3, seed=1))
    last = learner.adapt(learner.predict(batches(1)[0]))
    affine, source = learner.state()["affine"], learner.model.affine
    moved = torch.cat([(affine[name] - source[name]).flatten() for name in source]).norm()
    whole = torch.cat([tensor.flatten() for tensor in source.values()]).norm()
    assert last.drift == pytest.approx(float(moved / whole), rel=1e-5)
    assert last.drift > 0
    assert learner.version == learner.state()["counters"]["steps"] > 0
