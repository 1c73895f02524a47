"""Averages × data sets: the paper's Table 1 (small batches) and Table 7 (components)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ttc_core.corruptions import CORRUPTIONS
from ttc_core.presets import TTC_SWITCHES
from ttc_core.report import paper
from ttc_core.report.groups import Group, Line
from ttc_core.report.results import differing, telling
from ttc_core.report.table import Cell, Table, mark_best, percent
from ttc_core.rows import averaged

_COMPONENTS = ("tent", *TTC_SWITCHES, "ttc")


@dataclass(frozen=True)
class _Entry:
    """What a cell is about: a line, and the group that it is from."""

    group: Group
    line: Line

    @property
    def settings_are_known(self) -> bool:
        """Whether its defaults are; old rows do not tell."""
        return all(differing(result) is not None for result in self.line.results.values())


@dataclass(frozen=True)
class _Column:
    """Everything under one setting, whatever the batch size; an entry a line of the table."""

    setting: Mapping[str, Any]
    entries: Sequence[_Entry | None]

    @property
    def corruptions(self) -> list[str]:
        """Those that all entries have, so that their averages can be compared."""
        known = [entry for entry in self.entries if entry is not None]
        return [
            name
            for name in averaged(known[0].group.columns)
            if all(name in entry.line.results for entry in known)
        ]

    def cells(self) -> list[Cell]:
        """Each line's average over the corruptions that all have."""
        names = self.corruptions
        return [
            percent(None)
            if entry is None
            else percent(entry.line.average(names), entry.line.average_interval(names))
            for entry in self.entries
        ]

    def quoted(self, wanted: Sequence[tuple[tuple[int, ...], str]]) -> list[Cell]:
        """The paper's averages, where ours are over the same corruptions.

        Args:
            wanted: for each line the paper's tables to look in, and its name there.
        """
        whole = set(CORRUPTIONS) <= set(self.corruptions)
        cells = []
        for entry, (tables, name) in zip(self.entries, wanted, strict=True):
            found = None
            if entry is not None and whole and entry.settings_are_known:
                size = entry.group.setting["batch_size"] if tables == (1,) else 100
                found = entry.group.paper_line(tables, name, batch_size=size)
            cells.append(percent(found.average if found else None, quoted=True))
        return cells


def batch_size_table(found: Sequence[Group]) -> Table | None:
    """Table 1: what small batches do to TENT, average accuracy beside SOURCE."""
    columns = []
    for setting, sizes in _places(found):
        # SOURCE answers alike in batches of any size.
        sources = (_default(sizes[size], "source") for size in sorted(sizes, reverse=True))
        source = next((entry for entry in sources if entry), None)
        small = [_default(sizes[n], "tent") if n in sizes else None for n in (1, 20)]
        if any(small):
            columns.append(_Column(setting, [source, *small]))
    titles = ("SOURCE", "TENT (batch size 1)", "TENT (batch size 20)")
    wanted = [((1,), name) for name in ("source", "tent 1", "tent 20")]
    caption = "Table 1: small batches, average accuracy in %"
    return _table("table1", caption, titles, columns, wanted)


def component_table(found: Sequence[Group]) -> Table | None:
    """Table 7: TENT, each of TTC's parts added to it alone, and TTC; average accuracy, and gain."""
    columns = []
    for setting, sizes in _places(found):
        options = [[_component(sizes[n], part) for part in _COMPONENTS] for n in sorted(sizes)]
        # All at one batch size: where most of them are, the paper's if there is a choice.
        entries = max(
            options,
            key=lambda each: (sum(one is not None for one in each), _batch_size(each) == 100),
        )
        if any(entries[1:-1]):
            size = _batch_size(entries)
            columns.append(_Column({**setting, "batch_size": size}, entries))
    titles = ("TENT", *(f"+{part.upper()}" for part in TTC_SWITCHES), "TTC")
    wanted = [((7,), part) for part in _COMPONENTS[:-1]] + [(paper.COMPARISONS, "ttc")]
    caption = "Table 7: components added to TENT one at a time, average accuracy in %, and the gain"
    return _table("table7", caption, titles, columns, wanted, gains=True)


def _places(found: Iterable[Group]) -> list[tuple[dict[str, Any], dict[int, Group]]]:
    """What differs in nothing but the batch size, put together."""
    places: dict[str, dict[int, Group]] = {}
    for group in found:
        if (size := group.setting.get("batch_size")) is not None:
            places.setdefault(group.place, {})[size] = group
    shared = []
    for sizes in places.values():
        first = next(iter(sizes.values()))
        rest = {name: value for name, value in first.setting.items() if name != "batch_size"}
        shared.append((rest | {"history": first.history}, sizes))
    return shared


def _default(group: Group, method: str) -> _Entry | None:
    """The method as it is without settings."""
    return next((_Entry(group, line) for line in group.lines if line.label == method), None)


def _component(group: Group, part: str) -> _Entry | None:
    """TENT, TTC, or TTC with this switch alone."""
    if part in ("tent", "ttc"):
        return _default(group, part)
    off = {name: False for name in TTC_SWITCHES if name != part}
    for line in group.lines:
        result = next(iter(line.results.values()))
        if result["method"] == "ttc" and differing(result) == off:
            return _Entry(group, line)
    return None


def _batch_size(entries: Iterable[_Entry | None]) -> int | None:
    return next((entry.group.setting["batch_size"] for entry in entries if entry), None)


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
    cells = [column.cells() for column in columns]
    quoted = [column.quoted(wanted) for column in columns]
    if gains:
        cells, quoted = (
            [_with_gains(each) for each in cells],
            [_with_gains(each) for each in quoted],
        )
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
    names = dict.fromkeys(name for column in columns for name in column.setting)
    several = [
        name
        for name in names
        if name not in ("data", "model")
        and len({repr(column.setting.get(name)) for column in columns}) > 1
    ]
    return [
        ", ".join(
            [
                str(column.setting.get("data")),
                str(column.setting.get("model")),
                *(
                    f"{name.replace('_', ' ')} {telling(column.setting.get(name))}"
                    for name in several
                ),
            ]
        )
        for column in columns
    ]


def _named(corruptions: Sequence[str]) -> str:
    if set(corruptions) == set(CORRUPTIONS):
        return "all fifteen corruptions"
    return ", ".join(corruptions) or "nothing, as the lines have no corruption in common"


def _with_gains(cells: Sequence[Cell]) -> list[Cell]:
    """Each with its difference from the first, in points."""
    base = cells[0].value
    if not isinstance(base, float):
        return list(cells)
    return [
        Cell(
            cell.value,
            f"{cell.text} ({cell.value - base:+.1f})",
            cell.interval,
            quoted=cell.quoted,
        )
        if number and isinstance(cell.value, float)
        else cell
        for number, cell in enumerate(cells)
    ]
