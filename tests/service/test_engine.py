"""The device thread: what moves nothing, what a reset ends, and streams in one pass."""

import math
import sys

import numpy as np
import pytest
import torch

from service import stream_reports
from service.answering import Image
from tests.fixtures.contract import same
from tests.fixtures.engine import (
    Careless,
    ask,
    engine_of,
    events_of,
    logits_of,
    make_model,
    pictures,
    run,
    step,
    value,
)
from tests.fixtures.methods import Plain
from ttc_core.methods import Adaptation, create


@pytest.fixture(scope="module")
def model():
    return make_model()


# Without learning


@pytest.mark.parametrize("name", ["source", "norm", "t3a", "tent", "ttc"])
def test_what_is_only_counted_moves_nothing(model, name):
    """Neither gradients nor statistics nor counters of the method; answers and labels count."""
    settings = {} if name == "source" else {"statistics": "moving"}
    engine = engine_of(create(name, model, **settings))

    async def walk():
        await step(engine, pictures(8))
        record = engine.streams["s"]
        before, images = record.method.state(), record.images
        labelled = [Image(image.pixels, 1) for image in pictures(4)]
        await engine.count(await ask(engine, labelled, learn=False))
        assert same(record.method.state(), before)
        assert record.images == images
        assert value(engine, "ttc_images_total") == 12
        assert value(engine, "ttc_labelled_images_total") == 4
        assert value(engine, "ttc_considered_images_total") in (0, 8)

    run(engine, walk())


class AsksForLearn(Plain):
    """Takes the option in both verbs and remembers what it was told."""

    def __init__(self, model):
        super().__init__(model)
        self.told = []

    def predict(self, images, *, learn=True):
        self.told.append(learn)
        return super().predict(images)

    def adapt(self, prediction, **options):
        self.told.append(options)
        return Adaptation()


def test_what_is_shed_is_predicted_without_learning(model):
    """So that no graph is built for nothing; one that takes the option is told."""
    engine = engine_of(AsksForLearn(model))

    async def walk():
        await step(engine, pictures(2), learn=False)
        await step(engine, pictures(2))
        assert engine.streams["s"].method._inner.told == [False, {"learn": False}, True, {}]

    run(engine, walk())


def test_a_method_that_knows_no_such_option_is_not_asked_to_learn(model):
    """With `--adapt never` it only answers; nothing fails, and nothing is reset."""
    engine = engine_of(Careless(model))

    async def walk():
        await step(engine, pictures(2), learn=False)
        assert engine.streams["s"].method._inner.learned == 0
        assert value(engine, "ttc_adaptation_skipped_total", reason="shed") == 1
        assert events_of(engine) == []

    run(engine, walk())


def test_resetting_a_stream_that_never_was_counts_nothing(model):
    """It is at the source already; the others' answers are still known."""
    engine = engine_of(create("source", model))

    async def walk():
        for _ in range(10):
            await step(engine, pictures(20), stream="busy")
        share = value(engine, "ttc_dominant_class_ratio")
        assert share > 0
        told = await engine.undoing.reset("nobody")
        assert (told.streams, told.known, told.discarded.steps) == (["nobody"], False, 0)
        assert [event["known"] for event in engine.events] == [False]
        assert value(engine, "ttc_dominant_class_ratio") == share
        assert value(engine, "ttc_resets_total", cause="request") == 0
        assert (await engine.undoing.reset("busy")).known
        assert not (await engine.undoing.reset("busy")).known
        assert math.isnan(value(engine, "ttc_dominant_class_ratio"))
        assert value(engine, "ttc_resets_total", cause="request") == 1

    run(engine, walk())


def test_of_so_many_reset_streams_it_is_known_that_they_were(model, monkeypatch):
    """Those reset last, once each; nothing is told of a name that nobody had."""
    monkeypatch.setattr(stream_reports, "MOST_RESET", 2)
    engine = engine_of(create("source", model))

    async def walk():
        for name in ("a", "b", "a", "c", "typo"):
            if name != "typo":
                await step(engine, pictures(1), stream=name)
            await engine.undoing.reset(name)
        for name in ("a", "b", "c", "typo"):
            await step(engine, pictures(1), stream=name)
        told = {name: [act.reason for act in each.acts] for name, each in engine.streams.items()}
        assert told == {"a": ["by_hand"], "b": [], "c": ["by_hand"], "typo": []}

    run(engine, walk())


# What was answered is all that adapting needs


@pytest.mark.parametrize("batches", [0, 2])
@pytest.mark.parametrize("named", [True, False])
def test_what_was_answered_before_a_reset_is_not_learned_after_it(model, batches, named):
    """Not even by a stream whose first batch it was, which stands in no table yet."""
    engine = engine_of(create("tent", model))

    async def walk():
        for _ in range(batches):
            await step(engine, pictures(4))
        answered = await ask(engine, pictures(4))
        await engine.undoing.reset("s" if named else None)
        await engine.adapt(answered, learn=True)
        assert engine.streams == {}
        assert value(engine, "ttc_images_total") == 4 * (batches + 1)
        assert value(engine, "ttc_optimizer_steps_total") == batches
        await step(engine, pictures(4))
        assert engine.streams["s"].version == 1

    run(engine, walk())


def test_what_was_answered_before_a_reset_is_no_sign_of_after_it(model):
    """It counts, but not towards the class that the streams' answers now have most."""
    engine = engine_of(create("source", model))

    async def walk():
        await step(engine, pictures(4))
        answered = await ask(engine, pictures(200))
        await engine.undoing.reset("s")
        await engine.adapt(answered, learn=True)
        assert value(engine, "ttc_images_total") == 204
        assert math.isnan(value(engine, "ttc_dominant_class_ratio"))

    run(engine, walk())


def test_a_reset_stops_its_own_stream_only(model):
    """Of a pass with three streams' images two still learn."""
    engine = engine_of(create("tent", model))

    async def walk():
        answered = await engine.predict([(name, pictures(4)) for name in "abc"])
        await engine.undoing.reset("b")
        await engine.adapt(answered, learn=True)
        assert {name: record.version for name, record in engine.streams.items()} == {"a": 1, "c": 1}

    run(engine, walk())


@pytest.mark.parametrize("guard", ["off", "on"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(("source", {}), ("norm", {}), ("tent", {}), ("ttc", {})),
        *((name, {"statistics": "moving"}) for name in ("norm", "tent", "ttc")),
        ("ttc_stream", {"learn": "always", "entropy_fraction": 1.0, "samples_per_step": 1}),
    ],
)
def test_streams_in_one_pass_are_answered_and_taught_as_alone(model, name, settings, guard):
    """The rows stand in the order of the parts; so do what they taught."""
    source = create(name, model, guard=guard, **settings)
    engines = [engine_of(source) for _ in range(2)]
    images = {"a": pictures(3, seed=3), "b": pictures(5, seed=5), "c": pictures(1, seed=6)}

    async def together():
        for _ in range(3):
            answered = await engines[0].predict(list(images.items()))
            await engines[0].adapt(answered, learn=True)
        return logits_of((await engines[0].predict(list(images.items()))).rows)

    async def alone():
        for stream, some in images.items():
            for _ in range(3):
                await step(engines[1], some, stream=stream)
        return [
            logits_of((await ask(engines[1], some, stream=s)).rows) for s, some in images.items()
        ]

    expected = np.concatenate(run(engines[1], alone()))
    found = run(engines[0], together())
    if source.shares:
        # Adam makes a step of its own size of the least gradient.
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    else:
        assert np.array_equal(found, expected)
    for field in ("images", "version", "suspects"):
        one, other = (
            {name: getattr(record, field) for name, record in engine.streams.items()}
            for engine in engines
        )
        assert one == other


def test_what_a_method_of_ones_own_sets_of_its_thread_stays_with_it(model):
    """Several streams in one batch: what it printed to, and torch's modes, are as before."""
    engine = engine_of(create("tests.fixtures.methods:Modal", model))

    async def walk():
        before = sys.stdout
        answered = await engine.predict([(name, pictures(2)) for name in "abc"])
        assert sys.stdout is before
        modes = engine._device.submit(torch.is_inference_mode_enabled)
        casts = engine._device.submit(torch.is_autocast_enabled, "cpu")
        assert not modes.result()
        assert not casts.result()
        assert len(logits_of(answered.rows)) == 6

    run(engine, walk())


def test_several_passes_may_wait_to_be_learned_from(model):
    """In any order: nobody remembers the batch just answered."""
    engine = engine_of(create("tent", model))

    async def walk():
        answered = [await ask(engine, pictures(4), stream=name) for name in "abba"]
        for each in reversed(answered):
            await engine.adapt(each, learn=True)
        assert {name: record.batches for name, record in engine.streams.items()} == {"a": 2, "b": 2}
        assert value(engine, "ttc_optimizer_steps_total") == 4

    run(engine, walk())
