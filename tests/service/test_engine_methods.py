"""Whatever a method of a user's own raises or says, the device thread and the streams go on."""

import asyncio
import math

import numpy as np
import pytest
import torch

from service.errors import PredictionFailed
from service.metrics import SKIP_REASONS
from tests.fixtures.engine import (
    CLASSES,
    Odd,
    ask,
    engine_of,
    events_of,
    logits_of,
    make_model,
    odd_engine,
    pictures,
    raiser,
    run,
    step,
    value,
)
from ttc_core.errors import PluginError
from ttc_core.methods import Adaptation, Prediction, create


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def odd(model, monkeypatch):
    return odd_engine(model, monkeypatch)


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
            await ask(engine, pictures(4))
        assert isinstance(raised.value, Exception)
        make(predicts=lambda method, images, prediction: prediction)
        assert len((await ask(engine, pictures(4))).rows) == len(first)
        assert torch.equal(engine.streams["s"].method.state()["supports"]["counts"], before)

    run(engine, walk())


@pytest.mark.parametrize("error", BAD_ERRORS, ids=lambda error: type(error).__name__)
def test_a_failure_while_learning_leaves_the_stream_as_it_was(odd, error):
    """Also where something had moved: nothing that was learned before is lost."""
    engine, make = odd

    async def walk():
        for _ in range(3):
            await step(engine, pictures(4))
        expected = logits_of((await ask(engine, pictures(2))).rows)
        make(adapts_by=raiser(error))  # after the counts have moved
        await step(engine, pictures(4, seed=2))
        assert np.array_equal(logits_of((await ask(engine, pictures(2))).rows), expected)
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
        fresh = await ask(engine, pictures(2), stream="fresh")
        back = await ask(engine, pictures(2))
        assert np.array_equal(logits_of(back.rows), logits_of(fresh.rows))

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
        with pytest.raises(PluginError):
            await ask(engine, pictures(4))
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


@pytest.mark.parametrize("shown", ["three", None, math.nan, math.inf, ...], ids=repr)
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
