"""The networks and images of the studies: what they load, and as what."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import cifar10_network, digits
from benchmarks.efficientnet import photographs
from benchmarks.places import PLACES, Place
from ttc_core.corruptions import CORRUPTIONS
from ttc_core.datasets import Geometry, open_data
from ttc_core.evaluate import as_batch
from ttc_core.load import load
from ttc_core.plugins import import_attribute

EVERYWHERE = [place for places in PLACES.values() for place in places]


@pytest.mark.parametrize("place", EVERYWHERE, ids=lambda place: place.name)
def test_the_specs_of_a_place_name_something(place: Place):
    """A module of its own can be imported without the packages that it needs when called."""
    for spec in (place.model.partition("@")[0], place.data):
        if ":" in spec:
            assert callable(import_attribute(spec))


def test_what_was_tuned_on_is_not_reported_on():
    """No network meets one corruption in both; names tell places apart."""
    seen = {
        (place.model, place.data, name): networks
        for networks, places in PLACES.items()
        for place in places
        for name in place.corruptions
    }
    for networks, places in PLACES.items():
        for place in places:
            assert {*place.corruptions} <= {*CORRUPTIONS}
            for name in place.corruptions:
                assert seen[place.model, place.data, name] == networks
        assert len({place.name for place in places}) == len(places)


def test_digits_are_data_and_their_mirror_images_are_not():
    """898 pictures of ten classes; each shift is of the same ones; none was trained on."""
    pairs = {
        name: next(getattr(digits, name)()) for name in ("clean", "enlarged", "inverted", "blurred")
    }
    clean, labels = pairs["clean"]
    for images, theirs in pairs.values():
        assert (images.shape, images.dtype) == ((898, 32, 32, 3), np.uint8)
        assert (theirs == labels).all()
    assert (pairs["inverted"][0] == 255 - clean).all()
    assert (pairs["enlarged"][0] > 0).sum() > (clean > 0).sum()
    assert {*labels.tolist()} == {*range(10)}
    assert len(digits._pair(0)[1]) == 1797 - 898
    data = open_data("benchmarks.digits:clean", Geometry(32), [*"0123456789"])
    assert len(data.open("clean", 5, order="runs:5", limit=30)) == 30


def test_photographs_are_named_after_their_classes(shared_data: Path):
    """400 of them, of 400 classes."""
    images, labels = next(photographs())
    assert images.shape == (400, 224, 224, 3)
    assert len({*labels.tolist()}) == 400
    assert labels.max() < 1000


def test_the_group_norm_network_is_the_one_that_was_trained(shared_data: Path):
    """Its weights fit, and answer as they did where they were measured."""
    model = load(f"benchmarks.resnet26_gn:network@{shared_data}/models/resnet26_gn.pth")
    images = np.load(shared_data / "cifar10c" / "clean.npy")[:100]
    labels = np.load(shared_data / "cifar10c" / "labels.npy")[:100]
    with torch.no_grad():
        logits = model.run(model.normalize(model.to_unit(as_batch(images)))).logits
    assert (logits.argmax(dim=1).numpy() == labels).mean() > 0.8


def test_a_network_of_our_own_training_loads_by_its_spec(monkeypatch, tmp_path: Path):
    """What is there is not trained again; nothing is left of its way."""
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (40, 32, 32, 3), np.uint8)
    monkeypatch.setattr(cifar10_network, "read", lambda split: (pictures, np.arange(40) % 10))
    out = tmp_path / "new" / "network.pt"
    result = CliRunner().invoke(cifar10_network.main, ["--out", str(out), "--epochs", "1"])
    assert result.exit_code == 0, result.output
    assert [file.name for file in out.parent.iterdir()] == ["network.pt"]
    model = load(f"benchmarks.cifar10_network:network@{out}")
    assert (model.classes, model.size, model.notices) == (10, 32, [])
    again = CliRunner().invoke(cifar10_network.main, ["--out", str(out)])
    assert again.exit_code == 1
    assert "delete it to train anew" in again.output
