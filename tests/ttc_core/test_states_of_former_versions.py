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
from safetensors.torch import save_file

from ttc_core.datasets import Geometry, open_data
from ttc_core.evaluate import as_batch
from ttc_core.load import load
from ttc_core.methods import create
from ttc_core.state import StateError, load_state, read_header, save_state

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
