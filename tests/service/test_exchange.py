"""Other weights exchanged for those that an engine answers with: what becomes of its streams."""

import asyncio
import gc
import os
import threading
import weakref

import numpy as np
import pytest
import torch

from service.errors import NoSnapshot
from service.state_folder import OWNER, StateFolderError
from tests.fixtures.networks import make_model
from tests.fixtures.streams import PIXELS, batch, events, request, reset, stop
from ttc_core.methods import create


def source_of(weights):
    """A method on a small network; `weights` says which."""
    model = make_model("batch-norm")
    with torch.no_grad():
        model.module.head.bias += weights
    model.refresh()
    return create("ttc", model, statistics="moving", samples_per_step=8)


def exchange(engine, weights):
    """Exchange the weights, as between two batches; (kept aside, dropped)."""

    async def run():
        exchanging = engine.exchanging
        former = await exchanging.exchange(await exchanging.prepare(source_of(weights)))
        return await exchanging.put_away(former)

    return asyncio.run(run())


def at_source(weights, times=1):
    """What a stream is answered by these weights, the so-manieth time that it asks."""
    method = source_of(weights)
    for _ in range(times):
        prediction = method.predict(torch.from_numpy(PIXELS).movedim(3, 1))
        method.adapt(prediction)
    return prediction.to_host().logits


def close(got, expected):
    return np.allclose(got, expected, atol=1e-5)


def test_streams_begin_anew_and_go_on_when_their_weights_come_back(engine, tmp_path):
    """Old, new, old, new: each time as if the others had never been; saved or in memory."""
    table = engine(tmp_path, source=source_of(0.0))
    for name in ("gate", "door"):
        request(table, name)
    asyncio.run(table.save())
    request(table, "gate")  # changed since its file was written
    assert exchange(table, 1.0) == (2, 0)
    assert table.streams == {}
    assert asyncio.run(table.saved_streams()) == 0
    assert close(request(table, "gate"), at_source(1.0))
    assert exchange(table, 0.0) == (1, 0)
    assert asyncio.run(table.saved_streams()) == 2
    assert close(request(table, "gate"), at_source(0.0, times=3))
    assert close(request(table, "door"), at_source(0.0, times=2))
    assert exchange(table, 1.0) == (2, 0)
    assert close(request(table, "gate"), at_source(1.0, times=2))
    assert not events(table, "rejected")
    assert not events(table, "not_saved")


def test_they_come_back_after_a_restart_too(engine, tmp_path):
    """With either weights; those that were never here find none, and set nothing aside."""
    first = engine(tmp_path, source=source_of(0.0))
    request(first, "gate")
    exchange(first, 1.0)
    request(first, "gate")
    request(first, "gate")
    assert stop(first)
    for weights, times in ((1.0, 3), (0.0, 2), (2.0, 1), (1.0, 4)):
        again = engine(tmp_path, source=source_of(weights))
        assert close(request(again, "gate"), at_source(weights, times))
        assert not events(again, "rejected")
        assert stop(again)


def test_without_a_folder_streams_are_dropped_and_counted(engine):
    """What they had learned is gone when their weights come back."""
    table = engine(source=source_of(0.0))
    for name in ("a", "b", "c"):
        request(table, name)
    assert exchange(table, 1.0) == (0, 3)
    assert exchange(table, 0.0) == (0, 0)
    assert close(request(table, "a"), at_source(0.0))


def test_where_nothing_can_be_saved_nothing_is_exchanged(engine, tmp_path, monkeypatch):
    """A full disk: what streams have learned would be lost, so the former weights go on."""
    table = engine(tmp_path, source=source_of(0.0))
    request(table, "gate")

    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr("service.state_folder.save_state", full)
        with pytest.raises(StateFolderError, match="cannot be saved"):
            exchange(table, 1.0)
    assert close(request(table, "gate"), at_source(0.0, times=2))
    assert exchange(table, 1.0) == (1, 0)


def refuse_to_save(monkeypatch, folder, refused):
    """A disk that takes every stream but one."""
    real = folder.save

    def save(stream, *given):
        if stream == refused:
            raise OSError(28, os.strerror(28))
        return real(stream, *given)

    monkeypatch.setattr(folder, "save", save)


def test_a_failure_that_is_over_refuses_nothing(engine, tmp_path, monkeypatch):
    """Nothing has been written since, as there was nothing to write."""
    table = engine(tmp_path, source=source_of(0.0))
    request(table, "gate")
    with monkeypatch.context() as patch:
        refuse_to_save(patch, table._saving.folder, "gate")
        assert not asyncio.run(table.save())
    reset(table, "gate")
    assert exchange(table, 1.0) == (0, 0)


@pytest.mark.parametrize("refused", ["gate", "door"])
def test_one_stream_that_cannot_be_saved_refuses_the_exchange(
    engine, tmp_path, monkeypatch, refused
):
    """Whether or not another was saved after it; and it goes on."""
    table = engine(tmp_path, source=source_of(0.0))
    for name in ("gate", "door"):
        request(table, name)
    with monkeypatch.context() as patch:
        refuse_to_save(patch, table._saving.folder, refused)
        with pytest.raises(StateFolderError, match="cannot be saved"):
            exchange(table, 1.0)
    assert close(request(table, refused), at_source(0.0, times=2))
    assert exchange(table, 1.0) == (2, 0)


def test_few_streams_are_left_for_the_switch_and_written_as_it_goes(engine, tmp_path, monkeypatch):
    """Not a copy of each that changed while the others' weights were made ready."""
    table = engine(tmp_path, source=source_of(0.0))
    request(table, "gate")
    beside = table._folders.beside

    def slowly(*digests):
        request(table, "gate")
        request(table, "door")
        return beside(*digests)

    monkeypatch.setattr(table._folders, "beside", slowly)

    async def run():
        saving = await table.exchanging.prepare(source_of(1.0))
        assert table.unsaved_streams == 0
        await batch(table, "door")
        former = await table.exchanging.exchange(saving)
        table._writer.submit(int).result()
        assert not former.saving.unsaved()
        return await table.exchanging.put_away(former)

    assert asyncio.run(run()) == (2, 0)


def test_what_was_prepared_in_vain_can_be_prepared_again(engine, tmp_path, monkeypatch):
    """The disk fills up in between: the others' folder is not held for ever."""
    table = engine(tmp_path, source=source_of(0.0))
    request(table, "gate")
    exchange(table, 1.0)
    tell = table._reports.tell_what_fails
    with monkeypatch.context() as patch:

        def slowly(*given):
            request(table, "door")
            tell(*given)

        patch.setattr(table._reports, "tell_what_fails", slowly)
        refuse_to_save(patch, table._saving.folder, "door")
        with pytest.raises(StateFolderError, match="cannot be saved"):
            exchange(table, 2.0)
    assert exchange(table, 2.0) == (1, 0)


def test_a_reset_of_all_forgets_streams_of_other_weights_too(engine, tmp_path):
    """Wherever they lie, and how many is told; one by its name leaves them."""
    table = engine(tmp_path, source=source_of(0.0))
    for weights in (1.0, 2.0, 0.0, 1.0):
        for name in ("gate", "door"):
            request(table, name)
        exchange(table, weights)
    request(table, "gate")
    assert reset(table, "gate").kept_aside == 0
    (tmp_path / "notes.txt").write_text("somebody's")
    told = reset(table, None)
    assert (told.streams, told.kept_aside) == (["door"], 4)
    assert [path.name for path in tmp_path.rglob("*") if "safetensors" in path.name] == []
    assert (tmp_path / "notes.txt").exists()
    for weights in (2.0, 0.0, 1.0):
        exchange(table, weights)
        assert asyncio.run(table.saved_streams()) == 0
        assert close(request(table, "gate"), at_source(weights))
    assert not events(table, "not_saved")


def test_a_stream_that_the_disk_refuses_at_the_last_moment_is_told_of(
    engine, tmp_path, monkeypatch
):
    """The weights are exchanged by then: the others are kept, and it comes back as it was saved."""
    table = engine(tmp_path, source=source_of(0.0))
    request(table, "gate")

    async def run():
        saving = await table.exchanging.prepare(source_of(1.0))
        for name in ("gate", "door"):
            await batch(table, name)
        refuse_to_save(monkeypatch, table._saving.folder, "gate")
        return await table.exchanging.put_away(await table.exchanging.exchange(saving))

    assert asyncio.run(run()) == (1, 1)
    monkeypatch.undo()
    exchange(table, 0.0)
    assert close(request(table, "gate"), at_source(0.0, times=2))
    assert close(request(table, "door"), at_source(0.0, times=2))


def test_places_taken_before_are_given_back_after(engine, tmp_path):
    """A request that was admitted to the former weights' streams holds its place until it ends."""
    table = engine(tmp_path, source=source_of(0.0), max_streams=1)
    table.table.admit("gate")
    exchange(table, 1.0)
    table.table.admit("gate")
    table.table.release("gate")
    assert table.table._pins == {"gate": 1}
    table.table.release("gate")
    assert close(request(table, "door"), at_source(1.0))


def test_what_was_known_of_the_former_streams_counts_no_more(engine, tmp_path):
    """Snapshots and labels go with them, and come back with them; ids stay known."""
    table = engine(tmp_path, source=source_of(0.0))
    request(table, "gate")
    table.truth.count("gate", [1, 2], [1, 1], [0.5, 0.5])
    exchange(table, 1.0)
    assert table.truth.streams == {}
    assert np.isnan(table.truth.window_accuracy)
    with pytest.raises(NoSnapshot, match="has had no images"):
        asyncio.run(table.undoing.roll_back("gate", None))
    exchange(table, 0.0)
    request(table, "gate")
    assert table.truth.streams["gate"].model_dump() == {"labelled": 2, "correct": 1}


def test_a_late_label_of_the_former_weights_is_not_weighed_by_the_new(engine, tmp_path):
    """Nor is one of an answer that came between by those that are back: each judges itself."""
    table = engine(tmp_path, source=source_of(0.0))
    request(table, "gate")
    for weights in (1.0, 0.0):
        table.truth.remember("gate", [f"at {weights}"], [0], [None], [0.5])
        exchange(table, weights)
        request(table, "gate")
        assert table.streams["gate"].answers_from == table.truth.newest > 0


@pytest.mark.parametrize("apart", [False, True], ids=["in-the-folder", "in-one-of-its-own"])
def test_a_reset_that_meets_an_exchange_removes_what_it_forgot(engine, tmp_path, apart):
    """The stream's file goes from the folder that it was in, though others answer meanwhile."""
    table = engine(tmp_path, source=source_of(1.0 if apart else 0.0))
    if apart:
        exchange(table, 0.0)
        assert table._saving.folder.path.name.startswith("weights-")
    request(table, "gate")
    asyncio.run(table.save())

    async def run():
        saving = await table.exchanging.prepare(source_of(1.0))
        resetting = asyncio.create_task(table.undoing.reset("gate"))
        await asyncio.sleep(0)
        former = await table.exchanging.exchange(saving)
        await table.exchanging.put_away(former)
        return await resetting

    told = asyncio.run(run())
    assert told.known
    exchange(table, 0.0)
    assert close(request(table, "gate"), at_source(0.0))


@pytest.mark.parametrize("where", ["names", "remove"], ids=["before-it", "in-the-middle"])
def test_a_reset_of_all_that_meets_an_exchange_resets_the_others_too(
    engine, tmp_path, monkeypatch, where
):
    """What was kept aside for those that take over meanwhile is among all that was learned."""
    table = engine(tmp_path, source=source_of(1.0))
    request(table, "gate")
    exchange(table, 0.0)
    request(table, "door")
    forgotten, exchanged = threading.Event(), threading.Event()
    former = table._saving
    real = getattr(former, where)

    def slowly(*given):
        found = real(*given) if where == "names" else None
        forgotten.set()
        assert exchanged.wait(10)
        return real(*given) if found is None else found

    monkeypatch.setattr(former, where, slowly)

    async def run():
        saving = await table.exchanging.prepare(source_of(1.0))
        resetting = asyncio.create_task(table.undoing.reset(None))
        assert await asyncio.to_thread(forgotten.wait, 10)
        left = await table.exchanging.exchange(saving)
        exchanged.set()
        await table.exchanging.put_away(left)
        return await resetting

    asyncio.run(run())
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == []
    assert close(request(table, "gate"), at_source(1.0))


def test_the_former_network_is_freed(engine, tmp_path):
    """With its streams, however many they are: only one model's memory stays taken."""
    gone = []
    source = source_of(0.0)
    gone += [weakref.ref(source.model), weakref.ref(source.model.module)]
    table = engine(tmp_path, source=source)
    del source
    for name in ("a", "b"):
        request(table, name)
    gone.append(weakref.ref(table.streams["a"].method))
    exchange(table, 1.0)
    gc.collect()
    assert [one() for one in gone] == [None] * 3


def test_a_damaged_note_of_whose_the_folder_is_loses_nothing(engine, tmp_path):
    """Empty, as after a power cut on an odd file system: files are read for what they are."""
    first = engine(tmp_path, source=source_of(0.0))
    request(first, "gate")
    exchange(first, 1.0)
    request(first, "gate")
    assert stop(first)
    (tmp_path / OWNER).write_text("")
    for weights in (0.0, 1.0):
        again = engine(tmp_path, source=source_of(weights))
        assert close(request(again, "gate"), at_source(weights, times=2))
        assert stop(again)
