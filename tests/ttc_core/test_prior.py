"""What images just before say of the next: it gains where they say something, and never costs."""

import pytest
import torch
from torch import Tensor

from tests.fixtures.contract import same
from ttc_core.methods.contract import Pending, Prediction
from ttc_core.methods.parts.prior import TemporalPrior

CLASSES = 10


def scores(labels: Tensor, *, favour: float = 0.0, seed: int = 0) -> Tensor:
    """(N, K) logits of a network that is right now and then, and likes class 3 on every image."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(len(labels), CLASSES, generator=generator)
    logits[torch.arange(len(labels)), labels] += 2.5
    logits[:, 3] += favour
    return logits


def shuffled(count: int, seed: int = 0) -> Tensor:
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


def in_runs(count: int, length: int) -> Tensor:
    return shuffled(count // length, seed=5).repeat_interleave(length)


def follow(prior: TemporalPrior, logits: Tensor, batch: int = 10, context=None) -> Tensor:
    """Answer a stream batch after batch, each committed: (N, K)."""
    answers = []
    for at in range(0, len(logits), batch):
        asked = None if context is None else context[at : at + batch]
        answered, after, _ = prior.answers(logits[at : at + batch], asked)
        pending = Pending(after={"context": after})
        prior.commit(Prediction.of(logits[at : at + batch], pending=pending), learned=True)
        answers.append(answered)
    return torch.cat(answers)


def accuracy(answers: Tensor, labels: Tensor) -> float:
    return 100 * float((answers.argmax(dim=1) == labels).double().mean())


def moved(prior: TemporalPrior) -> bool:
    return not same(prior.state(), TemporalPrior(CLASSES).state())


@pytest.mark.parametrize("favour", [0.0, 0.5, 1.0])
def test_images_in_no_order_lose_nothing(favour):
    """Nor where the network favours a class on every image: that is its habit, not the stream's."""
    labels = shuffled(3000)
    logits = scores(labels, favour=favour)
    answers = follow(TemporalPrior(CLASSES), logits)
    assert accuracy(answers, labels) > accuracy(logits, labels) - 1


@pytest.mark.parametrize("favour", [1.0, 1.5, 2.0])
def test_habits_under_other_conditions_are_no_runs(favour):
    """A network in fog likes a class that it did not like before: once this is said to be other
    conditions, that is its habit as if the stream began there."""
    prior, labels = TemporalPrior(CLASSES), shuffled(400, seed=1)
    logits = scores(labels, favour=favour, seed=1)
    follow(prior, scores(shuffled(400)))
    averages = prior.state()["context"]["averages"]
    prior.restart()
    assert same(prior.state()["context"]["averages"], averages)  # what was seen of late was seen
    assert accuracy(follow(prior, logits), labels) > accuracy(logits, labels) - 3


def test_runs_of_a_class_gain():
    """What the images before were is told apart better than one image alone."""
    labels = in_runs(2000, 50)
    logits = scores(labels)
    assert accuracy(follow(TemporalPrior(CLASSES), logits), labels) > accuracy(logits, labels) + 10


def test_the_first_image_of_a_burst_is_seen():
    """A network that is mostly right is believed, and not only what stood there before."""
    labels = in_runs(2000, 8)
    logits = 2 * scores(labels) + 3 * torch.eye(CLASSES)[labels]
    first = torch.cat((torch.tensor([True]), labels[1:] != labels[:-1]))
    answers = follow(TemporalPrior(CLASSES), logits)
    assert accuracy(answers[first], labels[first]) > accuracy(logits[first], labels[first]) - 15
    assert accuracy(answers, labels) > accuracy(logits, labels) + 5


def test_a_stream_of_one_class_gains():
    """Its usual answer is that class, which is not taken for the network's habit."""
    labels = torch.full((500,), 7)
    logits = scores(labels)
    assert accuracy(follow(TemporalPrior(CLASSES), logits), labels) > accuracy(logits, labels) + 10


def test_an_image_that_stands_alone_is_answered_with_the_networks_own_answer():
    """And leaves everything as it was, whatever came before."""
    prior = TemporalPrior(CLASSES)
    follow(prior, scores(torch.full((50,), 2)))
    before = prior.state()
    logits = scores(shuffled(20))
    answers = follow(prior, logits, context=[False] * 20)
    torch.testing.assert_close(answers, logits.softmax(dim=1))
    assert same(prior.state(), before)


def test_images_that_stand_alone_are_nothing_to_those_beside_them():
    """In one batch, the others' answers and what follows are as if they had not been there."""
    logits, alone = scores(in_runs(60, 20)), [number % 3 == 0 for number in range(60)]
    rest = torch.tensor(alone).logical_not()
    mixed, without = TemporalPrior(CLASSES), TemporalPrior(CLASSES)
    answers = follow(mixed, logits, context=[not each for each in alone])
    torch.testing.assert_close(answers[rest], follow(without, logits[rest]))
    torch.testing.assert_close(answers[~rest], logits[~rest].softmax(dim=1))
    assert same(mixed.state(), without.state())


@pytest.mark.parametrize("batch", [2, 7, 200])
def test_it_does_not_matter_how_images_are_grouped(batch):
    """Images in one batch weigh in the answers to each other as they would one by one."""
    logits = scores(in_runs(200, 25))
    one_by_one, grouped = TemporalPrior(CLASSES), TemporalPrior(CLASSES)
    assert same(follow(one_by_one, logits, batch=1), follow(grouped, logits, batch=batch))
    assert same(one_by_one.state(), grouped.state())


def test_answering_moves_nothing():
    """Only what is committed does."""
    prior = TemporalPrior(CLASSES)
    prior.answers(scores(shuffled(30)))
    assert not moved(prior)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_image_without_an_answer_harms_no_other(value):
    """Its own answer is none; those behind it are as if it had not come."""
    logits = scores(in_runs(40, 20))
    hit = logits.clone()
    hit[7, 2], hit[19] = value, value
    rest = hit.isfinite().all(dim=1)
    prior, without = TemporalPrior(CLASSES), TemporalPrior(CLASSES)
    answers = follow(prior, hit)
    assert answers[~rest].isnan().all()
    assert same(answers[rest], follow(without, hit[rest]))
    assert same(prior.state(), without.state())


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_the_surest_answers_are_answers(size):
    """Softmax gives zeros to the last bit; all that follows stays finite, and sums to 1."""
    prior = TemporalPrior(CLASSES)
    answers = follow(prior, size * scores(in_runs(200, 10)))
    assert answers.isfinite().all()
    torch.testing.assert_close(answers.sum(dim=1), torch.ones(200))
    for value in prior.state()["context"].values():
        assert torch.as_tensor(value).isfinite().all()


def test_a_stream_goes_on_where_it_stood():
    """To the last bit; the copy is nobody else's."""
    prior, other = TemporalPrior(CLASSES), TemporalPrior(CLASSES)
    follow(prior, scores(in_runs(100, 20)))
    state = prior.state()
    other.restore(state)
    ahead = scores(in_runs(60, 20), seed=1)
    assert same(follow(prior, ahead), follow(other, ahead))
    assert moved(other)
    for value in state["context"].values():
        if isinstance(value, Tensor):
            value.fill_(torch.nan)
    assert other.answers(ahead)[0].isfinite().all()
    other.reset()
    assert not moved(other)


def changed(name, change):
    def make(entries):
        return {**entries, name: change(entries[name])}

    return make


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(changed("averages", lambda t: t[:, 1:]), id="classes"),
        pytest.param(changed("averages", lambda t: t[:1]), id="horizons"),
        pytest.param(changed("averages", lambda t: -t), id="negative"),
        pytest.param(changed("averages", lambda t: 2 * t), id="sum"),
        pytest.param(changed("averages", lambda t: t * torch.nan), id="nan"),
        pytest.param(changed("weights", lambda t: t.flatten()), id="weights-shape"),
        pytest.param(changed("weights", lambda t: t / 2), id="weights-sum"),
        pytest.param(changed("weights", lambda t: t + torch.inf), id="weights-infinite"),
        pytest.param(changed("usual", lambda t: t.T), id="usual-turned"),
        pytest.param(changed("context_images", lambda _: -100), id="images-negative"),
        pytest.param(changed("context_images", lambda _: torch.nan), id="images-nan"),
        pytest.param(changed("context_images", lambda _: 10**400), id="images-absurd"),
        pytest.param(changed("context_images", lambda _: "7"), id="images-text"),
        pytest.param(changed("usual", lambda _: "even"), id="usual-text"),
    ],
)
def test_a_state_that_is_none_is_refused(change):
    """It would spoil every later answer; the prior is as it was."""
    prior = TemporalPrior(CLASSES)
    follow(prior, scores(shuffled(20)))
    before = prior.state()
    with pytest.raises(ValueError, match=r"^(its averages|one of its numbers)"):
        prior.restore({"context": change(dict(before["context"]))})
    assert same(prior.state(), before)
