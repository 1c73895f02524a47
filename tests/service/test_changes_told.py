"""What an engine tells its log of changes, and what saved streams have of it."""

import asyncio
import json
import os
import shutil
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from service.changes import changes as changes_module
from service.changes.chain import Chain
from service.changes.changes import Changes
from service.changes.verifying import verify
from service.events import Events
from service.state_folder import StateFolder
from tests.fixtures.engine import value
from tests.fixtures.networks import make_model
from tests.fixtures.streams import events, request, reset, stop
from ttc_core.envelope.clauses import Envelope
from ttc_core.envelope.verdicts import Verdicts
from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods import Act, Adaptation, create
from ttc_core.state import save_state
from ttc_core.state_description import describe
from ttc_core.state_file import read_header


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Lines are written at once, as far as a test waits for them."""
    monkeypatch.setattr(changes_module, "FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(changes_module, "RETRY_SECONDS", 0.01)


def verified(folder, **options):
    return verify(folder, wait=lambda seconds: None, **options)


def told(folder, *kinds):
    """The lines of a folder's log, of some kinds; or all."""
    paths = [*sorted(folder.glob("changes.jsonl.*")), folder / "changes.jsonl"]
    texts = (
        text
        for path in paths
        if path.exists()
        for text in path.read_text().splitlines(keepends=True)
    )
    lines = [json.loads(text) for text in texts if text.endswith("\n")]
    return [line for line in lines if not kinds or line["event"] in kinds]


def is_told(folder, kind, count):
    return len(told(folder, kind)) == count


def until(condition):
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


def lines_written(engine, count):
    until(lambda: engine.changes.head and engine.changes.head.line >= count)


def test_what_a_stream_learned_is_one_line_with_all_of_it(engine, tmp_path):
    """Of the batches of a minute, however many; what has learned nothing has none."""
    table = engine(tmp_path)
    for _ in range(3):
        request(table, "gate")
    request(table, "yard")
    stop(table)
    gate, yard = told(tmp_path, "steps")
    assert (gate["stream"], gate["batches"], gate["images"]) == ("gate", 3, 12)
    assert (yard["stream"], yard["batches"]) == ("yard", 1)
    record = table.streams["gate"]
    assert (gate["version_before"], gate["version"]) == (0, record.version)
    assert gate["drift"] == round(record.drift, 6)
    assert gate["steps"] == record.version > 0
    assert not verified(tmp_path).defects


def test_a_reset_stands_between_what_came_before_and_after(engine, tmp_path):
    """With the version that went, and the file; that of all in one line."""
    table = engine(tmp_path)
    for _ in range(2):
        request(table, "gate")
    before = table.streams["gate"].version
    stop_saving = told_after_save(table, tmp_path)
    reset(table, "gate")
    request(table, "gate")
    reset(table, None)
    request(table, "gate")
    stop(table)
    lines = told(tmp_path, "steps", "reset", "removed", "save")[stop_saving:]
    kinds = [(line["event"], line["stream"]) for line in lines]
    assert kinds == [
        ("reset", "gate"),
        ("removed", "gate"),
        ("steps", "gate"),
        ("reset", "*"),
        ("steps", "gate"),
        ("save", "gate"),
    ]
    assert (lines[0]["version_before"], lines[0]["version"]) == (before, 0)
    assert lines[2]["version_before"] == 0
    assert not verified(tmp_path).defects


def told_after_save(engine, folder):
    """Save what there is; how many lines of interest that made."""
    asyncio.run(engine._save_changed())
    until(lambda: (folder / "changes.jsonl").exists() and told(folder, "save"))
    return len(told(folder, "steps", "reset", "removed", "save"))


def test_a_saved_stream_holds_the_head_of_the_log(engine, tmp_path):
    """And the line of its saving holds the file's hash: copies, swaps and changes are found."""
    table = engine(tmp_path)
    table.changes.note("started")
    lines_written(table, 2)
    for name in ("gate", "yard"):
        request(table, name)
    stop(table)
    gate, yard = tmp_path / "gate.safetensors", tmp_path / "yard.safetensors"
    mark = describe(gate).of_stream["changes"]
    assert mark["line"] == 2
    found = verified(tmp_path)
    assert (found.files, found.unvouched, found.defects) == (2, [], [])

    older = tmp_path / "older"
    shutil.copy(gate, older)
    again = engine(tmp_path)
    request(again, "gate")
    stop(again)
    assert not verified(tmp_path).defects

    kept = gate.read_bytes()
    shutil.copy(older, gate)
    (defect,) = verified(tmp_path).defects
    assert "gate.safetensors is an older copy of what was saved last" in str(defect)
    gate.write_bytes(yard.read_bytes())
    (defect,) = verified(tmp_path).defects
    assert "gate.safetensors is of another stream, yard" in str(defect)
    gate.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    (defect,) = verified(tmp_path).defects
    assert "gate.safetensors is not what was saved last" in str(defect)
    gate.unlink()
    (defect,) = verified(tmp_path).defects
    assert "gate.safetensors is not there" in str(defect)
    gate.write_bytes(kept)
    assert not verified(tmp_path).defects


def test_saved_streams_tell_of_a_log_that_was_deleted_or_cut(engine, tmp_path):
    """Its head too; and after the next start, which begins another, that still is seen."""
    table = engine(tmp_path)
    table.changes.note("started")
    lines_written(table, 2)
    request(table, "gate")
    stop(table)
    for path in tmp_path.glob("changes*"):
        path.unlink()
    found = verified(tmp_path)
    assert not found.logs
    (defect,) = found.defects
    assert "gate.safetensors was saved when the log had line 2, and there is no such log" in str(
        defect
    )
    again = engine(tmp_path)
    request(again, "gate")
    stop(again)
    (defect,) = verified(tmp_path).defects
    assert "read here, was saved when line 2 of the log was another" in str(defect)


def test_what_cannot_be_read_is_held_against_no_stream(engine, tmp_path):
    """A stream of which an altered line told, or one that was cut, is neither right nor wrong."""
    table = engine(tmp_path)
    for name in ("gate", "yard"):
        request(table, name)
    stop(table)
    log = tmp_path / "changes.jsonl"
    kept = log.read_bytes()
    lines = kept.splitlines(keepends=True)
    (at,) = (n for n, line in enumerate(lines) if b'"save"' in line and b'"gate"' in line)
    log.write_bytes(kept.replace(lines[at], lines[at].replace(b"gate", b"gaTe")))
    found = verified(tmp_path)
    (unsure,), (defect,) = found.unvouched, found.defects
    assert str(unsure) == (
        "gate.safetensors has a hash that no line has: "
        f"line {at + 1} of the log, altered, may have told of it."
    )
    assert (found.files, defect.at) == (1, at + 1)
    log.write_bytes(b"".join(lines[:at]))
    found = verified(tmp_path)
    assert f"lines {at + 1} to {len(lines)} of the log, cut off, may" in str(found.unvouched)
    assert ["The log was cut" in str(each) for each in found.defects] == [True]
    # A file that goes: what would have told it may be what cannot be read.
    log.write_bytes(kept.replace(lines[-1], lines[-1].replace(b"stopped", b"stoPped")))
    (tmp_path / "gate.safetensors").unlink()
    (unsure,) = verified(tmp_path).unvouched
    assert f"line {len(lines)} of the log, altered, may have told that it went" in str(unsure)


def test_what_lies_there_after_a_removal_is_told_as_that(engine, tmp_path):
    """And not as if the line of the removal had told of a save."""
    table = engine(tmp_path)
    for name in ("gate", "yard"):
        request(table, name)
    asyncio.run(table._save_changed())
    until(partial(is_told, tmp_path, "save", 2))
    reset(table, "gate")
    stop(table)
    gate = tmp_path / "gate.safetensors"
    state = create("ttc", make_model())
    save_state(gate, state, name="ttc", model="m")
    removal = told(tmp_path, "removed")[-1]
    (defect,) = verified(tmp_path).defects
    assert str(defect) == (
        f"gate.safetensors is nothing that was saved: line {removal['line']} of the log tells that "
        "it was removed."
    )


def test_saved_streams_vouch_for_lines_behind_an_older_head(engine, tmp_path):
    """As far as they know the log; for the rest nothing does."""
    table = engine(tmp_path)
    for count, name in enumerate(("gate", "yard"), 1):
        table.changes.note("hold", stream=name)
        lines_written(table, table.changes.head.line + 1 if table.changes.head else 2)
        request(table, name)
        asyncio.run(table._save_changed())
        until(partial(is_told, tmp_path, "save", count))
    stop(table)
    last = len((tmp_path / "changes.jsonl").read_bytes().splitlines())
    known = describe(tmp_path / "yard.safetensors").of_stream["changes"]["line"]
    assert 2 < known < last
    first = json.loads((tmp_path / "changes.jsonl").read_bytes().splitlines()[2])
    head = {"writer": "", "line": 2, "head": first["before"], "closed": False}
    (tmp_path / "changes.head").write_text(json.dumps(head))
    found = verified(tmp_path)
    (unsure,) = found.unvouched
    assert f"that has {last}: saved streams vouch for lines up to {known}, nothing" in str(unsure)
    assert f"for lines {known + 1} to {last}." in str(unsure)
    assert not found.defects


def test_an_older_copy_that_was_read_stays_told(engine, tmp_path):
    """As after a backup that was brought back: wrong, unless somebody says that it was."""
    for _ in range(2):
        table = engine(tmp_path)
        request(table, "gate")
        stop(table)
        if not (tmp_path / "older").exists():
            shutil.copy(tmp_path / "gate.safetensors", tmp_path / "older")
    shutil.copy(tmp_path / "older", tmp_path / "gate.safetensors")
    table = engine(tmp_path)
    request(table, "gate")
    stop(table)
    (defect,) = verified(tmp_path).defects
    assert "gate.safetensors was read, and is an older copy of what was saved last" in str(defect)
    assert verified(tmp_path, restored=["yard"]).defects
    found = verified(tmp_path, restored=["yard", "ga*"])
    assert found.is_vouched_for
    assert "it was named as restored" in str(found.remarks)


@pytest.mark.parametrize("way", ["exchanged", "altered", "planted"])
def test_no_restart_washes_a_file_clean(engine, tmp_path, way):
    """Of streams with as many images as one likes: what was wrong before is wrong once it was read
    and saved anew, too."""
    table = engine(tmp_path)
    for _ in range(3):
        request(table, "gate")
    asyncio.run(table._save_changed())
    request(table, "yard")
    stop(table)
    assert verified(tmp_path).is_vouched_for
    gate, yard = tmp_path / "gate.safetensors", tmp_path / "yard.safetensors"
    saved, names = gate.read_bytes(), ["gate"]
    if way == "exchanged":
        gate.write_bytes(yard.read_bytes())
        yard.write_bytes(saved)
        names.append("yard")
    elif way == "altered":
        # With a larger number of images, as a later one has.
        images = json.loads(read_header(gate)["stream"])["images"]
        old, new = (f'images\\":{s}{n}'.encode() for s, n in ((" ", images), (" ", images + 1)))
        assert saved.count(old) == 1, saved[:2000]
        gate.write_bytes(saved.replace(old, new))
    else:
        names = ["door"]
        (tmp_path / "door.safetensors").write_bytes(saved)
    assert len(verified(tmp_path).defects) == len(names)
    again = engine(tmp_path)
    for name in names:
        request(again, name)
    stop(again)
    found = verified(tmp_path)
    assert [name for name in names if name in str(found.defects)] == names
    assert not found.is_vouched_for


def test_what_a_kill_leaves_is_told_by_name_and_is_not_wrong(engine, tmp_path, monkeypatch):
    """A save whose line was on nobody's disk, a removal that was told and not made; after the next
    start, too. Of a log that was closed the same would be wrong."""
    table = engine(tmp_path)
    for name in ("gate", "yard"):
        request(table, name)
    asyncio.run(table._save_changed())
    until(lambda: verified(tmp_path).is_vouched_for)
    # From now on no line is written any more.
    with monkeypatch.context() as patch:
        patch.setattr(Chain, "append", lambda *given: time.sleep(0.1))
        request(table, "gate")
        asyncio.run(table._save_changed())
        (tmp_path / "copy").mkdir()
        for path in tmp_path.glob("*.*"):
            shutil.copy(path, tmp_path / "copy")
        stop(table)
    killed = tmp_path / "copy"
    (unsure,) = verified(killed).unvouched
    assert "gate.safetensors was saved just before a process ended unasked" in str(unsure)
    assert not verified(killed).defects
    again = engine(killed)
    for name in ("gate", "yard"):
        request(again, name)
    stop(again)
    found = verified(killed)
    assert not found.defects
    (unsure,) = found.unvouched
    assert "gate.safetensors was read, and was saved just before" in str(unsure)


def test_a_reset_is_on_disk_before_the_file_goes(engine, tmp_path, monkeypatch):
    """Else a kill in between would look as if somebody had taken the file away."""
    table = engine(tmp_path)
    request(table, "gate")
    asyncio.run(table._save_changed())
    until(lambda: verified(tmp_path).is_vouched_for)
    seen, remove = [], StateFolder.remove

    def killed(folder, stream):
        seen.extend(told(tmp_path, "removed"))
        assert verified(tmp_path).unvouched or not (tmp_path / "gate.safetensors").exists()
        remove(folder, stream)

    monkeypatch.setattr(StateFolder, "remove", killed)
    reset(table, "gate")
    assert [line["file"] for line in seen] == ["gate.safetensors"]
    assert verified(tmp_path).is_vouched_for
    stop(table)


def test_a_log_that_cannot_be_written_is_told_and_ends_nothing(engine, tmp_path, monkeypatch):
    """What waits is written once it can be, none is missing; the head stands still until then."""
    table = engine(tmp_path)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        for number in range(5):
            table.changes.note("hold", stream=f"s{number}")
        until(lambda: events(table, "changes_not_written"))
        request(table, "gate")
        assert table.changes.head is None
    until(lambda: table.changes.head)
    stop(table)
    assert [line["stream"] for line in told(tmp_path, "hold")] == [f"s{n}" for n in range(5)]
    assert not verified(tmp_path).defects
    assert not told(tmp_path, "lost")


def test_what_is_lost_is_counted_in_a_line(tmp_path, monkeypatch):
    """Of more than may wait."""
    monkeypatch.setattr(changes_module, "MOST_WAITING", 10)
    changes = Changes(tmp_path, Events())

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        for number in range(25):
            changes.note("hold", stream=f"s{number}")
        until(lambda: changes.lost)
    changes.close()
    lost = told(tmp_path, "lost")
    assert sum(line["lines"] for line in lost) == changes.lost == 25 - len(told(tmp_path, "hold"))
    found = verified(tmp_path)
    assert not found.defects
    assert any("could not be written" in str(each) for each in found.remarks)


def test_what_still_waits_at_the_end_is_counted_where_one_line_finds_a_place(tmp_path, monkeypatch):
    """A disk that is full when the service is stopped."""
    changes, real = Changes(tmp_path, Events()), os.pwrite

    def nearly_full(descriptor, data, at):
        if len(data) > 1000:
            raise OSError(28, "No space left on device")
        return real(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", nearly_full)
    for number in range(25):
        changes.note("hold", stream=f"s{number}")
    changes.close()
    assert not told(tmp_path, "hold")
    (lost,) = told(tmp_path, "lost")
    assert lost["lines"] == changes.lost == 25
    assert "25 lines before this one could not be written" in str(verified(tmp_path).remarks)


def test_numbers_that_are_none_and_long_texts_are_told_all_the_same(tmp_path):
    changes = Changes(tmp_path, Events())
    changes.note("hold", stream="gate", drift=float("nan"), reason="x" * 5000)
    changes.learned(
        "gate",
        1,
        Adaptation(),
        version_before=0,
        version=0,
        drift=float("inf"),
        verdicts=Verdicts(),
    )
    changes.close()
    hold, steps = told(tmp_path, "hold", "steps")
    assert (hold["drift"], len(hold["reason"]), steps["drift"]) == (None, 1001, None)


def test_other_weights_are_a_line_and_files_of_each_are_told_apart(engine, tmp_path, source):
    """Those that are removed in the end, too."""
    table = engine(tmp_path)
    request(table, "gate")
    model = make_model("batch-norm")
    with torch.no_grad():
        model.module.head.bias += 1.0
    model.refresh()
    others = create("ttc", model, statistics="moving", samples_per_step=8)

    async def exchange():
        exchanging = table.exchanging
        await exchanging.put_away(await exchanging.exchange(await exchanging.prepare(others)))

    asyncio.run(exchange())
    request(table, "gate")
    asyncio.run(table.save())
    until(partial(is_told, tmp_path, "save", 2))
    assert not verified(tmp_path).defects
    assert verified(tmp_path).files == 2
    reset(table, None)
    stop(table)
    (weights,) = told(tmp_path, "weights")
    digests = (weights["former_digest"], weights["digest"])
    assert digests == (source.model.digest, others.model.digest)
    apart = f"weights-{others.model.digest}/gate.safetensors"
    assert [each["file"] for each in told(tmp_path, "save")] == ["gate.safetensors", apart]
    assert {each["file"] for each in told(tmp_path, "removed")} == {"gate.safetensors", apart}
    assert not verified(tmp_path).defects


@pytest.mark.parametrize("resets", [False, True])
def test_what_the_envelope_did_is_told_by_clause(engine, tmp_path, resets):
    """Of each batch, also of one with which a guard has the stream begin anew: the same in the
    metric and in the log."""
    source = create(
        "tent", make_model(), lr=1.0, statistics="moving", envelope=Envelope(drift=0.001)
    )
    source = Resetting(source) if resets else source
    table = engine(tmp_path, source)
    for _ in range(3):
        request(table, "gate")
    stop(table)
    lines = told(tmp_path, "steps")
    assert sum(line["verdicts"]["cut"]["drift"] for line in lines) == 3
    counted = value(table, "ttc_envelope_steps_total", clause="drift", verdict="cut")
    assert counted == 3
    assert all((line["drift"] is None) == resets for line in lines)


class Resetting(Wrapper):
    """Has its stream begin anew with each batch, as a guard may."""

    def adapt(self, prediction, *, learn=True):
        outcome = self.inner.adapt(prediction, learn=learn)
        self.inner.reset()
        return replace(outcome, acts=(Act("reset", "harm", {}),), drift=0.0)


def test_no_line_is_told_as_of_a_time_before_that_of_the_line_before_it(tmp_path):
    """Nor what the log tells of itself: at a start, of what a crash tore, and over files."""
    for _ in range(4):
        changes = Changes(tmp_path, Events(), most_bytes=1000, most_files=3)
        for number in range(15):
            changes.note("hold", stream="gate", number=number)
        changes.close()
        with (tmp_path / "changes.jsonl").open("a") as file:
            file.write("torn")
    times = [each["time"] for each in told(tmp_path)]
    assert times == sorted(times)
    own = told(tmp_path, "file", "dropped", "mended")
    assert {each["event"] for each in own} == {"file", "dropped", "mended"}


def test_without_a_folder_nothing_is_noted(engine, tmp_path, monkeypatch):
    """No thread, no file, no head."""
    monkeypatch.chdir(tmp_path)
    table = engine()
    request(table, "gate")
    reset(table, "gate")
    assert table.changes.head is None
    assert not table.changes._sums
    stop(table)
    assert not list(tmp_path.iterdir())
