"""Weight files as people have them: what is taken of them, and what a refusal says."""

import argparse
import datetime
import os
import pickle
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.fixtures.networks import (
    make_images,
    make_network,
)
from ttc_core.errors import LoadError
from ttc_core.evaluate import as_batch
from ttc_core.load import BUNDLED_WEIGHTS, load
from ttc_core.methods import create
from ttc_core.model import SourceModel
from ttc_core.zoo import ARCHITECTURES

NETWORKS = "tests.fixtures.networks"
# wrn28-10 and resnet50 hold 36 and 24 million numbers: their layouts are those of smaller kin.
CIFAR = {
    "resnet20": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 64),
    "wrn40-2": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 128),
}


def random_weights(architecture: str, classes: int = 10) -> dict[str, Tensor]:
    torch.manual_seed(1)
    network = ARCHITECTURES[architecture].build(classes)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    return network.state_dict()


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
    assert model.notices == []


def test_ten_classes_of_a_cifar_network_are_taken_for_cifars(tmp_path):
    """They may be one's own, so that it is told."""
    torch.save(random_weights("resnet20", classes=10), tmp_path / "own.pt")
    (notice,) = load(f"cifar/resnet20@{tmp_path}/own.pt").notices
    assert "CIFAR-10's, for ten classes; --class-names" in notice


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


def test_published_weights_run_no_code_either(tmp_path, monkeypatch):
    """torchvision itself reads what lies in torch's cache as a pickle of anything."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    file = tmp_path / "hub" / "checkpoints" / Path(weights.url).name
    file.parent.mkdir(parents=True)
    torch.save(torchvision.models.shufflenet_v2_x0_5().state_dict(), file)
    assert load("torchvision/shufflenet_v2_x0_5").class_names[0] == "tench"
    torch.save(Trap(tmp_path / "executed"), file)
    with pytest.raises(LoadError, match="shufflenet_v2_x0_5 could not be loaded"):
        load("torchvision/shufflenet_v2_x0_5")
    assert not (tmp_path / "executed").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def truncated(path: Path) -> None:
    torch.save(random_weights("resnet20"), path)
    path.write_bytes(path.read_bytes()[:-5000])


def whole_network(path: Path) -> None:
    torch.save(make_network("batch-norm"), path)


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.trace(make_network("batch-norm"), torch.randn(2, 3, 8, 8)), path)


def exported(path: Path) -> None:
    program = torch.export.export(make_network("batch-norm"), (torch.randn(2, 3, 8, 8),))
    torch.export.save(program, path)


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # it is deprecated
@pytest.mark.parametrize(
    ("name", "write", "sentence"),
    [
        pytest.param("a.pt", lambda path: None, "weight file .* is not there", id="missing"),
        pytest.param(
            "a.pt", lambda path: path.mkdir(), r"The weight file .* is a folder", id="folder"
        ),
        pytest.param("a.pt", truncated, "is no torch file of plain tensors", id="truncated"),
        pytest.param("a.pt", lambda p: p.write_bytes(b""), r"\(it is empty\)", id="empty"),
        pytest.param("a.pt", lambda p: p.write_text("he" * 50), r"\(it is none\)", id="a-text"),
        pytest.param("a.pt", lambda p: p.write_bytes(b"x" * 99), "is no torch file", id="rubbish"),
        pytest.param("a.pt", whole_network, "SmallNetwork.*state_dict", id="network"),
        pytest.param("a.pt", scripted, "torch.jit.save wrote it.* torchscript@", id="scripted"),
        pytest.param("a.pt2", exported, "torch.export.save wrote it.* export@", id="exported"),
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


SETS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "weights", "params"),
    *("model_ema", "ema", "ema_state_dict", "params_ema", "teacher", "student", "of_my_own"),
)
PREFIXES = (
    *("_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "net.", "backbone.", "encoder."),
    *("model.backbone.", "module.model.net.", "feature_extractor.", "_model.", "of.my.own."),
    *("module.encoder_q.", "classifier."),
)


def refilled(content: Any, path: Path, factory: str = "small_network") -> SourceModel:
    """A small network filled from a file with this content; nothing of it may be missing."""
    torch.save(content, path / "weights.pt")
    model = load(f"{NETWORKS}:{factory}@{path}/weights.pt")
    own = model.module.state_dict()
    for name, tensor in marked().items():
        assert torch.equal(own[name], tensor), name
    return model


def marked(value: float = 3) -> dict[str, Tensor]:
    state = make_network("batch-norm").state_dict()
    return without_counts({name: torch.full_like(tensor, value) for name, tensor in state.items()})


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_wrappers_put_in_front_comes_off(prefix, tmp_path):
    """Compiled, parallel, or an attribute of a training script's module, nested as they come."""
    refilled(with_prefix(marked(), prefix), tmp_path)


@pytest.mark.parametrize("container", SETS)
def test_containers_of_training_scripts_are_opened(container, tmp_path):
    """Beside an optimizer, whose tensors are no network."""
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    model = refilled({"optimizer": optimizer, container: marked(), "epoch": 3}, tmp_path)
    assert len(model.notices) == 1  # about preprocessing


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda: {"state_dict": marked(5), "model_ema": marked()}, id="timm"),
        pytest.param(
            lambda: {
                "student": with_prefix(marked(5), "backbone."),
                "teacher": with_prefix(marked(), "module.backbone."),
            },
            id="dino",
        ),
        pytest.param(
            lambda: {
                "state_dict": {
                    **with_prefix(marked(5), "student."),
                    **with_prefix(marked(), "teacher."),
                }
            },
            id="two-in-one-dict",
        ),
        pytest.param(
            lambda: {
                "state_dict": {**with_prefix(marked(), "model."), "criterion.w": torch.ones(2)},
                "hyper_parameters": {"lr": 0.1},
                "callbacks": {},
            },
            id="lightning",
        ),
    ],
)
def test_a_choice_between_networks_is_said(content, tmp_path):
    """A moving average goes before the weights it is of; the sentence says so."""
    model = refilled(content(), tmp_path)
    assert any("holds more than one network: the weights" in said for said in model.notices)


def test_an_average_that_does_not_fit_gives_way(tmp_path):
    """Some keep averages of parameters alone, or a decay beside them."""
    shadow = {"decay": 0.99, "shadow": {"conv1.weight": torch.zeros(8, 3, 3, 3)}}
    refilled({"state_dict": marked(), "ema": shadow}, tmp_path)


def test_averaged_weights_bring_a_counter(tmp_path):
    """`n_averaged`, of stochastic weight averaging, is no weight."""
    refilled({"n_averaged": torch.tensor(3), **with_prefix(marked())}, tmp_path)


def test_options_and_arrays_of_numpy_are_read(tmp_path):
    """They are data; most training scripts save some beside the weights."""
    beside = {"args": argparse.Namespace(lr=0.1), "best": np.float64(93.2)}
    beside |= {"options": types.SimpleNamespace(a=1), "when": datetime.datetime.now(datetime.UTC)}
    refilled({"state_dict": marked(), **beside}, tmp_path)
    refilled({name: tensor.numpy() for name, tensor in marked().items()}, tmp_path)


def test_a_refusal_names_five_keys_and_a_count(tmp_path):
    """A foreign file of hundreds of tensors is refused in a sentence that can be read."""
    foreign = {f"{'x' * 200}.{number}": torch.ones(1) for number in range(300)}
    torch.save(foreign, tmp_path / "weights.pt")
    with pytest.raises(LoadError, match=r"missing .*; and \d+ more\.$") as error:
        load(f"{NETWORKS}:small_network@{tmp_path}/weights.pt")
    assert str(error.value).count(";") == 5
    assert len(str(error.value)) < 1000


def test_whole_numbers_do_not_become_weights(tmp_path):
    """Quantised weights without their scale would load without a word."""
    torch.save({name: t.int() for name, t in marked().items()}, tmp_path / "weights.pt")
    with pytest.raises(LoadError, match=r"holds torch\.int32, not torch\.float32"):
        load(f"{NETWORKS}:small_network@{tmp_path}/weights.pt")


def test_a_packed_archive_is_not_unpacked(tmp_path):
    """torch does not compress; what does may become anything."""
    with zipfile.ZipFile(tmp_path / "weights.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(LoadError, match="it is compressed"):
        load(f"{NETWORKS}:small_network@{tmp_path}/weights.pt")


def test_safetensors_are_known_by_their_bytes(tmp_path):
    """Under any name; an index of several files is refused as what it is."""
    save_file(marked(), tmp_path / "weights.bin")
    load(f"{NETWORKS}:small_network@{tmp_path}/weights.bin")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(LoadError, match="index of several files"):
        load(f"{NETWORKS}:small_network@{tmp_path}/model.safetensors.index.json")
