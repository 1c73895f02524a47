"""Rows put together that can be compared: the same images, in the same way, at one batch size."""

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ttc_core.corruptions import CORRUPTIONS
from ttc_core.order import deals
from ttc_core.report import paper
from ttc_core.report.configuration import Configuration, configurations
from ttc_core.report.results import ImageResults, Result, accuracies, settings
from ttc_core.report.statistics import Interval, average_interval, wilson
from ttc_core.rows import as_key, averaged, differing, stated

# What a table lays out itself, in lines, columns and one severity; all else has to be the same.
_LAID_OUT = (
    *("method", "settings", "guard", "record_temperature"),
    *("corruption", "severity", "after", "after_severity"),
)
# What a caption says in a place of its own.
_CAPTION = ("data", "model", "severity", "batch_size", "order", "protocol", "seed", "limit")

History = tuple[str, ...] | None


@dataclass(frozen=True)
class Line:
    """A method's results under one setting: corruption -> the row that counts."""

    configuration: Configuration
    setting: Mapping[str, Any]
    results: Mapping[str, Result]

    def accuracy(self, corruption: str) -> float | None:
        """In percent, of the images that were answered."""
        found = self.results.get(corruption)
        return None if found is None else 100 * float(found["accuracy"])

    def average(self, columns: Sequence[str]) -> float | None:
        """Over the corruptions (`averaged`); None unless all are there, and whole."""
        found = [self.results.get(name) for name in averaged(columns)]
        if not found or any(result is None or result.is_partial for result in found):
            return None
        return fmean(100 * float(result["accuracy"]) for result in found if result is not None)

    def image_results(self, corruption: str) -> ImageResults | None:
        """What came of each image; None where that was not kept."""
        found = self.results.get(corruption)
        return None if found is None else found.image_results

    def interval(self, corruption: str) -> Interval | None:
        """Wilson's, in percent."""
        found = self.results.get(corruption)
        judged = 0 if found is None else int(found["judged"] or found["images"] or 0)
        if found is None or not judged:
            return None
        found_interval = wilson(int(found["correct"] or 0), judged)
        return Interval(100 * found_interval.low, 100 * found_interval.high)

    def average_interval(self, columns: Sequence[str]) -> Interval | None:
        """In percent; None where what was answered to each image is not known."""
        found = [self.image_results(name) for name in averaged(columns)]
        known = [one for one in found if one is not None]
        # Labels tell whether it is the same images that recur.
        if len(known) < len(found) or len({one.labels_digest for one in known}) != 1:
            return None
        interval = average_interval([one.right for one in known])
        return Interval(100 * interval.low, 100 * interval.high)

    def is_default(self) -> bool:
        """Whether nothing was set, and all images answered: else the paper's is another figure."""
        partial = any(result.is_partial for result in self.results.values())
        return self.configuration.changes == {} and not partial

    def in_paper(
        self, tables: tuple[int, ...], name: str, *, batch_size: int = 100
    ) -> paper.PaperLine | None:
        """The paper's, if all but the machine is the paper's.

        Args:
            name: of the line there.
            batch_size: that it printed this line for.
        """
        s = self.setting.get
        as_the_paper = (s("severity"), s("batch_size"), s("limit"), s("protocol"))
        if as_the_paper != (5, batch_size, None, "episodic") or s("order") not in ("file", "iid"):
            return None
        if s("mix"):
            return None
        return paper.find(tables, s("data"), s("model"), name)


@dataclass(frozen=True)
class Group:
    """Lines that can be compared: the same images at the same batch size.

    Attributes:
        setting: what they have in common (`ttc_core.rows.setting`), the severity, and `history`:
            of a continual pass the corruptions in the order they came, the columns among them.
        told: names in the setting that tell this group from another.
        columns: corruptions, "clean" first.
    """

    setting: Mapping[str, Any]
    told: Sequence[str]
    columns: list[str]
    lines: list[Line]

    @property
    def caption(self) -> str:
        """The setting in words."""
        s = self.setting.get
        severity = "" if s("severity") is None else f", severity {s('severity')}"
        seed = "" if s("seed") is None else f", seed {s('seed')}"
        first = "" if deals(str(s("order"))) else "first "
        limit = "" if s("limit") is None else f", {first}{s('limit')} images"
        return (
            f"{s('data')}{severity}; model {s('model')}, batches of {s('batch_size')}, "
            f"order {s('order')}, {s('protocol')}{seed}{limit}{self.differences(_CAPTION)}"
        )

    def differences(self, said: Container[str]) -> str:
        """In what another group differs, beside what is said already."""
        parts = stated(self.setting, [n for n in self.told if n != "history" and n not in said])
        if "history" in self.setting:
            parts.append(f"in the order {', '.join(self.setting['history'])}")
        return "".join(f", {part}" for part in parts)

    def default(self, method: str) -> Line | None:
        """The method's line with nothing set, as far as is known."""
        return self.first(lambda one: one.method == method and not one.told)

    def find(self, reference: str) -> Line | None:
        """The first line of a method, or the one of this label."""
        return self.first(lambda one: reference in (one.method, one.label))

    def first(self, wanted: Callable[[Configuration], bool]) -> Line | None:
        """The first line whose configuration is one that is wanted."""
        return next((line for line in self.lines if wanted(line.configuration)), None)


def by_batch_size(found: Iterable[Group]) -> list[dict[int, Group]]:
    """The groups that differ in nothing but the batch size, put together."""
    places: dict[str, dict[int, Group]] = {}
    for group in found:
        if (size := group.setting.get("batch_size")) is not None:
            rest = {name: value for name, value in group.setting.items() if name != "batch_size"}
            places.setdefault(as_key(rest), {})[size] = group
    return list(places.values())


def groups(results: Iterable[Result]) -> list[Group]:
    """Put rows together that differ in method, settings and corruption alone.

    Of rows that measure the same again the last one counts, a whole one before a partial one.
    "clean" has no severity of its own and goes beside every other. Continual rows go together
    where they may be of one pass: one comes after those that the other came after.
    """
    counted = accuracies(results)
    severities: dict[str, dict[Any, None]] = {}
    histories: dict[str, dict[History, None]] = {}
    placed = []
    for result, told in zip(counted, settings(counted), strict=True):
        key = as_key({name: value for name, value in told.items() if name not in _LAID_OUT})
        severity = told.get("severity", told.get("after_severity"))
        history = (*told["after"], result["corruption"]) if "after" in told else None
        everywhere = result["corruption"] == "clean" and severity is None
        if not everywhere:
            severities.setdefault(key, {})[severity] = None
        histories.setdefault(key, {})[history] = None
        placed.append((key, severity, history, everywhere))
    cells: dict[tuple[str, Any, History], dict[Configuration, dict[str, Result]]] = {}
    named = configurations(result.row for result in counted)
    for result, configuration, place in zip(counted, named, placed, strict=True):
        key, severity, history, everywhere = place
        for each in severities.get(key, [None]) if everywhere else [severity]:
            for whole in _longest(history, histories[key]):
                lines = cells.setdefault((key, each, whole), {})
                line = lines.setdefault(configuration, {})
                known = line.get(result["corruption"])
                if known is None or known.is_partial or not result.is_partial:
                    line[result["corruption"]] = result
    shared = []
    for key, severity, history in cells:
        more = {"severity": severity, "history": history}
        shared.append(
            json.loads(key) | {name: more[name] for name in more if more[name] is not None}
        )
    names = differing(shared)
    return [
        Group(
            common,
            names,
            columns=in_order(name for results in lines.values() for name in results),
            lines=[
                Line(one, common, lines[one]) for one in sorted(lines, key=lambda each: each.rank)
            ],
        )
        for common, lines in zip(shared, cells.values(), strict=True)
    ]


def _longest(history: History, known: Iterable[History]) -> list[History]:
    """The passes that this one may be the beginning of."""
    if history is None:
        return [None]
    longer = [one for one in known if one is not None and one[: len(history)] == history]
    return [one for one in longer if not any(o != one and o[: len(one)] == one for o in longer)]


def in_order(corruptions: Iterable[str]) -> list[str]:
    """Each once: clean, the fifteen, then mixtures as they came."""
    present = dict.fromkeys(corruptions)
    known = [name for name in ("clean", *CORRUPTIONS) if name in present]
    return known + [name for name in present if name not in known]
