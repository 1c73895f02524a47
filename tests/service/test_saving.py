"""Saving beside the answers: snapshots, marks, the interval, a full disk, counters and labels."""

import asyncio
import os
import threading
from collections import deque

import numpy as np
import pytest
import torch

from service.answering import Image
from tests.fixtures.engine import own, raiser
from tests.fixtures.methods import Plain
from tests.fixtures.streams import PIXELS, batch, events, request, reset, stop


def metric(engine, name, **labels):
    return engine._metrics.registry.get_sample_value(name, labels)


def on_device(engine, call, *arguments):
    return asyncio.run(engine._on_device(call, *arguments))


def snapshot(engine, *names):
    return on_device(engine, engine.table.snapshots, deque(names))


def save_changed(engine, **options):
    asyncio.run(engine._save_changed(**options))


def files(folder):
    return {path.stem: path.stat().st_ino for path in folder.glob("*.safetensors")}


def count_of(engine, stream="gate"):
    """How many batches a fresh engine finds in a stream's file."""
    return on_device(engine, engine.table.load, stream).batches


# Snapshots


class InPlace(Plain):
    """Changes its one tensor where it is, and shows it as it is."""

    def __init__(self, model):
        super().__init__(model)
        self.seen = torch.zeros(1000)

    def adapt(self, prediction):
        self.seen += 1
        return super().adapt(prediction)

    def state(self):
        return {"mine": {"seen": self.seen}}

    def restore(self, state):
        self.seen = state["mine"]["seen"]


@pytest.mark.parametrize("whose", ["ours", "ones-own"])
def test_a_snapshot_is_of_one_moment(engine, tmp_path, source, whose):
    """What a stream learns while it is being written is in the next file, none of it in this."""
    source = source if whose == "ours" else own(InPlace(source.model))
    table = engine(tmp_path / "a", source=source)
    for _ in range(3):
        request(table, "gate")
    (taken,) = snapshot(table, "gate")
    reference = engine(tmp_path / "b", source=source)
    for _ in range(3):
        request(reference, "gate")
    assert stop(reference)
    for _ in range(5):
        request(table, "gate")
    assert table.table.write(taken)
    written, expected = (tmp_path / f"{each}/gate.safetensors" for each in "ab")
    assert written.read_bytes() == expected.read_bytes()
    assert table.unsaved_streams == 1


def test_of_two_snapshots_the_later_one_stays(engine, tmp_path):
    """A stream that makes room while an older one of it waits for the disk."""
    table = engine(tmp_path, max_streams=1)
    request(table, "gate")
    (old,) = snapshot(table, "gate")
    request(table, "gate")
    request(table, "yard")  # for which the gate makes room
    assert table.table.write(old)
    table.close()
    assert count_of(engine(tmp_path)) == 2


@pytest.mark.parametrize("stream", ["gate", None], ids=["one", "all"])
def test_a_reset_drops_the_snapshot_that_waits(engine, tmp_path, stream):
    """Else the stream would come back with the next start."""
    table = engine(tmp_path)
    request(table, "gate")
    (taken,) = snapshot(table, "gate")
    reset(table, stream)
    assert table.table.write(taken)
    assert files(tmp_path) == {}
    assert table.unsaved_streams == 0


def test_a_stream_that_learns_while_its_old_file_is_removed_is_saved(engine, tmp_path):
    """What it learned since its reset is what counts, whichever thread is the faster."""
    table = engine(tmp_path)
    for _ in range(3):
        request(table, "gate")
    save_changed(table)
    on_device(table, table.table.forget, ["gate"])
    request(table, "gate")
    save_changed(table)
    assert table._saving.remove(["gate"]) == ({}, {})
    table.close()
    assert not list(tmp_path.glob("*.rejected"))
    assert count_of(engine(tmp_path)) == 1


def test_answers_go_on_while_files_are_written_and_removed(engine, tmp_path, monkeypatch):
    """The disk hangs, the device thread does not: neither by a save nor by a reset of all."""
    table = engine(tmp_path)
    for name in ("gate", "yard"):
        request(table, name)
    for slow in ("fsync", "unlink"):
        hangs, goes_on, real = threading.Event(), threading.Event(), getattr(os, slow)

        def wait(*arguments, hangs=hangs, goes_on=goes_on, real=real, **options):
            hangs.set()
            assert goes_on.wait(60)
            return real(*arguments, **options)

        async def walk(hangs=hangs, goes_on=goes_on, saves=slow == "fsync"):
            work = asyncio.create_task(
                table._save_changed() if saves else table.undoing.reset(None)
            )
            assert await asyncio.to_thread(hangs.wait, 60)
            await asyncio.wait_for(batch(table, "lone"), 60)
            assert not work.done()
            goes_on.set()
            await asyncio.wait_for(work, 60)

        with monkeypatch.context() as patch:
            patch.setattr(os, slow, wait)
            try:
                asyncio.run(walk())
            finally:
                goes_on.set()
    assert files(tmp_path) == {}


# Marks


def test_what_has_changed_is_saved_and_nothing_else(engine, tmp_path):
    """A stream that rests is not written again; one whose file has gone is."""
    table = engine(tmp_path)
    for name in ("a", "b", "c"):
        request(table, name)
    assert table.unsaved_streams == 3
    save_changed(table)
    assert table.unsaved_streams == 0
    before = files(tmp_path)
    (tmp_path / "c.safetensors").unlink()
    request(table, "b")
    save_changed(table)
    after = files(tmp_path)
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]
    assert after.keys() == before.keys()
    assert metric(table, "ttc_saves_total", outcome="saved") == 5


def test_what_changed_just_now_can_wait(engine, tmp_path, clock):
    """A stream is saved when its oldest change is of that age, whatever came after."""
    table = engine(tmp_path)
    request(table, "a")
    clock.now += 30
    request(table, "a")
    request(table, "b")
    clock.now += 30
    save_changed(table, older_than=48)
    assert files(tmp_path).keys() == {"a"}
    clock.now += 18
    save_changed(table, older_than=48)
    assert files(tmp_path).keys() == {"a", "b"}


def test_streams_are_saved_while_the_service_runs(engine, tmp_path):
    """Without anybody asking for it, and before the end."""
    table = engine(tmp_path)

    async def walk():
        saving = asyncio.create_task(table.keep_saving(0.1))
        await batch(table, "gate")
        while table.unsaved_streams or not files(tmp_path):
            await asyncio.sleep(0.01)
        saving.cancel()

    asyncio.run(asyncio.wait_for(walk(), 60))
    assert files(tmp_path).keys() == {"gate"}


@pytest.mark.slow
def test_a_thousand_changed_streams_are_saved_when_it_ends(engine, tmp_path):
    """None is lost."""
    table = engine(tmp_path)

    async def walk():
        for number in range(1000):
            await batch(table, f"s{number}", PIXELS[:1])
        return await table.save()

    assert asyncio.run(walk())
    assert len(files(tmp_path)) == 1000


# A disk that is full, or away


@pytest.mark.parametrize("way", ["full", "gone"])
def test_a_disk_that_cannot_be_written_is_told_and_saving_resumes(
    engine, tmp_path, monkeypatch, way
):
    """Answers go on; a metric and an event tell; then all that was learned is saved."""
    folder = tmp_path / "states"
    table = engine(folder)
    request(table, "gate")
    table.events.note("begin")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if way == "full":
            patch.setattr(os, "fsync", full)
        else:
            folder.rename(tmp_path / "elsewhere")
            folder.touch()
        for _ in range(3):
            request(table, "gate")
            save_changed(table)
        assert metric(table, "ttc_saves_total", outcome="failed") == 3
        assert metric(table, "ttc_unsaved_streams") == 1
        assert metric(table, "ttc_unsaved_age_seconds") > 0
        (event,) = events(table, "not_saved")
        assert event["count"] == 3
        assert not list(tmp_path.glob("**/*.part"))
    if way == "gone":
        folder.unlink()
    save_changed(table)
    assert metric(table, "ttc_unsaved_streams") == 0
    assert metric(table, "ttc_unsaved_age_seconds") == 0
    table.close()
    assert count_of(engine(folder)) == 4


def test_with_a_full_disk_not_every_stream_is_tried(engine, tmp_path, monkeypatch):
    """Beside the answers, that is; at the end each has its chance."""
    table = engine(tmp_path)
    for number in range(50):
        request(table, f"s{number}", PIXELS[:1])

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        patch.setattr("service.streams.MOST_SNAPSHOTS", 5)
        save_changed(table, older_than=1e-9)
        assert metric(table, "ttc_saves_total", outcome="failed") == 5
        assert not asyncio.run(table.save())
        assert metric(table, "ttc_saves_total", outcome="failed") == 55
    assert table.unsaved_streams == 50


def test_one_that_cannot_tell_its_state_keeps_no_other_from_being_saved(engine, tmp_path):
    """Neither beside the answers nor at the end, which is then no good end."""
    table = engine(tmp_path)
    for number in range(5):
        request(table, f"s{number}")

    def broken():
        raise RecursionError

    table.streams["s0"].method.state = broken
    save_changed(table, older_than=1e-9)
    assert files(tmp_path).keys() == {"s1", "s2", "s3", "s4"}
    assert not asyncio.run(table.save())
    assert events(table, "not_saved")[0]["reason"] == "RecursionError"


class Unsavable(Plain):
    """Its setting is an object."""

    settings = {"widget": object()}  # noqa: RUF012 (a user's own class)


def test_a_method_that_can_never_be_saved_is_told_of_at_the_start(engine, tmp_path, source):
    """With the reason; not when weeks of learning are lost."""
    table = engine(tmp_path, source=own(Unsavable(source.model)))
    asyncio.run(table.start())
    (event,) = events(table, "not_saving")
    assert "widget is an object" in event["reason"]
    resting = engine(source=own(Unsavable(source.model)))
    asyncio.run(resting.start())
    assert not events(resting, "not_saving")


# Counters and labels


def labelled(engine, stream, right):
    """A batch of one image with a label that says what the answer does, or not."""

    async def walk():
        image = Image(PIXELS[0])
        answered = await engine.predict([(stream, [image])])
        label = int(answered.rows[0].answers.predicted[0]) + (not right)
        answered = await engine.predict([(stream, [Image(PIXELS[0], label)])])
        await engine.adapt(answered, learn=True)

    asyncio.run(walk())


def truth_of(engine, stream="gate"):
    said = engine.truth.streams[stream]
    return said.labelled, said.correct


def test_counters_and_labels_go_on_after_a_restart(engine, tmp_path):
    """Those of the stream; and each is counted once, however often it comes and goes."""
    first = engine(tmp_path, max_streams=2)
    for right in (True, True, False):
        labelled(first, "gate", right)
        for name in ("yard", "door"):  # which take its place
            request(first, name)
    assert truth_of(first) == (3, 2)
    assert stop(first)
    second = engine(tmp_path, max_streams=2)
    for name in ("yard", "door", "gate"):
        labelled(second, name, True)
    assert truth_of(second) == (4, 3)
    record = second.streams["gate"]
    assert (record.images, record.batches) == (4, 4)
    assert stop(second)
    third = engine(tmp_path)
    for name, expected in (("gate", (4, 3)), ("yard", (1, 1))):
        request(third, name)
        assert truth_of(third, name) == expected


def test_labels_that_come_for_a_stream_on_disk_last(engine, tmp_path):
    """Also if it is not asked for again; its answers are what they were."""
    first = engine(tmp_path)
    labelled(first, "gate", True)
    assert stop(first)
    second = engine(tmp_path)
    image = Image(PIXELS[0], None, "two")
    asyncio.run(second.predict([("gate", [image])], learn=False))
    assert second.truth.feedback([("gate", "two", 1)]).images["taken"] == [("gate", "two")]
    assert second.streams == {}
    assert stop(second)
    assert second.streams == {}
    third = engine(tmp_path)
    request(third, "gate")
    assert third.truth.streams["gate"].labelled == 2
    assert third.streams["gate"].batches == 2


def test_a_reset_forgets_what_labels_said(engine, tmp_path):
    """In memory and in the file."""
    first = engine(tmp_path)
    labelled(first, "gate", True)
    save_changed(first)
    reset(first, "gate")
    request(first, "gate")
    assert stop(first)
    second = engine(tmp_path)
    request(second, "gate")
    assert second.truth.streams == {}
    assert second.streams["gate"].batches == 2


def test_a_file_of_a_former_version_says_nothing_of_counters(engine, tmp_path, source):
    """Its stream goes on; they begin at 0."""
    first = engine(tmp_path)
    request(first, "gate")
    on_device(first, lambda: first._folder.save("gate", first.streams["gate"].method))
    first.close()
    second = engine(tmp_path)
    got = request(second, "gate")
    assert second.streams["gate"].batches == 1
    free = engine()
    request(free, "gate")
    assert np.array_equal(request(free, "gate"), got)


def identified(engine, stream):
    """An image with an id, answered and learned from."""

    async def walk():
        answered = await engine.predict([(stream, [Image(PIXELS[0], None, "one")])])
        await engine.adapt(answered, learn=True)

    asyncio.run(walk())


def test_a_stream_that_is_being_answered_is_saved_from_its_own_record(engine, tmp_path):
    """A label came while it was on disk: its own file is replaced, and none is set aside."""
    first = engine(tmp_path)
    identified(first, "gate")
    assert stop(first)
    second = engine(tmp_path)
    assert second.truth.feedback([("gate", "one", 1)]).images["taken"] == [("gate", "one")]

    async def walk():
        answered = await second.predict([("gate", [Image(PIXELS[0])])])
        await second._save_changed()  # the answer is on its way
        await second.adapt(answered, learn=True)

    asyncio.run(walk())
    assert stop(second)
    assert not events(second, "set_aside")
    assert not list(tmp_path.glob("*.rejected*"))


class Between:
    """A lock, before which somebody else comes first: once, the time `at`."""

    def __init__(self, lock, at, other):
        self._lock, self._left, self._other, self._of = lock, at, other, threading.get_ident()

    def __enter__(self):
        if threading.get_ident() == self._of:
            self._left -= 1
            if self._left == -1:
                self._other.start()
                self._other.join(0.2)  # unless it waits for us
        self._lock.acquire()

    def __exit__(self, *_):
        self._lock.release()


def save_with_another(engine, name, at, call):
    """Save a stream while another thread does something: between two looks, or before writing."""
    saving, other = engine._saving, threading.Thread(target=call)

    def look():
        lock, saving._lock = saving._lock, Between(saving._lock, at, other)
        taken = engine.table.snapshots(deque([name]))
        saving._lock = lock
        return taken

    taken = on_device(engine, look)
    if other.ident is None:
        other.start()
    other.join()
    for each in taken:
        engine.table.write(each)


@pytest.mark.parametrize("where", ["in memory", "just written"])
@pytest.mark.parametrize("at", range(3))
def test_a_label_lasts_at_whatever_moment_of_a_save_it_comes(engine, tmp_path, where, at):
    """Of a stream that is saved, and of one that was to be and has been, to make room."""
    first = engine(tmp_path, max_streams=1)
    identified(first, "gate")
    if where == "just written":
        request(first, "yard")

    def label():
        assert first.truth.feedback([("gate", "one", 1)]).images["taken"]

    save_with_another(first, "gate", at, label)
    assert stop(first)
    second = engine(tmp_path)
    request(second, "gate")
    assert second.truth.streams["gate"].labelled == 1


def test_what_is_back_in_its_place_is_not_taken_from_its_old_file(engine, tmp_path, monkeypatch):
    """Its writing fails while it is looked for in memory and among what is on its way."""
    table = engine(tmp_path, max_streams=1)
    request(table, "gate")
    save_changed(table)
    request(table, "gate")
    with monkeypatch.context() as patch:
        patch.setattr(table._writer, "submit", lambda *_: None)
        on_device(table, table.table.evict, "gate")
    with monkeypatch.context() as patch:
        patch.setattr(table._folder, "save", raiser(OSError(28, "No space left on device")))
        save_with_another(table, "gate", 0, lambda: table.table.write("gate"))
    assert not events(table, "restored")
    assert stop(table)
    assert count_of(engine(tmp_path)) == 2


def test_labels_for_more_streams_than_are_kept_last(engine, tmp_path):
    """A night's labels for all cameras, few of which are in memory."""
    names = [f"cam{number}" for number in range(10)]
    first = engine(tmp_path, max_streams=2)
    for name in names:
        identified(first, name)
    assert len(first.truth.feedback([(name, "one", 1) for name in names]).images["taken"]) == 10
    assert stop(first)
    second = engine(tmp_path)
    for name in names:
        request(second, name)
    counted = {name: said.labelled for name, said in second.truth.streams.items()}
    assert counted == dict.fromkeys(names, 1)


def test_a_stream_put_back_to_the_source_begins_its_counts_anew(engine, tmp_path):
    """What its file says of labels is of before."""
    table = engine(tmp_path)
    labelled(table, "gate", True)
    save_changed(table)
    table.undoing.put_back("gate", table.streams["gate"], table.source.fork())
    labelled(table, "gate", True)
    save_changed(table)
    assert truth_of(table) == (1, 1)


def test_without_learning_a_failing_stream_stays_where_it_is(engine, source):
    """The source answers for it; nothing is thrown away by who only asks."""
    table = engine()
    request(table, "gate")
    record = table.streams["gate"]
    record.method.predict = raiser(RuntimeError("odd"))
    failing = record.method
    answered = asyncio.run(table.predict([("gate", [Image(PIXELS[0])])], learn=False))
    assert answered.rows[0].answers.sound.all()
    assert table.streams["gate"].method is failing
    request(table, "gate")
    assert table.streams["gate"].method is not failing
