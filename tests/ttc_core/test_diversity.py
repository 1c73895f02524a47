"""How diverse the answers of late are, which is what late layers wait for."""

import pytest
import torch
from torch import Tensor

from tests.fixtures.contract import same
from tests.fixtures.networks import CLASSES, make_model
from ttc_core.methods.contract import Pending, Prediction
from ttc_core.methods.parts.diversity import LARGEST_WEIGHT, LEAST_IMAGES, Diversity

WINDOW = 64


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def diversity(model):
    return Diversity(model, WINDOW)


def answers(labels: Tensor, confidence: float = 0.9) -> Tensor:
    """(N, K) probabilities."""
    rest = (1 - confidence) / (CLASSES - 1)
    found = torch.full((len(labels), CLASSES), rest)
    found[torch.arange(len(labels)), labels] = confidence
    return found


def shuffled(count: int) -> Tensor:
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(0))


def follow(diversity: Diversity, probabilities: Tensor, batch: int = 10) -> list[float]:
    """Commit a stream batch after batch; how open late layers were after each."""
    opening = []
    for each in probabilities.split(batch):
        classes = diversity.after(each)
        pending = Pending(after={"classes": classes})
        diversity.commit(Prediction.of(each.log(), pending=pending), learned=True)
        opening.append(classes.opening)
    return opening


@pytest.mark.parametrize("confidence", [0.25, 0.6, 0.9, 1.0])
def test_one_class_never_opens(diversity, confidence):
    """However long it comes; even start and unsure answers are no diversity."""
    labels = torch.full((1000,), 2)
    assert not any(follow(diversity, answers(labels, confidence)))


def test_two_classes_of_five_never_open(diversity):
    """Nor do they in runs."""
    labels = torch.tensor([0, 3]).repeat(500)
    assert not any(follow(diversity, answers(labels)))
    diversity.reset()
    assert not any(follow(diversity, answers(labels.sort().values)))


def test_all_classes_open_soon_and_stay_open(diversity):
    """Within a hundred images of any order; a run of one class afterwards closes nothing again."""
    opening = follow(diversity, answers(shuffled(100)))
    assert opening[3] == 0
    assert opening[-1] == 1
    assert follow(diversity, answers(torch.full((200,), 1)))[-1] == 1
    assert diversity.classes.openness == 0


def test_after_a_change_of_conditions_it_takes_as_many_answers_as_at_the_start(diversity):
    """What was diverse is taken for it until then; the window of before tells nothing any more."""
    follow(diversity, answers(shuffled(100)))
    diversity.restart()
    few = answers(torch.full((LEAST_IMAGES,), 1))
    follow(diversity, few[:-1], batch=1)
    assert diversity.classes.diverse
    assert not diversity.classes.narrowed
    follow(diversity, few[-1:])
    assert diversity.classes.narrowed
    assert diversity.classes.opening == 1


def test_the_same_guess_again_and_again_never_opens(diversity):
    """A film of something unknown: no answer is sure, and all are alike."""
    guess = torch.tensor([0.3, 0.2, 0.2, 0.2, 0.1])
    noise = torch.randn(400, CLASSES, generator=torch.Generator().manual_seed(1))
    assert not any(follow(diversity, (guess.log() + 0.2 * noise).softmax(1)))


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
def test_answers_that_are_hardly_more_than_even_never_open(diversity, noise):
    """A network that knows nothing: which class is a little ahead says nothing."""
    logits = noise * torch.randn(400, CLASSES, generator=torch.Generator().manual_seed(1))
    assert not any(follow(diversity, logits.softmax(1)))


def test_a_rare_class_counts_more(diversity):
    """As if all were equally frequent, within bounds."""
    labels = torch.where(torch.arange(300) % 10 == 0, 4, 1)
    follow(diversity, answers(labels))
    importance = diversity.classes.importance
    assert importance[4] > 1 > importance[1] > 0
    assert importance.max() <= LARGEST_WEIGHT
    rare, frequent = diversity.after(answers(torch.tensor([4, 1]))).weights
    assert LARGEST_WEIGHT >= rare > 1 > frequent > 0


def test_even_classes_count_alike(diversity):
    """What an image to come will count is told ahead."""
    follow(diversity, answers(torch.arange(CLASSES).repeat(60), confidence=0.6))
    assert diversity.classes.expected_weight == pytest.approx(1, abs=0.02)
    weights = diversity.after(answers(torch.arange(CLASSES))).weights
    assert weights == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("batch", [2, 7, 100])
def test_it_does_not_matter_how_images_are_grouped(model, batch):
    """Images in one batch are taken in their order."""
    found = answers(shuffled(100), confidence=0.7)
    one_by_one, grouped = Diversity(model, WINDOW), Diversity(model, WINDOW)
    follow(one_by_one, found, batch=1)
    follow(grouped, found, batch=batch)
    now, expected = (each.state()["classes"] for each in (grouped, one_by_one))
    assert same(now["frequencies"], expected["frequencies"])
    assert now["images"] == expected["images"] == 100
    assert now["openness"] == expected["openness"]


def test_answering_moves_nothing_and_an_image_without_an_answer_counts_nothing(diversity):
    """Only what is committed does."""
    before = diversity.state()
    found = answers(shuffled(5))
    hit = torch.cat((found[:2], torch.full((1, CLASSES), torch.nan), found[2:]))
    with_it, without = diversity.after(hit), diversity.after(found)
    assert with_it.weights[2] == 0
    assert with_it.frequencies.tolist() == without.frequencies.tolist()
    assert same(diversity.state(), before)


def test_a_stream_goes_on_where_it_stood(model, diversity):
    """To the last bit."""
    other = Diversity(model, WINDOW)
    follow(diversity, answers(shuffled(60)))
    other.restore(diversity.state())
    assert same(other.state(), diversity.state())
    ahead = answers(shuffled(40), confidence=0.5)
    assert follow(other, ahead) == follow(diversity, ahead)
    assert same(other.state(), diversity.state())
    other.reset()
    assert same(other.state(), Diversity(model, WINDOW).state())


@pytest.mark.parametrize(
    "changed",
    [
        {"frequencies": torch.ones(CLASSES + 1) / (CLASSES + 1)},
        {"frequencies": torch.ones(CLASSES)},
        {"frequencies": torch.full((CLASSES,), torch.nan)},
        {"images": -1},
        {"images": None},
        {"openness": torch.nan},
        {"openness": -0.5},
        {"opening": 1.5},
        {"opening": torch.inf},
    ],
    ids=str,
)
def test_a_state_that_is_none_is_refused(diversity, changed):
    """What late layers would be blended with is a share; the classes are as they were."""
    follow(diversity, answers(shuffled(60)))
    before = diversity.state()
    with pytest.raises(ValueError, match=r"^(its averages|one of its numbers)"):
        diversity.restore({"classes": {**before["classes"], **changed}})
    assert same(diversity.state(), before)
