"""How sure answers are told to be: their class stays, record and prior set the temperature."""

import math

import numpy as np
import pytest
import torch

from tests.fixtures.contract import same
from tests.fixtures.networks import make_images, make_model
from ttc_core.calibration import calibration_terms
from ttc_core.calibration_record import CalibrationRecord
from ttc_core.datasets import Geometry, open_data
from ttc_core.evaluate import as_batch, run_stream
from ttc_core.load import load
from ttc_core.methods import create
from ttc_core.methods.contract import HostPrediction, Pending, Prediction
from ttc_core.methods.parts.temperature import HORIZON, Temperature

CLASSES = 5


def answers(count, seed=0, sharpness=3.0):
    """(N, K) a prior's answers and the network's logits; every third is of another class."""
    draw = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(count, CLASSES, generator=draw)
    other = logits.clone()
    other[::3] = other[::3].roll(1, dims=1)
    return other.softmax(dim=1), logits


def predicted(probabilities, logits):
    nothing = np.zeros(len(logits))
    return HostPrediction(logits.numpy(), probabilities.numpy(), nothing, nothing > 0, 0).predicted


def commit(part, changed):
    empty = torch.empty(0)
    pending = Pending(after={"temperature": changed})
    part.commit(Prediction(empty, empty, empty, empty, 0, pending), learned=False)


@pytest.mark.parametrize("record", [None, 0.1, 0.7, 2.5, 10.0])
@pytest.mark.parametrize("sharpness", [0.0, 1e-7, 3.0, 300.0])
def test_the_class_stays(record, sharpness):
    """Also where rounding would make two nearly equal probabilities one, or all but one 0."""
    part = Temperature(record)
    part.changed = 0.9
    given, logits = answers(600, sharpness=sharpness)
    told = part.told(given, logits, np.full(600, 0.5)).probabilities
    np.testing.assert_array_equal(predicted(told, logits), predicted(given, logits))
    torch.testing.assert_close(told.sum(dim=1), torch.ones(600))
    assert ((told >= 0) & (told <= 1)).all()


def test_without_record_and_prior_answers_are_told_as_they_are():
    """The temperature is 1; also as long as the prior changes no class."""
    part = Temperature(None)
    given, logits = answers(50)
    assert torch.allclose(part.told(given, logits, np.full(50, np.nan)).probabilities, given)
    own = logits.softmax(dim=1)
    told = part.told(own, logits, np.full(50, 0.8))
    assert told.changed == 0
    assert torch.allclose(told.probabilities, own)


@pytest.mark.parametrize("record", [None, 0.7, 2.5])
def test_a_prior_that_changes_many_classes_makes_answers_less_sure(record):
    """Their share of the latest images is added to the temperature."""
    part = Temperature(record)
    given, logits = answers(1200)
    told = part.told(given, logits, np.full(1200, 0.9))
    assert told.changed == pytest.approx(1 / 3, abs=0.01)
    assert part.at(0.9, told.changed) == pytest.approx(part.at(0.9, 0.0) + told.changed)
    calm = Temperature(record).told(given[:20], logits[:20], np.full(20, 0.9)).probabilities
    commit(part, told.changed)
    troubled = part.told(given[:20], logits[:20], np.full(20, 0.9)).probabilities
    assert (troubled.max(dim=1)[0] < calm.max(dim=1)[0]).all()


@pytest.mark.parametrize("record", [0.7, 2.5])
def test_the_sources_temperature_holds_as_far_as_the_prior_has_no_say(record):
    """It is the network's: what the prior makes of an answer is as sure as it is."""
    part = Temperature(record)
    found = [part.at(weight, 0.0) for weight in (0.0, 0.5, 1.0)]
    assert found == pytest.approx([record, math.sqrt(record), 1.0])


def test_images_without_the_prior_get_the_records_temperature_and_move_nothing():
    """Their answers are the network's, whatever the prior did before."""
    part = Temperature(0.7)
    part.changed = 0.8
    _, logits = answers(10)
    told = part.told(logits.softmax(dim=1), logits, np.full(10, np.nan))
    assert torch.allclose(told.probabilities, (logits / 0.7).softmax(dim=1))
    assert told.changed == 0.8


def test_what_is_told_does_not_depend_on_how_images_are_grouped():
    """One by one or all at once: the share moves image by image."""
    given, logits = answers(300)
    weights = np.linspace(0.1, 0.9, 300)
    together, part = Temperature(2.0).told(given, logits, weights), Temperature(2.0)
    for at in range(0, 300, 7):
        rows = slice(at, at + 7)
        told = part.told(given[rows], logits[rows], weights[rows])
        torch.testing.assert_close(told.probabilities, together.probabilities[rows])
        commit(part, told.changed)
    assert part.changed == pytest.approx(together.changed)


def test_one_image_moves_the_temperature_a_little():
    """By a hundredth of the share at most."""
    part = Temperature(None)
    part.changed = 0.4
    given, logits = answers(1)
    told = part.told(given, logits, np.full(1, 0.9))
    assert abs(part.at(0.9, told.changed) - part.at(0.9, 0.4)) <= 1 / HORIZON


def test_a_row_that_is_no_answer_stays_none():
    """It is refused by who reads it, and the others do not notice."""
    given, logits = answers(4)
    given[1] = logits[1] = torch.nan
    weights = np.full(4, 0.5)
    weights[1] = np.nan
    told = Temperature(0.7).told(given, logits, weights)
    rest = [0, 2, 3]
    assert told.probabilities[1].isnan().all()
    assert same(
        told.probabilities[rest],
        Temperature(0.7).told(given[rest], logits[rest], weights[rest]).probabilities,
    )


@pytest.mark.parametrize("changed", [-0.1, 1.1, math.nan, "0.5", None])
def test_a_state_of_no_share_is_refused(changed):
    """Its file may be a stranger's."""
    part = Temperature(None)
    with pytest.raises(ValueError, match="one of its numbers"):
        part.restore({"temperature": {"changed": changed}})
    part.restore({"temperature": {"changed": 0.25}})
    assert part.state() == {"temperature": {"changed": 0.25}}
    part.reset()
    assert part.changed == 0


def record_of(model, temperature):
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(200, model.classes, generator=draw)
    found = CalibrationRecord.of(
        logits,
        logits.argmax(dim=1),
        model="small",
        model_digest=model.digest,
        data="made up",
        data_digest="0",
    )
    return found.model_copy(update={"temperature": temperature})


def test_nothing_but_what_is_told_depends_on_the_record():
    """Logits, classes, what is learned from, and the state after it are the same."""
    plain, recorded = make_model(), make_model()
    recorded.calibration = record_of(recorded, 0.4)
    methods = [
        create("ttc_stream", model, learn="always", samples_per_step=8, entropy_fraction=2)
        for model in (plain, recorded)
    ]
    assert [method.record_temperature for method in methods] == [None, 0.4]
    for seed in range(4):
        images = make_images(12, seed=seed)
        first, second = (method.predict(images) for method in methods)
        assert same(first.logits, second.logits)
        assert same(first.selected, second.selected)
        assert not same(first.probabilities, second.probabilities)
        np.testing.assert_array_equal(first.to_host().predicted, second.to_host().predicted)
        for method, prediction in zip(methods, (first, second), strict=True):
            method.adapt(prediction)
    assert methods[0].version > 0
    assert same(methods[0].state(), methods[1].state())


@pytest.fixture(scope="module")
def bundled():
    return load("bundled"), open_data("bundled", Geometry(32))


@pytest.mark.parametrize(
    ("corruption", "order", "most"),
    [("clean", "iid", 4.0), ("gaussian_noise", "iid", 5.0), ("fog", "runs:50", 25.0)],
)
def test_answers_on_the_bundled_network_are_about_as_sure_as_right(
    bundled, corruption, order, most
):
    """ECE in points over 400 images, of which some 2 are chance; frozen it is 8, 11 and 33."""
    model, data = bundled
    stream = data.open(corruption, 5, limit=400, order=order)
    columns = run_stream(create("ttc_stream", model), stream, 20).columns
    right = columns["predicted"] == columns["labels"]
    assert 100 * calibration_terms(columns["confidence"], right).mean() < most


def test_details_tell_the_temperature(bundled):
    """Of the next answer, by the weight that the prior has."""
    model, data = bundled
    method = create("ttc_stream", model)
    first = model.calibration.temperature ** (1 - method.details["images_before"])
    assert method.details["temperature"] == pytest.approx(first)
    ((images, _),) = data.open("fog", 5, limit=100, order="runs:50").batches(100)
    method.adapt(method.predict(as_batch(images)))
    assert method.details["temperature"] > 1
    method.reset()
    assert method.details["temperature"] == pytest.approx(first)
