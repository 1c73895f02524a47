"""Whether the images before have a say in an answer is asked for, and told."""

import numpy as np
import pytest
import torch

from service.replay import to_png
from tests.fixtures.requests import ask
from ttc_core.datasets import Geometry, open_data
from ttc_core.evaluate import as_batch

ALONE = {"context": "false", "learn": "false"}


@pytest.fixture(scope="module")
def run():
    """Fifty foggy images of class 1."""
    stream = open_data("bundled", Geometry(32)).open("fog", 5, limit=50, order="one:1")
    return stream.read(stream.positions)


def confidences(answer):
    return [each["confidence"] for each in answer["predictions"]]


def test_an_image_can_be_answered_as_if_it_came_alone(serve, make_method, run, pictures):
    """Its answer is the network's; the prior that the images before make moves it otherwise."""
    with serve(method="ttc_stream") as running:
        ask(running, [to_png(each) for each in run])
        running.at_rest()
        alone = ask(running, pictures[:10], params=ALONE)
        usual = ask(running, pictures[:10], params={"learn": "false"})
        again = ask(running, pictures[:10], params=ALONE)
    assert (alone["context"], usual["context"]) == (False, True)
    assert again["predictions"] == alone["predictions"]
    assert usual["predictions"] != alone["predictions"]
    stream = open_data("bundled", Geometry(32)).open("fog", 5, limit=256)
    method = make_method("ttc_stream")
    method.adapt(method.predict(as_batch(run)))
    images = as_batch(stream.read(stream.positions[:10]))
    scaled = method.predict(images).logits / method.record_temperature
    expected = scaled.softmax(dim=1).max(dim=1).values
    np.testing.assert_allclose(confidences(alone), expected, rtol=1e-5)


def test_images_that_stand_alone_have_no_say_in_later_answers(serve, run, pictures):
    """What the network takes for usual light follows them; what is expected next does not."""
    with serve(method="ttc_stream") as running:
        ask(running, [to_png(each) for each in run])
        running.at_rest()
        (before,) = running.service.engine.table.records
        context = running.service.engine.table.get(before).method.state()["context"]
        ask(running, pictures[:20], params={"context": "false"})
        running.at_rest()
        state = running.service.engine.table.get(before).method.state()
    assert state["moments"]["early_images"] == 70
    assert state["context"]["context_images"] == context["context_images"] == 50
    assert torch.equal(state["context"]["averages"], context["averages"])


def test_a_method_without_a_prior_says_so(serve, pictures):
    """Whichever way it is asked; the answers are the same."""
    with serve(method="source") as running:
        either = [ask(running, pictures[:3], params={"context": c}) for c in ("true", "false")]
    assert [answer["context"] for answer in either] == [False, False]
    assert either[0]["predictions"] == either[1]["predictions"]


def test_the_class_told_is_the_most_confident_one(serve, run, pictures):
    """Class, confidence, entropy and top_k are those of one and the same answer."""
    with serve(method="ttc_stream") as running:
        ask(running, [to_png(each) for each in run])
        answer = ask(running, pictures[:20], params={"top_k": 10})
    for each in answer["predictions"]:
        scores = [score["confidence"] for score in each["top_k"]]
        assert scores == sorted(scores, reverse=True)
        assert (each["class"], each["confidence"]) == (each["top_k"][0]["class"], scores[0])
        assert sum(scores) == pytest.approx(1, abs=1e-5)
        entropy = -sum(score * np.log(score) for score in scores if score > 0)
        assert each["entropy"] == pytest.approx(entropy, abs=1e-4)


@pytest.mark.parametrize("value", ["maybe", "2", ""])
def test_what_is_no_truth_value_is_refused_in_a_sentence(source_server, pictures, value):
    """It names the parameter."""
    problem = ask(source_server, pictures[:1], expect=422, params={"context": value})
    assert "context" in problem["detail"]
