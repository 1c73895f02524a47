"""What became of the images of one stream that was sent."""

import time
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from service.client import REFUSED, ServiceError
from service.replay.outbox import Batch
from service.schemas import PredictResponse
from service.view import View
from ttc_core.methods.contract import HELD
from ttc_core.tally import Tally


class ReplayTally(Tally):
    """The answers, their times, and what got none.

    Its columns are predicted, labels, entropy, confidence, selected, version and latency, (N,)
    each, in stream order. The latency is the request's, in seconds; an image without an answer has
    -1 or nan. The probability of the true class is not among them: an answer names the best class
    alone, and to ask for all would be another load.

    Attributes:
        latencies: seconds, one a request that was answered.
        lateness: seconds, one a request of an open load.
        refused: images, by HTTP status.
        errors: images, by HTTP status or "no answer".
        dropped: images that were never sent, as too many had no answer yet.
        skipped: images that were never sent, as the pipeline was busy when they came.
        retries: requests that were sent again.
    """

    def __init__(self, labels: NDArray[np.int64], view: View) -> None:
        count = len(labels)
        columns = {
            "predicted": np.full(count, -1, np.int64),
            "labels": labels.copy(),
            "entropy": np.full(count, np.nan),
            "confidence": np.full(count, np.nan, np.float32),
            "selected": np.zeros(count, bool),
            "version": np.full(count, -1, np.int64),
            "latency": np.full(count, np.nan),
        }
        super().__init__(count, columns=columns)
        self._view = view
        self.latencies: list[float] = []
        self.lateness: list[float] = []
        self.refused: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.dropped = self.skipped = self.retries = 0
        self._first_version: int | None = None
        self._first_sent = 0.0

    def sends(self) -> float:
        """Note that a request leaves now; returns the time."""
        now = time.perf_counter()
        self._first_sent = self._first_sent or now
        return now

    def answered(self, batch: Batch, answer: PredictResponse, due: float) -> None:
        """Note an answer that came now to a request that was due then.

        Raises:
            ServiceError: it answers another number of images, or nonsense; nothing is noted.
        """
        now = time.perf_counter()
        found = answer.predictions
        if len(found) != batch.count:
            raise ServiceError(
                200, f"The service gave {len(found)} answers to {batch.count} images."
            )
        try:
            predicted = np.array([one.class_ for one in found], np.int64)
            version = np.broadcast_to(np.array(answer.version, np.int64), batch.count)
        except (ValueError, OverflowError) as error:
            raise ServiceError(200, f"The service's answer makes no sense: {error}.") from None
        if predicted.min() < 0 or version.min() < 0:
            raise ServiceError(200, "The service's answer makes no sense: numbers below 0.")
        confidence = np.array([one.confidence for one in found])
        if not np.isfinite(confidence).all():
            raise ServiceError(200, "The service's answer makes no sense: confidences of nan.")
        columns = {
            "predicted": predicted,
            "labels": self.columns["labels"][batch.start : batch.start + batch.count],
            "entropy": np.array([one.entropy for one in found]),
            "confidence": confidence.astype(np.float32),
            "selected": np.array([one.selected for one in found]),
            "version": version,
            "latency": np.full(batch.count, now - due),
        }
        self.add(columns, batch.start)
        self.held += sum(one.mode == HELD for one in found)
        self.seconds = now - self._first_sent
        self.latencies.append(now - due)
        newest = int(version.max())
        if self._first_version is None:
            self._first_version = newest
        self.steps = max(self.steps, newest - self._first_version)
        self._view.update(self, latency=now - due)

    def failed(self, batch: Batch, error: ServiceError) -> None:
        """Note a request that got no result."""
        kind = "no answer" if error.status is None else str(error.status)
        (self.refused if error.status in REFUSED else self.errors)[kind] += batch.count

    def percentile(self, percent: float) -> float | None:
        """Seconds within which so many of the answered requests were; None if none was."""
        return float(np.percentile(self.latencies, percent)) if self.latencies else None
