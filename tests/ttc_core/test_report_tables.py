"""Tables in the paper's form, from rows."""

import csv
from io import StringIO
from typing import Any

import pytest

from tests.fixtures.rows import answers, every_table, row, write
from ttc_core.corruptions import CORRUPTIONS
from ttc_core.methods import METHODS
from ttc_core.report import write_report
from ttc_core.report.comparison import mcnemar_table
from ttc_core.report.groups import Group, groups
from ttc_core.report.results import Result, read_results
from ttc_core.report.table import Table
from ttc_core.report.tables import SHORT_NAMES, accuracy_table, augmentation_table
from ttc_core.report.tables_across_data import batch_size_table, component_table

WIDE_RESNET = {"data": "cifar10c:x", "model": "cifar/wrn28-10@y"}


def grouped(rows: list[dict[str, Any]]) -> list[Group]:
    return groups(Result(one) for one in rows)


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    return [accuracy_table(group, "accuracy") for group in grouped(rows)]


def lines(table: Table) -> dict[str, list[str]]:
    return {line[0].text: [cell.text for cell in line[1:]] for line in table.lines}


# Tables 2, 3, 4 and 6


def test_the_columns_are_the_papers():
    """All fifteen in the paper's order, under its short names, then the average."""
    (table,) = tables([row("source", name, 0.5) for name in reversed(CORRUPTIONS)])
    header = table.markdown().splitlines()[2]
    assert header == (
        "| Method | gaus | shot | impul | defcs | gls | mtn | zm | snw | frst | fg | brt | cnt "
        "| els | px | jpg | Avg |"
    )
    assert list(SHORT_NAMES) == list(CORRUPTIONS)


def test_a_table_in_full():
    """Percent with one decimal, methods in the paper's order, the best of a column in bold."""
    (table,) = tables(
        [
            row("my.own:Method", "fog", 0.8),
            row("ttc", "fog", 0.9004),
            row("ttc", "gaussian_noise", 0.25),
            row("source", "gaussian_noise", 0.6666),
            row("source", "fog", 0.9),
        ]
    )
    assert table.markdown() == (
        "**Accuracy in % on bundled, severity 5; model small, batches of 100, order file, "
        "episodic, seed 0**\n\n"
        "| Method | gaus | fg | Avg of 2 |\n"
        "|---|---|---|---|\n"
        "| SOURCE | **66.7** | **90.0** | **78.3** |\n"
        "| TTC | 25.0 | **90.0** | 57.5 |\n"
        "| my.own:Method | – | 80.0 | – |\n"  # noqa: RUF001
    )


def test_the_average_is_over_the_corruptions():
    """Clean stands beside them and is not averaged in; a gap leaves the average out."""
    (table,) = tables(
        [
            row("tent", "clean", 1.0),
            row("tent", "fog", 0.5),
            row("tent", "snow", 0.25),
            row("norm", "fog", 0.5),
            row("norm", "clean", 1.0),
        ]
    )
    assert table.columns == ["method", "clean", "snow", "fog", "average"]
    assert [line[-1].value for line in table.lines] == [None, 37.5]


def test_clean_goes_beside_every_severity():
    """It has none of its own, so it belongs to each table of the same setting."""
    rows = [row("tent", "clean", 0.9), row("tent", "fog", 0.5), row("tent", "fog", 0.7, severity=3)]
    assert [lines(table)["TENT"][:2] for table in tables(rows)] == [
        ["90.0", "50.0"],
        ["90.0", "70.0"],
    ]
    (alone,) = tables(rows[:1])
    assert lines(alone)["TENT"][0] == "90.0"
    assert "severity" not in alone.caption


def test_the_last_row_of_a_cell_counts():
    """A repeated measurement replaces the earlier one."""
    (table,) = tables([row("tent", "fog", 0.5), row("tent", "fog", 0.75)])
    assert lines(table)["TENT"] == ["75.0", "75.0"]


@pytest.mark.parametrize(
    "change",
    [
        {"data": "other"},
        {"model": "other"},
        {"batch_size": 1},
        {"order": "iid"},
        {"protocol": "continual"},
        {"severity": 3},
    ],
    ids=str,
)
def test_what_cannot_be_compared_stands_in_tables_of_its_own(change):
    """Each named in its caption."""
    found = tables([row("tent", "fog", 0.5), row("ttc", "fog", 0.6, **change)])
    assert [list(lines(table)) for table in found] == [["TENT"], ["TTC"]]
    assert str(*change.values()) in found[1].caption


def test_mixtures_are_columns_of_their_own():
    """Behind the fifteen, under their own names; the average, of the others, has them already."""
    (table,) = tables([row("tent", "mixed:fog+snow", 0.5), row("tent", "fog", 0.6)])
    assert table.header == ["Method", "fg", "mixed:fog+snow", "Avg of 1"]
    assert lines(table)["TENT"] == ["60.0", "50.0", "60.0"]


def test_a_variant_is_named_by_what_is_not_its_default():
    """Also where it is the only one of its method; per data set."""
    rows = [
        row("ttc", "fog", 0.5, changed={"kappa_detach": True, "lr": 0.01}),
        row("tent", "fog", 0.5, changed={"flip": True}),
        row("tent", "fog", 0.5),
    ]
    assert list(lines(tables(rows)[0])) == [
        "TENT (flip=true)",
        "TENT",
        "TTC (lr=0.01, kappa_detach=true)",
    ]
    sgd = row("tent", "fog", 0.5, changed={"optimizer": "sgd"}, classes=1000)
    assert list(lines(tables([sgd])[0])) == ["TENT"]


def test_where_defaults_are_not_known_variants_are_named_by_what_differs():
    """Rows from before the number of classes was written, and methods of one's own."""
    rows = [row("my.own:M", "fog", 0.5, settings={"a": a, "b": 1}) for a in (1, 2)]
    assert list(lines(tables(rows)[0])) == ["my.own:M (a=1)", "my.own:M (a=2)"]
    old = row("ttc", "fog", 0.5, changed={"lr": 0.01}, classes=None)
    assert list(lines(tables([old])[0])) == ["TTC"]


def test_a_row_takes_the_classes_from_another_of_its_network():
    """So that a replay, which does not tell them, is named as the evaluation beside it."""
    settings = {"changed": {"lr": 0.01}}
    rows = [
        row("ttc", "fog", 0.5, mode="lockstep", classes=None, **settings),
        row("tent", "fog", 1),
    ]
    assert [list(lines(table)) for table in tables(rows)] == [["TTC (lr=0.01)"], ["TENT"]]


def test_a_method_of_ones_own_is_no_line_of_the_papers():
    """Whatever its name begins with."""
    names = ("ttc_too:M", "ttc (augmentation=rotation)")
    rows = [row(name, "fog", 0.8, settings={}, **WIDE_RESNET) for name in names]
    (group,) = grouped([*rows, row("ttc", "fog", 0.8, **WIDE_RESNET)])
    assert augmentation_table(group) is None
    assert [line.configuration.rank for line in group.lines][1:] == [len(METHODS)] * 2
    (table,) = tables(rows)
    assert list(lines(table)) == list(names)


def test_the_papers_line_stands_below_ours():
    """In italics, never in bold, and only where all is the paper's."""
    rows = [row("ttc", name, 0.999, **WIDE_RESNET) for name in CORRUPTIONS]
    (table,) = tables(rows)
    assert list(lines(table)) == ["TTC", "TTC, paper"]
    assert lines(table)["TTC, paper"][0] == "77.7"
    assert lines(table)["TTC, paper"][-1] == "82.5"
    assert "| *77.7* |" in table.markdown()
    for change in (
        {"batch_size": 20},
        {"severity": 4},
        {"limit": 100},
        {"protocol": "continual"},
        {"model": "cifar/resnet20@y"},
        {"changed": {"lr": 0.1}},
    ):
        other = [row("ttc", "fog", 0.9, **(WIDE_RESNET | change))]
        assert len(tables(other)[0].lines) == 1, change


def test_the_papers_average_stands_only_beside_all_fifteen():
    """An average of fewer would be another number."""
    (table,) = tables([row("ttc", "fog", 0.9, **WIDE_RESNET)])
    assert lines(table)["TTC, paper"] == ["87.0", "–"]  # noqa: RUF001


def test_accuracies_have_intervals():
    """Wilson's, in the CSV and in a table beside; averages by image where the answers are kept."""
    (table,) = tables([row("tent", "fog", 0.5)])
    (interval,) = [line[1].interval for line in table.lines]
    assert (interval.low, interval.high) == pytest.approx((46.9, 53.1), abs=0.05)
    beside = table.intervals()
    assert beside is not None
    assert "46.9 to 53.1" in beside.markdown()
    assert table.lines[0][2].interval is None


def test_the_csv_has_full_precision():
    """One line a method, empty where there is no row, long names, the intervals' ends."""
    rows = [row("source", "fog", 2 / 3), row("ttc", "snow", 0.5), row("ttc", "fog", 1 / 3)]
    (table,) = tables(rows)
    found = list(csv.DictReader(StringIO(table.csv())))
    assert list(found[0])[:4] == ["method", "snow", "snow_low", "snow_high"]
    assert (found[0]["method"], found[0]["snow"]) == ("source", "")
    assert float(found[0]["fog"]) == pytest.approx(200 / 3, rel=1e-12)
    assert float(found[1]["average"]) == pytest.approx((50 + 100 / 3) / 2, rel=1e-12)


def test_rows_without_an_accuracy_are_no_cells():
    """A replay of which nothing was answered, a simulation, and the reference of Figure 3."""
    assert tables([row("tent", "fog", None)]) == []
    assert tables([row("supervised", "fog", 0.9, channels=[1])]) == []
    assert tables([]) == []


# Tables 1, 5 and 7


def test_table_1_is_tent_at_small_batches_beside_source():
    """An average for each data set; a size that was not run is a gap."""
    rows = [row("source", c, 0.4) for c in ("fog", "snow")]
    rows += [row("tent", c, 0.1, batch_size=1) for c in ("fog", "snow")]
    rows += [row("tent", c, 0.9, batch_size=1, data="other") for c in ("fog", "snow")]
    table = batch_size_table(grouped(rows))
    assert table is not None
    assert lines(table) == {
        "SOURCE": ["40.0", "–"],  # noqa: RUF001
        "TENT (batch size 1)": ["10.0", "90.0"],
        "TENT (batch size 20)": ["–", "–"],  # noqa: RUF001
    }
    assert batch_size_table(grouped([row("tent", "fog", 0.5)])) is None


def test_table_5_is_ttc_by_augmentation():
    """In the paper's order, under its names, with its lines where they are its own."""
    rows = [
        row("ttc", "fog", 0.8, changed={"augmentation": name}, **WIDE_RESNET)
        for name in ("vertical_flip", "horizontal_flip", "rotation")
    ]
    (group,) = grouped(rows)
    table = augmentation_table(group)
    assert table is not None
    expected = [
        "RandRot",
        "RandRot, paper",
        "VerFlip",
        "VerFlip, paper",
        "HorFlip",
        "HorFlip, paper",
    ]
    assert list(lines(table)) == expected
    assert lines(table)["VerFlip, paper"][0] == "75.7"
    assert augmentation_table(grouped(rows[:1])[0]) is None


def test_table_7_has_the_gain_of_each_part_over_tent():
    """Exactly one switch on; the paper's figures where they belong."""
    parts = ("rla", "spc", "ss", "ga")
    rows = [row("tent", name, 0.8, **WIDE_RESNET) for name in CORRUPTIONS]
    for part in parts:
        off = {name: False for name in parts if name != part}
        rows += [row("ttc", name, 0.82, changed=off, **WIDE_RESNET) for name in CORRUPTIONS]
    rows += [row("ttc", name, 0.79, **WIDE_RESNET) for name in CORRUPTIONS]
    table = component_table(grouped(rows))
    assert table is not None
    found = {name: cells[0] for name, cells in lines(table).items()}
    assert found["TENT"] == "80.0"
    assert found["+GA"] == "82.0 (+2.0)"
    assert found["TTC"] == "79.0 (-1.0)"
    assert (found["+RLA, paper"], found["TTC, paper"]) == (
        "82.6 (+1.1)",
        "82.5 (+1.0)",
    )
    assert component_table(grouped(rows[:15])) is None


def test_table_7_compares_at_one_batch_size():
    """A gain over TENT at another size would be none; the size where most parts are counts."""
    off = {"rla": False, "spc": False, "ss": False}
    rows = [row("tent", "fog", 0.1, batch_size=1), row("ttc", "fog", 0.1, batch_size=1)]
    rows += [row("ttc", "fog", 0.2, batch_size=1, changed=off)]
    rows += [row("tent", "fog", 0.8), row("ttc", "fog", 0.83), row("ttc", "fog", 0.81, changed=off)]
    table = component_table(grouped(rows))
    assert table is not None
    found = {name: cells[0] for name, cells in lines(table).items()}
    assert (found["TENT"], found["+GA"], found["TTC"]) == ("80.0", "81.0 (+1.0)", "83.0 (+3.0)")
    assert found["+RLA"] == "–"  # noqa: RUF001


def test_an_average_is_over_what_all_lines_have():
    """And the note says over what; columns that differ in more than data say in what."""
    rows = [row("source", c, 0.4) for c in ("clean", "fog", "snow")]
    rows += [row("source", "fog", 0.3, severity=3)]
    rows += [row("tent", "fog", a, batch_size=1, severity=s) for a, s in ((0.1, 5), (0.2, 3))]
    table = batch_size_table(grouped(rows))
    assert table is not None
    assert lines(table)["SOURCE"] == ["40.0", "30.0"]
    assert table.header[1:] == ["bundled, small, severity 5", "bundled, small, severity 3"]
    assert "bundled, small, severity 5: average over fog." in table.notes


# The paired test


def test_methods_are_compared_on_the_same_images(tmp_path):
    """How many images one alone has right, p after Holm's correction, bold where it is small."""
    rows = [row("tent", "fog", 0.5), row("ttc", "fog", 0.7), row("norm", "fog", 0.5)]
    arrays = [answers(0.5, seed=1), answers(0.7, seed=2), answers(0.5, seed=3)]
    path = write(tmp_path / "rows.jsonl", rows, arrays)
    (group,) = groups(read_results([path]))
    table = mcnemar_table(group, "tent", "mcnemar")
    assert table is not None
    assert "Against TENT" in table.caption
    norm, ttc = table.lines
    right = [a["predicted"] == a["labels"] for a in arrays]
    alone = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    assert ttc[1].text.startswith(f"{alone[0]} : {alone[1]}, p < 0.001")
    assert ttc[1].best
    assert not norm[1].best
    assert norm[1].value == pytest.approx(1, abs=0.5)
    assert ttc[-1].text.startswith("+20.0, p ")
    found = list(csv.DictReader(StringIO(table.csv())))[1]
    assert (int(found["fog_only_first"]), int(found["fog_only_second"])) == alone
    assert float(found["fog"]) == ttc[1].value
    assert float(found["average_difference"]) == pytest.approx(20)


def test_what_was_not_the_same_images_is_not_compared(tmp_path):
    """Other labels, or no arrays at all."""
    other = answers(0.7)
    other["labels"] = other["labels"][::-1]
    rows = [row("tent", "fog", 0.5), row("ttc", "fog", 0.7)]
    path = write(tmp_path / "rows.jsonl", rows, [answers(0.5), other])
    (group,) = groups(read_results([path]))
    assert mcnemar_table(group, "tent", "mcnemar") is None
    assert mcnemar_table(grouped(rows)[0], "tent", "mcnemar") is None
    assert mcnemar_table(group, "eta", "mcnemar") is None


def test_one_file_may_hold_the_rows_of_every_table(tmp_path):
    """Each table takes those that belong to it."""
    found = groups(read_results([every_table(tmp_path / "rows.jsonl")]))
    assert {group.setting["batch_size"] for group in found} == {1, 20, 100}
    for table in (batch_size_table(found), component_table(found)):
        assert table is not None
        assert all(cell.value is not None for line in table.lines for cell in line)
    whole = next(group for group in found if group.setting["batch_size"] == 100)
    table = augmentation_table(whole)
    assert table is not None
    assert len(table.lines) == 3


def test_utility_under_time_has_a_table_for_each_way(tmp_path):
    """With its parts; rows without a utility are not in it."""
    rows = [
        row("ttc", "fog", 0.5),
        row("ttc", "fog", 0.8, mode="discrete", utility=0.4, availability=0.5, period_seconds=0.02)
        | {"images": 500, "correct": 400, "asked": 1000, "skipped": 500},
        row("tent", "fog", 0.5, mode="continuous", utility=0.41, timeliness=0.8, alignment=0.01),
        row("tent", "fog", 0.6, mode="amortised", utility=0.6, budget=1.0, spent_seconds=1.01),
    ]
    write_report([write(tmp_path / "rows.jsonl", rows)], tmp_path / "out")
    text = (tmp_path / "out" / "utility.md").read_text()
    assert [line.split(",")[1] for line in text.splitlines() if line.startswith("**")] == [
        " discrete",
        " continuous",
        " amortised",
    ]
    assert "| TTC | fog 5 | file | 100 | 20.0 | 40.0 | 50.0 | 80.0 |" in text
    assert "| 41.0 | 50.0 | 80.0 | 1.0 |" in text
    assert "| 1000.0 | 1010.0 | 60.0 |" in text
