"""Networks without BatchNorm, small but as torchvision builds them: what adapts, what refuses."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ConvNeXt, ResNet, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock

from ttc_core.methods import METHODS, UnsuitableNetworkError, create
from ttc_core.model import SourceModel

SIZE, CLASSES = 32, 10
SETTINGS = {
    "eta": {"entropy_fraction": 1.0, "redundancy_margin": 1.01},
    "ttc": {"samples_per_step": 8},
}


def vision_transformer() -> nn.Module:
    return VisionTransformer(
        image_size=SIZE,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=48,
        dropout=0.1,
        num_classes=CLASSES,
    )


def convnext() -> nn.Module:
    blocks = [CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 1)]
    return ConvNeXt(blocks, stochastic_depth_prob=0.2, num_classes=CLASSES)


def group_norm_resnet() -> nn.Module:
    return ResNet(
        BasicBlock, [1, 1, 1, 1], num_classes=CLASSES, norm_layer=partial(nn.GroupNorm, 8)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vision-transformer": vision_transformer,
    "convnext": convnext,
    "group-norm-resnet": group_norm_resnet,
}


@pytest.fixture(params=NETWORKS, scope="module")
def model(request: pytest.FixtureRequest) -> SourceModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NETWORKS[request.param]()
        for layer in network.modules():
            if isinstance(layer, nn.Linear):  # a new head answers the same to everything
                nn.init.normal_(layer.weight, std=0.3)
    return SourceModel(network, mean=(0.5,) * 3, std=(0.25,) * 3, size=SIZE)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (8, 3, SIZE, SIZE), dtype=torch.uint8)


@pytest.mark.parametrize("statistics", ["batch", "moving"])
@pytest.mark.parametrize("name", ["tent", "eta", "tipi", "ttc"])
def test_scales_and_shifts_of_layer_and_group_norm_adapt(name, statistics, model, images):
    """All of them move, nothing of the network does, and a reset brings the first answers back."""
    weights = {key: value.clone() for key, value in model.module.state_dict().items()}
    method = create(name, model, statistics=statistics, **SETTINGS.get(name, {}))
    first = method.predict(images)
    method.adapt(first)
    second = method.predict(images)
    method.adapt(second)
    assert method.version >= 1
    affine = method.state()["affine"]
    norms = {
        f"{layer}.{kind}"
        for layer, module in model.module.named_modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm)
        for kind in ("weight", "bias")
    }
    assert set(affine) == norms
    moved = [not torch.equal(affine[key], model.affine[key]) for key in affine]
    assert sum(moved) > len(moved) / 2
    assert not torch.equal(method.predict(images).logits, first.logits)
    method.reset()
    assert torch.equal(method.predict(images).logits, first.logits)
    after = model.module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in weights.items())


@pytest.mark.parametrize("name", ["source", "tent", "eta", "tipi", "ttc"])
def test_an_answer_is_the_same_alone_and_among_others(name, model, images):
    """Without BatchNorm a batch shares nothing but the learning; T3A's supports aside."""
    settings = SETTINGS.get(name, {})
    together = create(name, model, **settings).predict(images).logits
    alone = create(name, model, **settings).predict(images[:1]).logits
    torch.testing.assert_close(alone, together[:1], atol=1e-4, rtol=1e-4)


def test_what_needs_batch_statistics_refuses_with_a_sentence(model):
    """NORM is nothing but batch statistics; all others run."""
    with pytest.raises(UnsuitableNetworkError, match=r"norm needs BatchNorm layers .* none"):
        create("norm", model)
    for name in METHODS:
        if name != "norm":
            create(name, model)
