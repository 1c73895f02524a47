"""Rows put together that can be compared: the same images, in the same way, at one batch size."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ttc_core.corruptions import CORRUPTIONS
from ttc_core.report import paper
from ttc_core.report.results import Answers, Result, accuracies, differing, in_order, labels
from ttc_core.report.statistics import Interval, average_interval, wilson

_SETTING = ("data", "model", "batch_size", "order", "protocol", "limit", "seed")


@dataclass(frozen=True)
class Line:
    """A method's results under one setting: corruption -> the row that counts."""

    label: str
    results: Mapping[str, Result]

    def accuracy(self, corruption: str) -> float | None:
        """In percent."""
        found = self.results.get(corruption)
        return None if found is None else 100 * float(found["accuracy"])

    def average(self, columns: Sequence[str]) -> float | None:
        """Over the corruptions, clean not among them; None unless all are there."""
        values = [self.accuracy(name) for name in columns if name != "clean"]
        known = [value for value in values if value is not None]
        return fmean(known) if known and len(known) == len(values) else None

    def answers(self, corruption: str) -> Answers | None:
        """What came of each image; None where that was not kept."""
        found = self.results.get(corruption)
        return None if found is None else found.answers

    def interval(self, corruption: str) -> Interval | None:
        """Wilson's, in percent."""
        found = self.results.get(corruption)
        if found is None or not found["images"]:
            return None
        found_interval = wilson(int(found["correct"]), int(found["images"]))
        return Interval(100 * found_interval.low, 100 * found_interval.high)

    def average_interval(self, columns: Sequence[str]) -> Interval | None:
        """In percent; None where what was answered to each image is not known."""
        answers = [self.answers(name) for name in columns if name != "clean"]
        known = [one for one in answers if one is not None]
        # Labels tell whether it is the same images that recur.
        if len(known) < len(answers) or len({one.labels_digest for one in known}) != 1:
            return None
        found = average_interval([one.right for one in known])
        return Interval(100 * found.low, 100 * found.high)

    def is_default(self) -> bool:
        """Whether nothing was set: only then the paper's figure says the same."""
        return all(differing(result) == {} for result in self.results.values())


@dataclass(frozen=True)
class Group:
    """Lines that can be compared: the same images at the same batch size.

    Attributes:
        setting: what they have in common, by the names of _SETTING, and the severity.
        columns: corruptions, "clean" first.
    """

    setting: Mapping[str, Any]
    columns: list[str]
    lines: list[Line]

    @property
    def caption(self) -> str:
        """The setting in words."""
        s = self.setting
        severity = "" if s["severity"] is None else f", severity {s['severity']}"
        seed = "" if s["seed"] is None else f", seed {s['seed']}"
        limit = "" if s["limit"] is None else f", first {s['limit']} images"
        return (
            f"{s['data']}{severity}; model {s['model']}, batches of {s['batch_size']}, "
            f"order {s['order']}, {s['protocol']}{seed}{limit}"
        )

    def paper_line(
        self, tables: tuple[int, ...], line: str, *, batch_size: int = 100
    ) -> paper.PaperLine | None:
        """The paper's, if all but the machine is the paper's; it printed this line for a size."""
        s = self.setting
        as_the_paper = (s["severity"], s["batch_size"], s["limit"], s["protocol"])
        if as_the_paper != (5, batch_size, None, "episodic"):
            return None
        return paper.find(tables, s["data"], s["model"], line)


def groups(results: Iterable[Result]) -> list[Group]:
    """Put rows together by data, model, severity, batch size, order and protocol.

    Of rows for the same cell the last one counts. "clean" has no severity of its own and goes
    beside every other.
    """
    counted = accuracies(results)
    severities: dict[tuple[Any, ...], dict[Any, None]] = {}
    for result in counted:
        if result["corruption"] != "clean":
            severities.setdefault(_setting(result), {})[result["severity"]] = None
    cells: dict[tuple[Any, ...], dict[str, dict[str, Result]]] = {}
    for result, label in zip(counted, labels(counted), strict=True):
        setting = _setting(result)
        clean = result["corruption"] == "clean"
        for severity in severities.get(setting, [None]) if clean else [result["severity"]]:
            lines = cells.setdefault((*setting, severity), {})
            lines.setdefault(label, {})[result["corruption"]] = result
    return [_group(key, lines) for key, lines in cells.items()]


def _setting(result: Result) -> tuple[Any, ...]:
    return tuple(result[name] for name in _SETTING)


def _group(key: tuple[Any, ...], lines: Mapping[str, Mapping[str, Result]]) -> Group:
    present = dict.fromkeys(name for results in lines.values() for name in results)
    known = [name for name in ("clean", *CORRUPTIONS) if name in present]
    return Group(
        setting=dict(zip((*_SETTING, "severity"), key, strict=True)),
        columns=known + [name for name in present if name not in known],  # mixtures
        lines=[Line(label, lines[label]) for label in in_order(lines)],
    )
