"""Early layers follow the light at once; late ones see classes, and wait until many have come."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.contract import batches, same, walk
from tests.fixtures.networks import CLASSES, MEAN, SIZE, STD, make_images, make_model
from ttc_core.methods import create
from ttc_core.methods.contract import Pending, Prediction
from ttc_core.methods.parts.diversity import Classes
from ttc_core.methods.parts.stream_statistics import Followed, StreamShare, StreamStatistics
from ttc_core.model import SourceModel
from ttc_core.normalization import Call, source_look

EARLY, LATE = "norm1", "norm2"


@pytest.fixture(scope="module")
def model():
    return make_model()


def make(model: SourceModel, blend: float = 1.0) -> StreamStatistics:
    return StreamStatistics(model, blend=blend, early_horizon=50, late_horizon=400)


def classes_of(images: int, weights: Tensor | None = None) -> Classes:
    """Evenly frequent ones; each image counts once, or as it is said."""
    counted = torch.ones(images) if weights is None else weights
    return Classes(np.full(CLASSES, 1 / CLASSES), 1.0, weights=counted.double().numpy())


def follow(
    statistics: StreamStatistics,
    model: SourceModel,
    images: Tensor,
    batch: int = 10,
    opening: float = 1.0,
    weights: Tensor | None = None,
) -> None:
    """Look at a stream, batch after batch, each committed."""
    for number, each in enumerate(images.split(batch)):
        own = None if weights is None else weights[number * batch : (number + 1) * batch]
        look = statistics.look(len(each), classes_of(len(each)), opening, 1.0)
        logits = model.run(model.normalize(model.to_unit(each)), look=look).logits
        pending = Pending(share=look.share(), after={"classes": classes_of(len(each), own)})
        statistics.commit(Prediction.of(logits, pending=pending), learned=False)


def moments(statistics: StreamStatistics, layer: str) -> Tensor:
    state = statistics.state()["moments"]
    return torch.stack([state[f"moment{order}.{layer}"] for order in (1, 2)])


def first_moments(model: SourceModel, images: Tensor) -> Tensor:
    """Those of the first layer over images; nothing comes before it that could adapt."""
    x = model.module.conv1(model.normalize(model.to_unit(images)))
    return torch.stack((x.mean((0, 2, 3)), x.square().mean((0, 2, 3))))


def far(found: Tensor, from_: Tensor, of: Tensor) -> float:
    """How far `found` is from `from_`, as a share of the way from there to `of`."""
    return float((found - from_).norm() / (of - from_).norm())


def dark(count: int, seed: int = 0) -> Tensor:
    return (make_images(count, seed=seed).float() / 4).to(torch.uint8)


def test_early_layers_reach_a_new_condition_within_150_images(model):
    """From the source, and from another condition that held for long."""
    statistics = make(model)
    source = moments(statistics, EARLY)
    night, day = dark(150), make_images(500, seed=1)
    follow(statistics, model, night)
    assert far(moments(statistics, EARLY), first_moments(model, night), source) < 0.1
    follow(statistics, model, day)
    before = moments(statistics, EARLY)
    follow(statistics, model, dark(150, seed=2))
    assert far(moments(statistics, EARLY), first_moments(model, night), before) < 0.1


def test_late_layers_take_longer(model):
    """Their classes have to come again, too."""
    statistics = make(model)
    source = {name: moments(statistics, name) for name in (EARLY, LATE)}
    follow(statistics, model, make_images(300))
    before = {name: moments(statistics, name) for name in (EARLY, LATE)}
    assert not any(same(before[name], source[name]) for name in (EARLY, LATE))
    follow(statistics, model, dark(40))
    now = {name: moments(statistics, name) for name in (EARLY, LATE)}
    follow(statistics, model, dark(2000))
    at_last = {name: moments(statistics, name) for name in (EARLY, LATE)}
    left = {name: far(now[name], at_last[name], before[name]) for name in (EARLY, LATE)}
    assert left[LATE] > left[EARLY] + 0.2


def call_of(model: SourceModel, layer: str) -> Call:
    norm = model.module.get_submodule(layer)
    x = 3 * torch.randn(4, norm.num_features, 5, 5) + 1
    return Call(layer, x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)


def test_parts_of_an_image_are_nobodys_in_particular(model):
    """Rows that are neither the images' nor both views' count alike for each image."""
    call = call_of(model, LATE)
    look = make(model).look(4, classes_of(4), 1.0, 1.0)
    rows = call.x.repeat_interleave(3, dim=0)  # three of the first, three of the second, …
    look(replace(call, x=rows))
    found = look.share().image_moments[LATE]
    torch.testing.assert_close(found, call.moments().expand_as(found))


@pytest.mark.parametrize("layer", [EARLY, LATE])
def test_a_layer_may_be_used_again_on_parts_of_the_images(model, layer):
    """Its moments are the mean over its uses, however many rows each of them has."""
    whole = call_of(model, layer)
    rows = torch.cat([3 * whole.x, whole.x.flip(0), whole.x])
    look = make(model).look(4, classes_of(4), 1.0, 1.0)
    look(whole)
    look(replace(whole, x=rows, number=1))
    found = look.share().image_moments[layer].mean(0)
    expected = (whole.moments() + replace(whole, x=rows).moments()) / 2
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("blend", [0.0, 0.7, 1.0])
def test_late_layers_are_the_sources_until_they_are_open(model, blend):
    """Whatever came before; early ones are a blend at once, and both are once they are open."""
    statistics = make(model, blend=blend)
    follow(statistics, model, dark(100), opening=0.0)

    def differs(layer: str, opening: float) -> bool:
        call = call_of(model, layer)
        found = statistics.look(4, classes_of(4), opening, 1.0)(call)
        return not torch.allclose(found, source_look(call), atol=1e-4)

    assert not differs(LATE, opening=0)
    assert differs(EARLY, opening=0) == differs(LATE, opening=1) == (blend > 0)


def test_an_image_counts_in_late_layers_by_its_class_and_in_early_ones_as_any(model):
    """One that counts nothing is not in the late ones; counted alike they are a plain mean."""
    images, weights = make_images(40), torch.ones(40)
    images[::2] //= 8
    weights[::2] = 0
    alike, chosen, without = make(model), make(model), make(model)
    follow(alike, model, images, batch=40)
    follow(chosen, model, images, batch=40, weights=weights)
    follow(without, model, images[1::2], batch=20, opening=0)
    assert same(moments(chosen, EARLY), moments(alike, EARLY))
    assert not torch.allclose(moments(chosen, LATE), moments(alike, LATE), rtol=0.01)
    seen = {
        name: each.state()["moments"]["late_images"]
        for name, each in {"alike": alike, "chosen": chosen, "without": without}.items()
    }
    assert seen == {"alike": 40, "chosen": 20, "without": 20}


def of_one_class(classes: Classes, *, opening: float = 0.0, openness: float = 0.0) -> Classes:
    """The classes of a stream that has shown one alone of late."""
    frequencies = np.full(CLASSES, 0.01)
    frequencies[0] += 1 - frequencies.sum()
    alone = replace(classes, frequencies=frequencies, images=400)
    return replace(alone, opening=opening, openness=openness)


def test_late_layers_that_have_opened_keep_what_diverse_images_taught(model):
    """Over a thousand images of few classes; early ones go on, and late ones with diverse ones."""
    statistics = make(model)
    follow(statistics, model, make_images(100))
    before = {name: moments(statistics, name) for name in (EARLY, LATE)}
    for openness in (0.0, 1.0):
        for each in dark(1000).split(50):
            classes = of_one_class(classes_of(50), opening=1.0, openness=openness)
            look = statistics.look(50, classes, 1.0, 1.0)
            logits = model.run(model.normalize(model.to_unit(each)), look=look).logits
            pending = Pending(share=look.share(), after={"classes": classes})
            statistics.commit(Prediction.of(logits, pending=pending), learned=False)
        assert not same(moments(statistics, EARLY), before[EARLY])
        assert same(moments(statistics, LATE), before[LATE]) == (openness == 0)
        assert (statistics.followed.late_images == 100) == (openness == 0)


@pytest.mark.parametrize("layer", [EARLY, LATE])
def test_what_is_not_trusted_is_the_sources(model, layer):
    """Of early and late layers alike."""
    statistics = make(model)
    follow(statistics, model, dark(100))
    call = call_of(model, layer)
    source, half, wholly = (
        statistics.look(4, classes_of(4), 1.0, trust)(call) for trust in (0.0, 0.5, 1.0)
    )
    torch.testing.assert_close(source, source_look(call), atol=1e-4, rtol=1e-4)
    assert 0 < (half - source).norm() < (wholly - source).norm()


@pytest.mark.parametrize(("deviations", "least", "most"), [(0.1, 0.0, 0.05), (3, 0.98, 1)])
def test_in_doubt_a_way_is_trusted_that_no_class_explains(model, deviations, least, most):
    """One of early layers that is short beside what sets images apart may be their class's own."""
    flat, norm = model.source_moments.clone(), model.module.get_submodule(EARLY)
    mean = norm.running_mean + deviations * norm.running_var.sqrt()
    model.moments_layout.views(flat)[EARLY].copy_(
        torch.stack((mean, mean.square() + norm.running_var))
    )
    followed = Followed(flat, torch.full((1,), 0.1), 400, 400)
    assert make(model).trust(0.0, followed) == 1
    assert least < make(model).trust(0.6, followed) < most


@pytest.mark.parametrize("batch", [2, 10, 20])
def test_it_hardly_matters_how_images_are_grouped(model, batch):
    """One by one or many at once, the moments that the stream leads to are nearly the same."""
    images = torch.cat((dark(100), make_images(100)))[torch.randperm(200)]
    one_by_one, grouped = make(model, blend=0.7), make(model, blend=0.7)
    source = {name: moments(grouped, name) for name in (EARLY, LATE)}
    follow(one_by_one, model, images, batch=1)
    follow(grouped, model, images, batch=batch)
    for name in (EARLY, LATE):
        expected = moments(one_by_one, name)
        assert far(moments(grouped, name), expected, source[name]) < 0.1


class Twice(nn.Module):
    """Its second normalisation layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, CLASSES)
        self.called: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.called.clear()
        x = self.norm1(self.conv1(x)).relu()
        for _ in range(2):
            self.called.append(x)
            x = self.norm2(x).relu()
        return self.head(self.conv2(x).mean((2, 3)))


def test_a_layer_that_is_called_twice_follows_the_mean_of_both(model):
    """Of the late ones, too, whose moments are kept image by image."""
    model = SourceModel(Twice().eval(), mean=MEAN, std=STD, size=SIZE)
    statistics = make(model)
    look = statistics.look(6, classes_of(6), 1.0, 1.0)
    model.run(model.normalize(model.to_unit(make_images(6))), look=look)
    calls = [torch.stack((x.mean((2, 3)), x.square().mean((2, 3))), 1) for x in model.module.called]
    torch.testing.assert_close(look.share().image_moments["norm2"], sum(calls) / 2)
    method = create("ttc_stream", model, learn="always", entropy_fraction=1.1, samples_per_step=12)
    walk(method, batches(4))
    assert method.version > 0


@pytest.mark.parametrize("left_out", [EARLY, LATE])
def test_a_layer_that_a_pass_leaves_out_keeps_what_it_has(model, left_out):
    """An auxiliary head, say: its moments and its spread; the others follow."""
    statistics = make(model)
    follow(statistics, model, make_images(50))
    before = statistics.followed
    layers = model.moments_layout.views(model.source_moments)
    found = {name: each.expand(4, 2, -1) + 1 for name, each in layers.items() if name != left_out}
    after = statistics.after(StreamShare(4, found), classes_of(4))
    for name in layers:
        kept, now = (model.moments_layout.views(each.moments)[name] for each in (before, after))
        assert torch.allclose(kept, now) == (name == left_out)
    assert same(after.spreads, before.spreads) == (left_out == EARLY)


class Beside(nn.Module):
    """One of its normalisation layers sees another number of rows than there are images."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.rows, self.beside = nn.Parameter(torch.randn(rows, 8)), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.head(x + self.beside(self.rows).mean(0))


@pytest.mark.parametrize("rows", [1, 5, 6, 24])
def test_a_layer_may_see_other_rows_than_the_images(rows):
    """Nobody can tell then which image counts what there; the stream goes on."""
    model = SourceModel(Beside(rows).eval(), mean=MEAN, std=STD, size=SIZE)
    method = create("ttc_stream", model)
    outcomes = walk(method, batches(3))
    assert all(logits.isfinite().all() for logits, _ in outcomes)
    assert method.state()["moments"]["early_images"] == 18


@pytest.mark.parametrize("network", ["layer-norm", "group-norm", "batch-norm-without-running"])
def test_a_network_without_statistics_to_follow_is_served(network):
    """All else of the method follows the stream, and is taken up again."""
    method = create("ttc_stream", make_model(network))
    walk(method, batches(3))
    state, ahead = method.state(), walk(method, batches(2, seed=1))
    assert set(state["moments"]) == {"early_images", "late_images", "spreads"}
    other = method.fork()
    other.restore(state)
    assert same(walk(other, batches(2, seed=1)), ahead)


def test_a_stream_goes_on_where_it_stood(model):
    """To the last bit."""
    statistics, other = make(model), make(model)
    follow(statistics, model, dark(50))
    other.restore(statistics.state())
    assert same(other.state(), statistics.state())
    for each in (statistics, other):
        follow(each, model, make_images(50))
    assert same(other.state(), statistics.state())
    other.reset()
    assert same(other.state(), make(model).state())


@pytest.mark.parametrize("entry", ["early_images", "late_images"])
@pytest.mark.parametrize("value", [-20, torch.nan, torch.inf, None, "7"])
def test_counts_that_are_none_are_refused(model, entry, value):
    """What a new image weighs is made of them."""
    statistics = make(model)
    given = {**dict(statistics.state()["moments"]), entry: value}
    with pytest.raises(ValueError, match="one of its numbers"):
        statistics.restore({"moments": given})
