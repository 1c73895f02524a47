"""The frames that all readers of `GET /events` are sent, each encoded once.

All of it runs in one thread beside the event loop and the device: it reads what they publish, and
keeps what it made. Knows nothing of HTTP.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from heapq import merge
from importlib.metadata import version
from typing import Any, NamedTuple

from pydantic_core import to_json

from service.batcher import Batcher
from service.engine import Engine
from service.live.rows import Change, Rows, Seen
from service.live.schemas import LiveAsks, LiveCounters, LiveGauges, LiveModel
from service.metrics import SECONDS, Metrics, distribution, total
from service.settings import Settings
from service.stream_reports import estimated_accuracy
from ttc_core.methods.contract import ADAPTING, HELD, ROLLED_BACK

# Between points of the history, which has those of the last hour.
INTERVAL_SECONDS, HISTORY_SECONDS = 5.0, 3600.0
# Events that whoever comes is told: so many of those that come with every camera that comes and
# goes, and as many of all others, which a thousand cameras do not push out.
EVENTS_TOLD = 200
ROUTINE = frozenset({"connection_closed", "evicted", "restored", "skipped"})
# Routes of which a request is one for answers.
ANSWERING = (
    "/predict",
    "/v2/models/{model}/infer",
    "/v2/models/{model}/versions/{version}/infer",
)
# Rows that are older are looked at anew for whoever comes.
FRESH_SECONDS = 1.5


class Made(NamedTuple):
    """What `Frames.make` made; None where it was not asked for.

    Attributes:
        is_anew: other weights answer than before: the next frame is to be a state for all.
    """

    tick: bytes | None
    state: bytes | None
    is_anew: bool


class Frames:
    """Makes frames out of what the service's parts tell.

    Args:
        told: a method's mode as people are told it.
        page: of which the live page is, in a word that changes with it.

    Attributes:
        new_events: those that no frame has told yet; whoever hears of one puts it here.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        engine: Engine,
        batcher: Batcher[Any, Any],
        *,
        told: Callable[[str], str],
        page: str,
    ) -> None:
        self._settings, self._metrics = settings, metrics
        self._engine, self._batcher, self._told = engine, batcher, told
        asks = LiveAsks(
            predict=settings.token is not None,
            control=settings.token is not None or settings.admin_token is not None,
        )
        # What a state has that stays as it is.
        self._about: dict[str, Any] = {
            "started": round(time.time(), 3),
            "version": version("ttc-service"),
            "page": page,
            "method": settings.method,
            "adapt": settings.adapt,
            "guard": settings.guard,
            "asks": asks.model_dump(),
            "latency_bounds": SECONDS,
            "interval": INTERVAL_SECONDS,
        }
        self.new_events: deque[Mapping[str, Any]] = deque(maxlen=2 * EVENTS_TOLD)
        # With their numbers, by whether they are routine.
        self._events: dict[bool, deque[tuple[int, bytes]]] = {
            kind: deque(maxlen=EVENTS_TOLD) for kind in (False, True)
        }
        self._events_seen = 0
        self._rows = Rows()
        self._looked_at = self._next_point = self._next_choice = -float("inf")
        self._digest = engine.source.model.digest
        # What every frame has, encoded, as it was at the last look.
        self._now: dict[str, bytes] = {}
        # Each value as it is sent, so that nothing is encoded again for whoever comes.
        self._history: dict[str, deque[bytes]] = {}

    def make(self, *, is_due: bool, watched: bool, wants_state: bool) -> Made:
        """Make what is to be sent now, and keep a point of history every INTERVAL_SECONDS.

        Args:
            is_due: a second is over.
            watched: there are readers; without them no tick is made.
            wants_state: one of them has come, or has lost frames.
        """
        now, tick = time.monotonic(), None
        digest, self._digest = self._digest, self._engine.source.model.digest
        is_point, is_stale = now >= self._next_point, now - self._looked_at > FRESH_SECONDS
        if (is_due and (watched or is_point)) or (wants_state and is_stale):
            if is_point:
                following = self._next_point + INTERVAL_SECONDS
                self._next_point = following if following > now else now + INTERVAL_SECONDS
            new = self._look(keep=is_point)
            if watched:
                tick = _frame("tick", self._now | {"events": _list(new)} | self._look_at_rows(now))
        return Made(tick, self._state() if wants_state else None, digest != self._digest)

    def _look(self, *, keep: bool) -> list[bytes]:
        """Take note of counters, gauges and events; return the new events."""
        counters, gauges, moment = self._counters(), self._gauges(), time.time()
        self._now = {
            "time": _json(round(moment, 3)),
            "counters": counters.model_dump_json().encode(),
            "gauges": gauges.model_dump_json().encode(),
        }
        if keep:
            point = {"time": round(moment, 1)} | counters.model_dump() | gauges.model_dump()
            most = int(HISTORY_SECONDS / INTERVAL_SECONDS)
            for name, value in point.items():
                self._history.setdefault(name, deque(maxlen=most)).append(_json(value))
        new = []
        while self.new_events:
            event = self.new_events.popleft()
            new.append(_json(event))
            self._events_seen += 1
            self._events[event["event"] in ROUTINE].append((self._events_seen, new[-1]))
        return new

    def _look_at_rows(self, now: float) -> dict[str, bytes]:
        choose = now >= self._next_choice
        if choose:
            self._next_choice = now + INTERVAL_SECONDS
        found: Change = self._rows.look(self._streams(), choose=choose)
        self._looked_at = now
        return {
            "streams": _list(found.rows),
            "gone": _json(found.gone),
            "left_out": _json(self._rows.left_out),
        }

    def _state(self) -> bytes:
        model = self._engine.source.model
        about = {
            **{name: _json(value) for name, value in self._about.items()},
            "model": LiveModel(
                name=self._settings.model, digest=model.digest, classes=model.classes
            )
            .model_dump_json()
            .encode(),
            "history": _object({name: _list(each) for name, each in self._history.items()}),
            "events": _list(event for _, event in merge(*self._events.values())),
            "streams": _list(self._rows.all()),
            "left_out": _json(self._rows.left_out),
        }
        return _frame("state", self._now | about)

    def _counters(self) -> LiveCounters:
        metrics = self._metrics
        entropies, entropy_sum = distribution(metrics.entropy)
        latencies, _ = distribution(*(metrics.request_seconds.labels(each) for each in ANSWERING))
        return LiveCounters(
            images=int(total(metrics.images)),
            rejected=int(total(metrics.rejected)),
            cancelled=int(total(metrics.cancelled)),
            labelled=int(total(metrics.labelled)),
            correct=int(total(metrics.correct)),
            selected=int(total(metrics.selected)),
            considered=int(total(metrics.considered)),
            steps=int(total(metrics.steps)),
            suspects=int(total(metrics.suspects)),
            entropy_sum=round(entropy_sum, 4),
            entropy_count=entropies[-1],
            request_seconds_buckets=latencies,
            guard_actions=int(total(metrics.guard_actions, observed="false")),
            resets=int(total(metrics.resets)),
            rollbacks=int(total(metrics.rollbacks)),
        )

    def _gauges(self) -> LiveGauges:
        metrics, records = self._metrics, self._engine.streams
        modes = [self._told(record.mode) for record in records.values()]
        # What is held is answered by the source: what has adapted there is served to nobody.
        served = [record for record in records.values() if record.mode != HELD]
        return LiveGauges(
            ready=bool(total(metrics.ready)),
            queue_images=self._batcher.waiting_images,
            drift=_rounded(total(metrics.drift)) or 0.0,
            streams=len(records),
            learning=modes.count(ADAPTING) + modes.count(ROLLED_BACK),
            held=int(total(metrics.held)),
            doubted=int(total(metrics.doubted)),
            silent=int(total(metrics.silent_streams)),
            estimated_adapted=_rounded(estimated_accuracy(served, "adapted")),
            estimated_source=_rounded(estimated_accuracy(served, "source")),
            window_accuracy=_rounded(total(metrics.window_accuracy)),
        )

    def _streams(self) -> dict[str, Seen]:
        """All streams in memory; of the others those doubted, as far as /status has them, and
        those silent."""
        engine, told = self._engine, self._told
        records, truth, watches = engine.streams, engine.truth.streams, engine.watches
        silent, heard = engine.silence.silent_since, engine.silence.last_heard
        found = {
            name: Seen(
                in_memory=True,
                mode=told(record.mode),
                images=record.images,
                version=record.version,
                drift=record.drift,
                doubted_since=record.doubted_since if watches else None,
                held_since=record.held_since,
                silent_since=silent.get(name),
                last_image=heard.get(name),
                suspect=record.suspect,
                suspect_since=record.suspect_since,
                suspect_in_a_row=record.suspect_in_a_row,
                suspects=dict(record.suspects),
                estimates=record.estimates,
                truth=truth.get(name),
                acts=record.acts,
            )
            for name, record in records.items()
        }
        for name, saved in engine.saved_doubted().items():
            if name not in found:
                found[name] = Seen(
                    in_memory=False,
                    mode=saved.mode,
                    images=saved.images,
                    doubted_since=saved.doubted_since,
                    held_since=saved.held_since if saved.mode == HELD else None,
                    silent_since=silent.get(name),
                    last_image=heard.get(name),
                    truth=truth.get(name),
                    acts=tuple(saved.guard),
                )
        for name, since in silent.items():
            if name not in found:
                found[name] = Seen(
                    in_memory=False,
                    silent_since=since,
                    last_image=heard.get(name),
                    truth=truth.get(name),
                )
        return found


def _rounded(number: float) -> float | None:
    """A number as it is sent; NaN is none."""
    return None if number != number else round(number, 6)


def _json(value: Any) -> bytes:
    # What events hold may be anything, and infinite.
    return to_json(value, inf_nan_mode="null", fallback=str)


def _list(encoded: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(encoded) + b"]"


def _object(encoded: Mapping[str, bytes]) -> bytes:
    return b"{" + b",".join(b'"%b":%b' % (k.encode(), v) for k, v in encoded.items()) + b"}"


def _frame(event: str, fields: Mapping[str, bytes]) -> bytes:
    """A frame as the wire has it (HTML Living Standard, 9.2.6); JSON has no line ends in it."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), _object(fields))
