"""What a stream learned of late, summed up: one line instead of one a batch."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ttc_core.envelope.verdicts import NO_VERDICTS, Verdicts
from ttc_core.methods import Adaptation


@dataclass
class Sum:
    """What came of a stream's batches since a moment.

    Attributes:
        since: when the first of them came, in seconds since 1970.
        version_before, version: optimizer steps before the first, and after the last.
        drift: after the last; None: the stream went back with it, and nobody knows.
        images, batches: that were answered, to learn from; selected: images learned from.
        steps: times that the optimizer moved the parameters.
        skipped: batches of which nothing was learned, by reason.
        verdicts: what the envelope cut, and what it dropped.
    """

    since: float
    version_before: int
    version: int = 0
    drift: float | None = 0.0
    images: int = 0
    batches: int = 0
    selected: int = 0
    steps: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    verdicts: Verdicts = NO_VERDICTS

    def add(
        self,
        images: int,
        outcome: Adaptation,
        version: int,
        drift: float | None,
        verdicts: Verdicts,
    ) -> None:
        """Add a batch."""
        self.images += images
        self.batches += 1
        self.selected += outcome.selected
        self.steps += outcome.stepped
        if outcome.skipped is not None:
            self.skipped[outcome.skipped] += 1
        if verdicts != NO_VERDICTS:
            self.verdicts += verdicts
        self.version, self.drift = version, drift

    def told(self, stream: str, now: float) -> dict[str, Any]:
        """The line that tells it."""
        found: dict[str, Any] = {
            "time": round(now, 3),
            "event": "steps",
            "stream": stream,
            "seconds": round(now - self.since, 3),
            "images": self.images,
            "batches": self.batches,
            "selected": self.selected,
            "steps": self.steps,
            "version_before": self.version_before,
            "version": self.version,
            "drift": None if self.drift is None else round(self.drift, 6),
        }
        if self.skipped:
            found["skipped"] = dict(self.skipped)
        if verdicts := self.verdicts.told:
            found["verdicts"] = verdicts
        return found
