"""The authors' own code on one small stream, against ours, value by value."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ttc_core.load import load
from ttc_core.methods import create
from ttc_core.model import SourceModel


@dataclass(frozen=True)
class Limits:
    """The largest differences allowed; None: not compared."""

    largest_logit: float
    mean_logit: float
    answers: int
    losses: float | None = None
    counts: bool = False


EXACT = Limits(1e-3, 1e-5, 0)
STATISTICS = Limits(1e-3, 1e-4, 1)
SGD = Limits(1e-3, 2e-4, 1, losses=1e-3, counts=True)
ADAM = Limits(0.05, 0.003, 4, losses=0.005, counts=True)
MOVING = Limits(0.005, 5e-4, 1, losses=0.002)


@dataclass(frozen=True)
class Case:
    """One golden file: the method and settings that must reproduce it."""

    file: str
    method: str
    limits: Limits
    batch_size: int = 100
    settings: dict[str, Any] = field(default_factory=dict)


def ttc(file: str, limits: Limits = ADAM, batch_size: int = 100, **settings: Any) -> Case:
    return Case(file, "ttc", limits, batch_size, settings)


def only(part: str) -> dict[str, bool]:
    return {name: name == part for name in ("rla", "spc", "ss", "ga")}


CASES = [
    Case("source", "source", EXACT),
    Case("norm", "norm", STATISTICS),
    Case("norm_prior16", "norm", STATISTICS, settings={"source_images": 16}),
    Case("tent", "tent", ADAM),
    Case("tent_n20", "tent", ADAM, batch_size=20),
    Case("tent_sgd", "tent", SGD, settings={"optimizer": "sgd"}),
    ttc("ttc_q2"),
    ttc("ttc_q1", samples_per_step=100),
    ttc("ttc_q2_counter0", counter_start=0),
    ttc("ttc_q2_concat", views="concatenated"),
    ttc("ttc_q2_kappa_detached", kappa_detach=True),
    ttc("ttc_q2_spc_probs", spc_on="probabilities"),
    ttc("ttc_q2_div_n", mean_over="batch"),
    ttc("ttc_q2_div_q", accumulate_mean=True),
    ttc("ttc_sgd_q2", SGD, optimizer="sgd"),
    ttc("ttc_sgd_q2_div_n", SGD, optimizer="sgd", mean_over="batch"),
    ttc("ttc_sgd_q2_div_q", SGD, optimizer="sgd", accumulate_mean=True),
    ttc("ttc_n20_q10", batch_size=20),
    ttc("ttc_n20_q1", batch_size=20, ga=False),
    ttc("switch_rla", **only("rla")),
    ttc("switch_spc", **only("spc")),
    ttc("switch_ss", **only("ss")),
    ttc("switch_ga", **only("ga")),
    Case("moving_norm", "norm", MOVING, settings={"statistics": "moving"}),
    Case("moving_norm_flip", "norm", MOVING, settings={"statistics": "moving", "flip": True}),
    ttc("moving_ttc_q2", MOVING, statistics="moving"),
    ttc("moving_ttc_n20_q10", MOVING, batch_size=20, statistics="moving"),
    pytest.param(
        ttc("moving_ttc_n1_q200", MOVING, batch_size=1, statistics="moving"),
        marks=pytest.mark.slow,
    ),
]


@pytest.fixture(scope="module")
def model(shared_data: Path) -> SourceModel:
    return load(f"cifar/resnet20@{shared_data}/models/resnet20.th")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_method_reproduces_the_authors_code(
    case: Case, model: SourceModel, shared_data: Path
) -> None:
    """Logits, answers, losses, counts and adapted parameters agree within the stated limits."""
    golden = np.load(shared_data / "golden" / "gaussian_noise" / f"{case.file}.npz")
    images = np.load(shared_data / "cifar10c" / "gaussian_noise.npy")
    stream = torch.from_numpy(images[: len(golden["logits"])]).permute(0, 3, 1, 2)
    method = create(case.method, model, **case.settings)
    logits, losses, selected, stepped = [], [], [], []
    for batch in stream.split(case.batch_size):
        prediction = method.predict(batch)
        logits.append(prediction.logits.numpy())
        outcome = method.adapt(prediction)
        losses.append(outcome.loss)
        selected.append(int(prediction.selected.sum()))
        stepped.append(outcome.stepped)

    ours = np.concatenate(logits)
    difference = np.abs(ours - golden["logits"])
    assert difference.max() <= case.limits.largest_logit
    assert difference.mean() <= case.limits.mean_logit
    changed = ours.argmax(axis=1) != golden["logits"].argmax(axis=1)
    assert changed.sum() <= case.limits.answers
    if case.limits.losses is not None and len(golden["losses"]):
        np.testing.assert_allclose(
            np.array(losses, dtype=float), golden["losses"], atol=case.limits.losses, rtol=0
        )
    if case.limits.counts and "n_selected" in golden:
        np.testing.assert_array_equal(selected, golden["n_selected"])
    if case.limits.counts and "stepped" in golden:
        np.testing.assert_array_equal(stepped, golden["stepped"])
    for name in golden.files:
        if name.startswith("param."):
            # NORM moves no parameter: its reference holds the source's.
            adapted = method.state().get("affine", model.affine)[_layer(name, "param.")]
            # Adam may move a parameter whose gradient is nearly 0 by lr in either direction.
            np.testing.assert_allclose(adapted.numpy(), golden[name], atol=0.01, rtol=0)
        if name.startswith("moment"):
            order, _, layer = name.partition(".")
            moment = method.state()["moments"][f"{order}.{_layer(layer, '')}"]
            np.testing.assert_allclose(moment.numpy(), golden[name], atol=1e-3, rtol=1e-3)


def _layer(name: str, prefix: str) -> str:
    """The network's own name; the reference of the moving cases wraps the network as `net`."""
    return name.removeprefix(prefix).removeprefix("net.")
