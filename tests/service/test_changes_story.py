"""The story of a stream, out of lines that anybody may have written."""

import os

from rich.console import Console

from service.changes import story
from service.changes.lines import digest, encoded

BEGUN = 1.7e9


def rows(folder, *told):
    """The rows of stream gate, of a log with these lines, told at so many seconds."""
    write(folder / "changes.jsonl", told)
    return story.story(story.lines_of(folder, "gate", 0.0), one_writer=True)


def write(path, told):
    before, lines = None, []
    for number, (seconds, event, fields) in enumerate(told, 1):
        line = encoded(number, before, {"time": BEGUN + seconds, "event": event, **fields})
        before = digest(line)
        lines.append(line + b"\n")
    path.write_bytes(b"".join(lines))


def outages(folder, *told):
    found = [each for each in rows(folder, *told) if each.what == "not running"]
    return [(each.begun - BEGUN, each.ended - BEGUN, bool(each.more)) for each in found]


def learned(stream, seconds):
    fields = {"stream": stream, "images": 10, "version": 1, "version_before": 0, "seconds": 60}
    return seconds, "steps", fields


def test_an_outage_is_when_the_process_did_not_run(tmp_path):
    """Not since the stream's own last line, whatever else the process did; what a start tells of
    the log before it says that it began is of that start."""
    others = [learned("yard", 60 * minute) for minute in range(2, 600)]
    before = [(0, "started", {}), learned("gate", 60), *others]
    assert outages(tmp_path, *before, (36_000, "started", {})) == [(35_940, 36_000, True)]
    of_a_start = [(72_000, "file", {}), (72_000, "mended", {}), (72_000, "broken", {})]
    behind = [*of_a_start, (72_000, "went_on", {}), (72_001, "started", {})]
    assert outages(tmp_path, *before, *behind) == [(35_940, 72_001, True)]
    stopped = (35_950, "stopped", {})
    assert outages(tmp_path, *before, stopped, *behind) == [(35_950, 72_001, False)]
    assert not outages(tmp_path, *before)


def test_the_rows_of_replicas_are_by_time_and_say_whose_they_are(tmp_path):
    """A camera whose replica was killed went on with the other, and came back."""
    gate = {"stream": "gate", "images": 10, "version": 1, "version_before": 0, "seconds": 5}
    of_one = [(0, "started", {}), (30, "steps", gate), (50, "started", {}), (70, "steps", gate)]
    write(tmp_path / "changes-replica-1.jsonl", [*of_one, (90, "stopped", {})])
    of_other = [(1, "started", {}), (45, "steps", gate), (60, "steps", {**gate, "stream": "yard"})]
    write(tmp_path / "changes-replica-0.jsonl", [*of_other, (91, "stopped", {})])
    found = story.story(story.lines_of(tmp_path, "gate", 0.0), one_writer=False)
    assert [(each.begun - BEGUN, each.what, each.more.rpartition("by ")[2]) for each in found] == [
        (0, "started", "replica-1"),
        (1, "started", "replica-0"),
        (25, "learned", "replica-1"),
        (30, "not running", "replica-1"),
        (40, "learned", "replica-0"),
        (50, "started", "replica-1"),
        (65, "learned", "replica-1"),
        (90, "stopped", "replica-1"),
    ]


def test_what_the_envelope_cut_and_what_it_dropped_are_told_apart(tmp_path):
    """Over lines that are one row, too."""
    verdicts = {"cut": {"drift": 3, "image_in_step": 1}}
    steps = {"stream": "gate", "images": 10, "version": 1, "version_before": 0, "seconds": 5}
    dropped = {"dropped": {"steps_per_1000_images": 2}}
    lines = [{**steps, "verdicts": verdicts}, {**steps, "verdicts": verdicts | dropped}]
    (row,) = rows(tmp_path, *((10 * at, "steps", each) for at, each in enumerate(lines, 1)))
    told = "envelope cut: drift 6, image_in_step 2; envelope dropped: steps_per_1000_images 2"
    assert told in row.more


def test_odd_values_behind_right_checks_are_left_out(tmp_path):
    """Whoever may write to the folder can make any line; it ends in no trace."""
    odd = ("3", [3], {"a": "b"}, {"a": {"b": 1}}, 10**400, -1e300, None, True)
    names = ("images", "selected", "steps", "seconds", "drift", "lines", "skipped", "verdicts")
    more = ("evidence", "settings", "version", "version_before", "by", "reason", "envelope")
    lines = []
    for event in ("steps", "save", "started", "lost", "hold", "weights", "mended", "nothing"):
        for value in odd:
            fields = dict.fromkeys((*names, *more), value)
            lines.append((len(lines), event, {"stream": "gate", **fields}))
    with open(os.devnull, "w") as nowhere:
        assert story.show(rows(tmp_path, *lines), Console(file=nowhere))
