"""Which streams have sent nothing for much longer than is their habit: a camera that went away.

A stream's habit is its longest pause of late, slowly forgotten: so a camera that sends in
bursts is not called silent between them. A pause that was silence counts only as what was the
limit, so that one outage does not make a habit, and several do.
"""

import asyncio
import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from service.events import Events

# Requests that a habit takes, and over which a pause is forgotten.
FEWEST_REQUESTS, FORGOTTEN_OVER = 20, 500
# Who is silent for longer was taken away on purpose.
GONE_SECONDS = 86_400.0
# Between two looks; and streams that have an event of their own, of those that one look finds.
LOOK_SECONDS, MOST_APART = 1.0, 10


@dataclass
class _Habit:
    """Of a stream: when its last request was answered, of how many, and its longest pause.

    `last` is of the clock that pauses are measured with, `told` of the one on the wall.
    """

    last: float
    told: float = 0.0
    requests: int = 0
    longest: float = 0.0


class Silence:
    """The streams that are silent. `heard` and `forget` are for any thread.

    Args:
        factor: times the longest pause of late that a stream has to send nothing, and
        least: seconds, at least.
        most_streams: that are known at once; those heard of longest ago are forgotten first.
        clock: seconds, which nobody sets; wall: those since 1970.
    """

    def __init__(
        self,
        events: Events,
        *,
        factor: float,
        least: float,
        most_streams: int,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._events, self._factor, self._least = events, factor, least
        self._most, self._clock, self._wall = most_streams, clock, wall
        # In the order in which they were heard of.
        self._habits: dict[str, _Habit] = {}
        # When to look at a stream again; one whose habit is known, and that is not silent, is here.
        self._due: list[tuple[float, str]] = []
        self._awaited: set[str] = set()
        # Since when, in that order; and for how long those were that are back.
        self._silent: dict[str, float] = {}
        self._back: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def silent(self) -> frozenset[str]:
        """The names of the silent streams."""
        with self._lock:
            return frozenset(self._silent)

    @property
    def silent_since(self) -> dict[str, float]:
        """When the last request of each of them was answered, in seconds since 1970."""
        with self._lock:
            return {name: self._habits[name].told for name in self._silent}

    @property
    def last_heard(self) -> dict[str, float]:
        """When the last request of each known stream was answered, in seconds since 1970."""
        with self._lock:
            return {name: habit.told for name, habit in self._habits.items()}

    def __contains__(self, name: str) -> bool:
        """Whether something is known of a stream's habit."""
        return name in self._habits

    def heard(self, name: str) -> None:
        """A stream has sent a request."""
        now = self._clock()
        with self._lock:
            habit = self._habits.pop(name, None) or _Habit(now)
            pause = min(now - habit.last, self._limit(habit))
            habit.longest = max(pause, habit.longest * (1 - 1 / FORGOTTEN_OVER))
            if self._silent.pop(name, None) is not None:
                self._back[name] = now - habit.last
            habit.last, habit.told, habit.requests = now, self._wall(), habit.requests + 1
            self._habits[name] = habit
            if len(self._habits) > self._most:
                self._forget(next(iter(self._habits)))
            if habit.requests >= FEWEST_REQUESTS and name not in self._awaited:
                self._await(name, habit)

    def forget(self, names: Iterable[str] | None) -> None:
        """What the habit of these streams was, or with None of all, counts no more."""
        with self._lock:
            for name in list(self._habits) if names is None else names:
                self._forget(name)

    def look(self) -> None:
        """Tell which streams have become silent, and which are back.

        Its cost is that of the few streams whose time is up.
        """
        now, found = self._clock(), {}
        with self._lock:
            while self._due and self._due[0][0] <= now:
                name = heapq.heappop(self._due)[1]
                self._awaited.discard(name)
                habit = self._habits.get(name)
                if habit is None or habit.requests < FEWEST_REQUESTS:
                    continue  # forgotten meanwhile
                if habit.last + self._limit(habit) > now:
                    self._await(name, habit)
                else:
                    self._silent[name], found[name] = now, now - habit.last
            while self._silent and next(iter(self._silent.values())) <= now - GONE_SECONDS:
                self._forget(next(iter(self._silent)))
            back, self._back = self._back, {}
        self._tell("back", back, logging.INFO)
        self._tell("silent", found, logging.WARNING)

    async def watch(self) -> None:
        """Look without end."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def _limit(self, habit: _Habit) -> float:
        return max(self._least, self._factor * habit.longest)

    def _await(self, name: str, habit: _Habit) -> None:
        self._awaited.add(name)
        heapq.heappush(self._due, (habit.last + self._limit(habit), name))

    def _forget(self, name: str) -> None:
        self._habits.pop(name, None)
        self._silent.pop(name, None)
        self._back.pop(name, None)

    def _tell(self, event: str, streams: dict[str, float], level: int) -> None:
        apart = list(streams.items())[:MOST_APART]
        for name, seconds in apart:
            self._events.note(event, level=level, stream=name, seconds=round(seconds, 1))
        if more := len(streams) - len(apart):
            self._events.note(
                event, message=f"{event}: {more} streams more", level=level, streams=more
            )
