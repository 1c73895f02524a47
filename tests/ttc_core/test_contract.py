"""What every method promises, written once and run on each in several settings.

Cases: every name in METHODS as it comes, the statistics, flips and switches that change the walk
of a batch, networks without BatchNorm, and a class of a user's own.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

import pytest
import torch
from torch import Tensor

from tests.fixtures.contract import (
    BATCH,
    CASES,
    batches,
    moves,
    same,
    same_answers,
    ttc_stream,
    walk,
)
from tests.fixtures.networks import SIZE, make_images, make_model
from ttc_core.errors import UserError
from ttc_core.guard.guarded import SNAPSHOT_EVERY, Guarded
from ttc_core.guard.watch import ESTIMATED
from ttc_core.methods import create
from ttc_core.methods.contract import Adaptation, Prediction
from ttc_core.methods.parts.conditions import LEAST_IMAGES, PRESENT
from ttc_core.state import load_state, save_state


def test_predicting_changes_nothing(method):
    """Asked twice, the answers and the state are the same; so is what the next batch gets."""
    first, second = batches(2)
    method.adapt(method.predict(first))
    before = method.state()
    one, two = method.predict(second), method.predict(second)
    assert same_answers(one, two)
    assert same(method.state(), before)
    assert method.version == one.version


def test_a_prediction_can_be_dropped(method):
    """Whoever predicts without adapting leaves no trace in any later answer."""
    images = batches(4)
    twin = method.fork()
    plain = walk(method, images)
    for (logits, outcome), batch in zip(plain, images, strict=True):
        twin.predict(make_images(3, seed=77))
        prediction = twin.predict(batch)
        twin.predict(batch)
        assert torch.equal(prediction.logits, logits)
        assert twin.adapt(prediction) == outcome
    assert same(twin.state(), method.state())


def test_reset_returns_to_the_source_bit_for_bit(method):
    """Weights, statistics, optimizer, counters: the first answers and all after them come again."""
    images = batches(5)
    source = method.state()
    first = walk(method, images)
    assert same(method.state(), source) != moves(method)
    method.reset()
    assert same(method.state(), source)
    assert method.version == 0
    assert same(walk(method, images), first)


def test_a_restored_state_repeats_itself(method):
    """Taken in mid-accumulation and restored twice, also into another stream, it goes on alike."""
    walk(method, batches(3))
    state = method.state()
    ahead = walk(method, batches(4, seed=1))
    for target in (method, method, method.fork()):
        target.restore(state)
        assert same(target.state(), state)
        assert same(walk(target, batches(4, seed=1)), ahead)


def test_a_state_is_a_copy(method):
    """What was saved stays what it was while the method goes on."""
    walk(method, batches(3))
    state = method.state()
    kept = {
        section: {k: v.clone() if isinstance(v, Tensor) else v for k, v in entries.items()}
        for section, entries in state.items()
    }
    walk(method, batches(3, seed=1))
    assert same(state, kept)


def test_a_state_can_be_written_over(method):
    """What was given out, and what was taken in, is the caller's: neither moves the method."""
    walk(method, batches(3))
    state, again = method.state(), method.state()
    target = method.fork()
    target.restore(again)
    for given in (state, again):
        for entries in given.values():
            for value in entries.values():
                if isinstance(value, Tensor):
                    value.fill_(1)
    ahead = walk(method, batches(2, seed=1))
    assert same(walk(target, batches(2, seed=1)), ahead)
    method.reset()
    assert same(walk(method, batches(2)), walk(method.fork(), batches(2)))


def test_a_state_file_repeats_itself(method, tmp_path: Path):
    """Saved in mid-accumulation and loaded into another stream, the answers go on alike."""
    walk(method, batches(3))
    save_state(tmp_path / "stream.safetensors", method, name="m", model="small")
    ahead = walk(method, batches(4, seed=1))
    other = method.fork()
    load_state(tmp_path / "stream.safetensors", other, name="m", model="small")
    assert same(walk(other, batches(4, seed=1)), ahead)


def test_wherever_adapting_fails_it_can_be_undone(method):
    """To the last bit: weights, gradients that wait, the optimizer's moments, statistics, prior,
    what a guard saw and keeps. It fails as one function or another of ours is done, from the first
    to the last; what had moved by then, and a reset, are undone, and it goes on as if nothing had
    been."""
    walk(method, batches(3))
    state, images = method.state(), batches(1, seed=2)[0]
    twin = method.fork()
    twin.restore(state)
    ends = ended(partial(twin.adapt, twin.predict(images)))
    twin.restore(state)
    moved = False
    for end in {*range(1, ends, max(1, ends // 10)), ends}:
        undo, prediction = method.undo_point(), method.predict(images)
        with pytest.raises((Broken, UserError)):
            ended(partial(method.adapt, prediction), break_at=end)
        moved |= not same(method.state(), state)
        undo()
        assert same(method.state(), state), end
    undo = method.undo_point()
    method.reset()
    undo()
    assert same(method.state(), state)
    assert moved == moves(method)
    assert same(walk(method, batches(4, seed=1)), walk(twin, batches(4, seed=1)))


@dataclass(frozen=True)
class Rare:
    """What seldom happens as a batch is adapted to.

    Attributes:
        near: brings a stream to where it does with the next batch.
        answered: the prediction that it happens with, of one that the stream gave.
        happened: whether it did, of the stream behind it and what was told.
    """

    near: Callable[[Guarded], None]
    answered: Callable[[Prediction], Prediction]
    happened: Callable[[Guarded, Adaptation], bool]


def before_a_snapshot(method: Guarded) -> None:
    method._watch = replace(method._watch, images=SNAPSHOT_EVERY - 1)


def remembered(method: Guarded) -> None:
    """What is present has been left, and is about to be known again."""
    conditions = method.inner._conditions
    conditions._leave(conditions._condition)
    conditions._present_images = PRESENT


def other_than_before(method: Guarded) -> None:
    """The stream looked quite otherwise until now."""
    conditions = method.inner._conditions
    known = conditions._condition
    conditions._condition = replace(known, mean=known.mean + 100, images=LEAST_IMAGES)


def harmful(prediction: Prediction) -> Prediction:
    compared = replace(prediction.pending.compared, worse=[(0, ESTIMATED, 1.0)] * 40)
    return replace(prediction, pending=replace(prediction.pending, compared=compared))


def diverse(prediction: Prediction) -> Prediction:
    inner = prediction.pending.inner
    after = {**inner.pending.after, "diverse": True}
    inner = replace(inner, pending=replace(inner.pending, after=after))
    return replace(prediction, pending=replace(prediction.pending, inner=inner))


def acts(*expected: str) -> Callable[[Guarded, Adaptation], bool]:
    return lambda _, outcome: [act.action for act in outcome.acts] == list(expected)


RARE = {
    "snapshot": Rare(before_a_snapshot, lambda given: given, lambda m, _: len(m.snapshots) == 1),
    "held-and-reset": Rare(lambda _: None, harmful, acts("hold", "hold", "reset")),
    "held-and-rolled-back": Rare(Guarded._take, harmful, acts("hold", "hold", "roll_back")),
    "left": Rare(other_than_before, diverse, lambda m, _: m.details["conditions"] == 2),
    "known-again": Rare(remembered, diverse, lambda m, _: m.details["conditions"] == 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("rare", RARE)
def test_what_happens_seldom_can_be_undone_as_well(rare):
    """A guard that takes a snapshot, holds or goes back, a condition that is left or known again,
    within the batch that fails: at every function of ours."""
    case, asked = ttc_stream(), RARE[rare]
    method = Guarded(create(case.name, make_model(), **case.settings))
    walk(method, batches(3))
    asked.near(method)
    state, images = method.state(), make_images(BATCH, seed=9)

    def adapt() -> Adaptation:
        return method.adapt(asked.answered(method.predict(images)))

    undo = method.undo_point()
    assert asked.happened(method, adapt())
    undo()
    first = ended(lambda: asked.answered(method.predict(images))) + 1
    last = ended(adapt)
    undo()
    for end in range(first, last + 1):
        undo = method.undo_point()
        # A guard that cannot take up a snapshot begins anew instead.
        with suppress(Broken, UserError):
            ended(adapt, break_at=end)
        undo()
        assert same(method.state(), state), end
    assert asked.happened(method, adapt())


class Broken(Exception):
    """What fails in `ended`."""


def ended(call: Callable[[], object], break_at: int = 0) -> int:
    """Count the functions of ours, and of a method of one's own, that end within a call; the one
    of that number fails as it does."""
    count, ours = 0, ("ttc_core/", "tests/fixtures/methods")

    def look(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        code = frame.f_code
        # Generators end when they are collected, where nothing that fails is heard.
        if code.co_name.startswith("<") or not any(each in code.co_filename for each in ours):
            return
        if event == "return":
            count += 1
            if count == break_at:
                raise Broken

    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def test_a_fork_is_at_the_source_and_on_its_own(method):
    """A new stream knows nothing of the first, and neither moves the other."""
    images = batches(4)
    fresh = method.predict(images[0])
    source = method.state()
    walk(method, images)
    fork = method.fork()
    assert fork.settings == method.settings
    assert fork.model is method.model
    assert same(fork.state(), source)
    assert same_answers(fork.predict(images[0]), fresh)
    before = method.state()
    walk(fork, batches(3, seed=1))
    assert same(method.state(), before)


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_the_given_images_are_not_changed(method, kind):
    """Neither predicting nor adapting writes into the caller's tensor."""
    images = make_images(BATCH) if kind == "uint8" else make_images(BATCH) / 255
    images = images.to(method.model.device)
    before = images.clone()
    method.adapt(method.predict(images))
    assert torch.equal(images, before)


def test_bytes_and_fractions_agree(method):
    """uint8 pixels and the same pixels divided by 255 give the same answers."""
    images = make_images(BATCH)
    assert same_answers(method.predict(images), method.predict(images / 255))


def test_images_may_be_written_over_once_they_are_answered(method):
    """What is learned is of the images that were answered, not of what their memory holds later."""
    images = batches(1)[0] / 255
    kept = method.fork()
    expected = kept.adapt(kept.predict(images.clone()))
    prediction = method.predict(images)
    images.zero_()
    assert method.adapt(prediction) == expected


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_the_memory_layout_does_not_matter(method, kind):
    """Transposed, channels-last and strided tensors of equal values give equal answers."""
    images = make_images(BATCH) if kind == "uint8" else make_images(BATCH) / 255
    expected = method.predict(images)
    spread = torch.zeros(BATCH, 3, SIZE, 2 * SIZE, dtype=images.dtype)
    spread[..., ::2] = images
    for other in (
        images.to(memory_format=torch.channels_last),
        images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        images.transpose(2, 3).contiguous().transpose(2, 3),
        spread[..., ::2],
    ):
        assert not other.is_contiguous()
        assert same_answers(method.predict(other), expected)


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8), id="channels-last"),
        pytest.param(torch.zeros(3, SIZE, SIZE, dtype=torch.uint8), id="no-batch"),
        pytest.param(torch.zeros(0, 3, SIZE, SIZE, dtype=torch.uint8), id="empty"),
        pytest.param(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.int64), id="int64"),
    ],
)
def test_other_inputs_are_refused_with_a_sentence(method, images):
    """Shape or type that is no batch of images: one sentence, and nothing has happened."""
    before = method.state()
    with pytest.raises(ValueError, match=r"images must be .*; got"):
        method.predict(images)
    assert same(method.state(), before)


def test_one_image_is_enough(method):
    """A stream of single images is answered with numbers, and adapted to."""
    for seed in range(4):
        prediction = method.predict(make_images(1, seed=seed))
        assert prediction.is_finite()
        outcome = method.adapt(prediction)
        assert outcome.skipped in (None, "none_selected")
    assert method.predict(make_images(1)).is_finite()


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.network == "batch-norm"],
    ids=lambda case: case.id,
)
def test_one_image_is_enough_on_a_map_of_one_pixel(case, models):
    """One value a channel: torch itself refuses to take statistics of it, we do not."""
    method = create(case.name, models("batch-norm-on-1x1"), **case.settings)
    walk(method, [make_images(1, seed=seed) for seed in range(3)])
    prediction = method.predict(make_images(1, seed=9))
    assert prediction.is_finite()
    assert len(prediction) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_gpu_answers_as_the_cpu_does(case):
    """The same stream on both: logits and moved parameters within float32's rounding."""
    on_cpu = create(case.name, make_model(case.network), **case.settings)
    on_gpu = create(case.name, make_model(case.network).to("cuda"), **case.settings)
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        for (expected, _), (got, _) in zip(
            walk(on_cpu, batches(4)), walk(on_gpu, batches(4)), strict=True
        ):
            torch.testing.assert_close(got.cpu(), expected, atol=2e-2, rtol=1e-3)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
