"""Two different results are never shown as one, in no table and no figure."""

import csv
import json
from io import StringIO
from typing import Any

import numpy as np
import pytest

from service.view import results_table
from tests.fixtures.rows import answers, row, write
from ttc_core.report import write_report
from ttc_core.report.comparison import mcnemar_table
from ttc_core.report.configuration import configurations
from ttc_core.report.figures import batch_sizes, feature_densities, probabilities
from ttc_core.report.groups import Group, groups
from ttc_core.report.results import Result, read_results
from ttc_core.report.tables import accuracy_table
from ttc_core.report.tables_across_data import batch_size_table, component_table
from ttc_core.rows import RESULT_FIELDS, Rows, setting

RESULTS = dict.fromkeys(("entropy", "selection_rate", "steps", "images_per_second"))


def grouped(rows: list[dict[str, Any]]) -> list[Group]:
    return groups(Result(one) for one in rows)


def shown(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, list[str]]]]:
    tables = [accuracy_table(group, "accuracy") for group in grouped(rows)]
    return [
        (table.caption, {line[0].text: [cell.text for cell in line[1:]] for line in table.lines})
        for table in tables
    ]


def test_a_number_is_not_the_truth_value_that_is_the_default():
    """Though to Python 0 is False: the settings are told."""
    told = [
        one.told
        for one in configurations(
            {"method": "norm", "classes": 10, "model": "m", "settings": {"flip": flip}}
            for flip in (False, 0)
        )
    ]
    assert told == [{}, {"flip": 0}]


DIFFERENCES: list[dict[str, Any]] = [
    {"mean": [0.5, 0.5, 0.5]},
    {"std": [0.2, 0.2, 0.2]},
    {"model_digest": "0123456789abcdef"},
    {"data_digest": "0123456789abcdef"},
    {"device": "cuda:0"},
    {"mode": "open"},
    {"mode": "closed", "concurrency": 4},
    {"rate": 50.0},
    {"stream": "gate"},
    {"arrivals": "even"},
    {"order": "dirichlet:0.1"},
    {"seed": 1},
    {"limit": 200},
    {"a_field_of_tomorrow": True},
    {"protocol": "continual"},
    {"model": "other"},
    {"data": "other"},
    {"server": {"adapt": "never"}},
    {"server": {"max_batch": 10}},
    {"precision": "bfloat16"},
    {"server": {"precision": "bfloat16"}},
]


@pytest.mark.parametrize("change", DIFFERENCES, ids=str)
def test_whatever_tells_two_rows_apart_keeps_them_apart(change):
    """In tables of their own, whose captions say in what they differ."""
    (first, one), (second, other) = shown(
        [row("ttc", "fog", 0.5), row("ttc", "fog", 0.9, **change)]
    )
    assert (one["TTC"][0], other["TTC"][0]) == ("50.0", "90.0")
    assert first != second
    for name, value in (change.get("server") or change).items():
        assert name.replace("_", " ") in second or str(value) in second


LINES = [*DIFFERENCES, {"batch_size": 20}, {"changed": {"lr": 0.5}}, {"method": "tent"}]


@pytest.mark.parametrize("change", LINES, ids=str)
def test_a_terminal_shows_them_as_two_lines(change):
    """With equal numbers, too, and an average each."""
    both = [{"method": "ttc"} | one for one in ({}, change)]
    rows = [row(corruption=c, accuracy=0.5, **one) for one in both for c in ("fog", "snow")]
    table = results_table([{**RESULTS, **one} for one in rows])
    heads = [column.header for column in table.columns]
    told = heads.index("corruption")
    lines = list(zip(*(column.cells for column in table.columns[: told + 1]), strict=True))
    assert len(set(lines)) == len(lines) == 6


@pytest.mark.parametrize("change", DIFFERENCES, ids=str)
def test_what_is_there_is_the_answer_to_no_other_question(change):
    """`evaluate` runs what differs in any of them."""
    rows = Rows(None)
    rows.append(row("ttc", "fog", 0.5))
    assert rows.find(row("ttc", "fog", 0.9)) is not None
    assert rows.find(row("ttc", "fog", 0.9, **change)) is None


@pytest.mark.parametrize("change", DIFFERENCES, ids=str)
def test_the_page_lists_them_as_two_runs(change, tmp_path):
    """Each with its setting."""
    rows = [row("ttc", "fog", 0.5), row("ttc", "fog", 0.9, **change)]
    write_report([write(tmp_path / "rows.jsonl", rows)], tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    runs = page[page.index("What was run") :].split("<details>")[1:]
    assert len(set(runs)) == 2


def test_numbers_that_differ_in_their_last_digit_are_told_apart():
    """Nothing of a setting is rounded."""
    (first, _), (second, _) = shown([row("ttc", "fog", 0.5, rate=rate) for rate in (1.0, 1.00001)])
    assert first != second
    lrs = [row("ttc", "fog", 0.5, changed={"lr": lr}) for lr in (0.1, 0.1000001)]
    assert list(shown(lrs)[0][1]) == ["TTC (lr=0.1)", "TTC (lr=0.1000001)"]


def test_what_the_digest_of_a_model_covers_is_not_said_beside_it():
    """A replay's row has no mean; that its weights and preprocessing are the same is known."""
    evaluated = row("ttc", "fog", 0.5, model_digest="a", mean=[0.1], std=[0.2])
    (first, _), (second, _) = shown(
        [evaluated, row("ttc", "fog", 0.5, model_digest="a", mode="open")]
    )
    assert "mode offline" in first
    assert "mode open" in second
    assert not [word for word in ("mean", "std", "digest") if word in first + second]


def test_what_an_older_row_does_not_tell_is_said_where_it_matters():
    """Beside one that tells it; alone it is nobody's question. A row without a mode is offline."""
    older = row("ttc", "fog", 0.5)
    ((alone, _),) = shown([older])
    assert "unknown" not in alone
    (first, _), _ = shown([older, row("ttc", "fog", 0.5, model_digest="a", mode="lockstep")])
    assert "mode offline, model digest unknown" in first
    lacking = row("ttc", "fog", 0.9)
    del lacking["settings"]["augmentation"]
    ((_, lines),) = shown([older, lacking])
    assert list(lines) == ["TTC (augmentation=horizontal_flip)", "TTC (augmentation=unknown)"]


@pytest.mark.parametrize("change", DIFFERENCES, ids=str)
def test_tables_across_data_and_figures_keep_them_apart(change):
    """A column, panel or picture each, and their heads differ."""
    pairs = [{}, change]
    off = {name: False for name in ("rla", "spc", "ss")}
    rows = [row("tent", "fog", 0.5, batch_size=size, **one) for size in (1, 20) for one in pairs]
    rows += [row("ttc", "fog", 0.5, changed=off, batch_size=20, **one) for one in pairs]
    found = grouped(rows)
    for table in (batch_size_table(found), component_table(found)):
        assert table is not None
        assert len(set(table.header)) == 3
    (figure,) = batch_sizes(found)
    assert figure.caption.count("fog") == 2


def test_a_benchmarks_corruptions_have_files_of_their_own():
    """They stand in one table, until one was measured on files that were changed."""
    data = {"data": "cifar10c:x"}
    rows = [row("ttc", "fog", 0.5, data_digest="a", **data)]
    rows += [row("ttc", "snow", 0.6, data_digest="b", **data)]
    ((_, lines),) = shown(rows)
    assert lines["TTC"] == ["60.0", "50.0", "55.0"]
    changed = [row("tent", "fog", 0.9, data_digest="c", **data)]
    (_, one), (caption, other) = shown(rows + changed)
    assert (list(one), other["TENT"][0]) == (["TTC"], "90.0")
    assert "data state 1" in caption


def continual(corruption: str, accuracy: float, *after: str, **more: Any) -> dict[str, Any]:
    more = {"protocol": "continual", "after": list(after), "after_severity": 5} | more
    return row("tent", corruption, accuracy, **more)


def test_what_came_before_counts_in_a_continual_pass():
    """One pass is one line; fog at its beginning and fog behind snow are two results."""
    rows = [continual("fog", 0.3), continual("snow", 0.4, "fog")]
    ((caption, lines),) = shown(rows)
    assert caption.endswith("in the order fog, snow")
    assert lines["TENT"][:2] == ["40.0", "30.0"]
    rows += [continual("snow", 0.5), continual("fog", 0.8, "snow")]
    (_, one), (_, other) = shown(rows)
    assert (one["TENT"][:2], other["TENT"][:2]) == (["40.0", "30.0"], ["50.0", "80.0"])


def test_a_shorter_pass_is_the_beginning_of_longer_ones():
    """It stands in each; clean images stand beside the severity that they came after."""
    rows = [continual("fog", 0.3), continual("snow", 0.4, "fog"), continual("frost", 0.5, "fog")]
    assert [lines["TENT"][1] for _, lines in shown(rows)] == ["30.0", "30.0"]
    clean = [continual("fog", 0.3, severity=level, after_severity=level) for level in (5, 3)] + [
        continual("clean", 0.1 * level, "fog", after_severity=level) for level in (5, 3)
    ]
    assert [lines["TENT"][0] for _, lines in shown(clean)] == ["50.0", "30.0"]


@pytest.mark.parametrize(
    "lost", [{"asked": 200}, {"refused": {"429": 100}, "errors": {"500": 97}}, {"dropped": 197}]
)
def test_part_of_the_answers_never_passes_for_all(lost, tmp_path):
    """The cell says how many, is not the best, makes no average and replaces no whole row."""
    part = row("ttc", "fog", 1.0, images=3, correct=3, **lost)
    ((_, lines),) = shown([part, row("tent", "fog", 0.5)])
    assert lines["TTC"] == ["100.0 (3 of 200 images)", "–"]  # noqa: RUF001
    table = accuracy_table(grouped([part, row("tent", "fog", 0.5)])[0], "accuracy")
    assert [line[1].best for line in table.lines] == [True, False]
    assert next(csv.DictReader(StringIO(accuracy_table(grouped([part])[0], "a").csv())))[
        "fog_asked"
    ]
    for rows in ([part, row("ttc", "fog", 0.5)], [row("ttc", "fog", 0.5), part]):
        assert shown(rows)[0][1]["TTC"][0] == "50.0"
    arrays = answers(1.0, images=200)
    path = write(tmp_path / "rows.jsonl", [part, row("tent", "fog", 0.5)], [arrays, answers(0.5)])
    (group,) = groups(read_results([path]))
    assert mcnemar_table(group, "tent", "mcnemar") is None
    assert len(write_report([path], tmp_path / "out").problems) == 0


def test_a_server_that_restarted_midway_answers_for_no_method():
    """All images have answers, but of two histories."""
    ((_, lines),) = shown([row("ttc", "fog", 0.5, restarted=True)])
    assert lines["TTC"] == ["50.0 (server restarted)", "–"]  # noqa: RUF001


def test_a_second_measurement_of_the_same_is_said(tmp_path):
    """The last one is shown; that there was another result is told."""
    path = write(tmp_path / "rows.jsonl", [row("ttc", "fog", a) for a in (0.5, 0.75)])
    report = write_report([path], tmp_path / "out")
    (problem,) = report.problems
    assert "2 rows of TTC on fog" in problem
    assert "0.5, 0.75" in problem
    assert "75.0" in report.accuracy
    path = write(tmp_path / "same.jsonl", [row("ttc", "fog", 0.5)] * 2)
    assert write_report([path], tmp_path / "out").problems == []


def test_an_average_says_over_how_many_corruptions_it_is():
    """Over the fifteen it is the paper's; over two it is another number."""
    (group,) = grouped([row("ttc", name, 0.5) for name in ("fog", "snow", "clean", "mixed")])
    assert accuracy_table(group, "accuracy").header[-1] == "Avg of 2"


def test_figure_3_keeps_orders_protocols_and_settings_apart(tmp_path):
    """A picture for each setting, whose title says it; two settings of a method are two curves."""
    random = np.random.default_rng(0)
    changes: list[dict[str, Any]] = [{}, {"order": "iid"}, {"protocol": "continual"}]
    changes += [{"device": "cuda:0"}, {"mode": "lockstep"}, {"model_digest": "a"}]
    rows = [row("ttc", "fog", 0.7, channels=[3], **change) for change in changes]
    rows.append(row("ttc", "fog", 0.7, channels=[3], changed={"lr": 0.5}))
    arrays = [{"features": random.normal(size=(1000, 1)).astype(np.float32)} for _ in rows]
    drawn = feature_densities(read_results([write(tmp_path / "rows.jsonl", rows, arrays)]))
    assert len({drawing.title for drawing in drawn}) == 6
    assert "order iid" in drawn[1].title


def test_figure_1_draws_every_simulation(tmp_path):
    """Another learning rate is another figure."""
    base = dict.fromkeys(("data", "model", "corruption", "accuracy", "batch_size"))
    rows = [base | {"method": "entropy_minimisation", "settings": {"lr": lr}} for lr in (1.0, 0.1)]
    arrays = [{"probabilities_2": np.full((4, 2), 0.5, np.float32)}] * 2
    path = write(tmp_path / "rows.jsonl", rows, arrays)
    captions = [drawing.caption for drawing in probabilities(read_results([path]))]
    assert "rate 1.0" in captions[0]
    assert "rate 0.1" in captions[1]


def test_the_papers_line_needs_the_papers_order():
    """Class after class is another question."""
    paper = {"data": "cifar10c:x", "model": "cifar/wrn28-10@y"}
    assert len(shown([row("ttc", "fog", 0.9, **paper)])[0][1]) == 2
    assert len(shown([row("ttc", "fog", 0.9, order="sorted", **paper)])[0][1]) == 1


def test_results_are_no_part_of_the_setting():
    """What was found, when, by which version: two rows may differ in it and measure the same."""
    row = {"method": "ttc", **dict.fromkeys(RESULT_FIELDS, 1), "limit": None}
    assert setting(row) == setting({"method": "ttc"})


@pytest.mark.parametrize(
    "name", ["/dev/zero", "../rows.jsonl", "rows.jsonl", "rows.jsonl.d"], ids=str
)
def test_arrays_are_read_from_beside_the_rows_alone(name, tmp_path):
    """A stranger's rows make the report read no other file, and no device without end."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row("ttc", "fog", 0.5, details=name)) + "\n")
    (tmp_path / "rows.jsonl.d").mkdir()
    report = write_report([path], tmp_path / "out")
    assert any("cannot be read" in problem for problem in report.problems)


def test_halves_of_characters_are_shown_somehow(tmp_path):
    """A folder's name in another encoding is no reason to fail."""
    path = write(tmp_path / "rows.jsonl", [row("ttc", "fog", 0.5, data="folder:/\udcff")])
    write_report([path], tmp_path / "out").accuracy.encode()


def test_the_report_does_not_write_over_its_rows(tmp_path):
    """A rows file that is named like one of the report's."""
    path = write(tmp_path / "accuracy.md", [row("ttc", "fog", 0.5)])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="holds the rows"):
        write_report([path], tmp_path)
    assert path.read_bytes() == before
