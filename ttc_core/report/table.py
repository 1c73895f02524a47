"""A table as the report has it: once, for Markdown, CSV and the page."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO

from ttc_core.report.statistics import Interval

NONE = "–"  # noqa: RUF001  the dash of a cell that has no number


@dataclass(frozen=True)
class Cell:
    """What stands in one place.

    Attributes:
        value: in full precision, for the CSV; None where there is nothing.
        text: as people read it.
        interval: of the value, in its units.
        best: of its column, so in bold.
        quoted: from the paper, not measured here; in italics.
        comparable: whether it may be the best of its column.
        beside: more numbers for the CSV, by what is put behind the column's name.
    """

    value: float | str | None
    text: str
    interval: Interval | None = None
    best: bool = False
    quoted: bool = False
    comparable: bool = True
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[str, float]:
        """What stands behind the value in the CSV."""
        ends = (
            {} if self.interval is None else {"low": self.interval.low, "high": self.interval.high}
        )
        return {**ends, **self.beside}

    @property
    def markdown(self) -> str:
        mark = "**" if self.best else "*" if self.quoted and self.text != NONE else ""
        text = " ".join(self.text.split()).replace("|", chr(92) + "|")
        return f"{mark}{text}{mark}"

    @property
    def range(self) -> str:
        """The interval, as people read it."""
        return (
            "" if self.interval is None else f"{self.interval.low:.1f} to {self.interval.high:.1f}"
        )


def percent(value: float | None, interval: Interval | None = None, *, quoted: bool = False) -> Cell:
    """A cell for an accuracy in percent."""
    text = NONE if value is None else f"{value:.1f}"
    return Cell(value, text, interval, quoted=quoted)


@dataclass(frozen=True)
class Table:
    """Lines of cells under headers; the first cell of each line names it.

    Attributes:
        name: of its files.
        caption: what all of it has in common, with the units.
        header: one short text a column, the first for the lines' names.
        columns: the same in full, for the CSV.
        notes: sentences below it.
    """

    name: str
    caption: str
    header: Sequence[str]
    columns: Sequence[str]
    lines: Sequence[Sequence[Cell]]
    notes: Sequence[str] = field(default=())

    def markdown(self) -> str:
        """The table in Markdown, the best of each column in bold, the paper's lines in italics."""
        text = [f"**{self.caption}**", "", _line(self.header), "|---" * len(self.header) + "|"]
        text += [_line(cell.markdown for cell in line) for line in self.lines]
        return "\n".join(text) + "\n" + "".join(f"\n{note}\n" for note in self.notes)

    def csv(self) -> str:
        """Comma-separated values in full precision; behind them the ends of their intervals."""
        out = StringIO()
        writer = csv.writer(out, lineterminator="\n")
        behind = [
            list(dict.fromkeys(name for line in self.lines for name in line[i].numbers))
            for i in range(len(self.columns))
        ]
        header: list[str] = []
        for column, names in zip(self.columns, behind, strict=True):
            header += [column, *(f"{column}_{name}" for name in names)]
        writer.writerow(header)
        for line in self.lines:
            values: list[float | str | None] = []
            for cell, names in zip(line, behind, strict=True):
                values += [cell.value, *(cell.numbers.get(name) for name in names)]
            writer.writerow(values)
        return out.getvalue()

    def intervals(self) -> "Table | None":
        """The same lines with the 95 % intervals in place of the values; None if it has none."""
        lines = [
            [line[0], *(Cell(cell.range, cell.range or NONE) for cell in line[1:])]
            for line in self.lines
            if any(cell.interval for cell in line)
        ]
        if not lines:
            return None
        return replace(
            self,
            name=f"{self.name}-intervals",
            caption=f"95 % intervals: {self.caption[0].lower()}{self.caption[1:]}",
            lines=lines,
            notes=(
                "Wilson's interval for each accuracy; for an average, over the images' own means.",
            ),
        )


def mark_best(lines: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """The best of each column, as it is shown, in bold; what is quoted takes no part."""
    marked = [list(line) for line in lines]
    for column in range(1, len(marked[0]) if marked else 0):
        shown = {
            row: float(f"{line[column].value:.1f}")
            for row, line in enumerate(marked)
            if isinstance(line[column].value, float)
            and line[column].comparable
            and not line[column].quoted
        }
        for row, value in shown.items():
            if value == max(shown.values()):
                marked[row][column] = replace(marked[row][column], best=True)
    return marked


def _line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"
