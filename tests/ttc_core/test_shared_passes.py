"""The frozen network is frozen: passes of several threads, and of several streams together."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.passes import recorded
from tests.fixtures.contract import OWN_METHOD, Case, eta, ttc, ttc_stream
from tests.fixtures.networks import MEAN, SIZE, STD, make_images, make_model, make_network
from ttc_core.errors import ModelError
from ttc_core.methods import create
from ttc_core.methods.parts.gradient import differentiated
from ttc_core.methods.parts.statistics import MovingStatistics
from ttc_core.model import SourceModel
from ttc_core.running import Runner
from ttc_core.together import Failed, answered, together

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


class CalledTwice(nn.Module):
    """A BatchNorm layer that is called twice in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.again = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        return self.head(self.norm(self.again(x)).relu().mean((2, 3)))


OF_ONES_OWN = {
    "rms": RMSNetwork,
    "rms-by-hand": partial(RMSNetwork, True),
    "batch-norm-called-twice": CalledTwice,
}


@cache
def make(name: str) -> SourceModel:
    if name not in OF_ONES_OWN:
        return make_model(name)
    torch.manual_seed(0)
    return SourceModel(OF_ONES_OWN[name](), mean=MEAN, std=STD, size=SIZE)


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


@contextmanager
def passes() -> Iterator[list[int]]:
    """The images of each pass that networks make until the block ends."""
    made: list[int] = []
    plain = Runner.run

    def noting(self, inputs, *more):
        made.append(len(inputs))
        return plain(self, inputs, *more)

    Runner.run = noting
    try:
        yield made
    finally:
        Runner.run = plain


def values(outcomes):
    """What each gave; what one raised is raised."""
    for each in outcomes:
        if isinstance(each, Failed):
            raise each.error
    return [each.value for each in outcomes]


COUNTS = (3, 1, 4)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("network", [*NETWORKS, "layer-norm", "rms"])
def test_streams_that_share_a_pass_get_the_answers_of_their_own(network, views):
    """Scales, shifts and moving statistics are each row's stream's; so are share and gradient."""
    model = make(network)
    affines = [moved(model, seed) for seed in range(3)]
    for own in affines:
        for tensor in own.values():
            tensor.requires_grad_()
    inputs = [inputs_of(model, count, seed) for seed, count in enumerate(COUNTS)]
    streams = [
        MovingStatistics(model, warm_start=4 + 3 * number, floor=0.001) for number in range(3)
    ]

    def work(number):
        x, own, stream = inputs[number], affines[number], streams[number]
        look = stream.look(len(x))
        shown = torch.cat([x, x.flip(3)][:views])
        logits = model.run(shown, affine=own, look=look).logits
        first = next(iter(own.values()))
        slope = differentiated(logits.square().sum(), first, "its first scale")
        return logits.detach(), stream.share(look), slope

    alone = [work(number) for number in range(3)]
    assert model.shares
    with passes() as made:
        shared = values(together([partial(work, number) for number in range(3)]))
    assert made == [views * sum(COUNTS)]
    for (logits, share, slope), (expected, own, right) in zip(shared, alone, strict=True):
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        assert share.images == own.images
        torch.testing.assert_close(share.moments, own.moments, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(slope, right, atol=1e-3, rtol=1e-3)


SHARING = [
    Case("source"),
    Case("source", {"flip": True}),
    Case("norm", {"statistics": "moving"}),
    Case("norm", {"statistics": "source"}),
    Case("t3a"),
    Case("t3a", {"statistics": "moving"}, "batch-norm-called-twice"),
    *(
        Case(name, {"statistics": statistics, "optimizer": "sgd", "lr": 0.1}, network)
        for name in ("tent", "tipi")
        for statistics, network in (("moving", "batch-norm"), ("source", "layer-norm"))
    ),
    eta(statistics="moving", optimizer="sgd", lr=0.1),
    ttc(statistics="moving", optimizer="sgd", lr=0.1),
    ttc("group-norm", optimizer="sgd", lr=0.1),
    ttc("batch-norm-called-twice", statistics="moving", augmentation="gaussian_noise"),
    ttc_stream(optimizer="sgd", lr=0.1),
    ttc_stream("batch-norm-called-twice"),
    ttc_stream("layer-norm"),
    ttc_stream(learn="never"),
]


@pytest.mark.parametrize("case", SHARING, ids=lambda case: case.id)
def test_methods_that_share_passes_answer_and_learn_as_alone(case):
    """From the same state: the same answers, the same steps; also beside faulty frames.

    Streams of other sizes, some of which are answered only, some new, some that have learned.
    """
    model = make(case.network)
    guard = "on" if case.name in ("t3a", "ttc_stream") else "off"
    source = create(case.name, model, guard=guard, **case.settings)
    assert source.shares
    methods, twins = ([source.fork() for _ in range(3)] for _ in range(2))
    for turn in range(5):
        batches = [make_images(1 + (turn + n) % 4, seed=10 * turn + n) for n in range(3)]
        if turn % 2:
            batches[1][:1] = 255
        learn = turn != 2
        for method, twin in zip(methods, twins, strict=True):
            twin.restore(method.state())

        def ask(method, images, learn=learn):
            return method.predict(images, learn=learn)

        def teach(method, prediction, learn=learn):
            return method.adapt(prediction, learn=learn)

        asked = [partial(ask, *each) for each in zip(methods, batches, strict=True)]
        predictions = values(together(asked))
        alone = [ask(*each) for each in zip(twins, batches, strict=True)]
        for got, expected in zip(predictions, alone, strict=True):
            torch.testing.assert_close(got.logits, expected.logits, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(got.probabilities, expected.probabilities)
            assert torch.equal(got.logits.argmax(1), expected.logits.argmax(1))
            assert torch.equal(got.selected, expected.selected)
            assert (got.suspects, got.modes) == (expected.suspects, expected.modes)
            assert got.compared == expected.compared
        taught = [partial(teach, *each) for each in zip(methods, predictions, strict=True)]
        outcomes = values(together(taught))
        for got, each, method, twin in zip(outcomes, alone, methods, twins, strict=True):
            expected = teach(twin, each)
            assert (got.selected, got.stepped, got.skipped) == (
                expected.selected,
                expected.stepped,
                expected.skipped,
            )
            assert (got.loss is None) == (expected.loss is None)
            assert got.loss is None or got.loss == pytest.approx(expected.loss, rel=1e-3, abs=1e-5)
            assert_alike(method.state(), twin.state())
    assert case.settings.get("learn") == "never" or all(each.skipped is None for each in outcomes)


def assert_alike(state, expected):
    """What two states hold, to rounding."""
    assert state.keys() == expected.keys()
    for section, entries in expected.items():
        assert dict(state[section]).keys() == dict(entries).keys()
        for name, value in entries.items():
            got = state[section][name]
            if not isinstance(value, str):
                # Adam makes a step of its own size of the least gradient.
                torch.testing.assert_close(got, value, atol=4e-3, rtol=1e-3, check_dtype=False)


@pytest.mark.parametrize("learn", [True, False])
def test_a_thousand_streams_are_one_pass_each_of_what_they_ask(learn):
    """However many: the source's in the shadow, the method's, the guard's second opinion."""
    model = make_model()
    source = create("ttc_stream", model, guard="on", learn="always", entropy_fraction=1.0)
    methods = [source.fork() for _ in range(50)]
    images = make_images(50)
    source.predict(images[:1])  # what is looked up of a network at first
    assert source.shares
    asked = [
        partial(method.predict, images[n : n + 1], learn=learn) for n, method in enumerate(methods)
    ]
    with passes() as made:
        predictions = values(together(asked))
    assert made == [50, 100, 50]
    with recorded() as passed:
        works = zip(methods, predictions, strict=True)
        values(together([partial(m.adapt, p, learn=learn) for m, p in works]))
    assert passed.backward == learn


def test_what_has_learned_nothing_needs_no_scales_of_its_own():
    """SOURCE's streams are one pass as it is, with nothing by row; to the bit."""
    model = make_model()
    methods = [create("source", model) for _ in range(3)]
    images = make_images(6)
    asked = [partial(m.predict, images[2 * n : 2 * n + 2]) for n, m in enumerate(methods)]
    together_ = torch.cat([each.logits for each in values(together(asked))])
    assert torch.equal(together_, methods[0].predict(images).logits)


class Folded(nn.Module):
    """Its normalisation layer is given the two halves of each image as rows of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = make_network("batch-norm")

    def forward(self, x: Tensor) -> Tensor:
        halves = x.unflatten(3, (2, -1)).movedim(3, 1).flatten(0, 1)
        y = F.relu(self.body.norm1(self.body.conv1(halves))).unflatten(0, (-1, 2)).sum(1)
        return self.body.head(F.relu(self.body.norm2(self.body.conv2(y))).mean((2, 3)))


class Contrasting(nn.Module):
    """What it says of an image depends on the others of the batch, without any layer of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.body = make_network("batch-norm")

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x - x.mean(0))


@pytest.mark.parametrize(
    "make_one",
    [
        lambda: make("rms-by-hand"),
        lambda: make("batch-norm-without-running"),
        lambda: SourceModel(Folded(), mean=MEAN, std=STD, size=SIZE, split="body.head"),
        lambda: SourceModel(Contrasting(), mean=MEAN, std=STD, size=SIZE, split="body.head"),
    ],
    ids=["scale-by-hand", "batch-norm-without-running", "folded", "contrasting"],
)
def test_what_cannot_be_shared_is_refused_not_mixed(make_one):
    """Found by trying; each stream is answered apart, rather than by somebody else's numbers."""
    model = make_one()
    assert not model.shares
    methods = [create("tent", model, statistics="source") for _ in range(2)]
    assert not methods[0].shares
    images = make_images(4)
    alone = [method.predict(images[2 * n : 2 * n + 2]) for n, method in enumerate(methods)]
    asked = [partial(m.predict, images[2 * n : 2 * n + 2]) for n, m in enumerate(methods)]
    for got, expected in zip(values(together(asked)), alone, strict=True):
        assert torch.equal(got.logits, expected.logits)


def test_statistics_of_the_batch_are_no_others():
    """METHOD §1.2 to the letter: a stream's batch is its own."""
    model = make_model()
    methods = [create("tent", model, statistics="batch") for _ in range(2)]
    assert model.shares
    assert not methods[0].shares
    images = make_images(8)
    asked = [partial(m.predict, images[4 * n : 4 * n + 4]) for n, m in enumerate(methods)]
    with passes() as made:
        shared = values(together(asked))
    assert made == [4, 4]
    for number, got in enumerate(shared):
        expected = methods[0].predict(images[4 * number : 4 * number + 4])
        assert torch.equal(got.logits, expected.logits)


@pytest.mark.parametrize("guard", ["off", "on"])
def test_a_method_of_ones_own_never_shares(guard):
    """What it sets of its thread while the network runs would be another stream's, too."""
    model = make_model()
    assert model.shares
    assert not create(OWN_METHOD, model, guard=guard).shares


def test_what_one_stream_comes_to_is_its_own():
    """Its error, its images that are no numbers; the others are answered, and learn."""
    model = make_model()
    source = create("ttc_stream", model, learn="always", entropy_fraction=1.0, samples_per_step=1)
    methods = [source.fork() for _ in range(3)]
    images = [make_images(2, seed).float() / 255 for seed in range(3)]
    images[1][0, 0, 0, 0] = torch.nan

    def broken():
        source.predict(images[0])
        raise LookupError("mine")

    asked = [partial(m.predict, x) for m, x in zip(methods, images, strict=True)]
    *answered, failed = together([*asked, broken])
    assert isinstance(failed.error, LookupError)
    predictions = values(answered)
    assert [each.is_finite() for each in predictions] == [True, False, True]
    works = zip(methods, predictions, strict=True)
    outcomes = values(together([partial(m.adapt, p) for m, p in works]))
    assert [each.skipped for each in outcomes] == [None, "non_finite", None]
    for number in (0, 2):
        twin = source.fork()
        twin.adapt(twin.predict(images[number]))
        assert_alike(methods[number].state(), twin.state())


class Breaking(torch.autograd.Function):
    """Its forward is nothing, its backward fails."""

    @staticmethod
    def forward(context, x, error):
        context.error = error
        return x.clone()

    @staticmethod
    def backward(context, _slope):
        raise context.error


@pytest.mark.parametrize("error", [RuntimeError("mine"), LookupError("mine")])
def test_whose_backward_fails_costs_the_streams_beside_it_nothing(error):
    """Their gradients are taken apart, of the graph that they share."""
    model = make_model()
    affines = [moved(model, seed) for seed in range(3)]

    def work(number, broken):
        first = next(iter(affines[number].values())).requires_grad_()
        loss = model.run(inputs_of(model, 2, number), affine=affines[number]).logits.square().sum()
        loss = Breaking.apply(loss, error) if broken else loss
        return differentiated(loss, first, "its first scale")

    alone = [work(number, False) for number in range(3)]
    outcomes = together([partial(work, number, number == 1) for number in range(3)])
    with pytest.raises((ModelError, LookupError), match="mine"):
        values(outcomes[1:2])
    for number in (0, 2):
        (slope,) = values(outcomes[number : number + 1])
        torch.testing.assert_close(slope, alone[number], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("streams", [1, 2])
def test_a_gradient_that_finds_no_memory_says_so(streams):
    """It is not that the network lets no gradient through: fewer images may fit."""
    model, error = make_model(), torch.OutOfMemoryError("out of memory")

    def work():
        affine = moved(model, 0)
        first = next(iter(affine.values())).requires_grad_()
        loss = Breaking.apply(model.run(inputs_of(model, 1, 0), affine=affine).logits.sum(), error)
        return differentiated(loss, first, "its first scale")

    outcomes = together([work] * streams)
    assert [type(each.error) for each in outcomes] == [torch.OutOfMemoryError] * streams
    assert len({id(each.error) for each in outcomes}) == streams


def test_what_a_wish_belongs_to_is_its_own_failure():
    """Trying whether a network's passes may be shared can find no memory."""
    model = make_model()
    images = inputs_of(model, 1, 0)

    class Full:
        turn = 0

        @property
        def group(self):
            raise MemoryError

    failed, answer = together([lambda: answered(Full()), lambda: model.run(images).logits])
    assert isinstance(failed.error, MemoryError)
    assert values([answer])[0].shape == (1, model.classes)


def test_each_goes_on_as_if_it_were_alone():
    """Gradients are on or off, and variables of the context set, for each by itself."""
    model, name = make_model(), ContextVar("name", default="nobody")
    x = inputs_of(model, 1, 0)

    def work(own):
        name.set(own)
        with torch.set_grad_enabled(own == "learns"):
            model.run(x, affine=model.affine)
            return torch.is_grad_enabled(), name.get()

    with torch.no_grad():
        found = values(together([partial(work, each) for each in ("learns", "does not")]))
        assert found == [(True, "learns"), (False, "does not")]
        assert not torch.is_grad_enabled()
    assert name.get() == "nobody"
    assert together([]) == []


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("graph", [True, False])
def test_a_pass_that_stands_alone_among_others_has_a_graph_where_its_stream_wants_one(
    graph, outside
):
    """Nobody else asks for a pass, or for one of another size; whatever holds around all."""
    model = make_model()
    affine = {name: tensor.clone().requires_grad_() for name, tensor in model.affine.items()}

    def work(count):
        with torch.set_grad_enabled(graph):
            return model.run(inputs_of(model, 1, 0)[..., count:], affine=affine).logits

    with torch.set_grad_enabled(outside):
        one, another, none = values(together([partial(work, 0), partial(work, 4), bool]))
    assert (one.requires_grad, another.requires_grad, none) == (graph, graph, False)


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
