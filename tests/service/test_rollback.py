"""Bringing a stream back, beside what the queue does with it."""

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.answering import Image
from service.engine import Engine
from service.errors import NoSnapshot, NotBroughtBack
from service.metrics import Metrics
from tests.fixtures.contract import same
from tests.fixtures.engine import ask, make_model, run, step, value
from ttc_core.methods import create

BATCHES = 40  # of 5 images each


def scenes(count, seed=0):
    """Images with large parts and a little noise, which no camera at fault sends."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(20, 200, (count, 4, 4, 3))
    pixels = coarse.repeat(6, 1).repeat(6, 2) + draw.integers(0, 8, (count, 24, 24, 3))
    return [Image(each) for each in pixels.astype(np.uint8)]


def learned(engine):
    """All that there is of the stream, but what the next frame is compared with."""
    state = engine.streams["s"].method.state()
    return {name: section for name, section in state.items() if name != "frames"}


@pytest.fixture
def engine_of(monkeypatch):
    """Make engines on a watched method that keeps a good state after each batch."""
    monkeypatch.setattr("ttc_core.guard.guarded.SNAPSHOT_EVERY", 1)

    def make(**options):
        source = create("ttc", make_model(), guard="on", statistics="moving", samples_per_step=5)
        metrics = Metrics(CollectorRegistry(), classes=5, model={})
        return Engine(source, metrics, method_name="ttc", model_spec="x", **options)

    return make


def test_a_batch_that_was_answered_before_teaches_nothing_after(engine_of):
    """What it would add is of the state that was left; the next batch teaches as ever."""
    engine = engine_of()

    async def walk():
        for seed in range(BATCHES):
            await step(engine, scenes(5, seed))
        answered = await ask(engine, scenes(5, BATCHES))
        version = await engine.roll_back("s", None)
        before = learned(engine)
        await engine.adapt(answered, learn=True)
        assert same(learned(engine), before)
        assert engine.streams["s"].images == 5 * BATCHES + 5
        assert value(engine, "ttc_adaptation_skipped_total", reason="shed") == 1
        await step(engine, scenes(5, BATCHES + 1))
        assert engine.streams["s"].version == version + 1

    run(engine, walk())


def test_a_stream_on_disk_that_is_brought_back_stays_in_memory(engine_of, tmp_path):
    """Else it would be loaded again as it was; whoever has the place makes room."""
    engine = engine_of(state_dir=tmp_path, max_streams=1)

    async def walk():
        for seed in range(BATCHES):
            await step(engine, scenes(5, seed))
        engine.table.admit("other")
        await step(engine, scenes(5), stream="other")
        engine.table.release("other")
        assert list(engine.streams) == ["other"]
        first = min(await engine.snapshots("s"))
        assert await engine.roll_back("s", first) == first
        assert list(engine.streams) == ["s"]
        assert engine.streams["s"].version == first
        assert engine.streams["s"].mode == "rolled_back"

    run(engine, walk())


def test_where_there_is_nothing_to_go_back_to_no_other_stream_makes_room(engine_of, tmp_path):
    """A name that nobody has costs nobody his place."""
    engine = engine_of(state_dir=tmp_path, max_streams=1)

    async def walk():
        await step(engine, scenes(5))
        with pytest.raises(NoSnapshot, match="nobody has had no images"):
            await engine.roll_back("nobody", None)
        assert list(engine.streams) == ["s"]

    run(engine, walk())


def test_a_snapshot_that_cannot_be_taken_up_is_told_as_that(engine_of, monkeypatch):
    """With what was the matter; the stream goes on as it was, and nothing is counted."""
    engine = engine_of()

    async def walk():
        for seed in range(BATCHES):
            await step(engine, scenes(5, seed))
        before, inner = learned(engine), engine.streams["s"].method.inner.inner
        restore, calls = inner.restore, []

        def failing(state):
            calls.append(state)
            if len(calls) == 1:
                raise RuntimeError("no room")
            restore(state)

        monkeypatch.setattr(inner, "restore", failing)
        with pytest.raises(NotBroughtBack, match=r"stays as it is: .* no room"):
            await engine.roll_back("s", None)
        assert same(learned(engine), before)
        assert value(engine, "ttc_rollbacks_total", cause="request") == 0
        with pytest.raises(NoSnapshot, match="no such snapshot"):
            await engine.roll_back("s", 10**6)

    run(engine, walk())
