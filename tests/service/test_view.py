"""What a person sees while images are answered, and the tables at the end."""

import io
import re

from rich.console import Console

from service.replay import ReplayPlan
from service.view import View, results_table
from tests.fixtures.fake_service import (
    plain_view,
    run,
)
from ttc_core.tally import Tally


def test_elsewhere_than_on_a_terminal_there_are_plain_lines(fake, data):
    """A log gets a line at the start and the end, and some between: no control characters."""
    view, screen = plain_view(seconds_between_lines=0.0)
    run(ReplayPlan(data, fake.url, batch_size=10), view=view)
    text = screen.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[0] == "clean: 25 images"
    assert re.match(r"clean: 10 of 25 images, accuracy 80\.0 %, .* images/s, p50 .* ms", lines[1])
    assert re.match(r"clean: 25 images in .* s, accuracy 80\.0 %, entropy 0\.4", lines[4])


def test_plain_lines_come_every_few_seconds_only():
    """A long replay fills no log: a clock decides, not the number of answers."""
    now = [0.0]
    view, screen = plain_view(clock=lambda: now[0])
    view.start("fog", 100)
    for done in range(1, 101):
        now[0] += 0.12
        view.update(Tally(100, images=done, correct=done))
    assert len(screen.getvalue().splitlines()) == 1 + 2


def test_images_that_the_source_answered_are_told():
    """While it runs, at its end and in the table; where there are none, nothing is said of it."""
    for held, told in ((1200, "1,200 held"), (0, "")):
        view, screen = plain_view(seconds_between_lines=0.0)
        view.start("fog", 4000)
        view.update(Tally(4000, images=2000, held=held))
        view.finish({**ROW, "seconds": 1.0, "held": held})
        assert screen.getvalue().count("held") == 2 * bool(told)
        assert screen.getvalue().count(told or "fog") >= 2
        heads = [str(column.header) for column in results_table([{**ROW, "held": held}]).columns]
        assert ("held" in heads) == bool(held)


def test_on_a_terminal_the_progress_moves(fake, data):
    """There is a bar with running numbers, and the final table."""
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    fake.seconds = 0.3
    run(ReplayPlan(data, fake.url, ("fog", "snow"), batch_size=10), view=View(console))
    text = console.file.getvalue()
    assert "━" in text
    assert "of 25 images" in text
    assert "average" in text


ROW = {
    "method": "ttc",
    "batch_size": 100,
    "corruption": "fog",
    "severity": 5,
    "images": 10_000,
    "accuracy": 0.75,
    "entropy": 0.5,
    "selection_rate": 0.25,
    "steps": 100,
    "images_per_second": 1234.5,
}


def printed(table):
    view, screen = plain_view()
    view.table(table)
    return screen.getvalue()


def test_the_table_averages_each_method_and_leaves_out_what_is_the_same():
    """Two methods get a column and an average each; an unused column is not there."""
    rows = [
        {**ROW, "method": method, "corruption": corruption, "accuracy": accuracy}
        for method, corruption, accuracy in [
            ("source", "fog", 0.5),
            ("source", "snow", 0.6),
            ("ttc", "fog", 0.7),
            ("ttc", "snow", 0.9),
        ]
    ]
    text = printed(results_table(rows))
    averages = [line.split() for line in text.splitlines() if "average" in line]
    assert ["55.0" in averages[0], "80.0" in averages[1]] == [True, True]
    assert "batch" not in text
    assert "p50" not in text
    assert "refused" not in text


def test_a_wide_table_is_whole_in_a_log():
    """Where nobody sees the width of a terminal, no cell is cut or folded."""
    latencies = dict.fromkeys(("latency_p50", "latency_p90", "latency_p99", "latency_max"), 0.25)
    text = printed(
        results_table([{**ROW, **latencies, "refused": {"429": 300, "503": 7}, "late": 3}])
    )
    assert "429: 300, 503: 7" in text
    assert "250.0" in text
    assert len({len(line) for line in text.splitlines()}) == 1
