"""What is told of streams: gauges over those in memory, and what happens to one as it happens."""

import logging
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from service.changes.changes import Changes
from service.events import Events
from service.metrics import ENVELOPE_VERDICTS, ESTIMATED, Metrics
from service.schemas import (
    ACTS,
    ALL_STREAMS,
    Discarded,
    DoubtedStatus,
    KeptOfStream,
    SavedUnfit,
    StreamAct,
    StreamTruth,
)
from service.silence import Silence
from service.state_folder import StateFolder
from service.stream_record import StreamRecord
from service.streams import Streams
from ttc_core.envelope.verdicts import Verdicts
from ttc_core.errors import told
from ttc_core.guard.estimate import LATEST
from ttc_core.methods import Act, Adaptation, Method

# Why nothing is learned from a batch by intent, or was told already; the metric counts them all.
UNREMARKABLE = (None, "shed", "settled", "none_selected", "suspect", "failed")
# Of an act of the guard: it was not the guard.
BY_HAND = "by_hand"
# A camera that failed is well after so many ordinary images.
WELL_AFTER = 50
# Streams that were reset by hand and have sent nothing since: of so many that is known.
MOST_RESET = 1000
# Doubted streams that are not in memory: so many are told one by one.
MOST_DOUBTED = 1000
# Why saved streams do not fit: so many reasons are told, those of most streams.
MOST_REASONS = 10


class StreamReports:
    """Counts and tells what comes of streams.

    Of a record it moves what it tells alone: `acts`, `suspects` and the others of faulty frames.

    Args:
        table: the streams; silence: who went silent; changes: where what was done with one stays.
        watches: a guard compares them with the source; holds: and has that answer.
    """

    def __init__(
        self,
        events: Events,
        metrics: Metrics,
        table: Streams,
        silence: Silence,
        changes: Changes,
        *,
        watches: bool,
        holds: bool,
    ) -> None:
        self._events, self._metrics, self._table = events, metrics, table
        self._changes, self._watches, self._holds = changes, watches, holds
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
                partial(lambda each: estimated_accuracy(table.records.values(), each), answers)
            )
        metrics.doubted.set_function(lambda: len(self._doubted()))
        metrics.held.set_function(lambda: len(self._doubted()) if self._holds else 0)
        metrics.held_since.streams = self._held_since
        metrics.pending_batches.set_function(
            lambda: sum(s.pending_batches for s in table.records.values())
        )
        metrics.unsaved_streams.set_function(lambda: table.saving.unsaved_streams)
        metrics.silent_streams.set_function(lambda: len(silence.silent))
        metrics.unsaved_age.set_function(lambda: table.saving.unsaved_age)

    def _doubted(self) -> dict[str, StreamRecord | KeptOfStream]:
        """The streams that the guard would have the source answer, in memory or saved."""
        records = self._table.records
        found: dict[str, StreamRecord | KeptOfStream] = {
            name: kept for name, kept in self._table.saving.doubted().items() if name not in records
        }
        if self._watches:
            found |= {n: each for n, each in records.items() if each.doubted_since is not None}
        return found

    def _held_since(self) -> dict[str, float]:
        """Since when the source answers those that it does answer."""
        found = {name: each.held_since for name, each in self._doubted().items() if self._holds}
        return {name: since for name, since in found.items() if since is not None}

    def saved_doubted(self) -> dict[str, DoubtedStatus]:
        """Of the doubted streams that are not in memory the MOST_DOUBTED doubted for longest."""
        records, saved = self._table.records, self._table.saving.doubted()
        longest = sorted(
            (kept.doubted_since, name)
            for name, kept in saved.items()
            if kept.doubted_since is not None and name not in records
        )
        return {
            name: DoubtedStatus(
                mode="held" if self._holds else "adapting",
                images=saved[name].images,
                doubted_since=since,
                held_since=saved[name].held_since if self._holds else None,
                guard=saved[name].acts,
            )
            for since, name in longest[:MOST_DOUBTED]
        }

    def saved_unfit(self) -> SavedUnfit:
        """How many saved streams do not fit what is served, as far as files were looked at."""
        found = self._table.saving.unfit()
        return SavedUnfit(streams=found.total(), reasons=dict(found.most_common(MOST_REASONS)))

    def looked_at_saved(self, count: int, folder: Path) -> None:
        """All files of streams were looked at: tell once how many will be set aside."""
        found = self.saved_unfit()
        if not found.streams:
            return
        why = "; ".join(f"{reason} ({many:,})" for reason, many in found.reasons.items())
        self._events.note(
            "saved_unfit",
            message=f"{found.streams:,} of {count:,} saved streams in {folder} do not fit what is "
            "served: each starts at the source when its images come, its file is kept as "
            "NAME.rejected",
            level=logging.WARNING,
            streams=found.streams,
            reason=why,
        )

    def tell_what_fails(self, folder: StateFolder, source: Method) -> None:
        """Tell whether no stream at all can be saved in a folder."""
        problem = folder.problem or folder.unfit(source)
        if problem is not None:
            self._events.note(
                "not_saving",
                message=f"no stream will be saved in {folder.path}",
                level=logging.WARNING,
                reason=problem,
            )

    # Of one stream

    def adapted(self, stream: str, outcome: Adaptation) -> None:
        """Count what came of a batch, and tell why nothing did where that is worth it."""
        self._metrics.count_adaptation(outcome)
        if outcome.skipped not in UNREMARKABLE:
            self._events.note_repeated("skipped", stream=stream, reason=outcome.skipped)

    def learned(
        self,
        stream: str,
        record: StreamRecord,
        images: int,
        outcome: Adaptation,
        version_before: int,
    ) -> None:
        """Note what a stream learned from a batch; what a guard then did is told in `acted`."""
        if not record.method.adapts:
            return
        # One that failed is as it was, or was put back, which is told.
        version = record.version if outcome.skipped == "failed" else version_before
        has_gone_back = went_back(outcome.acts)
        self._changes.learned(
            stream,
            images,
            outcome,
            version_before=version,
            version=version + outcome.stepped if has_gone_back else record.version,
            # Of where it went back from, which that version is of, nobody knows it any more.
            drift=None if has_gone_back else record.drift,
            verdicts=outcome.verdicts,
        )

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

    def second_view_off(self, stream: str, record: StreamRecord) -> None:
        """Its mirror images are left out from now on."""
        self._changes.note("second_view_off", stream=stream, version=record.version)
        self._events.note(
            "second_view_off",
            message=f"in stream {stream} mirror images mean something else; they are "
            "left out, and what was learned with them is forgotten",
            stream=stream,
        )

    def acted(
        self, stream: str, record: StreamRecord, acts: Sequence[Act], version_before: int
    ) -> None:
        """Count what a guard did at once, and tell it: of the same again and again the last.

        Args:
            version_before: of the stream, before it did.
        """
        for act in acts:
            observed = "true" if act.observed else "false"
            self._metrics.guard_actions.labels(act.action, act.reason, observed).inc()
            if act.action == "reset" and not act.observed:
                self._metrics.count_reset("guard")
            elif act.action == "roll_back" and not act.observed:
                self._metrics.rollbacks.labels("guard").inc()
        for act in {(each.action, each.reason): each for each in acts}.values():
            fields: dict[str, Any] = {
                "action": act.action,
                "reason": act.reason,
                "observed": act.observed,
                "evidence": {name: round(number, 4) + 0.0 for name, number in act.evidence.items()},
            }
            _note_act(record, StreamAct(time=time.time(), **fields))
            self._note_change(
                act.action,
                stream,
                record,
                version_before,
                by="guard",
                reason=act.reason,
                observed=act.observed or None,
                evidence=fields["evidence"],
            )
            self._events.note(
                "guard", level=logging.WARNING, stream=stream, images=record.images, **fields
            )

    def held_within(self, stream: str, known: Verdicts, new: Verdicts) -> None:
        """Count what the envelope made of a stream's batch, and tell the first of a kind.

        Args:
            known: the verdicts on the stream before; new: those on the batch.
        """
        for verdict in ENVELOPE_VERDICTS:
            for clause, count in getattr(new, verdict).items():
                self._metrics.envelope_steps.labels(clause, verdict).inc(count)
                # That parameters which may not move do not is nothing to be told of.
                if clause not in getattr(known, verdict) and clause != "parameters":
                    self._events.note("envelope", stream=stream, clause=clause, verdict=verdict)

    def looked_at(self, stream: str, record: StreamRecord, suspects: Sequence[str | None]) -> None:
        """Count the images that look like a faulty camera's, and tell when that begins and ends."""
        for kind in suspects:
            if kind is None:
                record.ordinary += 1
                record.suspect_in_a_row = 0
            else:
                record.suspects[kind] += 1
                record.ordinary = 0
                record.suspect_in_a_row += 1
                if record.suspect is None:
                    record.suspect_since = time.time()
                if kind != record.suspect:
                    record.suspect = kind
                    self._events.note_repeated(
                        "suspect", level=logging.WARNING, stream=stream, kind=kind
                    )
            if record.suspect is not None and record.ordinary >= WELL_AFTER:
                over, record.suspect, record.suspect_since = record.suspect, None, None
                self._events.note_repeated("suspect_over", stream=stream, kind=over)

    # Resets and roll backs

    def put_back(self, stream: str, record: StreamRecord, said: StreamTruth) -> None:
        """It could not go on, and is at the source; what labels had said of it counts no more."""
        _note_act(record, StreamAct(time=time.time(), action="reset", reason="failure"))
        self._changes.note(
            "reset", stream=stream, by="failure", version_before=record.version, version=0
        )
        self._metrics.count_reset("failure")
        self._events.note(
            "reset", stream=stream, level=logging.ERROR, reason="failure", **said.model_dump()
        )

    def forgotten(
        self, streams: Collection[str], steps: Mapping[str, int], *, all_streams: bool
    ) -> None:
        """Somebody had streams reset: those that go on are to say so, in `begun`.

        Args:
            steps: of those that were in memory.
            all_streams: they are all there are.
        """
        if all_streams:
            self._changes.note("reset", stream=ALL_STREAMS, by="request", streams=len(streams))
        else:
            for stream in streams:
                before = {"version_before": steps[stream]} if stream in steps else {}
                self._changes.note("reset", stream=stream, by="request", **before, version=0)
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

    def reset(
        self, streams: Iterable[str], discarded: Mapping[str, Discarded], kept: Mapping[str, str]
    ) -> None:
        """Somebody had streams reset; what that threw away of those of which something was known;
        some files could not go."""
        for stream in streams:
            known = stream in discarded
            what = discarded[stream].model_dump() if known else {}
            self._events.note("reset", stream=stream, reason="request", known=known, **what)
            if known:
                self._metrics.count_reset("request")
        self.not_removed(kept)

    def not_removed(self, kept: Mapping[str, str]) -> None:
        """Files of streams that were reset are still there; by stream, why."""
        for stream, reason in kept.items():
            self._events.note("not_removed", stream=stream, level=logging.ERROR, reason=reason)

    def rolled_back(self, stream: str, record: StreamRecord, before: int, version: int) -> None:
        """Somebody had it brought back, from a version to one before."""
        self._note_change("roll_back", stream, record, before, by="request")
        evidence = {"version": float(version)}
        act = StreamAct(time=time.time(), action="roll_back", reason=BY_HAND, evidence=evidence)
        _note_act(record, act)
        self._metrics.rollbacks.labels("request").inc()
        self._events.note("rollback", stream=stream, reason="request", version=version)

    def _note_change(
        self, action: str, stream: str, record: StreamRecord, before: int, **why: Any
    ) -> None:
        self._changes.note(
            action,
            stream=stream,
            images=record.images,
            version_before=before,
            version=record.version,
            drift=round(record.drift, 6),
            **{name: value for name, value in why.items() if value is not None},
        )


def went_back(acts: Iterable[Act]) -> bool:
    """Whether a guard had the stream go back to another state."""
    return any(act.action in ("reset", "roll_back") and not act.observed for act in acts)


def estimated_accuracy(records: Iterable[StreamRecord], answers: str) -> float:
    """Mean over the images of late that the guards of these streams compared; NaN for none.

    Args:
        answers: adapted or source: whose.
    """
    known = [each.estimates for each in records if each.estimates is not None]
    weights = [min(each.images, LATEST) for each in known]
    total = sum(
        weight * getattr(each, answers).accuracy
        for each, weight in zip(known, weights, strict=True)
    )
    return float(total / sum(weights)) if known else math.nan


def _note_act(record: StreamRecord, act: StreamAct) -> None:
    record.acts = (*record.acts, act)[-ACTS:]
