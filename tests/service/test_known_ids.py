"""Answers known by their image's id: the last so many, over kills, torn files and full disks."""

import hashlib
import math
import os
import pickle
import random
import resource
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from service import known_ids
from service.events import Events
from service.known_ids import FILE, RECORD, KnownIds

CLASSES = tuple("abcdefghij")


@pytest.fixture
def events():
    return Events()


@pytest.fixture
def make(events, tmp_path):
    """Make rings on one file, each after the one before is closed; the last closes in the end.

    As the state folder's lease has it: two that write one file spoil it.
    """
    made = []

    def known(capacity=100, names=CLASSES, path=tmp_path / FILE):
        for one in made:
            one.close()
        made.append(KnownIds(capacity, names, path, events))
        return made[-1]

    yield known
    for one in made:
        one.close()


def outcome(ids, name, label, stream="s"):
    return ids.give(stream, name, label)[0]


def kinds(events):
    return [event["event"] for event in events]


def test_a_label_is_held_against_the_answer(make):
    """Right or wrong, once; the first label of an answer stays, whichever way it came."""
    ids = make()
    ids.remember("s", "right", 3, None)
    ids.remember("s", "wrong", 3, None)
    ids.remember("s", "told", 3, 4)
    assert ids.give("s", "right", 3)[:3] == ("taken", True, None)
    assert ids.give("s", "wrong", 4)[:3] == ("taken", False, None)
    assert ids.give("s", "wrong", 4)[0] == "repeated"
    assert ids.give("s", "wrong", 3)[0] == "contradicting"
    assert ids.give("s", "told", 4)[0] == "repeated"
    assert ids.give("s", "told", 3)[0] == "contradicting"
    assert ids.give("s", "nobody", 3)[0] == "unknown"


def test_an_id_is_of_its_stream_and_of_its_latest_answer(make):
    """The same in two streams is two; used again in one, it is the later image's."""
    ids = make()
    ids.remember("a", "1", 1, None)
    ids.remember("b", "1", 2, None)
    ids.remember("ab", "", 5, None)
    ids.remember("a", "1", 7, None)
    assert ids.give("b", "1", 2)[:3] == ("taken", True, None)
    assert ids.give("a", "1", 7)[:3] == ("taken", True, None)
    assert ids.give("a", "b", 5)[0] == "unknown"


def test_the_last_of_all_streams_together_are_known(make):
    """An hour is as many ids: the one that has just left is unknown, the oldest left is not."""
    ids = make(capacity=10)
    for number in range(25):
        ids.remember(f"camera-{number % 3}", str(number), number % 10, None)
    assert len(ids) == 10
    assert ids.give("camera-2", "14", 4)[0] == "unknown"
    assert ids.give("camera-0", "15", 5)[:3] == ("taken", True, None)


def test_the_confidence_of_an_answer_is_known_with_it(make, tmp_path):
    """To half a thousandth, over a restart, with a late label; it takes no place of its own."""
    ids = make()
    given = {"low": 0.001, "half": 0.5, "odd": 0.7123, "sure": 0.99987, "above": 1.0000001}
    for name, confidence in given.items():
        ids.remember("s", name, 3, None, confidence)
    assert ids.give("s", "odd", 3)[2] == pytest.approx(0.7123, abs=0.0005)
    ids = make()
    for name, confidence in given.items():
        outcome, right, known, *_ = ids.give("s", name, 3)
        assert (outcome, right) == ("repeated" if name == "odd" else "taken", True)
        assert known == pytest.approx(min(confidence, 1), abs=0.0005)
    ids.close()
    assert (tmp_path / FILE).stat().st_size == 6 * 40 + 40


def test_files_of_former_versions_are_read(make, tmp_path):
    """They have the same bytes, with nothing in the upper bits of a number."""
    path = written(make(), tmp_path)
    numbers = np.fromfile(path, RECORD, offset=RECORD.itemsize)["number"]
    assert numbers[1:].tolist() == list(range(1, 41))
    assert make().give("s", "7", 7)[:3] == ("taken", True, None)


@pytest.mark.parametrize("confidence", [1.5, -0.5, math.nan, math.inf])
def test_a_confidence_that_none_can_be_is_not_taken_up(make, tmp_path, confidence):
    """One such number would spoil a sum for ever; a file may be anybody's."""
    path = written(make(), tmp_path, count=1)
    header, records = path.read_bytes()[:40], np.fromfile(path, RECORD, offset=40)
    half = int(np.float16(confidence).view(np.uint16))
    records["number"][1:] |= np.uint64(half << 48).astype(np.int64)
    records["check"] = known_ids._checks(records)
    path.write_bytes(header + records.tobytes())
    assert len(make()) == 0


class Model:
    """The same as a list: slow, and plainly right."""

    def __init__(self):
        self.answers = []

    def keep(self, capacity):
        self.answers = self.answers[-capacity:]

    def give(self, stream, name, label):
        for answer in reversed(self.answers):
            if answer[:2] == [stream, name]:
                if answer[3] is None:
                    answer[3] = label
                    return "taken"
                return "repeated" if answer[3] == label else "contradicting"
        return "unknown"


@pytest.mark.parametrize("seed", range(6))
def test_it_agrees_with_a_list_over_restarts_and_other_capacities(make, seed):
    """Few places and names, so that buckets are shared, ids come again, and all wraps round."""
    chance, model, capacity, seen = random.Random(seed), Model(), 8, set()
    ids = make(capacity)
    for _ in range(4000):
        stream, name = chance.choice("ab"), str(chance.randrange(12))
        label = chance.randrange(3)
        if chance.random() < 0.5:
            answer, given = chance.randrange(10), chance.choice([None, None, label])
            ids.remember(stream, name, answer, given)
            model.answers.append([stream, name, answer, given])
            model.keep(capacity)
        else:
            expected = model.give(stream, name, label)
            assert outcome(ids, name, label, stream) == expected
            seen.add(expected)
        if chance.random() < 0.01:
            ids.close()
            capacity = chance.choice([1, 3, 8, 8, 8, 20])
            ids = make(capacity)
            model.keep(capacity)
            assert len(ids) == len(model.answers)
            ids.remember("a", "0", 0, None)  # with which the file has the new capacity
            model.answers.append(["a", "0", 0, None])
            model.keep(capacity)
    assert seen == {"taken", "unknown", "repeated", "contradicting"}


def test_nothing_is_written_for_images_without_ids(make, tmp_path):
    """No file before the first id."""
    make().close()
    assert list(tmp_path.iterdir()) == []


def written(ids, tmp_path, count=40):
    for number in range(count):
        ids.remember("s", str(number), number % 10, None)
    ids.close()
    return tmp_path / FILE


@pytest.mark.parametrize("seed", range(8))
def test_what_is_damaged_is_unknown_and_never_wrong(make, tmp_path, events, seed):
    """A bit, a piece, the end: each record tells by itself whether it is whole."""
    chance = random.Random(seed)
    whole = written(make(), tmp_path).read_bytes()
    for _ in range(20):
        damaged = bytearray(whole)
        at = chance.randrange(RECORD.itemsize, len(whole))
        match chance.randrange(3):
            case 0:
                damaged[at] ^= 1 << chance.randrange(8)
            case 1:
                damaged[at : at + 60] = chance.randbytes(len(damaged[at : at + 60]))
            case 2:
                del damaged[at:]
        (tmp_path / FILE).write_bytes(damaged)
        ids = make()
        outcomes = [ids.give("s", str(number), number % 10)[:3] for number in range(40)]
        assert set(outcomes) <= {("taken", True, None), ("unknown", False, None)}
        intact = max(0, at // RECORD.itemsize - 2)  # behind the header, number 1 in place 1
        assert outcomes[:intact] == [("taken", True, None)] * intact
        assert len(ids) < 40
        ids.close()
    assert kinds(events) == []


def a_pickle(path):
    class Touch:
        def __reduce__(self):
            return os.system, (f"touch {path.parent}/executed",)

    path.write_bytes(pickle.dumps(Touch()))


def with_a_long_end(path):
    path.write_bytes(path.read_bytes() + bytes(10_000))


def header(capacity):
    names_hash = hashlib.blake2b("\0".join(CLASSES).encode(), digest_size=8).digest()
    head = b"ttc-ids1" + capacity.to_bytes(8, "little") + names_hash + bytes(16)
    return lambda path: path.write_bytes(head + bytes(400))


FOREIGN = {
    "no capacity": header(0),
    "a capacity without end": header(2**64 - 1),
    "more than fits": header(9),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(random.Random(1).randbytes(5000)),
    "a pickle": a_pickle,
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "longer than it says": with_a_long_end,
    "not to be read": lambda path: path.chmod(0),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_ours_is_set_aside_with_a_sentence(make, tmp_path, events, kind):
    """It is kept as it was, executed never, and ids are known and saved from now on."""
    if kind == "not to be read" and os.geteuid() == 0:
        pytest.skip("root may read anything")
    if kind in ("longer than it says", "not to be read"):
        written(make(), tmp_path)
    FOREIGN[kind](tmp_path / FILE)
    before = (tmp_path / FILE).lstat().st_ino
    ids = make()
    assert kinds(events) == ["rejected"]
    assert (tmp_path / "feedback.rejected").lstat().st_ino == before
    assert not (tmp_path / "executed").exists()
    ids.remember("s", "new", 4, None)
    ids.close()
    assert make().give("s", "new", 4)[:3] == ("taken", True, None)


def test_the_header_that_others_are_told_by_is_the_right_one(make, tmp_path, events):
    """With a capacity that fits, it is taken for ours."""
    header(10)(tmp_path / FILE)
    assert len(make()) == 0
    assert kinds(events) == []


def test_ids_of_a_model_with_other_classes_are_set_aside(make, tmp_path, events):
    """Its class 3 is another thing; a second file finds a name of its own."""
    written(make(), tmp_path)
    assert outcome(make(names=("x", "y")), "3", 1) == "unknown"
    written(make(names=("x", "y")), tmp_path, count=2)
    make()
    assert kinds(events) == ["rejected", "rejected"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "feedback.rejected",
        "feedback.rejected.1",
    }


def test_what_cannot_be_set_aside_is_not_written_over(make, tmp_path, events, monkeypatch):
    """It may be somebody's; labels count all the same, until the restart."""
    (tmp_path / FILE).write_bytes(b"somebody's")

    def fails(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(known_ids, "set_aside", fails)
    ids = make()
    ids.remember("s", "new", 4, None)
    assert ids.give("s", "new", 4)[:3] == ("taken", True, None)
    ids.close()
    assert (tmp_path / FILE).read_bytes() == b"somebody's"
    assert kinds(events) == ["rejected"]


def test_a_folder_that_vanishes_and_comes_back_has_them_all(make, tmp_path, events, monkeypatch):
    """Meanwhile labels count; an event says that nothing is saved, and saving resumes by itself."""
    monkeypatch.setattr(known_ids, "RETRY_SECONDS", 0.0)
    folder = tmp_path / "state"
    ids = make(path=folder / FILE)
    ids.remember("s", "1", 1, None)
    wait_for(lambda: (folder / FILE).exists())
    (folder / FILE).unlink()
    folder.rmdir()
    folder.write_text("in its place")
    ids.remember("s", "2", 2, None)
    wait_for(lambda: "ids_not_saved" in kinds(events))
    assert ids.give("s", "2", 2)[:3] == ("taken", True, None)
    folder.unlink()
    ids.remember("s", "3", 3, None)
    ids.close()
    again = make(path=folder / FILE)
    assert [outcome(again, name, int(name)) for name in "123"] == ["taken", "repeated", "taken"]


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def test_a_full_disk_costs_no_answer_and_is_made_up_for(make, tmp_path, events, monkeypatch):
    """What could not be written is written once there is room."""
    monkeypatch.setattr(known_ids, "RETRY_SECONDS", 0.0)
    ids = make()
    ids.remember("s", "0", 0, None)
    wait_for(lambda: (tmp_path / FILE).exists())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * RECORD.itemsize, hard))
    try:
        for number in range(1, 10):
            ids.remember("s", str(number), number, None)
        wait_for(lambda: "ids_not_saved" in kinds(events))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(ids) == 10
    ids.close()
    again = make()
    assert [outcome(again, str(number), number) for number in range(10)] == ["taken"] * 10


KILLED = """
    import os, signal, sys, time
    from itertools import count
    from pathlib import Path
    from service.events import Events
    from service.known_ids import KnownIds

    path, classes, events = Path(sys.argv[1]), tuple("abcdefghij"), Events()

    def work(progress):
        ids = KnownIds(2000, classes, path, Events())
        for number in count():
            ids.remember("s", str(number), number % 10, None)
            ids.give("s", str(number // 2), number // 2 % 10)
            if path.exists():
                os.pwrite(progress, b"%12d" % number, 0)

    for moment in range(20):
        progress = os.open(path.with_suffix(".progress"), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if (worker := os.fork()) == 0:
            work(progress)
        while not (said := os.pread(progress, 12, 0)):
            time.sleep(0.001)
        time.sleep(moment * 0.0037)
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        reached = int(os.pread(progress, 12, 0))
        ids = KnownIds(2000, classes, path, events)
        assert len(ids) > 0
        given = [ids.give("s", str(n), n % 10) for n in range(reached + 2)]
        assert all(right for outcome, right, *_ in given if outcome != "unknown")
        assert sum(outcome != "unknown" for outcome, *_ in given) == len(ids)
        ids.close()
        path.unlink()
    assert not list(events)
    print("all was right")
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_file_that_tells_no_lies(tmp_path):
    """Every answer that is known is the one that was given, under the id that it was given."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / FILE)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert told.stdout == "all was right\n", told.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"feedback.progress", f"{FILE}.part"}


def test_any_thread_may_remember_and_give(make):
    """Each label counts once, however many bring it at the same moment."""
    ids = make(capacity=10_000)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work(worker):
        for number in range(500):
            ids.remember(f"s{worker}", str(number), number % 10, None)
        return [ids.give("s0", str(number), number % 10)[0] for number in range(500)]

    try:
        work(0)
        with ThreadPoolExecutor(4) as pool:
            outcomes = [one for many in pool.map(work, range(1, 5)) for one in many]
    finally:
        sys.setswitchinterval(interval)
    assert set(outcomes) == {"repeated"}
    assert len(ids) == 2500


MEMORY = """
    import sys
    from pathlib import Path
    from service.events import Events
    from service.known_ids import KnownIds

    def resident():
        return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

    before = resident()
    ids = KnownIds(1_000_000, tuple("abcdefghij"), None, Events())
    empty = resident() - before
    for number in range(1_200_000):
        ids.remember("camera", f"frame-{number}", number % 10, None)
    print(empty, (resident() - before) / len(ids))
"""


@pytest.mark.slow
def test_a_million_ids_take_less_than_sixty_bytes_each():
    """And an empty ring takes nothing: the bound is paid for by who uses it."""
    command = [sys.executable, "-c", textwrap.dedent(MEMORY)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=170).stdout
    empty, bytes_each = map(float, told.split())
    assert empty < 1 << 20
    assert bytes_each < 60


def test_a_million_ids_take_forty_bytes_each_in_the_file(make, tmp_path):
    """The file does not grow beyond its ring."""
    ids = make(capacity=500)
    written(ids, tmp_path, count=1700)
    assert (tmp_path / FILE).stat().st_size == 501 * RECORD.itemsize == 501 * 40


def test_nobody_can_look_for_two_ids_that_are_taken_for_one(make, tmp_path):
    """The hash has a key of its own in each folder, and 128 bits."""
    first, second = make(path=tmp_path / "a"), make(path=tmp_path / "b")
    assert first._hash("s", "1")[0] != second._hash("s", "1")[0]
    assert len(first._hash("s", "1")[0]) == 16
    assert Path(tmp_path / "a").exists() is False
