"""What else a guard is put around, and what it does not ask the source."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.contract import same
from tests.fixtures.methods import ClassBalance
from tests.fixtures.networks import make_images, make_model
from ttc_core.evaluate import run_stream
from ttc_core.guard import Unwatched, comparing, watched
from ttc_core.guard.guarded import Guarded
from ttc_core.methods import create
from ttc_core.methods.contract import ADAPTING, HELD, MODES, WATCHING, SnapshotError
from ttc_core.methods.own import OwnMethod
from ttc_core.model import SourceModel
from ttc_core.state import load_state, save_state

NAMES = ("guard", "frames", "guard.snapshot0", "own.guard", "other")


class Namesake(ClassBalance):
    """Keeps its state under the names of what watches it."""

    def state(self) -> dict[str, dict[str, Any]]:
        counts = super().state()["supports"]["counts"]
        return {name: {"counts": counts * 2**number} for number, name in enumerate(NAMES)}

    def restore(self, state: Any) -> None:
        assert set(state) <= set(NAMES)
        for name, section in state.items():
            counts = section["counts"] / 2 ** NAMES.index(name)
            super().restore({"supports": {"counts": counts}})


def namesake(guard: str):
    model = make_model("batch-norm")
    return watched(OwnMethod("tests:Namesake", model, Namesake(model)), guard)


@pytest.mark.parametrize("guard", ["on", "off"])
def test_a_method_may_name_its_state_as_what_watches_it_does(guard, tmp_path):
    """Both are saved, and each has its own again; rolled back, too."""
    method, other = namesake(guard), namesake(guard)
    method.adapt(method.predict(make_images(6)))
    if guard == "on":
        method.inner._take()
    save_state(tmp_path / "s", method, name="own", model="m")
    load_state(tmp_path / "s", other, name="own", model="m")
    assert same(other.state(), method.state())
    if guard == "on":
        other.roll_back()
    again = make_images(6, seed=1)
    assert torch.equal(other.predict(again).logits, method.predict(again).logits)


def test_a_state_that_such_a_method_saved_unwatched_before_is_taken_up():
    """With the names as they were."""
    method, plain = namesake("off"), Namesake(make_model("batch-norm"))
    plain.adapt(plain.predict(make_images(6)))
    method.restore({name: plain.state()[name] for name in NAMES[:3]})
    assert same(method._inner.state(), plain.state())


def test_faulty_frames_are_not_compared(monkeypatch):
    """No pass of the source for them, and no word of who answered what."""
    asked = []
    plain = comparing.answers_to

    def counted(model, inputs, rows, **seen):
        asked.append(len(rows))
        return plain(model, inputs, rows, **seen)

    monkeypatch.setattr(comparing, "answers_to", counted)
    method = create("ttc", make_model("batch-norm"), guard="on", statistics="moving")
    faulty = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    said = method.predict(faulty)
    assert said.suspects == ("black",) * 3
    assert not any(said.compared)
    assert asked == []
    blocks = make_images(4, size=8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    said = method.predict(torch.cat((faulty, blocks)))
    assert said.suspects == ("black",) * 3 + (None,) * 4
    assert [each is None for each in said.compared] == [True] * 3 + [False] * 4
    assert asked == [4]


class Drops(nn.Module):
    """Its answer to a lone image has no axis of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)).squeeze())


@pytest.mark.parametrize("drops", [False, True])
def test_a_lone_compared_image_is_run_once_where_the_network_takes_one(monkeypatch, drops):
    """And twice where it does not: the method itself answers with two views."""
    torch.manual_seed(0)
    model = (
        SourceModel(Drops().eval(), mean=(0,) * 3, std=(1,) * 3, size=32)
        if drops
        else make_model("batch-norm")
    )
    method = Guarded(create("ttc", model, statistics="moving"))
    images = make_images(1, size=32)
    method.predict(images)
    rows, run = [], model.run

    def counted(inputs, **seen):
        rows.append(len(inputs))
        return run(inputs, **seen)

    monkeypatch.setattr(model, "run", counted)
    assert method.predict(images).compared[0] is not None
    assert rows == ([2, 2, 2] if drops else [2, 1, 1])


def test_a_snapshot_that_is_not_taken_up_is_told_so(monkeypatch):
    """Not as one that is missing; the method is as it was."""
    method = Guarded(create("ttc", make_model("batch-norm"), statistics="moving"))
    method.adapt(method.predict(make_images(6)))
    method._take()
    method.adapt(method.predict(make_images(6, seed=1)))
    before, restore = method.state(), method.inner.restore

    def failing(state):
        if not same(state["moments"], before["moments"]):
            raise RuntimeError("no room")
        restore(state)

    monkeypatch.setattr(method.inner, "restore", failing)
    with pytest.raises(SnapshotError, match="RuntimeError: no room"):
        method.roll_back()
    assert same(method.state(), before)
    with pytest.raises(LookupError):
        method.roll_back(77)


def test_a_guard_goes_on_where_it_was_after_a_time_without(tmp_path):
    """What it knew is in the file of whoever adapts unwatched meanwhile, unless that is reset."""

    def method(mode):
        made = watched(create("ttc", make_model("batch-norm"), statistics="moving"), mode)
        return Unwatched(made) if mode == "off" else made

    def after(before, mode):
        found = method(mode)
        save_state(tmp_path / "s", before, name="ttc", model="m")
        load_state(tmp_path / "s", found, name="ttc", model="m")
        return found

    def knowledge(method):
        return {k: v for k, v in method.state().items() if k.partition(".")[0] in WATCHING}

    before = method("on")
    before.adapt(before.predict(make_images(6)))
    before.inner._take()
    before.weigh([(False, True)] * 100)
    before.inner._take()
    unwatched = after(before, "off")
    assert (before.mode, unwatched.mode, unwatched.snapshots) == (HELD, ADAPTING, {})
    unwatched.adapt(unwatched.predict(make_images(6, seed=1)))
    now = after(unwatched, "on")
    assert same(knowledge(now), knowledge(before))
    assert (now.mode, now.snapshots) == (HELD, before.snapshots)
    assert same(now.inner.inner.state(), unwatched.inner.state())
    assert knowledge(unwatched.fork()) == {}
    unwatched.reset()
    assert same(unwatched.state(), method("off").state())


@pytest.mark.parametrize(
    "held",
    [torch.tensor([1, 0, 1, 0], dtype=torch.uint8), torch.tensor(1), "1", 2, -1, None],
    ids=str,
)
def test_what_the_guard_saw_is_checked_whether_it_watches_or_not(held):
    """What could not be told whether it is a hold is no state; the method stays as it is."""
    inner = create("ttc", make_model("batch-norm"), statistics="moving")
    watching, unwatched = Guarded(inner), Unwatched(inner.fork())
    watching.adapt(watching.predict(make_images(6)))
    watching.weigh([(False, True)] * 100)
    state = watching.state()
    unwatched.restore(state)
    assert unwatched.doubted
    assert not unwatched.fork().doubted
    odd = {**state, "guard": {**state["guard"], "held": held}}
    for method in (watching, unwatched):
        with pytest.raises(ValueError, match="one of its numbers is"):
            method.restore(odd)
    assert unwatched.doubted
    assert same(unwatched.state(), state)
    unwatched.reset()
    assert not unwatched.doubted


def test_a_version_names_one_snapshot():
    """Where nothing was learned in between, or after a roll back, the latest of it."""
    method = Guarded(create("ttc", make_model("batch-norm"), statistics="moving"))
    for seed in range(3):
        method.adapt(method.predict(make_images(6, seed=seed)))
        method._take()
    assert dict(method.snapshots) == {0: 18}
    assert [each.images for each in method._snapshots] == [18]


def test_a_pass_keeps_how_each_image_was_answered():
    """As its place among the modes, beside how many the source answered."""
    pixels = make_images(8).permute(0, 2, 3, 1).numpy()

    class Stream:
        columns: ClassVar[dict[str, Any]] = {}

        def __len__(self):
            return len(pixels)

        def batches(self, size):
            for at in range(0, len(pixels), size):
                yield pixels[at : at + size], np.zeros(size, np.int64)

    method = Guarded(create("ttc", make_model("batch-norm"), statistics="moving"))
    method.weigh([(False, True)] * 100)
    tally = run_stream(method, Stream(), 4)
    assert tally.columns["mode"].tolist() == [MODES.index(HELD)] * 8
    assert tally.held == 8
    assert "mode" not in run_stream(method.inner, Stream(), 4).columns
