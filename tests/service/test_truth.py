"""Labels count the same whichever way they come, and what is kept of streams is bounded."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry

from service.events import Events
from service.known_ids import KnownIds
from service.metrics import ACCURACY_WINDOW, DOMINANCE_WINDOW, Metrics
from service.truth import Truth


@pytest.fixture
def truth():
    metrics = Metrics(CollectorRegistry(), classes=10, model={})
    ids = KnownIds(1000, tuple("abcdefghij"), None, Events())
    yield Truth(metrics, ids, most_streams=3)
    ids.close()


def value(truth, name, **labels):
    return truth._metrics.registry.get_sample_value(name, labels)


def answer(truth, classes, labels=None, ids=None, stream="gate", sure=None):
    """What the engine does with a batch, before and after its answers go out."""
    labels, sure = labels or [None] * len(classes), sure or [0.5] * len(classes)
    truth.remember(stream, ids or [None] * len(classes), classes, labels, sure)
    truth.count(stream, classes, labels, sure)


def of_stream(truth, name="gate"):
    said = truth.streams[name]
    return said.labelled, said.correct


def accuracy(truth):
    names = ("labelled_images_total", "correct_images_total", "window_accuracy_ratio")
    return [value(truth, f"ttc_{name}") for name in names]


def test_accuracy_is_that_of_the_labelled_images(truth):
    """Images without a label are in neither count."""
    assert math.isnan(value(truth, "ttc_window_accuracy_ratio"))
    answer(truth, [1, 2, 3, 4], [1, None, 5, 4])
    assert accuracy(truth) == [3, 2, pytest.approx(2 / 3)]
    answer(truth, [1])
    assert accuracy(truth) == [3, 2, pytest.approx(2 / 3)]


def test_labels_count_the_same_with_the_image_and_later(truth):
    """The same answers and labels by both ways: half of the count each."""
    classes, labels = [1, 2, 3, 4], [1, 2, 0, 4]
    answer(truth, classes, labels)
    first = accuracy(truth)
    answer(truth, classes, ids=list("abcd"))
    given = [("gate", name, label) for name, label in zip("abcd", labels, strict=True)]
    assert truth.feedback(given).images["taken"] == [("gate", name) for name in "abcd"]
    assert accuracy(truth) == [2 * first[0], 2 * first[1], first[2]]
    assert of_stream(truth) == (8, 6)


def test_confidence_is_held_against_labels_that_come_along_and_later(truth):
    """Of right and of wrong answers, each once; what has no label is in none."""

    def seen(what, which):
        return value(truth, f"ttc_labelled_confidence_ratio_{what}", answer=which)

    sure = [0.9, 0.6, 0.75, 0.3]
    answer(truth, [1, 2, 3, 4], [1, 1, None, None], sure=sure)
    assert [seen("sum", "right"), seen("sum", "wrong")] == [0.9, 0.6]
    answer(truth, [1, 2, 3, 4], ids=list("abcd"), sure=sure)
    truth.feedback([("gate", name, 1) for name in "abc"] + [("gate", "a", 1), ("gate", "a", 2)])
    assert seen("sum", "right") == pytest.approx(1.8, abs=0.0005)
    assert seen("sum", "wrong") == pytest.approx(1.95, abs=0.0005)
    assert [seen("count", "right"), seen("count", "wrong")] == [2, 3]


def test_an_answer_of_unknown_confidence_counts_for_the_accuracy_alone(truth):
    """Its id is from a former version's file: 0 would look like modesty."""
    truth._ids.remember("gate", "old", 1, None)
    truth.feedback([("gate", "old", 1)])
    assert accuracy(truth) == [1, 1, 1]
    assert value(truth, "ttc_labelled_confidence_ratio_count", answer="right") == 0


def test_what_does_not_count_is_told_and_counted_by_its_outcome(truth):
    """A label that came along counts once; an empty id names nothing."""
    answer(truth, [1, 2, 3], [1, None, None], ids=["a", "b", ""])
    labels = [("a", 1), ("a", 2), ("b", 2), ("b", 2), ("b", 3), ("", 3), ("c", 1)]
    given = truth.feedback([("gate", *label) for label in labels] + [("yard", "b", 2)]).images
    expected = {
        "taken": [("gate", "b")],
        "unknown": [("gate", ""), ("gate", "c"), ("yard", "b")],
        "repeated": [("gate", "a"), ("gate", "b")],
        "contradicting": [("gate", "a"), ("gate", "b")],
    }
    assert given == expected
    for outcome, names in expected.items():
        assert value(truth, "ttc_feedback_labels_total", outcome=outcome) == len(names)
    assert accuracy(truth)[:2] == [2, 2]
    assert value(truth, "ttc_feedback_known_ids") == 2


def test_the_window_forgets_what_is_older_than_its_length(truth):
    """500 wrong ones leave no trace once 500 right ones have come; in between it is their mix."""
    answer(truth, [1] * ACCURACY_WINDOW, [2] * ACCURACY_WINDOW)
    assert accuracy(truth) == [500, 0, 0]
    answer(truth, [1] * 100, [1] * 100)
    assert accuracy(truth) == [600, 100, pytest.approx(100 / ACCURACY_WINDOW)]
    answer(truth, [1] * 400, [1] * 400)
    assert accuracy(truth) == [1000, 500, 1]


def test_the_share_of_the_most_frequent_class_is_of_the_last_answers(truth):
    """Nothing is said of a few answers; of many, old ones are forgotten."""
    answer(truth, [3] * 99)
    assert math.isnan(value(truth, "ttc_dominant_class_ratio"))
    answer(truth, [1] * 101)
    assert value(truth, "ttc_dominant_class_ratio") == pytest.approx(101 / 200)
    answer(truth, [7] * 500)
    assert value(truth, "ttc_dominant_class_ratio") == 1


def test_a_reset_of_one_stream_does_not_blind_the_others(truth):
    """Their answers still show a collapse; only those of the stream that was reset are gone."""
    answer(truth, [3] * 200)
    answer(truth, [1] * 100, stream="yard")
    truth.forget(["nobody"])
    assert value(truth, "ttc_dominant_class_ratio") == pytest.approx(2 / 3)
    truth.forget(["gate"])
    assert value(truth, "ttc_dominant_class_ratio") == 1
    answer(truth, [1] * 900, stream="yard")
    assert len(truth._answered) == DOMINANCE_WINDOW


def test_a_reset_starts_a_streams_counts_anew_and_forgets_no_id(truth):
    """The answer was given: a label is true of it, also after what gave it has gone."""
    answer(truth, [1, 2], [1, None], ids=["a", "b"])
    truth.forget(["gate"])
    assert truth.streams == {}
    assert truth.feedback([("gate", "b", 2)]).images["taken"] == [("gate", "b")]
    assert of_stream(truth) == (1, 1)
    assert accuracy(truth)[:2] == [2, 2]


def test_the_counts_of_streams_are_bounded(truth):
    """The one without a label for longest makes room; the totals have it still."""
    for name in ("a", "b", "c", "a", "d"):
        answer(truth, [1], [1], stream=name)
    assert {name: said.labelled for name, said in truth.streams.items()} == {"a": 2, "c": 1, "d": 1}
    assert accuracy(truth)[:2] == [5, 5]


def test_reading_while_counting_never_fails(truth):
    """A scrape comes in the middle of everything."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def count(worker):
        for number in range(200):
            name = f"{worker}-{number}"
            answer(truth, [1, 2], [1, None], ids=[None, name], stream=str(worker))
            truth.feedback([(str(worker), name, 2)])

    def read(_):
        for _ in range(200):
            assert 0 <= value(truth, "ttc_labelled_images_total") <= 800
            value(truth, "ttc_dominant_class_ratio")
            value(truth, "ttc_window_accuracy_ratio")

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda call: call[0](call[1]), [(count, 0), (read, 0), (count, 1)]))
    finally:
        sys.setswitchinterval(interval)
    assert accuracy(truth) == [800, 800, 1]


def test_labels_of_streams_that_are_anothers_are_bounded_all_the_same(truth):
    """No file will have them here: they make room, as those do that a file has."""
    truth._lasting = True
    for number in range(10):
        answer(truth, [1], [1], stream=f"s{number}")
        truth.give_up(f"s{number}")
    assert truth.streams.keys() == {"s7", "s8", "s9"}
