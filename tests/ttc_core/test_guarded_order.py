"""Whether what is served follows the images, as three order their classes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.fixtures.networks import make_images, make_model
from tests.ttc_core.test_guarded import some
from ttc_core.guard.guarded import Guarded
from ttc_core.guard.order import Order
from ttc_core.guard.watch import GAIN, HARM, LABELLED, ORDERED, RELEASED, Watch
from ttc_core.load import load
from ttc_core.methods import create

K = 10


def answers(truth, strength, generator, bias=0.0):
    """(n, K) probabilities that know so much of the truth, and lean to some classes."""
    logits = strength * np.eye(K)[truth] + generator.normal(size=(len(truth), K)) + bias
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True)


def poor(truth, generator):
    """Of a poor source: mostly two classes, a fifth right; of the restyled one nine tenths are."""
    return answers(truth, 1.5, generator, bias=3.0 * np.isin(np.arange(K), (2, 5)))


def turned(source, restyled, served, watch=None):
    """What the orders turn, until harm is seen or is over, and the watch then."""
    watch, found = watch or Watch(), []
    for worse in Order(K).after(source, restyled, served)[1]:
        watch, turn = watch.after(worse, at=0, false_alarms=0.01, kind=ORDERED)
        found += [turn.what] if turn else []
        if found[-1:] in ([HARM], [GAIN]):
            break
    return watch, found


@pytest.mark.parametrize("seed", range(10))
def test_a_collapse_is_seen_where_the_source_is_poor(seed):
    """Whatever it answers; and it is not released for being sure."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, K, 300)
    given = poor(truth, generator), answers(truth, 3.0, generator)
    collapsed = answers(truth, 0.0, generator, bias=8.0 * (np.arange(K) == 5))
    assert turned(*given, collapsed)[1][-1] == HARM
    held = replace(Watch(), held=True, alarms=1, by=2)
    assert turned(*given, collapsed, held)[0].held


@pytest.mark.parametrize("classes", [1, 2, K])
def test_what_follows_the_images_is_left_alone(classes):
    """Also where it answers one class, rightly, of which the source sees little; and where it knows
    much that the source does not, it is released."""
    for seed in range(10):
        generator = np.random.default_rng(seed)
        truth = generator.integers(0, classes, 300)
        prior = 6.0 * (np.arange(K) < classes)
        good = answers(truth, 3.0, generator, bias=prior if classes < K else 0.0)
        given = poor(truth, generator), answers(truth, 3.0, generator), good
        watch, found = turned(*given)
        assert found == []
        assert watch.ordered.harm.wealth < 3
        if classes == K:
            held = replace(Watch(), held=True, alarms=1, by=2)
            assert turned(*given, held)[1] == [GAIN]


def compared(source, restyled, served, every):
    """What the orders say where one image in so many is compared."""
    return Order(K).after(*(each[::every] for each in (source, restyled, served)))[1]


@pytest.mark.parametrize("every", [1, 17])
def test_an_answer_that_is_better_than_two_that_err_alike_is_left_alone(every):
    """Pictures upside down: source and restyled source mistake them for the same others."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, K, 2000)
    mistaken = (truth + 3) % K
    given = (answers(mistaken, 3.0, generator) for _ in range(2))
    found = compared(*given, answers(truth, 4.0, generator), every)
    assert max(found) <= 0


@pytest.mark.parametrize("every", [1, 17])
def test_a_change_is_no_harm(every):
    """What source and restyled source usually say is of before, and they lean to the same now."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, K, 1600)
    leaning = 4.0 * np.isin(np.arange(K), (2, 5)) * (np.arange(1600) >= 800)[:, None]
    given = (answers(truth, 2.0, generator, bias=leaning) for _ in range(2))
    found = compared(*given, answers(truth, 3.0, generator), every)
    assert max(found) <= 0


def test_who_is_held_for_its_order_is_not_released_by_labels():
    """Each kind releases whom it held."""
    watch = replace(Watch(), held=True, alarms=1, by=2)
    for _ in range(100):
        watch, turn = watch.after(-1.0, at=0, false_alarms=0.01, kind=LABELLED)
        assert turn is None
    assert watch.labelled.gain.wealth > RELEASED


def test_orders_do_not_depend_on_how_sure_anybody_is():
    """No temperature changes them."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, K, 50)
    given = [answers(truth, strength, generator) for strength in (1.0, 2.0, 2.0)]
    _, expected = Order(K).after(*given)
    for power in (0.5, 3.0):
        other = given[2] ** power / (given[2] ** power).sum(axis=1, keepdims=True)
        _, found = Order(K).after(*given[:2], other)
        assert found == pytest.approx(expected)


def test_images_in_one_call_or_in_several_come_to_the_same():
    """Nothing changes before it is committed; an answer that is no number is passed over; a
    restart changes nothing."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, K, 30)
    given = [answers(truth, 2.0, generator) for _ in range(3)]
    given[2][7] = math.nan
    whole, order, found = Order(K), Order(K), []
    usual, expected = whole.after(*given)
    assert whole.usual.images == 0
    for at in range(0, 30, 10):
        order.usual, some_of_them = order.after(*(each[at : at + 10] for each in given))
        found += some_of_them
        state = order.state()
        order = Order(K)
        order.restore(state)
    assert found == expected
    assert expected.index(None) == 7
    assert expected.count(None) == 1
    assert order.usual.images == usual.images == 29


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logs", torch.full((3, K), math.nan)),
        ("logs", torch.zeros(3, 4)),
        ("answers", torch.ones(2, K)),
        ("recent", torch.ones(2, K)),
        ("images", -1),
    ],
)
def test_a_state_that_is_none_is_refused(name, value):
    """It is another network's, or of numbers that are none."""
    state = Order(K).state()
    with pytest.raises(ValueError, match=r"its orders|its averages|its numbers"):
        Order(K).restore({"order": {**state["order"], name: value}})


def test_a_stream_of_a_former_version_goes_on():
    """Which knew no orders, and said of a hold whether labels led to it."""
    method = Guarded(create("ttc", make_model("batch-norm"), statistics="moving"))
    method.adapt(method.predict(make_images(10)))
    method.weigh([(False, True)] * 100)
    state = {name: dict(each) for name, each in method.state().items()}
    del state["guard.order"]
    for name in [name for name in state["guard"] if name.startswith("ordered.")]:
        del state["guard"][name]
    state["guard"]["by_labels"] = state["guard"].pop("by")
    other = method.fork()
    other.adapt(other.predict(make_images(10, seed=1)))  # what it knew by then is forgotten
    assert other._comparing.order.usual.images > 0
    other.restore(state)
    assert other._watch.held
    assert other._watch.kind is LABELLED
    assert other._comparing.order.usual.images == 0
    assert other._watch.ordered == Watch().ordered


def test_a_network_without_a_second_opinion_has_no_orders():
    """Its restyled source is the source, to which nothing can be nearer."""
    method = Guarded(create("tent", make_model("group-norm")))
    method.adapt(method.predict(make_images(20)))
    assert method._watch.estimated.harm.observations == 20
    assert method._watch.ordered.harm.observations == 0


def test_tent_image_by_image_is_suspected_in_fog():
    """Of a network of which 26 % are right there; the estimate alone never saw it."""
    method = Guarded(create("tent", load("bundled")))
    acts = []
    for image in some("fog", 60).split(1):
        acts += method.adapt(method.predict(image)).acts
    assert [(act.action, act.reason) for act in acts][:1] == [("hold", "suspicion")]
    assert acts[0].evidence["bets_on_order"] < 60
    assert method.mode == "held"
