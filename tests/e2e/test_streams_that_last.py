"""What outlives a request: streams over restarts, and their bound."""

import asyncio
import resource

import pytest

from service.app import build
from service.launch import launch
from service.settings import Settings
from service.state_folder import StateFolder
from tests.fixtures.engine import own
from tests.fixtures.methods import Plain
from tests.fixtures.requests import ask


@pytest.mark.parametrize("name", ["default", "a.b:c-d", "..", "."])
def test_a_stream_goes_on_where_it_stood_after_a_restart(
    serve, make_method, pictures, tmp_path, name
):
    """With a state folder, the answers after a restart are those of a server that never ended."""
    stream = {"stream": name}
    with serve(
        source=make_method("ttc", samples_per_step=16), state_dir=tmp_path, max_batch=8
    ) as running:
        for at in range(0, 24, 8):
            ask(running, pictures[at : at + 8], params=stream)
        ask(running, pictures[:8], params={"stream": "other"})
    with serve(source=make_method("ttc", samples_per_step=16), max_batch=8) as running:
        for at in range(0, 24, 8):
            ask(running, pictures[at : at + 8], params=stream)
        unbroken = ask(running, pictures[24:32], params=stream)
    with serve(
        source=make_method("ttc", samples_per_step=16), state_dir=tmp_path, max_batch=8
    ) as running:
        status = running.status()
        assert (status["streams"], status["saved_streams"]) == ({}, 2)
        resumed = ask(running, pictures[24:32], params=stream)
        assert running.at_rest()["saved_streams"] == 1
    assert resumed == unbroken
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_state_of_another_method_is_left_aside(serve, pictures, tmp_path):
    """The start says so, the stream starts at the source, and its file leads back to it."""
    with serve(method="ttc", state_dir=tmp_path, max_batch=64) as running:
        ask(running, pictures[:8])
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with serve(method="tent", state_dir=tmp_path) as running:
        unfit = running.wait_for(
            lambda: (found := running.status()["saved_unfit"])["streams"] == 2 and found
        )
        assert unfit["reasons"] == {"method ttc, not tent": 1, "no state that can be read": 1}
        for name in ("default", "broken"):
            ask(running, pictures[:1], params={"stream": name})
        assert running.at_rest()["saved_unfit"]["streams"] == 0
        said = [event for event in running.status()["events"] if event["event"] == "saved_unfit"]
        assert [event["streams"] for event in said] == [2]
    assert {path.name for path in tmp_path.glob("*.rejected")} == {
        *("default.rejected", "broken.rejected")
    }
    (tmp_path / "default.rejected").rename(tmp_path / "default.safetensors")
    with serve(method="ttc", state_dir=tmp_path, max_batch=64) as running:
        ask(running, pictures[:8])
        assert running.at_rest()["streams"]["default"]["images"] == 16


def test_streams_are_bounded(serve, pictures):
    """A new stream beyond --max-streams is refused; those that are there go on."""
    with serve(method="source", max_streams=2) as running:
        for name in ("a", "b"):
            ask(running, pictures[:1], params={"stream": name})
        problem = ask(running, pictures[:1], expect=429, params={"stream": "c"})
        assert "2 streams" in problem["detail"]
        assert problem["title"] == "Too many streams"
        assert running.metric('ttc_rejected_images_total{reason="streams"}') == 1
        ask(running, pictures[:1], params={"stream": "a"})
        running.at_rest()
        running.http.post("/reset?stream=b")  # which frees its place
        ask(running, pictures[:1], params={"stream": "c"})


def test_a_method_with_the_verbs_alone_is_served(serve, make_method, pictures):
    """Version, settings, selection and the option not to learn are a method's own business."""
    with serve(source=own(Plain(make_method("source").model)), method="mine:Plain") as running:
        ask(running, pictures[:4])
        status = running.at_rest()
    assert [event["event"] for event in status["events"]] == ["started"]
    assert status["streams"]["default"]["batches"] == 1
    assert status["settings"]["method"] == {}


def test_an_end_whose_save_failed_is_no_good_end(make_method, tmp_path, monkeypatch):
    """Whatever the reason: the status says so, and the folder is free for the next process."""
    app = build(Settings(method="source", state_dir=tmp_path), make_method("source"))

    async def walk():
        async with app.router.lifespan_context(app):
            monkeypatch.setattr(app.state.service.engine, "save", fail)

    async def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(walk())
    assert not app.state.service.saved
    StateFolder(tmp_path, method="source", model="bundled").close()


def processor_seconds():
    """What all processes took that this one started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.slow
@pytest.mark.timeout(600)  # four starts of a server
def test_a_start_with_ten_thousand_saved_streams_takes_as_long_as_with_none(tmp_path):
    """None of them is opened; the cheaper of two lives each, in turns.

    In processor time, which what runs beside the tests does not add to.
    """
    none, many = tmp_path / "none", tmp_path / "many"
    many.mkdir()
    for number in range(10_000):
        (many / f"s{number}.safetensors").write_bytes(b"to be opened by nobody")
    took = {none: [], many: []}
    for _ in range(2):
        for folder, seconds in took.items():
            before = processor_seconds()
            with launch("--method", "source", "--device", "cpu", "--state-dir", str(folder)):
                pass
            seconds.append(processor_seconds() - before)
    assert min(took[many]) < 1.5 * min(took[none])
