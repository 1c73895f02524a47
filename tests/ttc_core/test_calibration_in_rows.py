"""ECE and NLL from the answers into the rows, and from the rows into the report."""

import json

import numpy as np
import pytest

from tests.fixtures.datasets import small_data
from tests.fixtures.networks import make_model
from tests.fixtures.rows import answers, row, write
from ttc_core.calibration import calibration_terms, likelihood_terms
from ttc_core.evaluate import Run, as_batch
from ttc_core.evaluation import Evaluation
from ttc_core.methods import create
from ttc_core.report import write_report
from ttc_core.rows import Rows, read_rows, setting


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def evaluation(model):
    def made(*names, **changes):
        return Evaluation(
            runs=[Run(name, create(name, model), 8) for name in names],
            data=small_data(40),
            corruptions=("fog",),
            severity=3,
            limit=None,
            order="iid",
            protocol="episodic",
            seed=0,
            fields={"data": "made-up", "model": "small"},
            **changes,
        )

    return made


def details(path, row):
    with np.load(path.parent / row["details"]) as arrays:
        return dict(arrays)


def test_rows_tell_how_well_what_was_served_is_calibrated(evaluation, model, tmp_path):
    """From the probabilities that are answered, which lie beside the row image by image."""
    path = tmp_path / "rows.jsonl"
    (found,) = evaluation("source").run(Rows(path))
    stream = small_data(40).open("fog", 3, order="iid", seed=0)
    ((images, labels),) = stream.batches(40)
    given = create("source", model).predict(as_batch(images)).probabilities.numpy()
    arrays = details(path, found)
    assert arrays["confidence"].dtype == arrays["true_probability"].dtype == np.float32
    assert arrays["confidence"] == pytest.approx(given.max(axis=1), rel=1e-4)
    assert arrays["true_probability"] == pytest.approx(given[np.arange(40), labels], rel=1e-4)
    terms = calibration_terms(arrays["confidence"], given.argmax(axis=1) == labels)
    assert found["ece"] == pytest.approx(terms.mean())
    assert found["ece_error"] == pytest.approx(terms.std(ddof=1) / 40**0.5)
    terms = likelihood_terms(arrays["true_probability"])
    assert found["nll"] == pytest.approx(terms.mean())
    assert found["nll_error"] == pytest.approx(terms.std(ddof=1) / 40**0.5)


def test_only_judged_images_count(evaluation, tmp_path):
    """Those that are mixed in have no true class."""
    path = tmp_path / "rows.jsonl"
    (found,) = evaluation("source", mix={"noise": 0.2}).run(Rows(path))
    arrays = details(path, found)
    judged = arrays["labels"] >= 0
    assert 0 < judged.sum() < 40
    assert (np.isnan(arrays["true_probability"]) == ~judged).all()
    right = arrays["predicted"] == arrays["labels"]
    terms = calibration_terms(arrays["confidence"][judged], right[judged])
    assert found["ece"] == pytest.approx(terms.mean())
    assert found["nll"] == pytest.approx(
        likelihood_terms(arrays["true_probability"][judged]).mean()
    )


def test_rows_of_former_versions_are_not_run_again(evaluation, tmp_path):
    """They are results: a row without them asks for the same, and is found."""
    path = tmp_path / "rows.jsonl"
    (found,) = evaluation("source").run(Rows(path))
    former = {name: value for name, value in found.items() if name[:3] not in ("ece", "nll")}
    assert setting(former) == setting(found)
    path.write_text(json.dumps(former) + "\n")
    assert evaluation("source").run(Rows(path)) == [former]
    assert len(read_rows(path)) == 1


def beside(accuracy, confidence, seed):
    """Arrays of answers that are all so sure."""
    arrays = answers(accuracy, seed=seed)
    right = arrays["predicted"] == arrays["labels"]
    given = np.where(right, confidence, (1 - confidence) / 9)
    return arrays | {
        "confidence": np.full(1000, confidence, np.float32),
        "true_probability": given.astype(np.float32),
    }


def report(tmp_path, rows, arrays):
    path = write(tmp_path / "rows.jsonl", rows, arrays)
    write_report([path], tmp_path / "out")
    return (tmp_path / "out" / "calibration.md").read_text()


def calibrated(method, corruption, accuracy, confidence, seed, **changes):
    arrays = beside(accuracy, confidence, seed)
    right = arrays["predicted"] == arrays["labels"]
    told = {
        "ece": float(calibration_terms(arrays["confidence"], right).mean()),
        "nll": float(likelihood_terms(arrays["true_probability"]).mean()),
    }
    return row(method, corruption, accuracy, limit=1000, **told, **changes), arrays


def test_the_report_holds_calibration_against_source(tmp_path):
    """On each stream, the mean over corruptions with the paired difference and its error."""
    made = [
        calibrated("source", "fog", 0.5, 0.9, 1),
        calibrated("source", "clean", 0.9, 0.95, 2),
        calibrated("norm", "fog", 0.8, 0.9, 3),
        calibrated("norm", "clean", 0.9, 0.95, 2),
    ]
    text = report(tmp_path, *zip(*made, strict=True))
    assert "mean of clean, fog" in text
    assert "| SOURCE | 22.5 |" in text
    (_, first), _, (_, other), _ = made
    wrong = (first["predicted"] != first["labels"]).astype(float)
    paired = (other["predicted"] != other["labels"]) - wrong
    error = 100 * (paired / 2).std(ddof=1) / 1000**0.5
    assert f"| NORM | 7.5 (-15.0 ± {error:.1f}) |" in text
    nll = [1000 * one["nll"] for one, _ in made]
    assert f"| NORM | {(nll[2] + nll[3]) / 2000:.3f} ({(nll[2] - nll[0]) / 2000:+.3f}" in text


def test_rows_without_calibration_are_reported_beside_others(tmp_path):
    """A replay knows no likelihood, and a row of a former version neither."""
    replayed, arrays = calibrated("norm", "fog", 0.8, 0.9, 1, order="iid")
    del arrays["true_probability"]
    former = row("source", "fog", 0.5, limit=1000, order="iid")
    text = report(tmp_path, [replayed | {"nll": None}, former], [arrays, answers(0.5)])
    assert "| NORM | 10.0 |" in text
    assert "| SOURCE | – |" in text  # noqa: RUF001
    assert "likelihood" not in text
    former_alone = write(tmp_path / "former.jsonl", [former], [answers(0.5)])
    write_report([former_alone], tmp_path / "alone")
    assert not (tmp_path / "alone" / "calibration.md").exists()
