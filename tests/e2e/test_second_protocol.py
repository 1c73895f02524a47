"""Another protocol is a route file of its own: it enters at any stage, within the same limits."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from service.problems import FORMS
from tests.fixtures import second_protocol
from tests.fixtures.requests import ask, classes, problem
from tests.fixtures.second_protocol import frame, pack


@pytest.fixture(scope="module")
def second(serve):
    """Serve with the second protocol's route mounted: two lines elsewhere."""

    def with_route(app):
        app.include_router(second_protocol.router)
        FORMS["/second"] = second_protocol.error
        return app

    def running(**settings):
        return serve(**{"method": "source", "wrap": with_route} | settings)

    yield running
    del FORMS["/second"]


@pytest.fixture(scope="module")
def running(second):
    with second() as running:
        yield running
        assert running.service.intake.memory.held == 0


def pixels_of(pictures):
    return [np.asarray(Image.open(io.BytesIO(picture))) for picture in pictures]


def found(answer):
    """The classes of an answer; each image's in order."""
    assert answer.status_code == 200, answer.text
    return [int(np.argmax(one["logits"])) for one in answer.json()]


def refused(answer, status):
    """The sentence of a refusal in the protocol's own form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    (error,) = answer.json().items()
    assert error[0] == "error"
    assert error[1].endswith(".")
    return error[1]


def test_files_and_pixels_are_answered_as_predict_answers(running, pictures):
    """At the second stage and at the third, one image and several, with ids."""
    expected = classes(ask(running, pictures[:40]))
    files = running.http.post("/second/a/files", content=frame(*pictures[:40]))
    assert found(files) == expected
    assert [one["name"] for one in files.json()] == [f"frame-{number}" for number in range(40)]
    arrays = running.http.post("/second/a/pixels", content=pack(pixels_of(pictures[:40])))
    assert found(arrays) == expected
    assert found(running.http.post("/second/a/files", content=frame(pictures[0]))) == expected[:1]


def test_labels_are_counted(running, pictures, labels):
    """Those that come with files and those that come with pixels."""
    before = running.at_rest()["counters"]["labelled_images_total"]
    numbers = ",".join(map(str, labels[:3]))
    running.http.post(f"/second/a/files?labels={numbers}", content=frame(*pictures[:3]))
    running.http.post("/second/a/pixels", content=pack(pixels_of(pictures[:3]), labels[:3]))
    assert running.at_rest()["counters"]["labelled_images_total"] == before + 6


def test_streams_learn_apart_unless_told_not_to(second, pictures):
    """The stream is the route's to name; `learn` off moves nothing."""
    with second(method="ttc") as running:
        for stream, learn in (("taught", "true"), ("spared", "false")):
            for way, body in (
                ("files", frame(*pictures[:100])),
                ("pixels", pack(pixels_of(pictures[:100]))),
            ):
                url = f"/second/{stream}/{way}?learn={learn}"
                assert running.http.post(url, content=body).status_code == 200
        streams = running.at_rest()["streams"]
        assert streams["taught"]["version"] >= 1
        assert streams.get("spared", {"version": 0})["version"] == 0


@pytest.mark.parametrize("way", ["files", "pixels"])
def test_limits_hold_and_are_told_in_the_form_of_the_route(second, pictures, way):
    """Count, bytes, labels; each counted as for /predict, and nothing is held afterwards."""
    bodies = {
        "files": lambda images: frame(*pictures[:images]),
        "pixels": lambda images: pack(pixels_of(pictures[:images])),
    }
    with second(max_images=3, max_body=20_000) as running:
        url = f"/second/a/{way}"
        assert len(found(running.http.post(url, content=bodies[way](3)))) == 3
        assert "at most 3" in refused(running.http.post(url, content=bodies[way](4)), 413)
        assert "20,000" in refused(running.http.post(url, content=bytes(20_001)), 413)
        assert "cut short" in refused(running.http.post(url, content=b"\0\0\xff\0"), 400)
        assert running.metric('ttc_rejected_images_total{reason="too_large"}') >= 2
        assert running.metric('ttc_rejected_images_total{reason="unreadable"}') == 1
        if way == "files":
            wrong = running.http.post(f"{url}?labels=1,10", content=bodies[way](2))
        else:
            wrong = running.http.post(url, content=pack(pixels_of(pictures[:2]), [1, 10]))
        assert "Image 2 of 2: the label 10 is not a class" in refused(wrong, 422)
        assert running.service.intake.memory.held == 0
        # /predict keeps its own form.
        problem(running.http.post("/predict", content=bytes(20_001)), 413)


@pytest.mark.parametrize("way", ["files", "pixels"])
def test_nothing_is_refused_by_being_left_out(running, way):
    """A request without an image is a sentence in the form of the route."""
    assert "image" in refused(running.http.post(f"/second/a/{way}", content=b""), 422)


@pytest.mark.parametrize("way", ["files", "pixels"])
def test_a_deadline_that_passes_is_told_in_the_form_of_the_route(second, held, pictures, way):
    """504, while the device is busy with another image."""
    source, gates = held("source")
    body = frame(pictures[0]) if way == "files" else pack(pixels_of(pictures[:1]))
    with second(source=source) as running, ThreadPoolExecutor(1) as pool:
        gates.predict.clear()
        gates.predicting.clear()
        try:
            first = pool.submit(ask, running, pictures[:1])
            assert gates.predicting.wait(30)
            late = running.http.post(f"/second/a/{way}?timeout=0.05", content=body)
            assert "deadline" in refused(late, 504)
        finally:
            gates.open()
        assert len(first.result(60)["predictions"]) == 1


def test_every_error_has_the_form_of_the_route(second, pictures):
    """Those of the guards, of the query's values, of names, and our own failures."""
    with second(token="0123456789abcdef") as running:
        url = "/second/a/files"
        refused(running.http.post(url, content=frame(pictures[0])), 401)
        running.http.headers["Authorization"] = "Bearer 0123456789abcdef"
        assert "learn" in refused(running.http.post(f"{url}?learn=perhaps", content=b"x"), 422)
        assert "'leran'" in refused(running.http.post(f"{url}?leran=false", content=b"x"), 422)
        assert "a stream's name is 1 to 64" in refused(
            running.http.post("/second/a%20b/files", content=frame(pictures[0])), 422
        )
        # Its own parser's mistake.
        assert "log has the reason" in refused(running.http.post(url, content=b"abc"), 500)
        assert running.service.intake.memory.held == 0
