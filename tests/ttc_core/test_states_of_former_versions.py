"""States that former versions saved are taken up, and the streams go on as they would have.

`states/` was written by commit b6bfae8 after 48 foggy images in batches of 16; `expected.npz` holds
the logits of the next 32.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import nn

from tests.fixtures.networks import MEAN, SIZE, STD, make_images, make_network
from ttc_core.datasets import Geometry, open_data
from ttc_core.evaluate import as_batch
from ttc_core.load import load
from ttc_core.methods import create
from ttc_core.model import SourceModel
from ttc_core.state import load_state, save_state
from ttc_core.state_file import StateError, read_header

STATES = Path(__file__).parent / "states"
SETTINGS: dict[str, dict[str, Any]] = {
    "ttc": {"statistics": "moving", "samples_per_step": 32, "augmentation": "gaussian_noise"},
    "eta": {"statistics": "moving"},
    "tent": {"optimizer": "sgd", "lr": 0.01},
    "tipi": {"statistics": "source"},
    "norm": {"statistics": "moving"},
    "t3a": {},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_state_of_format_1_goes_on(name, tmp_path):
    """Parameters, gradients, optimizer, statistics, what is drawn: the answers are the same.

    Saved again it is of today's format, and goes on alike.
    """
    model = load("bundled")
    former = create(name, model, **SETTINGS[name])
    path = tmp_path / "camera.safetensors"
    shutil.copy(STATES / f"{name}.safetensors", path)
    assert read_header(path)["format"] == "ttc-state-1"
    load_state(path, former, name=name, model="bundled")
    save_state(path, former, name=name, model="bundled")
    assert read_header(path)["format"] == "ttc-state-2"
    again = former.fork()
    load_state(path, again, name=name, model="bundled")
    stream = open_data("bundled", Geometry(32)).open("fog", 5, limit=80)
    images = as_batch(stream.read(stream.positions[48:80]))
    for method in (former, again):
        logits = []
        for batch in images.split(16):
            prediction = method.predict(batch)
            logits.append(prediction.logits.numpy())
            method.adapt(prediction)
        with np.load(STATES / "expected.npz") as expected:
            np.testing.assert_allclose(np.concatenate(logits), expected[name], atol=1e-4)


@pytest.mark.parametrize("count", [10**30, -5, "7", 1.5, None])
def test_its_count_of_learned_batches_is_held_against_what_counts(count, tmp_path):
    """It stood among the learner's counters; a wrong one would fail every later batch."""
    path = tmp_path / "camera.safetensors"
    with safetensors.safe_open(STATES / "ttc.safetensors", framework="pt") as file:
        texts = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    counters = json.loads(texts["counters"])
    counters["counters"]["learned_batches"] = count
    save_file(tensors, path, metadata={**texts, "counters": json.dumps(counters)})
    method = create("ttc", load("bundled"), **SETTINGS["ttc"])
    with pytest.raises(StateError, match="learned_batches"):
        load_state(path, method, name="ttc", model="bundled")


def twins() -> SourceModel:
    """Two layers share their scale and shift."""
    network = make_network("batch-norm")
    network.norm2 = nn.BatchNorm2d(12)
    twin = nn.BatchNorm2d(12)
    twin.weight, twin.bias = network.norm2.weight, network.norm2.bias
    network.conv2 = nn.Sequential(network.conv2, twin)
    return SourceModel(network, mean=MEAN, std=STD, size=SIZE)


def as_format_1(path: Path) -> None:
    """Write a state of `twins` as it was: under both names, with a count of steps for each."""
    with safetensors.safe_open(path, framework="pt") as file:
        texts = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for key, tensor in dict(tensors).items():
        if "conv2.1" in key and "moment" not in key.rpartition(":")[2]:
            tensors[key.replace("conv2.1", "norm2")] = tensor.clone()
    step = tensors.pop("optimizer/step")
    names = [key.partition("/")[2] for key in tensors if key.startswith("affine/")]
    tensors |= {f"optimizer/step:{name}": step.clone() for name in names}
    save_file(tensors, path, metadata={**texts, "format": "ttc-state-1"})


def test_a_state_of_format_1_says_twice_what_layers_share(tmp_path):
    """It is taken up where it says the same of both; where not, it is refused as another's."""
    path, settings = tmp_path / "camera.safetensors", {"statistics": "moving", "lr": 0.01}
    method = create("tent", twins(), **settings)
    images = make_images(8)
    method.adapt(method.predict(images))
    save_state(path, method, name="tent", model="twins")
    as_format_1(path)
    again = method.fork()
    load_state(path, again, name="tent", model="twins")
    for _ in range(2):
        ours, theirs = (each.predict(images) for each in (method, again))
        assert torch.equal(ours.logits, theirs.logits)
        for each, prediction in ((method, ours), (again, theirs)):
            each.adapt(prediction)
    with safetensors.safe_open(path, framework="pt") as file:
        texts = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors["affine/norm2.weight"] += 0.1
    save_file(tensors, path, metadata=texts)
    untouched = method.fork()
    with pytest.raises(StateError, match=r"does not fit the model: affine norm2\.weight"):
        load_state(path, untouched, name="tent", model="twins")
    assert untouched.version == 0
