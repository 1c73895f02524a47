"""The source model: its split, names and input, and the networks that it refuses."""

import os
import pickle
import subprocess
import sys
from copy import deepcopy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tests.fixtures.networks import (
    CLASSES,
    MEAN,
    SIZE,
    STD,
    ConvolutionalHead,
    HeadlessSum,
    make_images,
    make_model,
    make_network,
    without_normalization,
)
from ttc_core import fused as fused_module
from ttc_core.fused import fused
from ttc_core.methods import create
from ttc_core.model import SourceModel
from ttc_core.zoo.bottleneck_resnet import BottleneckResNet
from ttc_core.zoo.resnet import ResNet
from ttc_core.zoo.wide_resnet import WideResNet

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
        pytest.param(
            without_normalization(), "no BatchNorm, LayerNorm, GroupNorm or RMSNorm", id="no-norm"
        ),
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
        ((1e308,) * 3, (1.0,) * 3),
        ((0.5,) * 3, (1e-300,) * 3),
    ],
)
def test_mean_and_deviation_are_three_numbers(mean, std):
    """And no deviation is 0, nor any number so odd that pixels overflow."""
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


# The source in fewer operations


def as_found(network: nn.Module) -> nn.Module:
    """With statistics, scales and shifts that do something, in evaluation mode."""
    drawn = torch.Generator().manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
                tensor.data.uniform_(0.5, 1.5, generator=drawn)
    return network.eval()


FUSED = {
    "ours": lambda: ResNet(1),
    "ours, normalised before": lambda: WideResNet(10, 1),
    "ours, bottlenecks": lambda: BottleneckResNet((1, 1, 1, 1)),
    "torchvision": lambda: torchvision.models.resnet18(num_classes=CLASSES),
}


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("images", [1, 5])
def test_a_network_in_fewer_operations_answers_as_written(name, images):
    """And the images are as they were, since others read them, too."""
    network = as_found(FUSED[name]())
    shorter = fused(network, 32)
    if shorter is None and name == "torchvision" and torch.__version__ < "2.14":
        pytest.skip("2.10 cannot pack its first kernel, and runs it as written")
    assert shorter is not None
    inputs = torch.randn(images, 3, 32, 32)
    before = inputs.clone()
    with torch.no_grad():
        torch.testing.assert_close(shorter(inputs), network(inputs), rtol=1e-4, atol=1e-5)
    assert torch.equal(inputs, before)


PASSES = """
import sys, torch, torchvision
from concurrent.futures import ThreadPoolExecutor
from ttc_core.fused import between_passes, fused
network = torchvision.models.resnet50().eval()

def begin():
    torch.set_num_threads(2)
    torch.get_num_threads()  # a thread that has computed nothing takes what another says later

def write_beside():
    torch.set_num_threads(1)
    between_passes.set(lambda call: passes.submit(call).result())
    return fused(network, 224)

def answer():
    assert torch.get_num_threads() == 2
    with torch.no_grad():
        for count in (1, 2):
            images = torch.randn(count, 3, 224, 224)
            shorter(images)
            print("from here", flush=True)
            shorter(images)
            print("to here", flush=True)

with ThreadPoolExecutor(1) as passes, ThreadPoolExecutor(1) as other:
    passes.submit(begin).result()
    if sys.argv[1] == "beside":
        shorter = other.submit(write_beside).result()
    else:
        shorter = passes.submit(fused, network, 224).result()
    passes.submit(answer).result()
"""


@pytest.mark.skipif(torch.__version__ < "2.14", reason="2.10 cannot pack its first kernel")
@pytest.mark.parametrize("made", ["at the start", "beside"])
def test_no_pass_lays_weights_out_anew(made):
    """Of a lone image that took longer than all the rest; oneDNN itself says what it does.

    Also where a thread with another number of threads makes it beside those that answer.
    """
    said = subprocess.run(
        [sys.executable, "-c", PASSES, made],
        env={**os.environ, "ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    passes = [part.partition("to here")[0] for part in said.split("from here")[1:]]
    assert [part.count(",convolution,") for part in passes] == [53] * 2
    assert [part.count(",reorder,") for part in passes] == [0] * 2


def with_hook(network: nn.Module) -> nn.Module:
    network.layer1[0].conv1.register_forward_hook(lambda layer, given, made: 2 * made)
    return network


def with_own_forward(network: nn.Module) -> nn.Module:
    network.layer2.forward = lambda x: network.layer2[0](x)
    return network


class OneMore(ResNet):
    """A class of a user's own."""


@pytest.mark.parametrize(
    "network",
    [with_hook(ResNet(1)), with_own_forward(ResNet(1)), OneMore(1), ResNet(1).double()],
    ids=["hook", "forward", "class", "precision"],
)
def test_what_is_not_known_layer_by_layer_is_run_as_it_is_written(network):
    assert fused(network.eval(), 32) is None


def test_both_ways_through_a_model_say_the_same():
    """As written with a graph, in fewer operations without: logits and features, of any size."""
    model = SourceModel(as_found(ResNet(1, CLASSES)), mean=MEAN, std=STD, size=None)
    for side in (32, 20):
        inputs = torch.randn(3, 3, side, side)
        written = model.run(inputs)
        with torch.no_grad():
            shorter = model.run(inputs)
        torch.testing.assert_close(shorter.logits, written.logits.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(shorter.features, written.features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("copied", [deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_a_model_that_has_answered_can_be_copied(copied):
    """The copy answers the same, in as few operations."""
    model = SourceModel(as_found(ResNet(1, CLASSES)), mean=MEAN, std=STD, size=32)
    inputs = torch.randn(3, 3, 32, 32)
    expected = model.run(inputs).logits
    assert torch.equal(copied(model).run(inputs).logits, expected)


@torch.no_grad()
def test_small_logits_are_held_against_their_own_size(monkeypatch):
    """What is a hundredth off is no rounding, however small the logits are."""
    network = as_found(ResNet(1, CLASSES)).eval()
    network.linear.weight.mul_(1e-6)
    network.linear.bias.mul_(1e-6)
    assert fused(network, 32) is not None
    plain = fused_module._folded

    def wrong(layer, norm):
        weight, bias = plain(layer, norm)
        return 1.01 * weight, bias

    monkeypatch.setattr(fused_module, "_folded", wrong)
    assert fused(network, 32) is None


@torch.no_grad()
def test_what_finds_no_memory_is_not_run_as_written(monkeypatch):
    """That takes more; fewer images may fit."""
    model = SourceModel(as_found(ResNet(1, CLASSES)), mean=MEAN, std=STD, size=32)

    def full(inputs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(model._runner, "fused", full)
    with pytest.raises(torch.OutOfMemoryError):
        model.run(torch.randn(3, 3, 32, 32))


@torch.no_grad()
def test_nothing_is_traced_once_a_model_is_made(monkeypatch):
    """While torch.fx traces, passes of other threads fail."""
    model = SourceModel(as_found(ResNet(1, CLASSES)), mean=MEAN, std=STD, size=32)
    traced = []
    monkeypatch.setattr(torch.fx, "symbolic_trace", traced.append)
    model.run(torch.randn(1, 3, 32, 32))
    assert traced == []


@torch.no_grad()
def test_other_weights_answer_once_they_are_looked_at():
    """`refresh` forgets what was made of the former ones."""
    model = SourceModel(as_found(ResNet(1, CLASSES)), mean=MEAN, std=STD, size=32)
    inputs = torch.randn(3, 3, 32, 32)
    before = model.run(inputs).logits
    model.module.layer1[0].conv1.weight.mul_(2)
    model.refresh()
    after = model.run(inputs).logits
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(after, model.module(inputs), rtol=1e-4, atol=1e-5)
