"""What is saved is taken up as it was; what could not be is refused when it is to be saved."""

import json
import math
import os
import types

import pytest
import torch

from tests.fixtures.networks import make_model
from ttc_core.state import load_state, save_state
from ttc_core.state_file import MOST_HEADER_BYTES, StateError


class Holder:
    """A method of a user's own whose state is what it is given."""

    def __init__(self, state, settings=None):
        self.model, self.settings = MODEL, settings or {}
        self.held = state

    def state(self):
        return self.held

    def restore(self, state):
        self.held = state

    def reset(self):
        self.held = {}


MODEL = make_model()
OF = {"name": "mine", "model": "small"}
KEPT = {"images": 7, "since": 1.5, "acts": [{"action": "reset"}], "none": None}
SCALES = {"norm1.weight": torch.ones(8)}


@pytest.mark.parametrize(
    "state",
    [
        pytest.param({"mine": {"text": "half \ud800"}}, id="half-a-character"),
        pytest.param({"mine": {"\udfff": 1}}, id="half-a-character-in-a-name"),
        pytest.param({"mine": {"\udfff": torch.ones(1)}}, id="half-a-character-in-a-tensors-name"),
        pytest.param({"mine\ud800": {}}, id="half-a-character-in-a-section"),
        pytest.param({"mine": {1: 2}}, id="name-no-text"),
        pytest.param({"mine": {None: torch.ones(1)}}, id="tensors-name-no-text"),
        pytest.param({1: {}}, id="section-no-text"),
        pytest.param({"mine/yours": {"a": 1}}, id="slash-in-a-section"),
        pytest.param({"mine": {"text": "x" * MOST_HEADER_BYTES}}, id="longer-than-a-header"),
        pytest.param({"mine": {"list": [1, 2]}}, id="list"),
        pytest.param({"mine": {"complex": torch.ones(1, dtype=torch.complex64)}}, id="complex"),
        *(
            pytest.param({"counters": {"steps": count}}, id=f"steps-{count}")
            for count in (True, -1, 1.5, "1", None, 2**60, math.nan)
        ),
        pytest.param({"mine": {"images_seen": -1}}, id="count-elsewhere"),
        pytest.param(
            {"affine": SCALES, "gradients": {}, "counters": {"pending_batches": 2}},
            id="pending-without-gradients",
        ),
        pytest.param({"affine": {"norm1.weight": torch.tensor([math.nan])}}, id="nan"),
        pytest.param({"affine": SCALES, "optimizer": {"step": torch.tensor(-1.0)}}, id="steps"),
        pytest.param(
            {"affine": SCALES, "gradients": {"norm1.weight": torch.ones(9)}}, id="other-shape"
        ),
        pytest.param({"affine": SCALES, "gradients": {"no.such": torch.ones(8)}}, id="no-such"),
    ],
)
def test_what_could_not_be_read_again_is_refused(tmp_path, state):
    """In a sentence, when it is saved; the file that was there stays, with nothing beside it."""
    path = tmp_path / "gate.safetensors"
    save_state(path, Holder({"mine": {"n": 1}}), **OF)
    before = path.read_bytes()
    with pytest.raises(TypeError) as refused:
        save_state(path, Holder(state), **OF)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["gate.safetensors"]


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"mine": {}},
        {"mine": {"": 0, "a/b": 1, "a:b": -1.5, "é\u202e": "", "none": None, "yes": True}},
        {"mine": {"long": "x" * 100_000, "big": 2**70, "small": 5e-324, "end": math.inf}},
        {"": {"n": 1}, "é": {"t": torch.arange(3)}},
        {"affine": SCALES, "counters": {"pending_batches": 0, "steps": 2**53}},
        {"counters": {"pending_batches": 3}},
        {"moments": {"a:b": torch.zeros(0, 3)}, "optimizer": {"x": torch.tensor(-1.0)}},
    ],
)
def test_what_is_saved_comes_back_as_it_was(tmp_path, state):
    """Whatever the names, the numbers and their types."""
    path = tmp_path / "gate.safetensors"
    save_state(path, Holder(state), **OF, of_stream=KEPT)
    taken_up = Holder(state)
    assert load_state(path, taken_up, **OF).of_stream == KEPT
    assert list(taken_up.held) == list(state)
    for section, entries in state.items():
        for key, value in taken_up.held[section].items():
            expected = entries[key]
            same = torch.equal(value, expected) if torch.is_tensor(value) else value == expected
            assert same
            assert type(value) is type(expected)
        assert taken_up.held[section].keys() == entries.keys()


@pytest.mark.parametrize("setting", [object(), lambda: None, [object()], {"a": object()}])
def test_a_setting_that_is_an_object_is_named_as_the_reason(tmp_path, setting):
    """Its text holds an address: no other process, nor this one tomorrow, has the same."""
    with pytest.raises(TypeError, match="; widget is an object of type"):
        save_state(tmp_path / "gate.safetensors", Holder({}, {"lr": 1, "widget": setting}), **OF)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kept", ["[]", "7", "{"])
def test_what_is_kept_beside_a_state_and_names_nothing_is_refused(tmp_path, kept):
    """Whoever wrote it."""
    path = tmp_path / "gate.safetensors"
    save_state(path, Holder({}), **OF)
    data = path.read_bytes()
    header = json.loads(data[8:])
    header["__metadata__"]["stream"] = kept
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match="is incomplete: it has no stream"):
        load_state(path, Holder({}), **OF)


def test_a_namespace_is_no_text(tmp_path):
    """An object whose text has no address is a setting like any other: it is the same again."""
    settings = {"widget": types.SimpleNamespace(a=1)}
    path = tmp_path / "gate.safetensors"
    save_state(path, Holder({}, settings), **OF)
    load_state(path, Holder({}, {"widget": types.SimpleNamespace(a=1)}), **OF)


def test_a_truth_value_is_no_number(tmp_path):
    """A state of k=True is not taken up for k=1, and the sentence tells the setting."""
    path = tmp_path / "gate.safetensors"
    save_state(path, Holder({"mine": {"n": 1}}, {"k": True}), **OF)
    with pytest.raises(StateError, match="saved for k=True, not 1"):
        load_state(path, Holder({}, {"k": 1}), **OF)
