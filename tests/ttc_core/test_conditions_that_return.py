"""Light and weather change and come back: a stream notices, and goes on from what it followed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.networks import CLASSES, MEAN, SIZE, STD, make_images, make_model
from ttc_core.methods import create
from ttc_core.methods.contract import Pending, Prediction
from ttc_core.methods.parts.conditions import PRESENT, REMEMBERED, Conditions
from ttc_core.methods.parts.diversity import Classes, Diversity
from ttc_core.methods.parts.prior import TemporalPrior
from ttc_core.methods.parts.shadow import Shadow
from ttc_core.methods.parts.stream_statistics import StreamShare, StreamStatistics
from ttc_core.model import SourceModel

DAY, NIGHT, FOG = 1.0, 0.2, 3.0


@pytest.fixture(scope="module")
def model():
    return make_model()


class Stream:
    """The parts as their method has them, and images that look so or so."""

    def __init__(self, model):
        self.statistics = StreamStatistics(model, blend=1.0, early_horizon=50, late_horizon=400)
        self.shadow = Shadow(model)
        self.diversity, self.prior = Diversity(model, 64), TemporalPrior(model.classes)
        self.conditions = Conditions(
            model, self.statistics, self.shadow, self.diversity, self.prior
        )
        self._layouts = model.moments_layout.shapes
        self._numbers = torch.Generator().manual_seed(0)

    def see(self, light: float, images: int = 48, batch: int = 8, openness: float = 1.0) -> None:
        for _ in range(images // batch):
            prediction = Prediction.of(
                torch.zeros(batch, CLASSES), pending=self._pending(light, batch, openness)
            )
            for part in (self.shadow, self.conditions, self.statistics):
                part.commit(prediction, learned=False)

    def _pending(self, light: float, batch: int, openness: float) -> Pending:
        moments = {
            name: self._moments(light, batch, *shape) for name, shape in self._layouts.items()
        }
        classes = Classes(
            np.full(CLASSES, 1 / CLASSES), 1.0, openness=openness, weights=np.ones(batch)
        )
        share = StreamShare(batch, moments)
        chosen = self.shadow.chosen(batch)
        compared = self.shadow.after(batch, [1.0] * len(chosen), [2.0] * len(chosen))
        after = {"classes": classes, "diverse": openness == 1, "shadow": compared}
        return Pending(share=share, after=after)

    def _moments(self, light: float, images: int, channels: int) -> Tensor:
        """Of images whose mean and deviation are about `light`, (N, 2, C)."""
        mean = light + 0.2 * torch.randn(images, channels, generator=self._numbers)
        return torch.stack((mean, mean**2 + light**2), dim=1)

    @property
    def light(self) -> float:
        """What the statistics take for the mean."""
        return float(self.statistics.followed.moments[0].mean())


def test_a_change_is_noticed_and_followed_as_fast_as_at_the_start(model):
    stream = Stream(model)
    stream.see(DAY, 400)
    assert stream.conditions.known == 1
    assert stream.shadow.compared.seen == 400
    stream.see(NIGHT, 16)
    assert stream.conditions.known == 2
    assert stream.statistics.followed.early_images <= 16
    assert stream.shadow.compared.seen <= 16  # what was surer before the change tells nothing


def test_a_condition_that_comes_back_is_taken_up_where_it_was_left(model):
    """Its statistics are those of before, and not what came between; they follow fast."""
    stream = Stream(model)
    stream.see(DAY, 400)
    stream.see(NIGHT, 200)
    assert stream.light < 0.3
    stream.see(DAY, 2 * PRESENT)
    assert stream.light > 0.9
    assert stream.conditions.known == 2
    assert stream.statistics.followed.early_images <= 2 * PRESENT


def test_as_many_in_rotation_as_are_remembered_are_all_recognised(model):
    """Beside the present one: of five, each that comes back."""
    stream, lights = Stream(model), [3.0**power for power in range(REMEMBERED + 1)]
    for light in lights:
        stream.see(light, 80)
    for light in lights:
        stream.see(light, 80)
        assert stream.conditions.known == len(lights)


def test_what_comes_and_goes_within_a_batch_is_not_remembered_by_other_moments(model):
    """No statistics had followed it by then."""
    stream = Stream(model)
    stream.see(DAY, 96)
    batch = [stream._pending(light, 50, 1.0) for light in (5.0, 25.0)]
    shares = [each.share.image_moments for each in batch]
    both = {name: torch.cat([each[name] for each in shares]) for name in shares[0]}
    share = replace(batch[1].share, images=100, image_moments=both)
    classes = replace(batch[1].after["classes"], weights=np.ones(100))
    pending = Pending(share=share, after={"classes": classes, "diverse": True})
    stream.conditions.commit(
        Prediction.of(torch.zeros(100, CLASSES), pending=pending), learned=False
    )
    assert stream.conditions.known == 2


def test_what_a_run_of_one_class_looks_like_is_no_condition(model):
    """A change that was noticed waits for diverse answers to be told from others."""
    stream = Stream(model)
    stream.see(DAY, 100)
    while stream.conditions.known == 1:
        stream.see(NIGHT, 1, batch=1)
    stream.see(FOG, 100, openness=0.0)
    stream.see(DAY, 24)
    assert stream.conditions.known == 1, "day, once more"


def test_a_network_may_have_its_first_layer_elsewhere(model):
    """The look is that of one layer, whichever the network calls first."""

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.BatchNorm2d(8)
            self.norm = nn.BatchNorm2d(4)
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.last(self.conv2(self.norm(self.conv1(x)))).mean((2, 3)))

    method = create("ttc_stream", SourceModel(Backwards().eval(), mean=MEAN, std=STD, size=SIZE))
    for seed in range(4):
        outcome = method.adapt(method.predict(make_images(20, seed=seed)))
        assert outcome.skipped != "non_finite"
    assert method.state()["conditions"]["latest"].shape == (16,)


def test_what_comes_of_its_own_accord_is_no_change(model):
    """Evening falls slowly; and the images of one light differ among themselves."""
    stream = Stream(model)
    for light in np.linspace(DAY, NIGHT, 40):
        stream.see(float(light), 16)
    assert stream.conditions.known == 1


def test_nothing_is_told_apart_while_the_answers_are_of_few_classes(model):
    """What stands before the camera looks other than all classes together do."""
    stream = Stream(model)
    stream.see(DAY, 100)
    stream.see(NIGHT, 100, openness=0.9)
    assert stream.conditions.known == 1


def test_so_many_conditions_are_remembered_and_no_more(model):
    stream = Stream(model)
    for light in (DAY, 3.0, 9.0, 27.0, 81.0, 243.0, 729.0):
        stream.see(light)
    assert stream.conditions.known == REMEMBERED + 1
    stream.see(DAY, 2 * PRESENT)
    assert stream.light > 10, "the first was forgotten"


@pytest.mark.parametrize("images", [0, 4, 100], ids=["none", "some", "settled"])
def test_a_restored_stream_recognises_what_the_saved_one_would_have(model, images):
    stream, other = Stream(model), Stream(model)
    stream.see(DAY, 100)
    stream.see(NIGHT, 100)
    stream.see(FOG, images, batch=4)
    for part in ("statistics", "conditions"):
        getattr(other, part).restore(getattr(stream, part).state())
    for each in (stream, other):
        each._numbers.manual_seed(1)
        each.see(DAY, 24)
    assert other.conditions.known == stream.conditions.known
    assert torch.equal(other.statistics.followed.moments, stream.statistics.followed.moments)


@pytest.mark.parametrize(
    "damage",
    [
        {"means": torch.zeros(2, 3)},
        {"means": 5.0},
        {"codes": torch.tensor(1.0)},
        {"variances": torch.full((2, 16), torch.nan)},
        {"variances": -torch.ones(2, 16)},
        {"images": torch.tensor([1, 2, 3])},
        {"codes": torch.zeros((1, 2, 5), dtype=torch.int8)},
        {"scales": torch.zeros(1, 7)},
        {"images": torch.tensor([1, 2**63 - 1])},
        {"means": torch.full((2, 16), 1e200, dtype=torch.float64)},
        {"latest": torch.zeros(3)},
        {"latest_images": -1},
        {"latest_images": "many"},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_conditions_of_another_network_are_refused(model, damage):
    stream = Stream(model)
    stream.see(DAY, 100)
    stream.see(NIGHT, 100)
    state = {"conditions": {**stream.conditions.state()["conditions"], **damage}}
    with pytest.raises(ValueError, match="its "):
        Stream(model).conditions.restore(state)


@pytest.mark.parametrize("section", [None, 5, torch.zeros(3)], ids=("none", "number", "tensor"))
def test_conditions_that_are_none_are_refused(model, section):
    with pytest.raises(ValueError, match="its conditions"):
        Stream(model).conditions.restore({"conditions": section})
