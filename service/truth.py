"""What labels say of the answers, by stream, whether they came with the image or hours later."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from service.known_ids import KnownIds
from service.metrics import (
    ACCURACY_WINDOW,
    DOMINANCE_WINDOW,
    FEEDBACK_OUTCOMES,
    FEWEST_ANSWERS,
    Metrics,
)
from service.schemas import StreamTruth
from ttc_core.methods.contract import Answers, Right


class Feedback(NamedTuple):
    """What became of labels.

    Attributes:
        images: by outcome, of FEEDBACK_OUTCOMES, (stream, id) each.
        compared: by stream, of what was taken and both had answered: the answer's number, and who
            was right.
    """

    images: Mapping[str, list[tuple[str, str]]]
    compared: Mapping[str, list[tuple[int, Right]]]


class Truth:
    """Counts labels, and the classes answered of late. Any thread may use it.

    Args:
        ids: the answers that a label may still come for.
        most_streams: of which counts are kept; beyond, the one without a label for longest goes.
        lasting: counts are in files: none goes that no file has.
        note_change: told of each stream that a label came for.
    """

    def __init__(
        self,
        metrics: Metrics,
        ids: KnownIds,
        *,
        most_streams: int,
        lasting: bool = False,
        note_change: Callable[[str], None] = lambda stream: None,
    ) -> None:
        self._metrics, self._ids, self._most_streams = metrics, ids, most_streams
        self._note_change = note_change
        self._streams: dict[str, StreamTruth] = {}
        # Those whose counts include what their stream's file says.
        self._whole: set[str] = set()
        self._lasting, self._unsaved = lasting, set[str]()
        self._right: deque[bool] = deque(maxlen=ACCURACY_WINDOW)
        self._answered: deque[tuple[str, int]] = deque(maxlen=DOMINANCE_WINDOW)
        self._lock = threading.Lock()
        metrics.window_accuracy.set_function(lambda: self.window_accuracy)
        metrics.dominant_class.set_function(lambda: self.dominant_share)
        metrics.known_ids.set_function(lambda: len(ids))

    def remember(
        self,
        stream: str,
        ids: Sequence[str | None],
        predicted: Sequence[int],
        labels: Sequence[int | None],
        confidences: Sequence[float],
        compared: Sequence[Answers | None] = (),
    ) -> None:
        """Keep the answers to images with an id, before they go out: labels may follow at once.

        An empty id names nothing.
        """
        if any(ids):
            both = compared or [None] * len(ids)
            rows = zip(ids, predicted, labels, confidences, both, strict=True)
            for name, answer, label, confidence, answers in rows:
                if name:
                    self._ids.remember(stream, name, answer, label, confidence, answers)

    def count(
        self,
        stream: str,
        predicted: Sequence[int],
        labels: Sequence[int | None],
        confidences: Sequence[float],
    ) -> None:
        """Count a batch's answers, and those that came with a label."""
        with self._lock:
            self._answered.extend((stream, answer) for answer in predicted)
        rows = zip(predicted, labels, confidences, strict=True)
        judged = [(answer == label, sure) for answer, label, sure in rows if label is not None]
        self._count(stream, judged)

    def feedback(self, labels: Iterable[tuple[str, str, int]]) -> Feedback:
        """Count labels, (stream, id, label) each, that came after the answer.

        The first label of an answer counts, whichever way it came.
        """
        images: dict[str, list[tuple[str, str]]] = {outcome: [] for outcome in FEEDBACK_OUTCOMES}
        compared: dict[str, list[tuple[int, Right]]] = {}
        for stream, name, label in labels:
            given = self._ids.give(stream, name, label)
            images[given.outcome].append((stream, name))
            if given.outcome == "taken":
                self._count(stream, [(given.right, given.confidence)])
                if given.compared is not None:
                    compared.setdefault(stream, []).append((given.number, given.compared))
        for outcome, found in images.items():
            self._metrics.feedback_labels.labels(outcome).inc(len(found))
        return Feedback(images, compared)

    def _count(self, stream: str, judged: Sequence[tuple[bool, float | None]]) -> None:
        """Count answers: whether each was right, and its confidence where that is known."""
        if not judged:
            return
        right = [one for one, _ in judged]
        with self._lock:
            self._right.extend(right)
            if self._lasting:
                self._unsaved.add(stream)
            given = StreamTruth(labelled=len(right), correct=sum(right))
            self._keep(stream, _sum(self._streams.get(stream, StreamTruth()), given))
        self._note_change(stream)
        self._metrics.labelled.inc(len(right))
        self._metrics.correct.inc(sum(right))
        for was_right, confidence in judged:
            if confidence is not None:
                self._metrics.count_confidence(confidence, right=was_right)

    def take_up(self, stream: str, saved: StreamTruth, *, saving: bool = False) -> StreamTruth:
        """Count what a stream's file says, if that is not counted; return what it is to say.

        Args:
            saving: it is about to be told that.
        """
        with self._lock:
            if saving:
                self._unsaved.discard(stream)
            said = self._streams.get(stream, StreamTruth())
            if stream not in self._whole:
                said = _sum(saved, said)
                if said.labelled:
                    self._keep(stream, said)
                    self._whole.add(stream)
            return said

    def _keep(self, stream: str, said: StreamTruth) -> None:
        self._streams.pop(stream, None)
        self._streams[stream] = said
        if len(self._streams) > self._most_streams:
            oldest = next((name for name in self._streams if name not in self._unsaved), None)
            if oldest is not None:
                del self._streams[oldest]
                self._whole.discard(oldest)

    def forget(self, streams: Collection[str]) -> tuple[dict[str, StreamTruth], set[str]]:
        """Streams are back at the source: what they answered before is no sign of now.

        Their ids stay known: the answers were given, and a label is true of them.

        Returns:
            What labels had said of them, by stream; and of which of them that has all that their
            file says.
        """
        said = dict[str, StreamTruth]()
        with self._lock:
            whole = self._whole.intersection(streams)
            for stream in streams:
                if stream in self._streams:
                    said[stream] = self._streams.pop(stream)
                self._whole.discard(stream)
                self._unsaved.discard(stream)
            kept = [(name, answer) for name, answer in self._answered if name not in streams]
            self._answered = deque(kept, maxlen=DOMINANCE_WINDOW)
        return said, whole

    def give_up(self, stream: str) -> None:
        """What labels say of a stream will be in no file: it is another process's."""
        with self._lock:
            self._unsaved.discard(stream)

    def begin_anew(self) -> None:
        """Other weights answer from now on: what labels said of the former's is no sign of theirs.

        Ids stay known.
        """
        with self._lock:
            for each in (self._streams, self._whole, self._unsaved, self._right, self._answered):
                each.clear()

    @property
    def newest(self) -> int:
        """The number of the latest answer that a label may come for."""
        return self._ids.newest

    def write(self) -> None:
        """Have ids written that could not be before."""
        self._ids.write()

    def close(self) -> None:
        """Write the ids that are not written yet."""
        self._ids.close()

    @property
    def streams(self) -> dict[str, StreamTruth]:
        """What labels say of each stream since the start or its last reset; a copy."""
        with self._lock:
            return dict(self._streams)

    @property
    def window_accuracy(self) -> float:
        """Accuracy over the last ACCURACY_WINDOW labels; NaN before the first."""
        with self._lock:
            return sum(self._right) / len(self._right) if self._right else float("nan")

    @property
    def dominant_share(self) -> float:
        """Share of the most frequent class in the last answers; NaN before FEWEST_ANSWERS."""
        with self._lock:
            if len(self._answered) < FEWEST_ANSWERS:
                return float("nan")
            ((_, most),) = Counter(answer for _, answer in self._answered).most_common(1)
            return most / len(self._answered)


def _sum(one: StreamTruth, other: StreamTruth) -> StreamTruth:
    return StreamTruth(labelled=one.labelled + other.labelled, correct=one.correct + other.correct)
