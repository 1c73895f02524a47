"""What a pass over one corruption adds up to, offline or over HTTP. Knows no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttc_core.calibration import mean_and_error, terms_of

WINDOW = 500


@dataclass
class Tally:
    """What a pass over one corruption adds up to.

    Attributes:
        length: images of the stream.
        judged: images answered whose label counts; others have the label -1.
        entropy_sum: nats, over the images answered.
        selected: images that the method learned from.
        learned: images of the batches that something was learned from: of a method that learns by
            gradients each had a backward pass.
        seconds: that it took.
        held: images that the source answered in a method's place.
        acts: what a guard did, and after how many images.
        columns: what is kept of each image, in stream order.
    """

    length: int
    images: int = 0
    judged: int = 0
    correct: int = 0
    entropy_sum: float = 0.0
    selected: int = 0
    learned: int = 0
    steps: int = 0
    seconds: float = 0.0
    held: int = 0
    acts: list[dict[str, Any]] = field(default_factory=list)
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Of the images that are judged; nan where there are none yet."""
        return self.correct / self.judged if self.judged else math.nan

    def results(self, *, selects: bool) -> dict[str, Any]:
        """The result fields of a row; None where nothing was answered."""
        return {
            "images": self.images,
            "judged": self.judged,
            "correct": self.correct,
            "accuracy": self.accuracy if self.judged else None,
            "entropy": self.entropy_sum / self.images if self.images else None,
            "selection_rate": self.selected / self.images if selects and self.images else None,
            "steps": self.steps,
            "seconds": self.seconds,
            "images_per_second": self.images / self.seconds if self.seconds > 0 else None,
        }

    def windows(self) -> dict[str, Any]:
        """Accuracy by WINDOW places of the stream, the last window may be short; and the worst.

        Of the judged images that have an answer; None in a window without any. A short window is
        the worst only where it is alone.
        """
        predicted, labels = self.columns["predicted"], self.columns["labels"]
        found: list[float | None] = []
        for start in range(0, self.length, WINDOW):
            part = slice(start, start + WINDOW)
            counted = (labels[part] >= 0) & (predicted[part] >= 0)
            right = (predicted[part] == labels[part])[counted]
            found.append(float(right.mean()) if len(right) else None)
        whole = found[: max(1, self.length // WINDOW)]
        known = [each for each in whole if each is not None]
        return {"window_accuracy": found, "worst_window": min(known, default=None)}

    def calibration(self) -> dict[str, float | None]:
        """ECE and NLL of the judged images that have an answer, and their standard errors.

        None where the column that they follow from was not kept.
        """
        counted = (self.columns["labels"] >= 0) & (self.columns["predicted"] >= 0)
        terms = terms_of({name: values[counted] for name, values in self.columns.items()})
        results: dict[str, float | None] = {}
        for name in ("ece", "nll"):
            known = mean_and_error(terms[name]) if name in terms else (None, None)
            results[name], results[f"{name}_error"] = known
        return results

    def suspects(self, kinds: Sequence[str]) -> dict[str, dict[str, int]]:
        """How many images looked like a faulty camera's, by kind, where that was looked at."""
        if "suspect" not in self.columns:
            return {}
        counts = np.bincount(self.columns["suspect"], minlength=len(kinds) + 1)[1:]
        return {"suspects": {kind: int(n) for kind, n in zip(kinds, counts, strict=True) if n}}

    def add(self, columns: dict[str, NDArray[Any]], start: int | None = None) -> None:
        """Count a batch of N images.

        Args:
            columns: (N, ...) each; predicted, labels, entropy and selected among them. They are
                copied: views would keep whole batches of logits alive.
            start: the place of the first image; None: behind those that were answered.
        """
        start, count = self.images if start is None else start, len(columns["labels"])
        for name, values in columns.items():
            if name not in self.columns:
                self.columns[name] = np.empty((self.length, *values.shape[1:]), values.dtype)
            self.columns[name][start : start + count] = values
        self.images += count
        self.judged += int((columns["labels"] >= 0).sum())
        self.correct += int((columns["predicted"] == columns["labels"]).sum())
        self.entropy_sum += float(columns["entropy"].sum(dtype=np.float64))
        self.selected += int(columns["selected"].sum())
