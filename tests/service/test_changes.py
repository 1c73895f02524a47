"""The log of changes by itself: an untouched one always verifies, a touched one never does."""

import json
import os
import random
import resource
import shutil
import tempfile
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.changes import story
from service.changes.chain import Chain, read_head, write_head
from service.changes.files import Place, writers
from service.changes.lines import MOST_LINE_BYTES, decoded, digest, encoded
from service.changes.verifying import verify
from service.schemas import ChangesHead

TEXTS = st.text(max_size=20)
NUMBERS = st.integers() | st.floats(allow_nan=True, allow_infinity=True)
TOLD = st.fixed_dictionaries(
    {"event": TEXTS, "time": st.floats(0, 1e10)},
    optional={
        "stream": TEXTS,
        "images": NUMBERS,
        "reason": TEXTS,
        "evidence": st.dictionaries(TEXTS, NUMBERS, max_size=3),
    },
)
STREAMS = ("gate", "yard")


def event(number, **more):
    """A line as the service tells them."""
    return {"time": 1e9 + number, "event": "steps", "stream": STREAMS[number % 2], **more}


def written(folder, count, *, most_bytes=1000, most_files=1000, writer="", close=True, at_once=3):
    """Write so many lines in a few goes, over as many files as that takes."""
    chain = Chain(Place(folder, writer), most_bytes=most_bytes, most_files=most_files)
    for start in range(0, count, at_once):
        chain.append([event(number) for number in range(start, min(start + at_once, count))])
    chain.sync(closed=close)
    chain.close()


def verified(folder, **options):
    """What is wrong with it, looked at once."""
    return verify(folder, wait=lambda seconds: None, **options)


def is_whole(folder, **options):
    found = verified(folder, **options)
    return not found.defects and bool(found.logs)


@contextmanager
def folder_of(count, **options):
    with tempfile.TemporaryDirectory() as name:
        written(Path(name), count, **options)
        yield Path(name)


def logs(folder):
    return sorted(folder.glob("changes*.jsonl*"))


# Lines


@given(number=st.integers(1, 10**9), before=st.none() | st.just("ab" * 32), told=TOLD)
def test_a_line_says_what_it_was_told_in_one_form(number, before, told):
    """Whatever names and texts there are, on one line, and no other spelling is taken for it."""
    line = encoded(number, before, told)
    assert b"\n" not in line
    assert line.isascii()
    found = decoded(line)
    assert (found["line"], found["before"], found["event"]) == (number, before, told["event"])
    assert found.get("stream") == told.get("stream")
    with pytest.raises(ValueError, match="it is"):
        decoded(line.replace(b",", b", ", 1))
    with pytest.raises(ValueError, match="it is"):
        decoded(json.dumps(found).encode())


def test_a_line_too_long_tells_that():
    line = encoded(1, None, {**event(1), "reason": "x" * MOST_LINE_BYTES})
    found = decoded(line)
    assert len(line) < 500
    assert found["stream"] == "yard"
    assert found["cut"] > MOST_LINE_BYTES


# An untouched log


@given(
    told=st.lists(st.lists(TOLD, min_size=1, max_size=5), max_size=12),
    most_bytes=st.integers(300, 3000),
    most_files=st.integers(2, 6),
    restarts=st.sets(st.integers(0, 11)),
)
@settings(max_examples=30, deadline=None)
def test_what_nobody_touched_is_whole(told, most_bytes, most_files, restarts):
    """Over files, restarts, kills between two lines and files that were dropped to make room."""
    with tempfile.TemporaryDirectory() as name:
        folder, bounds = Path(name), {"most_bytes": most_bytes, "most_files": most_files}
        chain = Chain(Place(folder), **bounds)
        for number, lines in enumerate(told):
            chain.append(lines)
            if number % 3:
                chain.sync(closed=number in restarts)
            if number in restarts:
                chain.close()
                chain = Chain(Place(folder), **bounds)
        chain.close()
        found = verified(folder)
        assert not found.defects
        assert len(found.logs) == bool(told)
        assert len(logs(folder)) <= most_files
        for log in found.logs:
            assert log.last >= sum(map(len, told))


def test_it_goes_on_over_files_and_the_oldest_goes(tmp_path):
    """The numbers and hashes go on; what went is told, so that nobody else's removal is."""
    written(tmp_path, 40, most_bytes=1500, most_files=3)
    names = [path.name for path in logs(tmp_path)]
    assert names[0] == "changes.jsonl"
    assert len(names) == 3
    assert not (tmp_path / "changes.jsonl.000001").exists()
    found = verified(tmp_path)
    assert not found.defects
    assert any("were dropped, to make room" in str(each) for each in found.remarks)
    assert found.logs[0].first > 1
    logs(tmp_path)[1].unlink()
    assert not is_whole(tmp_path)


def test_writers_that_share_a_folder_have_a_log_each(tmp_path):
    for writer in ("", "a1", "b2"):
        written(tmp_path, 9, writer=writer)
    assert writers(tmp_path) == ["", "a1", "b2"]
    assert len(verified(tmp_path).logs) == 3
    assert is_whole(tmp_path)
    # One is no other's.
    shutil.copy(tmp_path / "changes-a1.jsonl", tmp_path / "changes-b2.jsonl")
    shutil.copy(tmp_path / "changes-a1.head", tmp_path / "changes-b2.head")
    assert not is_whole(tmp_path)


# A touched one


@given(seed=st.integers(0, 2**32), count=st.integers(1, 25))
@settings(max_examples=80, deadline=None)
def test_any_byte_that_is_altered_is_found(seed, count):
    chance = random.Random(seed)
    with folder_of(count) as folder:
        path = chance.choice(logs(folder))
        data = bytearray(path.read_bytes())
        at = chance.randrange(len(data))
        data[at] ^= chance.randrange(1, 256)
        path.write_bytes(data)
        assert not is_whole(folder)


def altered(lines, chance):
    at = chance.randrange(len(lines))
    lines[at] = lines[at].replace(b'"steps"', b'"stepz"').replace(b'"file"', b'"filE"')


def forged(lines, chance):
    """A line by whoever knows the form: with a number and a hash that would fit."""
    at = chance.randrange(len(lines))
    before = decoded(lines[at][:-1])
    line = encoded(before["line"] + 1, digest(lines[at][:-1]), event(7, images=10**6))
    lines.insert(at + 1, line + b"\n")


def replaced(lines, chance):
    """The same in another's place."""
    at = chance.randrange(len(lines))
    old = decoded(lines[at][:-1])
    line = encoded(old["line"], old["before"], {**event(8), "images": 10**6})
    lines[at] = line + b"\n"


def removed(lines, chance):
    del lines[chance.randrange(len(lines))]


def swapped(lines, chance):
    first, second = chance.sample(range(len(lines)), 2)
    lines[first], lines[second] = lines[second], lines[first]


def repeated(lines, chance):
    lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))


def cut(lines, chance):
    del lines[chance.randrange(len(lines)) :]


def junk(lines, chance):
    lines.insert(chance.randrange(len(lines) + 1), chance.choice([b"\n", b"{}\n", b"\xff\x00\n"]))


@pytest.mark.parametrize(
    "way",
    [altered, forged, replaced, removed, swapped, repeated, cut, junk],
    ids=lambda w: w.__name__,
)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 25), where=st.integers(0, 30))
@settings(max_examples=20, deadline=None)
def test_whatever_is_done_to_lines_is_found(way, seed, count, where):
    """In whichever file; each has two lines at least."""
    with folder_of(count) as folder:
        paths = logs(folder)
        path = paths[where % len(paths)]
        lines = path.read_bytes().splitlines(keepends=True)
        way(lines, random.Random(seed))
        path.write_bytes(b"".join(lines))
        assert not is_whole(folder)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_a_tail_cut_at_any_byte_is_found(seed, count):
    with folder_of(count) as folder:
        path = folder / "changes.jsonl"
        os.truncate(path, random.Random(seed).randrange(path.stat().st_size))
        assert not is_whole(folder)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_a_file_that_goes_or_changes_its_name_is_found(seed, count):
    with folder_of(count) as folder:
        paths, chance = logs(folder), random.Random(seed)
        if len(paths) > 1 and seed % 2:
            first, second = chance.sample(paths, 2)
            first.rename(folder / "aside")
            second.rename(first)
            (folder / "aside").rename(second)
        else:
            chance.choice(paths).unlink()
        assert not is_whole(folder)


@given(before=st.integers(1, 30), more=st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_an_older_copy_of_the_log_is_found(before, more):
    """By the head beside it; if that is of the copy, too, by a head that was kept elsewhere."""
    with folder_of(before) as folder, tempfile.TemporaryDirectory() as other:
        copy = Path(other) / "copy"
        shutil.copytree(folder, copy)
        kept_elsewhere = read_head(folder / "changes.head").head
        written(folder, more)
        assert is_whole(folder, head=kept_elsewhere[:13])
        last = read_head(folder / "changes.head").head
        for path in logs(folder):
            path.unlink()
        for path in logs(copy):
            shutil.copy(path, folder)
        assert not is_whole(folder)
        shutil.copy(copy / "changes.head", folder)
        assert is_whole(folder)
        assert is_whole(folder, head=kept_elsewhere)
        assert not is_whole(folder, head=last)


@pytest.mark.parametrize("way", ["gone", "empty", "damaged"])
def test_a_head_that_is_none_is_found(tmp_path, way):
    written(tmp_path, 5)
    head = tmp_path / "changes.head"
    head.unlink() if way == "gone" else head.write_text("" if way == "empty" else '{"line": 1}')
    assert not is_whole(tmp_path)


def test_the_next_start_tells_what_was_cut_before_it(tmp_path):
    """Else a cut and a restart would leave a log that is whole."""
    written(tmp_path, 12, most_bytes=10**6)
    path = tmp_path / "changes.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-4]))
    written(tmp_path, 12, most_bytes=10**6)
    (defect,) = verified(tmp_path).defects
    assert "changes.head knows line 13; the log ended at 9" in defect.sentence


def test_each_defect_is_told_with_its_file_and_line(tmp_path):
    """Once, however many lines follow."""
    written(tmp_path, 9, most_bytes=10**6)
    path = tmp_path / "changes.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b"yard", b"gate").replace(b"gate", b"yarD")
    path.write_bytes(b"".join(lines))
    (defect,) = verified(tmp_path).defects
    assert str(defect).startswith("changes.jsonl, line 5: altered")


def test_lines_that_changed_their_places_are_not_missing(tmp_path):
    """Those that are, are named, and how many."""
    written(tmp_path, 12, most_bytes=10**6)
    path = tmp_path / "changes.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    swapped = [*lines[:3], lines[4], lines[3], *lines[5:]]
    path.write_bytes(b"".join(swapped))
    (defect,) = verified(tmp_path).defects
    assert str(defect) == (
        "changes.jsonl, line 5: line 4 of the log follows line 5: it is in a wrong place."
    )
    path.write_bytes(b"".join([*swapped[:6], *swapped[9:]]))
    missing = verified(tmp_path).defects[-1]
    assert str(missing) == (
        "changes.jsonl, line 7: line 10 of the log follows line 6: lines 7 to 9 are missing."
    )


def test_a_log_of_other_bytes_is_told_once(tmp_path):
    """And not as one that is empty, too."""
    written(tmp_path, 12, most_bytes=10**6)
    (tmp_path / "changes.jsonl").write_bytes(b"\x00\xff" * 40_000)
    found = verified(tmp_path)
    assert [each.sentence for each in found.defects] == [
        "altered: 80,000 bytes are no line.",
        "The log was cut: changes.head knows its line 13, and it is gone.",
    ]
    assert not found.remarks


# Crashes, and disks that take nothing


@given(count=st.integers(1, 20), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_a_line_that_a_crash_tore_is_told_from_a_cut(count, seed):
    """What is behind the head may be torn anywhere: the next start keeps what is left, and says
    so."""
    with folder_of(count, most_bytes=10**6, close=False) as folder:
        path = folder / "changes.jsonl"
        synced = path.stat().st_size
        chain = Chain(Place(folder), most_bytes=10**6, most_files=10)
        chain.append([event(number) for number in range(3)])
        chain.close()
        size = random.Random(seed).randrange(synced, path.stat().st_size)
        # A head beyond what is left would be a power cut that broke its word.
        head = digest(path.read_bytes()[:synced].splitlines()[-1])
        known = ChangesHead(line=count + 1, head=head, closed=False)
        write_head(folder / "changes.head", known)
        os.truncate(path, size)
        torn = size - path.read_bytes().rfind(b"\n") - 1
        before = verified(folder)
        assert not before.defects
        assert any("no end, as after a crash" in str(each) for each in before.remarks) == bool(torn)
        written(folder, 2, most_bytes=10**6)
        after = verified(folder)
        assert not after.defects
        assert any("a crash tore a line" in str(each) for each in after.remarks) == bool(torn)


@pytest.mark.parametrize("fails", ["pwrite", "fsync"])
def test_a_full_disk_leaves_whole_lines_and_it_goes_on(tmp_path, monkeypatch, fails):
    """A line that was half written is taken back."""
    chain = Chain(Place(tmp_path), most_bytes=10**6, most_files=10)
    chain.append([event(1)])
    chain.sync()
    real = os.pwrite

    def full(descriptor, data=b"", at=0):
        if fails == "pwrite":
            real(descriptor, bytes(data[:7]), at)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, full)
        if fails == "fsync":
            chain.append([event(2)])
        with pytest.raises(OSError, match="No space"):
            chain.append([event(2)]) if fails == "pwrite" else chain.sync()
    chain.append([event(3)])
    chain.sync(closed=True)
    chain.close()
    assert is_whole(tmp_path)


def test_what_lies_in_the_place_of_the_log_is_kept(tmp_path):
    """And told, for it may be what is left of a log."""
    (tmp_path / "changes.jsonl").write_bytes(b"not a line\n")
    written(tmp_path, 3)
    assert (tmp_path / "changes.rejected").read_bytes() == b"not a line\n"
    (defect,) = verified(tmp_path).defects
    assert "did not end in a line; it is changes.rejected" in defect.sentence


@pytest.mark.parametrize("way", ["taken", "replaced"])
def test_a_log_that_is_taken_away_while_it_is_written_goes_on(tmp_path, way):
    """In another file, whose lines follow those that went; what was put in its place is kept, for
    it may be all that is left of the log: an editor, a backup, whoever tampers replaces files."""
    chain = Chain(Place(tmp_path), most_bytes=10**6, most_files=10)
    chain.append([event(1), event(2)])
    path = tmp_path / "changes.jsonl"
    written_before = path.read_bytes()
    if way == "replaced":
        (tmp_path / "copy").write_bytes(written_before)
        (tmp_path / "copy").replace(path)
    else:
        path.unlink()
    chain.append([event(3)])
    chain.sync(closed=True)
    chain.close()
    sentences = " ".join(map(str, verified(tmp_path).defects))
    assert "was taken away from its writer" in sentences
    assert "the files before it are gone" in sentences
    if way == "replaced":
        assert "what lay in its place is changes.rejected" in sentences
        assert (tmp_path / "changes.rejected").read_bytes() == written_before


def test_what_is_wrong_is_told_though_the_first_write_fails(tmp_path, monkeypatch):
    """A line that somebody added behind a closed log, and a disk that is full at the next start."""
    written(tmp_path, 2)
    path = tmp_path / "changes.jsonl"
    last = path.read_bytes().splitlines()[-1]
    forged = encoded(decoded(last)["line"] + 1, digest(last), event(7))
    path.write_bytes(path.read_bytes() + forged + b"\n" + b'{"torn')

    real = os.pwrite

    def full(descriptor, data, at):
        if bytes(data) == b'{"torn':  # it was there, and takes no room
            return real(descriptor, data, at)
        real(descriptor, bytes(data[:7]), at)
        raise OSError(28, "No space left on device")

    chain, descriptors = Chain(Place(tmp_path), most_bytes=10**6, most_files=10), open_files()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        for _ in range(5):
            with pytest.raises(OSError, match="No space"):
                chain.append([event(3)])
    assert open_files() == descriptors
    chain.append([event(3)])
    chain.sync(closed=True)
    chain.close()
    (defect,) = verified(tmp_path).defects
    assert "the log was closed at line 3, and went on to 4" in defect.sentence
    assert "6 bytes of it are kept here" in str(verified(tmp_path).remarks)


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_a_start_behind_a_head_that_nobody_closed_says_so(tmp_path):
    """Whoever adds a line after a kill has no hash to make anew: it stays told as not vouched for,
    and so does what a kill itself left there."""
    written(tmp_path, 2, close=False, most_bytes=10**6)
    assert verified(tmp_path).is_vouched_for
    path = tmp_path / "changes.jsonl"
    last = path.read_bytes().splitlines()[-1]
    forged = encoded(decoded(last)["line"] + 1, digest(last), event(7))
    path.write_bytes(path.read_bytes() + forged + b"\n")
    assert not verified(tmp_path).is_vouched_for
    written(tmp_path, 2, most_bytes=10**6)
    found = verified(tmp_path)
    assert not found.defects
    (unsure,) = found.unvouched
    said = "when changes.head named line 3: nothing outside of the log vouches for line 4."
    assert said in unsure.sentence


def test_a_line_that_no_line_can_tell_stops_none_behind_it(tmp_path):
    """A user's own method tells what it likes."""
    deep = {}
    for _ in range(3000):
        deep = {"a": deep}
    for odd in (deep, 10**5000, object(), {1: {2: float("inf")}}):
        line = encoded(1, None, {**event(1), "evidence": odd})
        assert decoded(line)["stream"] == "yard"


def test_numbers_that_jump_cost_nothing(tmp_path):
    """A file is read before anybody knows that it is none."""
    before, lines = None, []
    for number in range(1, 40):
        line = encoded(number << 30, before, event(number))
        before = digest(line)
        lines.append(line + b"\n")
    (tmp_path / "changes.jsonl").write_bytes(b"".join(lines))
    tracemalloc.start()
    assert not is_whole(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_more_writers_than_files_that_may_be_open(tmp_path, monkeypatch):
    """A replica that is started anew every hour; one after another is read."""
    for number in range(40):
        written(tmp_path, 1, writer=f"r{number}")
        path = tmp_path / f"changes-r{number}.jsonl"
        path.write_bytes(b"".join(shifted(path.read_bytes(), 1e9 + 100 * number)))
        head = digest(path.read_bytes().splitlines()[-1])
        known = ChangesHead(writer=f"r{number}", line=2, head=head, closed=True)
        write_head(tmp_path / f"changes-r{number}.head", known)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 20, hard))
    try:
        assert verified(tmp_path).is_vouched_for
        assert len([*story.lines_of(tmp_path, STREAMS[0], 0.0)]) == 40
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def shifted(data, begun):
    """The same lines, told at another time."""
    before = None
    for number, line in enumerate(data.splitlines(), 1):
        told = {name: each for name, each in decoded(line).items() if name not in ("check",)}
        line = encoded(number, before, {**told, "time": begun + number})
        before = digest(line)
        yield line + b"\n"


def test_links_and_pipes_are_not_written_to(tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "changes.jsonl").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        written(tmp_path, 3)
    assert (tmp_path / "elsewhere").read_text() == "mine"
    (tmp_path / "changes.jsonl").unlink()
    os.mkfifo(tmp_path / "changes.jsonl")
    with pytest.raises(OSError, match="no regular file"):
        written(tmp_path, 3)


def test_torn_bytes_are_kept(tmp_path):
    written(tmp_path, 2, most_bytes=10**6, close=False)
    with (tmp_path / "changes.jsonl").open("ab") as file:
        file.write(b'{"before":"\xff\x00' + b"x" * 20_000)
    written(tmp_path, 1, most_bytes=10**6)
    lines = [json.loads(line) for line in (tmp_path / "changes.jsonl").read_text().splitlines()]
    mended = [line for line in lines if line["event"] == "mended"]
    assert "".join(each["torn"] for each in mended) == '{"before":"\\xff\x00' + "x" * 20_000
    assert sum(each["bytes"] for each in mended) == 20_013
    assert not verified(tmp_path).defects
