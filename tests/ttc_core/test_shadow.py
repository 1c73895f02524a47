"""The source answers some images beside the service, and is believed where it is surer."""

import math

import pytest

from tests.fixtures.networks import make_images, make_model
from ttc_core.methods import create
from ttc_core.methods.parts.shadow import EVERY, FIRST, Shadow


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
    """The same ones however they are grouped: at most one in eight over a thousand."""
    compared = compare(shadow, 1.0, 1.0, images=1000, batch=batch)
    assert compared == [*range(FIRST), *range(FIRST, 1000, EVERY)]
    assert len(compared) <= 1000 / 8
    shadow.restart()
    assert compare(shadow, 1.0, 1.0, images=100, batch=batch) == compared[: FIRST + 5]


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
    for name in ("source", "served", "images", "seen"):
        with pytest.raises(ValueError, match="one of its numbers"):
            other.restore({"shadow": {**shadow.state()["shadow"], name: -1.0}})


def test_the_source_answers_no_image_twice_nor_where_nothing_comes_of_it(monkeypatch):
    """Also where late layers open within a batch; without BatchNorm it is not asked."""
    images = make_images(40)
    for name, asked in (("batch-norm", [FIRST, 1]), ("group-norm", [])):
        model = make_model(name)
        passes, run = [], model.run

        def counted(inputs, run=run, passes=passes, **more):
            if not more:
                passes.append(len(inputs))
            return run(inputs, **more)

        monkeypatch.setattr(model, "run", counted)
        method = create("ttc_stream", model)
        for batch in images.split(FIRST):
            method.adapt(method.predict(batch))
        assert passes == asked
