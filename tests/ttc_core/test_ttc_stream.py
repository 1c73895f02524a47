"""The default on the bundled network: what a camera's stream gets, in whatever order it comes."""

import math
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tests.fixtures.contract import BATCH, batches, same, ttc_stream, walk
from tests.fixtures.networks import make_images, make_model
from ttc_core.datasets import CleanData, Geometry, open_data
from ttc_core.datasets.clean import STREAM_FILE
from ttc_core.evaluate import as_batch, run_stream
from ttc_core.load import load
from ttc_core.methods import create
from ttc_core.methods.parts.gradient import Gradient
from ttc_core.methods.parts.learner import AffineLearner
from ttc_core.methods.ttc_stream import FADES, LEARNING_RATE, TTCStream, TTCStreamSettings

IMAGES = 300
CORRUPTIONS = ["fog", "gaussian_noise"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """So that sums come in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    return load("bundled", device="cpu")


@pytest.fixture(scope="module")
def data():
    return open_data("bundled", Geometry(32))


@pytest.fixture(scope="module")
def columns(model, data):
    """What a method answers to a stream; each is run once."""
    known = {}

    def run(name, corruption, order="iid", batch=10):
        key = name, corruption, order, batch
        if key not in known:
            stream = data.open(corruption, 5, limit=IMAGES, order=order)
            known[key] = run_stream(create(name, model), stream, batch).columns
        return known[key]

    return run


@pytest.fixture(scope="module")
def accuracy(columns):
    def measure(*asked, **options):
        found = columns(*asked, **options)
        return 100 * (found["predicted"] == found["labels"]).mean()

    return measure


@pytest.mark.slow
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_it_gains_on_shuffled_images(accuracy, corruption):
    """Against the frozen network, within 300 images."""
    assert accuracy("ttc_stream", corruption) > accuracy("source", corruption) + 5


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_order_costs_nothing(accuracy, corruption):
    """Sorted by class, which undoes statistics of the batch, it is as good as shuffled."""
    assert accuracy("ttc_stream", corruption, "sorted") >= accuracy("ttc_stream", corruption) - 1


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_one_class_costs_nothing(accuracy, corruption):
    """Against the frozen network, which does not adapt to what comes alone."""
    assert (
        accuracy("ttc_stream", corruption, "one:1") >= accuracy("source", corruption, "one:1") - 1
    )


def test_one_class_after_diverse_images_costs_nothing(model, data):
    """A camera that has seen much and then one thing only: what it follows lasts."""
    method = create("ttc_stream", model)
    for images, _ in data.open("gaussian_noise", 5, limit=200).batches(10):
        method.adapt(method.predict(as_batch(images)))
    assert method.details["late_layers"] == 1
    right = []
    for images, labels in data.open("gaussian_noise", 5, order="one:1", limit=400).batches(10):
        prediction = method.predict(as_batch(images))
        right += list(prediction.probabilities.argmax(dim=1).numpy() == labels)
        method.adapt(prediction)
    assert np.mean(right[-100:]) > 0.9


@pytest.mark.parametrize("batch", [1, 10, 50])
def test_what_was_learned_fades(model, data, batch):
    """By the images that come, however they are grouped: what one condition taught is gone under
    the next, of which it may be that nothing can be learned."""
    method = create("ttc_stream", model)
    for images, _ in data.open("gaussian_noise", 5, limit=200).batches(50):
        method.adapt(method.predict(as_batch(images)))
    steps, drifts = method.version, []
    for images, _ in data.open("gaussian_noise", 5, order="one:1", limit=200).batches(batch):
        method.adapt(method.predict(as_batch(images)))
        drifts.append(method.drift)
    assert steps == method.version > 0  # of one class nothing is learned
    assert drifts == sorted(drifts, reverse=True)
    half = len(drifts) // 2
    assert drifts[-1] / drifts[half - 1] == pytest.approx(np.exp(-100 / FADES), rel=1e-3)
    restored = method.fork()
    restored.restore(method.state())
    assert restored.drift == method.drift


def test_what_is_learned_has_a_bound(model):
    """However long a stream: even steps all in one direction end where as much fades meanwhile."""
    learner = AffineLearner(model, TTCStreamSettings.create("ttc_stream", model.classes, {}))
    always = even_gradient(learner)
    furthest = []
    for _ in range(100):
        learner.fade(-math.expm1(-50 / FADES))
        assert learner.learn(always, images=50, step=True).stepped
        moved = learner.parameters.detach() - model.source_affine
        furthest.append(float(moved.abs().max()))
    bound = LEARNING_RATE / -math.expm1(-50 / FADES)
    assert furthest[-1] == pytest.approx(bound, rel=1e-3)
    assert furthest == pytest.approx(sorted(furthest))


def test_what_was_learned_is_gone_in_the_end():
    """Image by image, which are the shortest ways: to the source's own numbers, not near them."""
    learner = small_learner()
    learner.learn(even_gradient(learner), images=50, step=True)
    assert learner.drift > 1e-4
    for _ in range(10 * FADES):
        learner.fade(-math.expm1(-1 / FADES))
    assert learner.drift == 0
    assert learner.parameters.data_ptr() == learner._model.source_affine.data_ptr()


def test_what_nobody_may_learn_from_lets_nothing_fade(learned):
    """What is shed under load, and what a settled stream does not learn from: both ask for none."""
    before, drift = learned.state()["affine"], learned.drift
    assert drift > 0
    for seed in range(3):
        prediction = learned.predict(make_images(BATCH, seed=seed), learn=False)
        assert learned.adapt(prediction, learn=False).skipped == "shed"
    assert same(learned.state()["affine"], before)
    assert learned.drift == drift


def test_drift_is_measured_once_a_batch(learned, monkeypatch):
    """Each makes a GPU wait; with a step, without one, and where nothing is selected."""
    measured, measure = [], AffineLearner._measure

    def counted(*given):
        measured.append(1)
        return measure(*given)

    monkeypatch.setattr(AffineLearner, "_measure", counted)
    skipped, stepped = set(), set()
    for seed in range(6):
        prediction = learned.predict(make_images(BATCH, seed=seed))
        if seed > 3:
            nobody = torch.zeros_like(prediction.selected)
            prediction = replace(prediction, selected=nobody)
        outcome = learned.adapt(prediction)
        skipped.add(outcome.skipped)
        stepped.add(outcome.stepped)
        assert measured == [1]
        measured.clear()
    assert (skipped, stepped) == ({None, "none_selected"}, {False, True})


def test_what_waits_is_not_written_into(monkeypatch):
    """SGD with Nesterov's momentum does so with the gradients it is given, as it runs on a GPU."""
    learner = small_learner(optimizer="sgd", lr=3e38, momentum=0.9, nesterov=True)
    usual = torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", partial(usual, foreach=True))
    learner.learn(even_gradient(learner), images=50, step=False)
    before = learner.state()
    assert not learner.step()
    assert same(learner.state(), before)


def small_learner(**settings):
    model = make_model()
    found = TTCStreamSettings.create("ttc_stream", model.classes, settings)
    return AffineLearner(model, found)


def even_gradient(learner):
    return Gradient(torch.ones_like(learner.parameters.detach()), 0.0, 0.0, None, 50, None)


@pytest.fixture
def learned():
    """The default on a small network, behind a step."""
    case = ttc_stream()
    method = create(case.name, make_model(), **case.settings)
    walk(method, batches(3))
    return method


@pytest.mark.slow
@pytest.mark.parametrize(("corruption", "equal"), [("fog", 0.92), ("gaussian_noise", 0.96)])
def test_it_hardly_matters_how_images_are_grouped(columns, accuracy, corruption, equal):
    """One by one or ten at once: nearly the same answers, as often right."""
    one_by_one, grouped = (columns("ttc_stream", corruption, batch=size) for size in (1, 10))
    assert np.mean(one_by_one["predicted"] == grouped["predicted"]) >= equal
    assert accuracy("ttc_stream", corruption, batch=1) == pytest.approx(
        accuracy("ttc_stream", corruption), abs=1.5
    )


def test_answering_changes_nothing(model, data):
    """However often the same images are asked about, amid a stream; only adapting moves it."""
    method = create("ttc_stream", model)
    batches = [as_batch(images) for images, _ in data.open("fog", 5, limit=100).batches(20)]
    for images in batches[:4]:
        method.adapt(method.predict(images))
    before, first = method.state(), method.predict(batches[4])
    for learn, context in ((True, None), (False, None), (True, [False] * 20), (False, [True] * 20)):
        method.predict(batches[4], learn=learn, context=context)
        method.predict(batches[0], learn=learn, context=context)
    assert same(method.state(), before)
    again = method.predict(batches[4], learn=False)
    assert same(again.probabilities, first.probabilities)
    assert same(again.selected, first.selected)


def same_told(prediction, method):
    """Whether the probabilities are the logits' alone, at the temperature of the model's record."""
    alone = (prediction.logits / method.record_temperature).softmax(dim=1)
    return torch.allclose(prediction.probabilities, alone, atol=1e-6)


def test_an_image_that_stands_alone_gets_the_networks_own_answer(model, data):
    """Its logits' softmax at the record's temperature: the images before have a say in it only by
    what the network is."""
    method = create("ttc_stream", model)
    ((run, _),) = data.open("fog", 5, limit=80, order="one:1").batches(80)
    method.adapt(method.predict(as_batch(run)))
    ((images, _),) = data.open("fog", 5, limit=20).batches(20)
    own = method.predict(as_batch(images), context=[False] * 20)
    assert same_told(own, method)
    with_context = method.predict(as_batch(images))
    assert same(with_context.logits, own.logits)
    assert not same(with_context.probabilities, own.probabilities)
    before = method.state()["context"]
    method.adapt(own)
    assert same(method.state()["context"], before)


def test_without_the_prior_no_image_has_a_say_in_another(model, data):
    """`--set ttc_stream.prior=false`."""
    method = create("ttc_stream", model, prior=False)
    ((run, _),) = data.open("fog", 5, limit=80, order="one:1").batches(80)
    prediction = method.predict(as_batch(run))
    assert same_told(prediction, method)


def test_what_never_learns_selects_nothing(model, data):
    """`--set ttc_stream.learn=never`: nobody is told that it learns, nor waits for it to."""
    ((images, _),) = data.open("fog", 5, limit=100).batches(100)
    assert create("ttc_stream", model, learn="always").predict(as_batch(images)).selected.any()
    method = create("ttc_stream", model, learn="never")
    prediction = method.predict(as_batch(images))
    assert not prediction.selected.any()
    assert method.adapt(prediction).skipped == "none_selected"
    assert method.adapts == method.fork().adapts == {"moments"}
    assert method.state()["moments"]["early_images"] == 100


def test_no_gradient_is_taken_of_nothing(model, data, monkeypatch):
    """A camera that sees one class, of which nothing is learned, pays for no backward pass."""
    ((images, _),) = data.open("fog", 5, limit=80, order="one:1").batches(80)
    method = create("ttc_stream", model)
    prediction = method.predict(as_batch(images))
    monkeypatch.setattr(type(method), "_gradient", None)
    assert method.adapt(prediction).skipped == "none_selected"


@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("count", [0, 3, 5])
def test_context_is_said_of_each_image(model, data, prior, count):
    """Neither too few truth values nor too many: nobody knows whose they are."""
    ((images, _),) = data.open("fog", 5, limit=4).batches(4)
    method = create("ttc_stream", model, prior=prior)
    with pytest.raises(ValueError, match=rf"^context has {count} truth values for 4 images"):
        method.predict(as_batch(images), context=[True] * count)


def test_a_batch_that_is_answered_again_needs_the_memory_of_one_pass(model, data, monkeypatch):
    """What the first pass made is gone before the second begins."""
    ((images, _),) = data.open("gaussian_noise", 1, limit=100).batches(100)
    method, look, seen = create("ttc_stream", model), TTCStream._look_at, []

    def watched(*given):
        assert all(each() is None for each in seen)
        found = look(*given)
        seen.append(weakref.ref(found))
        return found

    monkeypatch.setattr(TTCStream, "_look_at", watched)
    method.predict(as_batch(images))
    assert len(seen) == 2


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_the_first_layers_keep_their_scales_and_shifts(model, data, weight_decay):
    """Five of nineteen, whole layers; those behind move."""
    method = create("ttc_stream", model, learn="always", weight_decay=weight_decay)
    for images, _ in data.open("fog", 5, limit=120).batches(40):
        method.adapt(method.predict(as_batch(images)))
    assert method.version > 0
    affine = method.state()["affine"]
    moved = [not same(affine[name], model.affine[name]) for name in model.affine]
    assert moved == [False] * 10 + [True] * 28


def test_weather_that_changes_and_comes_back_is_recognised(model, data):
    """Fog, then contrast, then fog: two conditions are known, not three."""
    method = create("ttc_stream", model)
    for corruption in ("fog", "contrast", "fog"):
        for images, _ in data.open(corruption, 5, limit=150, order="iid").batches(10):
            method.adapt(method.predict(as_batch(images)))
        if corruption == "fog":
            fog = method.details["conditions"]
    assert fog == method.details["conditions"] == 2


@pytest.fixture(scope="module")
def small_pictures():
    """The bundled stream's, drawn smaller in their frame: 28 pixels in the middle of 32."""
    with np.load(STREAM_FILE) as file:
        pictures, labels = file["pictures"], file["labels"].astype(np.int64)
    framed = np.pad(pictures, ((0, 0), (2, 2), (2, 2)))
    return CleanData(np.repeat(framed[..., None], 3, axis=3), labels, Geometry(32))


@pytest.mark.parametrize(("batch", "order"), [(10, 1), (50, 2)])
def test_fog_after_clear_weather_is_answered_as_fog_from_the_start(
    model, small_pictures, batch, order
):
    """The network has other favourites in it than before, which are no run of one class."""
    accuracy = {}
    for corruptions in (("fog",), ("clean", "fog")):
        method = create("ttc_stream", model)
        for corruption in corruptions:
            right = []
            stream = small_pictures.open(corruption, 5, limit=250, order="iid", seed=order)
            for images, labels in stream.batches(batch):
                prediction = method.predict(as_batch(images))
                right += list(prediction.probabilities.argmax(dim=1).numpy() == labels)
                method.adapt(prediction)
        accuracy[corruptions] = np.mean(right[-150:])
    assert method.details["conditions"] == 2
    # Without counting anew it is some thirty points below.
    assert accuracy["clean", "fog"] > accuracy["fog",] - 0.1
