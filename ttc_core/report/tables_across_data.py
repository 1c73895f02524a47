"""Averages × data sets: the paper's Table 1 (small batches) and Table 7 (components)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ttc_core.corruptions import CORRUPTIONS
from ttc_core.presets import TTC_SWITCHES
from ttc_core.report import paper
from ttc_core.report.groups import Group, Line
from ttc_core.report.results import differing
from ttc_core.report.table import Cell, Table, mark_best, percent


@dataclass(frozen=True)
class _Column:
    """One data set and network at one severity; the groups there, by batch size."""

    data: str
    model: str
    by_batch_size: Mapping[int, Group]

    @property
    def title(self) -> str:
        return f"{self.data}, {self.model}"


def _columns(found: Sequence[Group]) -> list[_Column]:
    places: dict[tuple[Any, ...], dict[int, Group]] = {}
    for group in found:
        s = group.setting
        key = tuple(s[name] for name in ("data", "model", "order", "protocol", "limit", "seed"))
        places.setdefault((*key, s["severity"]), {})[s["batch_size"]] = group
    return [_Column(str(key[0]), str(key[1]), sizes) for key, sizes in places.items()]


def batch_size_table(found: Sequence[Group]) -> Table | None:
    """Table 1: what small batches do to TENT, average accuracy beside SOURCE."""
    columns = [
        column
        for column in _columns(found)
        if any(_line(column.by_batch_size.get(size), "tent") for size in (1, 20))
    ]
    if not columns:
        return None
    lines = []
    for title, method, size in (
        ("SOURCE", "source", None),
        ("TENT (batch size 1)", "tent", 1),
        ("TENT (batch size 20)", "tent", 20),
    ):
        cells, quoted = [], []
        for column in columns:
            at = [size] if size else sorted(column.by_batch_size, reverse=True)
            options = [(column.by_batch_size.get(one), method) for one in at]
            cells.append(_average(options, _corruptions(column)))
            line = method if size is None else f"{method} {size}"
            quoted.append(_paper_average(column, 1, line))
        lines += _with_paper(title, cells, quoted)
    caption = "Table 1: accuracy in %, average over the corruptions that all lines have"
    header = ["Method", *(column.title for column in columns)]
    return Table("table1", caption, header, header, mark_best(lines))


def component_table(found: Sequence[Group]) -> Table | None:
    """Table 7: TENT, each of TTC's parts added to it alone, and TTC; average accuracy, and gain."""
    parts = [("TENT", "tent", "tent"), *((f"+{p.upper()}", p, p) for p in TTC_SWITCHES)]
    columns = [
        column
        for column in _columns(found)
        if any(_component(g, p) for g in column.by_batch_size.values() for p in TTC_SWITCHES)
    ]
    if not columns:
        return None
    lines, tent = (
        [],
        [_average(_components(column, "tent"), _corruptions(column)) for column in columns],
    )
    for title, part, line in (*parts, ("TTC", "ttc", "ttc")):
        cells = [_average(_components(column, part), _corruptions(column)) for column in columns]
        if part != "tent":
            cells = [_with_gain(cell, base) for cell, base in zip(cells, tent, strict=True)]
        table = 7 if line != "ttc" else 2
        lines += _with_paper(title, cells, [_paper_average(c, table, line) for c in columns])
    caption = "Table 7: components added to TENT one at a time, average accuracy in %"
    header = ["Method", *(column.title for column in columns)]
    return Table("table7", caption, header, header, lines)


def _component(group: Group, part: str) -> Line | None:
    """The line of TENT, of TTC, or of TTC with this switch alone."""
    for line in group.lines:
        result = next(iter(line.results.values()))
        changed = differing(result)
        if part in ("tent", "ttc"):
            if result["method"] == part and not changed:
                return line
        elif result["method"] == "ttc" and changed is not None:
            off = {name: False for name in TTC_SWITCHES if name != part}
            if changed == off:
                return line
    return None


def _components(column: _Column, part: str) -> list[tuple[Group | None, Line | None]]:
    return [(group, _component(group, part)) for group in column.by_batch_size.values()]


def _line(group: Group | None, method: str) -> Line | None:
    if group is None:
        return None
    return next((line for line in group.lines if line.label == method), None)


def _corruptions(column: _Column) -> list[str]:
    """Those that every group of the column has."""
    shared = [set(group.columns) for group in column.by_batch_size.values()]
    first = next(iter(column.by_batch_size.values()))
    return [name for name in first.columns if all(name in names for names in shared)]


def _average(options: Iterable[tuple[Group | None, Any]], corruptions: Sequence[str]) -> Cell:
    """The average of the first line that is there: given itself, or by its method's name."""
    for group, line in options:
        found = _line(group, line) if isinstance(line, str) else line
        if found is not None and (value := found.average(corruptions)) is not None:
            return percent(value, found.average_interval(corruptions))
    return percent(None)


def _with_gain(cell: Cell, base: Cell) -> Cell:
    if not isinstance(cell.value, float) or not isinstance(base.value, float):
        return cell
    return Cell(cell.value, f"{cell.text} ({cell.value - base.value:+.1f})", cell.interval)


def _paper_average(column: _Column, table: int, line: str) -> Cell:
    group = column.by_batch_size.get(100)
    whole = group is not None and set(CORRUPTIONS) <= set(group.columns)
    tables = (table,) if table != 2 else paper.COMPARISONS
    found = group.paper_line(tables, line) if group is not None and whole else None
    return percent(found.average if found else None, quoted=True)


def _with_paper(title: str, cells: list[Cell], quoted: list[Cell]) -> list[list[Cell]]:
    lines = [[Cell(title, title), *cells]]
    if any(cell.value is not None for cell in quoted):
        lines.append([Cell(f"{title}, paper", f"{title}, paper", quoted=True), *quoted])
    return lines
