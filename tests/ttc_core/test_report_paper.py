"""The paper's figures, held to the reference that they were taken from."""

import re
from pathlib import Path

import pytest

from ttc_core.corruptions import CORRUPTIONS
from ttc_core.report.paper import find, paper_lines
from ttc_core.report.tables import AUGMENTATIONS

SECTION = re.compile(r"\*\*Table (\d)\*\* \(.*?\)\n\n(.*?)\n\n", re.DOTALL)


@pytest.fixture(scope="module")
def printed(shared_data: Path) -> dict[int, list[list[str]]]:
    """Each table's lines, cell by cell, from METHOD §3."""
    text = (shared_data.parent / "METHOD.md").read_text()
    part = text[text.index("## 3.") : text.index("## 4.")]
    return {
        int(number): [
            [cell.strip() for cell in line.strip("| ").split("|")]
            for line in table.splitlines()[2:]
        ]
        for number, table in SECTION.findall(part)
    }


@pytest.mark.parametrize("number", [2, 3, 4, 5, 6])
def test_the_tables_by_corruption_are_as_printed(number, printed):
    """Every line, every number."""
    ours = [line for line in paper_lines() if line.table == number]
    assert len(ours) == len(printed[number])
    for line, (name, *numbers) in zip(ours, printed[number], strict=True):
        assert AUGMENTATIONS.get(line.line, line.line.upper()) == name
        assert [line.accuracies[c] for c in CORRUPTIONS] == [float(n) for n in numbers[:-1]]
        assert line.average == float(numbers[-1])


@pytest.mark.parametrize("number", [1, 7])
def test_the_tables_of_averages_are_as_printed(number, printed):
    """Line by line over the three data sets."""
    ours = [line.average for line in paper_lines() if line.table == number]
    numbers = [float(cell.split("(")[0]) for _, *cells in printed[number] for cell in cells]
    assert ours == numbers


@pytest.mark.parametrize(
    ("data", "model", "average"),
    [
        ("cifar10c:/data/CIFAR-10-C", "cifar/wrn28-10@weights.pt", 82.5),
        ("cifar100c:x", "cifar/wrn28-10@y", 50.6),
        ("imagenetc:x", "torchvision/resnet50", 45.0),
        ("imagenetc:x", "torchvision/resnet50?weights=DEFAULT", 45.0),
        ("cifar10c:x", "cifar/resnet50@y", 77.9),
    ],
)
def test_a_line_is_found_where_data_and_model_are_the_papers(data, model, average):
    """TTC's, by the specs of our rows."""
    line = find((2, 3, 4, 6), data, model, "ttc")
    assert line is not None
    assert line.average == average


@pytest.mark.parametrize(
    ("data", "model"),
    [("bundled", "bundled"), ("cifar10c:x", "cifar/resnet20@y"), ("folder:x", "cifar/wrn28-10@y")],
)
def test_no_line_is_found_for_anything_else(data, model):
    """Another network's figure would mislead."""
    assert find((2, 3, 4, 6), data, model, "ttc") is None
