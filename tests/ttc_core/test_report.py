"""Tables in the paper's form, from rows."""

import csv
from io import StringIO
from typing import Any

import pytest

from ttc_core.corruptions import CORRUPTIONS
from ttc_core.report.tables import SHORT_NAMES, accuracy_tables


def row(method: str, corruption: str, accuracy: float, **changes: Any) -> dict[str, Any]:
    return {
        "data": "bundled",
        "model": "small",
        "severity": None if corruption == "clean" else 5,
        "order": "file",
        "protocol": "episodic",
        "batch_size": 100,
        "method": method,
        "corruption": corruption,
        "accuracy": accuracy,
    } | changes


def test_the_columns_are_the_papers():
    """All fifteen in the paper's order, under its short names, then the average."""
    rows = [row("source", name, 0.5) for name in reversed(CORRUPTIONS)]
    (table,) = accuracy_tables(rows)
    assert table.columns == list(CORRUPTIONS)
    header = table.markdown().splitlines()[2]
    assert header == (
        "| Method | gaus | shot | impul | defcs | gls | mtn | zm | snw | frst | fg | brt | cnt "
        "| els | px | jpg | Avg |"
    )
    assert list(SHORT_NAMES) == list(CORRUPTIONS)


def test_a_table_in_full():
    """Percent with one decimal, methods in the paper's order, the best of a column in bold."""
    (table,) = accuracy_tables(
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
        "episodic**\n\n"
        "| Method | gaus | fg | Avg |\n"
        "|---|---|---|---|\n"
        "| SOURCE | **66.7** | **90.0** | **78.3** |\n"
        "| TTC | 25.0 | **90.0** | 57.5 |\n"
        "| my.own:Method | – | 80.0 | – |\n"  # noqa: RUF001
    )


def test_the_average_is_over_the_corruptions():
    """Clean stands beside them and is not averaged in; a gap leaves the average out."""
    (table,) = accuracy_tables(
        [
            row("tent", "clean", 1.0),
            row("tent", "fog", 0.5),
            row("tent", "snow", 0.25),
            row("norm", "fog", 0.5),
            row("norm", "clean", 1.0),
        ]
    )
    assert table.columns == ["clean", "snow", "fog"]
    assert table.averages == {"norm": None, "tent": 37.5}


def test_clean_goes_beside_every_severity():
    """It has none of its own, so it belongs to each table of the same setting."""
    rows = [row("tent", "clean", 0.9), row("tent", "fog", 0.5), row("tent", "fog", 0.7, severity=3)]
    tables = accuracy_tables(rows)
    assert [table.lines["tent"] for table in tables] == [[90.0, 50.0], [90.0, 70.0]]
    (alone,) = accuracy_tables(rows[:1])
    assert alone.lines == {"tent": [90.0]}
    assert "severity" not in alone.caption


def test_the_last_row_of_a_cell_counts():
    """A repeated measurement replaces the earlier one."""
    (table,) = accuracy_tables([row("tent", "fog", 0.5), row("tent", "fog", 0.75)])
    assert table.lines == {"tent": [75.0]}


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
    tables = accuracy_tables([row("tent", "fog", 0.5), row("ttc", "fog", 0.6, **change)])
    assert [list(table.lines) for table in tables] == [["tent"], ["ttc"]]
    assert str(*change.values()) in tables[1].caption


def test_the_csv_has_full_precision():
    """One line a method, empty where there is no row, long names."""
    rows = [row("source", "fog", 2 / 3), row("ttc", "snow", 0.5), row("ttc", "fog", 1 / 3)]
    (table,) = accuracy_tables(rows)
    lines = list(csv.reader(StringIO(table.csv())))
    assert lines[0] == ["method", "snow", "fog", "average"]
    assert lines[1][0:2] == ["source", ""]
    assert float(lines[1][2]) == pytest.approx(200 / 3, rel=1e-12)
    assert lines[1][3] == ""
    assert float(lines[2][3]) == pytest.approx((50 + 100 / 3) / 2, rel=1e-12)


def test_no_rows_are_no_tables():
    """Nothing to compare is no error here."""
    assert accuracy_tables([]) == []
