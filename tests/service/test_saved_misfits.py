"""What lies in a stream's place and is none of its states: set aside, told of, never lost."""

import asyncio
import logging
import os

import pytest

from service.answering import Image
from tests.fixtures.streams import PIXELS, events, refuse_to_open, request, reset, stop
from ttc_core.methods import create


def test_a_reset_puts_another_programs_file_aside(engine, tmp_path):
    """It is no state of this stream: kept, under a name of its own."""
    (tmp_path / "gate.safetensors").write_bytes(b"somebody's")
    table = engine(tmp_path)
    reset(table, "gate")
    assert (tmp_path / "gate.rejected").read_bytes() == b"somebody's"


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
        broken.setattr(type(second.source), "state", state)
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
    kind = type(second.source.inner)

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
