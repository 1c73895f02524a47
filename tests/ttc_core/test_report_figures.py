"""Figures from rows: which are drawn, of what, and what text from rows does to them."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np

from tests.fixtures.rows import row, write
from ttc_core.report import write_report
from ttc_core.report.figures import Drawing, batch_sizes, draw, feature_densities
from ttc_core.report.groups import groups
from ttc_core.report.results import Result, read_results


def sizes(rows: list[dict[str, Any]]) -> list[Drawing]:
    return batch_sizes(groups([Result(one) for one in rows]))


def features(folder: Path, values: dict[str, Any], **changes: Any) -> list[Drawing]:
    """Figure 3 of these methods' features, 1,000 values of one channel."""
    rows = [row(name, "fog", 0.7, channels=[5], **changes) for name in values]
    arrays = [{"features": np.reshape(one, (1000, 1)).astype("f4")} for one in values.values()]
    return feature_densities(read_results([write(folder / "rows.jsonl", rows, arrays)]))


def test_figure_2_needs_a_method_at_two_batch_sizes():
    """Under the same corruption; otherwise there is no line to draw."""
    assert sizes([row("tent", "fog", 0.5), row("ttc", "fog", 0.5, batch_size=1)]) == []
    assert sizes([row("tent", "fog", 0.5), row("tent", "snow", 0.5, batch_size=1)]) == []
    assert sizes([row("tent", "clean", 0.5), row("tent", "clean", 0.5, batch_size=1)]) == []
    (drawing,) = sizes([row("tent", "fog", 0.5), row("tent", "fog", 0.5, batch_size=1)])
    assert "bundled, severity 5, small: fog" in drawing.caption


def test_figure_2_averages_over_what_all_points_have():
    """A point over other corruptions than its neighbours would mislead."""
    rows = [row("tent", c, 0.5, batch_size=n) for c in ("fog", "snow") for n in (1, 10)]
    (drawing,) = sizes([*rows, row("tent", "frost", 0.5, batch_size=10)])
    assert "average of 2 corruptions" in drawing.caption


def test_figure_3_says_how_far_densities_overlap(tmp_path):
    """All of it for the same values, nothing for others far away."""
    base = np.random.default_rng(0).normal(size=1000)
    values = {"supervised": base, "ttc": base, "tent": base + 30}
    (drawing,) = features(tmp_path, values)
    assert "TENT 0.00, TTC 1.00" in drawing.caption


def test_figure_3_draws_a_channel_that_is_always_the_same(tmp_path):
    """A dead channel has no density to estimate."""
    (drawing,) = features(tmp_path, {"supervised": np.zeros(1000), "ttc": np.zeros(1000)})
    assert "TTC 1.00" in drawing.caption


def test_figure_3_is_drawn_for_each_corruption(tmp_path):
    """In files of their own."""
    rows = [row("ttc", name, 0.7, channels=[5]) for name in ("fog", "snow")]
    arrays = [{"features": np.random.default_rng(0).normal(size=(1000, 1)).astype("f4")}] * 2
    path = write(tmp_path / "rows.jsonl", rows, arrays)
    drawings = feature_densities(read_results([path]))
    assert [drawing.name for drawing in drawings] == ["figure3", "figure3-2"]


def test_text_from_rows_is_no_formula_and_no_markup():
    """Names from a stranger, in any script, leave a figure whole."""
    odd = r"$\frac{<b>$ & -- \x00 數據"
    rows = [row("tent", "fog", 0.5, data=odd + "\x00", batch_size=size) for size in (1, 10)]
    rows += [row(f"{odd}:M", "fog", 0.5, data=odd + "\x00", batch_size=size) for size in (1, 10)]
    (drawing,) = sizes(rows)
    assert ElementTree.fromstring(drawing.svg).tag.endswith("svg")


def test_a_row_without_its_arrays_costs_only_its_figure(tmp_path):
    """With a sentence."""
    rows = [row("ttc", "fog", 0.7, channels=[5])]
    rows += [row("tent", "fog", 0.5, batch_size=size) for size in (1, 10)]
    arrays = [{"features": np.ones((1000, 1), np.float32)}, None, None]
    results = read_results([write(tmp_path / "rows.jsonl", rows, arrays)])
    (tmp_path / results[0]["details"]).unlink()
    assert [drawing.name for drawing in draw(results, groups(results))] == ["figure2"]
    report = write_report([tmp_path / "rows.jsonl"], tmp_path / "out")
    assert len(report.problems) == 1
