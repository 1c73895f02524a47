"""Utility under time: the formulas, and replays of servers that say how long they took."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.client import ServiceError
from service.replay import ReplayPlan, utility
from service.replay.load import seconds_told
from tests.fixtures.fake_service import plain_view, run
from ttc_core.errors import UserError
from ttc_core.rows import Rows, setting

PERIODS = st.floats(1e-6, 100)
SECONDS = st.floats(0, 1000)


def flags(*values):
    return np.array(values, bool)


def numbers(*values):
    return np.array(values, float)


# Discrete


def test_what_was_skipped_is_worth_nothing():
    """Of five images three were served and two of them answered right."""
    found = utility.discrete(flags(1, 0, 1, 0, 1), flags(1, 0, 0, 0, 1))
    assert found == {"utility": 0.4, "availability": 0.6}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_utility_is_availability_times_accuracy_of_what_was_served(images):
    """Whatever was served and right."""
    served, right = (flags(*each) for each in zip(*images, strict=True))
    right &= served
    found = utility.discrete(served, right)
    accuracy = right[served].mean() if served.any() else 0.0
    assert found["utility"] == pytest.approx(found["availability"] * accuracy)
    assert found["utility"] == pytest.approx(right.mean())


# Continuous


def test_half_the_worth_is_lost_when_patience_ends():
    """100 ms, or three periods where these are longer."""
    assert utility.patience(0.02) == 0.1
    assert utility.patience(0.05) == pytest.approx(0.15)
    late = numbers(0, 0.08, 0.24)
    assert utility.discounts(late, 0.02) == pytest.approx([1, 1 / 2, 1 / 4])
    assert utility.discounts(numbers(0.1), 0.05) == pytest.approx([1 / 2])


def test_an_answer_waits_for_the_adaptation_before_it():
    """The first for none; what is left of a period is not carried on."""
    late = utility.overheads(numbers(0.03, 0.01, 0.02), numbers(0.05, 0.005, 9), 0.02)
    assert late == pytest.approx([0.01, 0.04, 0.005])
    assert len(utility.overheads(numbers(), numbers(), 0.02)) == 0


def test_utility_and_its_parts_by_hand():
    """Right and in time, wrong and late: the covariance is above 0."""
    found = utility.continuous(flags(1, 1, 0, 1), numbers(1, 1, 0.5, 0.5))
    # Right answers keep 1 + 1 + 0.5 of four; 0.75 · 0.75 + 0.0625.
    assert found == {"utility": 0.625, "timeliness": 0.75, "alignment": 0.0625}


@given(st.lists(st.tuples(st.booleans(), SECONDS, SECONDS), min_size=1), PERIODS)
def test_utility_is_the_mean_of_what_right_answers_are_worth(images, period):
    """mean(ab) = mean(a) mean(b) + covariance; a discount is above 0 and at most 1."""
    right, prediction, adaptation = (np.array(each) for each in zip(*images, strict=True))
    late = utility.overheads(prediction, adaptation, period)
    kept = utility.discounts(late, period)
    assert (late >= 0).all()
    assert ((kept > 0) & (kept <= 1)).all()
    assert (kept[late == 0] == 1).all()
    found = utility.continuous(right, kept)
    assert found["utility"] == pytest.approx((right * kept).mean(), abs=1e-12)
    assert found["utility"] == pytest.approx(
        right.mean() * found["timeliness"] + found["alignment"], abs=1e-12
    )
    assert found["utility"] <= right.mean() + 1e-12


@given(st.lists(SECONDS, min_size=2), PERIODS)
def test_who_is_later_keeps_less(late, period):
    """Never more, the later an answer is."""
    kept = utility.discounts(np.sort(np.array(late)), period)
    assert (np.diff(kept) <= 0).all()


# Amortised


def test_accuracy_before_and_after_the_end_of_learning():
    """A part without images has no accuracy."""
    found = utility.amortised(flags(1, 0, 1, 1), flags(1, 1, 0, 0))
    assert found == {"utility": 0.75, "accuracy_learning": 0.5, "accuracy_frozen": 1.0}
    assert utility.amortised(flags(1, 0), flags(1, 1))["accuracy_frozen"] is None


def test_no_images_have_no_utility():
    """None, not nan: a row is JSON."""
    none, nothing = flags(), numbers()
    for found in (
        utility.discrete(none, none),
        utility.continuous(none, nothing),
        utility.amortised(none, none),
    ):
        assert set(found.values()) == {None}


# What the server tells


def test_the_seconds_of_an_answer_are_all_stages_but_the_adaptation_before():
    """As the service writes them; any other header tells nothing."""
    told = 'decode;dur=1.5, queue;dur=0.25, forward;dur=6, encode;dur=0.25, adapt;desc="x";dur=99'
    assert seconds_told(told) == 0.008
    for odd in (
        "",
        "adapt;dur=3",
        "cache",
        "forward;dur=soon",
        "forward;dur=-1",
        "forward;dur=inf",
    ):
        assert seconds_told(odd) is None


# Replays


def plan(fake, data, mode, **options):
    return ReplayPlan(data, fake.url, mode=mode, **{"batch_size": 1, **options})


def test_images_that_come_while_the_pipeline_is_busy_are_skipped(fake, data):
    """Predicting and learning: with 3 periods for an image, every third of 25 is served."""
    fake.times = lambda number: (0.125, 0.25)
    view, screen = plain_view()
    (row,) = run(plan(fake, data, "discrete", period=0.125), view=view)
    assert fake.numbers == list(range(0, 25, 3))
    assert (row["images"], row["skipped"], row["asked"]) == (9, 16, 25)
    assert row["availability"] == 9 / 25
    assert row["utility"] == pytest.approx(row["accuracy"] * row["availability"])
    assert row["seconds"] == 9 * 0.375
    assert row["latency_p50"] < 0.125, "the latency is the client's, the clock the pipeline's"
    assert "no answer" not in screen.getvalue()
    assert shows(screen, "availability %", "skipped", "period ms")


def test_a_pipeline_that_is_in_time_serves_all(fake, data):
    """Free at the moment at which the next image comes is free."""
    fake.times = lambda number: (0.125, 0.125)
    (row,) = run(plan(fake, data, "discrete", period=0.25))
    assert (row["availability"], row["skipped"]) == (1, 0)
    assert row["utility"] == row["accuracy"] == 0.8


def test_late_answers_lose_worth(fake, data):
    """All 25 are sent; those after the slow adaptation of one image wait for it."""
    fake.times = lambda number: (0.05, 0.2 if number == 9 else 0.0)
    (row,) = run(plan(fake, data, "continuous", period=0.05))
    assert row["images"] == 25
    assert row["patience_seconds"] == pytest.approx(0.15)
    # Image 10 is 0.2 s late: it keeps 1 / (1 + 0.2 / 0.1); its label is one of the wrong fifth.
    assert row["timeliness"] == pytest.approx((24 + 1 / 3) / 25)
    assert row["utility"] == pytest.approx(0.8)
    assert row["alignment"] > 0


def test_the_images_of_a_request_wait_together(fake, data):
    """The last request is a short one, and each image counts as much."""
    fake.times = lambda number: (0.15 if number == 2 else 0.05, 0.0)
    (row,) = run(plan(fake, data, "continuous", period=0.05, batch_size=10))
    assert row["timeliness"] == pytest.approx((20 + 5 / 2) / 25)


def test_learning_ends_when_the_budget_is_spent(fake, data):
    """The image that spends the last of it is learned from; those behind it are answered only."""
    fake.times = lambda number: (1.0, 0.125)
    view, screen = plain_view()
    (row,) = run(plan(fake, data, "amortised", budget=0.3), view=view)
    assert fake.learned == [True] * 3 + [False] * 22
    assert (row["spent_seconds"], row["learned_images"]) == (0.375, 3)
    assert row["utility"] == row["accuracy"] == 0.8
    assert row["accuracy_learning"] == pytest.approx(2 / 3)
    assert row["accuracy_frozen"] == pytest.approx(18 / 22)
    assert shows(screen, "spent ms", "learned from")


def test_a_budget_of_nothing_learns_nothing(fake, data):
    """From the first image on."""
    fake.times = lambda number: (1.0, 0.125)
    (row,) = run(plan(fake, data, "amortised", budget=0.0))
    assert not any(fake.learned)
    assert row["accuracy_learning"] is None


def test_the_period_is_what_source_takes_where_that_is_served(fake, data):
    """Nearly all of its requests are done within it, so SOURCE itself is served nearly always."""
    fake.method, fake.times = "source", lambda number: (0.01 * (1 + number % 20), 0.001)
    view, screen = plain_view()
    (row,) = run(plan(fake, data, "discrete"), view=view)
    assert 0.18 < row["period_seconds"] <= 0.201
    assert row["availability"] > 0.9
    assert "requests to SOURCE are done within" in screen.getvalue()
    assert "another client" not in screen.getvalue()
    assert "period" not in setting(row), "measured again it is the same measurement"


def test_another_method_is_no_measure_of_source(fake, data):
    """A sentence says what is needed and where it comes from; nothing was sent."""
    fake.times = lambda number: (0.1, 0.0)
    with pytest.raises(UserError, match=r"--period is needed.*serves ttc\..*--method source"):
        run(plan(fake, data, "continuous"))
    assert fake.log == []


def test_rows_keep_the_times_of_each_image_and_are_told_apart_by_what_was_asked(
    fake, data, tmp_path
):
    """So that another patience can be had from them."""
    fake.times = lambda number: (0.125, 0.25)
    rows = Rows(tmp_path / "rows.jsonl")
    (row,) = run(plan(fake, data, "discrete", period=0.125), rows, predictions=tmp_path / "x.npz")
    with np.load(tmp_path / row["details"]) as details:
        assert details["prediction_seconds"][0] == 0.125
        assert np.isnan(details["adaptation_seconds"][1:3]).all()
        assert details["adaptation_seconds"][3] == 0.25
    assert setting(row)["period"] == 0.125
    assert not {"utility", "availability", "skipped"} & setting(row).keys()
    with np.load(tmp_path / "x.npz") as kept:
        assert "prediction_seconds" not in kept


@pytest.mark.parametrize("missing", ["header", "counter", "rest"])
def test_a_server_that_tells_no_times_gives_a_sentence(fake, data, missing):
    """As one of another version, behind something that drops headers, or with other clients."""
    fake.times = None if missing == "header" else lambda number: (0.1, 0.1)
    timeout = 60.0
    if missing == "counter":
        del fake.counters["adapt_seconds_total"]
    if missing == "rest":
        timeout = 0.5
        fake.on_request = lambda number: setattr(fake, "busy_polls", 10**6)
    sentence = {"header": "Server-Timing", "counter": "adapt_seconds_total", "rest": "not at rest"}
    with pytest.raises(ServiceError, match=sentence[missing]):
        run(plan(fake, data, "discrete", period=0.1, timeout=timeout))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"period": 0.1}, "discrete and continuous mode only; got 0.1 with lockstep"),
        ({"mode": "amortised", "budget": 1.0, "period": 0.1}, "with amortised"),
        ({"mode": "discrete", "period": 0.0}, "above 0 seconds"),
        ({"mode": "discrete", "period": float("nan")}, "above 0 seconds"),
        ({"mode": "continuous", "period": float("inf")}, "above 0 seconds"),
        ({"mode": "amortised"}, "is needed in amortised mode"),
        ({"mode": "discrete", "budget": 1.0}, "used in no other"),
        ({"mode": "amortised", "budget": -1.0}, "at least 0 seconds"),
        ({"mode": "amortised", "budget": float("inf")}, "at least 0 seconds"),
    ],
)
def test_times_that_do_not_go_with_the_mode_are_refused(options, sentence):
    """Before anything is sent, with what is accepted."""
    with pytest.raises(ValueError, match=sentence):
        ReplayPlan("bundled", **options)


def shows(screen, *heads):
    return all(head in screen.getvalue() for head in heads)
