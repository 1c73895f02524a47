"""What the benchmark of replicas under fire finds where something was lost."""

import pytest

from benchmarks.replicas import SAVE_INTERVAL, SLACK_SECONDS, Stream, lost, report

MOST = SAVE_INTERVAL + SLACK_SECONDS


def stream(*answers, steps=()):
    return Stream([(when, version, 0.1) for when, version in answers], list(steps))


@pytest.mark.parametrize(
    ("answers", "kills", "expected"),
    [
        pytest.param([(0, 10), (1, 11), (2, 12)], [], (0, 0), id="nothing"),
        pytest.param([(0, 10), (1, 11), (2, 12), (9, 11)], [3], (1, 2), id="one-step"),
        pytest.param([(0, 10), (1, 12), (60, 10)], [], (2, 60), id="nobody-was-killed"),
        pytest.param([(0, 10), (1, 12), (60, 10)], [59], (2, 59), id="long-before-the-kill"),
        pytest.param([(0, 10), (1, 12), (50, 14), (60, 12)], [52], (2, 51), id="steps-not-seen"),
        pytest.param([(5, 3), (6, 4), (9, 0)], [7], (4, 2), id="to-the-source"),
        pytest.param([(0, 1), (1, 2), (4, 1), (5, 2), (6, 3), (9, 2)], [3, 8], (1, 3), id="twice"),
    ],
)
def test_how_much_was_lost(answers, kills, expected):
    """Steps, and the age of the oldest when its replica was killed."""
    assert lost(stream(*answers), kills) == expected


@pytest.mark.parametrize(
    ("found", "kills", "sentence"),
    [
        pytest.param(stream((0, 1), (9, 2)), [5.0], None, id="well"),
        pytest.param(stream((0, 1), (1, 2), (9, 1)), [0 + MOST], None, id="an-interval"),
        pytest.param(stream((0, 1), (1, 2), (9, 1)), [0.1 + MOST], "an interval", id="too-much"),
        pytest.param(stream((0, 1), (1, 2), (2, 1)), [], "no replica was killed", id="no-kill"),
        pytest.param(stream((0, 1), (1, 2), steps=(3, 2)), [], "went back", id="two-wrote"),
    ],
)
def test_what_may_not_be_is_told(found, kills, sentence, capsys):
    """And nothing else."""
    failures = []
    report({"gate": found}, kills, failures)
    assert [sentence in each for each in failures] == ([] if sentence is None else [True])
