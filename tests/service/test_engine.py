"""The device thread: what a method does to it, whatever the method does, and what of it stays."""

import asyncio
import logging
import math

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import nn

from service.batcher import Batcher
from service.engine import Engine, Image
from service.errors import PredictionFailed
from service.metrics import SKIP_REASONS, Metrics
from tests.fixtures.methods import ClassBalance, Plain
from ttc_core.methods import Adaptation, Prediction, create
from ttc_core.model import SourceModel

CLASSES = 5
WHITE = Image(np.full((16, 16, 3), 255, np.uint8))


class Overflow(nn.Module):
    """White images overflow, all others are ordinary."""

    def forward(self, x):
        return torch.where(x.mean((1, 2, 3), keepdim=True) > 0.99, x * math.inf, x)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.overflow, self.conv = Overflow(), nn.Conv2d(3, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(self.overflow(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SourceModel(Network(), mean=(0,) * 3, std=(1,) * 3, size=16)


def pictures(count, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 200, (count, 16, 16, 3), dtype=np.uint8)
    return [Image(image) for image in pixels]


def engine_of(source, **options):
    registry = CollectorRegistry()
    metrics = Metrics(registry, classes=CLASSES, model={})
    return Engine(source, metrics, method_name="m", model_spec="x", **options)


def value(engine, name, **labels):
    return engine._metrics.registry.get_sample_value(name, labels)


async def step(engine, images, *, stream="s", learn=True):
    """Answer a batch and learn from it, as the queue does."""
    rows = await engine.predict(stream, images, learn=learn)
    await engine.adapt(stream, learn=learn)
    return rows


def run(engine, walk):
    """Run a walk on an engine, then end its thread."""

    async def whole():
        try:
            return await asyncio.wait_for(walk, 60)
        finally:
            engine.close()

    logging.disable(logging.CRITICAL)  # failures that are meant
    try:
        return asyncio.run(whole())
    finally:
        logging.disable(logging.NOTSET)


def logits_of(rows):
    return np.stack([row.answers.logits[row.row] for row in rows])


def events_of(engine):
    return [event["event"] for event in engine.events]


class Odd(ClassBalance):
    """A method of a user's own that does as it is told: `Odd.predicts` and `Odd.adapts_by`."""

    predicts = staticmethod(lambda method, images, prediction: prediction)
    adapts_by = staticmethod(lambda method, outcome: outcome)

    def predict(self, images):
        return type(self).predicts(self, images, super().predict(images))

    def adapt(self, prediction, *, learn=True):
        return type(self).adapts_by(self, super().adapt(prediction, learn=learn))


@pytest.fixture
def odd(model, monkeypatch):
    """An engine on an odd method, and how to make it odd once the first batch went well."""
    engine = engine_of(Odd(model))

    def make(**ways):
        for name, way in ways.items():
            monkeypatch.setattr(Odd, name, staticmethod(way))

    return engine, make


def raiser(error):
    def way(*_):
        raise error

    return way


BAD_ERRORS = [
    RuntimeError("broken"),
    torch.OutOfMemoryError("one allocation failed"),
    MemoryError(),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    StopIteration(),
    StopAsyncIteration(),
    asyncio.CancelledError(),
    asyncio.InvalidStateError(),
    TimeoutError(),
    RuntimeError("x" * 1_000_000),
]


# One bad image, or a bad pass


@pytest.mark.parametrize("statistics", ["source", "moving", "batch"])
def test_an_image_that_overflows_costs_no_other_request_its_answer(model, statistics):
    """Whatever the layers take their statistics from; the others are learned from, too."""
    engine = engine_of(create("ttc", model, statistics=statistics))

    async def walk():
        batcher = Batcher(engine, engine._metrics, max_batch=10, max_wait=0, max_images=100)
        loop = asyncio.create_task(batcher.run())
        await asyncio.sleep(0)
        images = [*pictures(3), WHITE, *pictures(2, seed=1)]
        places = [batcher.enter("s") for _ in images]
        for place in places:
            place.count(1)
        for place, image in zip(places, images, strict=True):
            place.fill([image])
            place.delivered.set()
        ends = await asyncio.gather(*(p.answers() for p in places), return_exceptions=True)
        batcher.drain()
        await loop
        return ends

    ends = run(engine, walk())
    assert [isinstance(end, PredictionFailed) for end in ends] == [False] * 3 + [True, False, False]
    assert value(engine, "ttc_images_total") == 5
    assert engine.streams["s"].images == 5
    assert value(engine, "ttc_adaptation_skipped_total", reason="non_finite") == 1
    assert value(engine, "ttc_batches_total", reason="wait") + value(
        engine, "ttc_batches_total", reason="full"
    ) == value(engine, "ttc_batch_images_count")


def test_a_batch_with_a_bad_row_teaches_nothing_whatever_the_method(model):
    """The method is not even asked: one of a user's own may not look."""
    engine = engine_of(Careless(model))

    async def walk():
        await step(engine, pictures(4))
        with_bad = await step(engine, [*pictures(2), WHITE])
        assert [isinstance(row, PredictionFailed) for row in with_bad] == [False, False, True]
        assert engine.streams["s"].method.learned == 1
        assert engine.streams["s"].images == 4
        assert value(engine, "ttc_images_total") == 4

    run(engine, walk())


class Careless(Plain):
    learned = 0

    def adapt(self, prediction):
        self.learned += 1
        return Adaptation()


def test_a_first_pass_that_fails_takes_no_place(model):
    """A stream is one once something was answered: not by an error, nor by bad rows."""
    engine = engine_of(create("ttc", model, statistics="batch"))

    async def walk():
        mixed = [Image(np.zeros((16, 16, 3), np.uint8)), Image(np.zeros((8, 8, 3), np.uint8))]
        with pytest.raises(ValueError, match="same shape"):
            await engine.predict("a", mixed)
        await step(engine, [WHITE], stream="b")
        await engine.predict("c", pictures(2), learn=False)
        await engine.count("c")
        assert engine.streams == {}
        await step(engine, pictures(2), stream="d")
        assert list(engine.streams) == ["d"]

    run(engine, walk())


# A method that raises


@pytest.mark.parametrize("error", BAD_ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_is_raised_while_predicting_ends_as_an_ordinary_error(odd, error):
    """Neither the device's thread nor the event loop ends, and the stream is as it was."""
    engine, make = odd

    async def walk():
        first = await step(engine, pictures(4))
        before = engine.streams["s"].method.state()["supports"]["counts"].clone()
        make(predicts=raiser(error))
        with pytest.raises(Exception, match=r".*") as raised:
            await engine.predict("s", pictures(4))
        assert isinstance(raised.value, Exception)
        make(predicts=lambda method, images, prediction: prediction)
        assert len(await engine.predict("s", pictures(4))) == len(first)
        assert torch.equal(engine.streams["s"].method.state()["supports"]["counts"], before)

    run(engine, walk())


@pytest.mark.parametrize("error", BAD_ERRORS, ids=lambda error: type(error).__name__)
def test_a_failure_while_learning_leaves_the_stream_as_it_was(odd, error):
    """Also where something had moved: nothing that was learned before is lost."""
    engine, make = odd

    async def walk():
        for _ in range(3):
            await step(engine, pictures(4))
        expected = logits_of(await engine.predict("s", pictures(2)))
        make(adapts_by=raiser(error))  # after the counts have moved
        await step(engine, pictures(4, seed=2))
        assert np.array_equal(logits_of(await engine.predict("s", pictures(2))), expected)
        assert value(engine, "ttc_resets_total", cause="failure") == 0
        assert value(engine, "ttc_adaptation_skipped_total", reason="failed") == 1
        assert events_of(engine) == ["adaptation_failed"]
        assert all(len(event["reason"]) < 400 for event in engine.events)

    run(engine, walk())


def test_a_want_of_memory_costs_ttc_no_step(model):
    """Fifty steps are still there after one allocation that failed."""
    engine = engine_of(create("tent", model, statistics="moving"))

    async def walk():
        for _ in range(5):
            await step(engine, pictures(8))
        method = engine.streams["s"].method
        before = method.state()
        learn = method._learner.learn
        method._learner.learn = raiser(torch.OutOfMemoryError("no memory"))
        await step(engine, pictures(8))
        method._learner.learn = learn
        assert engine.streams["s"].version == 5
        for name, tensor in method.state()["affine"].items():
            assert torch.equal(tensor, before["affine"][name])
        await step(engine, pictures(8))
        assert engine.streams["s"].version == 6

    run(engine, walk())


@pytest.mark.parametrize("broken", ["state", "restore", "both"])
def test_where_the_state_before_cannot_be_had_the_stream_goes_back_to_the_source(
    odd, broken, monkeypatch
):
    """It says so, and goes on."""
    engine, make = odd

    async def walk():
        await step(engine, pictures(4))
        for verb in ("state", "restore") if broken == "both" else (broken,):
            monkeypatch.setattr(Odd, verb, raiser(NotImplementedError("mine has none")))
        make(adapts_by=raiser(RuntimeError("in the middle")))
        await step(engine, pictures(4))
        assert value(engine, "ttc_resets_total", cause="failure") == 1
        assert events_of(engine) == ["adaptation_failed", "reset"]
        fresh = await engine.predict("fresh", pictures(2))
        back = await engine.predict("s", pictures(2))
        assert np.array_equal(logits_of(back), logits_of(fresh))

    run(engine, walk())


# A method that says odd things


@pytest.mark.parametrize(
    "outcome",
    [
        None,
        "done",
        {"loss": 1.0},
        Adaptation(loss="high"),
        Adaptation(selected="many"),
        Adaptation(selected=math.nan),
        Adaptation(skipped=object()),
        Adaptation(skipped=["a", "list"]),
        Adaptation(skipped="x" * 1_000_000),
        Adaptation(skipped=""),
        Adaptation(loss=torch.tensor(1.5), stepped=1, selected=torch.tensor(3)),
        Adaptation(loss=math.nan, drift=None),
    ],
    ids=lambda outcome: repr(outcome)[:60],
)
def test_what_a_method_says_it_did_is_taken_or_told_as_a_failure(odd, outcome):
    """Whatever it is, labels are those that are known, and texts are short."""
    engine, make = odd

    async def walk():
        await step(engine, pictures(4))
        make(adapts_by=lambda method, _: outcome)
        await step(engine, pictures(4))
        assert len(await step(engine, pictures(4))) == 4

    run(engine, walk())
    reasons = {
        sample.labels["reason"]
        for family in engine._metrics.registry.collect()
        for sample in family.samples
        if sample.name == "ttc_adaptation_skipped_total"
    }
    assert reasons == set(SKIP_REASONS)
    assert all(len(repr(event)) < 3000 for event in engine.events)


def rows_of(count, classes=CLASSES, version=0, dtype=torch.float32):
    logits = torch.zeros(count, classes, dtype=dtype)
    return Prediction(
        logits, logits.softmax(1), torch.zeros(count), torch.zeros(count, dtype=torch.bool), version
    )


@pytest.mark.parametrize(
    "prediction",
    [
        None,
        "an answer",
        torch.zeros(4, CLASSES),
        rows_of(3),
        rows_of(5),
        rows_of(4, CLASSES + 1),
        rows_of(4, version="two"),
        rows_of(4, version=None),
        Prediction(None, None, None, None, 0),
        Prediction(torch.zeros(4, CLASSES), torch.zeros(4, 2), torch.zeros(4), torch.zeros(4), 0),
    ],
    ids=lambda prediction: repr(prediction)[:60],
)
def test_an_answer_of_another_shape_fails_the_request(odd, prediction):
    """Nobody gets another's row, and no class that the model has not."""
    engine, make = odd

    async def walk():
        make(predicts=lambda method, images, _: prediction)
        with pytest.raises((TypeError, AttributeError)):
            await engine.predict("s", pictures(4))
        assert engine.streams == {}

    run(engine, walk())


@pytest.mark.parametrize("part", ["logits", "probabilities", "entropy"])
def test_a_row_with_anything_that_is_no_number_is_no_answer(odd, part):
    """JSON has no word for it, and a sum of a metric would never be one again."""
    engine, make = odd

    def spoil(method, images, prediction):
        getattr(prediction, part)[1] = math.nan
        return prediction

    async def walk():
        make(predicts=spoil)
        rows = await step(engine, pictures(3))
        assert [isinstance(row, PredictionFailed) for row in rows] == [False, True, False]
        assert value(engine, "ttc_entropy_nats_count") == 0

    run(engine, walk())


@pytest.mark.parametrize("shown", ["three", None, math.nan, math.inf, object()], ids=repr)
def test_what_a_method_shows_of_itself_is_a_number(odd, shown, monkeypatch):
    """`/status` and the metrics can always be read."""
    engine, _ = odd
    for name in ("version", "pending_batches", "drift"):
        monkeypatch.setattr(Odd, name, shown, raising=False)

    async def walk():
        await step(engine, pictures(2))
        record = engine.streams["s"]
        assert (record.version, record.pending_batches, record.drift) == (0, 0, 0.0)

    run(engine, walk())


# A stream that cannot go on


@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_a_stream_whose_state_answers_nothing_goes_back_to_the_source(model, fault):
    """What the source can answer is answered at once, and the reset is told."""
    engine = engine_of(create("tent", model, statistics="moving"))

    async def walk():
        await step(engine, pictures(8))
        fresh = logits_of(await engine.predict("fresh", pictures(4)))
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
        await engine.predict("s", [Image(image.pixels, 1) for image in pictures(4)], learn=False)
        await engine.count("s")
        for section, entries in record.method.state().items():
            for key, entry in entries.items():
                same = before[section][key]
                assert torch.equal(entry, same) if torch.is_tensor(entry) else entry == same
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
        assert engine.streams["s"].method.told == [False, {"learn": False}, True, {}]

    run(engine, walk())


def test_a_method_that_knows_no_such_option_is_not_asked_to_learn(model):
    """With `--adapt never` it only answers; nothing fails, and nothing is reset."""
    engine = engine_of(Careless(model))

    async def walk():
        await step(engine, pictures(2), learn=False)
        assert engine.streams["s"].method.learned == 0
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
        assert await engine.reset("nobody") == (["nobody"], 0, 0)
        assert value(engine, "ttc_dominant_class_ratio") == share
        assert value(engine, "ttc_resets_total", cause="request") == 0
        await engine.reset("busy")
        assert math.isnan(value(engine, "ttc_dominant_class_ratio"))
        assert value(engine, "ttc_resets_total", cause="request") == 1

    run(engine, walk())
