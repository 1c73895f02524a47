"""Learning on the device thread: what was answered is counted, learned from, and weighed."""

import contextlib
import logging
import time
from collections.abc import Sequence
from functools import partial

from service import tracing
from service.answering import Part, Pass, hand_in_hand
from service.metrics import Metrics
from service.silence import Silence
from service.stream_record import StreamRecord
from service.stream_reports import StreamReports, went_back
from service.streams import Streams
from service.truth import Truth
from service.undoing import Undoing
from ttc_core.methods import Act, Adaptation, Prediction
from ttc_core.methods.contract import Right
from ttc_core.together import Failed

log = logging.getLogger(__name__)


class Learning:
    """Has streams learn from what they answered, and their guards from labels. For the device
    thread alone.

    Attributes:
        last_seconds: what learning from the last pass took.
    """

    def __init__(
        self,
        table: Streams,
        truth: Truth,
        silence: Silence,
        reports: StreamReports,
        undoing: Undoing,
        metrics: Metrics,
    ) -> None:
        self._table, self._truth, self._silence = table, truth, silence
        self._reports, self._undoing, self._metrics = reports, undoing, metrics
        self.last_seconds = 0.0

    def adapt(self, answered: Pass, learn: bool) -> None:
        """Count what was answered and learn from it."""
        works = [partial(self._adapt_part, part, learn) for part in answered.parts]
        try:
            self._count_parts(answered, learn=True)
            started = time.perf_counter()
            with tracing.span("adapt"):
                found = hand_in_hand(self._table.saving.source, works)
        finally:
            self._table.at_work(())
        outcomes = []
        for part, each in zip(answered.parts, found, strict=True):
            if isinstance(each, Failed):
                self._reports.failed(part.stream, each.error)
            elif each.value is not None:
                outcomes.append(each.value)
        if not outcomes:
            return
        skipped = {each.skipped for each in outcomes}
        tracing.note(
            selected=sum(each.selected for each in outcomes),
            stepped=any(each.stepped for each in outcomes),
            skipped=skipped.pop() if len(skipped) == 1 else None,
        )
        self.last_seconds = time.perf_counter() - started
        self._metrics.spent("adapt", self.last_seconds)

    def _adapt_part(self, part: Part, learn: bool) -> Adaptation | None:
        """What came of a stream's part; None if it is the stream's no more."""
        stream, record = part.stream, part.record
        if not part.is_sound:
            outcome = Adaptation(skipped="non_finite")  # it answers nobody, and moves nothing
        elif not self._table.is_current(stream, record):  # a reset came between
            self._truth.forget([stream])
            return None
        else:
            if record.is_new:
                self._reports.begun(stream, record)
            record.images += len(part.labels)
            record.batches += 1
            self._reports.looked_at(stream, record, part.answers.suspects)
            if self._table.keep(stream, record):
                version, was_off = record.version, record.second_view_off
                outcome = self._learn(stream, record, part.prediction, learn)
                self._reports.held_within(stream, record.verdicts, outcome.verdicts)
                record.take_note()
                self._reports.learned(stream, record, len(part.labels), outcome, version)
                self._acted(stream, record, outcome.acts, version + outcome.stepped)
                if record.second_view_off and not was_off:
                    record.answers_from = self._truth.newest
                    self._reports.second_view_off(stream, record)
                self._table.measure(stream)
            else:
                outcome = Adaptation(skipped="shed")
                self._reports.no_memory(stream)
            self._table.saving.note_change(stream)
        self._reports.adapted(stream, outcome)
        return outcome

    def _learn(
        self, stream: str, record: StreamRecord, prediction: Prediction, learn: bool
    ) -> Adaptation:
        """Have a stream's method learn; if it fails, the stream is as it was before."""
        method, undo = record.method, None
        try:
            with contextlib.suppress(Exception):  # then a failure leads back to the source
                undo = method.undo_point()
            return method.adapt(prediction, learn=learn)
        except Exception as error:
            self._reports.failed(stream, error)
        try:
            if undo is None:
                raise LookupError
            undo()
        except Exception:
            self._undoing.put_back(stream, record, self._table.saving.source.fork())
        return Adaptation(skipped="failed")

    def count(self, answered: Pass) -> None:
        """Count what was answered; nothing is learned from it, and nothing moves."""
        try:
            self._count_parts(answered, learn=False)
        finally:
            self._table.at_work(())

    def _count_parts(self, answered: Pass, *, learn: bool) -> None:
        """Count answers, once the clients have them."""
        if any(part.is_sound for part in answered.parts):
            self._metrics.spent("forward", answered.seconds)
        for part in answered.parts:
            self._count_part(part, learn)

    def _count_part(self, part: Part, learn: bool) -> None:
        if not part.is_sound:  # then nobody has an answer
            failed = {"stream": part.stream, "images": int((~part.answers.sound).sum())}
            log.error("the model's scores are not finite numbers", extra={"fields": failed})
            return
        self._metrics.count_shed(part.shed)
        selects = learn and part.record.method.selects
        self._metrics.count_answers(part.answers, selects=selects)
        self._silence.heard(part.stream)
        self._truth.count(part.stream, part.predicted, part.labels, part.confidences)

    def weigh(self, compared: Sequence[tuple[str, Sequence[tuple[int, Right]]]]) -> int:
        """Have streams' guards weigh who was right, and count what they weighed; a stream that
        fails at it is put back, as one that cannot answer."""
        count = 0
        for stream, answers in compared:
            record = self._table.in_memory(stream)
            if record is None:
                continue
            # Not as the labels come: whoever sorts them by class shows harm where there is none.
            right = [each for number, each in sorted(answers) if number > record.answers_from]
            before = record.version
            try:
                weighed = record.method.weigh(right)
                record.take_note()
            except Exception as error:
                self._reports.failed(stream, error)
                with contextlib.suppress(Exception):  # the others' labels are taken, too
                    self._undoing.put_back(stream, record, self._table.saving.source.fork())
                continue
            count += weighed.labels
            self._acted(stream, record, weighed.acts, before)
            self._table.saving.note_change(stream)
        return count

    def _acted(
        self, stream: str, record: StreamRecord, acts: Sequence[Act], version_before: int
    ) -> None:
        """Tell what a guard did, and note where that has another state answer from now on."""
        if went_back(acts):
            record.answers_from = self._truth.newest
        self._reports.acted(stream, record, acts, version_before)
