"""Leases in a folder that processes share: one owner a stream, and nobody writes over another."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from service import leases as module
from service import member
from service.leases import LeaseBusy, LeaseLost, Leases
from service.member import FOLDER, FORGOTTEN_AFTER, NotTheFolder

SHORT = 0.2


@pytest.fixture
def make(tmp_path):
    """Processes that share a folder; each is closed in the end."""
    made = []

    def leases(owner, seconds=60.0, **more):
        made.append(Leases(tmp_path, owner, lease_seconds=seconds, **more))
        return made[-1]

    yield leases
    for each in made:
        each.close()


def lease_of(folder, stream):
    return folder / FOLDER / "streams" / f"{stream}.lease"


def sleep_through(leases, monkeypatch, *others):
    """Have a process not be heard of for longer than its lease, as others see."""
    for each in others:
        each.member.look_around()
    clock, asleep = member.clock, 2 * leases.member.lease_seconds
    monkeypatch.setattr(member, "clock", lambda: clock() + asleep)
    # It is the same machine: its lock alone would tell that it lives.
    monkeypatch.setattr(member, "_is_free", lambda _: False)


def test_a_stream_has_one_owner(make):
    """Who comes second is told whose it is; streams do not know of one another."""
    a, b = make("a"), make("b")
    assert a.claim("gate") is None
    assert b.claim("gate") == "a"
    assert b.claim("yard") is None
    assert (a.holds("gate"), b.holds("gate"), a.holds("yard")) == (True, False, False)
    assert a.claim("gate") is None  # once more is nothing new
    with a.writing("gate"):
        pass
    with pytest.raises(LeaseLost), b.writing("gate"):
        pytest.fail("it wrote")


def test_a_stream_that_is_released_is_anybodys_at_once(make):
    """Handed over, it is not waited for; and may come back, under another epoch each time."""
    a, b = make("a"), make("b")
    a.claim("gate")
    first = a._owned["gate"]
    a.release("gate")
    assert not a.holds("gate")
    assert b.claim("gate") is None
    b.release("gate")
    assert a.claim("gate") is None
    assert a._owned["gate"] > first + 1


def test_who_ends_gives_all_up(make):
    """Without a wait."""
    a, b = make("a"), make("b")
    a.claim("gate")
    a.close()
    assert b.claim("gate") is None
    with pytest.raises(FileNotFoundError):
        a.claim("gate")


def test_a_lease_is_taken_over_when_it_expires_and_not_before(make, monkeypatch):
    """A process on another machine, which says nothing, keeps its streams for one lease."""
    monkeypatch.setattr(member, "_is_free", lambda _: False)
    a, b = make("a", SHORT), make("b", SHORT)
    began = time.monotonic()
    a.claim("gate")
    while b.claim("gate") == "a":
        b.beat()
        time.sleep(0.01)
    assert SHORT <= time.monotonic() - began < 10 * SHORT


def test_who_beats_keeps_its_streams(make, monkeypatch):
    """For many leases' lengths."""
    monkeypatch.setattr(member, "_is_free", lambda _: False)
    a, b = make("a", SHORT), make("b", SHORT)
    a.claim("gate")
    a.keep_beating()
    until = time.monotonic() + 4 * SHORT
    while time.monotonic() < until:
        assert b.claim("gate") == "a"
        assert a.holds("gate")
        time.sleep(0.02)


def test_who_slept_longer_than_its_lease_cannot_write_over_who_came_after(make, monkeypatch):
    """It finds out at its next write, at its next beat, and at its next request."""
    for find_out in ("write", "beat", "claim"):
        lost = []
        a, b = make(f"a-{find_out}", on_lost=lost.append), make(f"b-{find_out}")
        stream = f"gate-{find_out}"
        a.claim(stream)
        sleep_through(a, monkeypatch, b)
        assert not a.holds(stream)  # before it has looked
        assert b.claim(stream) is None
        if find_out == "write":
            with pytest.raises(LeaseLost, match=f"is {b.owner}'s by now"), a.writing(stream):
                pytest.fail("it wrote")
        elif find_out == "beat":
            a.beat()
        else:
            assert a.claim(stream) == b.owner
        assert lost == [stream]
        assert not a.owns(stream)
        with b.writing(stream):
            pass


def test_who_slept_and_lost_nothing_goes_on(make, monkeypatch):
    """Nobody came: its streams are its own, and it may write."""
    a = make("a")
    a.claim("gate")
    sleep_through(a, monkeypatch)
    with a.writing("gate"):
        pass
    a.beat()
    assert a.holds("gate")


def test_an_old_epoch_is_no_title(make, monkeypatch):
    """A stream that came back is written under its new epoch alone."""
    a, b = make("a"), make("b")
    a.claim("gate")
    old = a._owned["gate"]
    a.release("gate")
    b.claim("gate")
    b.release("gate")
    a.claim("gate")
    a._owned["gate"] = old
    with pytest.raises(LeaseLost), a.writing("gate"):
        pytest.fail("it wrote")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"owner": "a", "epo', id="cut"),
        pytest.param(b"\x00" * 30, id="zeros"),
        pytest.param(b"[1]", id="no-object"),
        pytest.param(b'{"owner": 1, "epoch": "x"}', id="other-kinds"),
    ],
)
def test_a_damaged_lease_is_nobodys(make, tmp_path, damage):
    """Who asks first has the stream; who had it can write no more, until it asks again."""
    a, b = make("a"), make("b")
    a.claim("gate")
    lease_of(tmp_path, "gate").write_bytes(damage)
    with pytest.raises(LeaseLost), a.writing("gate"):
        pytest.fail("it wrote")
    assert b.claim("gate") is None
    assert json.loads(lease_of(tmp_path, "gate").read_bytes())["owner"] == "b"
    assert a.claim("gate") == "b"


def test_a_folder_that_is_not_mounted_any_more_is_not_made_anew(make, tmp_path):
    """Nobody goes on by itself on what lies below; with the folder streams are there again."""
    a = make("a", SHORT)
    b = Leases(tmp_path, "b", fleet=a.member.fleet, lease_seconds=SHORT)
    a.claim("gate")
    (tmp_path / FOLDER).rename(tmp_path / "elsewhere")
    for each in (a, b):
        with pytest.raises(NotTheFolder, match="not the folder of this fleet"):
            each.claim("gate")
    time.sleep(SHORT)
    assert not a.holds("gate")
    assert not (tmp_path / FOLDER).exists()
    (tmp_path / "elsewhere").rename(tmp_path / FOLDER)
    assert a.claim("gate") is None
    assert b.claim("gate") == "a"
    b.close()


def test_another_folder_at_the_same_place_is_not_the_fleets(make, tmp_path):
    """A machine that has not mounted it; where one says which it has to be none is made."""
    fleet = make("a").member.fleet
    for place in ("empty", "other"):
        (tmp_path / place).mkdir()
    Leases(tmp_path / "other", "door").close()
    for place in ("empty", "other", "none"):
        with pytest.raises(NotTheFolder):
            Leases(tmp_path / place, "b", fleet=fleet)
    assert not (tmp_path / "none").exists()
    assert not list((tmp_path / "empty").iterdir())


def test_who_stalls_in_the_midst_of_a_beat_looks_whose_its_streams_are(make, monkeypatch):
    """A file system that hangs while a lease expires: the next beat tells, without a write."""
    lost = []
    a, b = make("a", on_lost=lost.append), make("b")
    a.claim("gate")
    utime = os.utime

    def stall(file, *more):
        if file == a.member._alive and not lost and not b.owns("gate"):
            sleep_through(a, monkeypatch, b)
            assert b.claim("gate") is None
        utime(file, *more)

    monkeypatch.setattr(member.os, "utime", stall)
    a.beat()
    assert lost == ["gate"]
    assert not a.owns("gate")


def test_a_machine_that_was_paused_with_all_its_clocks_looks(make):
    """The folder's clock went on meanwhile."""
    lost = []
    a, b = make("a", on_lost=lost.append), make("b")
    a.claim("gate")
    past = time.time() - 2 * a.member.lease_seconds
    os.utime(a.member._alive, (past, past))
    modified, long_ago = (
        os.fstat(a.member._alive).st_mtime_ns,
        member.clock() - 2 * b.member.lease_seconds,
    )
    b.member._seen["a"] = member.Seen(modified, long_ago)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(member, "_is_free", lambda _: False)
        assert b.claim("gate") is None
    a.beat()
    assert lost == ["gate"]


@pytest.mark.parametrize("step", [pytest.param(3600, id="on"), pytest.param(-3600, id="back")])
def test_a_folder_whose_clock_is_set_takes_no_stream_from_anybody(make, monkeypatch, step):
    """Who lives keeps its streams; who is gone loses them after one lease, not after an hour."""
    monkeypatch.setattr(member, "_is_free", lambda _: False)
    a, b = make("a"), make("b")
    a.claim("gate")
    b.member.look_around()
    moment = time.time() + step
    os.utime(a.member._alive, (moment, moment))
    assert b.claim("gate") == "a"
    sleep_through(a, monkeypatch, b)
    assert b.claim("gate") is None


def test_of_a_stream_of_which_nothing_is_kept_no_lease_is_left(make, tmp_path):
    """Names that are asked for once leave nothing; whoever waits for the lock has the stream."""
    a, b = make("a"), make("b")
    for number in range(50):
        a.claim(f"s{number}")
        a.release(f"s{number}", is_kept=False)
    assert not list((tmp_path / FOLDER / "streams").iterdir())
    assert not a.owned()
    a.claim("gate")
    with ThreadPoolExecutor(1) as pool:
        with a.writing("gate"):
            waiting = pool.submit(b.claim, "gate")
            time.sleep(0.05)
        a.release("gate", is_kept=False)
        assert waiting.result() in (None, "a")
    assert b.claim("gate") is None
    with b.writing("gate"), pytest.raises(LeaseLost):  # noqa: SIM117
        with a.writing("gate"):
            pytest.fail("it wrote")


def test_a_lease_does_not_grow_when_it_changes_hands(make, tmp_path):
    """Streams that are there move on a full disk too, and none is ever half written."""
    a, b = make("a"), make("b" * 40)
    a.claim("gate")
    size = lease_of(tmp_path, "gate").stat().st_size
    for each in (a, b, a, b):
        each.claim("gate")
        assert lease_of(tmp_path, "gate").stat().st_size == size
        each.release("gate")
        assert lease_of(tmp_path, "gate").stat().st_size == size


def test_slots_are_those_of_the_living(make):
    """Each has a number of its own; the next who comes has that of whoever ended."""
    a, b, c = make("a"), make("b"), make("c")
    assert [each.member.slot() for each in (a, b, c)] == [0, 1, 2]
    b.close()
    assert make("d").member.slot() == 1


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path):
    """Where leases cannot be, nothing is shared."""
    if os.getuid() == 0:
        (tmp_path / FOLDER).write_text("a file where the folder should be")
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(OSError):  # noqa: PT011  # of several kinds
        Leases(tmp_path, "a")


def test_names_that_are_no_names_of_files(make, tmp_path):
    """A stream may be called as a folder's entry is, an owner as a path; both stay in place."""
    a = make("host/../1")
    for stream in ("..", ".", "a:b"):
        assert a.claim(stream) is None
        with a.writing(stream):
            pass
    assert not (tmp_path.parent / "1").exists()


def test_who_locks_a_lease_for_too_long_keeps_others_out(make, monkeypatch):
    """A process that sleeps in the midst of writing: nobody writes beside it, and all are told."""
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.05)
    a, b = make("a"), make("b")
    a.claim("gate")
    with a.writing("gate"), pytest.raises(LeaseBusy, match="stream gate is locked"):
        b.claim("gate")
    assert b.claim("gate") == "a"


def test_of_many_that_ask_at_once_one_has_it(make):
    """Threads stand for processes: each has its own lock."""
    all_of = [make(f"p{number}") for number in range(8)]
    for round_ in range(10):
        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(lambda each: each.claim(f"s{round_}"), all_of))  # noqa: B023
        assert said.count(None) == 1
        owner = all_of[said.index(None)].owner
        assert {each for each in said if each} == {owner}


def test_a_process_that_is_killed_loses_its_streams_at_once(make, tmp_path):
    """On the same machine its lock tells; a process that is only stopped keeps them meanwhile."""
    code = (
        "import sys, time; from pathlib import Path; from service.leases import Leases\n"
        "leases = Leases(Path(sys.argv[1]), 'child'); leases.claim('gate')\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "ready\n"
        b = make("b")
        child.send_signal(signal.SIGSTOP)
        assert b.claim("gate") == "child"
        child.kill()
        child.wait()
        assert b.claim("gate") is None
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


COUNT = """
import sys
from pathlib import Path
from service.leases import Leases
folder, owner, done = Path(sys.argv[1]), sys.argv[2], 0
leases, counted = Leases(folder, owner), folder / "counted"
while done < 100:
    if leases.claim("gate") is None:
        with leases.writing("gate"):  # the file has no lock of its own
            counted.write_text(str(int(counted.read_text()) + 1))
        leases.release("gate")
        done += 1
leases.close()
"""


def test_processes_take_turns(tmp_path):
    """What three processes count under the lease is counted right."""
    (tmp_path / "counted").write_text("0")
    processes = [
        subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path), f"p{number}"])
        for number in range(3)
    ]
    assert [each.wait(60) for each in processes] == [0, 0, 0]
    assert (tmp_path / "counted").read_text() == "300"


def test_files_of_processes_long_gone_are_removed(make, tmp_path, monkeypatch):
    """And those of others are left."""
    living, new = make("living"), make("new")
    old = tmp_path / FOLDER / "owners" / "old"
    old.write_text("{}")
    new.member.look_around()
    clock = member.clock
    monkeypatch.setattr(member, "clock", lambda: clock() + FORGOTTEN_AFTER * 60)
    living.beat()
    new.member.look_around()
    assert {path.name for path in old.parent.iterdir()} == {"living", "new"}
