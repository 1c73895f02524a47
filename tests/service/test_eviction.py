"""A stream makes room before the disk has it, and loses nothing by that."""

import asyncio
import os
import shutil
import threading

import numpy as np
import pytest

from service.errors import TooManyStreams
from tests.fixtures.streams import batch, events, request


@pytest.fixture
def disk(monkeypatch):
    """A disk that hangs while `works` is unset, and takes nothing while it is `full`."""

    class Disk:
        works, hangs, full = threading.Event(), threading.Event(), False

    disk, real = Disk(), os.fsync
    disk.works.set()

    def wait(descriptor):
        if not disk.works.is_set():
            disk.hangs.set()
            assert disk.works.wait(30)
        if disk.full:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", wait)
    yield disk
    disk.works.set()


def ask(engine, stream):
    """As `request`, but what makes room may still be on its way to the disk."""

    async def run():
        engine.table.admit(stream)
        try:
            return await asyncio.wait_for(batch(engine, stream), 10)
        finally:
            engine.table.release(stream)

    return asyncio.run(run())


def test_no_answer_waits_for_the_disk(engine, tmp_path, disk):
    """While it hangs, four streams share two places, and each answers as it would alone."""
    table, free = engine(tmp_path, max_streams=2), engine()
    for name in ("a", "b"):
        assert np.array_equal(request(table, name), request(free, name))
    disk.works.clear()
    for name in ("c", "b", "a", "d", "a", "c", "b"):
        assert np.array_equal(ask(table, name), request(free, name))
        assert len(table.streams) <= 2
    assert disk.hangs.is_set()
    assert not disk.works.is_set()
    disk.works.set()
    assert asyncio.run(table.save())
    table.close()
    again = engine(tmp_path)
    for name in ("a", "b", "c", "d"):
        assert again.table.load(name).batches == free.streams[name].batches
        assert np.array_equal(request(again, name), request(free, name))


def test_killed_before_the_disk_had_it_a_stream_is_as_it_was_saved_last(engine, tmp_path, disk):
    """Its file is of the moment of its last save, whole; another's is not there yet."""
    folder, copy = tmp_path / "states", tmp_path / "copy"
    table = engine(folder, max_streams=1)
    ask(table, "a")
    asyncio.run(table._save_changed())
    ask(table, "a")
    disk.works.clear()
    ask(table, "b")
    ask(table, "c")
    assert disk.hangs.wait(10)
    shutil.copytree(folder, copy)
    after = engine(copy)
    assert after.table.load("a").batches == 1
    assert not after.table.load("b").restored
    assert sorted(table.table.names()) == ["a", "b", "c"]
    assert asyncio.run(table.saved_streams()) == 2


def test_what_waits_for_the_disk_is_bounded(engine, tmp_path, disk, monkeypatch):
    """With two streams on their way a newcomer is told to come back; those there go on."""
    monkeypatch.setattr("service.streams.MOST_LEAVING", 2)
    table = engine(tmp_path, max_streams=1)
    disk.works.clear()
    for name in ("a", "b", "c"):
        ask(table, name)
    with pytest.raises(TooManyStreams, match="still being saved") as refused:
        ask(table, "d")
    assert refused.value.retry_after <= 2
    ask(table, "c")
    disk.works.set()
    request(table, "c")
    ask(table, "d")
    assert list(table.streams) == ["d"]


def test_a_stream_whose_file_cannot_be_written_is_in_its_place_again(engine, tmp_path, disk):
    """It was given away already: both go on learning, and are saved when the disk is well."""
    table, free = engine(tmp_path, max_streams=1), engine()
    disk.works.clear()
    for name in ("a", "b"):
        assert np.array_equal(ask(table, name), request(free, name))
    disk.full = True
    disk.works.set()
    for name in ("b", "a", "b"):
        assert np.array_equal(request(table, name), request(free, name))
    assert {name: record.batches for name, record in table.streams.items()} == {"a": 2, "b": 3}
    assert table.unsaved_streams == 2
    with pytest.raises(TooManyStreams, match="none can be saved"):
        request(table, "c")
    disk.full = False
    assert asyncio.run(table.save())
    assert table.unsaved_streams == 0
    request(table, "c")
    assert list(table.streams) == ["c"]


@pytest.mark.parametrize("stream", ["a", None], ids=["one", "all"])
def test_a_reset_of_a_stream_on_its_way_to_the_disk_holds(engine, tmp_path, disk, stream):
    """What was learned is counted as thrown away, and does not come back."""
    table = engine(tmp_path, max_streams=1)
    ask(table, "a")
    disk.works.clear()
    ask(table, "b")
    assert disk.hangs.wait(10)

    async def walk():
        work = asyncio.create_task(table.undoing.reset(stream))
        await asyncio.sleep(0.05)
        disk.works.set()
        return await asyncio.wait_for(work, 10)

    told = asyncio.run(walk())
    assert "a" in told.streams
    assert told.discarded.pending_batches >= 1
    assert not (tmp_path / "a.safetensors").exists()
    assert table.table.load("a").is_new


def test_a_stream_that_nothing_moved_since_its_save_is_not_written_again(engine, tmp_path, disk):
    """Its place is free at once, whatever the disk does."""
    table = engine(tmp_path, max_streams=1)
    ask(table, "a")
    asyncio.run(table._save_changed())
    disk.works.clear()
    ask(table, "b")
    assert not disk.hangs.is_set()
    assert [event["reason"] for event in events(table, "evicted")] == ["saved"]
    assert table.table.load("a").restored


def test_a_new_start_after_a_reset_is_not_mixed_with_what_was_on_its_way(engine, tmp_path, disk):
    """The stream learns anew while its old file is still being written."""
    table = engine(tmp_path, max_streams=2)
    for _ in range(3):
        ask(table, "a")
    ask(table, "b")
    disk.works.clear()
    ask(table, "c")
    assert disk.hangs.wait(10)
    asyncio.run(asyncio.wait_for(table._on_device(table.table.forget, ["a"]), 10))
    ask(table, "a")
    disk.works.set()
    assert asyncio.run(table.save())
    table.close()
    assert engine(tmp_path).table.load("a").batches == 1


def test_what_leaves_again_while_its_former_writing_ends_is_written(engine, tmp_path, disk):
    """Nobody has to wait for the next round of saving until the stream's place is free."""
    table = engine(tmp_path, max_streams=1)
    disk.works.clear()
    for name in ("a", "b", "a"):
        ask(table, name)
    snapshot = table._saving.snapshot

    def late(name, record):
        disk.works.set()
        table._writer.submit(int).result(10)
        return snapshot(name, record)

    table._saving.snapshot = late
    ask(table, "c")
    table._writer.submit(int).result(10)
    assert not table._saving.leaving()
    assert table.table.load("a").batches == 2
