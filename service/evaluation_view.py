"""What a person sees while `ttc evaluate` runs, and how long it will still take."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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
    """The seconds of work that passes still are, from what others took.

    Args:
        passes: the kind of each pass, all of them.
    """

    def __init__(self, passes: Iterable[Kind]) -> None:
        self._waiting = Counter(passes)
        self._seconds: dict[Kind, float] = {}
        self._images = 0

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
        self._images = images

    def took(self, kind: Kind, seconds: float, images: int) -> None:
        """So many images of a pass of this kind, at least one, took so long."""
        self._seconds[kind] = seconds / images

    def seconds_left(self, under_way: Iterable[tuple[Kind, int]]) -> float | None:
        """Of the passes under way, each with the images that it has still to answer, and later.

        A kind that was not met yet is taken to be as fast as the others on average, and each pass
        to be as long as the one that began last. None before any was told of.
        """
        if not self._seconds:
            return None
        typical = sum(self._seconds.values()) / len(self._seconds)
        rests = [*under_way]
        rests += [(kind, count * self._images) for kind, count in self._waiting.items()]
        return sum(images * self._seconds.get(kind, typical) for kind, images in rests)


def keep_predictions(path: Path | None, columns: Arrays) -> None:
    """Write what was answered to each image, where that is asked for."""
    if path is not None:
        others = {*calibration.COLUMNS, "suspect", "mode"}
        save_arrays(path, {name: columns[name] for name in columns.keys() - others})


class EvaluationView:
    """Shows an evaluation, and keeps what was answered to each image if asked to.

    Args:
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.view, self._predictions, self._order = view, predictions, order
        self.rows: list[dict[str, Any]] = []
        self._estimate, self._clock = Estimate(passes), clock
        self._several_sizes = len({batch_size for _, batch_size in passes}) > 1

    def found(self, run: Run, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._estimate.skip(kind_of(run))

    def started(self, run: Run, stream: Stream) -> None:
        if note := note_on_runs(stream.labels[stream.labels >= 0], self._order):
            self.view.say(f"{stream.corruption}: {note}.")
        self._kind, self._started = kind_of(run), self._clock()
        self._estimate.begin(self._kind, len(stream))
        batches = f", batches of {run.batch_size}" if self._several_sizes else ""
        after = f" ({waiting} more after it)" if (waiting := self._estimate.waiting) else ""
        self.view.start(f"{run.name} {stream.corruption}{batches}{after}", len(stream))

    def progressed(self, tally: Tally) -> None:
        self._estimate.took(self._kind, self._clock() - self._started, tally.images)
        left = self._estimate.seconds_left([(self._kind, tally.length - tally.images)])
        self.view.update(tally, seconds_left=left)

    def finished(self, run: Run, row: dict[str, Any], columns: Arrays) -> None:
        self.rows.append(row)
        self.view.finish(row)
        keep_predictions(self._predictions, columns)

    def end(self) -> None:
        """Show where a pass was left that did not come to its end."""
        self.view.interrupt()
