"""Every model spec: what it loads, with which preprocessing, and what it says when it cannot."""

import importlib.util
import json
import math

import pytest
import safetensors
import torch

from tests.fixtures.networks import (
    CLASSES,
    MEAN,
    SIZE,
    STD,
    Wrapped,
    make_images,
    make_network,
)
from ttc_core.datasets import STREAM_FILE, Geometry, open_data
from ttc_core.evaluate import run_stream
from ttc_core.load import BUNDLED_WEIGHTS, LoadError, load, pick_device
from ttc_core.methods import create
from ttc_core.zoo import ARCHITECTURES

NETWORKS = "tests.fixtures.networks"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# The bundled model


def test_the_bundled_model_is_as_good_as_its_header_says():
    """At least 92.5 % on the clean test set, reproduced on its first 2,000 pictures."""
    with safetensors.safe_open(BUNDLED_WEIGHTS, framework="pt") as file:
        stated = float(file.metadata()["accuracy"])
    assert stated >= 0.925
    model = load("bundled")
    assert model.accuracy == stated
    assert (model.classes, len(model.class_names), model.feature_dimension) == (10, 10, 64)
    assert sum(tensor.numel() for tensor in model.affine.values()) == 1376
    assert len(model.batch_norms) == 19
    stream = open_data("bundled", Geometry(model.size, model.crop)).open("clean", 5)
    tally = run_stream(create("source", model), stream, 200)
    assert tally.images == 2000
    sampling_error = math.sqrt(stated * (1 - stated) / 2000)
    assert abs(tally.accuracy - stated) < 3 * sampling_error


def test_the_bundled_files_are_small():
    """Weights and stream together fit into 3 MB of the package."""
    assert BUNDLED_WEIGHTS.stat().st_size + STREAM_FILE.stat().st_size < 3_000_000


def test_a_model_is_frozen_and_in_eval_mode():
    """Nothing of it learns or drifts by being run."""
    module = load("bundled").module
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("resnet20", r"'resnet20' names no model; accepted are bundled, torchvision/NAME"),
        ("", r"names no model"),
        ("cifar/resnet20", r"give cifar/ARCHITECTURE@FILE"),
        ("cifar/resnet21@x.pt", r"resnet20, resnet32"),
        ("torchvision/resnet19?weights=none", r"no classification model 'resnet19'"),
        ("torchvision/resnet18?weights=V9", r"weights=V9: resnet18 has IMAGENET1K_V1"),
        ("no.such.module:factory", r"no\.such\.module:factory cannot be imported"),
        (f"{NETWORKS}:missing", r"networks:missing cannot be imported"),
        (f"{NETWORKS}:wants_two_arguments", r"missing 1 required positional argument"),
        (f"{NETWORKS}:returns_text", r"must return an nn\.Module or a SourceModel.*str"),
        (f"{NETWORKS}:without_normalization", r"no BatchNorm, LayerNorm, GroupNorm or RMSNorm"),
        (f"{NETWORKS}:HeadlessSum", r"split into features and head was not found.*split='NAME'"),
        (f"{NETWORKS}:small_network@missing.pt", r"no weight file missing\.pt"),
    ],
)
def test_a_spec_that_names_nothing_gives_a_sentence(spec, sentence):
    """What was wrong and what is accepted."""
    with pytest.raises(LoadError, match=sentence):
        load(spec)


# torchvision and timm


@pytest.mark.slow
def test_a_torchvision_network_comes_with_its_preprocessing():
    """Resize 256, crop 224, ImageNet's mean and deviation, also without weights."""
    model = load("torchvision/resnet18?weights=none")
    assert (model.size, model.crop) == (256, 224)
    assert (model.mean, model.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (model.classes, model.feature_dimension, model.split) == (1000, 512, "fc")
    assert len(model.batch_norms) == 20
    method = create("ttc", model)
    assert method.settings["optimizer"] == "sgd"
    assert method.predict(make_images(1, size=224)).is_finite()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_a_timm_network_comes_with_its_preprocessing():
    """timm's own data configuration; its fused BatchNorm layers follow the stream."""
    model = load("timm/resnet18?weights=none")
    assert (model.crop, model.classes) == (224, 1000)
    assert (model.mean, model.std) == (IMAGENET_MEAN, IMAGENET_STD)
    fused = load("timm/efficientnet_lite0?weights=none")
    method = create("norm", fused, statistics="moving")
    images = make_images(2, size=fused.crop)
    before = method.predict(images).logits
    method.adapt(method.predict(images))
    assert not torch.equal(method.predict(images).logits, before)


def test_timm_is_an_extra(monkeypatch):
    """Without it, the sentence says how to install it."""
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(LoadError, match=r"pip install .*timm"):
        load("timm/resnet18")


# Factories of one's own


def test_a_factory_of_a_module_gets_plain_preprocessing():
    """Mean 0, deviation 1, no resize; and one can tell, to say so."""
    model = load(f"{NETWORKS}:small_network")
    assert (model.mean, model.std, model.size) == ((0.0,) * 3, (1.0,) * 3, None)
    assert "no preprocessing is stated" in model.notices[0]
    assert (model.split, model.classes, model.feature_dimension) == ("head", CLASSES, 12)
    given = load(f"{NETWORKS}:small_network", mean=MEAN, std=STD)
    assert (given.mean, given.std) == (MEAN, STD)
    assert given.notices == []


def test_a_factory_of_a_source_model_states_everything_itself():
    """Split, preprocessing and names are its own; --mean beside it is refused."""
    spec = f"{NETWORKS}:small_source_model"
    model = load(spec)
    assert (model.mean, model.std, model.size) == (MEAN, STD, SIZE)
    assert model.class_names == ("a", "b", "c", "d", "e")
    assert model.notices == []
    with pytest.raises(LoadError, match="states its own mean and std"):
        load(spec, mean=(0.5,) * 3)


@pytest.mark.parametrize("factory", ["small_network", "small_source_model", "Wrapped"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_factory_is_filled_from_a_file(factory, prefix, tmp_path):
    """With @FILE our loader fills it, also where the network's own names begin with `model.`."""
    network = Wrapped() if factory == "Wrapped" else make_network("batch-norm")
    state = {name: torch.full_like(tensor, 3) for name, tensor in network.state_dict().items()}
    torch.save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "weights.pt")
    model = load(f"{NETWORKS}:{factory}@{tmp_path}/weights.pt")
    for name, tensor in model.module.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, torch.full_like(tensor, 3)), name


@pytest.mark.parametrize("factory", ["small_network", "small_source_model", "looked_up"])
@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("head.weight", math.nan, "with NaN or infinity; NaN begins in 'head'"),
        ("norm2.running_var", -1.0, "norm2.running_var holds a negative variance, -1"),
    ],
)
def test_weights_of_a_file_are_looked_at_whatever_they_fill(
    factory, name, value, sentence, tmp_path
):
    """A factory's SourceModel was made, and tried, before they came."""
    state = make_network("batch-norm").state_dict()
    torch.save(state | {name: torch.full_like(state[name], value)}, tmp_path / "weights.pt")
    with pytest.raises(LoadError, match=sentence):
        load(f"{NETWORKS}:{factory}@{tmp_path}/weights.pt")


def test_the_digest_is_of_the_weights_that_are_served(tmp_path):
    """Also where a factory has asked for its model's digest before the file filled it."""
    for factor in (1.0, 0.5):
        state = make_network("batch-norm").state_dict()
        torch.save(state | {"head.weight": factor * state["head.weight"]}, tmp_path / "weights.pt")
        plain, looked_up = (
            load(f"{NETWORKS}:{factory}@{tmp_path}/weights.pt").digest
            for factory in ("small_source_model", "looked_up")
        )
        assert plain == looked_up


def test_a_factory_in_a_file_of_ones_own(tmp_path, monkeypatch):
    """Any importable module will do."""
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = load("my_networks:build")
    assert (model.classes, model.split, set(model.affine)) == (3, "4", {"1.weight", "1.bias"})


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gpu", r"'gpu' is no device; accepted are auto, cpu, cuda, cuda:N"),
        ("cuda:99", r"no device cuda:99; torch sees \d+ CUDA devices"),
        ("meta", r"'meta' is not served"),
        ("", r"is no device"),
    ],
)
def test_a_device_that_is_not_there_is_named(name, sentence):
    """With what is accepted."""
    with pytest.raises(LoadError, match=sentence):
        pick_device(name)


def test_auto_is_the_gpu_where_there_is_one():
    """And else the CPU."""
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == torch.device("cpu")


def test_the_bundled_header_is_complete():
    """All that is needed to use the weights stands in the file itself."""
    with safetensors.safe_open(BUNDLED_WEIGHTS, framework="pt") as file:
        header = file.metadata()
    assert len(json.loads(header["class_names"])) == 10
    assert len(json.loads(header["mean"])) == len(json.loads(header["std"])) == 3
    assert header["architecture"] in ARCHITECTURES
    assert int(header["size"]) == 32
