"""Averages × data sets: the paper's Table 1 (small batches) and Table 7 (components)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ttc_core.corruptions import CORRUPTIONS
from ttc_core.presets import TTC_SWITCHES
from ttc_core.report import paper
from ttc_core.report.groups import Group, Line, by_batch_size, in_order
from ttc_core.report.table import Cell, Table, mark_best, percent
from ttc_core.rows import averaged, differing, stated

_COMPONENTS = ("tent", *TTC_SWITCHES, "ttc")


@dataclass(frozen=True)
class _Column:
    """Everything under one setting, whatever the batch size; for each of the table's lines ours."""

    setting: Mapping[str, Any]
    lines: Sequence[Line | None]

    @property
    def corruptions(self) -> list[str]:
        """Those that all lines have, so that their averages can be compared."""
        known = [line.results for line in self.lines if line is not None]
        return [
            name
            for name in averaged(in_order(known[0]))
            if all(name in results for results in known)
        ]

    def cells(self) -> list[Cell]:
        """Each line's average over the corruptions that all have."""
        names = self.corruptions
        return [
            percent(None)
            if line is None
            else percent(line.average(names), line.average_interval(names))
            for line in self.lines
        ]

    def quoted(self, wanted: Sequence[tuple[tuple[int, ...], str]]) -> list[Cell]:
        """The paper's averages, where ours are over the same corruptions.

        Args:
            wanted: for each line the paper's tables to look in, and its name there.
        """
        whole = set(CORRUPTIONS) <= set(self.corruptions)
        cells = []
        for line, (tables, name) in zip(self.lines, wanted, strict=True):
            found = None
            if line is not None and whole and line.configuration.is_known:
                size = line.setting["batch_size"] if tables == (1,) else 100
                found = line.in_paper(tables, name, batch_size=size)
            cells.append(percent(found.average if found else None, quoted=True))
        return cells


def batch_size_table(found: Sequence[Group]) -> Table | None:
    """Table 1: what small batches do to TENT, average accuracy beside SOURCE."""
    columns = []
    for sizes in by_batch_size(found):
        # SOURCE answers alike in batches of any size.
        sources = (sizes[size].default("source") for size in sorted(sizes, reverse=True))
        source = next((line for line in sources if line), None)
        small = [sizes[n].default("tent") if n in sizes else None for n in (1, 20)]
        if any(small):
            columns.append(_Column(_shared(sizes), [source, *small]))
    titles = ("SOURCE", "TENT (batch size 1)", "TENT (batch size 20)")
    wanted = [((1,), name) for name in ("source", "tent 1", "tent 20")]
    caption = "Table 1: small batches, average accuracy in %"
    return _table("table1", caption, titles, columns, wanted)


def component_table(found: Sequence[Group]) -> Table | None:
    """Table 7: TENT, each of TTC's parts added to it alone, and TTC; average accuracy, and gain."""
    columns = []
    for sizes in by_batch_size(found):
        options = [(n, [_component(sizes[n], part) for part in _COMPONENTS]) for n in sorted(sizes)]
        # All at one batch size: where most of them are, the paper's if there is a choice.
        size, lines = max(
            options, key=lambda each: (sum(one is not None for one in each[1]), each[0] == 100)
        )
        if any(lines[1:-1]):
            columns.append(_Column(_shared(sizes) | {"batch_size": size}, lines))
    titles = ("TENT", *(f"+{part.upper()}" for part in TTC_SWITCHES), "TTC")
    wanted = [((7,), part) for part in _COMPONENTS[:-1]] + [(paper.COMPARISONS, "ttc")]
    caption = "Table 7: components added to TENT one at a time, average accuracy in %, and the gain"
    return _table("table7", caption, titles, columns, wanted, gains=True)


def _shared(sizes: Mapping[int, Group]) -> dict[str, Any]:
    """The setting of groups that differ in the batch size alone."""
    setting = next(iter(sizes.values())).setting
    return {name: value for name, value in setting.items() if name != "batch_size"}


def _component(group: Group, part: str) -> Line | None:
    """TENT, TTC, or TTC with this switch alone."""
    if part in ("tent", "ttc"):
        return group.default(part)
    off = {name: False for name in TTC_SWITCHES if name != part}
    return group.first(lambda one: one.method == "ttc" and one.is_known and one.told == off)


def _table(
    name: str,
    caption: str,
    titles: Sequence[str],
    columns: Sequence[_Column],
    wanted: Sequence[tuple[tuple[int, ...], str]],
    *,
    gains: bool = False,
) -> Table | None:
    if not columns:
        return None
    change = _with_gains if gains else list
    cells = [change(column.cells()) for column in columns]
    quoted = [change(column.quoted(wanted)) for column in columns]
    lines = []
    for row, title in enumerate(titles):
        lines.append([Cell(title, title), *(each[row] for each in cells)])
        papers = [each[row] for each in quoted]
        if any(cell.value is not None for cell in papers):
            label = f"{title}, paper"
            lines.append([Cell(label, label, quoted=True), *papers])
    headers = _headers(columns)
    notes = [
        f"{header}: average over {_named(column.corruptions)}."
        for header, column in zip(headers, columns, strict=True)
    ]
    header = ["Method", *headers]
    return Table(name, caption, header, header, mark_best(lines), notes)


def _headers(columns: Sequence[_Column]) -> list[str]:
    """Data and network, and of the rest what tells one column from another."""
    settings = [column.setting for column in columns]
    several = [name for name in differing(settings) if name not in ("data", "model")]
    return [
        ", ".join([str(one.get("data")), str(one.get("model")), *stated(one, several)])
        for one in settings
    ]


def _named(corruptions: Sequence[str]) -> str:
    if set(corruptions) == set(CORRUPTIONS):
        return "all fifteen corruptions"
    return ", ".join(corruptions) or "nothing, as the lines have no corruption in common"


def _with_gains(cells: Sequence[Cell]) -> list[Cell]:
    """Each with its difference from the first, in points."""
    base, *others = cells
    return [
        base,
        *(
            replace(cell, text=f"{cell.text} ({cell.value - base.value:+z.1f})")
            if isinstance(cell.value, float) and isinstance(base.value, float)
            else cell
            for cell in others
        ),
    ]
