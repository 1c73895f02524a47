"""What the service tells of faulty frames: counts by kind and stream, when it began and ended."""

import time
from typing import ClassVar

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.answering import Image
from service.engine import Engine
from service.metrics import Metrics
from service.stream_reports import WELL_AFTER
from tests.fixtures.engine import ask, events_of, make_model, run, step, value
from ttc_core.evaluate import run_stream
from ttc_core.frames import KINDS
from ttc_core.guard.screened import Screened
from ttc_core.methods import create

SIDE = 24


def scenes(count, seed=0):
    """Images (SIDE, SIDE, 3) with large parts and a little noise."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(20, 200, (count, 4, 4, 3))
    return (coarse.repeat(6, 1).repeat(6, 2) + draw.integers(0, 8, (count, SIDE, SIDE, 3))).astype(
        np.uint8
    )


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 200, (count, SIDE, SIDE, 3), dtype=np.uint8)


def images_of(*pixels):
    return [Image(each) for each in np.concatenate(pixels)]


def engine_of(guard="on", method="ttc_stream", **options):
    source = create(method, make_model(), guard=guard)
    metrics = Metrics(CollectorRegistry(), classes=5, model={})
    return Engine(source, metrics, method_name=method, model_spec="x", **options)


def counted(engine):
    found = {kind: value(engine, "ttc_suspect_images_total", kind=kind) for kind in KINDS}
    return {kind: count for kind, count in found.items() if count}


def test_each_image_is_told_and_counted_by_kind():
    """In its answer, in the metric, and of its stream alone."""
    engine = engine_of()

    async def walk():
        scene = scenes(3)
        rows = await step(engine, images_of(scene, scene[-1:], noise(1)))
        assert [row.answers.suspects[row.row] for row in rows] == [*[None] * 3, "frozen", "noise"]
        await step(engine, images_of(scenes(2, 1)), stream="other")
        assert counted(engine) == {"frozen": 1, "noise": 1}
        records = engine.streams
        assert records["s"].suspects == {"frozen": 1, "noise": 1}
        assert (records["s"].images, records["other"].suspects) == (5, {})

    run(engine, walk())


def test_a_batch_of_suspects_alone_is_skipped_and_no_noise_in_the_log():
    """The metric says why; the event is of the camera, not of each batch."""
    engine = engine_of()

    async def walk():
        for number in range(3):
            await step(engine, images_of(noise(2, number)))
        assert value(engine, "ttc_adaptation_skipped_total", reason="suspect") == 3
        assert events_of(engine) == ["suspect"]
        assert engine.streams["s"].version == 0

    run(engine, walk())


def test_it_is_told_when_a_fault_begins_changes_and_ends():
    """Not with each image, nor with each ordinary one between two faulty ones."""
    engine = engine_of("observe")

    async def walk():
        for number in range(4):
            await step(engine, images_of(scenes(2, number), noise(2, number)))
        assert [event.get("kind") for event in engine.events] == ["noise"]
        record, (begun,) = engine.streams["s"], engine.events
        assert (record.suspect, record.suspect_in_a_row) == ("noise", 2)
        assert record.suspect_since == pytest.approx(begun["time"], abs=0.1)
        since = record.suspect_since
        for _ in range(2):
            await step(engine, images_of(np.zeros_like(noise(2))))
        assert [event.get("kind") for event in engine.events] == ["noise", "black"]
        # Another kind is the same camera's fault: two of noise came before, with no other between.
        assert (record.suspect, record.suspect_in_a_row) == ("black", 6)
        assert record.suspect_since == since
        await step(engine, images_of(scenes(1, 8), np.zeros_like(noise(3)), scenes(1, 7)))
        assert (record.suspect, record.suspect_in_a_row) == ("black", 0)
        assert record.suspect_since == since
        await step(engine, images_of(scenes(WELL_AFTER - 2, 9)))
        assert record.suspect == "black"
        await step(engine, images_of(scenes(1, 10)))
        assert events_of(engine) == ["suspect", "suspect", "suspect_over"]
        assert (record.suspect, record.suspect_since) == (None, None)
        after = time.time()
        await step(engine, images_of(noise(1, 9)))
        assert (record.suspect, record.suspect_in_a_row) == ("noise", 1)
        assert after < record.suspect_since < time.time()

    run(engine, walk())


def test_a_request_that_teaches_nothing_leaves_no_trace():
    """It is told and counted; the next image is compared with the one before it."""
    engine = engine_of()

    async def walk():
        scene = scenes(2)
        await step(engine, images_of(scene))
        answered = await ask(engine, images_of(scenes(1, 5), noise(1)), learn=False)
        await engine.count(answered)
        assert counted(engine) == {"noise": 1}
        assert engine.streams["s"].suspects == {}
        rows = await step(engine, images_of(scene[-1:]))
        assert rows[0].answers.suspects == ("frozen",)

    run(engine, walk())


def test_a_saved_stream_keeps_its_counts(tmp_path):
    """And the images that the next ones are compared with, and since when it has been at fault."""
    engine = engine_of(state_dir=tmp_path)

    async def before():
        await step(engine, images_of(scenes(2), noise(3)))
        await engine.save()

    run(engine, before())
    was = engine.streams["s"]
    again = engine_of(state_dir=tmp_path)

    async def after():
        await step(again, images_of(noise(1, 1)))
        record = again.streams["s"]
        assert (record.suspect, record.suspect_in_a_row) == ("noise", 4)
        assert record.suspect_since == was.suspect_since
        rows = await step(again, images_of(noise(3)[-1:], scenes(2)))
        assert rows[0].answers.suspects == ("frozen",) * 3
        assert record.suspects == {"noise": 4, "frozen": 3}

    run(again, after())


def test_a_stream_of_one_frozen_picture_shows_all_that_its_method_has(monkeypatch):
    """From its first image on, also while that is learned from: a camera that froze is looked up
    by someone in a hurry."""
    engine = engine_of()
    shown = []
    adapt = Screened.adapt

    def looked_up(self, prediction, *, learn=True):
        shown.append(dict(engine.streams["s"].details))
        return adapt(self, prediction, learn=learn)

    monkeypatch.setattr(Screened, "adapt", looked_up)

    async def walk():
        for _ in range(3):
            await step(engine, images_of(scenes(1)))
        shown.append(dict(engine.streams["s"].details))

    run(engine, walk())
    assert shown[0]["images_before"] == pytest.approx(0.2)
    assert all(details.keys() == shown[-1].keys() for details in shown)
    assert engine.streams["s"].suspects == {"frozen": 2}


def test_nothing_is_looked_at_with_the_guard_off():
    """No image is suspect, and nobody asked."""
    engine = engine_of("off")

    async def walk():
        rows = await step(engine, images_of(noise(2), noise(2)[-1:]))
        assert rows[0].answers.suspects == ()
        assert (counted(engine), engine.streams["s"].suspects) == ({}, {})

    run(engine, walk())


@pytest.mark.parametrize("method", ["norm", "ttc_stream"])
def test_offline_the_same_images_are_suspect(method):
    """To the last one, and the answers are the same, in the same batches."""
    by_turns = [scenes(2, 2)] * 3
    pixels = np.concatenate(
        [scenes(6), noise(3), scenes(5, 1), scenes(5, 1)[-1:], noise(1, 1), *by_turns]
    )
    engine = engine_of(method=method)

    class Stream:
        columns: ClassVar[dict] = {}

        def __len__(self):
            return len(pixels)

        def grains(self, part):
            return [None] * len(pixels[part])

        def batches(self, size):
            for start in range(0, len(pixels), size):
                part = pixels[start : start + size]
                yield part, np.zeros(len(part), np.int64)

    tally = run_stream(create(method, make_model(), guard="on"), Stream(), 4)

    async def walk():
        return [
            row for part, _ in Stream().batches(4) for row in await step(engine, images_of(part))
        ]

    rows = run(engine, walk())
    assert [row.answers.suspects[row.row] for row in rows] == [
        None if code == 0 else KINDS[code - 1] for code in tally.columns["suspect"]
    ]
    assert [row.answers.predicted[row.row] for row in rows] == tally.columns["predicted"].tolist()
    assert tally.suspects(KINDS) == {"suspects": {"frozen": 5, "noise": 4}}
