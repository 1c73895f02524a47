"""What is saved of a stream's guard: who is held, and since when, is told before it is loaded."""

import asyncio
import math
import time

import pytest
import torch

from service import state_folder
from service.answering import Image
from tests.fixtures.engine import value
from tests.fixtures.networks import make_model
from tests.fixtures.streams import PIXELS, events, refuse_to_open, request
from ttc_core.evaluate import as_batch
from ttc_core.guard import watched
from ttc_core.methods import create
from ttc_core.state import save_state


@pytest.fixture(scope="module")
def guarded():
    return create("ttc", make_model("batch-norm"), guard="on", statistics="moving")


@pytest.mark.parametrize(
    "kept",
    [
        *({"images": -1}, {"images": True}, {"images": 1.5}, {"suspects": {"black": "1"}}),
        *({"held_since": math.nan}, {"doubted_since": 1e300}, {"acts": [{"action": "hold"}]}),
    ],
    ids=str,
)
def test_a_state_beside_which_nonsense_is_kept_is_set_aside(engine, guarded, tmp_path, kept):
    """Its counts and times are told to people; so it is no state of ours."""
    file = tmp_path / "gate.safetensors"
    save_state(file, guarded, name="ttc", model="small", of_stream=kept)
    table = engine(tmp_path, source=guarded)
    asyncio.run(table.look_at_saved())
    assert table.saved_doubted() == {}
    request(table, "gate")
    (rejected,) = events(table, "rejected")
    assert f"keeps beside its state is none: {next(iter(kept))}" in rejected["reason"]
    assert (tmp_path / "gate.rejected").exists()
    assert table.streams["gate"].images == len(PIXELS)


@pytest.fixture
def save_held(guarded, tmp_path):
    """Save a held stream; what is said to be known of its guard is known in its place."""

    def save(stream="gate", of_stream=None, **known):
        method = guarded.fork()
        method.adapt(method.predict(as_batch(PIXELS)))
        method.weigh([(False, True)] * 100)
        assert method.mode == "held"
        state = method.state()
        file = tmp_path / f"{stream}.safetensors"
        save_state(
            file,
            method,
            name="ttc",
            model="small",
            state={**state, "guard": {**state["guard"], **known}},
            of_stream=of_stream
            or {"mode": "held", "images": len(PIXELS)}
            | {"doubted_since": 1.4e9, "held_since": 1.5e9},
        )
        return file

    return save


@pytest.mark.parametrize("held", [torch.ones(4, dtype=torch.uint8), "1"], ids=str)
@pytest.mark.parametrize("guard", ["on", "off"])
def test_a_stream_of_whose_guard_nonsense_is_saved_is_answered(
    engine, guarded, save_held, tmp_path, guard, held
):
    """By the source, whether the guard is on or not; its file is set aside, which is told."""
    save_held(held=held)
    source = guarded if guard == "on" else guarded.inner.inner
    table = engine(tmp_path, source=source)
    for _ in range(2):
        request(table, "gate")
    assert table.streams["gate"].images == 2 * len(PIXELS)
    (rejected,) = events(table, "rejected")
    assert "one of its numbers is" in rejected["reason"]
    assert (tmp_path / "gate.rejected").exists()


@pytest.mark.parametrize("learn", [True, False], ids=["learning", "asking"])
@pytest.mark.parametrize("change", ["removed", "damaged", "unreadable"])
def test_a_held_stream_whose_file_is_gone_is_held_no_more(
    engine, guarded, save_held, tmp_path, monkeypatch, change, learn
):
    """Once it was looked for; a file that cannot be read now may be good."""
    file = save_held()
    table = engine(tmp_path, source=guarded)
    asyncio.run(table.look_at_saved())
    assert list(table.saved_doubted()) == ["gate"]
    if change == "removed":
        file.unlink()
    elif change == "damaged":
        file.write_bytes(b"damaged")
    else:
        monkeypatch.setattr("ttc_core.state.os.open", refuse_to_open(file))
    if learn:
        table.table.admit("gate")
    asyncio.run(table.predict([("gate", [Image(one) for one in PIXELS])], learn=learn))
    left = ["gate"] if change == "unreadable" else []
    assert list(table.saved_doubted()) == left
    assert value(table, "ttc_held_streams") == len(left)


@pytest.mark.parametrize("guard", ["on", "off", "observe"])
def test_a_stream_is_doubted_only_where_there_is_a_guard(
    engine, guarded, save_held, tmp_path, guard
):
    """Whatever its file says; it fits with each of them. One that only observes holds nobody."""
    save_held()
    table = engine(tmp_path, source=watched(guarded.inner.inner, guard))
    asyncio.run(table.look_at_saved())
    found = [] if guard == "off" else ["gate"]
    told = table.saved_doubted()
    assert list(told) == found
    assert table.saved_unfit().streams == 0
    assert {(each.mode, each.doubted_since, each.held_since) for each in told.values()} == {
        "on": {("held", 1.4e9, 1.5e9)},
        "observe": {("adapting", 1.4e9, None)},
        "off": set(),
    }[guard]
    assert value(table, "ttc_doubted_streams") == len(found)
    assert value(table, "ttc_held_streams") == (guard == "on")


@pytest.mark.parametrize(("mode", "held_since"), [("held", 1.4e9), ("adapting", None)])
def test_a_file_of_a_former_version_says_since_when_its_stream_is_doubted(
    engine, guarded, save_held, tmp_path, mode, held_since
):
    """It has one moment, when it was held or would have been; before it is loaded and after."""
    save_held(of_stream={"mode": mode, "held_since": 1.4e9, "images": len(PIXELS)})
    table = engine(tmp_path, source=guarded)
    asyncio.run(table.look_at_saved())
    saved = table.saved_doubted()["gate"]
    assert (saved.doubted_since, saved.held_since) == (1.4e9, held_since)
    began = time.time()
    request(table, "gate")
    record = table.streams["gate"]
    assert record.doubted_since == 1.4e9
    assert record.held_since == held_since or (held_since is None and record.held_since >= began)


def test_a_file_that_cannot_be_looked_at_hides_no_other(
    engine, guarded, save_held, tmp_path, monkeypatch
):
    """Whatever is raised by it: that is told, and the held streams behind it are found."""
    for name in ("a", "b", "c"):
        save_held(name)
    looked, read = [], state_folder.read_of_stream

    def fail(path, *arguments, **options):
        looked.append(path.stem)
        return 1 / 0 if len(looked) == 1 else read(path, *arguments, **options)

    monkeypatch.setattr(state_folder, "read_of_stream", fail)
    table = engine(tmp_path, source=guarded)
    asyncio.run(table.look_at_saved())
    assert sorted(looked) == ["a", "b", "c"]
    assert sorted(table.saved_doubted()) == sorted(looked[1:])
    (event,) = events(table, "not_looked_at")
    assert event["stream"] == looked[0]
    assert "division by zero" in event["reason"]
