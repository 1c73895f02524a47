"""State files: whole or not there, refused where they do not fit, and never code."""

import json
import os
from pathlib import Path
from typing import ClassVar

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from tests.fixtures.networks import make_images, make_model
from ttc_core.methods import Method, create
from ttc_core.state import load_state, save_state
from ttc_core.state_description import describe
from ttc_core.state_file import StateError, read_header

SETTINGS = {"statistics": "moving", "samples_per_step": 16}


def adapted(name: str = "ttc", network: str = "batch-norm", **settings: object) -> Method:
    method = create(name, make_model(network), **settings)
    for seed in range(3):
        method.adapt(method.predict(make_images(8, seed=seed)))
    return method


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "states" / "camera.safetensors"


def save(path: Path, method: Method, name: str = "ttc") -> None:
    save_state(path, method, name=name, model="small")


def load(path: Path, method: Method, name: str = "ttc", model: str = "small") -> None:
    load_state(path, method, name=name, model=model)


def test_a_file_is_safetensors_that_says_what_it_is(path):
    """Readable by others: tensors by section and name, the rest in the header."""
    save(path, adapted(**SETTINGS))
    with safetensors.safe_open(path, framework="pt") as file:
        assert {"affine/norm1.weight", "moments/moment2.norm2"} <= set(file.keys())
    header = read_header(path)
    assert (header["method"], header["model"]) == ("ttc", "small")
    assert json.loads(header["settings"])["samples_per_step"] == 16
    assert json.loads(header["counters"])["counters"]["steps"] == 1
    about = describe(path)
    assert (about.method, about.model, about.steps) == ("ttc", "small", 1)
    assert about.settings["samples_per_step"] == 16
    assert about.counters["counters"]["pending_batches"] == 1
    assert (about.held, about.snapshots) == (None, [])


class Remembering:
    """A method of a user's own: what it moved is no tensor."""

    settings: ClassVar[dict[str, object]] = {}

    def __init__(self, model, kept) -> None:
        self.model, self.kept = model, kept

    def state(self):
        return {"mine": dict(self.kept)}

    def restore(self, state) -> None:
        self.kept = state["mine"]


def test_numbers_texts_and_nothing_come_back_as_they_were(path):
    """And what is none of them is refused by name, not stored as something else."""
    kept = {"mean": 0.6475, "steps": 3, "on": True, "name": "x", "none": None}
    save(path, Remembering(adapted(**SETTINGS).model, kept))
    other = Remembering(adapted(**SETTINGS).model, {})
    load(path, other)
    assert other.kept == kept
    with pytest.raises(TypeError, match="mine list is list"):
        save(path, Remembering(other.model, {"list": []}))


@pytest.mark.parametrize(
    ("is_doubted", "of_stream", "told"),
    [
        (True, {"mode": "held", "held_since": 1.5e9}, "held since 2017-07-14T02:40:00Z"),
        (
            True,
            {"mode": "adapting", "doubted_since": 1.5e9},
            "not held, but doubted since 2017-07-14T02:40:00Z, held with its guard on",
        ),
        (
            True,
            {"mode": "adapting", "held_since": 1.5e9},
            "not held, but doubted since 2017-07-14T02:40:00Z, held with its guard on",
        ),
        (False, {"mode": "adapting"}, "not held"),
        (
            True,
            {"held_since": 1.5e9},
            "held since 2017-07-14T02:40:00Z, unless its guard only observed",
        ),
        (True, {}, "held, unless its guard only observed"),
        (False, {}, "not held"),
        (False, {"mode": "rolled_back"}, "not held"),
    ],
    ids=str,
)
def test_a_description_says_whether_a_stream_is_held(path, is_doubted, of_stream, told):
    """A former version did not say whether the guard only observed; nor does who saves offline."""
    method = create("ttc", make_model(), guard="on", statistics="moving")
    method.adapt(method.predict(make_images(8)))
    if is_doubted:
        method.weigh([(False, True)] * 100)
    save_state(path, method, name="ttc", model="small", of_stream=of_stream)
    assert describe(path).held == told


def test_nothing_is_left_beside_the_file(path):
    """The folder is made; a second save replaces the first whole."""
    method = adapted(**SETTINGS)
    save(path, method)
    before = path.read_bytes()
    method.adapt(method.predict(make_images(8, seed=9)))
    save(path, method)
    assert path.read_bytes() != before
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_save_keeps_the_old_file(path, monkeypatch):
    """A full disk in the midst of writing costs the new state, not the old one; no half is left."""
    method = adapted(**SETTINGS)
    save(path, method)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(path, method)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_method_at_the_source_can_be_saved_and_loaded(path):
    """Also where nothing has moved and nothing is pending, and where nothing ever does."""
    for name in ("ttc", "source", "norm"):
        method = create(name, make_model())
        save(path, method, name)
        load(path, method.fork(), name)
    # What an envelope has to know.
    assert (describe(path).steps, [*describe(path).counters]) == (None, ["envelope"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param({"name": "tent"}, "saved for method ttc, not tent", id="method"),
        pytest.param({"model": "other"}, "saved for model small, not other", id="model"),
    ],
)
def test_a_file_of_something_else_is_refused(change, sentence, path):
    """The sentence says what it was saved for; the method stays where it was."""
    method = adapted(**SETTINGS)
    save(path, method)
    other = method.fork()
    with pytest.raises(StateError, match=sentence):
        load(path, other, **change)
    assert other.version == 0


def test_other_weights_under_the_same_spec_are_refused(path):
    """A network that was trained anew in place is another one."""
    save(path, adapted(**SETTINGS))
    retrained = make_model("batch-norm")
    with torch.no_grad():
        next(retrained.module.parameters()).add_(0.01)
    with pytest.raises(StateError, match="saved for weights"):
        load(path, create("ttc", retrained, **SETTINGS))


def test_other_settings_are_refused(path):
    """A state means something only with the settings it was made under."""
    save(path, adapted(**SETTINGS))
    with pytest.raises(StateError, match=r"saved for samples_per_step=16, not 32"):
        load(path, create("ttc", make_model(), **{**SETTINGS, "samples_per_step": 32}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def rewrite(path: Path, change) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(tensors, header)
    save_file(tensors, path, metadata=header)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        pytest.param(lambda p: p.unlink(), "There is no state file", id="missing"),
        pytest.param(truncate, "is no readable state file", id="truncated"),
        pytest.param(lambda p: p.write_bytes(b"x" * 99), "is no readable state file", id="rubbish"),
        pytest.param(
            lambda p: save_file({"a": torch.zeros(1)}, p), "is no state file of", id="foreign"
        ),
        pytest.param(
            lambda p: rewrite(p, lambda t, h: t.pop("affine/norm1.bias")),
            r"does not fit the model: affine norm1\.bias",
            id="parameter-missing",
        ),
        pytest.param(
            lambda p: rewrite(p, lambda t, h: t.update({"affine/norm1.bias": torch.zeros(3)})),
            r"does not fit the model: affine norm1\.bias",
            id="shape",
        ),
        pytest.param(
            lambda p: rewrite(p, lambda t, h: t["moments/moment1.norm1"].fill_(torch.nan)),
            r"does not fit the model: moments moment1\.norm1",
            id="nan",
        ),
        pytest.param(
            lambda p: rewrite(p, lambda t, h: h.update(counters="{}")),
            r"is incomplete",
            id="no-counters",
        ),
        pytest.param(
            lambda p: rewrite(p, lambda t, h: h.pop("counters")), "is incomplete", id="no-header"
        ),
        pytest.param(
            lambda p: rewrite(p, lambda t, h: h.update(sections="[")), "is incomplete", id="json"
        ),
        pytest.param(
            lambda p: rewrite(p, lambda t, h: t.pop("gradients/norm1.bias")),
            r"gradients norm1\.bias|is incomplete",
            id="gradient-missing",
        ),
        pytest.param(
            lambda p: rewrite(p, lambda t, h: t.update({"gradients/norm1.bias": torch.zeros(3)})),
            r"does not fit the model: gradients norm1\.bias",
            id="gradient-shape",
        ),
        pytest.param(
            lambda p: rewrite(
                p, lambda t, h: t.update({"optimizer/exp_avg:norm1.bias": torch.zeros(3)})
            ),
            r"does not fit the model: optimizer exp_avg:norm1\.bias",
            id="optimizer-shape",
        ),
    ],
)
def test_a_damaged_file_is_refused_in_a_sentence(spoil, sentence, path):
    """And the method answers as at the source afterwards."""
    method = adapted(**SETTINGS)
    save(path, method)
    spoil(path)
    fresh = method.fork()
    expected = fresh.predict(make_images(4)).logits
    with pytest.raises(StateError, match=sentence) as error:
        load(path, fresh)
    assert path.name in str(error.value)
    assert torch.equal(fresh.predict(make_images(4)).logits, expected)
