"""What each look at the statistics computes: by hand, and as torch itself does it."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fixtures.networks import (
    MEAN,
    SIZE,
    STD,
    ActivatedBatchNorm,
    make_images,
    make_model,
    make_network,
)
from ttc_core.errors import ModelError
from ttc_core.methods import create
from ttc_core.methods.contract import Pending, Prediction
from ttc_core.methods.parts.statistics import MovingStatistics
from ttc_core.model import SourceModel
from ttc_core.normalization import (
    BatchLook,
    Call,
    affine_parameters,
    batch_norm_layers,
    source_look,
)

BATCH_NORM_NETWORKS = ["batch-norm", "batch-norm-on-1x1", "batch-norm-with-own-forward"]


def unit(count: int, seed: int = 0) -> Tensor:
    return make_images(count, seed) / 255


def first_layer(model: SourceModel, images: Tensor) -> Tensor:
    """What the first BatchNorm layer is given: (C, values)."""
    inputs = model.normalize(images.to(model.dtype))
    return model.module.get_submodule("conv1")(inputs).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("network", [*BATCH_NORM_NETWORKS, "group-norm", "layer-norm"])
def test_the_source_look_is_eval_mode(network):
    """Bit for bit what the untouched network answers."""
    model = make_model(network)
    inputs = model.normalize(unit(7))
    with torch.no_grad():
        expected = make_network(network)(inputs)
        assert torch.equal(model.run(inputs, look=source_look).logits, expected)


@pytest.mark.parametrize("network", BATCH_NORM_NETWORKS)
def test_the_batch_look_is_train_mode(network):
    """Bit for bit what the network answers in training, without its averages moving."""
    model = make_model(network)
    inputs = model.normalize(unit(7))
    with torch.no_grad():
        expected = make_network(network).train()(inputs)
        assert torch.equal(model.run(inputs, look=BatchLook()).logits, expected)
        source = model.run(inputs).logits
    assert not torch.allclose(source, expected, atol=1e-2)


@pytest.mark.parametrize("source_images", [0, 4, 16])
def test_the_batch_look_blends_with_the_source(source_images):
    """λ = n_s / (n_s + n) of the source; the variance unbiased with n_s, biased without."""
    model = make_model()
    layer = model.batch_norms["norm1"]
    x = torch.randn(6, 8, 4, 4) * 2 + 1
    got = BatchLook(source_images)(
        Call("norm1", x, layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps)
    )
    values = x.transpose(0, 1).flatten(1).double()
    share = source_images / (source_images + 6)
    correction = 1 if source_images else 0
    mean = share * layer.running_mean + (1 - share) * values.mean(1)
    variance = share * layer.running_var + (1 - share) * values.var(1, correction=correction)
    column = (slice(None), None, None)
    expected = (x - mean[column]) / (variance[column] + layer.eps).sqrt()
    expected = expected * layer.weight[column] + layer.bias[column]
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)


def test_one_value_a_channel_is_its_own_mean():
    """On a 1×1 map a single image's batch statistics leave the bias alone."""
    x, weight, bias = torch.randn(1, 3, 1, 1), torch.rand(3), torch.rand(3)
    zeros, ones = torch.zeros(3), torch.ones(3)
    got = BatchLook()(Call("layer", x, zeros, ones, weight, bias, 1e-5))
    torch.testing.assert_close(got.flatten(), bias, atol=1e-3, rtol=0)
    assert BatchLook(16)(Call("layer", x, zeros, ones, weight, bias, 1e-5)).isfinite().all()


@pytest.mark.parametrize(
    ("warm_start", "floor", "rates"),
    [
        pytest.param(16, 0.001, [1 / 16, 1 / 22, 1 / 23], id="as-it-comes"),
        pytest.param(16, 0.045, [1 / 16, 1 / 22, 0.045], id="floor-reached"),
        pytest.param(2000, 0.001, [0.001, 0.001, 0.001], id="floor-from-the-start"),
        pytest.param(1, 0.001, [1.0, 1 / 7, 1 / 8], id="source-forgotten-at-once"),
    ],
)
def test_moments_move_as_the_formula_says(warm_start, floor, rates):
    """Batches of 6, 1 and 3: m ← m + (1 − (1 − a)ⁿ)(m_batch − m), a = max(1/(w + seen), floor)."""
    model = make_model()
    moving = {"warm_start": warm_start, "floor": floor}
    method = create("norm", model, statistics="moving", moving=moving)
    layer = model.batch_norms["norm1"]
    m1 = layer.running_mean.double()
    m2 = layer.running_var.double() + m1**2
    for number, (count, rate) in enumerate(zip((6, 1, 3), rates, strict=True)):
        images = unit(count, seed=number)
        method.adapt(method.predict(images))
        x = first_layer(model, images).double()
        weight = 1 - (1 - rate) ** count
        m1 = m1 + weight * (x.mean(1) - m1)
        m2 = m2 + weight * ((x**2).mean(1) - m2)
        moments = method.state()["moments"]
        torch.testing.assert_close(moments["moment1.norm1"], m1.float(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(moments["moment2.norm1"], m2.float(), atol=1e-5, rtol=1e-5)
    assert moments["images_seen"] == 10


def test_a_pass_normalises_with_the_moments_after_the_move():
    """The current images are included before they are committed: variance m2 − m1²."""
    model = make_model()
    layer = model.batch_norms["norm1"]
    statistics = MovingStatistics(model, warm_start=16, floor=0.001)
    x = torch.randn(4, 8, 5, 5) * 3
    look = statistics.look(4)
    arguments = (layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps)
    got = look(Call("norm1", x, *arguments))
    weight = 1 - (15 / 16) ** 4
    m1 = torch.lerp(layer.running_mean, x.mean((0, 2, 3)), weight)
    m2 = layer.running_var + layer.running_mean**2
    m2 = torch.lerp(m2, (x**2).mean((0, 2, 3)), weight)
    expected = F.batch_norm(x, m1, m2 - m1**2, layer.weight, layer.bias, eps=layer.eps)
    torch.testing.assert_close(got, expected)
    assert torch.equal(statistics.moments["norm1"][0], layer.running_mean)
    pending = Pending(share=statistics.share(look))
    statistics.commit(Prediction.of(torch.zeros(4, 2), pending=pending), learned=False)
    torch.testing.assert_close(statistics.moments["norm1"][0], m1)


def test_moving_statistics_are_constants_for_the_gradient():
    """The gradient of a normalised value is weight/deviation: nothing flows through the mean."""
    model = make_model()
    layer = model.batch_norms["norm1"]
    statistics = MovingStatistics(model, warm_start=16, floor=0.001)
    x = torch.randn(4, 8, 5, 5, requires_grad=True)
    arguments = (layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps)
    statistics.look(4)(Call("norm1", x, *arguments)).sum().backward()
    per_channel = x.grad.transpose(0, 1).flatten(1)
    assert torch.equal(per_channel, per_channel[:, :1].expand_as(per_channel))
    assert per_channel.abs().min() > 0


def test_single_images_move_what_their_batch_moves():
    """At a constant rate, n copies of an image count the same one by one and as a batch."""
    moving = {"warm_start": 1000, "floor": 0.2}
    model = make_model()
    together = create("norm", model, statistics="moving", moving=moving)
    apart = together.fork()
    image = unit(1)
    together.adapt(together.predict(image.expand(5, -1, -1, -1)))
    for _ in range(5):
        apart.adapt(apart.predict(image))
    ours, theirs = together.state()["moments"], apart.state()["moments"]
    assert ours["images_seen"] == theirs["images_seen"] == 5
    for name in ("moment1.norm1", "moment2.norm1"):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-5)


def test_an_answer_hardly_depends_on_its_batch_mates():
    """With moving statistics far into a stream; with the batch's own it does."""
    differences = {}
    for statistics in ("moving", "batch"):
        method = create("norm", make_model(), statistics=statistics)
        for seed in range(20):
            method.adapt(method.predict(unit(20, seed=seed)))
        image, bright = unit(1, seed=99), torch.ones(3, 3, SIZE, SIZE)
        alone = method.predict(image).logits[0]
        beside = method.predict(torch.cat((image, bright))).logits[0]
        differences[statistics] = float((alone - beside).abs().max())
    assert differences["moving"] < 0.1 * differences["batch"]


def test_two_views_count_as_one_look_at_the_stream():
    """The flip's images are in the moments, but not in the number of images seen."""
    model = make_model()
    method = create("norm", model, statistics="moving", flip=True)
    images = unit(6)
    method.adapt(method.predict(images))
    x = first_layer(model, torch.cat((images, images.flip(3)))).double()
    layer = model.batch_norms["norm1"]
    weight = 1 - (15 / 16) ** 6
    expected = layer.running_mean + weight * (x.mean(1) - layer.running_mean)
    moments = method.state()["moments"]
    assert moments["images_seen"] == 6
    torch.testing.assert_close(moments["moment1.norm1"], expected.float(), atol=1e-5, rtol=1e-5)


def test_a_constant_channel_stays_finite():
    """Rounding may put m2 − m1² a little below 0; the answer is no NaN for it."""
    network = make_network("batch-norm")
    layer = network.get_submodule("norm1")
    layer.running_mean, layer.running_var = torch.full((8,), 1e3), torch.zeros(8)
    model = SourceModel(network, mean=MEAN, std=STD, size=SIZE)
    statistics = MovingStatistics(model, warm_start=16, floor=0.001)
    x = torch.full((3, 8, 4, 4), 1000.1)
    arguments = (layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps)
    got = statistics.look(3)(Call("norm1", x, *arguments))
    assert got.isfinite().all()


def test_layers_without_running_averages_always_use_the_batch():
    """There is no source to fall back to: every look is the batch's, and a single image works."""
    model = make_model("batch-norm-without-running")
    assert model.batch_norms == {}
    inputs = model.normalize(unit(5))
    with torch.no_grad():
        expected = make_network("batch-norm-without-running")(inputs)
        for look in (source_look, BatchLook(), BatchLook(16)):
            assert torch.equal(model.run(inputs, look=look).logits, expected)
    pixel = nn.Sequential(
        nn.Conv2d(3, 4, SIZE),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    on_one_pixel = SourceModel(pixel, mean=MEAN, std=STD, size=SIZE)
    assert on_one_pixel.run(on_one_pixel.normalize(unit(1))).logits.isfinite().all()


class WithAuxiliaryHead(nn.Module):
    """A layer that no pass in eval mode reaches, as in GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.main = make_network("batch-norm")
        self.auxiliary = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(self.auxiliary(x) if self.training else x)


@pytest.mark.parametrize("name", ["norm", "tent", "ttc"])
def test_a_layer_that_no_pass_reaches_keeps_its_moments(name):
    """Its statistics are in the state before and after, so that the state can be restored."""
    model = SourceModel(WithAuxiliaryHead(), mean=MEAN, std=STD, size=SIZE)
    method = create(name, model, statistics="moving")
    before = method.state()["moments"]
    method.adapt(method.predict(unit(6)))
    state = method.state()
    assert state["moments"].keys() == before.keys()
    assert torch.equal(state["moments"]["moment1.auxiliary"], before["moment1.auxiliary"])
    fork = method.fork()
    fork.restore(state)
    assert torch.equal(fork.predict(unit(3)).logits, method.predict(unit(3)).logits)


def test_a_subclass_with_its_own_forward_takes_part():
    """What it calls is torch's function, which is where the look answers."""
    model = make_model("batch-norm-with-own-forward")
    assert all(isinstance(layer, ActivatedBatchNorm) for layer in model.batch_norms.values())
    method = create("norm", model, statistics="moving")
    method.adapt(method.predict(unit(6)))
    x = first_layer(model, unit(6)).double()
    layer = model.batch_norms["norm1"]
    expected = layer.running_mean + (1 - (15 / 16) ** 6) * (x.mean(1) - layer.running_mean)
    got = method.state()["moments"]["moment1.norm1"]
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)


def test_no_look_outlives_its_pass():
    """After a run the network answers for others as it always did, also after a failure."""
    model = make_model()
    inputs = model.normalize(unit(5))
    with torch.no_grad():
        expected = make_network("batch-norm")(inputs)
        model.run(inputs, look=BatchLook())
        assert torch.equal(model.module(inputs), expected)
        with pytest.raises(ModelError):
            model.run(inputs[:, :2], look=BatchLook())
        assert torch.equal(model.module(inputs), expected)


def test_scales_and_shifts_are_found_under_their_names():
    """Of all three kinds of layer; not those of BatchNorm without them, nor of convolutions."""
    network = nn.ModuleDict(
        {
            "bn": nn.BatchNorm2d(2),
            "plain": nn.BatchNorm2d(2, affine=False),
            "gn": nn.GroupNorm(1, 2),
            "ln": nn.LayerNorm(2, bias=False),
            "conv": nn.Conv2d(2, 2, 1),
        }
    )
    found = affine_parameters(network)
    assert set(found) == {"bn.weight", "bn.bias", "gn.weight", "gn.bias", "ln.weight"}
    assert set(batch_norm_layers(network)) == {"bn", "plain"}
    assert set(affine_parameters(nn.BatchNorm2d(2))) == {"weight", "bias"}


def test_given_affine_parameters_replace_the_sources():
    """A run with others answers as a network that holds them, and leaves the shared one alone."""
    model = make_model()
    affine = {name: tensor + 0.5 for name, tensor in model.affine.items()}
    changed = deepcopy(model.module)
    changed.load_state_dict(affine, strict=False)
    inputs = model.normalize(unit(4))
    with torch.no_grad():
        before = model.run(inputs).logits
        assert torch.equal(model.run(inputs, affine=affine).logits, changed(inputs))
        assert torch.equal(model.run(inputs).logits, before)
