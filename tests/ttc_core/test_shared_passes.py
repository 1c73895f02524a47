"""The frozen network is frozen: passes of several threads, and of several streams together."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fixtures.networks import MEAN, SIZE, STD, make_images, make_model, make_network
from ttc_core.errors import ModelError
from ttc_core.methods.parts.statistics import MovingStatistics
from ttc_core.model import SourceModel
from ttc_core.normalization import BatchLook, Rows

NETWORKS = ["batch-norm", "batch-norm-on-1x1", "batch-norm-with-own-forward", "group-norm"]


class RMSNetwork(nn.Module):
    """An RMSNorm that is called twice, and one multiplied by hand."""

    def __init__(self, by_hand: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2), nn.RMSNorm(8)
        self.head, self.by_hand = nn.Linear(8, 5), by_hand

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).movedim(1, -1)).relu().mean((1, 2))
        x = x * self.norm.weight if self.by_hand else self.norm(x)
        return self.head(x)


def make(name: str) -> SourceModel:
    if not name.startswith("rms"):
        return make_model(name)
    torch.manual_seed(0)
    return SourceModel(RMSNetwork(name == "rms-by-hand"), mean=MEAN, std=STD, size=SIZE)


def inputs_of(model: SourceModel, count: int, seed: int) -> Tensor:
    return model.normalize(make_images(count, seed) / 255)


def moved(model: SourceModel, seed: int) -> dict[str, Tensor]:
    """Scales and shifts of a stream that has learned."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.5 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.affine.items()
    }


@pytest.mark.parametrize("network", [*NETWORKS, "layer-norm", "rms", "rms-by-hand"])
def test_threads_with_other_parameters_do_not_meet(network):
    """A thousand passes of two threads: all right to the bit, features and gradients too.

    And every tensor of the network is what and where it was.
    """
    model = make(network)
    before = {name: (t, t.clone()) for name, t in model.module.state_dict(keep_vars=True).items()}
    expected: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def one(stream: int) -> tuple[Tensor, Tensor, Tensor]:
        affine = {k: v.requires_grad_() for k, v in moved(model, stream).items()}
        look = MovingStatistics(model, warm_start=stream + 2, floor=0.001).look(4)
        output = model.run(inputs_of(model, 4, stream), affine=affine, look=look)
        (slope,) = torch.autograd.grad(output.logits.square().sum(), [next(iter(affine.values()))])
        return output.logits.detach(), output.features.detach(), slope

    for stream in range(2):
        expected[stream] = one(stream)
    wrong: list[int] = []
    begin = threading.Barrier(2)

    def many(stream: int) -> None:
        begin.wait(60)
        for _ in range(500):
            wrong.extend(
                stream
                for got, right in zip(one(stream), expected[stream], strict=True)
                if not torch.equal(got, right)
            )

    threads = [threading.Thread(target=many, args=(stream,)) for stream in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    now = model.module.state_dict(keep_vars=True)
    assert all(now[name] is tensor for name, (tensor, _) in before.items())
    assert all(torch.equal(tensor, copy) for tensor, copy in before.values())


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("network", [*NETWORKS, "layer-norm", "rms"])
def test_streams_that_share_a_pass_get_the_answers_of_their_own(network, views):
    """Scales, shifts and moving statistics are each row's stream's; so are share and gradient."""
    model = make(network)
    counts = (3, 1, 4)
    affines = [moved(model, seed) for seed in range(3)]
    inputs = [inputs_of(model, count, seed) for seed, count in enumerate(counts)]
    streams = [
        MovingStatistics(model, warm_start=4 + 3 * number, floor=0.001) for number in range(3)
    ]
    for own in affines:
        for tensor in own.values():
            tensor.requires_grad_()
    shown = [torch.cat([x, x.flip(3)][:views]) for x in inputs]
    alone = []
    for stream, own, x, count in zip(streams, affines, shown, counts, strict=True):
        look = stream.look(count)
        logits = model.run(x, affine=own, look=look).logits
        alone.append((logits, stream.share(look)))
    together = torch.cat([x for v in range(views) for x in [[x, x.flip(3)][v] for x in inputs]])
    rows = Rows.of(counts, model.device, views=views)
    stacked = {name: torch.stack([own[name] for own in affines]) for name in model.affine}
    look = MovingStatistics.look_together(streams, counts)
    logits = model.run(together, affine=stacked, look=look, rows=rows).logits
    for number, (own, (expected, share)) in enumerate(zip(affines, alone, strict=True)):
        torch.testing.assert_close(logits[rows.index == number], expected, atol=1e-4, rtol=1e-4)
        got = streams[number].share(look, number)
        assert got.images == share.images
        torch.testing.assert_close(got.moments, share.moments, atol=1e-5, rtol=1e-5)
        parameters = list(own.values())
        mine = logits[rows.index == number].square().sum()
        slopes = torch.autograd.grad(mine, parameters, retain_graph=True)
        right = torch.autograd.grad(expected.square().sum(), parameters)
        torch.testing.assert_close(slopes, right, atol=1e-3, rtol=1e-3)


def test_statistics_of_the_source_are_shared_too():
    """With other scales for each row."""
    model = make_model()
    affines = [moved(model, seed) for seed in range(2)]
    inputs = [inputs_of(model, 2, seed) for seed in range(2)]
    stacked = {name: torch.stack([own[name] for own in affines]) for name in model.affine}
    rows = Rows.of((2, 2), model.device)
    together = model.run(torch.cat(inputs), affine=stacked, rows=rows).logits
    alone = [model.run(x, affine=own).logits for x, own in zip(inputs, affines, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


class Folded(nn.Module):
    """Its normalisation layer is given the two halves of each image as rows of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = make_network("batch-norm")

    def forward(self, x: Tensor) -> Tensor:
        halves = x.unflatten(3, (2, -1)).movedim(3, 1).flatten(0, 1)
        y = F.relu(self.body.norm1(self.body.conv1(halves))).unflatten(0, (-1, 2)).sum(1)
        return self.body.head(F.relu(self.body.norm2(self.body.conv2(y))).mean((2, 3)))


@pytest.mark.parametrize(
    ("make_one", "look", "sentence"),
    [
        (lambda: make("rms-by-hand"), None, "one stream at a time"),
        (lambda: make("batch-norm-without-running"), None, "of one stream's images only"),
        (lambda: make("batch-norm"), BatchLook(), "of one stream's images only"),
        (
            lambda: SourceModel(Folded(), mean=MEAN, std=STD, size=SIZE, split="body.head"),
            None,
            "8 rows for 4 images",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_not_mixed(make_one, look, sentence):
    """Rather no answer than one by somebody else's numbers."""
    model = make_one()
    stacked = {name: torch.stack([tensor, tensor + 1]) for name, tensor in model.affine.items()}
    rows = Rows.of((2, 2), model.device)
    options = {} if look is None else {"look": look}
    with pytest.raises(ModelError, match=sentence):
        model.run(inputs_of(model, 4, 0), affine=stacked, rows=rows, **options)


def test_layers_that_share_a_parameter_adapt_together():
    """It is one parameter, under its first name, and a pass has it in both places."""
    network = make_network("batch-norm")
    network.norm2 = nn.BatchNorm2d(12)
    twin = nn.BatchNorm2d(12)
    twin.weight, twin.bias = network.norm2.weight, network.norm2.bias
    network.conv2 = nn.Sequential(network.conv2, twin)
    model = SourceModel(network.eval(), mean=MEAN, std=STD, size=SIZE)
    assert sum(name.endswith("weight") for name in model.affine) == 2
    affine = {name: tensor + 0.5 for name, tensor in model.affine.items()}
    x = inputs_of(model, 3, 0)
    got = model.run(x, affine=affine).logits
    with torch.no_grad():
        for name, tensor in affine.items():
            network.get_parameter(name).copy_(tensor)
        torch.testing.assert_close(got, network(x))
