"""What a person sees while `replay`, `evaluate` and the demo run: progress, and tables at the end.

On a terminal a view that moves; elsewhere plain lines: at the start and the end of each
corruption, and every few seconds.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ttc_core.rows import averaged

Row = Mapping[str, Any]

_NONE = "–"  # noqa: RUF001  the dash of a cell that has no number
_MILLISECONDS = 1000.0


class View:
    """The progress of one corruption after another: start, update as often as wished, finish.

    Args:
        console: where it shows; its being a terminal or not decides how.
        seconds_between_lines: how often a plain line comes, where it is no terminal.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        seconds_between_lines: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console()
        self._seconds_between_lines, self._clock = seconds_between_lines, clock
        self._live: Live | None = None
        self._clear("", 0)

    def _clear(self, title: str, total: int) -> None:
        self._title, self._total = title, total
        self._done = self._correct = self._selected = self._steps = 0
        self._entropy_sum = 0.0
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
        self,
        *,
        done: int,
        correct: int,
        entropy_sum: float,
        selected: int,
        steps: int,
        latency: float | None = None,
        seconds_left: float | None = None,
    ) -> None:
        """Show how far it is; all but the times are totals since `start`.

        Args:
            done: images answered.
            correct: of these, the ones answered right.
            entropy_sum: nats, over the images answered.
            selected: images that the method learned from.
            steps: of the optimizer.
            latency: seconds that the latest request took.
            seconds_left: until all of it is done, not this corruption alone.
        """
        self._seconds_left = seconds_left
        self._done, self._correct, self._selected = done, correct, selected
        self._entropy_sum, self._steps = entropy_sum, steps
        if latency is not None:
            self._latencies.append(latency)
        now = self._clock()
        if self._live is None and now - self._last_line >= self._seconds_between_lines:
            self._last_line = now
            self.say(f"{self._title}: {self._done:,} of {self._total:,} images, {self._numbers()}")

    def finish(self, row: Row) -> None:
        """End a corruption with its result row."""
        self._stop()
        parts = [
            f"{row['images']:,} images in {row['seconds']:.1f} s",
            f"accuracy {_percent(row['accuracy'])} %",
            f"entropy {_decimals(row['entropy'], 3)}",
            f"selected {_percent(row['selection_rate'])} %",
            f"{_whole(row['steps'])} steps",
            f"{_whole(row['images_per_second'])} images/s",
        ]
        if row.get("latency_p50") is not None:
            parts.append(f"p50 {_latency(row['latency_p50'])} ms")
            parts.append(f"p99 {_latency(row['latency_p99'])} ms")
        self.say(f"{self._title}: {', '.join(parts)}")
        self._clear("", 0)

    def interrupt(self) -> None:
        """End a corruption that was not finished: what there is, is shown and belongs to no row."""
        if self._total == 0:
            return
        self._stop()
        numbers = f", {self._numbers()}" if self._done else ""
        self.say(
            f"{self._title}: stopped after {self._done:,} of {self._total:,} images{numbers}; "
            "not among the results"
        )
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

    def _numbers(self) -> str:
        done, seconds = max(self._done, 1), self._clock() - self._started
        parts = [
            f"accuracy {_percent(self._correct / done)} %",
            f"entropy {_decimals(self._entropy_sum / done, 3)}",
            f"selected {_percent(self._selected / done if self._selected else None)} %",
            f"{self._steps:,} steps",
            f"{_whole(self._done / seconds if seconds > 0 else None)} images/s",
        ]
        if self._latencies:
            p50, p99 = np.percentile(self._latencies, (50, 99))
            parts += [f"p50 {_latency(p50)} ms", f"p99 {_latency(p99)} ms"]
        if self._seconds_left is not None:
            parts.append(f"about {_duration(self._seconds_left)} left")
        return ", ".join(parts)

    def _picture(self) -> RenderableType:
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text(self._title, style="bold"),
            ProgressBar(total=max(self._total, 1), completed=self._done, width=30),
            Text(f"{self._done:,} of {self._total:,} images"),
        )
        return Group(head, Text(self._numbers() if self._done else "preparing …"))


def results_table(rows: Sequence[Row], *, title: str | None = None) -> Table:
    """One line a row, then the averages, per method and batch size if there are several.

    Columns that would say the same everywhere (method, batch size), or nothing (latencies,
    refused and failed images), are left out.
    """
    several = [
        (name, header)
        for name, header in (("method", "method"), ("batch_size", "batch"))
        if len({row[name] for row in rows}) > 1
    ]
    numbers = [
        (name, header, show)
        for name, header, show in _COLUMNS
        if name not in _SHOWN_IF_ANY or any(row.get(name) for row in rows)
    ]
    table = Table(title=title, title_justify="left")
    for _, header in several:
        table.add_column(header)
    table.add_column("corruption")
    for _, header, _ in numbers:
        table.add_column(header, justify="right")
    for row in rows:
        keys = [str(row[name]) for name, _ in several]
        cells = [show(row.get(name)) for name, _, show in numbers]
        table.add_row(*keys, _corruption(row), *cells)
    if len({_corruption(row) for row in rows}) > 1:
        table.add_section()
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            groups.setdefault(tuple(str(row[name]) for name, _ in several), []).append(row)
        for group, members in groups.items():
            means = [
                show(_mean(row.get(name) for row in _averaged(members)))
                if name in _AVERAGED
                else ""
                for name, _, show in numbers
            ]
            table.add_row(*group, _average(members, rows), *means, style="bold")
    return table


def comparison_table(rows: Sequence[Row], *, title: str | None = None) -> Table:
    """Accuracy in percent, a line a corruption and a column a method, with averages.

    With several methods, the last column says in points how far the last is above the first. A
    corruption that comes twice for a method counts with its latest row.
    """
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    corruptions = list(dict.fromkeys(_corruption(row) for row in rows))
    accuracy = {(_corruption(row), str(row["method"])): row["accuracy"] for row in rows}
    table = Table(title=title, title_justify="left")
    table.add_column("accuracy, %")
    for method in methods:
        table.add_column(method, justify="right")
    gain = len(methods) > 1
    if gain:
        table.add_column(f"{methods[-1]} − {methods[0]}", justify="right")

    def cells(values: Sequence[float | None]) -> list[str]:
        first, last = values[0], values[-1]
        points = _NONE if first is None or last is None else f"{100 * (last - first):+.1f}"
        return [_percent(value) for value in values] + [points] * gain

    for corruption in corruptions:
        table.add_row(corruption, *cells([accuracy.get((corruption, name)) for name in methods]))
    if len(corruptions) > 1:
        table.add_section()
        whole = dict.fromkeys(_corruption(row) for row in _averaged(rows))
        columns = [[accuracy.get((name, method)) for name in whole] for method in methods]
        # A mean over other corruptions than the neighbour's would not be comparable.
        means = [None if None in column else _mean(column) for column in columns]
        table.add_row("average", *cells(means), style="bold")
    return table


def _corruption(row: Row) -> str:
    severity = row.get("severity")
    return str(row["corruption"]) if severity is None else f"{row['corruption']} {severity}"


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


def _percent(fraction: float | None) -> str:
    return _NONE if fraction is None else f"{100 * fraction:.1f}"


def _decimals(value: float | None, places: int) -> str:
    return _NONE if value is None else f"{value:.{places}f}"


def _whole(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _latency(seconds: float | None) -> str:
    return _NONE if seconds is None else f"{seconds * _MILLISECONDS:,.1f}"


def _count(value: int | Mapping[str, int] | None) -> str:
    """`429: 300` for counts by status, the number itself for a plain one."""
    if isinstance(value, Mapping):
        return ", ".join(f"{status}: {count:,}" for status, count in value.items()) or "0"
    return _whole(value or 0)


_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("images", "images", _whole),
    ("accuracy", "accuracy %", _percent),
    ("entropy", "entropy", lambda value: _decimals(value, 3)),
    ("selection_rate", "selected %", _percent),
    ("steps", "steps", _whole),
    ("images_per_second", "images/s", _whole),
    ("latency_p50", "p50 ms", _latency),
    ("latency_p90", "p90 ms", _latency),
    ("latency_p99", "p99 ms", _latency),
    ("latency_max", "max ms", _latency),
    ("refused", "refused", _count),
    ("errors", "errors", _count),
    ("dropped", "dropped", _count),
    ("late", "late", _count),
)
_SHOWN_IF_ANY = frozenset(
    {"latency_p50", "latency_p90", "latency_p99", "latency_max"}
    | {"refused", "errors", "dropped", "late"}
)
_AVERAGED = frozenset({"accuracy", "entropy", "selection_rate", "images_per_second"})
