"""What lasts of streams: saved, restored, reset, set aside."""

import asyncio
import logging
import math
import os
import threading
import time

import numpy as np
import pytest
import torch

from service import state_folder
from service.answering import Image
from service.errors import StateNotRemoved, TooManyStreams
from tests.fixtures.engine import value
from tests.fixtures.networks import make_model
from tests.fixtures.streams import PIXELS, batch, events, request, reset, stop
from ttc_core.evaluate import as_batch
from ttc_core.guard import watched
from ttc_core.methods import create
from ttc_core.state import save_state


@pytest.fixture(scope="module")
def guarded():
    return create("ttc", make_model("batch-norm"), guard="on", statistics="moving")


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
        second.table.admit("gate")
        asyncio.run(second.predict([("gate", [Image(one) for one in PIXELS])]))
        second.table.release("gate")
    told = reset(second, stream)
    assert (told.streams, told.known) == (["gate"], True)
    assert (told.discarded.steps, told.discarded.pending_batches) == (1, 0)
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
    told = reset(second, "gate")
    assert (told.streams, told.known) == (["gate"], True)
    assert asyncio.run(second.saved_streams()) == 0
    assert not list(tmp_path.glob("gate*"))


def test_a_reset_puts_another_programs_file_aside(engine, tmp_path):
    """It is no state of this stream: kept, under a name of its own."""
    (tmp_path / "gate.safetensors").write_bytes(b"somebody's")
    table = engine(tmp_path)
    reset(table, "gate")
    assert (tmp_path / "gate.rejected").read_bytes() == b"somebody's"


@pytest.mark.parametrize("early", [True, False], ids=["told-before", "told-after"])
def test_what_cannot_be_saved_keeps_its_place(engine, tmp_path, monkeypatch, early):
    """A full disk: newcomers are refused, nobody loses what was learned, and it mends itself.

    Whether it is full is told before or after the newcomer has the place.
    """
    monkeypatch.setattr("service.saving.RETRY_SECONDS", 0.0)
    table = engine(tmp_path, max_streams=1)
    request(table, "a")
    learned = table.streams["a"].method
    in_place, keep = threading.Event(), table.table.keep

    def full(descriptor):
        assert early or in_place.wait(60)
        raise OSError(28, "No space left on device")

    def kept(name, record):
        if early:
            table._writer.submit(int).result()
        try:
            return keep(name, record)
        finally:
            in_place.set()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        patch.setattr(table.table, "keep", kept)
        request(table, "b")  # until then nobody knew
        for newcomer in ("c", "d", "c"):
            with pytest.raises(TooManyStreams):
                request(table, newcomer)
        assert table.streams["a"].method is learned
        request(table, "a")
        assert table.streams["a"].batches == 2  # it goes on learning
        assert not list(tmp_path.glob("*.safetensors*"))
        failed = events(table, "not_saved")
        assert [event["stream"] for event in failed] == (["a"] if early else ["a", "b"])
        assert {event["reason"] for event in failed} == {"No space left on device"}
    with pytest.raises(TooManyStreams):
        request(table, "c")  # for which the disk is tried
    request(table, "c")
    assert list(table.streams) == ["c"]


def test_a_newcomer_is_told_that_nobody_can_be_saved(engine, tmp_path, monkeypatch):
    """The cause is the disk, and it is not tried for each who comes."""
    monkeypatch.setattr("service.saving.RETRY_SECONDS", 1000.0)
    table = engine(tmp_path, max_streams=1)
    request(table, "a")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        request(table, "b")
        for _ in range(3):
            with pytest.raises(TooManyStreams, match="none can be saved now, those idle") as told:
                request(table, "c")
            assert told.value.retry_after > 3000  # --stream-expiry
    (event,) = events(table, "not_saved")
    assert event["count"] == 1
    asyncio.run(table._save_changed())  # as it goes on doing in the background
    request(table, "c")
    assert list(table.streams) == ["c"]


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


@pytest.mark.parametrize(
    "kept",
    [
        *({"images": -1}, {"images": True}, {"images": 1.5}, {"suspects": {"black": "1"}}),
        *({"held_since": math.nan}, {"doubted_since": 1e300}, {"acts": [{"action": "hold"}]}),
    ],
    ids=str,
)
def test_a_state_beside_which_nonsense_is_kept_is_set_aside(engine, guarded, tmp_path, kept):
    """Its counts and times are told to people; so it is no state of ours."""
    file = tmp_path / "gate.safetensors"
    save_state(file, guarded, name="ttc", model="small", of_stream=kept)
    table = engine(tmp_path, source=guarded)
    asyncio.run(table.look_at_saved())
    assert table.saved_doubted() == {}
    request(table, "gate")
    (rejected,) = events(table, "rejected")
    assert f"keeps beside its state is none: {next(iter(kept))}" in rejected["reason"]
    assert (tmp_path / "gate.rejected").exists()
    assert table.streams["gate"].images == len(PIXELS)


def test_a_file_put_in_a_streams_place_is_not_written_over(engine, tmp_path):
    """Neither where the stream came from a file nor where there was none; our own file is."""
    for already in (False, True):
        table = engine(tmp_path)
        request(table, "gate")
        (tmp_path / "gate.safetensors").write_bytes(b"put back by its operator")
        assert stop(table)
        (event,) = events(table, "set_aside")
        assert event["stream"] == "gate"
        kept = tmp_path / ("gate.rejected.1" if already else "gate.rejected")
        assert kept.read_bytes() == b"put back by its operator"
    table = engine(tmp_path, max_streams=1)
    for name in ("gate", "other", "gate", "other"):
        request(table, name)
    assert stop(table)
    assert not events(table, "set_aside")
    assert {path.name for path in tmp_path.glob("gate*")} == {
        *("gate.safetensors", "gate.rejected", "gate.rejected.1")
    }


def test_asking_without_learning_moves_no_file(engine, tmp_path):
    """Whatever lies in the stream's place stays there, and is told of once."""
    file = tmp_path / "gate.safetensors"
    file.write_bytes(b"precious")
    table = engine(tmp_path)
    for _ in range(3):
        asyncio.run(table.predict([("gate", [Image(PIXELS[0])])], learn=False))
    assert file.read_bytes() == b"precious"
    assert [each["count"] for each in events(table, "rejected")] == [3]


def refuse_to_open(refused):
    real = os.open

    def open_file(path, *arguments, **options):
        if path == refused:
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    return open_file


@pytest.mark.parametrize("error", [RuntimeError, OSError, StopIteration])
def test_a_users_method_that_cannot_take_up_what_it_saved_starts_at_the_source(
    engine, tmp_path, monkeypatch, error
):
    """Whatever it raises when asked for its state: the file stays, and is not written over."""
    first = engine(tmp_path)
    request(first, "gate")
    assert stop(first)
    second = engine(tmp_path)

    def state(self):
        raise error("its own database is away")

    with monkeypatch.context() as broken:
        broken.setattr(type(second._source), "state", state)
        request(second, "gate")
    (event,) = events(second, "rejected")
    assert "its own database is away" in event["reason"]
    saved = (tmp_path / "gate.safetensors").read_bytes()
    assert stop(second)
    assert (tmp_path / "gate.rejected").read_bytes() == saved


def test_a_users_method_that_fails_once_it_is_restored_starts_at_the_source(
    engine, tmp_path, monkeypatch
):
    """Whatever it cannot tell of itself then: the stream is answered, and its file stays."""
    first = engine(tmp_path)
    for _ in range(2):
        request(first, "gate")
    assert stop(first)
    second = engine(tmp_path)
    kind = type(second._source.inner)

    def drift(self):
        return 1 / 0 if self.version else 0.0

    with monkeypatch.context() as broken:
        broken.setattr(kind, "drift", property(drift))
        request(second, "gate")
    (event,) = events(second, "rejected")
    assert "division by zero" in event["reason"]
    record = second.streams["gate"]
    assert (record.restored, record.images, record.version) == (False, len(PIXELS), 0)
    assert (tmp_path / "gate.safetensors").exists()


@pytest.fixture
def save_held(guarded, tmp_path):
    """Save a held stream; what is said to be known of its guard is known in its place."""

    def save(stream="gate", of_stream=None, **known):
        method = guarded.fork()
        method.adapt(method.predict(as_batch(PIXELS)))
        method.weigh([(False, True)] * 100)
        assert method.mode == "held"
        state = method.state()
        file = tmp_path / f"{stream}.safetensors"
        save_state(
            file,
            method,
            name="ttc",
            model="small",
            state={**state, "guard": {**state["guard"], **known}},
            of_stream=of_stream
            or {"mode": "held", "images": len(PIXELS)}
            | {"doubted_since": 1.4e9, "held_since": 1.5e9},
        )
        return file

    return save


@pytest.mark.parametrize("held", [torch.ones(4, dtype=torch.uint8), "1"], ids=str)
@pytest.mark.parametrize("guard", ["on", "off"])
def test_a_stream_of_whose_guard_nonsense_is_saved_is_answered(
    engine, guarded, save_held, tmp_path, guard, held
):
    """By the source, whether the guard is on or not; its file is set aside, which is told."""
    save_held(held=held)
    source = guarded if guard == "on" else guarded.inner.inner
    table = engine(tmp_path, source=source)
    for _ in range(2):
        request(table, "gate")
    assert table.streams["gate"].images == 2 * len(PIXELS)
    (rejected,) = events(table, "rejected")
    assert "one of its numbers is" in rejected["reason"]
    assert (tmp_path / "gate.rejected").exists()


@pytest.mark.parametrize("learn", [True, False], ids=["learning", "asking"])
@pytest.mark.parametrize("change", ["removed", "damaged", "unreadable"])
def test_a_held_stream_whose_file_is_gone_is_held_no_more(
    engine, guarded, save_held, tmp_path, monkeypatch, change, learn
):
    """Once it was looked for; a file that cannot be read now may be good."""
    file = save_held()
    table = engine(tmp_path, source=guarded)
    asyncio.run(table.look_at_saved())
    assert list(table.saved_doubted()) == ["gate"]
    if change == "removed":
        file.unlink()
    elif change == "damaged":
        file.write_bytes(b"damaged")
    else:
        monkeypatch.setattr("ttc_core.state.os.open", refuse_to_open(file))
    if learn:
        table.table.admit("gate")
    asyncio.run(table.predict([("gate", [Image(one) for one in PIXELS])], learn=learn))
    left = ["gate"] if change == "unreadable" else []
    assert list(table.saved_doubted()) == left
    assert value(table, "ttc_held_streams") == len(left)


@pytest.mark.parametrize("guard", ["on", "off", "observe"])
def test_a_stream_is_doubted_only_where_there_is_a_guard(
    engine, guarded, save_held, tmp_path, guard
):
    """Whatever its file says; it fits with each of them. One that only observes holds nobody."""
    save_held()
    table = engine(tmp_path, source=watched(guarded.inner.inner, guard))
    asyncio.run(table.look_at_saved())
    found = [] if guard == "off" else ["gate"]
    told = table.saved_doubted()
    assert list(told) == found
    assert table.saved_unfit().streams == 0
    assert {(each.mode, each.doubted_since, each.held_since) for each in told.values()} == {
        "on": {("held", 1.4e9, 1.5e9)},
        "observe": {("adapting", 1.4e9, None)},
        "off": set(),
    }[guard]
    assert value(table, "ttc_doubted_streams") == len(found)
    assert value(table, "ttc_held_streams") == (guard == "on")


@pytest.mark.parametrize(("mode", "held_since"), [("held", 1.4e9), ("adapting", None)])
def test_a_file_of_a_former_version_says_since_when_its_stream_is_doubted(
    engine, guarded, save_held, tmp_path, mode, held_since
):
    """It has one moment, when it was held or would have been; before it is loaded and after."""
    save_held(of_stream={"mode": mode, "held_since": 1.4e9, "images": len(PIXELS)})
    table = engine(tmp_path, source=guarded)
    asyncio.run(table.look_at_saved())
    saved = table.saved_doubted()["gate"]
    assert (saved.doubted_since, saved.held_since) == (1.4e9, held_since)
    began = time.time()
    request(table, "gate")
    record = table.streams["gate"]
    assert record.doubted_since == 1.4e9
    assert record.held_since == held_since or (held_since is None and record.held_since >= began)


def test_a_start_says_how_many_saved_streams_do_not_fit_and_why(engine, tmp_path, source, caplog):
    """Once, before their cameras send; what is set aside, reset or written since counts no more."""
    first = engine(tmp_path)
    for name in ("a", "b", "c", "d"):
        request(first, name)
    assert stop(first)
    (tmp_path / "e.safetensors").write_bytes(b"somebody's")
    other = create("ttc", source.model, statistics="moving", samples_per_step=4)
    second = engine(tmp_path, source=other)
    request(second, "d")  # whose camera was faster
    with caplog.at_level(logging.WARNING):
        asyncio.run(second.look_at_saved())
    difference = "samples_per_step=8, not 4"
    (event,) = events(second, "saved_unfit")
    assert (event["streams"], event["reason"]) == (
        4,
        f"{difference} (3); no state that can be read (1)",
    )
    (line,) = [each.getMessage() for each in caplog.records if "do not fit" in each.getMessage()]
    assert line.startswith(f"4 of 4 saved streams in {tmp_path} do not fit")
    assert "NAME.rejected" in line
    assert second.saved_unfit().reasons == {difference: 3, "no state that can be read": 1}
    request(second, "a")
    reset(second, "b")
    reset(second, "e")
    assert second.saved_unfit().reasons == {difference: 1}
    assert sorted(path.name for path in tmp_path.glob("*.rejected")) == [
        f"{name}.rejected" for name in "abde"
    ]


@pytest.mark.parametrize("learn", [True, False], ids=["learning", "asking"])
def test_a_file_that_does_not_fit_counts_as_long_as_it_is_there(
    engine, tmp_path, monkeypatch, learn
):
    """Whoever asks about its stream, and where it cannot be moved out of the way."""
    file = tmp_path / "gate.safetensors"
    file.write_bytes(b"somebody's")
    table = engine(tmp_path)
    asyncio.run(table.look_at_saved())
    with monkeypatch.context() as stuck:
        stuck.setattr("service.state_folder.set_aside", refuse)
        if learn:
            table.table.admit("gate")
        asyncio.run(table.predict([("gate", [Image(one) for one in PIXELS])], learn=learn))
    assert file.exists()
    assert table.saved_unfit().reasons == {"no state that can be read": 1}


def refuse(path):
    raise PermissionError(13, "Permission denied")


def test_a_start_says_nothing_of_saved_streams_that_fit(engine, tmp_path):
    """Nor of a folder without any, nor where there is no folder."""
    first = engine(tmp_path)
    request(first, "a")
    assert stop(first)
    for folder in (tmp_path, tmp_path / "new", None):
        table = engine(folder)
        asyncio.run(table.look_at_saved())
        assert events(table, "saved_unfit") == []
        assert table.saved_unfit().streams == 0
        table.close()


def test_a_file_that_cannot_be_looked_at_hides_no_other(
    engine, guarded, save_held, tmp_path, monkeypatch
):
    """Whatever is raised by it: that is told, and the held streams behind it are found."""
    for name in ("a", "b", "c"):
        save_held(name)
    looked, read = [], state_folder.read_of_stream

    def fail(path, *arguments, **options):
        looked.append(path.stem)
        return 1 / 0 if len(looked) == 1 else read(path, *arguments, **options)

    monkeypatch.setattr(state_folder, "read_of_stream", fail)
    table = engine(tmp_path, source=guarded)
    asyncio.run(table.look_at_saved())
    assert sorted(looked) == ["a", "b", "c"]
    assert sorted(table.saved_doubted()) == sorted(looked[1:])
    (event,) = events(table, "not_looked_at")
    assert event["stream"] == looked[0]
    assert "division by zero" in event["reason"]


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
        second.table.admit("new")
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


def test_what_lay_in_a_streams_place_may_be_gone_when_it_is_saved(engine, tmp_path):
    """A link that leads nowhere and back, say, that somebody has removed meanwhile."""
    file = tmp_path / "gate.safetensors"
    file.symlink_to(file)
    table = engine(state_dir=tmp_path)
    request(table, "gate")
    file.unlink()
    assert stop(table)
    assert file.is_file()


def test_a_file_that_is_no_state_evicts_nobody(engine, tmp_path):
    """Neither as large as a disk nor sparse: it is set aside, and the others stay in memory."""
    table = engine(tmp_path)
    for name in ("a", "b"):
        request(table, name)
    (tmp_path / "gate.safetensors").touch()
    os.truncate(tmp_path / "gate.safetensors", 1 << 40)
    request(table, "gate")
    assert list(table.streams) == ["a", "b", "gate"]
    assert (tmp_path / "gate.rejected").exists()
    assert events(table, "evicted") == []


def test_a_saved_stream_without_room_is_told_when_there_will_be(engine, tmp_path):
    """Those in memory are saved and make room once they are answered: no hour is waited for."""
    first = engine(tmp_path)
    request(first, "gate")
    assert stop(first)
    size = (tmp_path / "gate.safetensors").stat().st_size
    table = engine(tmp_path, max_stream_bytes=size + 1)
    request(table, "a")
    for name in ("a", "gate"):
        table.table.admit(name, lambda: 7.0)
    with pytest.raises(TooManyStreams, match="all are in use, enough in 7 s") as refused:
        asyncio.run(batch(table, "gate"))
    assert refused.value.retry_after == 7
    table.table.release("a")
    asyncio.run(batch(table, "gate"))
    assert table.streams["gate"].restored
