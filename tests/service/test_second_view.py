"""Where mirror images mean something else: said once, shown as long as it holds, watched anew."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import nn

from service.answering import Image
from service.engine import Engine
from service.metrics import Metrics
from tests.fixtures.engine import ask, events_of, own, run, step, value
from tests.fixtures.methods import Plain
from ttc_core.methods import create
from ttc_core.model import SourceModel


class Sided(nn.Module):
    """Tells on which side an image is bright: of its mirror image it says the contrary."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(2, 2)
        nn.init.eye_(self.head.weight)

    def forward(self, x):
        left, right = self.norm(x).mean(1).chunk(2, dim=2)
        return self.head(50 * torch.stack((left.mean((1, 2)), right.mean((1, 2))), dim=1))


def bright_on_the_left(count):
    pixels = np.random.default_rng(count).integers(0, 99, (count, 16, 16, 3), dtype=np.uint8)
    pixels[:, :, :8] += 100
    return [Image(image) for image in pixels]


ENOUGH, TOO_FEW = bright_on_the_left(12), bright_on_the_left(3)


@pytest.fixture(scope="module")
def model():
    return SourceModel(Sided().eval(), mean=(0.4,) * 3, std=(0.2,) * 3, size=16)


def engine_of(source, **options):
    metrics = Metrics(CollectorRegistry(), classes=2, model={})
    return Engine(source, metrics, method_name="m", model_spec="x", **options)


def streams_without(engine):
    return value(engine, "ttc_streams_without_second_view")


def test_a_stream_without_the_second_view_says_so_once(model):
    """In the events, on the stream's record and in the gauge; other streams keep theirs."""
    engine = engine_of(create("ttc_stream", model))

    async def walk():
        await step(engine, TOO_FEW)
        assert (events_of(engine), streams_without(engine)) == ([], 0)
        for _ in range(3):
            await step(engine, ENOUGH)
        await step(engine, TOO_FEW, stream="other")
        (event,) = engine.events
        assert (event["event"], event["stream"]) == ("second_view_off", "s")
        assert streams_without(engine) == 1
        found = {name: record.second_view_off for name, record in engine.streams.items()}
        assert found == {"s": True, "other": False}

    run(engine, walk())


def test_it_is_said_once_although_batches_wait_to_be_learned_from(model):
    """What was answered with both views before, and is committed after, brings none back."""
    engine = engine_of(create("ttc_stream", model))

    async def walk():
        passes = [await ask(engine, images) for images in (ENOUGH, TOO_FEW, ENOUGH)]
        for answered in passes:
            await engine.adapt(answered, learn=True)
            assert engine.streams["s"].second_view_off
        assert events_of(engine) == ["second_view_off"]

    run(engine, walk())


def test_a_reset_stream_is_watched_anew(model):
    """It has both views again, and says again that it has lost one."""
    engine = engine_of(create("ttc_stream", model))

    async def walk():
        await step(engine, ENOUGH)
        await engine.undoing.reset("s")
        await step(engine, TOO_FEW)
        assert streams_without(engine) == 0
        await step(engine, ENOUGH)
        assert streams_without(engine) == 1
        assert events_of(engine) == ["second_view_off", "reset", "second_view_off"]

    run(engine, walk())


def test_images_of_one_class_are_no_event(model):
    """Nothing is learned of them by intent: the metric counts it, the log is not told."""
    engine = engine_of(create("ttc_stream", model, second_view="off"))

    async def walk():
        await step(engine, ENOUGH)
        assert events_of(engine) == []
        assert value(engine, "ttc_adaptation_skipped_total", reason="none_selected") == 1

    run(engine, walk())


def test_a_saved_stream_comes_back_without_it_and_says_nothing(model, tmp_path):
    """It was said before; status and gauge go on."""

    def restarted():
        return engine_of(create("ttc_stream", model), state_dir=tmp_path)

    async def first():
        await step(before, ENOUGH)
        assert await before.save()

    async def second():
        await step(after, TOO_FEW)
        assert after.streams["s"].second_view_off
        assert streams_without(after) == 1
        assert events_of(after) == ["restored"]

    before = restarted()
    run(before, first())
    after = restarted()
    run(after, second())


@pytest.mark.parametrize(
    "make",
    [
        lambda model: create("source", model, flip=True),
        lambda model: create("ttc", model, statistics="moving"),
        lambda model: create("ttc_stream", model, second_view="on"),
        lambda model: create("ttc_stream", model, second_view="off"),
        lambda model: own(Plain(model)),
    ],
    ids=["source", "ttc", "forced on", "forced off", "one's own"],
)
def test_who_watches_no_second_view_says_nothing_of_it(model, make):
    """Methods without one, those that always have it, and settings that force either way."""
    engine = engine_of(make(model))

    async def walk():
        for _ in range(2):
            await step(engine, ENOUGH)
        assert not engine.streams["s"].second_view_off
        assert (events_of(engine), streams_without(engine)) == ([], 0)

    run(engine, walk())


def test_a_stream_shows_what_its_method_has_to_show(model):
    """The default: how open late layers are, what the images before weigh, how much less sure
    answers are told than they are; others nothing."""
    for name, shown in (
        ("ttc_stream", {"late_layers", "images_before", "conditions", "doubt", "temperature"}),
        ("ttc", set()),
    ):
        engine = engine_of(create(name, model))

        async def walk(engine=engine, shown=shown):
            for _ in range(4):
                await step(engine, ENOUGH)
            details = engine.streams["s"].details
            assert details.keys() == shown
            assert all(0 <= number <= 2 for number in details.values())

        run(engine, walk())


def test_a_run_of_one_class_shows_in_what_the_images_before_weigh(model):
    """From a fifth, where nothing is known yet; switched off it has no weight."""
    weights = []
    for prior in (True, False):
        method = create("ttc_stream", model, prior=prior)
        start = method.details["images_before"]
        for _ in range(4):
            batch = torch.from_numpy(np.stack([each.pixels for each in ENOUGH]))
            method.adapt(method.predict(batch.permute(0, 3, 1, 2)))
        weights.append((start, method.details["images_before"]))
    (before, after), off = weights
    assert before == pytest.approx(0.2)
    assert after != before
    assert off == (0, 0)


@pytest.mark.parametrize(
    ("made", "asked", "told"),
    [
        ({}, None, None),
        ({}, "learning", "learning"),
        ({}, "second_view", "second_view"),
        ({"second_view": "off"}, "second_view", "learning"),
        ({"learn": "never"}, "learning", None),
        ({"learn": "never"}, "second_view", "second_view"),
        ({"learn": "never", "second_view": "off"}, "second_view", None),
    ],
)
def test_an_image_is_told_what_it_went_without(model, made, asked, told):
    """Which is nothing where its stream would not have done it anyway; the metric has the same."""
    engine = engine_of(create("ttc_stream", model, **made))

    async def walk():
        answered = await engine.predict([("s", TOO_FEW)], learn=asked is None, shed=asked)
        assert [row.shed for row in answered.rows] == [told] * len(TOO_FEW)
        await engine.adapt(answered, learn=asked is None)
        for what in ("learning", "second_view"):
            counted = value(engine, "ttc_shed_images_total", what=what)
            assert counted == (len(TOO_FEW) if what == told else 0)
        # The mirror image was not looked at: nothing was bet on it.
        bet = engine.streams["s"].method.state()["second_view"]
        looked = told != "second_view" and made.get("second_view") != "off"
        assert (bet["unlike"] != 0) == looked

    run(engine, walk())


def test_what_asks_for_no_learning_is_shed_of_none(model):
    """A request with learn=false; its second view may go."""
    engine = engine_of(create("ttc_stream", model))
    images = [replace(each, learn=False) for each in TOO_FEW]

    async def walk():
        for shed, told in (("learning", None), ("second_view", "second_view")):
            answered = await engine.predict([("s", images)], learn=False, shed=shed)
            assert {row.shed for row in answered.rows} == {told}

    run(engine, walk())
