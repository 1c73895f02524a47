"""What a person sees while `ttc evaluate` runs, and how long it will still take."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from service.view import View
from ttc_core import calibration
from ttc_core.datasets import Stream
from ttc_core.evaluate import Run
from ttc_core.order import note_on_runs
from ttc_core.rows import Arrays, save_arrays
from ttc_core.tally import Tally

Kind = tuple[str, int]


def kind_of(run: Run) -> Kind:
    """Passes of one kind take about the same time an image."""
    return run.name, run.batch_size


class Estimate:
    """The seconds that an evaluation will still take, from what its passes took so far.

    Args:
        passes: the kind of each pass, all of them.
        clock: seconds, for tests.
    """

    def __init__(
        self, passes: Sequence[Kind], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._waiting, self._clock = Counter(passes), clock
        self._rates: dict[Kind, float] = {}

    @property
    def waiting(self) -> int:
        """The number of passes that are neither begun nor found."""
        return self._waiting.total()

    def skip(self, kind: Kind) -> None:
        """A pass of this kind need not be run."""
        self._waiting[kind] -= 1

    def begin(self, kind: Kind, images: int) -> None:
        """A pass over so many images begins."""
        self._waiting[kind] -= 1
        self._kind, self._images, self._started = kind, images, self._clock()

    def seconds_left(self, done: int) -> float:
        """After `done` images, at least 1, of the pass at hand.

        A kind that was not met yet is taken to be as fast as the others on average, and each pass
        to be as long as this one.
        """
        self._rates[self._kind] = (self._clock() - self._started) / done
        typical = sum(self._rates.values()) / len(self._rates)
        later = sum(count * self._rates.get(kind, typical) for kind, count in self._waiting.items())
        return (self._images - done) * self._rates[self._kind] + self._images * later


class EvaluationView:
    """Shows an evaluation, and keeps what was answered to each image if asked to.

    Args:
        passes: the kind of each pass, all of them.
        predictions: a file for the columns of the one pass.
        order: of the images.
    """

    def __init__(
        self, view: View, passes: Sequence[Kind], predictions: Path | None, order: str
    ) -> None:
        self.view, self._predictions, self._order = view, predictions, order
        self.rows: list[dict[str, Any]] = []
        self._estimate = Estimate(passes)
        self._several_sizes = len({batch_size for _, batch_size in passes}) > 1

    def found(self, run: Run, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._estimate.skip(kind_of(run))

    def started(self, run: Run, stream: Stream) -> None:
        if note := note_on_runs(stream.labels[stream.labels >= 0], self._order):
            self.view.say(f"{stream.corruption}: {note}.")
        self._estimate.begin(kind_of(run), len(stream))
        batches = f", batches of {run.batch_size}" if self._several_sizes else ""
        after = f" ({waiting} more after it)" if (waiting := self._estimate.waiting) else ""
        self.view.start(f"{run.name} {stream.corruption}{batches}{after}", len(stream))

    def progressed(self, tally: Tally, batch_seconds: float) -> None:
        self.view.update(tally, seconds_left=self._estimate.seconds_left(tally.images))

    def finished(self, run: Run, row: dict[str, Any], columns: Arrays) -> None:
        self.rows.append(row)
        self.view.finish(row)
        if self._predictions is not None:
            others = {*calibration.COLUMNS, "suspect", "mode"}
            kept = {name: columns[name] for name in columns.keys() - others}
            save_arrays(self._predictions, kept)
