"""Accuracy without labels: what three answers to the same images say, and how sure it is."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from ttc_core.guard.estimate import LATEST, SLACK, Judge


def answers(classes, sure, K=10):
    """(n, K) answers with these classes, that sure of them."""
    given = np.full((len(classes), K), (1 - sure) / (K - 1))
    given[np.arange(len(classes)), classes] = sure
    return given


def judged(source, restyled, served, **kwargs):
    """A judge that has compared these answers, and its chances."""
    judge = Judge(source.shape[1], **kwargs)
    judge.judged, chances = judge.after(source, restyled, served)
    return judge, chances


def mixed(truth, right, generator):
    """Classes of which so many are right, and the others anything else."""
    wrong = (truth + generator.integers(1, 10, len(truth))) % 10
    return np.where(generator.random(len(truth)) < right, truth, wrong)


def harm(chances):
    """(n,) how much speaks for harm."""
    return chances[:, 1] - chances[:, 0] - SLACK


@pytest.fixture
def generator():
    return np.random.default_rng(3)


@pytest.fixture
def stream(generator):
    """Three answers (300, 10) each to a stream, as networks give them."""
    truth = generator.integers(0, 10, 300)
    return [
        answers(mixed(truth, right, generator), sure)
        for right, sure in ((0.5, 0.7), (0.7, 0.6), (0.8, 0.9))
    ]


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_a_stream_of_one_class_is_not_taken_for_a_collapse(temperature, generator):
    """All three see one class, 95 % right: mostly right, and no harm (AETTA says 90 % wrong)."""
    truth = np.full(200, 3)
    seen = [answers(mixed(truth, 0.95, generator), 0.9) for _ in range(3)]
    judge, chances = judged(*seen, temperature=temperature)
    found = judge.whole
    assert found.adapted.accuracy > 0.75
    assert found.adapted.low <= 0.95 <= found.adapted.high
    assert abs(found.difference.accuracy) < 0.05
    assert harm(chances).mean() < -SLACK / 2


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_a_collapse_is_told_from_it(temperature, generator):
    """Served is one class, surely; the two that learn nothing see many."""
    truth = generator.integers(0, 10, 200)
    source, restyled = (answers(mixed(truth, 0.9, generator), 0.85) for _ in range(2))
    collapsed = answers(np.full(200, 3), 0.99)
    judge, chances = judged(source, restyled, collapsed, temperature=temperature)
    found = judge.whole
    assert found.adapted.high < found.source.accuracy
    assert found.difference.accuracy < -0.4
    assert harm(chances).mean() > 0


def test_a_source_that_fails_surely_is_no_evidence_of_harm(generator):
    """Few classes, all surely, under noise; what is served and the restyled source see many."""
    truth = generator.integers(0, 10, 200)
    source = answers(np.where(truth < 5, 6, 2), 0.9)
    served, restyled = (answers(mixed(truth, 0.8, generator), 0.8) for _ in range(2))
    judge, chances = judged(source, restyled, served)
    assert judge.whole.difference.accuracy > 0.2
    assert harm(chances).mean() < -SLACK


def test_equal_answers_are_equally_right(stream):
    """Whatever else is so: the difference is 0, and its interval has it inside."""
    source, restyled, _ = stream
    judge, chances = judged(source, restyled, source)
    assert (chances[:, 0] == chances[:, 1]).all()
    assert judge.whole.difference.accuracy == 0
    assert judge.whole.difference.low < 0 < judge.whole.difference.high
    assert harm(chances) == pytest.approx(-SLACK)


@pytest.mark.parametrize(
    ("temperature", "served", "source"),
    [(None, 0.739052869, 0.043493503), (2.0, 0.088344203, 0.011263884)],
)
def test_the_chances_of_one_image_are_these(temperature, served, source):
    """Reckoned by hand from the features and their numbers."""
    three = ([0.7, 0.1, 0.1, 0.1], [0.2, 0.6, 0.1, 0.1], [0.1, 0.8, 0.05, 0.05])
    _, chances = judged(*(np.array([each]) for each in three), temperature=temperature)
    assert chances[0] == pytest.approx([served, source], abs=1e-8)


def test_who_is_backed_by_the_restyled_source_is_more_likely_right(stream):
    """Each of both, on an image on which they differ."""
    judge, _ = judged(*stream)
    source, served = answers([1], 0.8), answers([2], 0.8)
    _, theirs = judge.after(source, answers([1], 0.8), served)
    _, ours = judge.after(source, answers([2], 0.8), served)
    assert ours[0, 0] > theirs[0, 0]
    assert ours[0, 1] < theirs[0, 1]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_batches_of_any_size_come_to_the_same(stream, size):
    """To the last bit."""
    whole, chances = judged(*stream)
    judge, found = Judge(10), []
    for start in range(0, 300, size):
        judge.judged, some = judge.after(*(each[start : start + size] for each in stream))
        found.append(some)
    assert (np.concatenate(found) == chances).all()
    assert judge.latest == whole.latest
    assert judge.whole == whole.whole


def test_to_ask_changes_nothing(stream):
    """What follows is handed out, and taken up by who commits it."""
    judge = Judge(10)
    before = judge.judged
    judge.after(*stream)
    assert judge.judged is before
    assert judge.whole is None
    assert judge.latest is None


@pytest.mark.parametrize("place", [0, 1, 2])
def test_answers_that_are_no_numbers_are_passed_over(stream, place):
    """Whoever gave them: nothing is known of that image, and no later one is spoiled."""
    broken = [each.copy() for each in stream]
    broken[place][7] = math.nan
    judge, chances = judged(*broken)
    without, _ = judged(*(np.delete(each, 7, axis=0) for each in stream))
    assert judge.whole == without.whole
    assert (chances[7] == 0.5).all()


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("sure", [1.0, 0.0])
def test_estimates_are_accuracies_whatever_was_answered(classes, sure):
    """Of one image or many, wholly sure, of zeros, of any number of classes."""
    for images in (1, 300):
        some = answers(np.arange(images) % classes, sure, classes)
        other = answers((np.arange(images) + 1) % classes, 1.0, classes)
        judge, chances = judged(some, other, other)
        assert ((chances > 0) & (chances < 1)).all()
        assert ((chances >= 0) & (chances <= 1)).all()
        for found in (judge.latest, judge.whole):
            for each in (found.adapted, found.source):
                assert 0 <= each.low <= each.high <= 1
            assert -1 <= found.difference.low <= found.difference.high <= 1
            assert found.images == images


def widths(judge):
    """Of its intervals: of both accuracies in log-odds, and the difference's."""
    found = judge.whole
    sides = [(each.low, each.high) for each in (found.adapted, found.source)]
    logs = [math.log(high / (1 - high)) - math.log(low / (1 - low)) for low, high in sides]
    return np.array([*logs, found.difference.high - found.difference.low])


def test_intervals_narrow_with_more_images_but_not_to_nothing():
    """The model's own error stays."""
    turns = [answers(np.arange(300) % part, 0.8) for part in (10, 10, 5)]
    few, some, many = (widths(judged(*(each[:n] for each in turns))[0]) for n in (20, 100, 300))
    assert (few > some).all()
    assert (some > many).all()
    assert (many > 0.3).all()


def test_intervals_are_narrower_where_the_temperature_is_known(stream):
    """A record of the source's held-out confidences helps."""
    known, unknown = (widths(judged(*stream, temperature=each)[0]) for each in (1.0, None))
    assert (known[:2] < unknown[:2]).all()


def test_the_latest_images_count_and_the_whole_stream_counts_alike(generator):
    """Answers that go bad show in the one at once, in the other by their share."""
    truth = generator.integers(0, 10, 1200)
    right = answers(mixed(truth, 0.9, generator), 0.85)
    served = right.copy()
    served[800:] = answers(np.full(400, 3), 0.99)
    judge, chances = judged(right, right, served)
    assert judge.whole.adapted.accuracy == pytest.approx(chances[:, 0].mean())
    latest = chances[-2 * LATEST :, 0].mean()
    assert abs(judge.latest.adapted.accuracy - latest) < 0.1
    assert judge.latest.adapted.accuracy < judge.whole.adapted.accuracy - 0.2


def test_intervals_hold_what_chance_makes_of_few_images(generator):
    """Labels drawn by the chances themselves, 32 images: the true accuracy is inside at least nine
    times in ten."""
    inside = []
    for _ in range(40):
        truth = generator.integers(0, 10, 32)
        source, restyled, served = (
            answers(mixed(truth, right, generator), 0.8) for right in generator.random(3)
        )
        judge, chances = judged(source, restyled, served)
        found = (generator.random(32) < chances[:, 0]).mean()
        inside.append(judge.whole.adapted.low <= found <= judge.whole.adapted.high)
    assert np.mean(inside) >= 0.9


def test_a_saved_stream_is_judged_on_as_if_nothing_had_happened(stream):
    """A state is a copy that goes on the same."""
    judge, _ = judged(*(each[:150] for each in stream))
    state = judge.state()
    other = Judge(10)
    other.restore(state)
    rest = [each[150:] for each in stream]
    (after, chances), (also, others) = judge.after(*rest), other.after(*rest)
    assert (chances == others).all()
    assert (after.latest, after.whole, after.images) == (also.latest, also.whole, also.images)
    state["estimate"]["classes"].fill_(9)
    assert judge.judged.classes.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", -1),
        ("images", math.nan),
        ("mean0", 2.0),
        ("latest.served", 1.5),
        ("whole.differ", "much"),
        ("classes", torch.ones(10)),
        ("classes", torch.full((2,), 0.5)),
        ("classes", [0.1] * 10),
    ],
)
def test_a_state_that_is_none_is_refused(stream, name, value):
    """With what was known kept as it was."""
    judge, _ = judged(*stream)
    known = judge.whole
    state = {"estimate": {**judge.state()["estimate"], name: value}}
    with pytest.raises(ValueError, match=r"one of its numbers|averages"):
        judge.restore(state)
    assert judge.whole == known


def test_a_reset_forgets(stream):
    """As if nothing had been compared."""
    judge, _ = judged(*stream)
    judge.reset()
    assert judge.whole is None
    assert dataclasses.replace(judge.judged, classes=None, means=None).images == 0
