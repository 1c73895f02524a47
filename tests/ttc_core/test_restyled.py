"""The source with early layers that follow: a second opinion, and estimates on real streams."""

import numpy as np
import pytest
import torch

from tests.fixtures.datasets import read_all
from tests.fixtures.networks import make_images, make_model
from tests.ttc_core.test_estimate import harm
from ttc_core.corruptions import corrupt
from ttc_core.datasets import Geometry, open_data
from ttc_core.evaluate import as_batch
from ttc_core.guard.estimate import Judge
from ttc_core.guard.restyled import Restyled
from ttc_core.load import load
from ttc_core.methods import create


@pytest.fixture(scope="module")
def bundled():
    return load("bundled")


@pytest.fixture(scope="module")
def pictures():
    return read_all(open_data("bundled", Geometry(32)).open("clean", 5), 500)


def shown(pictures, name, classes=10):
    """80 images (H, W, 3) of so many classes under a corruption, and their labels."""
    images, labels = pictures
    chosen = np.flatnonzero(labels < classes)[:80]
    return corrupt(images[chosen], name, 5), labels[chosen]


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


def test_without_batch_norm_it_is_the_source():
    """Nothing follows, and nothing is kept."""
    model = make_model("group-norm")
    restyled, inputs = Restyled(model), normalized(model, make_images(8))
    found = follow(restyled, inputs, 4)
    assert torch.allclose(found, model.run(inputs).logits, atol=1e-5)
    assert restyled.style.moments.numel() == 0


def test_images_beyond_all_numbers_move_nothing():
    """The style stays, and so do later answers."""
    model = make_model()
    restyled, inputs = Restyled(model), normalized(model, make_images(4))
    assert restyled.answers(inputs * torch.nan)[1] is restyled.style


@pytest.mark.parametrize("takes_one", [False, True])
def test_a_lone_image_counts_once(monkeypatch, takes_one):
    """Also where the network would drop its axis, and sees it twice."""
    model, rows = make_model(), []
    model.takes_one = takes_one
    run = model.run
    monkeypatch.setattr(model, "run", lambda x, **seen: rows.append(len(x)) or run(x, **seen))
    logits, style = Restyled(model).answers(normalized(model, make_images(1)))
    assert (rows, logits.shape[0], style.images) == ([1 if takes_one else 2], 1, 1)


@pytest.mark.parametrize("size", [5, 20])
def test_it_sees_through_noise_that_the_source_does_not(bundled, pictures, size):
    """In batches of any size; on clean pictures it is about as good."""
    for name, gained in (("gaussian_noise", 0.1), ("clean", -0.05)):
        images, labels = shown(pictures, name)
        inputs = normalized(bundled, as_batch(images))
        right = [
            (logits.argmax(1).numpy() == labels).mean()
            for logits in (bundled.run(inputs).logits, follow(Restyled(bundled), inputs, size))
        ]
        assert right[1] > right[0] + gained


@pytest.mark.parametrize(
    ("method", "name", "classes"),
    [
        ("ttc_stream", "gaussian_noise", 10),
        ("ttc_stream", "clean", 1),
        ("tent", "gaussian_noise", 10),
        ("tent", "clean", 1),
    ],
)
def test_estimates_of_a_real_stream_hold_the_truth(bundled, pictures, method, name, classes):
    """Shuffled and of one class, helped and harmed by adaptation; harm of more than forty points
    shows, and nothing else does."""
    images, labels = shown(pictures, name, classes)
    adapted, restyled, judge = create(method, bundled), Restyled(bundled), Judge(10)
    harmed, right = [], []
    for start in range(0, len(labels), 10):
        batch = as_batch(images[start : start + 10])
        inputs = normalized(bundled, batch)
        prediction = adapted.predict(batch)
        second, restyled.style = restyled.answers(inputs)
        three = (bundled.run(inputs).logits.softmax(1), second.softmax(1), prediction.probabilities)
        judge.judged, chances = judge.after(*(each.detach().numpy() for each in three))
        adapted.adapt(prediction)
        harmed.append(harm(chances))
        answered = np.stack([three[2].argmax(1).numpy(), three[0].detach().argmax(1).numpy()])
        right.append(answered == labels[start : start + 10])
    ours, theirs = np.concatenate(right, axis=1).mean(axis=1)
    found = judge.whole
    assert found.adapted.low <= ours <= found.adapted.high
    assert found.source.low <= theirs <= found.source.high
    assert found.difference.low <= ours - theirs <= found.difference.high
    assert (np.concatenate(harmed).mean() > 0) == (ours < theirs - 0.4)
