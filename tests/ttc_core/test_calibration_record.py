"""A model's calibration record: what it says, and which are taken up."""

import json
import os

import numpy as np
import pytest
import torch

from tests.fixtures.networks import make_network
from ttc_core.calibration_record import (
    COLDEST,
    FEWEST_IMAGES,
    HOTTEST,
    MOST_BYTES,
    CalibrationRecord,
    RecordError,
    fitted_temperature,
)
from ttc_core.datasets import Geometry, open_data
from ttc_core.load import load, record_beside

NETWORKS = "tests.fixtures.networks"


def drawn(count=4000, sharpness=2.0):
    """(N, K) logits, and labels that are as likely as their softmax says."""
    draw = torch.Generator().manual_seed(0)
    logits = sharpness * torch.randn(count, 5, generator=draw)
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=draw)[:, 0]


def record_of(model, **changes):
    record = CalibrationRecord.of(
        *drawn(), model="small", model_digest=model.digest, data="made:up", data_digest="0"
    )
    return record.model_copy(update=changes)


@pytest.fixture
def spec(tmp_path):
    """A model whose weights lie in a file."""
    torch.save(make_network("batch-norm").state_dict(), tmp_path / "weights.pt")
    return f"{NETWORKS}:small_network@{tmp_path}/weights.pt"


@pytest.mark.parametrize("too_sure", [0.4, 1.0, 3.0])
def test_the_temperature_makes_up_for_how_sure_a_network_is(too_sure):
    """Logits that are multiplied have to be divided again."""
    logits, labels = drawn()
    assert fitted_temperature(too_sure * logits, labels) == pytest.approx(too_sure, rel=0.08)


def test_the_temperature_stays_within_bounds():
    """Where all are right, or all wrong, none would be likeliest."""
    logits, _ = drawn(200)
    assert fitted_temperature(logits, logits.argmax(dim=1)) == pytest.approx(COLDEST)
    assert fitted_temperature(logits, logits.argmin(dim=1)) == pytest.approx(HOTTEST)


def test_a_record_tells_images_confidence_and_accuracy_bin_by_bin():
    """Bins of equal mass by rising confidence; images without a label are left out."""
    logits, labels = drawn(1000)
    labels[::10] = -1
    record = CalibrationRecord.of(
        logits, labels, model="m", model_digest="0", data="d", data_digest="0"
    )
    assert record.images == sum(each.images for each in record.bins) == 900
    assert len(record.bins) == 15
    confidences = [each.confidence for each in record.bins]
    assert confidences == sorted(confidences)
    for name in ("confidence", "accuracy"):
        mean = np.average(
            [getattr(each, name) for each in record.bins], weights=[b.images for b in record.bins]
        )
        assert getattr(record, name) == pytest.approx(mean, abs=1e-3)


def test_what_says_too_little_or_nothing_makes_no_record():
    """Few labelled images; logits that are no numbers."""
    named = dict.fromkeys(("model", "model_digest", "data", "data_digest"), "x")
    logits, labels = drawn(FEWEST_IMAGES)
    labels[0] = -1
    with pytest.raises(RecordError, match=f"takes 100 labelled .* there are {FEWEST_IMAGES - 1}"):
        CalibrationRecord.of(logits, labels, **named)
    labels[0], logits[3, 0] = 0, torch.nan
    with pytest.raises(RecordError, match="not finite"):
        CalibrationRecord.of(logits, labels, **named)


def test_a_model_finds_the_record_beside_its_weights(spec, tmp_path):
    """Or takes the one that is named; without either it has none."""
    model = load(spec)
    assert model.calibration is None
    record = record_of(model)
    record.write(record_beside(spec))
    assert record_beside(spec) == tmp_path / "weights.pt.calibration.json"
    assert load(spec).calibration == record
    named = record_of(model, temperature=3.0)
    named.write(tmp_path / "other.json")
    assert load(spec, calibration=tmp_path / "other.json").calibration == named


def text_of(**changes):
    def write(path, model):
        content = record_of(model).model_dump() | changes
        path.write_text(json.dumps(content))

    return write


BAD = {
    "nothing": (lambda path, _: None, "cannot be read"),
    "a folder": (lambda path, _: path.mkdir(), "no ordinary file"),
    "a pipe": (lambda path, _: os.mkfifo(path), "no ordinary file"),
    "empty": (lambda path, _: path.write_bytes(b""), "no calibration record"),
    "no text": (lambda path, _: path.write_bytes(b"\x80\x02}q\x00."), "no calibration record"),
    "huge": (lambda path, _: path.write_bytes(b" " * (MOST_BYTES + 1)), "over 65,536 bytes"),
    "deep": (lambda path, _: path.write_bytes(b"[" * MOST_BYTES), "no calibration record"),
    "another format": (text_of(format="ttc-calibration-9"), "format"),
    "too cold": (text_of(temperature=0.0), "temperature"),
    "too hot": (text_of(temperature=1e9), "temperature"),
    "no number": (text_of(temperature=float("nan")), "temperature"),
    "a text": (text_of(temperature="0.7"), "temperature"),
    "few images": (text_of(images=3), "images"),
    "more": (text_of(command="rm"), "command"),
    "no bins": (text_of(bins=[]), "bins"),
    "another model's": (text_of(model_digest="0" * 16), "other weights or another preprocessing"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_refused_where_named_and_left_out_where_found(spec, kind, tmp_path):
    """With a sentence that names the file; the model is served without it in the second case."""
    make, sentence = BAD[kind]
    path = tmp_path / "weights.pt.calibration.json"
    make(path, load(spec))
    with pytest.raises(RecordError, match=sentence) as refused:
        load(spec, calibration=path)
    assert str(path) in str(refused.value)
    model = load(spec)
    assert model.calibration is None
    assert any(sentence in notice for notice in model.notices) == (kind != "nothing")


def test_another_preprocessing_takes_another_record(spec):
    """What a network answers depends on it."""
    record_of(load(spec)).write(record_beside(spec))
    model = load(spec, std=(0.5, 0.5, 0.5))
    assert model.calibration is None
    assert any("another preprocessing" in notice for notice in model.notices)


def test_other_weights_have_no_record(spec):
    """A model that is refreshed after others were loaded into it."""
    record_of(load(spec)).write(record_beside(spec))
    model = load(spec)
    with torch.no_grad():
        next(model.module.parameters()).add_(0.1)
    model.refresh()
    assert model.calibration is None


def test_the_bundled_model_has_one_of_images_that_its_stream_has_not():
    """8,000 test pictures; it is less sure than right of them."""
    record = load("bundled").calibration
    assert record.images == 8000
    assert record.data == "ttc_core.zoo.fashion_mnist:held_out"
    assert record.accuracy - record.confidence > 0.05
    assert 0.6 < record.temperature < 0.75


@pytest.mark.slow
def test_the_bundled_record_is_what_its_command_makes():
    """Where Fashion-MNIST is installed; and none of its images is in the bundled stream."""
    from ttc_core.calibration_record import measured
    from ttc_core.evaluate import as_batch
    from ttc_core.zoo.fashion_mnist import DIRECTORY

    if not DIRECTORY.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    model = load("bundled")
    data = open_data(model.calibration.data, Geometry(32), model.class_names)
    stream = data.open("clean", 5)
    batches = ((as_batch(x), torch.from_numpy(y)) for x, y in stream.batches(100))
    made = CalibrationRecord.of(
        *measured(model, batches),
        model="bundled",
        model_digest=model.digest,
        data=model.calibration.data,
        data_digest=stream.digest,
    )
    assert made.temperature == pytest.approx(model.calibration.temperature, abs=1e-3)
    assert made.data_digest == model.calibration.data_digest
    served = open_data("bundled", Geometry(32)).open("clean", 5)
    shown = {images.tobytes() for images in served.read(served.positions)}
    assert shown.isdisjoint(images.tobytes() for images in stream.read(stream.positions))
