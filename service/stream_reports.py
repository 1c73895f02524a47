"""What is told of streams: gauges over those in memory, and what happens to one as it happens."""

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from service.events import Events
from service.metrics import ESTIMATED, Metrics
from service.saving import Saving, StreamRecord
from service.schemas import ACTS, HeldStatus, StreamAct
from service.silence import Silence
from service.streams import Streams
from ttc_core.errors import told
from ttc_core.guard.estimate import LATEST
from ttc_core.methods import Act, Adaptation
from ttc_core.methods.contract import HELD

# Why nothing is learned from a batch by intent, or was told already; the metric counts them all.
UNREMARKABLE = (None, "shed", "settled", "none_selected", "suspect", "failed")
# Of an act of the guard: it was not the guard.
BY_HAND = "by_hand"
# A camera that failed is well after so many ordinary images.
WELL_AFTER = 50
# Streams that were reset by hand and have sent nothing since: of so many that is known.
MOST_RESET = 1000
# Held streams that are not in memory: so many are told one by one.
MOST_HELD = 1000


class StreamReports:
    """Counts and tells what comes of streams.

    Of a record it moves what it tells alone: `acts`, `suspects` and the others of faulty frames.

    Args:
        table: the streams in memory; saving, silence: what is to be saved, who went silent.
    """

    def __init__(
        self, events: Events, metrics: Metrics, table: Streams, saving: Saving, silence: Silence
    ) -> None:
        self._events, self._metrics, self._table = events, metrics, table
        self._saving = saving
        self._reset_by_hand: dict[str, StreamAct] = {}
        metrics.streams.set_function(lambda: len(table.records))
        metrics.stream_bytes.set_function(lambda: table.bytes)
        metrics.drift.set_function(
            lambda: max((s.drift for s in table.records.values()), default=0.0)
        )
        metrics.without_second_view.set_function(
            lambda: sum(s.second_view_off for s in table.records.values())
        )
        for answers in ESTIMATED:
            metrics.estimated_accuracy.labels(answers).set_function(
                partial(self._estimated_accuracy, answers)
            )
        metrics.held.set_function(lambda: len(self._held()))
        metrics.held_since.streams = self._held
        metrics.pending_batches.set_function(
            lambda: sum(s.pending_batches for s in table.records.values())
        )
        metrics.unsaved_streams.set_function(lambda: saving.unsaved_streams)
        metrics.silent_streams.set_function(lambda: len(silence.silent))
        metrics.unsaved_age.set_function(lambda: saving.unsaved_age)

    def _held(self) -> dict[str, float]:
        """The streams that the source answers, in memory or saved, and since when."""
        records, saved = self._table.records, self._saving.held()
        found = {n: kept.held_since for n, kept in saved.items() if n not in records}
        found |= {n: each.held_since for n, each in records.items() if each.mode == HELD}
        return {name: since for name, since in found.items() if since is not None}

    def saved_held(self) -> dict[str, HeldStatus]:
        """Of the held streams that are not in memory the MOST_HELD held for longest."""
        records, saved = self._table.records, self._saving.held()
        longest = sorted(
            (kept.held_since, name)
            for name, kept in saved.items()
            if kept.held_since is not None and name not in records
        )
        return {
            name: HeldStatus(images=saved[name].images, held_since=since, guard=saved[name].acts)
            for since, name in longest[:MOST_HELD]
        }

    def _estimated_accuracy(self, answers: str) -> float:
        """Mean over the images of late that any stream's guard compared; NaN for none."""
        records = self._table.records.values()
        known = [each.estimates for each in records if each.estimates is not None]
        weights = [min(each.images, LATEST) for each in known]
        total = sum(
            weight * getattr(each, answers).accuracy
            for each, weight in zip(known, weights, strict=True)
        )
        return float(total / sum(weights)) if known else math.nan

    # Of one stream

    def adapted(self, stream: str, outcome: Adaptation) -> None:
        """Count what came of a batch, and tell why nothing did where that is worth it."""
        self._metrics.count_adaptation(outcome)
        if outcome.skipped not in UNREMARKABLE:
            self._events.note_repeated("skipped", stream=stream, reason=outcome.skipped)

    def no_memory(self, stream: str) -> None:
        """A stream may not learn, since all that may be kept is."""
        self._events.note_repeated("skipped", stream=stream, reason="no memory for it")

    def failed(self, stream: str, error: Exception) -> None:
        """What its method should have done raised something."""
        self._events.note(
            "adaptation_failed",
            stream=stream,
            level=logging.ERROR,
            error=error,
            reason=told(error),
        )

    def not_looked_at(self, stream: str, error: Exception) -> None:
        """Whether it is held, its file did not say."""
        self._events.note_repeated(
            "not_looked_at", level=logging.ERROR, stream=stream, reason=told(error)
        )

    def second_view_off(self, stream: str) -> None:
        """Its mirror images are left out from now on."""
        self._events.note(
            "second_view_off",
            message=f"in stream {stream} mirror images mean something else; they are "
            "left out, and what was learned with them is forgotten",
            stream=stream,
        )

    def acted(self, stream: str, record: StreamRecord, acts: Sequence[Act]) -> None:
        """Count what a guard did at once, and tell it: of the same again and again the last."""
        for act in acts:
            self._metrics.guard_actions.labels(act.action, act.reason).inc()
            if act.action == "reset" and not act.observed:
                self._metrics.count_reset("guard")
            elif act.action == "roll_back" and not act.observed:
                self._metrics.rollbacks.labels("guard").inc()
        for act in {(each.action, each.reason): each for each in acts}.values():
            fields: dict[str, Any] = {
                "action": act.action,
                "reason": act.reason,
                "observed": act.observed,
                "evidence": {name: round(number, 4) for name, number in act.evidence.items()},
            }
            _note_act(record, StreamAct(time=time.time(), **fields))
            self._events.note(
                "guard", level=logging.WARNING, stream=stream, images=record.images, **fields
            )

    def looked_at(self, stream: str, record: StreamRecord, suspects: Sequence[str | None]) -> None:
        """Count the images that look like a faulty camera's, and tell when that begins and ends."""
        for kind in suspects:
            if kind is None:
                record.ordinary += 1
                record.suspect_in_a_row = 0
            else:
                record.suspects[kind] += 1
                record.ordinary = 0
                is_new = kind != record.suspect
                record.suspect_in_a_row = 1 if is_new else record.suspect_in_a_row + 1
                if is_new:
                    record.suspect, record.suspect_since = kind, time.time()
                    self._events.note_repeated(
                        "suspect", level=logging.WARNING, stream=stream, kind=kind
                    )
            if record.suspect is not None and record.ordinary >= WELL_AFTER:
                over, record.suspect, record.suspect_since = record.suspect, None, None
                self._events.note_repeated("suspect_over", stream=stream, kind=over)

    # Resets and roll backs

    def put_back(self, stream: str, record: StreamRecord) -> None:
        """It could not go on, and is at the source."""
        _note_act(record, StreamAct(time=time.time(), action="reset", reason="failure"))
        self._metrics.count_reset("failure")
        self._events.note("reset", stream=stream, level=logging.ERROR, reason="failure")

    def forgotten(self, streams: Iterable[str]) -> None:
        """Somebody had streams reset: those that go on are to say so, in `begun`."""
        act = StreamAct(time=time.time(), action="reset", reason=BY_HAND)
        for stream in streams:
            self._reset_by_hand.pop(stream, None)
            self._reset_by_hand[stream] = act
            if len(self._reset_by_hand) > MOST_RESET:
                del self._reset_by_hand[next(iter(self._reset_by_hand))]

    def begun(self, stream: str, record: StreamRecord) -> None:
        """A stream that was new has its first images."""
        act = self._reset_by_hand.pop(stream, None)
        if act is not None:
            _note_act(record, act)

    def reset(self, streams: Iterable[str], known: int, kept: Mapping[str, str]) -> None:
        """Somebody had streams reset, of which so many were there; some files could not go."""
        for _ in range(known):
            self._metrics.count_reset("request")
        for stream in streams:
            self._events.note("reset", stream=stream, reason="request")
        self.not_removed(kept)

    def not_removed(self, kept: Mapping[str, str]) -> None:
        """Files of streams that were reset are still there; by stream, why."""
        for stream, reason in kept.items():
            self._events.note("not_removed", stream=stream, level=logging.ERROR, reason=reason)

    def rolled_back(self, stream: str, record: StreamRecord, version: int) -> None:
        """Somebody had it brought back."""
        evidence = {"version": float(version)}
        act = StreamAct(time=time.time(), action="roll_back", reason=BY_HAND, evidence=evidence)
        _note_act(record, act)
        self._metrics.rollbacks.labels("request").inc()
        self._events.note("rollback", stream=stream, reason="request", version=version)


def _note_act(record: StreamRecord, act: StreamAct) -> None:
    record.acts = (*record.acts, act)[-ACTS:]
