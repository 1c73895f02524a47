"""Accuracy tables in the form of the paper's Table 2: methods × corruptions × average."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from statistics import fmean
from typing import Any

from ttc_core.corruptions import CORRUPTIONS

Row = Mapping[str, Any]

SHORT_NAMES = dict(
    zip(
        CORRUPTIONS,
        (
            *("gaus", "shot", "impul", "defcs", "gls", "mtn", "zm"),
            *("snw", "frst", "fg", "brt", "cnt", "els", "px", "jpg"),
        ),
        strict=True,
    )
)
# As the paper lists its methods; others follow in the order of the rows.
METHOD_ORDER = ("source", "norm", "t3a", "eta", "tipi", "tent", "ttc")


@dataclass(frozen=True)
class AccuracyTable:
    """Accuracies in percent; columns are corruptions and their average.

    Attributes:
        caption: what all rows have in common.
        columns: corruption names.
        lines: method -> one accuracy a column, None where there is no row.
    """

    caption: str
    columns: list[str]
    lines: dict[str, list[float | None]]

    @property
    def averages(self) -> dict[str, float | None]:
        """Method -> mean over the corruptions, clean not among them; None unless all are there."""
        return {method: self._average(values) for method, values in self.lines.items()}

    def _average(self, accuracies: Sequence[float | None]) -> float | None:
        pairs = zip(self.columns, accuracies, strict=True)
        counted = [accuracy for name, accuracy in pairs if name != "clean"]
        known = [accuracy for accuracy in counted if accuracy is not None]
        return fmean(known) if known and len(known) == len(counted) else None

    def markdown(self) -> str:
        """The table in Markdown, the best of each column in bold."""
        header = ["Method", *(SHORT_NAMES.get(name, name) for name in self.columns), "Avg"]
        columns = [[values[i] for values in self.lines.values()] for i in range(len(self.columns))]
        columns.append(list(self.averages.values()))
        best = [max((v for v in column if v is not None), default=None) for column in columns]
        text = [
            f"**{self.caption}**",
            "",
            "| " + " | ".join(header) + " |",
            "|---" * len(header) + "|",
        ]
        for position, method in enumerate(self.lines):
            cells = [
                _cell(column[position], most) for column, most in zip(columns, best, strict=True)
            ]
            text.append("| " + " | ".join([_shown(method), *cells]) + " |")
        return "\n".join(text) + "\n"

    def csv(self) -> str:
        """The table as comma-separated values, full precision."""
        out = StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["method", *self.columns, "average"])
        for method, values in self.lines.items():
            writer.writerow([method, *values, self.averages[method]])
        return out.getvalue()


def accuracy_tables(rows: Iterable[Row]) -> list[AccuracyTable]:
    """Make a table for each combination of data, model, severity, batch size, order and protocol.

    Of rows for the same cell the last one counts. "clean" has no severity of its own and goes
    beside every other.
    """
    rows = list(rows)
    severities: dict[tuple[Any, ...], dict[Any, None]] = {}
    for row in rows:
        if row["corruption"] != "clean":
            severities.setdefault(_setting(row), {})[row["severity"]] = None
    groups: dict[tuple[Any, ...], dict[str, dict[str, float]]] = {}
    labels = _labels(rows)
    for row in rows:
        if row["accuracy"] is None:
            continue  # a replay of which nothing was answered
        setting = _setting(row)
        clean = row["corruption"] == "clean"
        for severity in severities.get(setting, [None]) if clean else [row["severity"]]:
            cells = groups.setdefault((*setting, severity), {})
            label = labels[row["method"], json.dumps(row.get("settings", {}), sort_keys=True)]
            cells.setdefault(label, {})[row["corruption"]] = 100 * row["accuracy"]
    return [_table(key, lines) for key, lines in groups.items()]


def _labels(rows: Iterable[Row]) -> dict[tuple[str, str], str]:
    """Name each method; where one comes with several settings, with those that differ."""
    variants: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        text = json.dumps(row.get("settings", {}), sort_keys=True)
        variants.setdefault(row["method"], {})[text] = row.get("settings", {})
    labels = {}
    for method, settings in variants.items():
        names = sorted({name for values in settings.values() for name in values})
        differing = [n for n in names if len({str(v.get(n)) for v in settings.values()}) > 1]
        for text, values in settings.items():
            details = ", ".join(f"{name}={values.get(name)}" for name in differing)
            labels[method, text] = f"{method} ({details})" if details else method
    return labels


def _setting(row: Row) -> tuple[Any, ...]:
    names = ("data", "model", "batch_size", "order", "protocol", "limit", "seed")
    return tuple(row.get(name) for name in names)


def _table(key: tuple[Any, ...], cells: Mapping[str, Mapping[str, float]]) -> AccuracyTable:
    data, model, batch_size, order, protocol, limit, seed, severity = key
    present = {name for values in cells.values() for name in values}
    columns = [name for name in ("clean", *CORRUPTIONS) if name in present]
    order_of = {method: rank for rank, method in enumerate(METHOD_ORDER)}
    methods = sorted(cells, key=lambda label: order_of.get(label.split(" ")[0], len(order_of)))
    at = "" if severity is None else f", severity {severity}"
    return AccuracyTable(
        caption=f"Accuracy in % on {data}{at}; model {model}, batches of {batch_size}, "
        f"order {order}, {protocol}"
        + ("" if seed is None else f", seed {seed}")
        + ("" if limit is None else f", first {limit} images"),
        columns=columns,
        lines={method: [cells[method].get(name) for name in columns] for method in methods},
    )


def _shown(label: str) -> str:
    """Method names in capitals, as the paper has them; their settings as they are."""
    method, _, settings = label.partition(" ")
    return f"{method.upper()} {settings}".strip() if method in METHOD_ORDER else label


def _cell(value: float | None, best: float | None) -> str:
    if value is None:
        return "–"  # noqa: RUF001
    text = f"{value:.1f}"
    return f"**{text}**" if best is not None and text == f"{best:.1f}" else text
