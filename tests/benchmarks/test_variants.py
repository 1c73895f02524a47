"""The lines of the studies: each is the default but for what its name says."""

import pytest
import torch

from benchmarks.variants import (
    LINE,
    EvidenceAgainstEven,
    OneCondition,
    OneLook,
    OpenLateLayers,
    Undoubted,
    UnweightedLateLayers,
    ablation,
    sensitivity,
)
from tests.fixtures.networks import CLASSES, SIZE, make_model
from ttc_core.methods.parts.diversity import Diversity
from ttc_core.methods.parts.shadow import Compared, Shadow
from ttc_core.methods.ttc_stream import TTCStream
from ttc_core.presets import Variant


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def images():
    return torch.randint(0, 256, (60, 3, SIZE, SIZE), generator=torch.manual_seed(0)).byte()


def parts_of(method) -> list[type]:
    """The classes of its parts; of one wrapped as a user's own, of what is inside."""
    return [type(part) for part in getattr(method, "_inner", method)._parts]


@pytest.mark.parametrize(("label", "variant"), ablation(CLASSES).items())
def test_a_line_leaves_one_thing_out(label: str, variant: Variant, model):
    """One setting, or one part that is of a derived class; nothing else differs."""
    made, usual = variant.create(model, {}, guard="off"), TTCStream(model)
    settings = {name for name, value in made.settings.items() if value != usual.settings[name]}
    pairs = [*zip(parts_of(made), parts_of(usual), strict=True)]
    parts = [(own, theirs) for own, theirs in pairs if own is not theirs]
    assert settings == set(variant.settings)
    assert all(issubclass(own, theirs) for own, theirs in parts)
    looks_once = label == "late layers open without a second look"
    assert len(settings) + len(parts) + looks_once == (label != LINE)


def test_late_layers_may_be_open_from_the_first_image(model, images):
    """They follow; learning still waits for diverse answers."""
    method = OpenLateLayers(model)
    assert method.details["late_layers"] == 1
    assert TTCStream(model).details["late_layers"] == 0
    prediction = method.predict(images[:5])
    assert not prediction.selected.any()
    method.adapt(prediction)
    assert method.fork().details["late_layers"] == method.details["late_layers"] == 1
    usual = TTCStream(model).predict(images[:5])
    assert not torch.equal(prediction.logits, usual.logits)


def test_every_image_may_count_alike_in_late_layers(model, images):
    """Whatever its class; the default weighs them by it."""
    weights = []
    for kind in (UnweightedLateLayers, TTCStream):
        method = kind(model)
        for _ in range(2):
            method.adapt(method.predict(images[:20]))
        weights.append(method._diversity.classes.weights)
    assert (weights[0] == 1).all()
    assert (weights[1] != 1).any()


@pytest.mark.parametrize(("kind", "looks"), [(TTCStream, 2), (Undoubted, 1)])
def test_the_source_may_be_surer_for_nothing(kind, looks, model, images, monkeypatch):
    """The default answers a batch again in which it comes to doubt, nearer to the source."""
    monkeypatch.setattr(Shadow, "after", lambda *_: Compared(0.1, 1.5, 40, 60))
    passes = []
    run = model.run
    monkeypatch.setattr(model, "run", lambda *a, **k: passes.append(len(a[0])) or run(*a, **k))
    method = kind(model, second_view="off")
    method.adapt(method.predict(images[:40]))
    assert passes.count(40) == looks
    assert (method.details["doubt"] > 0) == (kind is TTCStream)


@pytest.mark.parametrize(("kind", "looks"), [(TTCStream, 2), (OneLook, 1)])
def test_a_batch_may_be_answered_once(kind, looks, model, images, monkeypatch):
    """Where late layers open within it the default answers it twice."""
    monkeypatch.setattr(Diversity, "_openness", lambda *_: 1.0)
    passes = []
    run = model.run
    monkeypatch.setattr(model, "run", lambda *a, **k: passes.append(bool(k)) or run(*a, **k))
    method = kind(model, second_view="off")
    prediction = method.predict(images)
    assert sum(passes) == looks  # without the one that the source answers
    method.adapt(prediction)
    assert method.details["late_layers"] == 1
    method.predict(images)
    assert sum(passes) == looks + 1


@pytest.mark.parametrize(("kind", "known"), [(TTCStream, 2), (OneCondition, 1)])
def test_conditions_may_not_be_told_apart(kind, known, model, images, monkeypatch):
    """Night falls at once, and the statistics go on as before."""
    monkeypatch.setattr(Diversity, "_openness", lambda *_: 1.0)
    method = kind(model)
    for each in (images, images // 8):
        method.adapt(method.predict(each))
    assert method.details["conditions"] == known


def test_evidence_may_be_held_against_an_even_answer(model, images):
    """Whatever the stream's usual answer."""
    method = EvidenceAgainstEven(model)
    method.adapt(method.predict(images))
    usual = method._prior._context.usual
    assert (usual != 1 / CLASSES).any()
    assert (method._prior._tempered(usual) == 1 / CLASSES).all()


@pytest.mark.parametrize("classes", [10, 1000])
def test_sensitivity_is_of_one_setting_at_a_time(classes: int):
    """Multiples are of the usual value for so many classes; none is the default again."""
    lines = sensitivity(classes)
    assert lines.pop(LINE).settings == {}
    usual = TTCStream.Settings.create("ttc_stream", classes, {}).model_dump()
    for label, variant in lines.items():
        ((name, value),) = variant.settings.items()
        assert value != usual[name]
        factor = float(label.split()[-1])
        expected = factor if name == "blend" else usual[name] * factor
        assert value == pytest.approx(expected)
    assert {next(iter(each.settings)) for each in lines.values()} == {
        *("lr", "blend", "early_horizon", "late_horizon", "window", "samples_per_step"),
    }
