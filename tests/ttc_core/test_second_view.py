"""The mirror image takes part as long as it means the same, which is seen without labels."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.contract import same
from tests.fixtures.networks import SIZE
from ttc_core.methods import create
from ttc_core.methods.contract import Pending, Prediction
from ttc_core.methods.parts.second_view import (
    LESS_SURE,
    TOLERATED,
    SecondView,
    divergence_of_views,
    lost_certainty,
)
from ttc_core.model import SourceModel

CLASSES = 4


class Sides(nn.Module):
    """Reads where an image is bright: left, right, above or below."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Linear(2 * SIZE * SIZE, CLASSES)
        ramp = torch.linspace(-1, 1, SIZE).sign() * sharpness / SIZE**2
        across, down = ramp.expand(SIZE, SIZE), ramp[:, None].expand(SIZE, SIZE)
        weight = torch.stack([-across, across, -down, down])
        with torch.no_grad():
            self.conv.weight.fill_(1 / 3)
            self.head.weight.copy_(torch.stack((weight, weight), dim=1).flatten(1) / 2)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).flatten(1))


def make_model(sharpness: float = 8.0) -> SourceModel:
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return SourceModel(Sides(sharpness).eval(), mean=mean, std=std, size=SIZE)


def bright(sides: Tensor, seed: int = 0) -> Tensor:
    """(N, 3, 8, 8) uint8, each brighter on one side."""
    images = torch.zeros(len(sides), 3, SIZE, SIZE)
    half = SIZE // 2
    places = (
        (slice(None), slice(half)),
        (slice(None), slice(half, None)),
        (slice(half), slice(None)),
        (slice(half, None), slice(None)),
    )
    for image, side in zip(images, sides.tolist(), strict=True):
        image[:, *places[side]] = 120
    generator = torch.Generator().manual_seed(seed)
    noise = 20 * torch.randn(images.shape, generator=generator)
    return (70 + images + noise).clamp(0, 255).to(torch.uint8)


def drawn(count: int, sides: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.tensor(sides)[torch.randint(len(sides), (count,), generator=generator)]


LEFT_OR_RIGHT, UP_OR_DOWN = (0, 1), (2, 3)


def follow(method, images: Tensor, batch: int = 10) -> int | None:
    """Answer and adapt; after how many images the second view was left out."""
    for at in range(0, len(images), batch):
        method.adapt(method.predict(images[at : at + batch]))
        if method.second_view_off:
            return at + batch
    return None


@pytest.fixture(scope="module")
def model():
    return make_model()


def test_a_mirror_image_that_means_another_class_is_left_out(model):
    """Within 100 images; from then on each image is answered by itself."""
    method = create("ttc_stream", model, learn="always", samples_per_step=5)
    images = bright(drawn(200, LEFT_OR_RIGHT))
    ended = follow(method, images)
    assert ended is not None
    assert ended <= 100
    plain = create("ttc_stream", model, learn="always", samples_per_step=5, second_view="off")
    rest = images[ended:]
    for at in range(0, len(rest), 10):
        prediction, expected = (each.predict(rest[at : at + 10]) for each in (method, plain))
        assert same(prediction.probabilities, expected.probabilities)
        method.adapt(prediction)
        plain.adapt(expected)
    assert same(method.state()["affine"], plain.state()["affine"])


def test_what_it_moved_before_is_undone(model):
    """Learned with mirror images that are others, all else is back at the source."""
    method = create("ttc_stream", model, learn="always", samples_per_step=5)
    assert follow(method, bright(drawn(200, LEFT_OR_RIGHT))) is not None
    state, fresh = dict(method.state()), dict(method.fork().state())
    assert state.pop("second_view")["lost"] == 1
    assert fresh.pop("second_view")["lost"] == 0
    assert same(state, fresh)
    assert (method.version, method.pending_batches) == (0, 0)


def test_what_is_told_of_the_batch_is_how_it_left_the_stream(model):
    """The drift is the source's, 0, though a step was just taken."""
    method = create("ttc_stream", model, learn="always", samples_per_step=5)
    outcome = method.adapt(method.predict(bright(drawn(20, LEFT_OR_RIGHT))))
    assert method.second_view_off
    assert outcome.stepped
    assert outcome.drift == method.drift == 0


def test_the_answers_are_right_from_the_batch_in_which_it_is_seen(model):
    """That batch is answered by the images themselves already."""
    method, sides = create("ttc_stream", model), drawn(200, LEFT_OR_RIGHT)
    images = bright(sides)
    ended = follow(method, images)
    again = method.fork()
    follow(again, images[: ended - 10])
    found = again.predict(images[ended - 10 : ended]).probabilities.argmax(dim=1)
    assert not again.second_view_off
    assert torch.equal(found, sides[ended - 10 : ended])


def test_a_new_stream_begins_with_both_views_and_so_does_a_reset_one(model):
    """What one camera's images mean says nothing of another's."""
    method = create("ttc_stream", model)
    assert follow(method, bright(drawn(200, LEFT_OR_RIGHT))) is not None
    assert not method.fork().second_view_off
    method.reset()
    assert not method.second_view_off


@pytest.mark.parametrize(("mode", "used"), [("on", True), ("off", False)])
def test_it_can_be_forced_either_way(model, mode, used):
    """Whatever the images are; nothing is watched then."""
    method = create("ttc_stream", model, second_view=mode)
    images = bright(drawn(100, LEFT_OR_RIGHT))
    assert follow(method, images) is None
    logits, mirrored = (method.predict(each).logits for each in (images[:10], images[:10].flip(3)))
    assert torch.allclose(logits, mirrored, atol=1e-4) == used


def test_where_mirror_images_mean_the_same_the_bet_is_never_lost(model):
    """Two thousand images of above and below."""
    method = create("ttc_stream", model)
    assert follow(method, bright(drawn(2000, UP_OR_DOWN)), batch=100) is None


def test_it_is_remembered_over_a_restart(model):
    """To the last bit."""
    method, other = (create("ttc_stream", model) for _ in range(2))
    images = bright(drawn(200, LEFT_OR_RIGHT))
    follow(method, images)
    other.restore(method.state())
    assert other.second_view_off
    assert same(other.state(), method.state())


def two_answers(divergences: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, 2) of two views that differ by so many nats each: p and 1 − p."""
    low, high = torch.full_like(divergences, 0.5), torch.ones_like(divergences)
    for _ in range(50):
        middle = (low + high) / 2
        entropy = torch.special.entr(middle) + torch.special.entr(1 - middle)
        larger = math.log(2) - entropy > divergences
        low, high = torch.where(larger, low, middle), torch.where(larger, middle, high)
    p = low.clamp(1e-12, 1 - 1e-12)
    views = torch.stack((p.log(), (1 - p).log()), dim=1)
    return views, views.flip(1)


def answers(certainties: Tensor) -> Tensor:
    """Logits (N, 2) that are so certain: 1 is one class for sure, 0 both alike."""
    low, high = torch.full_like(certainties, 0.5), torch.ones_like(certainties)
    for _ in range(50):
        middle = (low + high) / 2
        entropy = torch.special.entr(middle) + torch.special.entr(1 - middle)
        larger = 1 - entropy / math.log(2) > certainties
        low, high = torch.where(larger, low, middle), torch.where(larger, middle, high)
    p = low.clamp(1e-12, 1 - 1e-12)
    return torch.stack((p.log(), (1 - p).log()), dim=1)


def watched(logits: Tensor, others: Tensor) -> bool:
    """Whether the bet is lost on a stream of both views' answers."""
    second_view = SecondView("auto")
    for views in zip(logits.split(100), others.split(100), strict=True):
        prediction = Prediction.of(
            views[0], pending=Pending(after={"second_view": second_view.after(*views)})
        )
        second_view.commit(prediction, learned=True)
    return not second_view.used


def test_the_divergence_of_two_answers_is_between_nothing_and_ln_2():
    """Also of answers that are certain to the last bit."""
    logits = torch.tensor([[1.0, 2.0], [1e4, -1e4], [50.0, -50.0]])
    assert divergence_of_views(logits, logits).abs().max() < 1e-12
    assert divergence_of_views(logits[1:], -logits[1:]).tolist() == pytest.approx([math.log(2)] * 2)
    wanted = torch.linspace(0, 0.69, 8, dtype=torch.double)
    torch.testing.assert_close(divergence_of_views(*two_answers(wanted)), wanted)


def test_at_most_one_stream_in_a_hundred_is_wronged():
    """Of streams whose views differ by as much as is tolerated, in the worst way: all or nothing.

    Of 300 at most 9: three are expected at most, and more than nine come once in 300 times.
    """
    generator = torch.Generator().manual_seed(3)
    certain = (torch.rand(300, 500, generator=generator).double() < TOLERATED / 0.69) * 0.69
    assert sum(watched(*two_answers(stream)) for stream in certain) <= 9


def test_streams_whose_views_differ_more_are_found():
    """Even where single images do not: half differ wholly, half not at all is too much."""
    generator = torch.Generator().manual_seed(4)
    streams = (torch.rand(30, 1000, generator=generator).double() < 0.65) * 0.69
    assert all(watched(*two_answers(stream)) for stream in streams)


def test_lost_certainty_is_between_minus_one_and_one():
    """Also where certain answers become guesses, or guesses certain."""
    certain, guess = answers(torch.ones(1).double()), answers(torch.zeros(1).double())
    assert lost_certainty(certain, guess).item() == pytest.approx(1, abs=1e-9)
    assert lost_certainty(guess, certain).item() == pytest.approx(-1, abs=1e-9)
    wanted = torch.linspace(0, 1, 8, dtype=torch.double)
    torch.testing.assert_close(lost_certainty(certain.expand(8, 2), answers(1 - wanted)), wanted)


def test_an_unsure_network_is_wronged_as_rarely():
    """Of streams whose mirror images cost as much certainty as is tolerated: all, or nothing."""
    generator = torch.Generator().manual_seed(5)
    guessed = torch.rand(300, 500, generator=generator).double() < LESS_SURE
    sure = answers(torch.ones(500).double())
    wronged = sum(watched(sure, answers(1.0 - stream.double())) for stream in guessed)
    assert wronged <= 9


def test_mirror_images_of_which_a_network_is_less_sure_are_found():
    """Digits: both answers are so unsure that they hardly differ; within 300 images."""
    logits, others = (answers(torch.full((300,), each).double()) for each in (0.4, 0.2))
    assert divergence_of_views(logits, others).max() < TOLERATED / 2
    assert watched(logits, others)
    assert not watched(others, logits)


def test_what_is_suspicious_is_left_out_of_the_answers_before_the_bet_is_lost(model):
    """Of digits the first forty images were a third wrong until then."""
    method = create("ttc_stream", model)
    suspicious = bright(drawn(4, LEFT_OR_RIGHT))
    prediction = method.predict(suspicious)
    assert not prediction.pending.after["second_view"].lost
    plain = create("ttc_stream", model, second_view="off").predict(suspicious)
    torch.testing.assert_close(prediction.logits, plain.logits)


@pytest.mark.parametrize("guard", ["off", "on"])
def test_it_can_be_left_out_of_a_batch(model, guard):
    """Then the answers are those of a method without, and of the bet nothing comes; statistics,
    prior and what is learned follow the images all the same. A guard lets it be."""
    images = bright(drawn(12, LEFT_OR_RIGHT))
    method = create("ttc_stream", model, guard=guard)
    plain = create("ttc_stream", model, guard=guard, second_view="off")
    assert method.looks_twice
    assert not plain.looks_twice
    bet = method.state()["second_view"]
    for batch in images.split(4):
        answered, wanted = method.predict(batch, second_view=False), plain.predict(batch)
        torch.testing.assert_close(answered.probabilities, wanted.probabilities)
        assert method.adapt(answered) == plain.adapt(wanted)
    assert same(method.state(), plain.state())
    assert method.state()["second_view"] == bet
    assert method.predict(images).pending is not None
    assert method.looks_twice


@pytest.mark.parametrize(
    "changed",
    [
        {"unlike": math.nan},
        {"unlike": math.inf},
        {"unlike": -math.inf},
        {"unlike": 7.0},
        {"unsure": math.nan},
        {"unsure": 7.0},
        {"unsure": None},
        {"lost": 2},
        {"lost": "no"},
    ],
    ids=str,
)
def test_a_state_that_is_none_is_refused(changed):
    """The bet is as it was."""
    second_view = SecondView("auto")
    before = second_view.state()
    with pytest.raises(ValueError, match="one of its numbers"):
        second_view.restore({"second_view": {**before["second_view"], **changed}})
    assert same(second_view.state(), before)
