"""The authors' own code on one small stream, against ours, value by value."""

from dataclasses import dataclass, field, replace
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
    images: int | None = None  # the first so many; None: all, and what was adapted at their end


def ttc(file: str, limits: Limits = ADAM, batch_size: int = 100, **settings: Any) -> Case:
    return Case(file, "ttc", limits, batch_size, settings)


def begun(case: Case) -> Case:
    """Its first 300 images: with each image or batch by itself there is a step, and what it did."""
    return replace(case, images=300)


def only(part: str) -> dict[str, bool]:
    return {name: name == part for name in ("rla", "spc", "ss", "ga")}


CASES = [
    Case("source", "source", EXACT),
    Case("norm", "norm", STATISTICS),
    Case("norm_prior16", "norm", STATISTICS, settings={"source_images": 16}),
    Case("tent", "tent", ADAM),
    Case("tent_n20", "tent", ADAM, batch_size=20),
    Case("tent_sgd", "tent", SGD, settings={"optimizer": "sgd"}),
    Case("t3a_k1", "t3a", EXACT, settings={"filter": 1}),
    Case("t3a_k20", "t3a", EXACT, settings={"filter": 20}),
    Case("t3a_k100", "t3a", EXACT),
    Case("t3a_k20_batchbn", "t3a", STATISTICS, settings={"filter": 20, "statistics": "batch"}),
    Case("eta_d0.4", "eta", ADAM),
    Case("eta_d0.05", "eta", ADAM, settings={"redundancy_margin": 0.05}),
    ttc("ttc_q2"),
    Case("moving_norm", "norm", MOVING, settings={"statistics": "moving"}),
    Case("moving_norm_flip", "norm", MOVING, settings={"statistics": "moving", "flip": True}),
    ttc("moving_ttc_q2", MOVING, statistics="moving"),
]
# What TTC can be set to; each takes some seconds.
VARIANTS = [
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
    ttc("moving_ttc_n20_q10", MOVING, batch_size=20, statistics="moving"),
    ttc("moving_ttc_n1_q200", MOVING, batch_size=1, statistics="moving"),
]


@pytest.fixture(scope="module")
def model(shared_data: Path) -> SourceModel:
    return load(f"cifar/resnet20@{shared_data}/models/resnet20.th")


@pytest.mark.parametrize(
    "case",
    [*CASES, *(pytest.param(begun(case), marks=pytest.mark.slow) for case in VARIANTS)],
    ids=lambda case: case.file,
)
def test_method_reproduces_the_authors_code(
    case: Case, model: SourceModel, shared_data: Path
) -> None:
    """Logits, answers, losses, counts and adapted parameters agree within the stated limits."""
    golden = dict(np.load(shared_data / "golden" / "gaussian_noise" / f"{case.file}.npz"))
    if case.images is not None:
        by_image = {"logits": golden["logits"][: case.images]}
        count = case.images // case.batch_size
        kept = ("losses", "n_selected", "stepped")
        golden = by_image | {name: golden[name][:count] for name in kept if name in golden}
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
    for name in golden:
        if name.startswith("param."):
            # NORM moves no parameter: its reference holds the source's.
            adapted = method.state().get("affine", model.affine)[_layer(name, "param.")]
            # Adam may move a parameter whose gradient is nearly 0 by lr in either direction.
            np.testing.assert_allclose(adapted.numpy(), golden[name], atol=0.01, rtol=0)
        if name == "probs_ema":
            mean = method.state()["mean_answer"]["probabilities"]
            np.testing.assert_allclose(mean.numpy(), golden[name], atol=1e-3, rtol=0)
        if name == "prototypes":
            _same_supports(method.state()["supports"], golden)
        if name.startswith("moment"):
            order, _, layer = name.partition(".")
            moment = method.state()["moments"][f"{order}.{_layer(layer, '')}"]
            np.testing.assert_allclose(moment.numpy(), golden[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("tipi_cifar_zero_start", {"start": "zero"}),
        ("tipi_random_start", {"lr": 1e-3}),
        pytest.param(
            *("tipi_random_start_tent1", {"lr": 1e-3, "entropy_weight": 1.0}),
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("answer", ["before", "after"])
def test_tipi_reproduces_the_authors_code(
    file: str, settings: dict[str, Any], answer: str, model: SourceModel, shared_data: Path
) -> None:
    """With the recorded start and direction, which rounding decides otherwise; both answers."""
    golden = np.load(shared_data / "golden" / "gaussian_noise" / f"{file}.npz")
    images = np.load(shared_data / "cifar10c" / "gaussian_noise.npy")
    directions = torch.from_numpy(golden["grad_sign"]).split(100)
    method = create("tipi", model, answer=answer, **settings)
    random = torch.Generator().manual_seed(0)
    logits, losses = [], []
    for batch, direction in zip(
        torch.from_numpy(images).permute(0, 3, 1, 2).split(100), directions, strict=True
    ):
        start = (torch.rand(batch.shape, generator=random) * 2 - 1) * 2 / 255
        given = None if settings.get("start") == "zero" else start
        prediction = method.predict(batch, start=given, direction=direction)
        logits.append(prediction.logits.numpy())
        losses.append(method.adapt(prediction).loss)
    ours, theirs = np.concatenate(logits), golden["logits" if answer == "after" else "logits_pre"]
    assert np.abs(ours - theirs).max() <= 0.05
    assert np.abs(ours - theirs).mean() <= 0.004
    assert (ours.argmax(axis=1) != theirs.argmax(axis=1)).sum() <= 4
    np.testing.assert_allclose(np.array(losses, float), golden["losses"], atol=0.002, rtol=0)
    for name in golden:
        if name.startswith("param."):
            adapted = method.state()["affine"][_tipi_layer(name)]
            np.testing.assert_allclose(adapted.numpy(), golden[name], atol=0.01, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["zero", "random"])
def test_tipi_left_to_itself_is_as_accurate(
    start: str, model: SourceModel, shared_data: Path
) -> None:
    """Within two points of the authors' run, whichever way rounding sends it."""
    name = "tipi_cifar_zero_start" if start == "zero" else "tipi_random_start"
    golden = np.load(shared_data / "golden" / "gaussian_noise" / f"{name}.npz")
    images = np.load(shared_data / "cifar10c" / "gaussian_noise.npy")
    labels = np.load(shared_data / "cifar10c" / "labels.npy")
    method = create(
        "tipi", model, start=start, answer="after", lr=5e-4 if start == "zero" else 1e-3
    )
    answers = []
    for batch in torch.from_numpy(images).permute(0, 3, 1, 2).split(100):
        prediction = method.predict(batch)
        answers.append(prediction.logits.argmax(dim=1).numpy())
        method.adapt(prediction)
    ours = (np.concatenate(answers) == labels).mean()
    theirs = (golden["logits"].argmax(axis=1) == labels).mean()
    assert abs(ours - theirs) < 0.02


def _tipi_layer(name: str) -> str:
    """Its authors replace each BatchNorm by one with two sets of buffers."""
    return name.removeprefix("param.").replace(".main", "")


def _layer(name: str, prefix: str) -> str:
    """The network's own name; the reference of the moving cases wraps the network as `net`."""
    return name.removeprefix(prefix).removeprefix("net.")


def _same_supports(supports: dict[str, torch.Tensor], golden: Any) -> None:
    """The same features are kept for each class, as their entropies tell, whatever their order."""
    classes, entropies = supports["classes"].numpy(), supports["entropy"].numpy()
    np.testing.assert_array_equal(np.bincount(classes, minlength=10), golden["supports_per_class"])
    for label in range(10):
        np.testing.assert_allclose(
            np.sort(entropies[classes == label]),
            np.sort(golden["support_entropy"][golden["support_class"] == label]),
            atol=1e-4,
        )
    features = supports["features"].numpy()
    sums = np.stack([features[classes == label].sum(axis=0) for label in range(10)], axis=1)
    prototypes = sums / np.maximum(np.linalg.norm(sums, axis=0), 1e-12)
    np.testing.assert_allclose(prototypes, golden["prototypes"], atol=1e-4)
