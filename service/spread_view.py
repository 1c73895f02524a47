"""What a person sees while the rows of `ttc evaluate --ray` are made, several at a time."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.evaluation_view import Estimate, Kind, keep_predictions, kind_of
from service.view import View, duration, results_text
from ttc_core.evaluate import Run
from ttc_core.evaluation import Step
from ttc_core.order import note_on_runs
from ttc_core.rows import Arrays, Row, same_images
from ttc_core.tally import Tally


@dataclass
class Flight:
    """A step that a worker is at.

    `order` is its place among all steps, `made` how many of its passes are over, `host` where the
    worker is, once it is known.
    """

    order: int
    step: Step
    tries: int = 1
    made: int = 0
    tally: Tally | None = None
    host: str | None = None

    @property
    def title(self) -> str:
        """The method, and what it is or was at."""
        at = self.step.asked[min(self.made, len(self.step.asked) - 1)]
        return f"{self.step.run.name} {at.stream.corruption}"

    @property
    def images_left(self) -> int:
        """Of all its passes."""
        lengths = [len(one.stream) for one in self.step.asked[self.made :]]
        return sum(lengths) - (self.tally.images if self.tally is not None else 0)

    @property
    def keys(self) -> set[str]:
        """Equal to others' where they are over the same images."""
        return {same_images(one.row) for one in self.step.asked}


class SpreadView:
    """One view of all rows: on a terminal a bar for each under way, elsewhere lines.

    Args:
        view: where it shows.
        passes: the kind of each pass, all of them.
        predictions: a file for the columns of the one pass.
        order: of the images.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        view: View,
        passes: Sequence[Kind],
        predictions: Path | None,
        order: str,
        *,
        seconds_between_lines: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.view, self._predictions, self._order = view, predictions, order
        self._all, self._estimate = len(passes), Estimate(passes)
        self._clock, self._seconds_between_lines = clock, seconds_between_lines
        self._last_line = clock()
        self._rows: dict[tuple[int, int], Row] = {}
        self._flights: list[Flight] = []
        self._seconds_left: float | None = None
        self._noted: set[str] = set()
        self._live: Live | None = None

    @property
    def rows(self) -> list[Row]:
        """Those that are there by now, in the order of one process."""
        return [self._rows[key] for key in sorted(self._rows)]

    def say(self, sentence: str) -> None:
        """Show a sentence, on a line of its own."""
        self.view.say(sentence)

    def found(self, order: int, run: Run, row: Row) -> None:
        """A row is there already."""
        self._rows[order, 0] = row
        self._estimate.skip(kind_of(run))

    def started(self, flight: Flight) -> None:
        """A worker is sent for."""
        for one in flight.step.asked:
            stream = one.stream
            self._estimate.begin(kind_of(flight.step.run), len(stream))
            note = note_on_runs(stream.labels[stream.labels >= 0], self._order)
            if note and stream.corruption not in self._noted:
                self._noted.add(stream.corruption)
                self.say(f"{stream.corruption}: {note}.")

    def progressed(self, flight: Flight) -> None:
        """A worker told how far it is."""
        if flight.tally is not None and flight.tally.seconds > 0:
            run = flight.step.run
            self._estimate.took(kind_of(run), flight.tally.seconds, flight.tally.images)

    def finished(self, flight: Flight, row: Row, columns: Arrays) -> None:
        """A row was made and entered."""
        self._rows[flight.order, flight.made] = row
        if row["images"]:
            self._estimate.took(kind_of(flight.step.run), row["seconds"], row["images"])
        self.say(f"{flight.title}: {results_text(row)}")
        keep_predictions(self._predictions, columns)

    def missed(self, flight: Flight, sentence: str) -> None:
        """A row will not be made."""
        self.say(sentence)

    def tick(self, flights: Iterable[Flight], places: int) -> None:
        """Show what is under way, of a cluster with so many places."""
        self._flights = [*flights]
        rests = [(kind_of(one.step.run), one.images_left) for one in self._flights]
        work = self._estimate.seconds_left(rests)
        self._seconds_left = None if work is None else work / max(1, places)
        now = self._clock()
        if self.view.console.is_terminal:
            if self._live is None:
                self._live = Live(
                    get_renderable=self._picture, console=self.view.console, refresh_per_second=4
                )
                self._live.start()
        elif self._flights and now - self._last_line >= self._seconds_between_lines:
            self._last_line = now
            under_way = ", ".join(f"{one.title} {_done(one)}" for one in self._flights)
            self.say(f"{self._numbers()}; under way: {under_way}")

    def end(self) -> None:
        """Nothing is under way any more; what was is told, and belongs to no row."""
        if self._live is not None:
            self._live.transient = True
            self._live.stop()
            self._live = None
        for flight in self._flights:
            self.say(f"{flight.title}: stopped after {_done(flight)}; not among the results")
        self._flights = []

    def _numbers(self) -> str:
        left = "" if self._seconds_left is None else f", about {duration(self._seconds_left)} left"
        return f"{len(self._rows):,} of {self._all:,} rows{left}"

    def _picture(self) -> RenderableType:
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text("all rows", style="bold"),
            ProgressBar(total=max(self._all, 1), completed=len(self._rows), width=30),
            Text(self._numbers()),
        )
        for one in self._flights:
            images = 0 if one.tally is None else one.tally.images
            total = images if one.tally is None else one.tally.length
            bar = ProgressBar(total=max(total, 1), completed=images, width=30)
            head.add_row(Text(one.title), bar, Text(_done(one)))
        return Group(head)


def _done(flight: Flight) -> str:
    if flight.tally is None:
        return "preparing …" if flight.host is None else f"on {flight.host}"
    return f"{flight.tally.images:,} of {flight.tally.length:,} images"
