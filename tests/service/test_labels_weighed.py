"""Which labels a stream's guard weighs, and in what order; what comes of one that fails at it."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.answering import Image
from service.engine import WEIGHED_AT_ONCE, Engine
from service.known_ids import FILE
from service.metrics import Metrics
from tests.fixtures.engine import CLASSES, ask, events_of, make_model, run, value
from ttc_core.guard import comparing, watched
from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods import create
from ttc_core.methods.contract import Answers, Weighed


class Told(Wrapper):
    """A method whose source has the next class, of each image that is compared; it fails where it
    is told to: at weighing, or at what is published afterwards."""

    fails = ""
    ended = False

    def predict(self, images, **asked):
        said = self.inner.predict(images, **asked)
        if not said.compared:
            return said
        both = [Answers(each, other(each)) for each in said.to_host().predicted.tolist()]
        return replace(said, compared=tuple(both))

    def weigh(self, right):
        if self.fails == "weigh":
            raise RuntimeError("it fails")
        return self.inner.weigh(right)

    @property
    def second_view_off(self):
        return self.ended

    @property
    def details(self):
        if self.fails == "details":
            raise RuntimeError("it fails")
        return self.inner.details


def other(answer):
    return (answer + 1) % CLASSES


def scenes(names, seed=0, learn=True):
    """Images with large parts and a little noise, which no camera at fault sends, by their ids."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(20, 200, (len(names), 4, 4, 3)).repeat(6, 1).repeat(6, 2)
    pixels = (coarse + draw.integers(0, 8, coarse.shape)).astype(np.uint8)
    return [Image(each, id=name, learn=learn) for each, name in zip(pixels, names, strict=True)]


def named(start, stop):
    return [str(number) for number in range(start, stop)]


@pytest.fixture
def engine_of(monkeypatch):
    """Make engines on a watched method, each image of which is compared."""
    monkeypatch.setattr("ttc_core.guard.watch.FIRST", 1000)
    monkeypatch.setattr("ttc_core.guard.watch.SHARE", 1.0)

    def make(mode="on", told=True, **options):
        source = watched(create("ttc", make_model(), statistics="moving"), mode)
        source = Told(source) if told else source
        metrics = Metrics(CollectorRegistry(), classes=CLASSES, model={})
        return Engine(source, metrics, method_name="ttc", model_spec="x", **options)

    return make


@pytest.fixture
def answers():
    """What was answered, by stream and id."""
    return {}


@pytest.fixture
def learned(answers):
    """Have a stream answer and learn from images by their ids."""

    async def go(engine, names, stream="s", seed=0):
        answered = await ask(engine, scenes(names, seed), stream=stream)
        note(answers, answered, names)
        await engine.adapt(answered, learn=True)

    return go


def note(answers, answered, names):
    for part in answered.parts:
        rows = zip(names, part.predicted, strict=True)
        answers |= {(part.stream, name): each for name, each in rows}


async def tell(engine, answers, names, *, streams=("s",), right=False):
    """Tell labels by which the source is right, or the method."""
    rows = [
        (stream, name, answers[stream, name] if right else other(answers[stream, name]))
        for stream in streams
        for name in names
    ]
    return await engine.feedback(rows)


def labelled(engine, stream="s"):
    return engine.streams[stream].method.details["labelled_of_compared"]


def test_labels_of_a_new_streams_first_batch_count_before_it_is_adapted(engine_of, answers):
    """They are taken, and no second one would be."""
    engine = engine_of()

    async def walk():
        answered = await ask(engine, scenes(named(0, 6)))
        note(answers, answered, named(0, 6))
        await tell(engine, answers, named(0, 6))
        await engine.adapt(answered, learn=True)
        assert labelled(engine) == 6

    run(engine, walk())


def test_labels_of_a_request_are_weighed_in_the_order_of_the_images(engine_of, answers, learned):
    """Sorted by what they say they would show harm where there is none."""
    engine = engine_of("observe")
    seen = []

    async def walk():
        await learned(engine, named(0, 20))
        method = engine.streams["s"].method
        method.weigh = lambda right: seen.extend(right) or Weighed()
        harm = [("s", name, other(answers["s", name])) for name in named(0, 20)[::2]]
        fine = [("s", name, answers["s", name]) for name in named(0, 20)[::-2]]
        await engine.feedback(harm + fine)
        assert seen == [(False, True), (True, False)] * 10

    run(engine, walk())


def test_labels_of_before_the_guard_brought_a_stream_back_tell_nothing(engine_of, answers, learned):
    """They judge what answered then."""
    engine = engine_of()

    async def walk():
        await learned(engine, named(0, 20))
        await learned(engine, named(20, 40), seed=1)
        _, weighed = await tell(engine, answers, named(20, 40))
        assert value(engine, "ttc_resets_total", cause="guard") == 1
        before = labelled(engine)
        assert 0 < weighed == before < 20  # the others are of the state that was left
        taken, weighed = await tell(engine, answers, named(0, 20))
        assert (len(taken["taken"]), weighed, labelled(engine)) == (20, 0, before)

    run(engine, walk())


def test_labels_of_before_mirror_images_ended_tell_nothing(engine_of, answers, learned):
    """What they taught is forgotten."""
    engine = engine_of()

    async def walk():
        await learned(engine, named(0, 5))
        engine.streams["s"].method.ended = True
        await learned(engine, named(5, 10), seed=1)
        assert "second_view_off" in events_of(engine)
        await learned(engine, named(10, 15), seed=2)
        await tell(engine, answers, named(0, 15))
        assert labelled(engine) == 5

    run(engine, walk())


@pytest.mark.parametrize("where", ["weigh", "details"])
def test_a_stream_that_fails_at_labels_is_put_back_and_no_other_pays(
    engine_of, answers, learned, where
):
    """Labels of what it answered before tell nothing of the source; those of others count."""
    engine = engine_of()

    async def walk():
        for stream in ("s", "t"):
            await learned(engine, named(0, 10), stream)
        failing = engine.streams["s"].method
        failing.fails = where
        await tell(engine, answers, named(0, 5), streams=("s", "t"))
        assert engine.streams["s"].method is not failing
        assert value(engine, "ttc_resets_total", cause="failure") == 1
        assert labelled(engine, "t") == 5
        await tell(engine, answers, named(5, 10))
        assert labelled(engine) == 0

    run(engine, walk())


def test_a_method_that_fails_for_good_keeps_no_label_from_others(
    engine_of, answers, learned, monkeypatch
):
    """At the source it fails as well."""
    engine = engine_of()

    async def walk():
        for stream in ("s", "t"):
            await learned(engine, named(0, 5), stream)
        monkeypatch.setattr(engine.source, "fork", lambda: 1 / 0)
        engine.streams["s"].method.fails = "weigh"
        await tell(engine, answers, named(0, 5), streams=("s", "t"))
        assert labelled(engine, "t") == 5

    run(engine, walk())


def test_labels_of_many_streams_wait_for_few_turns_of_the_device(
    engine_of, answers, learned, monkeypatch
):
    """Not for a batch each."""
    engine = engine_of()
    turns, on_device = [], engine._on_device

    async def counted(call, *args, **kwargs):
        turns.append(call)
        return await on_device(call, *args, **kwargs)

    async def walk():
        streams = [f"s{number}" for number in range(WEIGHED_AT_ONCE + 1)]
        for stream in streams:
            await learned(engine, ["a"], stream)
        monkeypatch.setattr(engine, "_on_device", counted)
        await tell(engine, answers, ["a"], streams=streams)
        assert len(turns) == 2
        assert [labelled(engine, stream) for stream in streams] == [1] * len(streams)

    run(engine, walk())


def test_one_request_of_labels_makes_few_lines_of_a_log(
    engine_of, answers, learned, caplog, monkeypatch
):
    """Of what a guard did again and again the last is told; all are counted."""
    # Labels alone: how an untrained network orders classes is held against it.
    monkeypatch.setattr("ttc_core.guard.restyled.Restyled.is_source", True)
    engine = engine_of()

    async def walk():
        await learned(engine, named(0, 400))
        rows = [
            ("s", name, other(answers["s", name]) if int(name) % 9 < 6 else answers["s", name])
            for name in named(0, 400)
        ]
        logging.disable(logging.NOTSET)
        with caplog.at_level(logging.WARNING):
            await engine.feedback(rows)
        counted = sum(
            value(
                engine,
                "ttc_guard_actions_total",
                action=action,
                reason="suspicion",
                observed="false",
            )
            for action in ("hold", "release")
        )
        told = [event for event in engine.events if event["event"] == "guard"]
        assert len(told) <= 6 < counted
        assert sum(record.levelno == logging.WARNING for record in caplog.records) <= 6

    run(engine, walk())


def test_what_nothing_is_to_come_of_is_not_compared(engine_of, answers, monkeypatch):
    """The source answers none of it, for it would be thrown away; no label of it is weighed."""
    engine = engine_of(told=False)
    passes, plain = [], comparing.answers_to
    monkeypatch.setattr(
        comparing,
        "answers_to",
        lambda model, x, rows: passes.append(len(x)) or plain(model, x, rows),
    )

    async def walk():
        probed = await ask(engine, scenes(["a", "b"], learn=False))
        await engine.count(probed)
        assert passes == []
        mixed = await ask(engine, scenes(["c"], 1, learn=False) + scenes(["d"], 2))
        note(answers, mixed, ["c", "d"])
        assert passes != []
        await engine.adapt(mixed, learn=True)
        await tell(engine, answers, ["c", "d"])
        assert labelled(engine) == 1

    run(engine, walk())


def test_a_stream_saved_beside_ids_that_are_lost_weighs_the_labels_that_come(
    engine_of, answers, learned, tmp_path
):
    """Answers are numbered anew: those it was brought back after say nothing of these."""
    first = engine_of(state_dir=tmp_path)

    async def before():
        await learned(first, named(0, 10))
        first.streams["s"].answers_from = first.truth.newest
        await first.save()

    run(first, before())
    (tmp_path / FILE).unlink()
    second = engine_of(state_dir=tmp_path)

    async def after():
        await learned(second, named(10, 15), seed=1)
        await tell(second, answers, named(10, 15))
        assert labelled(second) == 5

    run(second, after())
