"""Rows put together that can be compared: the same images, in the same way, at one batch size."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from ttc_core.corruptions import CORRUPTIONS
from ttc_core.report import paper
from ttc_core.report.results import (
    Answers,
    Result,
    accuracies,
    differing,
    in_order,
    labels,
    telling,
)
from ttc_core.report.statistics import Interval, average_interval, wilson
from ttc_core.rows import averaged, setting

# What a table lays out itself, in lines, columns and one severity; all else has to be the same.
_LAID_OUT = ("method", "settings", "corruption", "severity", "after", "after_severity")
# What a caption says in a place of its own.
_CAPTION = ("data", "model", "severity", "batch_size", "order", "protocol", "seed", "limit")

History = tuple[str, ...] | None


@dataclass(frozen=True)
class Line:
    """A method's results under one setting: corruption -> the row that counts."""

    label: str
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

    def answers(self, corruption: str) -> Answers | None:
        """What came of each image; None where that was not kept."""
        found = self.results.get(corruption)
        return None if found is None else found.answers

    def interval(self, corruption: str) -> Interval | None:
        """Wilson's, in percent."""
        found = self.results.get(corruption)
        if found is None or not found["images"]:
            return None
        found_interval = wilson(int(found["correct"] or 0), int(found["images"]))
        return Interval(100 * found_interval.low, 100 * found_interval.high)

    def average_interval(self, columns: Sequence[str]) -> Interval | None:
        """In percent; None where what was answered to each image is not known."""
        answers = [self.answers(name) for name in averaged(columns)]
        known = [one for one in answers if one is not None]
        # Labels tell whether it is the same images that recur.
        if len(known) < len(answers) or len({one.labels_digest for one in known}) != 1:
            return None
        found = average_interval([one.right for one in known])
        return Interval(100 * found.low, 100 * found.high)

    def is_default(self) -> bool:
        """Whether nothing was set, and all images answered: else the paper's is another figure."""
        return all(
            differing(result) == {} and not result.is_partial for result in self.results.values()
        )


@dataclass(frozen=True)
class Group:
    """Lines that can be compared: the same images at the same batch size.

    Attributes:
        setting: what they have in common (`ttc_core.rows.setting`), and the severity.
        history: continual: the corruptions in the order they came, the columns among them; None:
            not told, or each began at the source.
        told: names in the setting that tell this group from another.
        columns: corruptions, "clean" first.
    """

    setting: Mapping[str, Any]
    history: History
    told: Sequence[str]
    columns: list[str]
    lines: list[Line]

    @cached_property
    def place(self) -> str:
        """Equal where groups differ in nothing but the batch size."""
        rest = {name: value for name, value in self.setting.items() if name != "batch_size"}
        return json.dumps([rest, self.history], sort_keys=True)

    @property
    def caption(self) -> str:
        """The setting in words."""
        s = self.setting.get
        severity = "" if s("severity") is None else f", severity {s('severity')}"
        seed = "" if s("seed") is None else f", seed {s('seed')}"
        limit = "" if s("limit") is None else f", first {s('limit')} images"
        return (
            f"{s('data')}{severity}; model {s('model')}, batches of {s('batch_size')}, "
            f"order {s('order')}, {s('protocol')}{seed}{limit}{self.differences}"
        )

    @property
    def differences(self) -> str:
        """What the usual caption does not say, where another group differs in it."""
        shown = [
            f"{name.replace('_', ' ')} {telling(self.setting.get(name))}"
            for name in self.told
            if name not in _CAPTION
        ]
        if self.history:
            shown.append(f"in the order {', '.join(self.history)}")
        return "".join(f", {text}" for text in shown)

    def paper_line(
        self, tables: tuple[int, ...], line: str, *, batch_size: int = 100
    ) -> paper.PaperLine | None:
        """The paper's, if all but the machine is the paper's; it printed this line for a size."""
        s = self.setting.get
        as_the_paper = (s("severity"), s("batch_size"), s("limit"), s("protocol"))
        if as_the_paper != (5, batch_size, None, "episodic") or s("order") not in ("file", "iid"):
            return None
        return paper.find(tables, s("data"), s("model"), line)


def average_title(columns: Sequence[str]) -> str:
    """The head of a column of averages: over how many, unless over the fifteen."""
    names = averaged(columns)
    return "Avg" if set(names) == set(CORRUPTIONS) else f"Avg of {len(names)}"


def groups(results: Iterable[Result]) -> list[Group]:
    """Put rows together that differ in method, settings and corruption alone.

    Of rows that measure the same again the last one counts, a whole one before a partial one.
    "clean" has no severity of its own and goes beside every other. Continual rows go together
    where they may be of one pass: one comes after those that the other came after.
    """
    counted = accuracies(results)
    states = _data_states(counted)
    severities: dict[str, dict[Any, None]] = {}
    histories: dict[str, dict[History, None]] = {}
    for result in counted:
        key = _key(result, states)
        histories.setdefault(key, {})[_history(result)] = None
        if (severity := _severity(result)) is not None or result["corruption"] != "clean":
            severities.setdefault(key, {})[severity] = None
    cells: dict[tuple[str, Any, History], dict[tuple[str, str], dict[str, Result]]] = {}
    for result, label in zip(counted, labels(counted), strict=True):
        key, history, severity = _key(result, states), _history(result), _severity(result)
        everywhere = result["corruption"] == "clean" and severity is None
        for each in severities.get(key, [None]) if everywhere else [severity]:
            for whole in _longest(history, histories[key]):
                lines = cells.setdefault((key, each, whole), {})
                line = lines.setdefault((label, json.dumps(result.settings, sort_keys=True)), {})
                known = line.get(result["corruption"])
                if known is None or known.is_partial or not result.is_partial:
                    line[result["corruption"]] = result
    settings = [json.loads(key) | {"severity": severity} for key, severity, _ in cells]
    names = sorted({name for each in settings for name in each})
    told = [name for name in names if len({json.dumps(one.get(name)) for one in settings}) > 1]
    return [
        _group(one, history, told, lines)
        for one, ((_, _, history), lines) in zip(settings, cells.items(), strict=True)
    ]


def _key(result: Result, states: Mapping[str, int]) -> str:
    found = {name: value for name, value in setting(result.row).items() if name not in _LAID_OUT}
    if result.is_of_a_benchmark and "data_digest" in found:
        found["data_state"] = states[found.pop("data_digest")]
    return json.dumps(found, sort_keys=True)


def _data_states(results: Iterable[Result]) -> dict[str, int]:
    """For digests of a benchmark's files, each corruption's own: as how many-th it was seen.

    Columns go together until one was measured on files that were changed since.
    """
    seen: dict[str, list[str]] = {}
    states: dict[str, int] = {}
    for result in results:
        if not (result.is_of_a_benchmark and result["data_digest"]):
            continue
        same = {name: result[name] for name in ("data", "corruption", "severity", "limit")}
        known = seen.setdefault(json.dumps(same), [])
        if (digest := str(result["data_digest"])) not in known:
            known.append(digest)
        states[digest] = max(states.get(digest, 0), known.index(digest))
    return states


def _severity(result: Result) -> Any:
    return result["after_severity"] if result["severity"] is None else result["severity"]


def _history(result: Result) -> History:
    after = result["after"]
    return None if after is None else (*after, str(result["corruption"]))


def _longest(history: History, known: Iterable[History]) -> list[History]:
    """The passes that this one may be the beginning of."""
    if history is None:
        return [None]
    longer = [one for one in known if one is not None and one[: len(history)] == history]
    return [one for one in longer if not any(o != one and o[: len(one)] == one for o in longer)]


def _group(
    place: Mapping[str, Any],
    history: History,
    told: Sequence[str],
    lines: Mapping[tuple[str, str], Mapping[str, Result]],
) -> Group:
    present = dict.fromkeys(name for results in lines.values() for name in results)
    known = [name for name in ("clean", *CORRUPTIONS) if name in present]
    named = [label for label, _ in lines]
    found: dict[str, Mapping[str, Result]] = {}
    for (label, settings), results in lines.items():
        # Rows of an older version may lack a setting, and look like the defaults.
        found[label if named.count(label) == 1 else f"{label} {settings}"] = results
    return Group(
        setting=place,
        history=history,
        told=told,
        columns=known + [name for name in present if name not in known],  # mixtures
        lines=[Line(label, found[label]) for label in in_order(found)],
    )
