"""The table of streams: bounds, pins, who makes room, and what comes back from the folder."""

import asyncio
import logging
import os

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from service import streams as streams_module
from service.engine import Engine, Image
from service.errors import StateNotRemoved, TooManyStreams
from service.metrics import Metrics
from tests.fixtures.methods import Plain
from tests.fixtures.networks import make_model
from ttc_core.methods import create

PIXELS = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def source():
    return create("ttc", make_model("batch-norm"), statistics="moving", samples_per_step=8)


@pytest.fixture
def clock(monkeypatch):
    """The table's clock, which a test may put forward."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(streams_module, "time", clock)
    return clock


@pytest.fixture
def engine(source):
    """Make engines; all are closed in the end."""
    made = []

    def make(state_dir=None, source=source, **options):
        metrics = Metrics(CollectorRegistry(), classes=source.model.classes, model={})
        made.append(
            Engine(
                source,
                metrics,
                method_name="ttc",
                model_spec="small",
                state_dir=state_dir,
                **options,
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


async def batch(engine, stream, pixels=PIXELS):
    """A batch as the batcher runs it, without a request behind it; its logits."""
    answers = await engine.predict(stream, [Image(one) for one in pixels])
    await engine.adapt(stream, learn=True)
    return answers[0].answers.logits


def request(engine, stream, pixels=PIXELS):
    """A request as the service runs it: admitted, answered, released."""

    async def run():
        engine.admit(stream)
        try:
            return await batch(engine, stream, pixels)
        finally:
            engine.release(stream)

    return asyncio.run(run())


def reset(engine, stream):
    return asyncio.run(engine.reset(stream))


def stop(engine):
    saved = asyncio.run(engine.save())
    engine.close()
    return saved


def events(engine, kind):
    return [event for event in engine.events if event["event"] == kind]


# The bound


def test_the_bound_holds_for_all_that_arrive_at_once(engine):
    """Of forty cameras that start at the same moment three have a place, before any is answered."""
    table = engine(max_streams=3)
    admitted = 0
    for number in range(40):
        try:
            table.admit(f"camera-{number}")
            admitted += 1
        except TooManyStreams:
            pass
    assert admitted == 3
    table.admit("camera-0")  # a second request of one that is there


def test_a_stream_that_never_answered_holds_no_place(engine):
    """Neither one whose first pass failed nor one whose request was refused after admission."""
    table = engine(max_streams=1)
    with pytest.raises(ValueError, match="shape"):
        request(table, "broken", [PIXELS[0], PIXELS[0][:4]])
    table.admit("left")
    table.release("left")
    request(table, "good")
    assert list(table.streams) == ["good"]


class Overflowing(Plain):
    """Its answers are no numbers."""

    def predict(self, images):
        prediction = super().predict(images)
        prediction.logits.fill_(np.nan)
        return prediction


def test_a_stream_whose_answers_were_all_refused_holds_no_place(engine, source):
    """Scores that are no numbers are no answers."""
    table = engine(source=Overflowing(source.model), max_streams=1)

    async def run():
        await table.predict("a", [Image(PIXELS[0])])
        await table.adapt("a", learn=True)

    asyncio.run(run())
    assert table.streams == {}


def test_without_a_folder_only_an_expired_stream_makes_room(engine, clock):
    """The refusal says when that is to the second, and then it is true; the place is another's."""
    table = engine(max_streams=2, stream_expiry=100.0)
    request(table, "a")
    clock.now += 30
    request(table, "b")
    with pytest.raises(TooManyStreams, match="2 streams already") as refused:
        table.admit("c")
    assert refused.value.retry_after == 70
    clock.now += 69
    with pytest.raises(TooManyStreams):
        table.admit("c")
    clock.now += 1
    request(table, "c")
    assert list(table.streams) == ["b", "c"]
    assert [(e["stream"], e["reason"]) for e in events(table, "evicted")] == [("a", "expired")]


def test_a_stream_in_use_does_not_expire(engine, clock):
    """Each answer begins its hour anew, and one with a request in flight is pinned."""
    table = engine(max_streams=1, stream_expiry=100.0)
    request(table, "a")
    clock.now += 90
    request(table, "a")
    clock.now += 90
    with pytest.raises(TooManyStreams) as refused:
        table.admit("b")
    assert refused.value.retry_after == 10
    table.admit("a")
    clock.now += 1000
    with pytest.raises(TooManyStreams) as refused:
        table.admit("b", lambda: 7.0)
    assert refused.value.retry_after == 107


def test_with_a_folder_the_least_recently_used_is_saved_and_makes_room(engine, tmp_path):
    """It comes back as it was, whoever went for it meanwhile."""
    table = engine(tmp_path, max_streams=2)
    for name in ("a", "b", "a", "c"):  # b is the least recently used
        request(table, name)
    assert list(table.streams) == ["a", "c"]
    assert [(e["stream"], e["reason"]) for e in events(table, "evicted")] == [("b", "saved")]
    request(table, "b")
    assert list(table.streams) == ["c", "b"]
    free = engine()
    for name in ("b", "b"):
        request(free, name)
    assert np.array_equal(request(table, "b"), request(free, "b"))


def test_a_pinned_stream_does_not_make_room(engine, tmp_path):
    """With all places pinned a new one is told when the requests in flight will have ended."""
    table = engine(tmp_path, max_streams=2)
    for name in ("a", "b"):
        request(table, name)
        table.admit(name)
    with pytest.raises(TooManyStreams, match="all are in use") as refused:
        table.admit("c", lambda: 4.2)
    assert refused.value.retry_after == 5
    table.release("a")
    request(table, "c")
    assert list(table.streams) == ["b", "c"]


def test_a_stream_asked_for_while_it_goes_is_kept_or_comes_back(engine, tmp_path):
    """Sixteen streams in two places, all at once: each learns as it would have alone."""
    table, free = engine(tmp_path, max_streams=2), engine()
    names = [f"s{n % 8}" for n in range(32)]
    got = [request(table, name) for name in names]
    expected = [request(free, name) for name in names]
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    assert len(table.streams) == 2


def test_bytes_are_bounded_beside_the_count(engine, tmp_path, source):
    """Room is made as for the count; a lone stream may be as large as it is."""
    one = streams_module._state_bytes(source)
    table = engine(max_stream_bytes=5 * one // 2)
    for name in ("a", "b"):
        request(table, name)
    with pytest.raises(TooManyStreams, match="bytes"):
        table.admit("c")
    saving = engine(tmp_path, max_stream_bytes=1)
    for name in ("a", "b", "c"):
        request(saving, name)
    assert list(saving.streams) == ["c"]
    assert asyncio.run(saving.saved_streams()) == 2


class Growing(Plain):
    """Keeps a thousand numbers of every batch."""

    def __init__(self, model):
        super().__init__(model)
        self.kept = []

    def adapt(self, prediction):
        self.kept.append(np.zeros(1000, np.float32))
        return super().adapt(prediction)

    def state(self):
        return {"mine": {"kept": torch.tensor(np.array(self.kept))}}

    def restore(self, state):
        self.kept = list(state["mine"]["kept"].numpy())


def test_a_stream_that_grows_takes_the_room_of_others(engine, tmp_path, source):
    """What grows with its images is measured again as it grows."""
    table = engine(tmp_path, source=Growing(source.model), max_stream_bytes=20_000)
    request(table, "small")
    for _ in range(8):
        request(table, "large")
    assert list(table.streams) == ["large"]
    assert table.streams["large"].bytes > 20_000


# What lasts


def test_more_saved_streams_than_places_come_when_asked_for(engine, tmp_path, monkeypatch):
    """Nothing is restored before; none is left out, also not with one place for three."""
    first = engine(tmp_path)
    for name in ("a", "b", "c"):
        request(first, name)
        request(first, name)
    assert stop(first)
    second = engine(tmp_path, max_streams=1)
    asyncio.run(second.start())
    assert second.streams == {}
    assert asyncio.run(second.saved_streams()) == 3
    for name in ("c", "a", "b"):
        request(second, name)
        assert second.streams[name].version == 1
    assert [event["stream"] for event in events(second, "restored")] == ["c", "a", "b"]


def test_a_start_opens_no_saved_stream(engine, tmp_path, monkeypatch):
    """With ten thousand of them it takes as long as with none."""
    for number in range(10_000):
        (tmp_path / f"s{number}.safetensors").touch()
    opened = []
    monkeypatch.setattr(
        "service.state_folder.load_state", lambda path, *_, **__: opened.append(path)
    )
    table = engine(tmp_path)
    asyncio.run(table.start())
    assert opened == []
    assert asyncio.run(table.saved_streams()) == 10_000


@pytest.mark.parametrize("stream", ["gate", None], ids=["one", "all"])
@pytest.mark.parametrize("loaded", [True, False], ids=["in-memory", "on-disk-only"])
def test_a_reset_outlasts_a_restart(engine, tmp_path, stream, loaded):
    """What was saved of it goes too, whether it had been asked for since the start or not."""
    first = engine(tmp_path)
    at_source = request(first, "gate")
    request(first, "gate")
    assert stop(first)
    second = engine(tmp_path)
    if loaded:
        second.admit("gate")
        asyncio.run(second.predict("gate", [Image(one) for one in PIXELS]))
        second.release("gate")
    assert reset(second, stream) == (["gate"], 1, 0)
    assert stop(second)
    third = engine(tmp_path)
    assert asyncio.run(third.saved_streams()) == 0
    assert np.array_equal(request(third, "gate"), at_source)


def test_a_reset_that_cannot_remove_the_file_says_so(engine, tmp_path, monkeypatch):
    """The stream is at the source here, the answer and the log tell that it would come back."""
    first = engine(tmp_path)
    at_source = request(first, "gate")
    request(first, "gate")
    assert stop(first)
    second = engine(tmp_path)

    def read_only(path, **_):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", read_only)
        with pytest.raises(StateNotRemoved, match="gate: Read-only file system"):
            reset(second, "gate")
        assert np.array_equal(request(second, "gate"), at_source)
    assert reset(second, "gate")[0] == ["gate"]
    assert asyncio.run(second.saved_streams()) == 0
    assert not list(tmp_path.glob("gate*"))


def test_a_reset_puts_another_programs_file_aside(engine, tmp_path):
    """It is no state of this stream: kept, under a name of its own."""
    (tmp_path / "gate.safetensors").write_bytes(b"somebody's")
    table = engine(tmp_path)
    reset(table, "gate")
    assert (tmp_path / "gate.rejected").read_bytes() == b"somebody's"


def test_what_cannot_be_saved_keeps_its_place(engine, tmp_path, monkeypatch):
    """A full disk: the newcomer is refused, nobody loses what was learned, and it mends itself."""
    table = engine(tmp_path, max_streams=1)
    request(table, "a")
    learned = table.streams["a"].method

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TooManyStreams):
            request(table, "b")
        assert table.streams["a"].method is learned
        assert not list(tmp_path.glob("*.safetensors*"))
        assert events(table, "not_saved")[0]["reason"] == "No space left on device"
    request(table, "b")
    assert list(table.streams) == ["b"]


def test_a_stream_that_cannot_be_told_apart_fails_alone_when_all_are_saved(engine, tmp_path):
    """What a method of a user's own raises is said of its stream; the others are saved."""
    table = engine(tmp_path)
    for name in ("a", "b"):
        request(table, name)

    def broken():
        raise ZeroDivisionError("mine")

    table.streams["a"].method.state = broken
    assert not stop(table)
    assert [(e["stream"], e["reason"]) for e in events(table, "not_saved")] == [("a", "mine")]
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["b.safetensors"]


@pytest.mark.parametrize("unreadable", [False, True], ids=["damaged", "not-permitted"])
def test_what_is_no_state_of_the_stream_is_never_written_over(
    engine, tmp_path, monkeypatch, unreadable
):
    """A damaged one is set aside at once; what may be good, only when its place is needed."""
    file = tmp_path / "gate.safetensors"
    file.write_bytes(b"precious")
    table = engine(tmp_path)
    if unreadable:
        monkeypatch.setattr("ttc_core.state.os.open", refuse_to_open(file))
    request(table, "gate")
    assert file.exists() == unreadable
    (rejected,) = events(table, "rejected")
    assert rejected["stream"] == "gate"
    assert stop(table)
    assert (tmp_path / "gate.rejected").read_bytes() == b"precious"
    assert file.exists()


def test_what_lay_in_a_streams_place_may_be_gone_when_it_is_saved(engine, tmp_path):
    """A link that leads nowhere and back, say, that somebody has removed meanwhile."""
    file = tmp_path / "gate.safetensors"
    file.symlink_to(file)
    table = engine(state_dir=tmp_path)
    request(table, "gate")
    file.unlink()
    assert stop(table)
    assert file.is_file()


def refuse_to_open(refused):
    real = os.open

    def open_file(path, *arguments, **options):
        if path == refused:
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    return open_file


def test_each_rejected_state_is_kept(engine, tmp_path):
    """Three foreign files one after another in one stream's place are three files afterwards."""
    for content in (b"one", b"two", b"three"):
        (tmp_path / "gate.safetensors").write_bytes(content)
        table = engine(tmp_path)
        request(table, "gate")
        table.close()
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("gate.rejected*")}
    assert kept == {
        "gate.rejected": b"one",
        "gate.rejected.1": b"two",
        "gate.rejected.2": b"three",
    }


def test_a_folder_that_cannot_be_written_is_read(engine, tmp_path, monkeypatch):
    """A warning at the start; what it holds is taken up, what does not fit stays where it is."""
    first = engine(tmp_path)
    request(first, "gate")
    assert stop(first)
    (tmp_path / "foreign.safetensors").write_bytes(b"foreign")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    second = engine(tmp_path, max_streams=2)
    asyncio.run(second.start())
    assert events(second, "not_saving")[0]["reason"] == "it cannot be written to"
    request(second, "gate")
    request(second, "foreign")
    assert [event["stream"] for event in events(second, "restored")] == ["gate"]
    assert (tmp_path / "foreign.safetensors").read_bytes() == b"foreign"
    with pytest.raises(TooManyStreams, match="idle for 3600 s"):
        second.admit("new")
    with pytest.raises(StateNotRemoved):
        reset(second, "gate")
    assert not stop(second)


def test_nothing_of_this_is_a_trace(engine, tmp_path, caplog):
    """Events are warnings in a sentence."""
    (tmp_path / "gate.safetensors").mkdir()
    table = engine(tmp_path)
    with caplog.at_level(logging.WARNING):
        request(table, "gate")
    assert caplog.records
    assert not any(record.exc_info for record in caplog.records)
    assert (tmp_path / "gate.rejected").is_dir()
