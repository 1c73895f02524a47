"""Networks of somebody's own that do odd things: the first true cause, in a sentence."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.fixtures.networks import make_images
from ttc_core.errors import ModelError
from ttc_core.methods import create
from ttc_core.model import SourceModel


def plain() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    )


class Odd(nn.Module):
    """A plain network whose answer goes through a function of the network and the images."""

    def __init__(self, answer: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.net, self.answer = plain(), answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.net, x)


def model_of(module: nn.Module, **options: Any) -> SourceModel:
    return SourceModel(module, mean=(0.0,) * 3, std=(1.0,) * 3, **{"size": None, **options})


# One size only


def of_size(side: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * side**2, 5)
    )


class Viewed(nn.Module):
    """At other sizes it answers with another number of rows instead of failing."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3 * 24 * 24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.avg_pool2d(self.norm(x), 2).reshape(-1, 3 * 24 * 24))


@pytest.mark.parametrize(
    ("module", "side"),
    [(of_size(28), 28), (of_size(96), 96), (of_size(224), 224), (Viewed(), 48)],
    ids=["28", "96", "224", "rows"],
)
def test_a_network_of_one_size_has_its_images_resized(module, side):
    """To the side that the trial run found; a notice says so."""
    model = model_of(module)
    assert (model.size, model.crop, model.trial_side) == (side, None, side)
    assert f"resized to {side} × {side} pixels" in model.notices[0]


def test_a_network_of_any_size_is_left_alone():
    """Its images go in as they come, and nothing is said."""
    model = model_of(plain())
    assert (model.size, model.notices) == (None, [])


# What it writes, changes or keeps


class Buffered(nn.Module):
    """Without a graph it answers in the same memory each time."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.memory = plain(), torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return logits if logits.requires_grad else self.memory.resize_(logits.shape).copy_(logits)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("source", {}),
        ("norm", {"statistics": "batch", "flip": True}),
        ("tent", {"statistics": "batch", "flip": True}),
        ("ttc", {"statistics": "batch"}),
        ("tipi", {"statistics": "batch"}),
    ],
)
@pytest.mark.parametrize("odd", ["writes into its input", "answers in the same memory"])
def test_what_a_network_does_to_its_memory_changes_no_answer(odd, method, settings):
    """Neither an input normalised in place nor an answer written over by the second view's."""
    torch.manual_seed(0)
    if odd == "writes into its input":
        odd_network: nn.Module = Odd(lambda net, x: net(x.sub_(0.5).mul_(3)))
        usual: nn.Module = Odd(lambda net, x: net(x.sub(0.5).mul(3)))
    else:
        odd_network, usual = Buffered(), Odd(lambda net, x: net(x))
    usual.net.load_state_dict(odd_network.net.state_dict())
    images = make_images(6, size=32)
    answers = [
        create(method, model_of(each), **settings).predict(images, learn=False).logits
        for each in (odd_network, usual)
    ]
    torch.testing.assert_close(*answers, rtol=0, atol=0)


def test_what_a_pass_changes_in_torch_is_put_back():
    """A pass may set defaults; they would change all that is computed afterwards."""

    def answer(net: nn.Module, x: Tensor) -> Tensor:
        logits = net(x)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.use_deterministic_algorithms(True)
        return logits

    method = create("tent", model_of(Odd(answer)))
    assert method.adapt(method.predict(make_images(4, size=32))).stepped
    assert (torch.is_grad_enabled(), torch.get_default_dtype()) == (True, torch.float32)
    assert torch.get_default_device().type == "cpu"
    assert not torch.are_deterministic_algorithms_enabled()


def keeping(net: nn.Module, x: Tensor) -> Tensor:
    net[1].weight.data.mul_(0.9)
    return net(x)


@pytest.mark.parametrize(
    "answer", [keeping, lambda net, x: net(nn.functional.dropout(x, training=True))]
)
def test_a_network_that_does_not_repeat_its_answers_is_told(answer):
    """Its streams touch each other, and a reset is none: whoever serves it should know."""
    assert "answers the same images otherwise" in model_of(Odd(answer)).notices[0]


def test_a_train_that_returns_nothing_is_put_in_eval_mode_all_the_same():
    """Overriding `train` to keep BatchNorm frozen, many forget to return the network."""

    class Kept(Odd):
        def train(self, mode: bool = True) -> None:  # type: ignore[override]
            super().train(mode)

    assert not model_of(Kept(lambda net, x: net(x))).module.training


# What is raised or answered later


def raising(error: BaseException) -> Callable[[nn.Module, Tensor], Any]:
    def answer(net: nn.Module, x: Tensor) -> Any:
        if x.shape[2] == 50:
            raise error
        return net(x)

    return answer


class Unspeakable(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (raising(SystemExit(3)), r"failed on images of 40 × 50 pixels: it ended the program"),
        (raising(RecursionError("deep")), "RecursionError: deep"),
        (raising(GeneratorExit()), "GeneratorExit"),
        (raising(Unspeakable()), "Unspeakable"),
        (lambda net, x: net(x) if x.shape[2] != 50 else None, "with NoneType in place of logits"),
        (lambda net, x: net(x)[: 3 if x.shape[2] == 50 else 9], r"\(3, 10\) in place of logits"),
        (lambda net, x: net(x) if len(x) == 2 else {"logits": net(x)}, "with dict in place of"),
    ],
)
def test_what_a_network_does_after_loading_is_a_sentence(answer, sentence):
    """One type of error, whatever it raised; the next images are answered again."""
    method = create("tent", model_of(Odd(answer)))
    images = torch.zeros(4, 3, 50, 40, dtype=torch.uint8)
    with pytest.raises(ModelError, match=sentence):
        method.predict(images)
    assert method.predict(make_images(2, size=32)).is_finite()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (torch.no_grad()(lambda net, x: net(x)), "lets no gradient through"),
        (lambda net, x: net(x).detach(), "lets no gradient through"),
        (lambda net, x: checkpoint(net, x, use_reentrant=False), "uses gradient checkpointing"),
        (lambda net, x: checkpoint(net, x, use_reentrant=True), "lets no gradient through"),
    ],
)
def test_a_network_that_nothing_can_be_learned_through_says_so(answer, sentence):
    """It can be served by SOURCE; what learns says why it cannot."""
    model = model_of(Odd(answer))
    images = make_images(4, size=32)
    assert create("source", model).predict(images).is_finite()
    for name in ("tent", "tipi"):
        method = create(name, model)
        with pytest.raises(ModelError, match=sentence):
            method.adapt(method.predict(images))


# The first true cause


def damaged(value: float, layer: int = 0, name: str = "weight") -> nn.Module:
    network = plain()
    with torch.no_grad():
        getattr(network[layer], name)[0] = value
    return network


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (damaged(math.nan), r"NaN begins in '0' \(Conv2d\): its weight holds NaN"),
        (damaged(math.inf, 5, "bias"), r"infinity begins in '5' \(Linear\): its bias holds inf"),
        (damaged(-1, 1, "running_var"), r"1\.running_var holds a negative variance, -1"),
        (damaged(math.nan, 1, "bias"), r"1\.bias holds NaN"),
        (Odd(lambda net, x: net(x) / 0), r"infinity begins in Odd|NaN begins in Odd"),
        (plain().to("meta"), r"0\.weight is on the device meta"),
        (nn.Sequential(), "no BatchNorm, LayerNorm, GroupNorm or RMSNorm"),
        (3, r"must be an nn\.Module; got int"),
        (Odd(lambda net, x: {"logits": net(x)}), "answers with dict"),
        (Odd(lambda net, x: net(x).argmax(1)), r"answers with \(2,\) torch\.int64"),
        (Odd(lambda net, x: None), "answers with NoneType"),
        (Odd(raising(SystemExit(2))), None),
    ],
)
def test_a_network_that_cannot_be_served_says_the_first_cause(module, sentence):
    """NaN is NaN and where it begins, not a missing split."""
    if sentence is None:
        assert model_of(module).classes == 10
        return
    with pytest.raises(ValueError, match=sentence):
        model_of(module)


def test_a_split_that_no_pass_reaches_is_no_missing_split():
    """Whoever gave one is not told to give one."""
    with pytest.raises(ValueError, match=r"split='net\.5' names a layer that a forward pass does"):
        model_of(Odd(lambda net, x: net[:5](x)), split="net.5")


# Outputs that are no logits


@pytest.mark.parametrize("split", [None, "net.5"])
@pytest.mark.parametrize(
    "last",
    [
        lambda x: x.softmax(1),
        lambda x: x.softmax(1).mul(100),
        lambda x: x.softmax(0),
        lambda x: x.sigmoid(),
        lambda x: x.sigmoid().clamp(0, 1).view(-1, 10),
        lambda x: -x.log_softmax(1),
        lambda x: (x.softmax(1) + (2 * x).softmax(1)) / 2,
        lambda x: x.softmax(1).detach(),
        lambda x: nn.functional.one_hot(x.argmax(1), 10).float(),
    ],
)
def test_answers_that_are_no_logits_are_refused(last, split):
    """Softmax of probabilities is near uniform: a sure network would say 0.23."""
    with pytest.raises(ValueError, match="not with logits; leave its last function out"):
        model_of(Odd(lambda net, x: last(net(x))), split=split)


def test_log_probabilities_are_logits():
    """Their softmax is what they are the logarithm of."""
    model = model_of(Odd(lambda net, x: net(x).log_softmax(1)), split="net.5")
    bare = model_of(model.module.net)
    images = make_images(4, size=32)
    ours, theirs = (create("source", each).predict(images) for each in (model, bare))
    torch.testing.assert_close(ours.probabilities, theirs.probabilities)


def test_an_untrained_head_is_not_taken_for_probabilities():
    """All zeros, and small numbers that happen to lie between 0 and 1."""
    network = plain()
    nn.init.zeros_(network[5].weight)
    for bias in (0.0, 0.05):
        nn.init.constant_(network[5].bias, bias)
        assert model_of(network).split == "5"


def test_a_caller_may_have_hooks_for_what_gradients_keep():
    """They are asked in every pass, and stay in place behind it."""
    method = create("tent", model_of(plain()))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        assert method.adapt(method.predict(make_images(4, size=32))).stepped
        assert kept
        kept.clear()
        (torch.ones(2, requires_grad=True) ** 2).sum()
    assert kept
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        pass  # they are not disabled afterwards
