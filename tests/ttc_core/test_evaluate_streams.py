"""Protocols, mixes and what rows say of them: windows, and how far it is from SOURCE."""

import numpy as np
import pytest
import torch

from tests.fixtures.datasets import small_data
from tests.fixtures.networks import make_model
from ttc_core.evaluate import Run, as_batch
from ttc_core.evaluation import Evaluation, parse_protocol
from ttc_core.methods import create
from ttc_core.poison import poisoned
from ttc_core.rows import Rows
from ttc_core.tally import Tally

IMAGES = 40


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def data():
    return small_data(IMAGES)


@pytest.fixture
def evaluate(model, data):
    def run(rows: Rows, *names: str, batch_size: int = 8, **changes):
        asked = {
            "corruptions": ("fog", "contrast"),
            "severity": 3,
            "limit": None,
            "order": "iid",
            "protocol": "episodic",
            "seed": 0,
            "fields": {"data": "made-up", "model": "small"},
        } | changes
        runs = [Run(name, create(name, model), batch_size) for name in names or ("tent",)]
        return Evaluation(data=data, runs=runs, **asked).run(rows)

    return run


def details(path, row):
    with np.load(path.parent / row["details"]) as arrays:
        return dict(arrays)


def test_a_changing_stream_is_one_row_with_its_conditions(evaluate, tmp_path):
    """Each image's condition and how long it has lasted lie beside it; it is not run twice."""
    rows = Rows(tmp_path / "rows.jsonl")
    (row,) = evaluate(rows, protocol="changing:15")
    assert (row["corruption"], row["protocol"], row["images"]) == (
        "changing:fog+contrast",
        "changing:15",
        IMAGES,
    )
    arrays = details(tmp_path / "rows.jsonl", row)
    assert arrays["condition"].tolist() == ["fog"] * 15 + ["contrast"] * 15 + ["clean"] * 10
    assert arrays["since_change"].tolist() == [*range(15), *range(15), *range(10)]
    assert evaluate(rows, protocol="changing:15") == [row]
    assert len(evaluate(rows, protocol="changing:20")) == 1
    assert len(rows) == 2


def test_the_last_short_batch_has_its_own_conditions(evaluate, tmp_path):
    """Columns follow the images whatever the batch size."""
    path = tmp_path / "rows.jsonl"
    found = [
        details(path, evaluate(Rows(path), "source", protocol="day-night", batch_size=size)[0])
        for size in (7, 40)
    ]
    for name in ("light", "condition", "labels"):
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_recurring_goes_round_and_never_resets(evaluate, tmp_path):
    """A row for each visit; the first round is the continual one."""
    rows = Rows(tmp_path / "rows.jsonl")
    found = evaluate(rows, protocol="recurring:2")
    assert [(row["corruption"], row["visit"]) for row in found] == [
        *(("fog", 1), ("contrast", 1)),
        *(("fog", 2), ("contrast", 2)),
    ]
    assert [len(row["after"]) for row in found] == [0, 1, 2, 3]
    continual = evaluate(Rows(None), protocol="continual")
    assert [row["entropy"] for row in found[:2]] == [row["entropy"] for row in continual]
    assert found[2]["entropy"] != found[0]["entropy"]
    assert len(rows) == 4
    assert evaluate(rows, protocol="recurring:2") == found, "with their times: they were not run"


def test_what_is_mixed_in_is_answered_but_not_judged(evaluate, tmp_path):
    """The row says what was mixed in and how many others there are; beside it lies which."""
    path = tmp_path / "rows.jsonl"
    mix = {"noise": 0.2, "poison": 0.1}
    (row, _) = evaluate(Rows(path), mix=mix)
    assert (row["mix"], row["images"], row["judged"]) == ("noise:0.2,poison:0.1", IMAGES, 28)
    arrays = details(path, row)
    judged = arrays["mixed"] == 0
    assert judged.sum() == 28
    assert row["correct"] == (arrays["predicted"] == arrays["labels"])[judged].sum()
    assert row["accuracy"] == row["correct"] / 28
    assert (arrays["predicted"] >= 0).all()
    evaluate(Rows(path))
    assert len(Rows(path)) == 4, "without a mix it is another question"


def test_poisoned_images_move_towards_one_class_on_the_source(model, data):
    """At most 8 levels, each alone, so that any batch holds the same ones."""
    images = data.open("clean", 5).read(np.arange(6))
    found = poisoned(model, images)
    assert np.abs(found.astype(int) - images.astype(int)).max() == 8
    np.testing.assert_array_equal(found[2:3], poisoned(model, images[2:3]))
    method = create("source", model)
    before, after = (method.predict(as_batch(each)).probabilities for each in (images, found))
    assert (after[:, 0] > before[:, 0]).all()
    assert torch.isfinite(after).all()


@pytest.mark.parametrize("kept", [True, False])
def test_the_difference_to_source_is_paired(kept, evaluate, tmp_path):
    """Image by image, with the standard error of its mean; SOURCE runs first."""
    rows = Rows(tmp_path / "rows.jsonl" if kept else None)
    found = evaluate(rows, "norm", "source", corruptions=("fog",), mix={"noise": 0.1})
    source, norm = found
    assert source["source_difference"] is None
    assert norm["source_difference"] == pytest.approx(norm["accuracy"] - source["accuracy"])
    if kept:
        right = [
            (arrays["predicted"] == arrays["labels"])[arrays["mixed"] == 0].astype(float)
            for arrays in (details(tmp_path / "rows.jsonl", row) for row in (norm, source))
        ]
        error = (right[0] - right[1]).std(ddof=1) / len(right[0]) ** 0.5
        assert norm["source_difference_error"] == pytest.approx(error)


def test_source_may_have_run_before(evaluate, tmp_path):
    """In the same file, in other batches; not on other images, nor in another order."""
    path = tmp_path / "rows.jsonl"
    (row,) = evaluate(Rows(path), "norm", corruptions=("fog",))
    assert row["source_difference"] is None
    source = evaluate(Rows(path), "source", batch_size=5, corruptions=("fog",))
    (row,) = evaluate(Rows(path), "tent", corruptions=("fog",))
    assert row["source_difference"] == pytest.approx(row["accuracy"] - source[0]["accuracy"])
    (row,) = evaluate(Rows(path), "tent", corruptions=("fog",), order="sorted")
    assert row["source_difference"] is None
    (path.parent / source[0]["details"]).write_bytes(b"damaged")
    (row,) = evaluate(Rows(path), "ttc", corruptions=("fog",))
    assert row["source_difference"] is None


def tally(right: list[bool], labels=None) -> Tally:
    counted = Tally(len(right))
    truth = np.zeros(len(right), np.int64) if labels is None else np.array(labels)
    counted.add(
        {
            "predicted": np.where(right, 0, 1),
            "labels": truth,
            "entropy": np.zeros(len(right)),
            "selected": np.zeros(len(right), bool),
        }
    )
    return counted


def test_windows_are_of_five_hundred_images():
    """The rest behind them is told, and is not taken for the worst."""
    counted = tally([True] * 500 + [True] * 250 + [False] * 250 + [False] * 10)
    assert counted.windows() == {"window_accuracy": [1.0, 0.5, 0.0], "worst_window": 0.5}
    assert tally([True, False]).windows() == {"window_accuracy": [0.5], "worst_window": 0.5}
    nobody = tally([True] * 1000, [-1] * 500 + [0] * 500)
    assert nobody.windows() == {"window_accuracy": [None, 1.0], "worst_window": 1.0}
    assert nobody.results(selects=False)["judged"] == 500


@pytest.mark.parametrize(
    "text",
    [
        *("", "daily", "changing", "changing:", "changing:0", "changing:-1", "changing:1.5"),
        *("recurring:x", "episodic:2", "day-night:5", "changing:" + "9" * 20, "changing:05"),
    ],
)
def test_other_protocols_are_refused(text):
    """With those that there are."""
    with pytest.raises(ValueError, match="protocol must be episodic, continual, changing:L"):
        parse_protocol(text)
    assert parse_protocol("recurring:2") == ("recurring", 2)
