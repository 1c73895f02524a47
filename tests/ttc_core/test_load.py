"""Every model spec: what it loads, with which preprocessing, and what it says when it cannot."""

import argparse
import importlib.util
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

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
from ttc_core.errors import LoadError
from ttc_core.evaluate import run_stream
from ttc_core.load import BUNDLED_WEIGHTS, at_work, load, pick_device
from ttc_core.methods import create
from ttc_core.model import SourceModel
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
        ("torchvision/resnet19?weights=none", r"no classification model 'resnet19' \(is resnet1"),
        ("torchvision/resnet18@missing.pt", r"weight file missing\.pt is not there"),
        ("torchvision/resnet18@", r"names no file behind the @"),
        ("timm/resnet19@missing.pt", r"no (weight file missing\.pt|model 'resnet19')"),
        ("timm/resnet1888?weights=none", r"timm has no model 'resnet1888' \(is resnet18"),
        ("timm/resnet18?weigths=none", r"behind the \? weights=none is accepted"),
        ("torchvision/resnet18@~/missing.pt", r"the home folder for ~ at the beginning of a word"),
        ("torchscript@missing.pt", r"holds code, which runs .* --trust-code"),
        ("export@missing.pt2", r"holds code, which runs .* --trust-code"),
        ("torchvision/resnet18?weights=V9", r"weights=V9: resnet18 has IMAGENET1K_V1"),
        ("no.such.module:factory", r"no\.such\.module:factory cannot be imported"),
        (f"{NETWORKS}:missing", r"networks:missing cannot be imported"),
        (f"{NETWORKS}:wants_two_arguments", r"missing 1 required positional argument"),
        (f"{NETWORKS}:returns_text", r"must return an nn\.Module or a SourceModel.*str"),
        (f"{NETWORKS}:without_normalization", r"no BatchNorm, LayerNorm, GroupNorm or RMSNorm"),
        (f"{NETWORKS}:HeadlessSum", r"split into features and head was not found.*split='NAME'"),
        (f"{NETWORKS}:small_network@missing.pt", r"weight file missing\.pt is not there"),
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


# One's own weights: torchvision/NAME@FILE and timm/NAME@FILE

PETS = ("cat", "dog", "guinea pig")


def fine_tuned(build: Callable[..., nn.Module], classes: int = 3, **options: Any) -> nn.Module:
    """A network of one's own classes; statistics and scales are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = build(num_classes=classes, **options)
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                if name.endswith(("running_mean", "running_var")):
                    tensor.add_(0.1 * torch.rand_like(tensor))
    return network.eval()


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return fine_tuned(torchvision.models.resnet18)


def in_training(network: nn.Module) -> dict[str, Any]:
    """As a training script saves it: an optimizer, options and a counter lie beside the weights."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return {
        "state_dict": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
    }


def by_lightning(network: nn.Module) -> dict[str, Any]:
    """As a LightningModule that keeps its network as `model` saves it."""
    return {
        "pytorch-lightning_version": "2.5.0",
        "epoch": 3,
        "global_step": 300,
        "hyper_parameters": {"lr": 0.1, "class_names": list(PETS)},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [torch.optim.SGD(network.parameters(), lr=0.1).state_dict()],
        "state_dict": {f"model.{name}": t for name, t in network.state_dict().items()},
    }


WAYS: dict[str, Callable[[nn.Module, Path], None]] = {
    "state-dict": lambda network, path: torch.save(network.state_dict(), path),
    "training": lambda network, path: torch.save(in_training(network), path),
    "parallel": lambda network, path: torch.save(nn.DataParallel(network).state_dict(), path),
    "compiled": lambda network, path: torch.save(torch.compile(network).state_dict(), path),
    "safetensors": lambda network, path: save_file(network.state_dict(), path),
    "lightning": lambda network, path: torch.save(by_lightning(network), path),
}


def answers_as(model: SourceModel, network: nn.Module) -> bool:
    """Whether it answers as the network did where it was trained."""
    side = model.crop or model.size or model.trial_side
    inputs = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, got = network(inputs), model.run(inputs).logits
    return torch.allclose(wanted, got, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("way", list(WAYS))
def test_a_fine_tuned_network_is_loaded_however_it_was_saved(way, resnet18, tmp_path):
    """By its name and a file: three classes are the file's, the input is torchvision's."""
    WAYS[way](resnet18, tmp_path / "weights.bin")
    model = load(f"torchvision/resnet18@{tmp_path}/weights.bin")
    assert answers_as(model, resnet18)
    assert (model.classes, model.split, len(model.batch_norms)) == (3, "fc", 20)
    assert (model.geometry, model.mean) == (Geometry(256, 224, "bilinear"), IMAGENET_MEAN)
    assert model.class_names == (PETS if way == "lightning" else ("0", "1", "2"))
    assert model.origins.geometry == "torchvision's ResNet18_Weights.IMAGENET1K_V1"
    assert model.notices == []


NAMED = (
    *("torchvision/mobilenet_v3_small", "torchvision/efficientnet_b0", "torchvision/densenet121"),
    *("torchvision/convnext_tiny", "torchvision/swin_t", "torchvision/shufflenet_v2_x0_5"),
    *("torchvision/regnet_y_400mf", "torchvision/inception_v3", "torchvision/googlenet"),
    *("torchvision/mnasnet0_5", "torchvision/mobilenet_v2"),
    *("timm/resnet18", "timm/mobilenetv3_small_050", "timm/convnext_atto", "timm/densenet121"),
    *("timm/vit_tiny_patch16_224", "timm/regnetx_002"),
    *(
        "timm/efficientnet_b0",
        "timm/seresnet18",
        "timm/mixer_s32_224",
    ),
    *("timm/ese_vovnet19b_dw", "timm/maxvit_rmlp_pico_rw_256", "timm/resnet18.a1_in1k"),
)


@pytest.mark.slow
@pytest.mark.parametrize("spec", NAMED)
def test_classes_are_counted_wherever_the_head_is(spec, tmp_path):
    """Whatever it is called, also as several heads, or one inside a head of more layers."""
    library, _, name = spec.partition("/")
    if library == "timm":
        timm = pytest.importorskip("timm")
        network = fine_tuned(partial(timm.create_model, name, pretrained=False), classes=7)
    else:
        options = {}
        if name in ("inception_v3", "googlenet"):  # as whoever begins with the published weights
            options = {"init_weights": False, "transform_input": True}
        network = fine_tuned(partial(torchvision.models.get_model, name), classes=7, **options)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    model = load(f"{spec}@{tmp_path}/weights.pt")
    assert model.classes == 7
    assert answers_as(model, network)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "model.", "module.net."])
def test_a_second_head_is_found_under_any_prefix(prefix, tmp_path):
    """As Lightning leaves it; and what is taken for granted of the input is told."""
    options = {"init_weights": False, "transform_input": True}
    network = fine_tuned(torchvision.models.googlenet, **options)
    torch.save(inside(network, prefix), tmp_path / "weights.pt")
    model = load(f"torchvision/googlenet@{tmp_path}/weights.pt")
    assert answers_as(model, network)
    assert any("transform_input" in said for said in model.notices)


@pytest.mark.slow
def test_a_vision_transformer_is_made_for_the_images_that_it_is_given(tmp_path):
    """It has a place for each patch: of --size, or of the published weights that are named."""
    network = fine_tuned(torchvision.models.vit_b_32, image_size=384)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    spec = f"torchvision/vit_b_32@{tmp_path}/weights.pt"
    model = load(spec, size=384)
    assert model.geometry == Geometry(384)
    assert answers_as(model, network)
    with pytest.raises(LoadError, match=r"pos_embedding has shape \(1, 145, 768\), not \(1, 50"):
        load(spec)


def test_a_network_without_normalisation_is_filled_and_refused(tmp_path):
    """SqueezeNet's head, a convolution, is counted, too; but nothing in it could adapt."""
    torch.save(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), tmp_path / "a.pt")
    with pytest.raises(LoadError, match="no BatchNorm"):
        load(f"torchvision/squeezenet1_1@{tmp_path}/a.pt")


def test_a_file_of_a_thousand_classes_has_imagenets_names(tmp_path):
    """As a file that was downloaded by hand has."""
    network = fine_tuned(torchvision.models.shufflenet_v2_x0_5, classes=1000)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    model = load(f"torchvision/shufflenet_v2_x0_5@{tmp_path}/weights.pt")
    assert model.class_names[:2] == ("tench", "goldfish")
    assert "1,000 classes" in model.origins.class_names
    assert any("ImageNet's" in said and "--class-names" in said for said in model.notices)
    (tmp_path / "names").write_text("\n".join(f"part {number}" for number in range(1000)))
    model = load(f"torchvision/shufflenet_v2_x0_5@{tmp_path}/weights.pt",
                 class_names=tmp_path / "names")  # fmt: skip
    assert model.notices == []


def test_a_file_of_another_network_is_refused_with_what_does_not_fit(resnet18, tmp_path):
    """Keys and shapes, the file and the network's name."""
    torch.save(resnet18.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(LoadError, match=r"missing layer1\.2\.bn1\.bias.* filled as resnet34\."):
        load(f"torchvision/resnet34@{tmp_path}/weights.pt")
    with pytest.raises(LoadError, match=r"has shape \(3, 512\), not .*|missing .* and \d+ more"):
        load(f"torchvision/resnet50@{tmp_path}/weights.pt")
    state = resnet18.state_dict()
    state["fc.1.weight"], state["fc.1.bias"] = state.pop("fc.weight"), state.pop("fc.bias")
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(LoadError, match=r"its head in fc\.weight.* package\.module:factory@FILE"):
        load(f"torchvision/resnet18@{tmp_path}/weights.pt")


def test_a_name_without_a_network_is_asked_for(resnet18, tmp_path):
    """A file alone does not say what it is of; a wrong one is refused before it is opened."""
    torch.save(resnet18.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(LoadError, match=rf"torchvision/resnet18@{tmp_path}/weights\.pt"):
        load(f"{tmp_path}/weights.pt")


def small(classes: int) -> nn.Module:
    return fine_tuned(torchvision.models.shufflenet_v2_x0_5, classes=classes)


def inside(network: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("distilled", "told"),
    [
        (
            lambda teacher, own: {"teacher": teacher.state_dict(), "model": own.state_dict()},
            r"'teacher' has 11, 'model' has 7",
        ),
        (
            lambda teacher, own: inside(own, "student.backbone.") | inside(teacher, "teacher."),
            r"at the top level under 'teacher\.' has 11, "
            r"at the top level under 'student\.backbone\.' has 7",
        ),
    ],
    ids=["containers", "flat"],
)
def test_networks_of_other_classes_in_a_file_are_refused(distilled, told, tmp_path):
    """A teacher that knows other classes is no moving average; which is meant nobody can tell."""
    torch.save(distilled(small(11), small(7)), tmp_path / "weights.pt")
    spec = f"torchvision/shufflenet_v2_x0_5@{tmp_path}/weights.pt"
    with pytest.raises(LoadError, match=rf"differ in their classes: {told}\. Save"):
        load(spec)


def test_a_teacher_of_another_kind_is_passed_over(tmp_path):
    """Its classes are not counted for the network that is named."""
    teacher = fine_tuned(torchvision.models.shufflenet_v2_x1_0, classes=11)
    own = small(7)
    torch.save({"teacher": teacher.state_dict(), "model": own.state_dict()}, tmp_path / "a.pt")
    model = load(f"torchvision/shufflenet_v2_x0_5@{tmp_path}/a.pt")
    assert model.classes == 7
    assert answers_as(model, own)


def test_a_teacher_of_the_same_classes_goes_first(tmp_path):
    """A mean teacher is the average that its authors evaluate."""
    teacher = small(7)
    teacher.fc.bias.data.add_(1)
    torch.save({"model": small(7).state_dict(), "teacher": inside(teacher, "net.")},
               tmp_path / "a.pt")  # fmt: skip
    model = load(f"torchvision/shufflenet_v2_x0_5@{tmp_path}/a.pt")
    assert any("the weights 'teacher' under 'net.' were taken" in said for said in model.notices)
    assert answers_as(model, teacher)


# What is said of a model's input


def test_what_is_said_goes_before_what_weights_say(resnet18, tmp_path):
    """Each by itself; a size alone resizes both sides; and the origins tell which is which."""
    torch.save(resnet18.state_dict(), tmp_path / "weights.pt")
    spec = f"torchvision/resnet18@{tmp_path}/weights.pt"
    model = load(spec, size=96, interpolation="bicubic", mean=(0.5,) * 3)
    assert model.geometry == Geometry(96, None, "bicubic")
    assert (model.mean, model.std) == ((0.5,) * 3, IMAGENET_STD)
    assert (model.origins.geometry, model.origins.interpolation) == ("--size", "--interpolation")
    assert model.origins.normalisation.startswith("--mean and torchvision's ResNet18")
    assert load(spec, crop=192).geometry == Geometry(256, 192)
    assert load(spec, size=128, crop=112).geometry == Geometry(128, 112)
    with pytest.raises(LoadError, match=r"--crop 300 goes with --size, .* it is 256 otherwise"):
        load(spec, crop=300)
    with pytest.raises(LoadError, match=r"^--crop 65 is above --size 64"):
        load(spec, size=64, crop=65)


def test_a_published_recipe_may_be_named_beside_a_file(tmp_path):
    """MobileNet-V2's second weights are given images of 232 pixels, its first of 256."""
    network = fine_tuned(torchvision.models.mobilenet_v2)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    sizes = [
        load(f"torchvision/mobilenet_v2{weights}@{tmp_path}/weights.pt").size
        for weights in ("", "?weights=IMAGENET1K_V1")
    ]
    assert sizes == [232, 256]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto_ols"]
)
def test_a_timm_networks_own_geometry(name):
    """The size is cut down to whole pixels, as timm has it."""
    timm = pytest.importorskip("timm")
    model = load(f"timm/{name}?weights=none")
    config = timm.data.resolve_model_data_config(model.module)
    assert model.size == math.floor(config["input_size"][1] / config["crop_pct"])
    assert model.crop == config["input_size"][1]
    assert model.interpolation == config["interpolation"]


def test_another_interpolation_is_another_model():
    """A state or calibration record of the one does not fit the other; bilinear's stay."""
    one, other = (load("bundled", interpolation=each).digest for each in (None, "bicubic"))
    assert one != other
    assert load("bundled", interpolation="bilinear").digest == one


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
    with pytest.raises(LoadError, match="states its own input; leave --mean out"):
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


def test_a_factory_may_keep_its_network_unless_that_answers_meanwhile(tmp_path, monkeypatch):
    """Loaded twice in one process, also after a file that did not fit."""
    (tmp_path / "keeps.py").write_text(
        "from ttc_core.zoo import ARCHITECTURES\n"
        "ONLY = ARCHITECTURES['resnet20'].build(10)\n"
        "def make():\n    return ONLY\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save(ARCHITECTURES["resnet20"].build(10).state_dict(), good)
    torch.save(ARCHITECTURES["resnet32"].build(10).state_dict(), bad)
    with pytest.raises(LoadError, match=r"bad\.pth"):
        load(f"keeps:make@{bad}")
    first = load(f"keeps:make@{good}")
    assert load(f"keeps:make@{good}").digest == first.digest
    token = at_work.set(first.module)
    try:
        with pytest.raises(LoadError, match=r"answers now; .* anew each time"):
            load(f"keeps:make@{good}")
    finally:
        at_work.reset(token)
