"""One layer is not one call: layers that a network calls twice, by turns, or never."""

import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.networks import make_images
from ttc_core.methods import create
from ttc_core.methods.parts.statistics import MovingStatistics
from ttc_core.model import SourceModel


class Twice(nn.Module):
    """A BatchNorm and a LayerNorm that are called twice, and one that counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.alias = self.norm
        self.layer, self.head = nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu()
        x = self.layer(self.alias(self.b(x)).relu().mean((2, 3)))
        return self.head(self.layer(x))


class ByTurns(Twice):
    """Its BatchNorm is called once more for bright images."""

    def forward(self, x: Tensor) -> Tensor:
        again = self.norm(self.a(x))
        return super().forward(x) + (self.head(again.mean((2, 3))) if x.mean() > 0 else 0)


def make(kind: type[nn.Module] = Twice, split: str | None = None) -> SourceModel:
    return SourceModel(kind(), mean=(0.5,) * 3, std=(0.25,) * 3, size=32, split=split)


def unit(count: int = 8) -> Tensor:
    return make_images(count, size=32) / 255


@pytest.mark.parametrize("warm_start", [1, 16])
def test_a_repeated_pass_repeats(warm_start):
    """Call by call what the first pass used, as often as one likes."""
    model = make()
    moving = MovingStatistics(model, warm_start=warm_start, floor=0.001)
    look = moving.look(8)
    inputs = model.normalize(unit())
    first = model.run(inputs, look=look).logits
    for _ in range(2):
        assert torch.equal(model.run(inputs, look=moving.repeated(look)).logits, first)


def test_moments_are_the_mean_of_the_calls():
    """Of both calls' inputs, as the layer's own running averages come to be."""
    model = make()
    seen: list[Tensor] = []
    model.module.norm.register_forward_pre_hook(lambda _layer, given: seen.append(given[0]))
    moving = MovingStatistics(model, warm_start=16, floor=0.001)
    look = moving.look(8)
    model.run(model.normalize(unit()), look=look)
    mean, square = moving.share(look).moments["norm"]
    assert len(seen) == 2
    expected = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(
        square, torch.stack([x.square().mean((0, 2, 3)) for x in seen]).mean(0)
    )


def test_a_pass_that_takes_other_turns_still_runs():
    """A call that the first pass did not make is normalised as its last."""
    model = make(ByTurns, split="head")
    moving = MovingStatistics(model, warm_start=16, floor=0.001)
    look = moving.look(8)
    inputs = model.normalize(unit())
    model.run(inputs - 5, look=look)
    assert model.run(inputs + 5, look=moving.repeated(look)).logits.isfinite().all()


@pytest.mark.parametrize("name", ["norm", "tent", "tipi", "ttc"])
def test_methods_run_on_shared_layers(name):
    """A shared layer has one scale and shift, which adapt; a reset takes them back."""
    method = create(name, make(), statistics="moving")
    images = make_images(8, size=32)
    first = method.predict(images).logits
    for _ in range(2):
        assert method.adapt(method.predict(images)).skipped is None
    assert not torch.equal(method.predict(images).logits, first)
    method.reset()
    assert torch.equal(method.predict(images).logits, first)
