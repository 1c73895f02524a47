"""Layers whose scale and shift no pass can replace: they are named when the model is made."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fixtures.networks import MEAN, SIZE, STD, make_images, make_network
from ttc_core.methods import create
from ttc_core.model import SourceModel


def scripted() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def scale(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return x * weight[:, None, None] + bias[:, None, None]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated; people have such networks
        return torch.jit.script(scale)


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x * weight[:, None, None] + bias[:, None, None]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        (weight,) = ctx.saved_tensors
        return slope * weight[:, None, None], None, None


class Broken(Scale):
    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        raise SystemExit("no gradient was ever asked for")


class OwnLayer(nn.GroupNorm):
    """A normalisation layer that leaves scaling to a function."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__(2, 8)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        normalized = F.group_norm(x, self.num_groups, eps=self.eps)
        return self.function(normalized, self.weight, self.bias)


class Network(nn.Module):
    """Beside a layer that adapts there is one of the test's, and one that no pass reaches."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv, self.usual, self.layer = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), layer
        self.unused, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.usual(self.conv(x)).relu()).mean((2, 3)))


def told(module: nn.Module) -> list[str]:
    model = SourceModel(module, mean=MEAN, std=STD, size=SIZE)
    assert not any(tensor.requires_grad for tensor in module.parameters())
    method = create("tent", model, statistics="source", lr=0.1)
    method.adapt(method.predict(make_images(4)))
    moved, source = method.state()["affine"], model.affine
    assert not torch.equal(moved["usual.weight"], source["usual.weight"])
    return model.notices


@pytest.mark.parametrize("function", [scripted(), Scale.apply], ids=["scripted", "function"])
def test_a_layer_that_stays_at_the_source_is_named(function):
    """One sentence names it, and neither the layer that adapts nor the one that is not run."""
    (notice,) = told(Network(nn.Sequential(nn.Conv2d(8, 8, 1), OwnLayer(function))))
    assert notice.startswith("layer.1: the scale or shift stays the source's whatever is learned")


@pytest.mark.filterwarnings("ignore")  # torch calls it deprecated
def test_a_scripted_layer_is_named():
    """Torch knows it by no class that could adapt."""
    (notice,) = told(Network(torch.jit.script(nn.GroupNorm(2, 8))))
    assert notice.startswith("layer: ")


def test_layers_behind_which_no_gradient_is_kept_are_named():
    """All that run, since none of them could learn."""
    module = Network(OwnLayer(torch.no_grad()(Scale.apply)))
    (notice,) = SourceModel(module, mean=MEAN, std=STD, size=SIZE).notices
    assert notice.startswith("usual, layer: ")


def test_a_network_whose_backward_fails_is_loaded_and_told():
    """Its own function's backward is not called to find out."""
    (notice,) = SourceModel(Network(OwnLayer(Broken.apply)), mean=MEAN, std=STD, size=SIZE).notices
    assert notice.startswith("layer: ")


class ByHand(nn.GroupNorm):
    """Scale and shift are used by operations that torch lets be routed."""

    def forward(self, x: Tensor) -> Tensor:
        normalized = F.group_norm(x, self.num_groups, eps=self.eps)
        return torch.addcmul(self.bias[:, None, None], self.weight[:, None, None], normalized)


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 8), ByHand(2, 8)])
def test_nothing_is_said_of_layers_that_adapt(layer):
    """Nor of one that no pass runs."""
    assert told(Network(layer)) == []


def test_a_shared_parameter_is_named_where_one_of_its_layers_stays():
    """Under its first name, as everywhere; where both layers are routed, not at all."""
    module = Network(OwnLayer(Scale.apply))
    module.layer.weight, module.layer.bias = module.usual.weight, module.usual.bias
    (notice,) = told(module)
    assert notice.startswith("usual: ")
    module = Network(nn.GroupNorm(2, 8))
    module.layer.weight = module.usual.weight
    assert told(module) == []


@pytest.mark.parametrize("network", ["batch-norm", "group-norm", "layer-norm"])
def test_usual_networks_hear_nothing(network):
    """As their layers all adapt."""
    model = SourceModel(make_network(network), mean=MEAN, std=STD, size=SIZE)
    assert model.notices == []
