"""Low and mixed precision anywhere in a network: what lasts is float32 at least."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.networks import MEAN, SIZE, STD, make_images, make_model, make_network
from ttc_core.errors import LoadError
from ttc_core.load import load
from ttc_core.methods import METHODS, UnsuitableNetworkError, create
from ttc_core.model import SourceModel
from ttc_core.normalization import source_look
from ttc_core.state import load_state, save_state
from ttc_core.together import together
from ttc_core.zoo.resnet import ResNet

SETTINGS = {
    "eta": {"entropy_fraction": 1.0, "redundancy_margin": 1.01},
    "ttc": {"samples_per_step": 6},
    "ttc_stream": {"learn": "always", "entropy_fraction": 1.0, "samples_per_step": 6},
}


def mixed(dtype: torch.dtype) -> nn.Module:
    """The usual export: weights in low precision, BatchNorm kept in float32."""
    network = make_network("batch-norm")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.to(dtype)
    return network


class Around(nn.Module):
    """Parameters that never meet an image, the first of the network, around another."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.codes = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Autocast(Around):
    """Its convolutions compute in bfloat16, whatever their weights are."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "half-beside-float-norms": lambda: mixed(torch.float16),
    "bfloat16-beside-float-norms": lambda: mixed(torch.bfloat16),
    "behind-a-float-parameter": lambda: Around(mixed(torch.float16)),
    "autocast": lambda: Autocast(make_network("batch-norm")),
    "half": lambda: make_network("batch-norm").half(),
    "bfloat16": lambda: make_network("batch-norm").bfloat16(),
    "double": lambda: make_network("batch-norm").double(),
    "layer-norm-half": lambda: make_network("layer-norm").half(),
    "group-norm-bfloat16": lambda: make_network("group-norm").bfloat16(),
}


@pytest.mark.parametrize("statistics", ["source", "batch", "moving"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_any_precision_is_answered_learned_from_and_saved(network, name, statistics, tmp_path):
    """All that lasts is float32, of a double network float64; a file brings it back."""
    model = SourceModel(NETWORKS[network](), mean=MEAN, std=STD, size=SIZE)
    settings = SETTINGS.get(name, {})
    if "statistics" in METHODS[name].Settings.model_fields:
        settings = {**settings, "statistics": statistics}
    try:
        method = create(name, model, **settings)
    except UnsuitableNetworkError:
        assert name == "norm"
        return
    for seed in range(2):
        prediction = method.predict(make_images(6, seed))
        assert prediction.is_finite()
        assert method.adapt(prediction).skipped is None
    wide = torch.float64 if network == "double" else torch.float32
    assert prediction.logits.dtype == prediction.entropy.dtype == wide
    assert prediction.to_host().logits.shape == (6, model.classes)
    for section, entries in method.state().items():
        if section in ("classes", "context", "scene"):  # of answers and pictures, not the network
            continue
        for key, value in entries.items():
            if section == "conditions" and key != "moments":  # of the images
                continue
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
                assert value.dtype == wide, key
    save_state(tmp_path / "stream.safetensors", method, name=name, model=network)
    fork = method.fork()
    load_state(tmp_path / "stream.safetensors", fork, name=name, model=network)
    images = make_images(6, 9)
    assert torch.equal(fork.predict(images).logits, method.predict(images).logits)


def test_squares_beyond_half_precision_are_no_infinity():
    """Activations of 1,000 have squares of a million: moments and batch statistics hold them."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5))
    with torch.no_grad():
        network[0].weight.mul_(2000)
    model = SourceModel(network.half(), mean=(0.0,) * 3, std=(1.0,) * 3, size=4)
    for statistics in ("batch", "moving"):
        method = create("norm", model, statistics=statistics)
        prediction = method.predict(make_images(6, size=4))
        assert prediction.is_finite()
        assert method.adapt(prediction).skipped is None


def test_digests_tell_half_precision_networks_apart():
    """numpy has no bfloat16; a digest is of the bytes."""
    digests = {
        SourceModel(NETWORKS[name](), mean=MEAN, std=STD, size=SIZE).digest for name in NETWORKS
    }
    assert len(digests) == len(NETWORKS)


WIDTH = 0.1  # of the largest logit: how far bfloat16 leads from float32 in these networks


def asked_twice(name: str, model: SourceModel) -> tuple[Tensor, dict]:
    """Logits behind a step of learning, and what the method then knows."""
    method = create(name, model, **SETTINGS.get(name, {}))
    assert method.adapt(method.predict(make_images(6, 0))).skipped is None
    return method.predict(make_images(6, 1)).logits, method.state()


REDUCED = ["batch-norm", "batch-norm-with-own-forward", "group-norm"]


@pytest.mark.parametrize(
    ("name", "network"),
    [each for each in product(METHODS, REDUCED) if each != ("norm", "group-norm")],
)
def test_a_float32_network_answers_in_bfloat16_and_all_that_lasts_is_float32(name, network, device):
    """With answers near its own, but for rounding, on either device."""
    model = make_model(network).to(device)
    expected, _ = asked_twice(name, model)
    logits, state = asked_twice(name, model.compute_in("bfloat16"))
    assert model.precision == "bfloat16"
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, rtol=0, atol=WIDTH * float(expected.abs().max()))
    for section in ("affine", "moments", "supports", "optimizer"):
        for key, value in state.get(section, {}).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                assert value.dtype == torch.float32, key
    assert all(p.dtype == torch.float32 for p in model.module.parameters())


@torch.no_grad()
def test_the_source_in_fewer_operations_is_as_near(device):
    """A residual network with its convolutions by oneDNN, where it is on the CPU."""
    torch.manual_seed(0)
    model = SourceModel(ResNet(1, 10), mean=MEAN, std=STD, size=32).to(device)
    inputs = torch.randn(5, 3, 32, 32, device=device)
    expected = model.run(inputs)
    reduced = model.compute_in("bfloat16").run(inputs)
    assert (model._runner.fused is not None) == (device == "cpu")
    for name in ("logits", "features"):
        got, own = getattr(reduced, name), getattr(expected, name)
        assert not torch.equal(got, own)
        torch.testing.assert_close(got, own, rtol=0, atol=WIDTH * float(own.abs().max()))


@pytest.mark.parametrize("name", ["ttc", "ttc_stream"])
@pytest.mark.parametrize("network", ["batch-norm", "group-norm", "layer-norm"])
def test_streams_share_passes_in_bfloat16(name, network):
    """Each gets what it would have got alone, but for rounding."""
    model = make_model(network).compute_in("bfloat16")
    assert model.shares
    statistics = {"statistics": "moving"} if name == "ttc" else {}
    methods = [create(name, model, **SETTINGS[name], **statistics) for _ in range(2)]
    batches = [make_images(6, seed) for seed in (3, 4)]
    alone = [method.fork().predict(images) for method, images in zip(methods, batches, strict=True)]
    works = [
        lambda method=method, images=images: method.predict(images)
        for method, images in zip(methods, batches, strict=True)
    ]
    for done, expected in zip(together(works), alone, strict=True):
        limit = WIDTH * float(expected.logits.abs().max())
        torch.testing.assert_close(done.value.logits, expected.logits, rtol=0, atol=limit)


@pytest.mark.parametrize("name", ["ttc", "ttc_stream"])
@pytest.mark.parametrize("saved", ["float32", "bfloat16"])
def test_what_was_learned_in_one_precision_goes_on_in_the_other(name, saved, tmp_path):
    """The same scales and shifts, moved by the one and run by the other."""
    before, after = (make_model().compute_in(each) for each in (saved, "float32"))
    if saved == "float32":
        after.compute_in("bfloat16")
    assert before.digest == after.digest
    method, other = (create(name, model, **SETTINGS[name]) for model in (before, after))
    source = other.predict(make_images(6, 1)).logits
    for seed in range(20):
        method.adapt(method.predict(make_images(6, seed)))
    save_state(tmp_path / "stream.safetensors", method, name=name, model="small")
    load_state(tmp_path / "stream.safetensors", other, name=name, model="small")
    assert torch.equal(*(each.state()["affine"]["norm1.weight"] for each in (method, other)))
    got, expected = (each.predict(make_images(6, 1)).logits for each in (other, method))
    assert (got - expected).abs().max() < 0.2 * (source - expected).abs().max()


@pytest.mark.parametrize("network", ["bfloat16-beside-float-norms", "half", "double"])
def test_a_network_of_another_precision_stays_as_it_is(network):
    """By default; asked for bfloat16 it is refused with a sentence."""
    model = SourceModel(NETWORKS[network](), mean=MEAN, std=STD, size=SIZE)
    inputs = model.normalize(make_images(6).float() / 255)
    expected, precision = model.run(inputs).logits, model.precision
    with pytest.raises(ValueError, match=r"bfloat16 takes networks of float32.*weights of"):
        model.compute_in("bfloat16")
    for each in (model, model.compute_in("float32")):
        assert torch.equal(each.run(inputs).logits, expected)
        assert each.precision == precision == str(each.dtype).removeprefix("torch.")


def test_a_network_converted_since_is_refused_as_well():
    """As it is looked at anew, and wherever it is moved."""
    model = make_model().compute_in("bfloat16")
    model.module.half()
    for again in (model.refresh, lambda: model.to("cpu")):
        with pytest.raises(ValueError, match="bfloat16 takes networks of float32"):
            again()
    model.module.float()
    model.refresh()
    assert model.precision == "bfloat16"


@pytest.mark.parametrize("precision", ["bf16", "float16", ""])
def test_another_precision_is_refused_with_what_is_accepted(precision):
    model = make_model()
    with pytest.raises(ValueError, match=f"'{precision}' is no precision; accepted are float32, b"):
        model.compute_in(precision)
    assert model.precision == "float32"


def test_asked_for_what_it_is_nothing_is_made_anew():
    model = SourceModel(ResNet(1, 10), mean=MEAN, std=STD, size=32)
    written = model._runner.fused
    assert written is not None
    assert model.compute_in("float32")._runner.fused is written


class Leaking(nn.Module):
    """What it says of an image depends a little on the others of the batch."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.body, self.share = make_network("batch-norm"), share

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x - self.share * x.mean(0))


@pytest.mark.parametrize("share", [0.01, 0.03, 0.1])
def test_what_is_less_than_bfloat16_tells_apart_is_no_reason_to_share(share):
    """One stream's images are not to move another's answers, however little."""
    model = SourceModel(Leaking(share), mean=MEAN, std=STD, size=SIZE, split="body.head")
    model.compute_in("bfloat16")
    assert not model.shares
    model.refresh()
    assert model.precision == "bfloat16"
    assert not model.shares


def half_network() -> nn.Module:
    """A factory of a network of half precision."""
    return make_network("batch-norm").half()


def test_the_refusal_names_the_model():
    spec = "tests.ttc_core.test_precision:half_network"
    with pytest.raises(LoadError, match=f"{spec}: bfloat16 takes networks of float32"):
        load(spec, precision="bfloat16")
    assert load(spec).precision == "float16"


def test_a_caller_in_autocast_of_its_own_is_left_in_it():
    """A float32 model neither ends nor begins one."""
    model = make_model()
    inputs = model.normalize(make_images(2).float() / 255)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model.run(inputs, look=lambda call: source_look(call)).logits
        assert torch.is_autocast_enabled("cpu")
    assert not torch.equal(inside, model.run(inputs).logits)
