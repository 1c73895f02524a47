"""Low and mixed precision anywhere in a network: what lasts is float32 at least."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.networks import MEAN, SIZE, STD, make_images, make_network
from ttc_core.methods import METHODS, UnsuitableNetworkError, create
from ttc_core.model import SourceModel
from ttc_core.state import load_state, save_state

SETTINGS = {
    "eta": {"entropy_fraction": 1.0, "redundancy_margin": 1.01},
    "ttc": {"samples_per_step": 6},
    "ttc_stream": {"learn": "always", "entropy_fraction": 1.0, "samples_per_step": 6},
}


def mixed(dtype: torch.dtype) -> nn.Module:
    """The usual export: weights in low precision, BatchNorm kept in float32."""
    network = make_network("batch-norm")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.to(dtype)
    return network


class Around(nn.Module):
    """Parameters that never meet an image, the first of the network, around another."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.codes = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Autocast(Around):
    """Its convolutions compute in bfloat16, whatever their weights are."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "half-beside-float-norms": lambda: mixed(torch.float16),
    "bfloat16-beside-float-norms": lambda: mixed(torch.bfloat16),
    "behind-a-float-parameter": lambda: Around(mixed(torch.float16)),
    "autocast": lambda: Autocast(make_network("batch-norm")),
    "half": lambda: make_network("batch-norm").half(),
    "bfloat16": lambda: make_network("batch-norm").bfloat16(),
    "double": lambda: make_network("batch-norm").double(),
    "layer-norm-half": lambda: make_network("layer-norm").half(),
    "group-norm-bfloat16": lambda: make_network("group-norm").bfloat16(),
}


@pytest.mark.parametrize("statistics", ["source", "batch", "moving"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_any_precision_is_answered_learned_from_and_saved(network, name, statistics, tmp_path):
    """All that lasts is float32, of a double network float64; a file brings it back."""
    model = SourceModel(NETWORKS[network](), mean=MEAN, std=STD, size=SIZE)
    settings = SETTINGS.get(name, {})
    if "statistics" in METHODS[name].Settings.model_fields:
        settings = {**settings, "statistics": statistics}
    try:
        method = create(name, model, **settings)
    except UnsuitableNetworkError:
        assert name == "norm"
        return
    for seed in range(2):
        prediction = method.predict(make_images(6, seed))
        assert prediction.is_finite()
        assert method.adapt(prediction).skipped is None
    wide = torch.float64 if network == "double" else torch.float32
    assert prediction.logits.dtype == prediction.entropy.dtype == wide
    assert prediction.to_host().logits.shape == (6, model.classes)
    for section, entries in method.state().items():
        if section in ("classes", "context", "scene"):  # of answers and pictures, not the network
            continue
        for key, value in entries.items():
            if section == "conditions" and key != "moments":  # of the images
                continue
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
                assert value.dtype == wide, key
    save_state(tmp_path / "stream.safetensors", method, name=name, model=network)
    fork = method.fork()
    load_state(tmp_path / "stream.safetensors", fork, name=name, model=network)
    images = make_images(6, 9)
    assert torch.equal(fork.predict(images).logits, method.predict(images).logits)


def test_squares_beyond_half_precision_are_no_infinity():
    """Activations of 1,000 have squares of a million: moments and batch statistics hold them."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5))
    with torch.no_grad():
        network[0].weight.mul_(2000)
    model = SourceModel(network.half(), mean=(0.0,) * 3, std=(1.0,) * 3, size=4)
    for statistics in ("batch", "moving"):
        method = create("norm", model, statistics=statistics)
        prediction = method.predict(make_images(6, size=4))
        assert prediction.is_finite()
        assert method.adapt(prediction).skipped is None


def test_digests_tell_half_precision_networks_apart():
    """numpy has no bfloat16; a digest is of the bytes."""
    digests = {
        SourceModel(NETWORKS[name](), mean=MEAN, std=STD, size=SIZE).digest for name in NETWORKS
    }
    assert len(digests) == len(NETWORKS)
