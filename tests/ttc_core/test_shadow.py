"""The source answers some images beside the service, and is believed where it is surer."""

import math
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.networks import make_images, make_model
from ttc_core.corruptions import corrupt
from ttc_core.evaluate import as_batch
from ttc_core.load import load
from ttc_core.methods import create
from ttc_core.methods.parts.diversity import Diversity
from ttc_core.methods.parts.shadow import Shadow


@pytest.fixture
def shadow():
    return Shadow(make_model())


def compare(shadow: Shadow, source: float, served: float, *, images: int, batch: int = 1) -> list:
    """Images with these entropies; returns the numbers of those that were compared."""
    compared = []
    for start in range(0, images, batch):
        count = min(batch, images - start)
        chosen = shadow.chosen(count)
        compared += [start + i for i in chosen]
        shadow.compared = shadow.after(count, [source] * len(chosen), [served] * len(chosen))
    return compared


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_the_first_images_are_compared_and_then_few(shadow, batch):
    """The same ones however they are grouped: at most one in eight over a thousand, of cameras
    that take turns as many."""
    compared = compare(shadow, 1.0, 1.0, images=1000, batch=batch)
    assert compared[:35] == [*range(32), 34, 51, 68]
    assert len(compared) <= 1000 / 8
    for cameras in (2, 3, 4, 8, 16):
        turns = [sum(i % cameras == each for i in compared[32:]) for each in range(cameras)]
        assert max(turns) - min(turns) <= 1
    shadow.reset()
    assert compare(shadow, 1.0, 1.0, images=60, batch=batch) == compared[:34]


def test_doubt_is_how_much_surer_the_source_is(shadow):
    """Nothing where it is not; a few images tell little, and later ones replace them."""
    compare(shadow, 1.0, 0.9, images=100)
    assert shadow.doubt == 0
    shadow.reset()
    compare(shadow, 0.5, 1.0, images=1)
    first = shadow.doubt
    compare(shadow, 0.5, 1.0, images=500)
    assert 0 < first < shadow.doubt < math.log(2)
    compare(shadow, 1.0, 0.5, images=2000)
    assert shadow.doubt == 0


def test_certain_answers_are_no_doubt(shadow):
    """A hundredth of a nat more than nothing is no matter."""
    compare(shadow, 0.0, 0.01, images=500)
    assert shadow.doubt < 0.3


@pytest.mark.parametrize("entropy", [math.nan, math.inf])
def test_answers_that_are_no_numbers_are_not_compared(shadow, entropy):
    compare(shadow, 0.5, 1.0, images=50)
    before = shadow.doubt
    compare(shadow, entropy, 1.0, images=50)
    compare(shadow, 0.5, entropy, images=50)
    assert shadow.doubt == before


def test_a_saved_comparison_goes_on(shadow):
    compare(shadow, 0.5, 1.0, images=77)
    other = Shadow(make_model())
    other.restore(shadow.state())
    assert (other.doubt, other.compared) == (shadow.doubt, shadow.compared)
    for name in ("source", "following", "images", "seen"):
        with pytest.raises(ValueError, match="one of its numbers"):
            other.restore({"shadow": {**shadow.state()["shadow"], name: -1.0}})


@pytest.mark.parametrize("norm", ["batch-norm", "group-norm"])
def test_the_source_answers_no_image_twice_nor_where_nothing_comes_of_it(norm, monkeypatch):
    """Also where late layers open within a batch; without BatchNorm it is not asked."""
    monkeypatch.setattr(Diversity, "_openness", lambda *_: 1.0)
    model, passes = make_model(norm), []
    assert model.takes_one
    run = model.run

    def counted(inputs, **seen):
        if not seen:
            passes.append(len(inputs))
        return run(inputs, **seen)

    monkeypatch.setattr(model, "run", counted)
    method = create("ttc_stream", model)
    for batch in make_images(96).split([80, 16]):
        method.adapt(method.predict(batch))
    assert method.details["late_layers"] == 1
    assert passes == ([32 + 3, 1] if norm == "batch-norm" else [])


@pytest.mark.parametrize("late", [0.0, 1.0])
def test_in_doubt_answers_are_nearer_to_the_sources(late, monkeypatch):
    """By a way that is no further than single images are apart, early and late layers."""
    monkeypatch.setattr(Diversity, "_openness", lambda *_: late)
    model = make_model()
    method = create("ttc_stream", model, prior=False, learn="never")
    for batch in make_images(96).split(48):
        method.adapt(method.predict(batch))
    images = make_images(10, seed=5)
    source = model.run(model.normalize(model.to_unit(images))).logits
    state, far = method.state(), []
    for following in (0.1, 1.5):
        compared = {"source": 0.1, "following": following, "images": 40, "seen": 96}
        method.restore({**state, "shadow": compared})
        far.append(float((method.predict(images).logits - source).norm()))
    assert far[1] < 0.9 * far[0]


@pytest.fixture(scope="module")
def network(shared_data: Path):
    return load(f"cifar/resnet20@{shared_data}/models/resnet20.th", device="cpu")


@pytest.fixture(scope="module", params=["frogs", "birds-and-frogs"])
def scene(request, shared_data: Path):
    """Images (N, 32, 32, 3) of one class, or of two in turns by chance, and their labels."""
    images, labels = (
        np.load(shared_data / "cifar10c" / f"{name}.npy") for name in ("clean", "labels")
    )
    shown = (labels == 6) | ((labels == 2) & (request.param != "frogs"))
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(shown))
    return images[chosen], labels[chosen]


@pytest.mark.parametrize("corruption", ["jpeg_compression", "snow"])
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 10, 200])
def test_few_classes_cost_nothing_against_the_frozen_network(batch, corruption, scene, network):
    """They look like weather: without doubt they cost it 20 points and more, all at once too."""
    images, labels = corrupt(scene[0], corruption, 5), scene[1]
    right = {}
    for name in ("source", "ttc_stream"):
        method, answers = create(name, network), []
        for start in range(0, len(images), batch):
            prediction = method.predict(as_batch(images[start : start + batch]))
            answers += prediction.probabilities.argmax(dim=1).tolist()
            method.adapt(prediction)
        right[name] = np.mean(answers == labels)
    assert right["ttc_stream"] > right["source"] - 0.01
