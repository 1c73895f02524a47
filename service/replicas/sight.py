"""What the live page shows of all replicas: their numbers summed, their streams side by side."""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from service.errors import NotReady
from service.live.frames import EVENTS_TOLD
from service.live.rows import Seen
from service.live.schemas import LiveCounters, LiveGauges, LiveModel
from service.replicas.fleet import Fleet
from service.replicas.replica import Told

ASKED_SECONDS = 3.0


class FleetSight:
    """All replicas; what those that are gone had counted when last seen stays in the sums.

    Its methods are called in a thread beside the event loop, which it asks the replicas on. Where
    they do not answer it tells what was seen last.

    Attributes:
        told: what each replica told last.
        new_events: the replicas' events, each once; whoever tells of one takes it out.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.new_events: deque[Mapping[str, Any]] = deque(maxlen=EVENTS_TOLD)
        self._loop = asyncio.get_running_loop()
        self.told: list[Told] = []
        self._streams: dict[str, Seen] = {}
        self._counted: dict[str, LiveCounters] = {}
        self._heard: dict[str, float] = {}

    async def look(self) -> list[Told]:
        """Ask all replicas about themselves.

        Raises:
            NotReady: there is none, or one does not answer.
        """
        found = await self._fleet.call("told", dict(self._heard), seconds=ASKED_SECONDS)
        self.told = sorted(each for each in found if isinstance(each, Told))
        for each in self.told:
            self._counted[each.name] = each.counters
            for event in each.events:
                self._heard[each.name] = max(self._heard.get(each.name, 0.0), event["time"])
                self.new_events.append({**event, "replica": each.name})
        return self.told

    def model(self) -> LiveModel:
        """The model that answers."""
        return self.told[0].model

    def numbers(self) -> tuple[LiveCounters, LiveGauges]:
        """Totals since the start, and how things are."""
        self._run(self.look())
        return summed(self._counted.values()), together([each.gauges for each in self.told])

    def streams(self) -> Mapping[str, Seen]:
        """The streams of all replicas by name."""
        found = self._run(self._fleet.call("streams", seconds=ASKED_SECONDS))
        if found is not None:
            self._streams = {}
            for each in found:
                for name, seen in each.items() if isinstance(each, dict) else ():
                    # Who has it in memory knows more than who had it.
                    if name not in self._streams or seen.in_memory:
                        self._streams[name] = seen
        return self._streams

    def _run(self, asking: Any) -> Any:
        try:
            future = asyncio.run_coroutine_threadsafe(asking, self._loop)
            return future.result(ASKED_SECONDS + 1)
        except (NotReady, TimeoutError):
            return None


def summed(counters: Iterable[LiveCounters]) -> LiveCounters:
    """The totals of several processes."""
    found: dict[str, Any] = {}
    for each in counters:
        for name, value in each.model_dump().items():
            before = found.get(name)
            if isinstance(value, list):
                pairs = zip(before or [0] * len(value), value, strict=True)
                found[name] = [one + other for one, other in pairs]
            else:
                found[name] = (before or 0) + value
    return LiveCounters(**found)


def together(gauges: list[LiveGauges]) -> LiveGauges:
    """How things are in several processes: ready where one is, the farthest drift, sums."""
    found: dict[str, Any] = {}
    for name in LiveGauges.model_fields:
        values = [value for each in gauges if (value := getattr(each, name)) is not None]
        if name in ("ready", "drift"):
            found[name] = max(values, default=0)
        elif name in ("estimated_adapted", "estimated_source", "window_accuracy"):
            found[name] = sum(values) / len(values) if values else None
        else:
            found[name] = sum(values)
    return LiveGauges(**found)
