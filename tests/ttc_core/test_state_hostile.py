"""A state file may be anybody's: every one ends in a sentence, and the method is as it was."""

import json
import os
import resource
import struct

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from tests.fixtures.networks import CLASSES, make_images, make_model
from ttc_core.methods import create
from ttc_core.state import load_state, save_state
from ttc_core.state_description import describe
from ttc_core.state_file import StateError, StateUnreadable

DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def adapted():
    """Methods that have learned, and have more pending, by name."""
    made = {
        name: create(name, make_model(), **settings)
        for name, settings in {
            "ttc": {"statistics": "moving", "samples_per_step": 16, "optimizer": "adam"},
            "t3a": {},
            "eta": {"entropy_fraction": 1.0},
            "ttc_stream": {"learn": "always", "entropy_fraction": 1.0, "samples_per_step": 16},
        }.items()
    }
    for method in made.values():
        for seed in range(3):
            method.adapt(method.predict(make_images(8, seed=seed)))
    return made


@pytest.fixture
def refused(adapted, tmp_path):
    """Save a method, change what the file says, and return the sentence that refuses it."""

    def check(change, name="ttc"):
        method, path = adapted[name], tmp_path / "gate.safetensors"
        save_state(path, method, name=name, model="small")
        change(path)
        fresh = method.fork()
        before = fresh.predict(make_images(4)).logits
        with pytest.raises(StateError) as error:
            load_state(path, fresh, name=name, model="small")
        assert torch.equal(fresh.predict(make_images(4)).logits, before)
        sentence = str(error.value)
        assert sentence.isprintable()
        assert len(sentence) < 1000
        return sentence

    return check


def header_of(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def texts(**changed):
    """Change texts of a header; None takes one out."""

    def change(path):
        metadata = {**header_of(path)[0]["__metadata__"], **changed}
        kept = {key: value for key, value in metadata.items() if value is not None}
        save_file(load_file(path), path, metadata=kept)

    return change


def counters(section, **changed):
    def change(path):
        saved = json.loads(header_of(path)[0]["__metadata__"]["counters"])
        saved[section].update(changed)
        texts(counters=json.dumps(saved))(path)

    return change


def tensors(**changed):
    """Put tensors in by name, with __ for the slash."""

    def change(path):
        held, metadata = load_file(path), header_of(path)[0]["__metadata__"]
        for key, make in changed.items():
            key = key.replace("__", "/", 1).replace("_at_", ":").replace("_dot_", ".")
            held[key] = make(held.get(key))
        save_file(held, path, metadata=metadata)

    return change


def raw(header, data=b""):
    """Write a header as it is, whatever it is."""

    def change(path):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)

    return change


def first_tensor(**fields):
    """Change what the header says of one tensor, leaving the data."""

    def change(path):
        header, data = header_of(path)
        header["affine/norm1.bias"].update(fields)
        raw(header, data)(path)

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(counters("counters", steps=-1), id="steps-negative"),
        pytest.param(counters("counters", steps=10**30), id="steps-absurd"),
        pytest.param(counters("counters", steps=float("nan")), id="steps-nan"),
        pytest.param(counters("counters", steps=float("inf")), id="steps-infinite"),
        pytest.param(counters("counters", steps=1.5), id="steps-broken"),
        pytest.param(counters("counters", steps=True), id="steps-true"),
        pytest.param(counters("counters", steps="7"), id="steps-text"),
        pytest.param(counters("counters", steps=None), id="steps-none"),
        pytest.param(counters("counters", steps=[1]), id="steps-list"),
        pytest.param(counters("counters", steps={"a": {}}), id="steps-object"),
        pytest.param(counters("counters", pending_batches=0), id="pending-but-none-counted"),
        pytest.param(counters("moments", images_seen=-16), id="images-negative"),
        pytest.param(texts(counters="[]"), id="counters-list"),
        pytest.param(texts(counters="7"), id="counters-number"),
        pytest.param(texts(counters='{"counters": 7}'), id="counters-flat"),
        pytest.param(texts(counters=DEEP), id="counters-deep"),
        pytest.param(texts(counters='{"a":' * 50_000), id="counters-deep-objects"),
        pytest.param(texts(counters='{"counters": {"steps": ' + "9" * 5000 + "}}"), id="digits"),
        pytest.param(texts(counters=None), id="counters-missing"),
        pytest.param(texts(sections="{}"), id="sections-object"),
        pytest.param(texts(sections="[1, 2]"), id="sections-numbers"),
        pytest.param(texts(sections='[["a"]]'), id="sections-lists"),
        pytest.param(texts(sections=DEEP), id="sections-deep"),
        pytest.param(texts(sections="null"), id="sections-null"),
        pytest.param(texts(sections=None), id="sections-missing"),
        pytest.param(texts(settings="[]"), id="settings-list"),
        pytest.param(texts(settings=DEEP), id="settings-deep"),
        pytest.param(texts(settings="7"), id="settings-number"),
        pytest.param(texts(settings='{"\\u001b[2J": 1}'), id="settings-escape"),
        pytest.param(texts(method="\x1b[2J" + "x" * 100_000), id="method-long"),
        pytest.param(texts(model=None, weights=None), id="identity-missing"),
        pytest.param(texts(format="ttc-state-3"), id="format"),
        pytest.param(raw(b"\xff\xfe"), id="header-no-text"),
        pytest.param(raw(b""), id="header-empty"),
        pytest.param(raw([]), id="header-list"),
        pytest.param(raw(DEEP.encode()), id="header-deep"),
        pytest.param(raw({"__metadata__": []}), id="metadata-list"),
        pytest.param(raw({"__metadata__": {"format": 1}}), id="metadata-numbers"),
        pytest.param(raw({"a": 1}), id="tensor-number"),
        pytest.param(lambda path: path.write_bytes(b"\xff" * 8 + b"x" * 100), id="length-absurd"),
        pytest.param(lambda path: path.write_bytes(b"\x10"), id="one-byte"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes() + b"x"), id="too-long"),
        pytest.param(first_tensor(shape=[2**62, 2**62]), id="shape-absurd"),
        pytest.param(first_tensor(shape=[-8]), id="shape-negative"),
        pytest.param(first_tensor(shape=[8.0]), id="shape-float"),
        pytest.param(first_tensor(shape="8"), id="shape-text"),
        pytest.param(first_tensor(dtype="F4"), id="dtype-unknown"),
        pytest.param(first_tensor(dtype="I32"), id="dtype-whole"),
        pytest.param(first_tensor(data_offsets=[0, 2**70]), id="offsets-absurd"),
        pytest.param(first_tensor(data_offsets=[32, 0]), id="offsets-backwards"),
        pytest.param(first_tensor(data_offsets=[0, 32, 64]), id="offsets-three"),
        pytest.param(tensors(affine__norm1_dot_bias=lambda t: t.to(torch.complex64)), id="complex"),
        pytest.param(tensors(affine__norm1_dot_bias=lambda t: t[0]), id="zero-dim"),
        pytest.param(tensors(affine__norm1_dot_bias=lambda t: t.double() * 1e300), id="overflow"),
        pytest.param(tensors(affine__evil=lambda _: torch.zeros(10**6)), id="extra"),
        pytest.param(tensors(gradients__evil=lambda _: torch.zeros(8)), id="extra-gradient"),
        pytest.param(tensors(optimizer__evil=lambda _: torch.zeros(8)), id="extra-optimizer"),
        pytest.param(
            tensors(optimizer__step_at_norm1_dot_bias=lambda _: torch.tensor(-1.0)), id="step"
        ),
        pytest.param(
            tensors(optimizer__step_at_norm1_dot_bias=lambda _: torch.tensor(torch.inf)),
            id="step-infinite",
        ),
        pytest.param(tensors(gradients__norm1_dot_bias=lambda t: t * torch.nan), id="gradient-nan"),
        pytest.param(
            tensors(optimizer__exp_avg_at_norm1_dot_bias=lambda _: torch.tensor(1.0)),
            id="moment-of-one-number",
        ),
    ],
)
def test_a_hostile_file_is_refused_in_a_sentence(refused, change):
    """Whatever its header, counters, shapes and numbers are; nothing is restored by half."""
    refused(change)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("t3a", tensors(supports__classes=lambda t: t + CLASSES)),
        ("t3a", tensors(supports__classes=lambda t: t - CLASSES)),
        ("t3a", tensors(supports__classes=lambda t: t.float())),
        ("t3a", tensors(supports__entropy=lambda t: t[:-1])),
        ("t3a", tensors(supports__features=lambda t: t[:, :-1].contiguous())),
        ("t3a", tensors(supports__features=lambda t: t * torch.nan)),
        ("t3a", tensors(supports__more=lambda _: torch.zeros(3))),
        ("eta", tensors(mean_answer__probabilities=lambda _: torch.zeros(CLASSES + 1))),
        ("eta", tensors(mean_answer__probabilities=lambda _: torch.full((CLASSES,), torch.nan))),
        ("ttc_stream", tensors(context__averages=lambda t: t * 2)),
        ("ttc_stream", tensors(context__weights=lambda t: t[:, :-1].contiguous())),
        ("ttc_stream", tensors(context__usual=lambda t: t * torch.nan)),
        ("ttc_stream", tensors(classes__frequencies=lambda t: -t)),
        ("ttc_stream", tensors(moments__moment1_dot_norm1=lambda t: t[1:])),
        ("ttc_stream", counters("context", context_images=-8)),
        ("ttc_stream", counters("classes", opening=float("inf"))),
        ("ttc_stream", counters("classes", images=None)),
        ("ttc_stream", counters("moments", late_images=float("nan"))),
        ("ttc_stream", counters("second_view", lost="no")),
        ("ttc_stream", counters("temperature", changed=1.5)),
    ],
)
def test_what_a_method_keeps_besides_is_checked_by_it(refused, name, change):
    """A class that is none would end a process on a GPU, a wrong shape every later request."""
    refused(change, name)


def test_a_file_is_refused_before_its_tensors_are_read(refused):
    """A gigabyte under a name of the network's costs no memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def grow(path):
        header, data = header_of(path)
        header["affine/evil"] = {
            "dtype": "F32",
            "shape": [200 << 20],
            "data_offsets": [len(data), len(data) + (800 << 20)],
        }
        raw(header, data)(path)
        os.truncate(path, path.stat().st_size + (800 << 20))

    assert "affine evil" in refused(grow)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_a_file_of_another_precision_is_taken_up_in_the_methods_own(adapted, tmp_path):
    """Half-precision scales become what the network has; so a later version may keep them finer."""
    path, method = tmp_path / "gate.safetensors", adapted["ttc"]
    save_state(path, method, name="ttc", model="small")
    tensors(affine__norm1_dot_bias=lambda t: t.to(torch.bfloat16))(path)
    fresh = method.fork()
    load_state(path, fresh, name="ttc", model="small")
    assert fresh.state()["affine"]["norm1.bias"].dtype == torch.float32
    assert fresh.version == method.version


def test_what_the_system_does_not_let_be_read_may_be_good(adapted, tmp_path, monkeypatch):
    """It is told apart from what is damaged, so that nobody takes it out of the way."""
    path = tmp_path / "gate.safetensors"
    save_state(path, adapted["ttc"], name="ttc", model="small")

    def exhausted(*_, **__):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", exhausted)
    with pytest.raises(StateUnreadable, match="cannot be read: Too many open files"):
        load_state(path, adapted["ttc"].fork(), name="ttc", model="small")


@pytest.mark.parametrize(
    "change",
    [
        texts(counters=DEEP),
        texts(counters=None),
        texts(counters='{"a": 7}'),
        raw(b""),
        raw({"__metadata__": {"format": "ttc-state-1"}}),
    ],
)
def test_describing_a_hostile_file_is_a_sentence(adapted, tmp_path, change):
    """As loading it is."""
    path = tmp_path / "gate.safetensors"
    save_state(path, adapted["ttc"], name="ttc", model="small")
    change(path)
    with pytest.raises(StateError, match=r"gate\.safetensors"):
        describe(path)


class Odd:
    """A method of a user's own that keeps odd things."""

    def __init__(self, model, state):
        self.model, self._state = model, state
        self.settings = {"path": os.devnull, "kind": torch.float32}

    def state(self):
        return {"mine": self._state}

    def restore(self, state):
        raise AttributeError("\x1b[31mwhat is this")

    def reset(self):
        self._state = {}


def test_tensors_that_share_memory_are_saved(adapted, tmp_path):
    """Views of one another, empty ones and settings that JSON does not know are no obstacle."""
    base = torch.arange(6.0)
    held = {
        "all": base,
        "same": base,
        "part": base[2:],
        "turned": base.view(2, 3).T,
        "no": base[:0],
    }
    path = tmp_path / "gate.safetensors"
    save_state(path, Odd(adapted["ttc"].model, held), name="odd", model="small")
    assert torch.equal(load_file(path)["mine/turned"], base.view(2, 3).T)


def test_what_a_users_method_raises_on_restoring_is_a_sentence(adapted, tmp_path):
    """And the method is reset."""
    path, method = tmp_path / "gate.safetensors", Odd(adapted["ttc"].model, {"n": 1})
    save_state(path, method, name="odd", model="small")
    with pytest.raises(StateError, match=r"is incomplete: \?\[31mwhat is this"):
        load_state(path, method, name="odd", model="small")
    assert method.state() == {"mine": {}}


def test_a_failed_save_leaves_nothing_behind(adapted, tmp_path, monkeypatch):
    """Neither when the disk is full nor when the folder does not take the name."""
    path = tmp_path / "gate.safetensors"
    path.mkdir()
    with pytest.raises(OSError, match="gate"):
        save_state(path, adapted["ttc"], name="ttc", model="small")
    assert list(tmp_path.iterdir()) == [path]


def test_a_saved_file_outlasts_a_power_cut(adapted, tmp_path, monkeypatch):
    """The file is on disk before it gets its name, and the name before `save_state` returns."""
    synced, sync = [], os.fsync

    def note(descriptor):
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    save_state(tmp_path / "gate.safetensors", adapted["ttc"], name="ttc", model="small")
    assert synced == ["gate.safetensors.part", tmp_path.name]


def test_a_leftover_of_any_kind_is_no_obstacle(adapted, tmp_path):
    """What a killed process left half-written, or a link in its place, is not written through."""
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "gate.safetensors.part").symlink_to(tmp_path / "elsewhere")
    save_state(tmp_path / "gate.safetensors", adapted["ttc"], name="ttc", model="small")
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"
    assert describe(tmp_path / "gate.safetensors").method == "ttc"


def test_a_foreign_safetensors_file_is_no_state(adapted, tmp_path):
    """A model's weights, say."""
    path = tmp_path / "gate.safetensors"
    path.write_bytes(save({"weight": torch.zeros(3)}))
    with pytest.raises(StateError, match="no state file of this program"):
        load_state(path, adapted["ttc"].fork(), name="ttc", model="small")
