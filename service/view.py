"""What a person sees while `replay`, `evaluate` and the demo run: progress, and tables at the end.

On a terminal a view that moves; elsewhere plain lines: at the start and the end of each
corruption, and every few seconds.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.live import Live
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ttc_core.report.configuration import configurations
from ttc_core.rows import OPTIONAL_FIELDS, UNKNOWN, averaged, differing, setting, value_text
from ttc_core.tally import Tally

Row = Mapping[str, Any]

_NONE = "–"  # noqa: RUF001  the dash of a cell that has no number


class View:
    """The progress of one corruption after another: start, update as often as wished, finish.

    Args:
        console: where it shows; its being a terminal or not decides how.
        seconds_between_lines: how often a plain line comes, where it is no terminal.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        console: Console,
        *,
        seconds_between_lines: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console
        self._seconds_between_lines, self._clock = seconds_between_lines, clock
        self._live: Live | None = None
        self._clear("", 0)

    def _clear(self, title: str, total: int) -> None:
        self._title, self._total, self._tally = title, total, Tally(total)
        self._seconds_left: float | None = None
        self._latencies: list[float] = []
        self._started = self._last_line = self._clock()

    def start(self, title: str, total: int) -> None:
        """Begin with `total` images under a title: the corruption, and what tells it apart."""
        self._stop()
        self._clear(title, total)
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._picture, console=self.console, refresh_per_second=4
            )
            self._live.start()
        else:
            self.say(f"{title}: {total:,} images")

    def begin(self) -> None:
        """Count the time from here: what came since `start` was preparation."""
        self._started = self._clock()

    def update(
        self, tally: Tally, *, latency: float | None = None, seconds_left: float | None = None
    ) -> None:
        """Show how far it is.

        Args:
            tally: of what came since `start`.
            latency: seconds that the latest request took.
            seconds_left: until all of it is done, not this corruption alone.
        """
        self._tally, self._seconds_left = tally, seconds_left
        if latency is not None:
            self._latencies.append(latency)
        now = self._clock()
        if self._live is None and now - self._last_line >= self._seconds_between_lines:
            self._last_line = now
            self.say(f"{self._title}: {self._done}, {self._numbers()}")

    def finish(self, row: Row) -> None:
        """End a corruption with its result row."""
        self._stop()
        self.say(f"{self._title}: {results_text(row)}")
        self._clear("", 0)

    def interrupt(self) -> None:
        """End a corruption that was not finished: what there is, is shown and belongs to no row."""
        if self._total == 0:
            return
        self._stop()
        numbers = f", {self._numbers()}" if self._tally.images else ""
        self.say(f"{self._title}: stopped after {self._done}{numbers}; not among the results")
        self._clear("", 0)

    def say(self, sentence: str) -> None:
        """Show a sentence, on a line of its own."""
        self.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def table(self, table: Table) -> None:
        """Show a table; whole, however wide, where it is no terminal."""
        if not self.console.is_terminal:
            unbounded = self.console.options.update(width=1000)
            table.width = Measurement.get(self.console, unbounded, table).maximum
        self.console.print(table, crop=False)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.transient = True
            self._live.stop()
            self._live = None

    @property
    def _done(self) -> str:
        return f"{self._tally.images:,} of {self._total:,} images"

    def _numbers(self) -> str:
        found = self._tally.results(selects=self._tally.selected > 0)
        seconds = self._clock() - self._started
        found["images_per_second"] = self._tally.images / seconds if seconds > 0 else None
        if self._latencies:
            p50, p99 = np.percentile(self._latencies, (50, 99))
            found |= {"latency_p50": p50, "latency_p99": p99}
        left, found["held"] = self._seconds_left, self._tally.held
        return _numbers(found) + ("" if left is None else f", about {duration(left)} left")

    def _picture(self) -> RenderableType:
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text(self._title, style="bold"),
            ProgressBar(total=max(self._total, 1), completed=self._tally.images, width=30),
            Text(self._done),
        )
        return Stack(head, Text(self._numbers() if self._tally.images else "preparing …"))


def results_text(row: Row) -> str:
    """What came of a pass that is over, in a line."""
    return f"{row['images']:,} images in {row['seconds']:.1f} s, {_numbers(row)}"


def _numbers(row: Row) -> str:
    """The results of a row in a line."""
    parts = [
        f"accuracy {_percent(row['accuracy'])} %",
        f"entropy {_entropy(row['entropy'])}",
        f"selected {_percent(row['selection_rate'])} %",
        f"{_whole(row['steps'])} steps",
        f"{_whole(row['images_per_second'])} images/s",
    ]
    if row.get("held"):
        parts.append(f"{_whole(row['held'])} held")
    if row.get("latency_p50") is not None:
        parts += [f"{name} {_latency(row[f'latency_{name}'])} ms" for name in ("p50", "p99")]
    return ", ".join(parts)


# What a pass goes through: told of a row beside its method, or follows from its corruption.
_OF_A_PASS = ("corruption", "severity", "after", "visit", "data_digest")


def _lines(rows: Sequence[Row]) -> tuple[list[str], list[tuple[str, ...]]]:
    """What a table has to say of each row beside its corruption: what tells it from others.

    Returns:
        The heads of as many columns, and for each row its texts there.
    """
    settings = []
    for row, one in zip(rows, configurations(rows), strict=True):
        told = setting(row) | {"method": one.label}
        settings.append({name: told[name] for name in told if name != "settings"})
    same: dict[str, list[Row]] = {}
    for row, told in zip(rows, settings, strict=True):
        same.setdefault(_corruption(row), []).append(told)
    again = {name for each in same.values() for name in differing(each)}
    names = [name for name in differing(settings) if name not in _OF_A_PASS or name in again]
    names.sort(key=lambda name: (name != "method", name != "batch_size"))
    heads = ["batch" if name == "batch_size" else name.replace("_", " ") for name in names]
    missing = {name: _NONE if name in OPTIONAL_FIELDS else UNKNOWN for name in names}
    return heads, [
        tuple(value_text(told.get(name, missing[name])) for name in names) for told in settings
    ]


def results_table(rows: Sequence[Row]) -> Table:
    """One line a row, then the averages of each line that differs in more than the corruption.

    Columns that would say the same everywhere (method, batch size), or nothing (latencies,
    refused and failed images), are left out.
    """
    heads, lines = _lines(rows)
    numbers = [*_ALWAYS, *(each for each in _IF_ANY if any(row.get(each[0]) for row in rows))]
    table = Table(*heads, "corruption")
    for _, header, _ in numbers:
        table.add_column(header, justify="right")
    members: dict[tuple[str, ...], list[Row]] = {}
    for line, row in zip(lines, rows, strict=True):
        table.add_row(*line, _corruption(row), *(show(row.get(name)) for name, _, show in numbers))
        members.setdefault(line, []).append(row)
    if len({_corruption(row) for row in rows}) > 1:
        table.add_section()
        for line, found in members.items():
            means = [
                show(_mean(row.get(name) for row in _averaged(found))) if name in _AVERAGED else ""
                for name, _, show in numbers
            ]
            table.add_row(*line, _average(found, rows), *means, style="bold")
    return table


def _corruption(row: Row) -> str:
    severity = "" if row.get("severity") is None else f" {row['severity']}"
    visit = "" if row.get("visit") is None else f", visit {row['visit']}"
    return f"{row['corruption']}{severity}{visit}"


def _averaged(rows: Sequence[Row]) -> list[Row]:
    """The rows of corruptions; clean images and mixtures stand beside them, as in the report."""
    return [row for row in rows if averaged([str(row["corruption"])])]


def _average(rows: Sequence[Row], all_rows: Sequence[Row]) -> str:
    """Over how many, where others are over more: after an interruption, say."""
    count = len(_averaged(rows))
    whole = len({_corruption(row) for row in _averaged(all_rows)})
    return "average" if count == whole else f"average of {count} of {whole}"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _shown(value: float | None, form: str, factor: float = 1.0) -> str:
    return _NONE if value is None else format(factor * value, form)


_percent = partial(_shown, form="z.1f", factor=100.0)
_entropy = partial(_shown, form="z.3f")
_whole = partial(_shown, form=",.0f")
_latency = partial(_shown, form=",.1f", factor=1000.0)


def duration(seconds: float) -> str:
    """In the largest unit of which there are two."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _count(value: int | Mapping[str, int] | None) -> str:
    """`429: 300` for counts by status, the number itself for a plain one."""
    if isinstance(value, Mapping):
        return ", ".join(f"{status}: {count:,}" for status, count in value.items()) or "0"
    return _whole(value or 0)


_Columns = tuple[tuple[str, str, Callable[[Any], str]], ...]
_ALWAYS: _Columns = (
    ("images", "images", _whole),
    ("accuracy", "accuracy %", _percent),
    ("entropy", "entropy", _entropy),
    ("selection_rate", "selected %", _percent),
    ("steps", "steps", _whole),
    ("images_per_second", "images/s", _whole),
)
_IF_ANY: _Columns = (
    ("utility", "utility %", _percent),
    ("availability", "availability %", _percent),
    ("timeliness", "timeliness %", _percent),
    ("alignment", "alignment %", partial(_shown, form="+z.1f", factor=100.0)),
    ("period_seconds", "period ms", _latency),
    ("spent_seconds", "spent ms", _latency),
    ("learned_images", "learned from", _whole),
    ("accuracy_learning", "accuracy learning %", _percent),
    ("accuracy_frozen", "accuracy frozen %", _percent),
    *((f"latency_{name}", f"{name} ms", _latency) for name in ("p50", "p90", "p99", "max")),
    *((name, name, _count) for name in ("held", "refused", "errors", "dropped", "skipped", "late")),
)
_AVERAGED = frozenset(
    {"accuracy", "entropy", "selection_rate", "images_per_second"}
    | {"utility", "availability", "timeliness", "alignment", "accuracy_learning", "accuracy_frozen"}
)
