"""`ttc serve --adapt on-shift`: what a client sees of a stream that is learned, and changes."""

from io import BytesIO

import httpx
import pytest
from PIL import Image

from tests.fixtures.forked import launch
from tests.fixtures.load import load_of
from tests.fixtures.requests import ask


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Settled after few images."""
    monkeypatch.setattr("ttc_core.guard.on_shift.WINDOW", 16)


@pytest.fixture
def source(make_method):
    return make_method("ttc", samples_per_step=8, on_shift=True)


def test_a_settled_stream_is_told_and_learns_again_when_its_pictures_change(
    serve, source, pictures, dark_pictures
):
    """In answers, status and metrics; over a restart, too, and a reset forgets it."""
    settings = {"method": "ttc", "source": source, "adapt": "on-shift"}
    with serve(**settings) as running:
        modes = [modes_of(running, pictures[at : at + 8]) for at in (0, 8, 16, 24)]
        assert modes == ["adapting", "adapting", "settled", "settled"]
        status = running.at_rest()["streams"]["default"]
        assert (status["mode"], status["version"]) == ("settled", 2)
        assert 0 < status["details"]["shift"] < 0.35
        reason = 'ttc_adaptation_skipped_total{reason="settled"}'
        assert running.metric(reason) == 2
        assert running.metric("ttc_selected_images_total") > 0
        found = [modes_of(running, dark_pictures[at : at + 8]) for at in range(0, 64, 8)]
        assert found[0] == "settled"
        assert "adapting" in found
        assert found[-1] == "settled"  # that is how it looks now
        assert running.at_rest()["streams"]["default"]["version"] == 4
        running.http.post("/reset")
        assert modes_of(running, pictures[:8]) == "adapting"


def test_learning_is_shed_under_load_as_with_auto(serve, source, pictures):
    """It is told as that, and what was to be learned is learned later."""
    with serve(method="ttc", source=source, adapt="on-shift") as running:
        running.service.batcher._shedding.look(load_of(1.0))
        answer = ask(running, pictures[:8])
        assert {each["shed"] for each in answer["predictions"]} == {"learning"}
        running.at_rest()
        assert running.metric('ttc_adaptation_skipped_total{reason="shed"}') == 1
        assert [modes_of(running, pictures[at : at + 8]) for at in (8, 16)] == ["adapting"] * 2


def test_a_settled_stream_loses_nothing_under_load(serve, source, pictures):
    """It would not have learned."""
    with serve(method="ttc", source=source, adapt="on-shift") as running:
        assert [modes_of(running, pictures[at : at + 8]) for at in (0, 8)] == ["adapting"] * 2
        running.at_rest()
        running.service.batcher._shedding.look(load_of(1.0))
        answer = ask(running, pictures[16:24])
        assert {(each["mode"], each["shed"]) for each in answer["predictions"]} == {
            ("settled", None)
        }


def test_a_settled_stream_stays_so_over_a_restart(serve, source, pictures, tmp_path):
    settings = {"method": "ttc", "source": source, "adapt": "on-shift", "state_dir": tmp_path}
    with serve(**settings) as running:
        for at in (0, 8):
            ask(running, pictures[at : at + 8])
    with serve(**settings) as running:
        assert modes_of(running, pictures[16:24]) == "settled"


def test_the_command_line_takes_it():
    """The flag is handed to the method that `ttc serve` makes."""
    with launch("--device", "cpu", "--threads", "1", "--adapt", "on-shift") as server:
        found = httpx.get(f"{server.url}/status").json()["settings"]
    assert found["server"]["adapt"] == "on-shift"
    assert found["method"]["on_shift"]


def modes_of(running, images):
    """The mode of a request's answers, once what came before is adapted to."""
    running.at_rest()
    (mode,) = {each["mode"] for each in ask(running, images)["predictions"]}
    return mode


@pytest.fixture
def dark_pictures(pictures):
    """The same, with a lamp gone."""

    def darkened(picture):
        file = BytesIO()
        Image.open(BytesIO(picture)).convert("RGB").point(lambda level: level // 4).save(
            file, "PNG"
        )
        return file.getvalue()

    return [darkened(each) for each in pictures]
