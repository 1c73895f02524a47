"""The log of changes of a real server: it tells a camera's story, and shows who touched it."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch

from service.changes import changes as changes_module
from service.changes import verifying
from service.changes.lines import encoded
from service.replay import to_png
from tests.fixtures.networks import make_model
from tests.fixtures.requests import ask
from ttc_core.datasets import Geometry, open_data
from ttc_core.guard import watched
from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods import create
from ttc_core.methods.contract import Prediction
from ttc_core.state import save_state

ONLY = 3


class Collapsing(Wrapper):
    """Answers one class, for sure, once its stream has had some images."""

    healthy, images = 10, 0

    def predict(self, images, *, learn=True, **asked):
        said = self.inner.predict(images, learn=learn, **asked)
        if self.images < self.healthy:
            return said
        wrong = Prediction.of(20 * torch.eye(self.model.classes)[[ONLY] * len(images)])
        return replace(
            said, logits=wrong.logits, probabilities=wrong.probabilities, entropy=wrong.entropy
        )

    def adapt(self, prediction, *, learn=True):
        self.images += len(prediction)
        return self.inner.adapt(prediction, learn=learn)


@pytest.fixture(scope="module")
def folder(serve, model, tmp_path_factory):
    """Of a server that ran twice: images, a roll back, a reset, a hold, a restart."""
    folder = tmp_path_factory.mktemp("states")
    stream = open_data("bundled", Geometry(32)).open("clean", 5, limit=120)
    pictures = [to_png(pixels) for pixels in stream.read(stream.positions)]

    def running(max_batch):
        inner = create("ttc", model, statistics="moving", samples_per_step=10)
        return serve(source=watched(Collapsing(inner), "on"), state_dir=folder, max_batch=max_batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ttc_core.guard.guarded.SNAPSHOT_EVERY", 10)
        patch.setattr(changes_module, "FLUSH_SECONDS", 0.05)
        patch.setattr(Collapsing, "healthy", 1000)
        with running(10) as first:
            follow(first, pictures[:40], "gate")
            follow(first, pictures[:10], "yard")
            first.at_rest()
            assert first.http.post("/rollback?stream=gate").status_code == 200
            assert first.http.post("/reset?stream=gate").status_code == 200
            head = first.wait_for(lambda: first.status()["changes"])
            line = first.metric("ttc_changes_line")
            samples = first.http.get("/metrics").text
            number = re.search(r"^ttc_changes_head (\S+)$", samples, re.MULTILINE)[1]
            assert first.metric("ttc_changes_lost_total") == 0
        patch.setattr(Collapsing, "healthy", 10)
        with running(20) as second:
            follow(second, pictures, "gate")
            second.at_rest()
    assert line >= head["line"] > 0
    return folder, number


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Nobody writes meanwhile: nothing is waited for before it is looked at again."""
    monkeypatch.setattr(verifying, "AGAIN_SECONDS", 0.0)


def follow(running, images, stream):
    for at in range(0, len(images), 10):
        ask(running, images[at : at + 10], params={"stream": stream})


def test_the_story_of_a_camera_has_all_that_was_done(ttc, folder):
    """In its order, and nothing of another's."""
    status, out, _ = ttc("changes", "show", "--state-dir", folder[0], "--stream", "gate", "--json")
    assert status == 0
    told = [json.loads(line) for line in out.splitlines()]
    assert {each.get("stream", "gate") for each in told} == {"gate"}
    kinds = [each["event"] for each in told if each["event"] not in ("save", "removed")]
    assert kinds[:5] == ["started", "steps", "roll_back", "reset", "stopped"]
    assert kinds[5] == "started"
    assert "hold" in kinds[6:]
    assert kinds[-2:] == ["steps", "stopped"]
    started, learned, back, reset = told[:4]
    assert (started["method"], started["model"]) == ("ttc", "bundled")
    assert started["settings"]["server"]["max_batch"] == 10
    assert (learned["images"], learned["batches"], learned["version_before"]) == (40, 4, 0)
    assert back["version_before"] == learned["version"] >= back["version"]
    assert (back["by"], reset["by"], reset["version_before"]) == (
        *("request", "request"),
        back["version"],
    )
    hold = next(each for each in told if each["event"] == "hold")
    assert (hold["by"], hold["reason"]) == ("guard", "suspicion")
    assert hold["evidence"]


def test_the_story_is_told_in_rows(ttc, folder):
    """On whole lines, as a pipe takes them."""
    status, out, _ = ttc("changes", "show", "--state-dir", folder[0], "--stream", "gate")
    assert status == 0
    assert "server.max_batch 10 → 20" in out
    for said in ("learned", "brought back", "reset", "held: the source answers", "not running"):
        assert said in out
    assert re.search(r"learned +40 +0 → \d+", out)
    assert "yard" not in out
    for since, expected in (("1h", "learned"), ("2000-01-01", "learned"), ("0s", "has nothing")):
        arguments = ("--stream", "gate", "--since", since)
        assert expected in ttc("changes", "show", "--state-dir", folder[0], *arguments)[1]


def test_the_streams_of_the_log_are_listed(ttc, folder):
    """A name that none has is a mistake, not a camera that was quiet."""
    status, out, _ = ttc("changes", "show", "--state-dir", folder[0])
    assert status == 0
    assert re.fullmatch(r"gate: \d+ lines\nyard: \d+ lines\n", out)
    status, _, error = ttc("changes", "show", "--state-dir", folder[0], "--stream", "nobody")
    assert status == 1
    assert "has nothing of stream nobody; it has gate, yard." in error


def test_what_nobody_touched_is_verified(ttc, folder):
    """With the head as /metrics has it, and as a whole number."""
    states, head = folder
    status, out, _ = ttc("changes", "verify", "--state-dir", states, "--metric", head)
    assert (status, "All is as it was written." in out) == (0, True), out
    assert "2 saved streams are as the log has them" in out
    assert re.search(r"^Note: line \d+ of the log has a hash that begins with ", out, re.MULTILINE)
    assert re.fullmatch(r"\d\.\d+e\+\d\d", head)
    number = int(float(head))
    assert ttc("changes", "verify", "--state-dir", states, "--metric", number)[0] == 0
    status, out, _ = ttc("changes", "verify", "--state-dir", states, "--metric", number - 1)
    assert (status, "No line has a hash that begins with" in out) == (1, True)
    last = json.loads((states / "changes.head").read_text())
    given = ("--state-dir", states, "--head", last["head"][:16], "--line")
    assert ttc("changes", "verify", *given, last["line"])[0] == 0
    status, out, _ = ttc("changes", "verify", *given, 3)
    assert (status, "Line 3 has not a hash that begins with" in out) == (1, True)


def in_the_log(lines, way):
    """Do something to the lines of a log of changes."""
    if way == "altered":
        lines[4] = lines[4].replace(b'"version":', b'"version":1')
    elif way == "cut in the middle":
        del lines[4]
    elif way == "tail cut":
        del lines[-1]
    elif way == "swapped":
        lines[3], lines[4] = lines[4], lines[3]
    elif way == "added":
        lines.insert(4, lines[3])
    elif way == "an older copy":
        del lines[8:]
    return lines


def among_streams(states, way):
    """Do something to the files of saved streams; what is then said of which."""
    gate, yard = states / "gate.safetensors", states / "yard.safetensors"
    saved = gate.read_bytes()
    if way == "state replaced":
        gate.write_bytes(saved[:-1] + bytes([saved[-1] ^ 1]))
        return "gate.safetensors is not what was saved last"
    if way == "states exchanged":
        gate.write_bytes(yard.read_bytes())
        yard.write_bytes(saved)
        return "yard.safetensors is of another stream, gate"
    if way == "state planted":
        (states / "door.safetensors").write_bytes(saved)
        return "door.safetensors is of another stream, gate"
    gate.unlink()
    return "gate.safetensors is not there; it was saved by line"


LINES = ("altered", "cut in the middle", "tail cut", "swapped", "added", "an older copy")
FILES = ("state replaced", "states exchanged", "state planted", "state removed")


@pytest.mark.parametrize("way", [*LINES, *FILES])
def test_what_was_done_to_it_is_told_with_its_place(ttc, folder, tmp_path, way):
    """The ways to tamper with a log, and with the streams that it is of: exit status 1."""
    states = tmp_path / "states"
    shutil.copytree(folder[0], states)
    log, said = states / "changes.jsonl", "changes.jsonl, line "
    if way in FILES:
        said = among_streams(states, way)
    else:
        lines = in_the_log(log.read_bytes().splitlines(keepends=True), way)
        log.write_bytes(b"".join(lines))
    if way == "an older copy":
        (states / "changes.head").unlink()
    if way in ("tail cut", "an older copy"):
        said = "changes.head"
    status, out, _ = ttc("changes", "verify", "--state-dir", states)
    assert (status, "WRONG: " in out, said in out) == (1, True, True), out
    assert "All is as it was written" not in out


def test_what_nothing_vouches_for_is_neither_right_nor_wrong(ttc, folder, tmp_path):
    """A stream of which the log has nothing, a line behind a head that nobody closed: status 3."""
    states = tmp_path / "states"
    shutil.copytree(folder[0], states)
    model = create("ttc", make_model())
    save_state(states / "door.safetensors", model, name="ttc", model="m")
    status, out, _ = ttc("changes", "verify", "--state-dir", states)
    assert (status, "All is as it was written" in out) == (3, False)
    assert "UNSURE: door.safetensors is nothing that the log has a line of" in out
    assert "Nothing vouches for: 1." in out
    (states / "door.safetensors").unlink()
    head = json.loads((states / "changes.head").read_text())
    line = encoded(head["line"] + 1, head["head"], {"time": 2e9, "event": "stopped"})
    with (states / "changes.jsonl").open("ab") as log:
        log.write(line + b"\n")
    assert ttc("changes", "verify", "--state-dir", states)[0] == 1  # it was closed
    (states / "changes.head").write_text(json.dumps({**head, "closed": False}))
    status, out, _ = ttc("changes", "verify", "--state-dir", states)
    assert status == 3
    assert f"nothing outside of the log vouches for line {head['line'] + 1:,}." in out


def test_wrong_use_is_answered_by_a_sentence(ttc, folder, tmp_path):
    states = folder[0]
    for arguments, expected, sentence in (
        (("verify", "--state-dir", states, "--head", "xyz"), 2, "--head takes 12 to 64 hex digits"),
        (
            ("verify", "--state-dir", states, "--head", "a" * 12, "--metric", "1"),
            *(2, "one is accepted"),
        ),
        (("verify", "--state-dir", states, "--metric", "0"), 2, "'--metric'"),
        (("verify", "--state-dir", states, "--line", "3"), 2, "--line takes the hash of that line"),
        (("verify", "--state-dir", tmp_path), 1, "There is no log of changes here"),
        (("verify",), 2, "--state-dir"),
        (("verify", "--state-dir", tmp_path / "none"), 1, "No such file or directory"),
        (("show", "--state-dir", states, "--stream", "a b"), 2, "--stream takes 1 to 64"),
        (("show", "--state-dir", tmp_path, "--stream", "a"), 1, "There is no log of changes in"),
        (
            ("show", "--state-dir", states, "--stream", "a", "--since", "noon"),
            *(1, "--since takes 90s"),
        ),
    ):
        status, out, error = ttc("changes", *arguments)
        assert (status, sentence in out + error) == (expected, True), (arguments, out, error)
        assert "Traceback" not in error
