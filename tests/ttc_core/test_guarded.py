"""What adapts is watched, and what does harm does not answer for long."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet50

from tests.fixtures.contract import same
from ttc_core.datasets import Geometry, open_data
from ttc_core.envelope.clauses import BUILT_IN
from ttc_core.evaluate import as_batch
from ttc_core.guard.evidence import Evidence
from ttc_core.guard.guarded import SNAPSHOT_EVERY, Guarded, GuardSettings
from ttc_core.guard.watch import RELEASED, SHARE, Bets
from ttc_core.load import load
from ttc_core.methods import create
from ttc_core.methods.composed import ComposedMethod
from ttc_core.methods.contract import Adaptation, Prediction, State
from ttc_core.methods.parts.conditions import REMEMBERED, Condition
from ttc_core.methods.parts.shadow import EVERY, FIRST
from ttc_core.methods.settings import MethodSettings
from ttc_core.model import SourceModel
from ttc_core.state import encoded, size_bytes


class Breaking(ComposedMethod):
    """Answers as the source does, until it has had so many images: then one class, for sure."""

    name = "breaking"
    Settings = MethodSettings
    adapts = frozenset({"affine"})

    def __init__(self, model: SourceModel, after: int | None = None) -> None:
        super().__init__(model)
        self.after, self.images, self.broken = after, 0, False

    @property
    def version(self) -> int:
        return self.images // 10

    @torch.no_grad()
    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        logits = self.model.run(self.model.normalize(self.model.to_unit(images))).logits
        if self.broken:
            logits = torch.eye(self.model.classes)[[3]].expand_as(logits) * 20
        return Prediction.of(logits, version=self.version)

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        self.images += len(prediction)
        self.broken |= self.after is not None and self.images >= self.after
        return Adaptation()

    def reset(self) -> None:
        self.images, self.broken = 0, False

    def state(self) -> State:
        return {"counts": {"images": self.images, "broken": int(self.broken)}}

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        counts = state["counts"]
        self.images, self.broken = counts["images"], bool(counts["broken"])

    def fork(self) -> Self:
        return type(self)(self.model, self.after)


@pytest.fixture(scope="module")
def model():
    return load("bundled")


@pytest.fixture(scope="module")
def images():
    """(1200, 3, 28, 28) clean, shuffled."""
    return some("clean", 1200)


def some(corruption, count, order="iid"):
    """Bundled images of a corruption in an order."""
    stream = open_data("bundled", Geometry(28)).open(
        corruption, 5, limit=count, order=order, seed=0
    )
    return as_batch(next(iter(stream.batches(count)))[0])


def follow(method, images, batch=10):
    """Answer and adapt; the predictions, and what was done with the number of the image."""
    said, done = [], []
    for at in range(0, len(images), batch):
        prediction = method.predict(images[at : at + batch])
        outcome = method.adapt(prediction)
        said.append(prediction)
        done += [(at, act.action, act.reason) for act in outcome.acts]
    return said, done


def classes(said):
    return torch.cat([each.probabilities.argmax(dim=1) for each in said])


@pytest.mark.parametrize("batch", [1, 10, 100])
def test_what_collapses_is_held_and_the_source_answers(model, images, batch):
    """Suspected within 20 images, held within 200; the answers are the source's to the last bit."""
    method = Guarded(Breaking(model, after=0))
    method.inner.broken = True
    said, done = follow(method, images[:200], batch)
    assert [(action, reason) for _, action, reason in done] == [
        ("hold", "suspicion"),
        ("hold", "harm"),
        ("reset", "harm"),
    ]
    modes = [mode for each in said for mode in each.modes]
    at = modes.index("held")
    assert at <= 20
    assert modes[at:] == ["held"] * (200 - at)
    plain, _ = follow(create("source", model), images[:200], batch)
    assert torch.equal(classes(said)[at:], classes(plain)[at:])
    assert method.mode == "held"


def test_what_collapses_late_is_seen_as_well(model, images):
    """After 600 good images, of which one in seventeen was compared; within 400 more."""
    method = Guarded(Breaking(model, after=600))
    said, _ = follow(method, images)
    modes = [mode for each in said for mode in each.modes]
    assert 600 < modes.index("held") <= 1000


def test_what_does_no_harm_is_left_alone(model, images):
    """The answers are the method's to the last bit, and one image in eight is compared."""
    method, plain = Guarded(Breaking(model)), Breaking(model)
    said, done = follow(method, images)
    expected, _ = follow(plain, images)
    assert done == []
    assert all(
        torch.equal(a.probabilities, b.probabilities) for a, b in zip(said, expected, strict=True)
    )
    assert {mode for each in said for mode in each.modes} == {"adapting"}
    asked = method.details["compared_while_adapting"]
    assert FIRST + (1200 - FIRST) // EVERY <= asked <= SHARE * 1200


def test_a_default_on_one_class_is_no_collapse(model):
    """It answers one class, surely and rightly; under fog, where the source does not."""
    method = Guarded(create("ttc_stream", model))
    said, done = follow(method, some("fog", 400, "one:6"))
    assert done == []
    assert (classes(said)[100:] == 6).float().mean() > 0.9


def test_good_states_are_kept_and_gone_back_to(model, images):
    """The last two, of one in so many images; harm leads to the last, and so does a request."""
    method = Guarded(Breaking(model, after=1100))
    follow(method, images[:1090])
    assert dict(method.snapshots) == {50: SNAPSHOT_EVERY, 100: 2 * SNAPSHOT_EVERY}
    assert method.roll_back(50) == 50
    assert method.inner.images == 500
    assert method.roll_back() == 100
    assert (method.inner.images, method.mode) == (1000, "rolled_back")
    with pytest.raises(LookupError):
        method.roll_back(51)


def test_harm_soon_after_a_roll_back_leads_to_the_source(model, images):
    """A snapshot that breaks again is no good; the source is not gone back to twice for nothing."""
    method = Guarded(Breaking(model))
    follow(method, images[:510])
    assert method.snapshots
    for expected in ("roll_back", "reset"):
        rich = replace(method._watch.estimated.harm, opened=1e6)
        method._watch = replace(method._watch, estimated=Bets(rich))
        _, done = follow(method, images[:100])
        assert [action for _, action, _ in done][:2] == ["hold", expected]
        method._watch = replace(method._watch.begun_anew(), held=False)
    assert method.snapshots == {}


def test_what_is_better_again_answers_again(model, images):
    """The evidence has to say so: being no worse is not enough."""
    method = Guarded(create("norm", model, statistics="moving"), GuardSettings(reset=False))
    method._watch = held(method)
    _, done = follow(method, some("gaussian_noise", 600))
    assert [action for _, action, _ in done] == ["release"]
    assert method.mode == "adapting"
    method = Guarded(Breaking(model), GuardSettings(reset=False))
    method._watch = held(method)
    assert follow(method, images[:600])[1] == []
    assert method.mode == "held"


def held(method):
    return replace(method._watch, held=True, alarms=1)


def test_observing_tells_and_does_nothing(model, images):
    """The answers are the collapsed method's."""
    method = Guarded(Breaking(model, after=0), acts=False)
    method.inner.broken = True
    said, done = follow(method, images[:300])
    assert [action for _, action, _ in done] == ["hold", "hold", "reset"]
    assert (classes(said) == 3).all()
    assert {mode for each in said for mode in each.modes} == {"adapting"}
    assert method.inner.broken


def test_answering_changes_nothing(model, images):
    """Only adapting does."""
    method = Guarded(create("ttc_stream", model))
    follow(method, images[:100])
    before = method.state()
    method.predict(images[100:200], learn=False)
    assert same(method.state(), before)


@pytest.mark.parametrize("images_before", [20, pytest.param(600, marks=pytest.mark.slow)])
def test_it_goes_on_after_a_restart_where_it_was(model, images, images_before):
    """To the last bit: its evidence, what it holds, its snapshots."""
    method, other = (Guarded(create("ttc_stream", model)) for _ in range(2))
    follow(method, images[:images_before])
    other.restore(method.state())
    assert same(other.state(), method.state())
    (said, done), (expected, _) = (follow(each, images[600:700]) for each in (other, method))
    assert done == []
    assert all(same(a.probabilities, b.probabilities) for a, b in zip(said, expected, strict=True))
    assert dict(other.snapshots) == dict(method.snapshots)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("guard", "held", 2),
        ("guard", "images", -1),
        ("guard", "snapshots", 3),
        ("guard", "estimated.harm.opened", math.nan),
        ("guard", "labelled.harm.variance", 0.0),
        ("guard", "alarms", 2**53),
        ("guard.style", "moments", torch.full((416,), math.nan)),
        ("guard.snapshot0.affine", "codes", 5),
        ("guard.snapshot0.affine", "scales", torch.full((22,), math.inf)),
        ("guard.snapshot0.moments", "codes", torch.zeros(3, dtype=torch.int8)),
    ],
)
def test_a_state_that_is_none_is_refused(model, section, name, value):
    """Before anything of it is taken up that would fail later."""
    method = Guarded(create("ttc_stream", model))
    method._take()
    state = dict(method.state())
    with pytest.raises(ValueError, match=r"its numbers|its style|a snapshot"):
        method.restore({**state, section: {**state[section], name: value}})


def test_suspicion_that_comes_to_nothing_is_over(model, images):
    """However much evidence there was: the images of late speak for the method."""
    method = Guarded(Breaking(model))
    harm = Evidence(observations=60, opened=100.0, mean=0.3)
    method._watch = replace(method._watch, images=60, suspected=True, estimated=Bets(harm))
    said, done = follow(method, images[:100])
    assert [(action, reason) for _, action, reason in done] == [("release", "suspicion")]
    assert said[-1].modes == ("adapting",) * 10


def test_each_act_is_told_with_the_evidence_that_led_to_it(model, images):
    """Also where a release has begun it anew."""
    method = Guarded(Breaking(model, after=0))
    method.inner.broken = True
    acts = [
        act
        for at in range(0, 200, 10)
        for act in method.adapt(method.predict(images[at : at + 10])).acts
    ]
    suspicion, harm, reset = (act.evidence for act in acts)
    assert BUILT_IN.worse_than_source <= suspicion["harm"] < harm["harm"]
    assert harm["harm"] >= 2 / 0.01
    assert reset == harm
    gaining = Guarded(create("norm", model, statistics="moving"), GuardSettings(reset=False))
    gaining._watch = held(gaining)
    noise = some("gaussian_noise", 600)
    released = [
        act
        for at in range(0, 600, 10)
        for act in gaining.adapt(gaining.predict(noise[at : at + 10])).acts
    ]
    assert [(act.action, act.evidence["gain"] >= RELEASED) for act in released] == [
        ("release", True)
    ]


def test_a_stream_that_was_rolled_back_can_be_saved_and_stays_so(model, images):
    """Gradients are left out of a snapshot, so none are pending; a batch answered before is not
    learned from."""
    method = Guarded(create("ttc_stream", model, samples_per_step=1000))
    follow(method, images[:600])
    late = method.predict(images[600:610])
    method.roll_back()
    assert method.pending_batches == 0
    assert encoded(method, name="m", model="m")
    before = method.state()
    assert method.adapt(late).skipped == "shed"
    assert same(method.state(), before)


def test_a_reset_begins_anew(model, images):
    """Snapshots and evidence are gone; a fork has none of them either."""
    method = Guarded(Breaking(model))
    follow(method, images[:600])
    assert method.snapshots
    fresh = method.fork()
    method.reset()
    assert same(method.state(), fresh.state())
    assert method.snapshots == {}


def test_a_resnet_50s_snapshots_are_small():
    """Two of all that is adapted, and four conditions: half a megabyte."""
    big = SourceModel(resnet50(), mean=(0.5,) * 3, std=(0.5,) * 3, size=224)
    method = Guarded(create("ttc_stream", big))
    method._take()
    (snapshot,) = method._snapshots
    method._snapshots = (replace(snapshot, version=-1), snapshot)
    moments = big.source_moments
    conditions = method.inner._conditions
    conditions._condition = conditions._recognised()
    for _ in range(REMEMBERED):
        conditions._leave(conditions._condition)
        conditions._condition = Condition(conditions._present, conditions._present, 9)
    assert len(conditions._remembered) == REMEMBERED
    assert torch.equal(conditions._statistics.followed.moments, moments)
    state = method.state()
    kept = [state[name] for name in state if "snapshot" in name or name == "conditions"]
    assert 0.4e6 < sum(map(size_bytes, kept)) < 0.5e6


def test_what_a_method_keeps_beyond_measure_is_in_no_snapshot(model, monkeypatch):
    """A stream would take three times the memory."""
    method = Guarded(create("t3a", model))
    method._take()
    assert method.snapshots
    monkeypatch.setattr("ttc_core.guard.guarded.MOST_BYTES", 1000)
    method.reset()
    method._take()
    assert not method.snapshots
