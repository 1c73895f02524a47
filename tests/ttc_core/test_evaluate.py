"""The offline walk: rows say what was asked and what came of it, and are not run twice."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.fixtures.datasets import small_data
from tests.fixtures.networks import CLASSES, SIZE, make_images, make_model
from ttc_core.datasets import CleanData, Geometry
from ttc_core.evaluate import Run, as_batch, run_stream, warm_up
from ttc_core.evaluation import Evaluation
from ttc_core.features import weightiest_channels
from ttc_core.methods import create
from ttc_core.normalization import BatchLook
from ttc_core.rows import RESULT_FIELDS, Rows
from ttc_core.supervised import Supervised

IMAGES = 30
FIELDS = {"data": "made-up", "model": "small", "versions": {"python": "3"}}
# DESIGN: a row per method, corruption, severity and batch size.
ROW_FIELDS = {
    "method": str,
    "data": str,
    "model": str,
    "corruption": str,
    "severity": int,
    "order": str,
    "protocol": str,
    "batch_size": int,
    "images": int,
    "correct": int,
    "accuracy": float,
    "entropy": float,
    "selection_rate": float,
    "steps": int,
    "seconds": float,
    "images_per_second": float,
    "seed": int,
    "settings": dict,
    "versions": dict,
}


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def data():
    return small_data(IMAGES)


@pytest.fixture
def evaluation(model, data) -> Callable[..., Evaluation]:
    def make(*names: str, batch_size: int = 8, **changes: Any) -> Evaluation:
        methods = [(name, create(name, model)) for name in names or ("source", "tent")]
        asked = {
            "runs": [Run(name, method, batch_size) for name, method in methods],
            "corruptions": ("gaussian_noise", "contrast"),
            "severity": 3,
            "limit": None,
            "order": "file",
            "protocol": "episodic",
            "seed": 0,
            "fields": FIELDS,
        }
        return Evaluation(data=data, **(asked | changes))

    return make


class Watch:
    """Counts the passes that were run."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []
        self.batches = 0
        self.columns: list[dict[str, Any]] = []

    def found(self, run, row) -> None:
        """Rows that are there are no pass."""

    def started(self, run, stream) -> None:
        self.begun.append((run.name, stream.corruption))

    def progressed(self, tally) -> None:
        self.batches += 1
        assert tally.seconds > 0

    def finished(self, run, row, columns) -> None:
        self.columns.append(columns)


def test_a_row_has_every_field_in_its_type(evaluation, tmp_path):
    """As JSON gives them back: names of the design, counts whole, rates between 0 and 1."""
    path = tmp_path / "rows.jsonl"
    evaluation("ttc").run(Rows(path))
    rows = list(Rows(path))
    assert [row["corruption"] for row in rows] == ["gaussian_noise", "contrast"]
    for row in rows:
        assert set(ROW_FIELDS) <= set(row)
        for name, kind in ROW_FIELDS.items():
            assert type(row[name]) is kind, name
        assert row["images"] == IMAGES
        assert row["accuracy"] == row["correct"] / IMAGES
        assert 0 < row["selection_rate"] < 1
        assert 0 < row["entropy"] < np.log(CLASSES)
        assert row["images_per_second"] == pytest.approx(IMAGES / row["seconds"])
        assert row["settings"]["samples_per_step"] == 200
        assert (row["method"], row["severity"], row["batch_size"]) == ("ttc", 3, 8)


def test_a_row_counts_what_happened(evaluation, model, data):
    """Right answers, mean entropy and steps equal those of a plain loop over the batches."""
    (row, _) = evaluation("tent").run(Rows(None))
    method = create("tent", model)
    correct, entropies, steps = 0, [], 0
    for images, labels in data.open("gaussian_noise", 3).batches(8):
        prediction = method.predict(as_batch(images))
        correct += int((prediction.logits.argmax(dim=1).numpy() == labels).sum())
        entropies += prediction.entropy.tolist()
        steps += method.adapt(prediction).stepped
    assert (row["correct"], row["steps"]) == (correct, steps) == (correct, 4)
    assert row["entropy"] == pytest.approx(np.mean(entropies), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "rate"), [("source", None), ("norm", None), ("tent", 1.0)], ids=str
)
def test_the_selection_rate_is_null_where_nothing_is_selected(name, rate, evaluation):
    """SOURCE and NORM select nobody; TENT learns from all."""
    assert [row["selection_rate"] for row in evaluation(name).run(Rows(None))] == [rate, rate]


def test_clean_has_no_severity(evaluation):
    """It is allowed wherever corruptions are named."""
    (row,) = evaluation("source", corruptions=("clean",)).run(Rows(None))
    assert row["severity"] is None


def test_episodic_resets_before_each_corruption(evaluation):
    """Each row is what it would be alone; continual ones depend on those before."""
    together = evaluation("tent").run(Rows(None))
    (alone,) = evaluation("tent", corruptions=("contrast",)).run(Rows(None))
    continual = evaluation("tent", protocol="continual").run(Rows(None))
    assert together[1]["entropy"] == alone["entropy"]
    assert continual[0]["entropy"] == together[0]["entropy"]
    assert continual[1]["entropy"] != alone["entropy"]
    assert continual[1]["steps"] == 4


def test_two_runs_of_the_same_methods_begin_at_the_source(evaluation):
    """A method that has adapted before starts its rows from the source all the same."""
    asked = evaluation("tent", protocol="continual")
    entropies = [[row["entropy"] for row in asked.run(Rows(None))] for _ in range(2)]
    assert entropies[0] == entropies[1]


def test_finished_rows_are_not_run_again(evaluation, tmp_path):
    """A second call runs what is missing, and returns all rows in the order asked for."""
    path = tmp_path / "rows.jsonl"
    evaluation("source", corruptions=("contrast",)).run(Rows(path))
    watch = Watch()
    rows = evaluation("source", "norm").run(Rows(path), watch)
    missing = [("source", "gaussian_noise"), ("norm", "gaussian_noise"), ("norm", "contrast")]
    assert watch.begun == missing
    assert watch.batches == 3 * 4
    assert [(row["method"], row["corruption"]) for row in rows] == [
        ("source", "gaussian_noise"),
        ("source", "contrast"),
        *missing[1:],
    ]
    again = Watch()
    assert evaluation("source", "norm").run(Rows(path), again) == rows
    assert again.begun == []
    assert len(Rows(path)) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"severity": 4},
        {"batch_size": 9},
        {"limit": 16},
        {"order": "iid"},
        {"protocol": "continual"},
        {"seed": 1},
        {"fields": {**FIELDS, "model": "other"}},
    ],
    ids=str,
)
def test_another_question_is_another_row(change, evaluation, tmp_path):
    """Whatever is asked differently is run, not taken from the file."""
    path = tmp_path / "rows.jsonl"
    evaluation("source").run(Rows(path))
    watch = Watch()
    evaluation("source", **change).run(Rows(path), watch)
    assert len(watch.begun) == 2
    assert len(Rows(path)) == 4


def test_other_versions_are_the_same_question(evaluation, tmp_path):
    """Versions and times do not make a row another one."""
    path = tmp_path / "rows.jsonl"
    first = evaluation("source").run(Rows(path))
    watch = Watch()
    second = evaluation("source", fields={**FIELDS, "versions": {"python": "4"}})
    assert second.run(Rows(path), watch) == first
    assert watch.begun == []
    assert {"seconds", "versions", "accuracy"} <= RESULT_FIELDS


def test_a_continual_row_is_run_for_those_behind_it(evaluation, tmp_path):
    """Resuming runs the passes again that later ones depend on, without a second row for them."""
    path = tmp_path / "rows.jsonl"
    whole = evaluation("tent", protocol="continual").run(Rows(None))
    first = {"corruptions": ("gaussian_noise",), "protocol": "continual"}
    evaluation("tent", **first).run(Rows(path))
    resumed = evaluation("tent", protocol="continual").run(Rows(path))
    assert [row["entropy"] for row in resumed] == [row["entropy"] for row in whole]
    assert len(Rows(path)) == 2


def test_what_a_figure_needs_lies_beside_the_rows(evaluation, tmp_path):
    """Each image's answer in stream order, in the file that the row names."""
    path = tmp_path / "rows.jsonl"
    watch = Watch()
    (row,) = evaluation("tent", corruptions=("contrast",), order="sorted").run(Rows(path), watch)
    with np.load(path.parent / row["details"]) as arrays:
        answers = {"predicted", "labels", "entropy", "selected", "version"}
        assert set(arrays.files) == answers | {"confidence", "true_probability"}
        assert (arrays["predicted"] == arrays["labels"]).sum() == row["correct"]
        assert (np.diff(arrays["labels"]) >= 0).all()
        assert arrays["version"].tolist() == np.repeat([0, 1, 2, 3], [8, 8, 8, 6]).tolist()
        assert arrays["entropy"].mean() == pytest.approx(row["entropy"], rel=1e-6)


def test_logits_are_kept_where_they_are_asked_for(evaluation, tmp_path):
    """Handed to the watcher; beside the rows they would be most of the bytes."""
    path, watch = tmp_path / "rows.jsonl", Watch()
    (row, _) = evaluation("tent", logits=True).run(Rows(path), watch)
    assert watch.columns[0]["logits"].shape == (IMAGES, CLASSES)
    with np.load(path.parent / row["details"]) as arrays:
        assert "logits" not in arrays.files


def test_what_is_kept_of_an_image_keeps_nothing_else_alive(model, data):
    """A view of a batch's answers would hold its logits and probabilities: 8 kB an image at
    K = 1000.
    """
    tally = run_stream(create("tent", model), data.open("fog", 5), 8)
    assert all(values.base is None for values in tally.columns.values())
    assert {len(values) for values in tally.columns.values()} == {IMAGES}


def test_channels_of_the_features_are_kept_for_a_figure(evaluation, model, data, tmp_path):
    """Those of the plain view, as the head read them; the row is another than without."""
    path = tmp_path / "rows.jsonl"
    channels = weightiest_channels(model, 3)
    evaluation("source", "ttc", corruptions=("fog",)).run(Rows(path))
    asked = evaluation("source", "ttc", corruptions=("fog",), channels=channels)
    plain, averaged = asked.run(Rows(path))
    assert (len(Rows(path)), plain["channels"]) == (4, channels)
    images = as_batch(np.concatenate([images for images, _ in data.open("fog", 3).batches(8)]))
    with torch.no_grad():
        expected = model.run(model.normalize(model.to_unit(images))).features[:, channels]
        look = BatchLook(0)
        first = model.run(model.normalize(model.to_unit(images[:8])), look=look).features
    with np.load(path.parent / plain["details"]) as arrays:
        np.testing.assert_allclose(arrays["features"], expected.numpy(), atol=1e-5)
    with np.load(path.parent / averaged["details"]) as arrays:
        np.testing.assert_allclose(arrays["features"][:8], first[:, channels].numpy(), atol=1e-5)


def test_the_weightiest_channels_are_those_of_the_largest_columns(model):
    """The head's weights alone choose, so that every method's figure shows the same ones."""
    norms = model.module.get_submodule(model.split).weight.norm(dim=0)
    chosen = weightiest_channels(model, 2)
    assert norms[chosen].tolist() == norms.sort(descending=True).values[:2].tolist()


def test_a_reference_is_trained_on_the_stream_before_it_answers(evaluation, model):
    """With the labels it gets more of them right than the source; each corruption anew."""
    reference = Supervised(model, lr=0.05, passes=8)
    runs = [Run("supervised", reference, 8), *evaluation("norm").runs]
    rows = evaluation(runs=runs).run(Rows(None))
    assert [row["method"] for row in rows] == ["supervised"] * 2 + ["norm"] * 2
    assert all(a["correct"] > b["correct"] for a, b in zip(rows[:2], rows[2:], strict=True))
    assert rows[0]["selection_rate"] is None
    again = evaluation(runs=runs[:1], corruptions=("contrast",)).run(Rows(None))
    assert again[0]["entropy"] == rows[1]["entropy"]


def test_every_run_has_its_own_batch_size(evaluation, model):
    """A line of a figure over batch sizes; each is a row of its own."""
    runs = [Run("tent", create("tent", model), size) for size in (1, 10)]
    rows = evaluation(runs=runs, corruptions=("contrast",)).run(Rows(None))
    assert [(row["batch_size"], row["steps"]) for row in rows] == [(1, 30), (10, 3)]


class Slow(CleanData):
    """Takes its time to read each batch."""

    def open(self, *args: Any, **options: Any) -> Any:
        stream = super().open(*args, **options)
        read = stream.read

        def slowly(places):
            time.sleep(0.05)
            return read(places)

        object.__setattr__(stream, "read", slowly)
        return stream


def test_seconds_exclude_loading(model, data):
    """Reading and corrupting cost nothing in the row; predicting and adapting do."""
    slow = Slow(data._images, data._labels, Geometry(SIZE))
    method = create("source", model)
    warm_up(method, SIZE)
    started = time.perf_counter()
    tally = run_stream(method, slow.open("clean", 5), 5)
    passed = time.perf_counter() - started
    assert passed > 6 * 0.05
    assert 0 < tally.seconds < passed - 6 * 0.05


@pytest.mark.parametrize("name", ["norm", "tent", "ttc"])
def test_warming_up_leaves_the_method_at_the_source(name, model):
    """It runs on a fork."""
    settings = {"statistics": "moving", **({"ga": False} if name == "ttc" else {})}
    method = create(name, model, **settings)
    first = method.predict(make_images(3)).logits
    warm_up(method, SIZE)
    warm_up(method, images=4)
    assert method.version == 0
    assert torch.equal(method.predict(make_images(3)).logits, first)


def test_the_end_of_a_stream_is_told_to_the_method(model, evaluation):
    """TTC with `flush_at_end` steps on what is pending between continual corruptions."""
    entropies = {}
    for flush in (False, True):
        method = create("ttc", model, flush_at_end=flush, samples_per_step=1000)
        runs = [Run("ttc", method, 8)]
        asked = evaluation(runs=runs, protocol="continual", limit=20)
        entropies[flush] = [row["entropy"] for row in asked.run(Rows(None))]
    assert entropies[True][0] == entropies[False][0]
    assert entropies[True][1] != entropies[False][1]


def test_images_become_a_batch(data):
    """(N, H, W, 3) arrays or lists of images: (N, 3, H, W) with the same pixels."""
    images, _ = next(data.open("clean", 5).batches(4))
    for given in (images, list(images)):
        batch = as_batch(given)
        assert batch.shape == (4, 3, SIZE, SIZE)
        assert batch.dtype == torch.uint8
        np.testing.assert_array_equal(batch.numpy(), images.transpose(0, 3, 1, 2))
