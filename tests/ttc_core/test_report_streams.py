"""Methods × streams in the report: the matrix, and accuracy over the images of each stream."""

from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.rows import answers, row, write
from ttc_core.report import write_report
from ttc_core.report.overview import overview
from ttc_core.report.results import read_results
from ttc_core.report.streams import _curve, change_table, matrices, stream_matrix, window_table

STREAMS = (
    {"order": "iid"},
    {"order": "runs:50"},
    {"order": "iid", "protocol": "changing:250", "corruption": "changing:fog+contrast"},
    {"order": "iid", "mix": "noise:0.2", "judged": 800},
)


def rows_and_arrays():
    rows, arrays = [], []
    for place, stream in enumerate(STREAMS):
        corruptions = [stream["corruption"]] if "corruption" in stream else ["fog", "contrast"]
        for corruption in corruptions:
            for rank, (method, changed) in enumerate(
                (
                    ("source", {}),
                    ("norm", {}),
                    ("source", {"flip": True}),
                )
            ):
                accuracy = 0.4 + 0.1 * rank + 0.05 * place
                beside = answers(accuracy, seed=len(rows))
                made = row(method, corruption, accuracy, changed=changed, limit=1000)
                made |= {"data_digest": f"digest {place}"} | stream | {"corruption": corruption}
                if "mix" in stream:
                    beside["labels"] = np.where(np.arange(1000) % 5 == 0, -1, beside["labels"])
                    correct = int((beside["predicted"] == beside["labels"]).sum())
                    made |= {"correct": correct, "accuracy": correct / 800}
                if "protocol" in stream:
                    beside["condition"] = np.repeat(["fog", "contrast", "fog", "clean"], 250)
                    beside["since_change"] = np.arange(1000) % 250
                rows.append(made)
                arrays.append(beside)
    return rows, arrays


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", *rows_and_arrays())


def test_a_matrix_has_a_line_a_method_and_a_column_a_stream(path):
    """Means over the corruptions, with the paired difference to SOURCE and its error."""
    (matrix,) = matrices(read_results([path]))
    table = stream_matrix(matrix, "streams-1")
    assert table.header == ["Method", "iid", "runs:50", "changing:250", "mix noise:0.2"]
    assert [line[0].text for line in table.lines] == ["SOURCE", "SOURCE (flip=true)", "NORM"]
    source, flipped, norm = (line[1:] for line in table.lines)
    assert [cell.text for cell in source[:3]] == ["40.0", "45.0", "50.0"]
    assert [cell.value for cell in norm[:3]] == pytest.approx([50, 55, 60])
    _, arrays = rows_and_arrays()
    right = [each["predicted"] == each["labels"] for each in arrays]
    paired = np.mean([right[1], right[4]], axis=0) - np.mean([right[0], right[3]], axis=0)
    error = 100 * paired.std(ddof=1) / 1000**0.5
    assert norm[0].text == f"50.0 (+10.0 ± {error:.1f})"
    assert flipped[0].best


def test_images_that_are_mixed_in_are_no_observations(path):
    """Neither right nor wrong, in the difference and its error."""
    (matrix,) = matrices(read_results([path]))
    cell = stream_matrix(matrix, "streams-1").lines[2][4]
    _, arrays = rows_and_arrays()
    judged = arrays[-1]["labels"] >= 0
    right = [(each["predicted"] == each["labels"])[judged] for each in arrays[-6:]]
    paired = np.mean([right[1], right[4]], axis=0) - np.mean([right[0], right[3]], axis=0)
    assert cell.beside["difference"] == pytest.approx(100 * paired.mean())
    assert cell.beside["difference_error"] == pytest.approx(100 * paired.std(ddof=1) / 800**0.5)


def test_the_report_begins_with_one_matrix_and_has_a_figure_a_stream(tmp_path):
    """On the page and as files of its own; windows and changes come behind it."""
    rows, arrays = rows_and_arrays()
    two = [number for number, one in enumerate(rows) if one["order"] == "iid" and "mix" not in one]
    path = write(tmp_path / "rows.jsonl", [rows[n] for n in two], [arrays[n] for n in two])
    report = write_report([path], tmp_path / "out")
    assert report.problems == []
    names = {each.name for each in (tmp_path / "out").iterdir()}
    assert {"overview.md", "overview.csv", "streams.md", "windows-1.csv"} <= names
    matrix = (tmp_path / "out" / "overview.md").read_text()
    assert "| Method | iid | changing:250 |" in matrix
    assert matrix.count("| Method |") == 1
    assert "| Method | iid |" not in (tmp_path / "out" / "accuracy.md").read_text()
    for name in ("iid", "changing-250"):
        assert {f"stream-{name}.png", f"stream-{name}.svg"} <= names
    page = (tmp_path / "out" / "index.html").read_text()
    ids = ("overview", "streams", "accuracy")
    assert sorted(ids, key=lambda one: page.index(f'<section id="{one}"')) == list(ids)
    assert "Dashed lines mark where the conditions change" in page
    assert page.count("<table", 0, page.index('<section id="streams"')) == 1


def test_the_matrix_is_one_over_all_data_networks_and_batch_sizes(tmp_path):
    """A column says where it is, a line its batch size; what did not run there has no number."""
    rows, arrays = rows_and_arrays()
    kept = [number for number in range(6) if rows[number]["settings"].get("flip") is not True]
    rows, arrays = [rows[n] for n in kept], [arrays[n] for n in kept]
    rows += [one | {"model": "large", "batch_size": 10} for one in rows if one["method"] == "norm"]
    arrays += arrays[-2:]
    found = matrices(read_results([write(tmp_path / "rows.jsonl", rows, arrays)]), fewest=1)
    table = overview(found)
    assert table.header == ["Method", "bundled, model small: iid", "bundled, model large: iid"]
    cells = [[cell.text.partition(" (")[0] for cell in line] for line in table.lines]
    assert cells == [
        ["SOURCE, N = 100", "40.0", "–"],  # noqa: RUF001
        ["NORM, N = 100", "50.0", "–"],  # noqa: RUF001
        ["NORM, N = 10", "–", "50.0"],  # noqa: RUF001
    ]
    assert [line[1].best for line in table.lines] == [False, True, False]
    assert "on bundled" not in table.caption


def test_one_stream_alone_is_a_matrix_too(tmp_path):
    """Of one column: a table by corruption has fifteen. No windows are told of it."""
    rows, arrays = rows_and_arrays()
    path = write(tmp_path / "alone.jsonl", rows[:6], arrays[:6])
    assert matrices(read_results([path])) == []
    write_report([path], tmp_path / "out")
    text = (tmp_path / "out" / "overview.md").read_text()
    assert text.startswith("**Methods × streams: accuracy in % on bundled, model small**")
    assert "| Method | iid |" in text
    assert not (tmp_path / "out" / "streams.md").exists()


def test_what_was_not_answered_whole_makes_no_matrix(tmp_path):
    """Nor do rows without accuracy."""
    assert overview([]) is None
    path = write(tmp_path / "rows.jsonl", [row("source", "fog", None)])
    write_report([path], tmp_path / "out")
    assert not (tmp_path / "out" / "overview.md").exists()


def test_a_curve_is_the_mean_of_the_images_around(path):
    """Changes are marked where they are; rows that follow each other are one stream."""
    results = read_results([path])
    curve, marks = _curve([one for one in results if one["protocol"] == "changing:250"][:1])
    assert marks == {0: "fog", 250: "contrast", 500: "fog", 750: "clean"}
    arrays = results[12].arrays()
    right = arrays["predicted"] == arrays["labels"]
    assert curve[500] == pytest.approx(right[475:525].mean())
    assert len(curve) == 1000


def test_visits_follow_one_another_in_a_figure(tmp_path):
    """In the order in which they came, however the rows are sorted."""
    rows, arrays = [], []
    for number, name in enumerate(("fog", "contrast", "fog", "contrast")):
        after = ["fog", "contrast", "fog", "contrast"][:number]
        visit = 1 + number // 2
        rows.append(row("source", name, 0.2 * number, after=after, visit=visit))
        arrays.append(answers(0.2 * number))
    path = write(tmp_path / "rows.jsonl", rows[::-1], arrays[::-1])
    curve, marks = _curve(read_results([path]))
    assert marks == {0: "fog", 1000: "contrast", 2000: "fog", 3000: "contrast"}
    assert len(curve) == 4000
    assert curve[500] == 0
    assert 0.4 < curve[3500] < 0.8


def test_the_worst_window_is_the_one_farthest_below_source(tmp_path):
    """In standard errors; what is more than chance among so many windows is marked."""
    rows, arrays = rows_and_arrays()
    for number in (1, 4):  # NORM on the first stream: wrong from image 500 on, under one corruption
        arrays[number]["predicted"] = arrays[number]["labels"].copy()
    arrays[4]["predicted"][500:] = (arrays[4]["labels"][500:] + 1) % 10
    (matrix,) = matrices(read_results([write(tmp_path / "rows.jsonl", rows, arrays)]))
    table = window_table(matrix, "windows-1")
    right = arrays[3]["predicted"] == arrays[3]["labels"]
    cells = {line[0].text: line[1] for line in table.lines}
    assert list(cells) == ["SOURCE (flip=true)", "NORM"]
    worst = -100 * right[500:].mean()
    assert cells["NORM"].value == pytest.approx(worst)
    assert cells["NORM"].text.endswith("†")
    assert cells["NORM"].beside["windows"] == 4
    assert "†" not in cells["SOURCE (flip=true)"].text
    left = [number for number, one in enumerate(rows) if one["method"] != "source"]
    path = write(tmp_path / "b.jsonl", [rows[n] for n in left], [arrays[n] for n in left])
    (matrix,) = matrices(read_results([path]))
    assert window_table(matrix, "windows") is None


def test_seeds_are_averaged_and_what_is_unfinished_has_no_mean(tmp_path):
    """Seeds are independent streams; a mean over fewer corruptions would be another figure."""
    rows, arrays = [], []
    for seed, accuracy in ((0, 0.5), (1, 0.7)):
        for order in ("iid", "runs:50"):
            for method, more in (("source", 0.0), ("norm", 0.1)):
                made = row(method, "fog", accuracy + more, seed=seed, order=order)
                rows.append(made | {"data_digest": f"{seed} {order}"})
                arrays.append(answers(accuracy + more, seed=len(rows)))
    path = write(tmp_path / "a.jsonl", rows, arrays)
    (matrix,) = matrices(read_results([path]))
    norm = stream_matrix(matrix, "streams").lines[1]
    assert norm[1].value == pytest.approx(70)
    assert norm[1].beside["difference"] == pytest.approx(10)
    assert norm[1].beside["difference_error"] == pytest.approx(1.5, abs=0.3)
    path = write(tmp_path / "b.jsonl", rows[:-1], arrays[:-1])
    (matrix,) = matrices(read_results([path]))
    assert [cell.text for cell in stream_matrix(matrix, "streams").lines[1][1:]][1] == "–"  # noqa: RUF001


def test_accuracy_is_told_by_how_long_conditions_have_lasted(tmp_path):
    """Of changes within a stream and between rows; not before the first, nor of short stretches."""
    lasted = np.tile(np.arange(500), 2)
    within = {"labels": np.zeros(1000, int), "predicted": np.where(lasted < 50, 1, 0)}
    within |= {"since_change": lasted, "condition": np.repeat(["fog", "clean"], 500)}
    within["predicted"][:500] = 1
    short = within | {"since_change": np.tile(np.arange(250), 4)}
    visit = {"labels": np.zeros(600, int), "predicted": np.where(np.arange(600) < 150, 0, 1)}
    rows = [
        row("source", "changing:fog", 0.45, protocol="changing:500"),
        row("source", "changing:fog", 0.45, protocol="changing:250"),
        row("source", "fog", 0.25, protocol="continual", images=600, correct=150, after=[]),
        row("source", "clean", 0.25, protocol="continual", images=600, correct=150, after=["fog"]),
    ]
    beside = [within, short, visit, visit]
    (matrix,) = matrices(read_results([write(tmp_path / "rows.jsonl", rows, beside)]))
    table = change_table(matrix, "changes")
    assert table.header[1:] == ["0 to 50", "50 to 150", "150 to 300", "300 to 500"]
    cells = {line[0].text: [cell.text for cell in line[1:]] for line in table.lines}
    assert cells == {
        "file, changing:500: SOURCE": ["0.0", "100.0", "100.0", "100.0"],
        "file, continual: SOURCE": ["100.0", "100.0", "0.0", "0.0"],
    }


def test_without_source_there_is_no_difference(tmp_path):
    """Nor where it answered other images."""
    rows, arrays = rows_and_arrays()
    kept = [number for number, one in enumerate(rows) if one["method"] != "source"]
    path = write(tmp_path / "a.jsonl", [rows[n] for n in kept], [arrays[n] for n in kept])
    (matrix,) = matrices(read_results([path]))
    assert stream_matrix(matrix, "streams").lines[-1][1].text == "50.0"
    for number in (0, 3):
        arrays[number]["labels"] = arrays[number]["labels"][::-1].copy()
    (matrix,) = matrices(read_results([write(tmp_path / "b.jsonl", rows, arrays)]))
    assert stream_matrix(matrix, "streams").lines[-1][1].text == "50.0"
