"""What lasts of streams: saved, restored, reset."""

import asyncio
import os
import threading

import numpy as np
import pytest

from service.answering import Image
from service.errors import StateNotRemoved, TooManyStreams
from tests.fixtures.streams import PIXELS, batch, events, request, reset, stop


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
