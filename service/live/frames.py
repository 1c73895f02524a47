"""The frames that all readers of `GET /events` are sent, each encoded once.

All of it runs in one thread beside the event loop and the device: it reads what they publish, and
keeps what it made. Knows nothing of HTTP.
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from heapq import merge
from importlib.metadata import version
from typing import Any, NamedTuple

from pydantic_core import to_json

from service.live.rows import Change, Rows
from service.live.schemas import LiveAsks
from service.live.sight import Sight
from service.metrics import SECONDS
from service.settings import Settings

# Between points of the history, which has those of the last hour.
INTERVAL_SECONDS, HISTORY_SECONDS = 5.0, 3600.0
# Events that whoever comes is told: so many of those that come with every camera that comes and
# goes, and as many of all others, which a thousand cameras do not push out.
EVENTS_TOLD = 200
ROUTINE = frozenset({"connection_closed", "evicted", "restored", "skipped"})
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
    """Makes frames out of what there is to see.

    Args:
        page: of which the live page is, in a word that changes with it.

    Attributes:
        new_events: those that no frame has told yet; whoever hears of one puts it here.
    """

    def __init__(self, settings: Settings, sight: Sight, *, page: str) -> None:
        self._sight = sight
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
        self._digest = sight.model().digest
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
        digest, self._digest = self._digest, self._sight.model().digest
        is_point, is_stale = now >= self._next_point, now - self._looked_at > FRESH_SECONDS
        is_kept = is_point and not self._sight.is_dear
        if (is_due and (watched or is_kept)) or (wants_state and is_stale):
            if is_point:
                following = self._next_point + INTERVAL_SECONDS
                self._next_point = following if following > now else now + INTERVAL_SECONDS
            new = self._look(keep=is_point)
            if watched:
                tick = _frame("tick", self._now | {"events": _list(new)} | self._look_at_rows(now))
        return Made(tick, self._state() if wants_state else None, digest != self._digest)

    def _look(self, *, keep: bool) -> list[bytes]:
        """Take note of counters, gauges and events; return the new events."""
        (counters, gauges), moment = self._sight.numbers(), time.time()
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
        found: Change = self._rows.look(self._sight.streams(), choose=choose)
        self._looked_at = now
        return {
            "streams": _list(found.rows),
            "gone": _json(found.gone),
            "left_out": _json(self._rows.left_out),
        }

    def _state(self) -> bytes:
        about = {
            **{name: _json(value) for name, value in self._about.items()},
            "model": self._sight.model().model_dump_json().encode(),
            "history": _object({name: _list(each) for name, each in self._history.items()}),
            "events": _list(event for _, event in merge(*self._events.values())),
            "streams": _list(self._rows.all()),
            "left_out": _json(self._rows.left_out),
        }
        return _frame("state", self._now | about)


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
