"""Every model spec: what it loads, with which preprocessing, and what it says when it cannot."""

import importlib.util
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.fixtures.networks import (
    CLASSES,
    MEAN,
    SIZE,
    STD,
    ConvolutionalHead,
    HeadlessSum,
    Wrapped,
    make_images,
    make_model,
    make_network,
    without_normalization,
)
from ttc_core.datasets import STREAM_FILE, Geometry, open_data
from ttc_core.evaluate import as_batch, run_stream
from ttc_core.load import BUNDLED_WEIGHTS, LoadError, load, pick_device
from ttc_core.methods import create
from ttc_core.model import SourceModel
from ttc_core.zoo import ARCHITECTURES

NETWORKS = "tests.fixtures.networks"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# wrn28-10 and resnet50 hold 36 and 24 million numbers: their layouts are those of smaller kin.
CIFAR = {
    "resnet20": (IMAGENET_MEAN, IMAGENET_STD, 64),
    "wrn40-2": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 128),
}


def random_weights(architecture: str, classes: int = 10) -> dict[str, Tensor]:
    torch.manual_seed(1)
    network = ARCHITECTURES[architecture].build(classes)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    return network.state_dict()


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


# cifar/ARCHITECTURE@FILE


def bare(state: dict[str, Tensor]) -> Any:
    return state


def with_prefix(state: dict[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def without_counts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


LAYOUTS = {
    "bare": bare,
    "akamaster": lambda s: {"best_prec1": 91.7, "state_dict": with_prefix(without_counts(s))},
    "kuangliu": lambda s: {"net": with_prefix(s), "acc": 95.1, "epoch": 199},
    "robustbench": lambda s: {"state_dict": with_prefix(s, "model.")},
    "model-state-dict": lambda s: {"model_state_dict": s, "optimizer": {"lr": 0.1}},
    "under-model": lambda s: {"model": with_prefix(s, "module.model.")},
    "without-counts": without_counts,
}


@pytest.mark.parametrize("architecture", list(CIFAR))
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_public_checkpoint_layouts_load_as_they_are(layout, architecture, tmp_path):
    """Wrappers and prefixes come off, counters are ignored, every number arrives."""
    state = random_weights(architecture)
    torch.save(LAYOUTS[layout](state), tmp_path / "weights.pt")
    model = load(f"cifar/{architecture}@{tmp_path}/weights.pt")
    own = model.module.state_dict()
    for name, tensor in without_counts(state).items():
        assert torch.equal(own[name], tensor), name
    mean, std, features = CIFAR[architecture]
    assert (model.mean, model.std, model.size, model.crop) == (mean, std, 32, None)
    assert (model.classes, model.feature_dimension) == (10, features)
    assert model.class_names[3] == "cat"


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_safetensors_load_alike(prefix, tmp_path):
    """The same prefixes come off as from a torch file."""
    state = with_prefix(random_weights("resnet20"), prefix)
    save_file(state, tmp_path / "weights.safetensors")
    model = load(f"cifar/resnet20@{tmp_path}/weights.safetensors")
    own = model.module.state_dict()["layer2.0.conv1.weight"]
    assert torch.equal(own, state[f"{prefix}layer2.0.conv1.weight"])


def test_augmix_checkpoints_bring_their_preprocessing(tmp_path):
    """Their buffers mu and sigma become mean and deviation instead of keys left over."""
    state = random_weights("wrn40-2")
    state |= {"mu": torch.full((1, 3, 1, 1), 0.5), "sigma": torch.full((1, 3, 1, 1), 0.25)}
    torch.save({"state_dict": with_prefix(state)}, tmp_path / "augmix.pt")
    model = load(f"cifar/wrn40-2@{tmp_path}/augmix.pt")
    assert (model.mean, model.std) == ((0.5,) * 3, (0.25,) * 3)
    given = load(f"cifar/wrn40-2@{tmp_path}/augmix.pt", mean=(0.1,) * 3, std=(0.3,) * 3)
    assert (given.mean, given.std) == ((0.1,) * 3, (0.3,) * 3)


def test_the_number_of_classes_is_the_files(tmp_path):
    """A CIFAR-100 checkpoint makes a network of 100 classes, named by number."""
    torch.save(random_weights("resnet20", classes=100), tmp_path / "cifar100.pt")
    model = load(f"cifar/resnet20@{tmp_path}/cifar100.pt")
    assert model.classes == 100
    assert model.class_names[99] == "99"


@pytest.mark.parametrize(
    ("name", "parameters", "layers", "keys"),
    [
        ("resnet20", 269_722, 19, {"layer3.2.bn2.running_var", "linear.bias"}),
        ("resnet32", 464_154, 31, {"layer3.4.conv2.weight"}),
        ("resnet44", 658_586, 43, {"layer3.6.conv2.weight"}),
        ("resnet56", 853_018, 55, {"layer3.8.conv2.weight"}),
        ("resnet110", 1_727_962, 109, {"layer3.17.conv2.weight"}),
        (
            "resnet50",
            23_520_842,
            53,
            {"layer1.0.shortcut.0.weight", "layer4.2.conv3.weight", "layer2.0.shortcut.1.bias"},
        ),
        (
            "wrn28-10",
            36_479_194,
            25,
            {"block1.layer.0.convShortcut.weight", "block3.layer.3.bn2.weight", "fc.bias"},
        ),
        ("wrn40-2", 2_243_546, 37, {"block3.layer.5.conv2.weight", "bn1.running_mean"}),
    ],
)
def test_the_architectures_are_those_of_the_public_code(name, parameters, layers, keys):
    """As many numbers and BatchNorm layers as published, under the published names."""
    with torch.device("meta"):
        network = ARCHITECTURES[name].build(10)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == layers
    assert keys <= set(network.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "features", "mean"),
    [("resnet50", 2048, (0.4914, 0.4822, 0.4465)), ("wrn28-10", 640, (0.0, 0.0, 0.0))],
)
def test_the_large_cifar_networks_load_too(name, features, mean, tmp_path):
    """From random weights in their public layouts, ready to answer."""
    torch.save({"net": with_prefix(random_weights(name))}, tmp_path / "weights.pt")
    model = load(f"cifar/{name}@{tmp_path}/weights.pt")
    assert (model.feature_dimension, model.mean, model.size) == (features, mean, 32)
    assert create("source", model).predict(make_images(1, size=32)).is_finite()


@pytest.mark.parametrize(("name", "accuracy"), [("resnet20", 91.6), ("resnet32", 92.9)])
def test_downloaded_checkpoints_have_their_stated_accuracy(name, accuracy, shared_data):
    """akamaster's files as they are, on the 800 lossless clean images."""
    model = load(f"cifar/{name}@{shared_data}/models/{name}.th")
    images = np.load(shared_data / "cifar10c" / "clean.npy")
    labels = np.load(shared_data / "cifar10c" / "labels.npy")
    method = create("source", model)
    answers = [method.predict(as_batch(part)).to_host() for part in np.split(images, 4)]
    predicted = np.concatenate([answer.predicted for answer in answers])
    assert 100 * np.mean(predicted == labels) == pytest.approx(accuracy, abs=0.3)


# Files that do not fit


def spoiled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = dict(state)
    state["extra.weight"] = torch.zeros(1)
    del state["layer1.0.bn1.bias"]
    state["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    return state


def test_all_keys_that_do_not_fit_are_named(tmp_path):
    """Missing, left over and of another shape, in one sentence with the file."""
    torch.save(spoiled(random_weights("resnet20")), tmp_path / "weights.pt")
    with pytest.raises(LoadError) as error:
        load(f"cifar/resnet20@{tmp_path}/weights.pt")
    text = str(error.value)
    assert "weights.pt does not fit the network" in text
    assert "missing layer1.0.bn1.bias" in text
    assert "left over extra.weight" in text
    assert "conv1.weight has shape (16, 1, 3, 3), not (16, 3, 3, 3)" in text


def test_another_architectures_file_is_refused(tmp_path):
    """ResNet-32's weights in a ResNet-20: what is left over is named, nothing is loaded."""
    torch.save(random_weights("resnet32"), tmp_path / "weights.pt")
    with pytest.raises(LoadError, match=r"left over layer1\.3\.bn1\.bias"):
        load(f"cifar/resnet20@{tmp_path}/weights.pt")


class Trap:
    """Unpickled, it would write the sentinel file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.sentinel),)


@pytest.mark.parametrize("writer", [pickle.dump, torch.save], ids=["pickle", "torch.save"])
@pytest.mark.parametrize("where", ["alone", "beside-weights"])
def test_code_in_a_weight_file_is_never_executed(writer, where, tmp_path):
    """The file is refused, the sentence says why, and what it would have done is not done."""
    sentinel = tmp_path / "executed"
    content: Any = Trap(sentinel)
    if where == "beside-weights":
        content = {"state_dict": random_weights("resnet20"), "hook": content}
    with (tmp_path / "weights.pt").open("wb") as file:
        writer(content, file)
    with pytest.raises(LoadError, match="Files that hold code are not opened"):
        load(f"cifar/resnet20@{tmp_path}/weights.pt")
    assert not sentinel.exists()
    pickle.loads(pickle.dumps(Trap(sentinel)))
    assert sentinel.exists(), "the trap itself does not work"


def truncated(path: Path) -> None:
    torch.save(random_weights("resnet20"), path)
    path.write_bytes(path.read_bytes()[:-5000])


def whole_network(path: Path) -> None:
    torch.save(make_network("batch-norm"), path)


@pytest.mark.parametrize(
    ("name", "write", "sentence"),
    [
        pytest.param("a.pt", lambda path: None, "There is no weight file", id="missing"),
        pytest.param("a.pt", lambda path: path.mkdir(), "There is no weight file", id="folder"),
        pytest.param("a.pt", truncated, "is no torch file of plain tensors", id="truncated"),
        pytest.param("a.pt", lambda p: p.write_bytes(b""), "is no torch file", id="empty"),
        pytest.param("a.pt", lambda p: p.write_bytes(b"x" * 99), "is no torch file", id="rubbish"),
        pytest.param("a.pt", whole_network, "is no torch file of plain tensors", id="network"),
        pytest.param("a.pt", lambda p: torch.save({}, p), "holds no state dict", id="no-tensors"),
        pytest.param("a.pt", lambda p: torch.save([1], p), "holds no state dict", id="a-list"),
        pytest.param(
            "a.pt", lambda p: torch.save({"epoch": 3}, p), "'epoch' is not a tensor", id="numbers"
        ),
        pytest.param(
            "a.safetensors",
            lambda p: p.write_bytes(b"\xff" * 99),
            "is no readable safetensors file",
            id="safetensors-rubbish",
        ),
        pytest.param(
            "a.safetensors",
            lambda p: p.write_bytes(BUNDLED_WEIGHTS.read_bytes()[:-9]),
            "is no readable safetensors file",
            id="safetensors-truncated",
        ),
    ],
)
def test_unreadable_files_give_a_sentence(name, write, sentence, tmp_path):
    """The file is named, and what was expected of it."""
    write(tmp_path / name)
    with pytest.raises(LoadError, match=sentence) as error:
        load(f"cifar/resnet20@{tmp_path / name}")
    assert name in str(error.value)


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
        (f"{NETWORKS}:without_normalization", r"no BatchNorm, LayerNorm or GroupNorm"),
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
    torch.save(with_prefix(state, prefix), tmp_path / "weights.pt")
    model = load(f"{NETWORKS}:{factory}@{tmp_path}/weights.pt")
    for name, tensor in without_counts(model.module.state_dict()).items():
        assert torch.equal(tensor, torch.full_like(tensor, 3)), name


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


# The split, the names, the input


def model_of(module: nn.Module, **options: Any) -> SourceModel:
    return SourceModel(module, mean=MEAN, std=STD, **{"size": SIZE, **options})


def test_a_convolution_on_one_pixel_can_be_the_head():
    """Features are what it reads, flattened."""
    model = model_of(ConvolutionalHead())
    assert (model.split, model.classes, model.feature_dimension) == ("classify", CLASSES, 12)
    output = model.run(model.normalize(make_images(3) / 255))
    assert output.features.shape == (3, 12)
    head = model.module.get_submodule("classify")
    torch.testing.assert_close(head(output.features[:, :, None, None]).flatten(1), output.logits)


def test_features_are_what_the_head_reads():
    """f = h∘g: the head on the features is the answer."""
    model = make_model()
    output = model.run(model.normalize(make_images(3) / 255))
    torch.testing.assert_close(model.module.get_submodule("head")(output.features), output.logits)


def test_a_split_that_cannot_be_found_can_be_given():
    """By the name of the layer whose input are the features."""
    with pytest.raises(ValueError, match="split='NAME'"):
        model_of(HeadlessSum())
    model = model_of(HeadlessSum(), split="body.head")
    assert (model.split, model.feature_dimension) == ("body.head", 12)
    with pytest.raises(ValueError, match=r"split='nose' names no layer"):
        model_of(HeadlessSum(), split="nose")


class Odd(nn.Module):
    """A network that answers something else than logits (N, K)."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.norm, self.answer = nn.BatchNorm2d(3), answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.norm(x))


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        pytest.param(without_normalization(), "no BatchNorm, LayerNorm or GroupNorm", id="no-norm"),
        pytest.param(Odd(lambda x: x), r"must answer with logits.*\(2, 3, 8, 8\)", id="a-map"),
        pytest.param(Odd(lambda x: (x, x)), "must answer with logits.*tuple", id="a-tuple"),
        pytest.param(
            Odd(lambda x: x.mean((1, 2, 3))[:, None]), r"logits.*\(2, 1\)", id="one-class"
        ),
        pytest.param(Odd(lambda x: x.view(2, 5)), "does not run on RGB images of 8", id="fails"),
        pytest.param(Odd(lambda x: x + "a"), "does not run on RGB images of 8", id="type-error"),
    ],
)
def test_a_network_that_cannot_serve_is_refused(module, sentence):
    """In a sentence, when it is loaded and not when the first image comes."""
    with pytest.raises(ValueError, match=sentence):
        model_of(module)


def test_class_names_must_be_as_many_as_classes():
    """Both numbers are in the sentence."""
    with pytest.raises(ValueError, match=r"has 5 classes, but 3 class names"):
        model_of(make_network("batch-norm"), class_names=["a", "b", "c"])


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.5,), (1.0,) * 3),
        ((0.5,) * 3, (1.0, 0.0, 1.0)),
        ((0.5,) * 3, (1.0,) * 4),
        ((0.5,) * 3, (1.0, float("nan"), 1.0)),
        ((0.5, 0.5, float("inf")), (1.0,) * 3),
    ],
)
def test_mean_and_deviation_are_three_numbers(mean, std):
    """And no deviation is 0."""
    with pytest.raises(ValueError, match="mean and std must be three numbers each"):
        SourceModel(make_network("batch-norm"), mean=mean, std=std, size=SIZE)


def test_the_copies_of_a_training_run_are_taken_off():
    """A network wrapped for several GPUs is the network inside."""
    model = model_of(nn.DataParallel(make_network("batch-norm")))
    assert model.split == "head"
    prediction = create("tent", model).predict(make_images(2))
    assert prediction.logits.shape == (2, CLASSES)


@pytest.mark.filterwarnings("ignore")  # torch calls it deprecated; people have such files
def test_a_scripted_network_is_refused():
    """Its layers cannot be given other parameters."""
    with pytest.raises(ValueError, match="a scripted module cannot be adapted"):
        model_of(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(192, 5))))


def test_a_network_of_half_precision_answers():
    """In bfloat16, which numpy does not have."""
    model = model_of(make_network("batch-norm").to(torch.bfloat16))
    answers = create("tent", model).predict(make_images(2)).to_host()
    assert answers.logits.shape == (2, CLASSES)


@pytest.mark.parametrize(("size", "crop"), [(None, 24), (24, 32), (0, None), (24, 0)])
def test_sizes_that_no_image_can_be_brought_to_are_refused(
    size: int | None, crop: int | None
) -> None:
    """When the model is made, not when the first image comes."""
    with pytest.raises(ValueError, match="size must be 1 pixel or more, crop at most size"):
        SourceModel(make_network("batch-norm"), mean=MEAN, std=STD, size=size, crop=crop)


def test_the_input_is_normalised_as_stated():
    """(value/255 − mean) / std, channel by channel."""
    model = make_model()
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 2, 2)
    got = model.normalize(model.to_unit(images))[0, :, 0, 0]
    values = zip((0, 0.2, 1), MEAN, STD, strict=True)
    expected = torch.tensor([(value - mean) / std for value, mean, std in values])
    torch.testing.assert_close(got, expected)


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
