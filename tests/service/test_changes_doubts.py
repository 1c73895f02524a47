"""Streams' files that are not as the log has them: which are wrong, and which not vouched for."""

import shutil
from collections import defaultdict
from pathlib import Path

import pytest

from service.changes.chain import Chain, read_head
from service.changes.chained import Chained
from service.changes.files import Place
from service.changes.lines import encoded
from service.changes.reading import read
from service.changes.verifying import verify
from tests.fixtures.networks import make_model
from ttc_core.methods import create
from ttc_core.state import save_state

BEGIN, MINUTE, DAY = 1.7e9, 60.0, 86_400.0


class Kept:
    """A --state-dir, as services leave it that note and save what a test has them, when it says."""

    def __init__(self, folder: Path, **limits: int) -> None:
        self.folder = folder
        self._limits = {"most_bytes": 1 << 20, "most_files": 100, **limits}
        self._chains: dict[str, Chain] = {}
        self._method = create("ttc", make_model())
        self.saves: dict[str, int] = defaultdict(int)

    def chain(self, writer: str = "") -> Chain:
        if writer not in self._chains:
            self._chains[writer] = Chain(Place(self.folder, writer), **self._limits)
        return self._chains[writer]

    def note(self, time: float, event: str = "steps", count: int = 1, writer: str = "") -> None:
        told = [{"time": BEGIN + time, "event": event, "stream": "other"}] * count
        self.chain(writer).append(told)
        self.chain(writer).sync()

    def put(self, mark: object, stream: str = "gate") -> str:
        """Put a file there as if a service had saved it with such a mark; return its hash."""
        self.saves[stream] += 1
        about = {"stream": stream, "images": self.saves[stream], "changes": mark}
        path = self.folder / f"{stream}.safetensors"
        return save_state(path, self._method, name="ttc", model="m", of_stream=about)

    def mark(self, writer: str = "") -> dict:
        """What a file that is saved now has of the log."""
        head = read_head(Place(self.folder, writer).head)
        return {"writer": writer, "line": head.line, "head": head.head}

    def tell(self, time: float, event: str, sha256: str, writer: str = "", **more: object) -> None:
        """Tell of a stream's file: that it was saved, or read."""
        told = {"time": BEGIN + time, "event": event, "stream": "gate", "sha256": sha256, **more}
        self.chain(writer).append([{**told, "file": "gate.safetensors"}])
        self.chain(writer).sync()

    def save(self, time: float, writer: str = "") -> None:
        self.tell(time, "save", self.put(self.mark(writer)), writer)

    def close(self, *, kill: bool = False) -> None:
        for chain in self._chains.values():
            if not kill:
                chain.sync(closed=True)
            chain.close()
        self._chains.clear()

    def said(self) -> tuple[int, str]:
        """The exit status, and what is said of streams that are not right."""
        found = verify(self.folder, wait=lambda seconds: None)
        status = 1 if found.defects else 0 if found.is_vouched_for else 3
        both = [*map(str, found.defects), *map(str, found.unvouched)]
        return status, " ".join(each for each in both if "gate.safetensors" in each)

    def alter(self, line: int, writer: str = "") -> None:
        """Change a line of the file that grows."""
        path = Place(self.folder, writer).current
        lines = path.read_bytes().splitlines(keepends=True)
        lines[line - 1] = lines[line - 1].replace(b'"time"', b'"tame"')
        path.write_bytes(b"".join(lines))


@pytest.fixture
def kept(tmp_path):
    return Kept(tmp_path)


@pytest.mark.parametrize("has_mark", [True, False])
def test_a_kill_excuses_no_file_of_which_lines_tell_since(kept, has_mark):
    """A file that it left would have been read, or written over, by what was saved since."""
    kept.note(0, "started", 3)
    mark = kept.mark()
    kept.close(kill=True)
    left = kept.put(mark if has_mark else None)
    assert kept.said()[0] == 3
    kept.note(MINUTE, "started")
    kept.tell(MINUTE, "load", left, mark=mark if has_mark else None)
    assert kept.said()[0] == 3
    kept.save(DAY)
    kept.close()
    kept.put(mark if has_mark else None)
    status, said = kept.said()
    assert status == 1
    assert "gate.safetensors is not what was saved last, by line 8 of the log." in said
    assert "changes.jsonl, line 7: gate.safetensors was read, and " in said  # as before


def test_what_was_dropped_excuses_no_file_of_which_lines_tell_since(tmp_path):
    """A true backup, of which the lines are gone; nor what is made to look as old."""
    kept = Kept(tmp_path, most_bytes=2000, most_files=3)
    kept.note(0, count=5)
    kept.save(1)
    shutil.copy(tmp_path / "gate.safetensors", tmp_path / "backup")
    mark = kept.mark()
    for day in range(1, 30):
        kept.note(day * DAY, count=5)
    assert kept.said() == (
        *(3,),
        "gate.safetensors was saved by a line that was dropped, to make room; none has its hash.",
    )
    kept.save(30 * DAY)
    kept.note(31 * DAY)
    kept.close()
    assert kept.said() == (0, "")
    (tmp_path / "backup").replace(tmp_path / "gate.safetensors")
    assert kept.said()[0] == 1
    kept.put({**mark, "head": "0" * 64})
    status, said = kept.said()
    assert (status, "is not what was saved last, by line" in said) == (1, True)


def test_a_replica_whose_lines_were_dropped_had_the_stream_later(tmp_path):
    """What another tells of the days before is no sign that anybody brought a copy back."""
    kept = Kept(tmp_path, most_bytes=2000, most_files=3)
    kept.note(0, writer="replica-1")
    kept.save(1, "replica-1")
    kept.note(DAY, writer="replica-0")
    kept.save(DAY, "replica-0")
    for day in range(2, 30):
        kept.note(day * DAY, count=5, writer="replica-0")
    kept.close()
    status, said = kept.said()
    assert (status, "was saved by a line that was dropped" in said) == (3, True)


def test_a_gap_excuses_what_it_may_have_told_and_nothing_else(kept):
    """Not what was saved behind it, nor what was read before it."""
    kept.note(0, count=9)
    kept.save(1)
    before = kept.mark()
    kept.note(2, count=9)
    kept.tell(3, "load", kept.put(before), mark=before)
    kept.note(4, count=9)
    mark = kept.mark()
    kept.close()
    log = kept.folder / "changes.jsonl"
    whole = log.read_bytes()
    assert len(whole.splitlines()) == 30
    for line, is_excused in ((5, False), (15, True), (25, False)):
        log.write_bytes(whole)
        kept.alter(line)
        status, said = kept.said()
        assert (status, f"line {line} of the log, altered, may" in said) == (1, is_excused), line
    kept.put(mark)  # of the last line
    assert "is not what was saved last, by line 21 of the log." in kept.said()[1]
    planted = encoded(2**52, None, {"time": BEGIN, "event": "steps"}) + b"\n"
    lines = whole.splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:25], planted, *lines[25:]]))
    assert "is not what was saved last, by line 21 of the log." in kept.said()[1]


def test_a_gap_in_anothers_log_excuses_nothing(kept):
    kept.note(0, count=9, writer="replica-0")
    kept.note(DAY, count=3, writer="replica-1")
    kept.save(DAY, "replica-1")
    kept.close()
    kept.alter(5, "replica-0")
    kept.put(kept.mark("replica-1"))
    status, said = kept.said()
    assert (status, said) == (
        1,
        "gate.safetensors is not what was saved last, by line 5 of the log of replica-1.",
    )


def test_what_was_cut_off_may_have_told_of_a_file_after_the_next_start_too(kept):
    """Its numbers are others' then."""
    kept.note(0, count=7)
    kept.save(1)
    kept.close()
    log = kept.folder / "changes.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    _, said = kept.said()
    assert "line 9 of the log, cut off, may have told of it" in said
    kept.note(2, "started", 5)
    kept.close()
    status, said = kept.said()
    assert (status, "line 9 of the log, cut off before a start, may have" in said) == (1, True)


def test_lines_dropped_before_one_that_was_altered_are_not_missing(tmp_path):
    """The first of all that are kept: it is told once, and held against no stream."""
    kept = Kept(tmp_path, most_bytes=2000, most_files=3)
    kept.note(0, count=5)
    kept.save(1)
    for day in range(1, 30):
        kept.note(day * DAY, count=5)
    kept.close()
    first = min(tmp_path.glob("changes.jsonl.*"))
    first.write_bytes(first.read_bytes().replace(b'"time"', b'"tame"', 1))
    found = verify(tmp_path, wait=lambda seconds: None)
    assert [str(each) for each in found.defects] == [
        f"{first.name}, line 1: altered: it is not as it was written."
    ]
    (unsure,) = found.unvouched
    assert "was saved by a line that was dropped" in unsure.sentence


def test_streams_that_are_right_alone_vouch_for_lines(kept):
    """Whoever adds lines behind a head puts a file there as well."""
    kept.note(0, count=3)
    kept.save(1)
    kept.note(2)
    head = (kept.folder / "changes.head").read_bytes()
    kept.note(3, count=9)
    mark = kept.mark()
    kept.close(kill=True)
    (kept.folder / "changes.head").write_bytes(head)
    kept.put(mark)
    found = verify(kept.folder, wait=lambda seconds: None)
    assert any("vouches for lines 7 to 15." in each.sentence for each in found.unvouched)


def test_a_file_that_is_dropped_while_it_is_read_is_nobodys_doing(tmp_path):
    """Nor one that goes before it is opened: the service makes room meanwhile."""
    kept = Kept(tmp_path, most_bytes=1000, most_files=3)
    for minute in range(30):
        kept.note(minute * MINUTE, count=5)
    oldest = min(tmp_path.glob("changes.jsonl.*"))
    found = Chained("")
    lines = read(Place(tmp_path), found)
    next(lines)
    while oldest.exists():
        kept.note(DAY, count=5)
    assert [*lines]
    assert verify(tmp_path, wait=lambda seconds: None).is_vouched_for


def test_the_log_of_one_writer_is_asked_for_a_line(tmp_path):
    """Of another's that has dropped its first lines nothing follows for it."""
    kept = Kept(tmp_path, most_bytes=2000, most_files=3)
    for day in range(30):
        kept.note(day * DAY, count=5, writer="replica-0")
    kept.note(0, count=9, writer="replica-1")
    kept.close()

    def said(writer):
        return verify(tmp_path, head="a" * 16, line=5, writer=writer, wait=lambda seconds: None)

    assert "name whose it was with --writer" in str(said(None).unvouched)
    assert "Line 5 has not a hash" in str(said("replica-1").defects)
    assert said("replica-0").unvouched
    assert not said("replica-0").defects
