"""Labels that come hold a stream whose harm is seen by nothing else."""

from dataclasses import replace

import pytest
import torch

from service.replay import to_png
from tests.fixtures.requests import ask
from ttc_core.datasets import Geometry, open_data
from ttc_core.guard import watched
from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods import create

COUNT = 160


class Erring(Wrapper):
    """Answers two images in five with the class that is second best."""

    def predict(self, images, *, learn=True, **asked):
        said = self.inner.predict(images, learn=learn, **asked)
        rows = torch.arange(len(said)) % 5 < 2
        first, second = said.logits.topk(2).indices[rows].T
        swapped = said.logits.clone()
        swapped[rows, first], swapped[rows, second] = (
            said.logits[rows, second],
            said.logits[rows, first],
        )
        return replace(said, logits=swapped, probabilities=swapped.softmax(1))


@pytest.fixture(scope="module")
def clean():
    """Clean images as PNG files, and their classes."""
    stream = open_data("bundled", Geometry(32)).open("clean", 5, limit=COUNT)
    return [to_png(pixels) for pixels in stream.read(stream.positions)], stream.labels.tolist()


@pytest.fixture
def erring(model):
    """Make a method that errs, and what watches it."""
    return lambda mode="on": watched(Erring(create("ttc", model, statistics="moving")), mode)


def ids_of(at):
    return [f"{number}" for number in range(at, at + 10)]


def follow(running, clean, way, start=0, stop=COUNT):
    """Send images in tens, labels along or at once afterwards; the modes of the answers."""
    (images, labels), modes = clean, []
    for at in range(start, stop, 10):
        part, names = labels[at : at + 10], ids_of(at)
        along = {"labels": part} if way == "along" else {"ids": names}
        said = ask(running, images[at : at + 10], params={"stream": "gate"}, **along)
        modes += [each["mode"] for each in said["predictions"]]
        running.at_rest()
        if way == "later":
            tell(running, names, part)
    return modes


def tell(running, names, labels):
    entries = [
        {"stream": "gate", "id": name, "label": label}
        for name, label in zip(names, labels, strict=True)
    ]
    response = running.http.post("/feedback", json={"labels": entries})
    assert response.status_code == 200, response.text
    return response.json()


def test_labels_hold_a_stream_that_errs(serve, erring, clean):
    """Suspected, held and reset for what labels say, and each act tells so."""
    with serve(source=erring(), max_batch=10) as running:
        modes = follow(running, clean, "later", stop=80)
        gate = running.at_rest()["streams"]["gate"]
        assert (
            running.metric('ttc_guard_actions_total{action="hold",observed="false",reason="harm"}')
            == 1
        )
        assert running.metric('ttc_resets_total{cause="guard"}') == 1
    at = modes.index("held")
    assert modes == ["adapting"] * at + ["held"] * (80 - at)
    assert at <= 40
    assert gate["mode"] == "held"
    acts = [(act["action"], act["reason"]) for act in gate["guard"]]
    assert acts == [("hold", "suspicion"), ("hold", "harm"), ("reset", "harm")]
    assert all(act["evidence"]["bets_on_labelled"] > 0 for act in gate["guard"])
    assert gate["details"]["harm"] < 5 < gate["details"]["harm_by_labels"]


@pytest.mark.parametrize("way", ["along", "never"])
def test_without_such_labels_the_same_harm_is_not_seen(serve, erring, clean, way):
    """Of 28 points: the estimate has to allow for its own errors. Labels that come with the images
    are for measuring, and change nothing."""
    with serve(source=erring(), max_batch=10) as running:
        assert set(follow(running, clean, way)) == {"adapting"}
        gate = running.at_rest()["streams"]["gate"]
    assert gate["guard"] == []
    assert (gate["details"]["labelled_of_compared"], gate["details"]["harm_by_labels"]) == (0, 1)


def weighed(running):
    return running.at_rest()["streams"]["gate"]["details"]["labelled_of_compared"]


def test_each_label_is_weighed_once_and_of_compared_images_alone(serve, erring, clean):
    """The first 32 are compared, then one in 17; a second label changes nothing, nor one of an
    image that teaches nothing."""
    images, labels = clean
    with serve(source=erring("observe"), max_batch=10) as running:
        follow(running, clean, "never", stop=60)
        for count in (10, 0):
            assert tell(running, ids_of(20), labels[20:30])["weighed"] == count
            assert weighed(running) == 10
        told = tell(running, [str(number) for number in range(60)], labels[:60])
        assert (told["taken"], told["weighed"]) == (50, 32 + 2 - 10)
        assert weighed(running) == 32 + 2
        ask(running, images[60:68], params={"stream": "gate"})
        running.at_rest()
        params = {"stream": "gate", "learn": False}  # the next would be compared
        ask(running, images[68:69], ids=["unlearned"], params=params)
        assert tell(running, ["unlearned"], labels[68:69])["taken"] == 1
        assert weighed(running) == 32 + 2
        ask(running, images[68:69], ids=["learned"], params={"stream": "gate"})
        assert tell(running, ["learned"], labels[68:69])["taken"] == 1
        assert weighed(running) == 32 + 3


def test_labels_of_answers_before_a_reset_tell_nothing(serve, erring, clean):
    """They count for the accuracy, and say nothing of what answers since."""
    _, labels = clean
    with serve(source=erring(), max_batch=10) as running:
        follow(running, clean, "never", stop=20)
        assert running.http.post("/reset?stream=gate").status_code == 200
        follow(running, clean, "never", start=20, stop=30)
        told = tell(running, [str(number) for number in range(30)], labels[:30])
        assert (told["taken"], told["weighed"], weighed(running)) == (30, 10, 10)


@pytest.mark.usefixtures("often_kept")
def test_what_labels_said_and_of_which_answers_outlives_a_restart(serve, erring, clean, tmp_path):
    """Labels of what the process before answered are weighed, but for those before a rollback."""
    _, labels = clean

    def running():
        return serve(source=erring("observe"), max_batch=10, state_dir=tmp_path)

    with running() as first:
        follow(first, clean, "never", stop=10)
        assert first.http.post("/rollback?stream=gate").status_code == 200
        follow(first, clean, "never", start=10, stop=20)
        tell(first, ids_of(10)[:4], labels[10:14])
        assert weighed(first) == 4
    with running() as second:
        follow(second, clean, "never", start=20, stop=30)
        told = tell(second, [str(number) for number in range(20)], labels[:20])
        assert (told["taken"], weighed(second)) == (16, 10)
