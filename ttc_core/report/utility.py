"""Utility under time, as `ttc replay` measures it: a table for each way, data set and network."""

from collections.abc import Sequence

from ttc_core.report.configuration import configurations
from ttc_core.report.results import Result
from ttc_core.report.table import NONE, Cell, Table

_PARTS = {
    "discrete": ("availability", "accuracy"),
    "continuous": ("accuracy", "timeliness", "alignment"),
    "amortised": ("accuracy_learning", "accuracy_frozen"),
}
_NOTES = {
    "discrete": "A request comes each period; one that finds the pipeline busy is skipped. Utility "
    "is the accuracy over all images: availability times the accuracy of what was served.",
    "continuous": "What takes longer than the period loses worth, half of it by max(100 ms, 3 "
    "periods). Utility is accuracy times timeliness (the mean discount) plus their covariance, "
    "alignment.",
    "amortised": "Once the budget is spent on adaptation, nothing is learned any more. Utility is "
    "the accuracy over all images.",
}


def utility_tables(results: Sequence[Result]) -> list[Table]:
    """A line for each row that tells a utility: what it is, its parts, and under what time."""
    places: dict[tuple[str, str, str], list[list[Cell]]] = {}
    named = configurations(result.row for result in results)
    for result, configuration in zip(results, named, strict=True):
        mode = str(result["mode"])
        if result["utility"] is None or mode not in _PARTS:
            continue
        severity = "" if result["severity"] is None else f" {result['severity']}"
        what, order = f"{result['corruption']}{severity}", str(result["order"])
        shares = [_cell(result[name], 100, 1) for name in ("utility", *_PARTS[mode])]
        given = ("budget", "spent_seconds") if mode == "amortised" else ("period_seconds",)
        places.setdefault((mode, str(result["data"]), str(result["model"])), []).append(
            [
                Cell(configuration.title, configuration.title),
                *(Cell(text, text) for text in (what, order)),
                _cell(result["batch_size"], 1, 0),
                *(_cell(result[name], 1000, 1) for name in given),
                *shares,
            ]
        )
    tables = []
    for number, ((mode, data, model), lines) in enumerate(places.items(), start=1):
        given = ("budget ms", "spent ms") if mode == "amortised" else ("period ms",)
        parts = [part.replace("_", " ") for part in _PARTS[mode]]
        header = ["Method", "corruption", "order", "N", *given, "utility", *parts]
        caption = f"Utility, {mode}, in % on {data}, model {model}"
        tables.append(
            Table(f"utility-{number}", caption, header, header, lines, (_NOTES[mode],)),
        )
    return tables


def _cell(value: float | None, scale: float, digits: int) -> Cell:
    if value is None:
        return Cell(None, NONE)
    return Cell(scale * value, f"{scale * value:z.{digits}f}")
