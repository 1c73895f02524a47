"""Labels that come for compared images are weighed beside the estimate, and lead to the same."""

from dataclasses import replace

import numpy as np
import pytest

from tests.fixtures.contract import same
from tests.fixtures.networks import make_images, make_model
from ttc_core.envelope.clauses import BUILT_IN
from ttc_core.guard.guarded import Guarded
from ttc_core.guard.watch import (
    DOUBTFUL,
    ESTIMATED,
    HARM,
    LABELLED,
    RELEASED,
    RETRIED,
    SUSPECT,
    Watch,
)
from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods import create

ALARMS = 0.01


def labelled(harm, differ, count, seed=0):
    """Of images, source right less method right: the source is right more often by `harm`, and they
    differ in so many."""
    drawn = np.random.default_rng(seed).random(count)
    return np.where(drawn < (differ + harm) / 2, 1.0, np.where(drawn < differ, -1.0, 0.0))


def turns(watch, worse, estimated=None, alarms=ALARMS):
    """What labels turn, until harm is seen, and after how many."""
    found = []
    for number, each in enumerate(worse, 1):
        if estimated is not None:
            watch, turn = watch.after(estimated[number - 1], at=number, false_alarms=alarms)
            found += [(turn.what, number)] if turn else []
        watch, turn = watch.after(each, at=number, false_alarms=alarms, kind=LABELLED)
        found += [(turn.what, number)] if turn else []
        if watch.held:
            break
    return watch, found


@pytest.mark.parametrize(("harm", "differ", "within"), [(0.15, 0.25, 450), (0.3, 0.4, 250)])
def test_harm_that_the_estimate_misses_is_found_by_labels(harm, differ, within):
    """Of 15 to 30 points: suspected after some dozens of labels, sure after some hundreds."""
    for seed in range(20):
        watch, found = turns(Watch(), labelled(harm, differ, within, seed))
        assert [what for what, _ in found].count(HARM) == 1
        assert watch.kind is LABELLED
    _, found = turns(Watch(), labelled(harm, differ, within))
    assert found[0] == (SUSPECT, found[0][1])
    assert found[0][1] < found[-1][1] / 2


def test_of_streams_that_take_no_harm_few_are_ever_held():
    """No more than half of what the setting allows, both kinds of evidence together, at the edge of
    what is harm."""
    draw = np.random.default_rng(0)
    held = 0
    for seed in range(60):
        edge = labelled(0.02, 0.02, 400, seed)  # two points, the method never right alone
        watch, _ = turns(Watch(), edge, draw.normal(0.25, 0.3, 400), alarms=0.5)
        held += watch.held
    assert held <= 15
    for seed in range(30):  # two points better
        watch, found = turns(Watch(), labelled(-0.02, 0.1, 300, seed))
        assert not watch.held
        assert len(found) <= 2


def test_each_beginning_of_either_evidence_is_held_against_its_share():
    """The second to begin needs three times as much as the first."""
    estimate_first, _ = Watch().after(0.0, at=0, false_alarms=ALARMS)
    both, _ = estimate_first.after(0.0, at=0, false_alarms=ALARMS, kind=LABELLED)
    assert (both.estimated.number, both.labelled.number, both.begun) == (1, 2, 2)
    needed = []
    for watch in (Watch(), estimate_first):
        wealth = 0.0
        while not watch.held:
            wealth = watch.labelled.harm.wealth
            watch, _ = watch.after(1.0, at=0, false_alarms=ALARMS, kind=LABELLED)
        needed.append(wealth)
    assert needed[0] < 200 <= needed[1] < 600


@pytest.mark.parametrize(("kind", "other"), [(LABELLED, ESTIMATED), (ESTIMATED, LABELLED)])
def test_who_is_held_for_what_one_kind_says_is_released_by_that_kind_alone(kind, other):
    """The estimate does not see the harm that labels saw, and labels that flatter end no hold that
    the estimate began."""
    watch = Watch()
    while not watch.held:
        watch, _ = watch.after(1.0, at=1, false_alarms=ALARMS, kind=kind)
    for _ in range(300):
        watch, turn = watch.after(-1.0, at=100, false_alarms=ALARMS, kind=other)
        assert turn is None
    assert watch.bets(other).gain.wealth > RELEASED
    for _ in range(300):
        watch, turn = watch.after(-1.0, at=100, false_alarms=ALARMS, kind=kind)
        if turn is not None:
            break
    assert turn.evidence.wealth >= RELEASED
    assert not watch.by_source


def test_no_label_for_the_method_raises_suspicion():
    """Though the evidence that was left speaks against it; one against it does. So with the
    estimate, once the labels' suspicion is over."""
    left = Watch()
    while left.labelled.harm.wealth < 4 * BUILT_IN.worse_than_source:
        left, _ = left.after(1.0, at=0, false_alarms=ALARMS, kind=LABELLED)
    left = replace(left, suspected=False)
    for worse, expected in ((-1.0, False), (0.0, False), (1.0, True)):
        after, _ = left.after(worse, at=0, false_alarms=ALARMS, kind=LABELLED)
        assert after.labelled.harm.wealth >= BUILT_IN.worse_than_source
        assert after.suspected == expected
    of_late = replace(left.labelled.harm, mean=-0.5)  # and good ones since, of which one is not
    left = replace(left, labelled=replace(left.labelled, harm=of_late))
    assert not left.after(1.0, at=0, false_alarms=ALARMS, kind=LABELLED)[0].suspected


def test_suspicion_lasts_as_long_as_labels_come():
    """However few: one in three hundred images decides it in the end."""
    watch, drawn = Watch(), labelled(0.3, 0.4, 200, seed=1)
    found = []
    for each in drawn:
        judged = replace(watch, images=watch.images + 300)
        found += [judged.undecided]
        watch = replace(judged, judged_at=judged.images)
        watch, _ = watch.after(each, at=watch.images, false_alarms=ALARMS, kind=LABELLED)
        if watch.held:
            break
    assert watch.held
    assert watch.images - watch.judged_at < RETRIED < watch.images
    assert not any(found)


@pytest.fixture
def method():
    """One that has had 40 images."""
    found = Guarded(create("ttc", make_model("batch-norm"), statistics="moving"))
    for seed in range(4):
        found.adapt(found.predict(make_images(10, seed=seed)))
    return found


def done(acts):
    return [(act.action, act.reason) for act in acts]


def test_labels_hold_bring_back_and_release(method):
    """Each act with its evidence; what was answered before the stream was brought back tells
    nothing after."""
    acts = method.weigh([(False, True)] * 100).acts
    assert done(acts) == [("hold", "suspicion"), ("hold", "harm"), ("reset", "harm")]
    assert acts[0].evidence["harm"] >= BUILT_IN.worse_than_source
    assert acts[1].evidence["bets_on_labelled"] < 20
    assert method.mode == "held"
    assert method.details["labelled_of_compared"] == acts[1].evidence["bets_on_labelled"]
    said = method.predict(make_images(6))
    assert set(said.modes) == {"held"}
    assert all(said.compared)
    released = method.weigh([(True, False)] * 100).acts
    assert done(released)[0] == ("release", "gain")
    assert released[0].evidence["gain"] >= RELEASED
    assert method.mode == "rolled_back"


def test_the_images_compared_say_what_both_answered(method):
    """While the method answers and while the source does; the class that is given is one's."""
    images = make_images(8, seed=9)
    said = replace_watch(method, images=0).predict(images)
    assert [each.method for each in said.compared] == said.to_host().predicted.tolist()
    method.weigh([(False, True)] * 100)
    held = method.predict(images)
    assert [each.source for each in held.compared] == held.to_host().predicted.tolist()
    assert [each.source for each in held.compared] == [each.source for each in said.compared]


def replace_watch(method, **changes):
    method._watch = replace(method._watch, **changes)
    return method


def test_what_labels_say_between_an_answer_and_its_adapting_counts(method):
    """Labels come at any time; a batch that was answered before the stream was brought back by
    them is not learned from."""
    said = method.predict(make_images(10, seed=8))
    method.weigh([(False, True)] * 5)
    assert method.details["harm_by_labels"] > 1
    before = method._watch
    assert method.adapt(said).skipped is None
    assert method._watch.labelled == before.labelled
    assert method._watch.images == before.images + 10
    late = method.predict(make_images(10, seed=7))
    method.weigh([(False, True)] * 100)
    assert method.adapt(late).skipped == "shed"
    assert method.mode == "held"


def test_suspicion_by_labels_that_come_no_more_is_over(method):
    """After so many images; the evidence stays, so that the next label may raise it again."""
    acts = []
    while not acts:
        acts = method.weigh([(False, True)]).acts
    wealth = method.details["harm_by_labels"]
    replace_watch(method, images=RETRIED + 35)
    assert method.adapt(method.predict(make_images(4))).acts == ()
    outcome = method.adapt(method.predict(make_images(4, seed=1)))
    assert done(outcome.acts) == [("release", "suspicion")]
    assert (method.mode, method.details["harm_by_labels"]) == ("adapting", wealth)
    assert wealth > DOUBTFUL
    assert done(method.weigh([(False, True)]).acts) == [("hold", "suspicion")]


def test_a_few_labels_long_ago_are_no_doubt_for_life(method):
    """They raise it for so many images; then good states are kept again, and as few images are
    compared as of a stream without labels."""
    method.weigh([(False, True)] * 4)
    wealth = method.details["harm_by_labels"]
    assert DOUBTFUL < wealth < BUILT_IN.worse_than_source
    for images, expected in ((RETRIED + 36, ()), (RETRIED + 496, (RETRIED + 500,))):
        replace_watch(method, images=images)
        assert method._watch.is_doubtful == (expected == ())
        method.adapt(method.predict(make_images(4)))
        assert tuple(method.snapshots.values()) == expected
    assert method.details["harm_by_labels"] == wealth
    method.weigh([(False, True)])
    assert method._watch.is_doubtful


class Ending(Wrapper):
    """Its mirror images end with the next batch."""

    ended = False

    @property
    def second_view_off(self):
        return self.ended

    def adapt(self, prediction, *, learn=True):
        self.ended = True
        return self.inner.adapt(prediction, learn=learn)


def test_what_was_said_of_a_state_that_mirror_images_taught_is_over_with_it():
    """It is forgotten, and evidence begins anew for the state at the source."""
    method = Guarded(Ending(create("ttc", make_model("batch-norm"), statistics="moving")))
    method.weigh([(False, True)] * 4)
    said = method.predict(make_images(10))
    assert method.details["harm_by_labels"] > DOUBTFUL
    method.adapt(said)
    assert method.details["harm_by_labels"] == method.details["harm"] == 1
    method.weigh([(False, True)] * 4)
    method.adapt(method.predict(make_images(10, seed=1)))
    assert method.details["harm_by_labels"] > DOUBTFUL


def test_observing_weighs_all_labels_however_they_are_grouped(method):
    """Nothing was brought back, so those after harm are of what answers still."""
    found = []
    for size in (100, 10):
        other = Guarded(method.inner, acts=False)
        acts = [act for _ in range(100 // size) for act in other.weigh([(False, True)] * size).acts]
        found += [(done(acts), other.details["labelled_of_compared"])]
    assert found[0] == found[1]
    assert found[0][1] == 100


def test_what_is_brought_back_twice_between_two_images_is_judged_by_neither_before(method):
    """Labels end at each, though no image has come."""
    method.weigh([(False, True)] * 100)
    method.weigh([(True, False)] * 100)
    count = method.details["labelled_of_compared"]
    acts = method.weigh([(False, True)] * 200).acts
    assert done(acts)[-1] == ("reset", "harm")
    assert method.details["labelled_of_compared"] - count < 100


def test_observing_weighs_labels_and_does_nothing(method):
    """Each act is told as one that would have been."""
    other = Guarded(method.inner, acts=False)
    before = other.inner.state()
    acts = other.weigh([(False, True)] * 100).acts
    assert all(act.observed for act in acts)
    assert len(acts) == 3
    assert same(other.inner.state(), before)
    assert other.predict(make_images(4)).modes == ("adapting",) * 4


def test_what_labels_said_outlives_a_restart(method):
    """To the last bit, held for them or not."""
    for judged in ([(False, True)] * 3, [(False, True)] * 100):
        method.weigh(judged)
        other = method.fork()
        other.restore(method.state())
        assert same(other.state(), method.state())
        assert other._watch == method._watch
