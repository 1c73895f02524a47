"""The device thread: what an image, a pass or a stream that fails costs others, and itself."""

import asyncio
import gc
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from service.answering import Image
from service.batcher import Batcher
from service.errors import PredictionFailed
from tests.fixtures.engine import (
    CLASSES,
    WHITE,
    Careless,
    Network,
    ask,
    engine_of,
    events_of,
    logits_of,
    make_model,
    odd_engine,
    pictures,
    run,
    step,
    value,
)
from ttc_core.methods import create
from ttc_core.model import SourceModel


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def odd(model, monkeypatch):
    return odd_engine(model, monkeypatch)


async def in_batches(engine, batches, *, max_batch=10):
    """Have the queue run batches, a stream's name and its image each; how the last one ended."""
    batcher = Batcher(
        engine,
        engine._metrics,
        max_batch=max_batch,
        max_wait=0,
        max_images=100,
        shares=engine.source.shares,
    )
    loop = asyncio.create_task(batcher.run())
    await asyncio.sleep(0)
    ends = []
    for requests in batches:
        places = [batcher.enter(stream) for stream, _ in requests]
        for place in places:
            place.count(1)
        for place, (_, image) in zip(places, requests, strict=True):
            place.fill([image])
            place.delivered.set()
        ends = await asyncio.gather(*(p.answers() for p in places), return_exceptions=True)
    batcher.drain()
    await loop
    return ends


@pytest.mark.parametrize("streams", ["ssssss", "abcdef", "aababa"])
@pytest.mark.parametrize("statistics", ["source", "moving", "batch"])
def test_an_image_that_overflows_costs_no_other_request_its_answer(model, statistics, streams):
    """Whatever the layers take their statistics from, and whose they are; the others are learned
    from, too."""
    source = create("ttc", model, statistics=statistics)
    assert source.shares == (statistics != "batch")
    engine = engine_of(source)
    images = [*pictures(3), WHITE, *pictures(2, seed=1)]
    ends = run(engine, in_batches(engine, [list(zip(streams, images, strict=True))]))
    assert [isinstance(end, PredictionFailed) for end in ends] == [False] * 3 + [True, False, False]
    assert value(engine, "ttc_images_total") == 5
    ordinary = Counter(
        stream for stream, image in zip(streams, range(6), strict=True) if image != 3
    )
    assert {name: stream.images for name, stream in engine.streams.items()} == ordinary
    assert value(engine, "ttc_adaptation_skipped_total", reason="non_finite") == 1
    assert value(engine, "ttc_batches_total", reason="wait") + value(
        engine, "ttc_batches_total", reason="full"
    ) == value(engine, "ttc_batch_images_count")


TEN = "abcdefghij"
# By name and settings: a method of which two views of each image are one pass, and the default.
SHARING = {
    "ttc": {"statistics": "moving", "samples_per_step": 1},
    "ttc_stream": {"learn": "always", "entropy_fraction": 1.0, "samples_per_step": 1},
}


class Failing(nn.Module):
    """A network that fails in a way of its own, and notes how many rows each pass has."""

    def __init__(self, fails=lambda x: x):
        super().__init__()
        self.network, self.fails, self.passes = Network(), fails, []

    def forward(self, x):
        self.passes.append(len(x))
        return self.network(self.fails(x))


def refuses_white(x):
    if (x.mean((1, 2, 3)) > 0.99).any():
        raise RuntimeError("an image that I do not know")
    return x


def overflows(x):
    return x  # as the network within does


def more_than_four(error):
    """A failure that is nobody's, but of so many rows."""

    def fails(x):
        if len(x) > 4:
            raise error
        return x

    return fails


def beside_others(method, fails, bad):
    """Ten streams of which one's third image is bad, in one batch each; and each of them alone.

    Returns:
        The engine, the ends of the last batch, how many rows its passes had; the other engine and
        the ends there, of the sound streams only.
    """
    torch.manual_seed(0)
    network = Failing(fails)
    model = SourceModel(network, mean=(0,) * 3, std=(1,) * 3, size=16)
    source = create(method, model, guard="off" if method == "ttc" else "on", **SHARING[method])
    assert source.shares
    engine, other = engine_of(source), engine_of(source)
    batches = [list(zip(TEN, pictures(10, seed), strict=True)) for seed in range(3)]
    if bad is not None:
        batches[2][TEN.index(bad)] = (bad, WHITE)

    async def together():
        await in_batches(engine, batches[:2])
        network.passes.clear()
        ends = await in_batches(engine, batches[2:])
        return ends, list(network.passes)

    async def alone():
        ends = {}
        for stream, images in zip(TEN, zip(*batches, strict=True), strict=True):
            for image in images if stream != bad else ():
                (ends[stream],) = await in_batches(other, [[image]])
        return ends

    return engine, *run(engine, together()), other, run(other, alone())


def assert_as_alone(engine, ends, other, alone):
    """Answers and states of the streams that are sound, each adapted once an image."""
    for stream, expected in alone.items():
        got = ends[TEN.index(stream)]
        np.testing.assert_allclose(logits_of(got), logits_of(expected), rtol=1e-4, atol=1e-4)
        record, expected = engine.streams[stream], other.streams[stream]
        assert (record.images, record.batches) == (3, 3)
        assert record.version == expected.version
        for section, entries in expected.method.state().items():
            for name, entry in entries.items():
                found = record.method.state()[section][name]
                if not isinstance(entry, str):
                    torch.testing.assert_close(
                        found, entry, rtol=1e-4, atol=1e-4, check_dtype=False
                    )


@pytest.mark.parametrize("method", SHARING)
@pytest.mark.parametrize("fails", [overflows, refuses_white], ids=["no-number", "raises"])
def test_a_bad_image_costs_the_streams_of_its_batch_little(method, fails):
    """No second pass where it has no numbers: what was sound of the shared one is answered and
    learned from, and only the bad one is run again. Where it raises, the pass it is in is run in
    halves until it is alone."""
    _, _, sound, _, _ = beside_others(method, fails, None)
    engine, ends, passes, other, alone = beside_others(method, fails, "e")
    assert [stream for stream, end in zip(TEN, ends, strict=True) if not isinstance(end, list)] == [
        "e"
    ]
    assert isinstance(ends[4], PredictionFailed)
    assert ends[4].index == 0
    assert_as_alone(engine, ends, other, alone)
    assert value(engine, "ttc_images_total") == 29
    assert engine.streams["e"].images == 2
    # In the shared pass the source is asked, too, where a stream has no answer; then it is run by
    # itself. What raises is tried again at each.
    tries = 3 if fails is overflows else 5
    most = sum(sound) + tries * 2 * (1 if method == "ttc" else 2)
    if fails is refuses_white:
        most += 2 * (10 + 5 + 3 + 2)  # the halves of the pass that it was in
    assert sum(passes) <= most


class Allocating(nn.Module):
    """A network whose passes take memory for each row until they are over, of which there is so
    much; `found` has how much was taken when each pass began."""

    def __init__(self, error, rows):
        super().__init__()
        self.network, self.error, self.rows = Network(), error, rows
        self.taken, self.found = 0, []

    def forward(self, x):
        self.found.append(self.taken)
        taken = Taken(self, len(x))
        if self.taken > self.rows:
            raise self.error
        answers = self.network(x)
        del taken
        return answers


class Taken:
    """Memory of a pass; it is free again when nobody refers to it any more."""

    def __init__(self, network, rows):
        self.network, self.rows = network, rows
        network.taken += rows

    def __del__(self):
        self.network.taken -= self.rows


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
@pytest.mark.parametrize(
    ("statistics", "streams"), [("batch", "s" * 10), ("moving", TEN), ("moving", "aabbccddee")]
)
def test_where_memory_is_too_little_fewer_images_are_run(statistics, streams, error):
    """What a pass took that failed is free again before the next: not when the garbage collector
    may come by. Everybody is answered and learned from, once."""
    torch.manual_seed(0)
    network = Allocating(error("no memory"), 6)
    model = SourceModel(network, mean=(0,) * 3, std=(1,) * 3, size=16)
    source = create("ttc", model, guard="off", statistics=statistics, samples_per_step=1)
    assert source.shares == (statistics != "batch")
    engine = engine_of(source)
    network.found.clear()
    gc.collect()
    gc.disable()
    try:
        ends = run(engine, in_batches(engine, [list(zip(streams, pictures(10), strict=True))]))
    finally:
        gc.enable()
    assert all(isinstance(end, list) for end in ends)
    assert set(network.found) == {0}
    assert value(engine, "ttc_images_total") == 10
    images = {stream: record.images for stream, record in engine.streams.items()}
    assert images == Counter(streams)
    assert value(engine, "ttc_resets_total", cause="failure") == 0


def test_a_pass_that_fails_for_its_size_costs_nobody_an_answer():
    """It is no image's fault: with fewer rows each is answered and learned from once, as alone."""
    fails = more_than_four(RuntimeError("too many"))
    engine, ends, _, other, alone = beside_others("ttc", fails, None)
    assert_as_alone(engine, ends, other, alone)
    assert value(engine, "ttc_resets_total", cause="failure") == 0


@pytest.mark.parametrize(("bad", "most"), [(1, 20), (16, 180), (32, 290)])
def test_whoever_fails_of_many_streams_costs_few_passes(bad, most):
    """Whose failure it is the shared passes find out, in halves; none is looked for twice."""
    torch.manual_seed(0)
    network = Failing(refuses_white)
    model = SourceModel(network, mean=(0,) * 3, std=(1,) * 3, size=16)
    source = create("ttc", model, guard="off", **SHARING["ttc"])
    engine = engine_of(source)
    streams = [f"s{number}" for number in range(32)]
    images = pictures(32)
    first = list(zip(streams, images, strict=True))
    for number in range(0, 32, 32 // bad):
        images[number] = WHITE
    second = list(zip(streams, images, strict=True))

    async def walk():
        await in_batches(engine, [first], max_batch=32)
        network.passes.clear()
        return await in_batches(engine, [second], max_batch=32)

    ends = run(engine, walk())
    assert [isinstance(end, list) for end in ends] == [image is not WHITE for image in images]
    assert len(network.passes) <= most


def test_an_adaptation_that_fails_is_told_with_its_stream_and_is_no_others(model, monkeypatch):
    """Outside of what its method does, too; what the others learned is measured."""
    engine = engine_of(create("ttc", model, guard="off", **SHARING["ttc"]))
    measure = engine.table.measure

    def fails(stream):
        if stream == "b":
            raise RuntimeError("no scales")
        measure(stream)

    monkeypatch.setattr(engine.table, "measure", fails)
    ends = run(engine, in_batches(engine, [list(zip("abc", pictures(3), strict=True))]))
    assert all(isinstance(end, list) for end in ends)
    (told,) = [event for event in engine.events if event["event"] == "adaptation_failed"]
    assert (told["stream"], told["reason"]) == ("b", "RuntimeError: no scales")
    assert [engine.streams[stream].version for stream in "ac"] == [1, 1]
    assert engine.last_adapt_seconds > 0


def test_the_search_for_an_image_at_fault_leaves_nothing_behind(tmp_path):
    """Neither answers that nobody got and a label could come for, nor a stream at work, which
    would make room for no other."""
    model = SourceModel(Failing(refuses_white), mean=(0,) * 3, std=(1,) * 3, size=16)
    engine = engine_of(create("ttc", model, guard="on"), state_dir=tmp_path, max_streams=1)

    async def walk():
        await in_batches(engine, [[("c", pictures(1)[0])], [("b", pictures(1)[0])]])
        await engine.save()
        pixels = [*pictures(3), WHITE, *pictures(1)]
        images = [Image(each.pixels, id=f"{number}") for number, each in enumerate(pixels)]
        batcher = Batcher(engine, engine._metrics, max_batch=10, max_wait=0, max_images=100)
        loop = asyncio.create_task(batcher.run())
        await asyncio.sleep(0)
        place = batcher.enter("b")
        place.count(5)
        place.fill(images)
        with pytest.raises(PredictionFailed, match="Image 4 of 5"):
            await place.answers()
        batcher.drain()
        await loop
        told, _ = await engine.feedback([("b", f"{number}", 1) for number in range(5)])
        assert not told.get("taken")
        engine.table.admit("c")  # as a rollback, or its next image, has it come from disk
        assert engine.table.get("c").images == 1
        engine.table.release("c")

    run(engine, walk())


def test_a_batch_with_a_bad_row_teaches_nothing_whatever_the_method(model):
    """The method is not even asked: one of a user's own may not look."""
    engine = engine_of(Careless(model))

    async def walk():
        await step(engine, pictures(4))
        with_bad = await step(engine, [*pictures(2), WHITE])
        assert [isinstance(row, PredictionFailed) for row in with_bad] == [False, False, True]
        assert engine.streams["s"].method._inner.learned == 1
        assert engine.streams["s"].images == 4
        assert value(engine, "ttc_images_total") == 4

    run(engine, walk())


def test_a_first_pass_that_fails_takes_no_place(model):
    """A stream is one once something was answered: not by an error, nor by bad rows."""
    engine = engine_of(create("ttc", model, statistics="batch"))

    async def walk():
        mixed = [Image(np.zeros((16, 16, 3), np.uint8)), Image(np.zeros((8, 8, 3), np.uint8))]
        with pytest.raises(ValueError, match="same shape"):
            await ask(engine, mixed, stream="a")
        await step(engine, [WHITE], stream="b")
        await engine.count(await ask(engine, pictures(2), stream="c", learn=False))
        assert engine.streams == {}
        await step(engine, pictures(2), stream="d")
        assert list(engine.streams) == ["d"]

    run(engine, walk())


# A stream that cannot go on


@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_a_stream_whose_state_answers_nothing_goes_back_to_the_source(model, fault):
    """What the source can answer is answered at once, and the reset is told."""
    engine = engine_of(create("tent", model, statistics="moving"))

    async def walk():
        await step(engine, pictures(8))
        fresh = logits_of((await ask(engine, pictures(4), stream="fresh")).rows)
        method = engine.streams["s"].method
        state = method.state()
        for tensor in state["affine"].values():
            tensor.fill_(fault)
        method.restore(state)
        rows = await step(engine, pictures(4))
        assert np.array_equal(logits_of(rows), fresh)
        assert value(engine, "ttc_resets_total", cause="failure") == 1
        assert events_of(engine)[-1] == "reset"
        await step(engine, pictures(4))
        assert value(engine, "ttc_resets_total", cause="failure") == 1

    run(engine, walk())


def test_a_state_in_which_a_users_method_only_raises_is_left(odd):
    """So is one that answers nothing but errors."""
    engine, make = odd

    def moved(method, images, prediction):
        if method.state()["supports"]["counts"].sum() > CLASSES:
            raise RuntimeError("I cannot go on")
        return prediction

    async def walk():
        await step(engine, pictures(4))
        make(predicts=moved)
        assert len(await step(engine, pictures(4))) == 4
        assert value(engine, "ttc_resets_total", cause="failure") == 1

    run(engine, walk())


@pytest.mark.parametrize("statistics", ["source", "moving", "batch"])
def test_no_image_throws_away_what_a_stream_has_learned(model, statistics):
    """The source cannot answer it either: the image is at fault, again and again."""
    engine = engine_of(create("tent", model, statistics=statistics))

    async def walk():
        for _ in range(3):
            await step(engine, pictures(8))
        for _ in range(3):
            (row,) = await step(engine, [WHITE])
            assert isinstance(row, PredictionFailed)
        assert engine.streams["s"].version == 3
        assert value(engine, "ttc_resets_total", cause="failure") == 0

    run(engine, walk())


def test_a_passing_failure_throws_nothing_away(odd):
    """A want of memory that is over at the second try."""
    engine, make = odd
    tries = []

    def once(method, images, prediction):
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("can't allocate memory")
        return prediction

    async def walk():
        await step(engine, pictures(4))
        make(predicts=once)
        assert len(await step(engine, pictures(4))) == 4
        assert len(tries) == 2
        assert value(engine, "ttc_resets_total", cause="failure") == 0

    run(engine, walk())
