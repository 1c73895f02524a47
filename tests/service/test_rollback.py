"""Bringing a stream back, beside what the queue does with it."""

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.answering import Image
from service.engine import Engine
from service.errors import NoSnapshot, NotBroughtBack, SavedDoesNotFit
from service.metrics import Metrics
from tests.fixtures.contract import same
from tests.fixtures.engine import ask, events_of, make_model, run, step, value
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

    def make(guard="on", **options):
        source = create("ttc", make_model(), guard=guard, statistics="moving", samples_per_step=5)
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
        version = await engine.undoing.roll_back("s", None)
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
        first = min(await engine.undoing.snapshots("s"))
        assert await engine.undoing.roll_back("s", first) == first
        assert list(engine.streams) == ["s"]
        assert engine.streams["s"].version == first
        assert engine.streams["s"].mode == "rolled_back"

    run(engine, walk())


def test_who_asks_what_there_is_or_for_what_is_not_takes_nobodys_place(engine_of, tmp_path):
    """Neither a name that nobody has, nor a version; a stream on disk is told of and stays there,
    also while a request of its own waits for a place."""
    engine = engine_of(state_dir=tmp_path, max_streams=1)

    async def walk():
        for seed in range(BATCHES):
            await step(engine, scenes(5, seed))
        kept = await engine.undoing.snapshots("s")
        engine.table.admit("other")
        await step(engine, scenes(5), stream="other")
        engine.table.release("other")
        assert await engine.save()
        engine.table.admit("s")
        assert await engine.undoing.snapshots("s") == kept
        with pytest.raises(NoSnapshot, match=f"its versions are: {min(kept)}, {max(kept)}"):
            await engine.undoing.roll_back("s", 10**6)
        with pytest.raises(NoSnapshot, match="nobody has had no images"):
            await engine.undoing.snapshots("nobody")
        with pytest.raises(NoSnapshot, match="nobody has had no images"):
            await engine.undoing.roll_back("nobody", None)
        assert list(engine.streams) == ["other"]
        assert "restored" not in events_of(engine)
        engine.table.release("s")

    run(engine, walk())


def test_without_a_guard_it_is_told_what_there_is_and_that_nobody_goes_back(engine_of, tmp_path):
    """On disk and in memory the same; the next guard does."""

    async def learn(engine):
        for seed in range(BATCHES):
            await step(engine, scenes(5, seed))
        kept = await engine.undoing.snapshots("s")
        assert (len(kept), engine.undoing.no_roll_back) == (2, None)
        assert await engine.save()
        return kept

    def refused(engine, version):
        match = rf"none of its versions: .*\b{version}\b.*No guard is on; saved ones come back"
        return pytest.raises(NoSnapshot, match=match)

    async def look(engine):
        assert await engine.undoing.snapshots("s") == kept
        for _ in range(2):
            for version in kept:
                with refused(engine, version):
                    await engine.undoing.roll_back("s", version)
            await step(engine, scenes(5))  # which loads it
            assert await engine.undoing.snapshots("s") == kept
        assert engine.undoing.no_roll_back == "No guard is on; saved ones come back with it."
        assert await engine.save()

    async def go_back(engine):
        assert await engine.undoing.snapshots("s") == kept
        assert await engine.undoing.roll_back("s", min(kept)) == min(kept)

    first = engine_of(state_dir=tmp_path)
    kept = run(first, learn(first))
    for guard, walk in (("off", look), ("on", go_back)):
        engine = engine_of(guard, state_dir=tmp_path)
        run(engine, walk(engine))


def test_a_file_that_is_none_of_the_streams_is_told_as_that(engine_of, tmp_path):
    """Of what lies in its place nothing is listed, nor where that is; and it stays."""
    (tmp_path / "s.safetensors").write_bytes(b"not ours" * 100)
    engine = engine_of(state_dir=tmp_path)
    told = r"What is saved of stream s does not fit: no state that can be read\."

    async def walk():
        with pytest.raises(SavedDoesNotFit, match=f"^{told}$"):
            await engine.undoing.snapshots("s")
        with pytest.raises(SavedDoesNotFit, match=f"^{told}$"):
            await engine.undoing.roll_back("s", None)

    run(engine, walk())
    assert (tmp_path / "s.safetensors").read_bytes() == b"not ours" * 100


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
            await engine.undoing.roll_back("s", None)
        assert same(learned(engine), before)
        assert value(engine, "ttc_rollbacks_total", cause="request") == 0
        with pytest.raises(NoSnapshot, match="no such snapshot"):
            await engine.undoing.roll_back("s", 10**6)

    run(engine, walk())
