"""Methods are composed of parts: what a stream costs, and how a part of another kind joins."""

import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import pytest
import torch
from torch import Tensor

from tests.fixtures.contract import BATCH, batches, same, walk
from tests.fixtures.networks import make_images, make_model
from ttc_core.load import load
from ttc_core.methods import METHODS, create
from ttc_core.methods.composed import AffineMethod
from ttc_core.methods.contract import Adaptation, Prediction, State
from ttc_core.methods.parts import Part
from ttc_core.methods.parts.gradient import Loss
from ttc_core.methods.parts.statistics import STATISTICS, MovingStatistics
from ttc_core.methods.parts.stream_statistics import Followed
from ttc_core.methods.settings import OptimizerSettings
from ttc_core.methods.tent import Tent
from ttc_core.normalization import Call
from ttc_core.objective import entropy


@pytest.fixture(scope="module")
def resnet50():
    return load("torchvision/resnet50?weights=none")


def tensors_of(method) -> dict[int, Tensor]:
    """All tensors that a stream's parts hold and the model does not, by their memory."""
    found: dict[int, Tensor] = {}
    source = {t.data_ptr() for t in (method.model.source_affine, method.model.source_moments)}
    for part in method._parts:
        for value in vars(part).values():
            several = vars(value) if isinstance(value, Followed) else value
            for tensor in several.values() if isinstance(several, dict) else (value,):
                if isinstance(tensor, Tensor) and tensor.data_ptr() not in source:
                    found[tensor.data_ptr()] = tensor
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_stream_that_has_moved_nothing_costs_next_to_nothing(name, resnet50):
    """Under 2 kB, of more parts 6: it has no copy of anything that the source has."""
    moving = {} if name in ("source", "ttc_stream") else {"statistics": "moving"}
    source = create(name, resnet50, **moving)
    source.fork()
    gc.collect()
    tracemalloc.start()
    streams = [source.fork() for _ in range(200)]
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / len(streams) < (6000 if name == "ttc_stream" else 2000)
    held = [set(tensors_of(stream)) for stream in streams]
    assert set.union(*held) == set.intersection(*held)  # if any, then one for all of them


def test_a_fork_costs_a_fraction_of_a_pass(resnet50):
    """Whatever the network's size: measured beside a copy of what adapts in it."""
    source = create("ttc", resnet50, statistics="moving")
    times = {"fork": [], "copies": []}
    for _ in range(30):
        started = perf_counter()
        source.fork()
        times["fork"].append(perf_counter() - started)
        started = perf_counter()
        [tensor.clone() for tensor in resnet50.affine.values()]
        times["copies"].append(perf_counter() - started)
    assert min(times["fork"]) < min(times["copies"])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ttc", {"statistics": "moving"}),
        ("ttc_stream", {"learn": "always", "entropy_fraction": 1.1}),
    ],
)
def test_a_stream_that_has_learned_is_a_handful_of_tensors(name, settings, resnet50):
    """ResNet-50, Adam, gradients pending: at most 1.1 MB in at most a dozen."""
    method = create(name, resnet50, samples_per_step=2, optimizer="adam", lr=1e-3, **settings)
    images = make_images(2, size=64)
    outcomes = [method.adapt(method.predict(images[:1])) for _ in range(3)]
    assert [outcome.stepped for outcome in outcomes] == [False, True, False]
    held = tensors_of(method).values()
    assert len(held) <= 12
    assert sum(t.numel() * t.element_size() for t in held) <= 1.1e6
    # Gradients, two moments of Adam's, parameters; two moments of each channel.
    assert sum(t.numel() for t in held) >= 4 * 53_120 + 53_120


# Parts of other kinds: each is a class, and a line where it is made


@dataclass(frozen=True)
class ImageShare:
    """The moments of each image, by layer: (N, 2, C)."""

    moments: dict[str, Tensor]

    def tensors(self) -> Sequence[Tensor]:
        return list(self.moments.values())


class BalancedStatistics(MovingStatistics):
    """Images of a class that was answered often count less."""

    def reset(self) -> None:
        super().reset()
        self.counts = torch.ones(self._model.classes)

    def look(self, images: int):
        kept: dict[str, Tensor] = {}

        def look(call: Call) -> Tensor:
            kept[call.layer] = call.image_moments().detach()
            mean, square = self.moments[call.layer]
            return call.normalized(mean, square - mean.square())

        look.kept = kept
        return look

    def share(self, look, stream=None) -> ImageShare:
        return ImageShare(look.kept)

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        classes = prediction.probabilities.argmax(dim=1)
        weights = (1 / self.counts)[classes] / len(classes)
        moments = dict(self.moments)
        for name, each in prediction.pending.share.moments.items():
            batch = (weights[:, None, None] * each).sum(0) / weights.sum()
            moments[name] = torch.lerp(moments[name], batch, 0.1)
        self._moments = torch.cat(list(moments.values()), dim=1)
        self.counts = self.counts + torch.bincount(classes, minlength=len(self.counts))

    def state(self) -> State:
        return {**super().state(), "balance": {"counts": self.counts.clone()}}

    def restore(self, state: State) -> None:
        super().restore(state)
        self.counts = state["balance"]["counts"].clone()


def test_statistics_that_weigh_images_by_their_class_are_a_class_and_a_line(monkeypatch):
    """They see moments of single images, and the answers; every method can be set to them."""
    monkeypatch.setitem(
        STATISTICS,
        "balanced",
        lambda model, _: BalancedStatistics(model, warm_start=16, floor=0.001),
    )
    for name in ("norm", "tent"):
        method = create(name, make_model(), statistics="balanced")
        walk(method, batches(3))
        assert method.state()["balance"]["counts"].sum() == method.model.classes + 3 * BATCH
        state, ahead = method.state(), walk(method, batches(2, seed=1))
        other = method.fork()
        assert not same(other.state(), state)
        other.restore(state)
        assert same(walk(other, batches(2, seed=1)), ahead)
        method.reset()
        assert same(method.state(), method.fork().state())


class ImageMemory:
    """The latest images answered, at most so many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.reset()

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        assert prediction.pending.images is not None
        self.images = torch.cat((self.images, prediction.pending.images))[-self._most :]

    def reset(self) -> None:
        self.images = torch.zeros(0, 3, 8, 8)

    def state(self) -> State:
        return {"memory": {"images": self.images.clone()}}

    def restore(self, state: State) -> None:
        self.images = state["memory"]["images"].clone()


class Remembering(Tent):
    """TENT on a memory of images instead of the batch at hand."""

    name = "remembering"
    Settings = type(Tent.Settings.__name__, (Tent.Settings,), {})

    def _compose(self) -> Sequence[Part]:
        self._memory = ImageMemory(16)
        return (*super()._compose(), self._memory)

    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        prediction = super().predict(images, learn=learn)
        kept = self.model.to_unit(images).clone()
        return replace(prediction, pending=replace(prediction.pending, images=kept))

    def _loss(self, prediction: Prediction) -> Loss:
        images = torch.cat((self._memory.images, prediction.pending.images))
        affine = self.model.affine_layout.views(prediction.pending.parameters)
        inputs = self.model.normalize(images)
        loss = entropy(self.model.run(inputs, affine=affine).logits).mean()
        return Loss(total=loss, entropy=loss, selected=torch.tensor(len(images)))


def test_a_part_that_learns_from_a_memory_of_images_is_a_class():
    """It is committed, saved, restored and reset with the method's other parts."""
    method = Remembering(make_model(), statistics="source")
    outcomes = [outcome for _, outcome in walk(method, batches(4))]
    assert [outcome.selected for outcome in outcomes] == [6, 12, 18, 22]
    state, ahead = method.state(), walk(method, batches(2, seed=1))
    other = method.fork()
    other.restore(state)
    assert same(walk(other, batches(2, seed=1)), ahead)
    method.reset()
    assert len(method.state()["memory"]["images"]) == 0
    assert isinstance(outcomes[0], Adaptation)
    assert issubclass(Remembering, AffineMethod)
    assert issubclass(Remembering.Settings, OptimizerSettings)


class Lazy(Tent):
    """A user's class that keeps what it sees, made when it is first needed."""

    seen: list[int] | None = None

    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        if self.seen is None:
            self.seen = []
        self.seen.append(len(images))
        return super().predict(images, learn=learn)


def test_streams_of_a_users_subclass_share_nothing_that_it_keeps():
    """Whether or not it has an __init__."""
    first = Lazy(make_model())
    first.predict(make_images(4))
    second = first.fork()
    second.predict(make_images(2))
    assert (first.seen, second.seen) == ([4], [2])


FIRST_STEP = """
import sys
from tests.fixtures.networks import make_images, make_model
from ttc_core.methods import METHODS, create
method = create("ttc", make_model(), samples_per_step=4).fork()
before = set(sys.modules)
assert method.adapt(method.predict(make_images(4))).stepped
print(len(set(sys.modules) - before))
"""


def test_the_first_step_imports_nothing():
    """Torch's optimizers bring a second's worth of modules along: no batch waits for that."""
    done = subprocess.run([sys.executable, "-c", FIRST_STEP], capture_output=True, text=True)
    assert int(done.stdout) < 20, done.stderr
