"""The figures that the paper prints, to stand beside ours: Tables 1 to 7, from paper.csv."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ttc_core.corruptions import CORRUPTIONS

# Tables of methods × corruptions.
COMPARISONS = (2, 3, 4, 6)
FILE = Path(__file__).parent / "paper.csv"


@dataclass(frozen=True)
class PaperLine:
    """One line of a table.

    Attributes:
        table: 1 to 7.
        data: the kind of data: cifar10c, cifar100c, imagenetc.
        model: our spec of its network, without a file.
        line: a method; in Table 1 with its batch size, in Table 5 an augmentation, in Table 7
            "tent" or the one part that is added to it.
        accuracies: corruption -> percent; empty where only averages are printed.
        average: percent.
    """

    table: int
    data: str
    model: str
    line: str
    accuracies: dict[str, float]
    average: float


@cache
def paper_lines() -> tuple[PaperLine, ...]:
    """All lines of all tables."""
    with FILE.open(newline="") as file:
        return tuple(
            PaperLine(
                table=int(row["table"]),
                data=row["data"],
                model=row["model"],
                line=row["line"],
                accuracies={name: float(row[name]) for name in CORRUPTIONS if row[name]},
                average=float(row["average"]),
            )
            for row in csv.DictReader(file)
        )


def find(tables: tuple[int, ...], data: object, model: object, line: str) -> PaperLine | None:
    """The paper's line where our data and model are the paper's.

    Args:
        data, model: as in a row: `cifar10c:DIR`, `cifar/wrn28-10@FILE`.
    """
    kind, spec = str(data).partition(":")[0], str(model).partition("@")[0].partition("?")[0]
    return next(
        (
            found
            for found in paper_lines()
            if found.table in tables and (found.data, found.model, found.line) == (kind, spec, line)
        ),
        None,
    )
