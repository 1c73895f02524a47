"""What the live page shows of all replicas: their numbers summed, their streams side by side."""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from service.errors import NotReady
from service.live.frames import EVENTS_TOLD
from service.live.rows import Seen
from service.live.schemas import LiveCounters, LiveGauges, LiveModel
from service.metrics import ACCURACY_WINDOW
from service.replicas.fleet import Fleet
from service.replicas.replica import Told

ASKED_SECONDS = 3.0


class FleetSight:
    """All replicas; what those that are gone had counted when last seen stays in the sums.

    They are asked only where somebody reads: a page's history begins with its first reader.

    Its methods are called in a thread beside the event loop, which it asks the replicas on. Where
    they do not answer it tells what was seen last.

    Attributes:
        told: what each replica told last; of those that did not answer then, nothing.
        late: names of replicas that are there, and did not answer when last asked.
        new_events: the replicas' events, each once; whoever tells of one takes it out.
    """

    is_dear = True

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.new_events: deque[Mapping[str, Any]] = deque(maxlen=EVENTS_TOLD)
        self._loop = asyncio.get_running_loop()
        self.told: list[Told] = []
        self.late: list[str] = []
        self._looking = asyncio.Lock()  # of two at a time each would hear the same events
        self._streams: dict[str, Seen] = {}
        self._counted: dict[str, LiveCounters] = {}
        self._heard: dict[str, float] = {}

    async def look(self, *, with_files: bool = False) -> list[Told]:
        """Ask all replicas about themselves.

        Raises:
            NotReady: there is none, or none answers.
        """
        async with self._looking:
            before, heard = self.told, dict(self._heard)
            try:
                found = await self._fleet.call("told", heard, with_files, seconds=ASKED_SECONDS)
            except NotReady:
                self.told = []
                raise
            self.told = sorted(
                (each for each in found if isinstance(each, Told)), key=lambda each: each.name
            )
            # Of those that do not answer nobody says who they are: it is known of whom was seen.
            is_one_late = any(isinstance(each, TimeoutError) for each in found)
            known = {*self.late, *(each.name for each in before)} if is_one_late else set()
            self.late = sorted(known - {each.name for each in self.told})
            for each in self.told:
                self._model = each.model
                self._counted[each.name] = each.counters
                for event in each.events:
                    self._heard[each.name] = max(self._heard.get(each.name, 0.0), event["time"])
                    self.new_events.append({**event, "replica": each.name})
            if not self.told:
                raise NotReady("The replicas do not answer.", retry_after=1)
            return self.told

    def model(self) -> LiveModel:
        """The model that answers."""
        return self._model

    def numbers(self) -> tuple[LiveCounters, LiveGauges]:
        """Totals since the start, and how things are."""
        self._run(self.look())
        return summed(self._counted.values()), together(self.told)

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


def together(told: list[Told]) -> LiveGauges:
    """How things are in several processes: ready where one is, the farthest drift, sums.

    Accuracies are means over what each is of: the latest labels, or the streams in memory.
    """
    found: dict[str, Any] = {}
    for name in LiveGauges.model_fields:
        given = [
            (value, each) for each in told if (value := getattr(each.gauges, name)) is not None
        ]
        values = [value for value, _ in given]
        if name in ("ready", "drift"):
            found[name] = max(values, default=0)
        elif name in ("estimated_adapted", "estimated_source", "window_accuracy"):
            weights = [
                min(ACCURACY_WINDOW, each.counters.labelled)
                if name == "window_accuracy"
                else each.gauges.streams - each.gauges.held
                for _, each in given
            ]
            weighed = sum(value * weight for value, weight in zip(values, weights, strict=True))
            found[name] = weighed / sum(weights) if sum(weights) else None
        else:
            found[name] = sum(values)
    return LiveGauges(**found)
