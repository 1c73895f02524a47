"""Beside an answer stands the other's class, where method and source both answered."""

import numpy as np
import pytest

from service import known_ids
from service.events import Events
from service.known_ids import FILE, RECORD, KnownIds
from ttc_core.methods.contract import Answers

CLASSES = 32_766


@pytest.fixture
def make(tmp_path):
    """Make what knows ids, each with the same file."""
    made = []

    def known(classes=CLASSES):
        for one in made:
            one.close()
        made.append(KnownIds(100, ("x",) * classes, tmp_path / FILE, Events()))
        return made[-1]

    yield known
    made[-1].close()


@pytest.mark.parametrize(
    ("given", "both", "label", "expected"),
    [
        (3, Answers(3, 5), 3, (True, True, False)),
        (3, Answers(3, 5), 5, (False, False, True)),
        (5, Answers(3, 5), 3, (False, True, False)),
        (5, Answers(3, 5), 9, (False, False, False)),
        (0, Answers(0, 0), 0, (True, True, True)),
        (32_765, Answers(0, 32_765), 32_765, (True, False, True)),
        (32_765, Answers(32_765, 32_765), 0, (False, False, False)),
    ],
)
def test_a_label_tells_of_both_who_was_right(make, given, both, label, expected):
    """Whichever was given out, at the ends of what fits; over a restart, too."""
    for restarted in (False, True):
        ids = make()
        ids.remember("s", "a", given, None, 0.5, both)
        ids.remember("s", "alone", given, None, 0.5)
        ids = make() if restarted else ids
        told = ids.give("s", "a", label)
        assert (told.right, *told.compared) == expected
        assert (told.outcome, told.confidence) == ("taken", 0.5)
        assert ids.give("s", "alone", given)[:2] == ("taken", True)
        assert ids.give("s", "alone", given).compared is None


def test_of_more_classes_than_fit_beside_another_none_is_compared(make):
    """Their answers are known as ever."""
    ids = make(CLASSES + 1)
    ids.remember("s", "a", CLASSES, None, None, Answers(CLASSES, 0))
    told = make(CLASSES + 1).give("s", "a", CLASSES)
    assert (told.right, told.compared) == (True, None)


def test_an_other_that_is_no_class_is_not_taken_up(make, tmp_path):
    """A file may be anybody's."""
    ids = make(10)
    ids.remember("s", "a", 3, None, None, Answers(3, 5))
    ids.close()
    path = tmp_path / FILE
    header, records = path.read_bytes()[:40], np.fromfile(path, RECORD, offset=40)
    records["answer"][1] += 5 << 16
    records["check"] = known_ids._checks(records)
    path.write_bytes(header + records.tobytes())
    assert len(make(10)) == 0
