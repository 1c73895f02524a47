"""A fleet of replicas, one a machine, whose failures are simulated: a seeded discrete-event run.

Streams are dealt over the replicas by a ring, as Ray's consistent-hash router deals them: each
replica has so many places on it, and a stream is of the first place behind its own. When a replica
dies its streams fall to those behind; a new one, with places of its own, then takes its part from
all others. Knows neither Ray nor the service: what recovery takes is given.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DAY = 86_400.0


@dataclass(frozen=True)
class Recovery:
    """What a failure costs, in seconds; benchmarks/fleet.toml says what each is."""

    takeover: float
    machine_takeover: float
    start: float
    machine: float
    move: float
    load: float
    save_interval: float
    retry: float


class Failure(NamedTuple):
    """At `time`, in seconds, a replica dies, or its machine; which: `victim` in [0, 1) of them."""

    time: float
    of_machine: bool
    victim: float


class Outcome(NamedTuple):
    """What came of it.

    `failures` hit a replica. `images` were asked for; of them `delayed` came while nobody answered
    their stream, `given_up` so long before somebody did that a client has ceased to try,
    `overloaded` at a replica that was asked for more than it can. `forgotten` images were learned
    from and not saved. `worst_seconds` is the longest for which a stream was not answered,
    `most_down` of replicas at a time.
    """

    failures: int
    images: float
    delayed: float
    given_up: float
    overloaded: float
    forgotten: float
    worst_seconds: float
    most_down: int


def drawn(replicas_an_hour: float, machines_a_day: float, days: float, seed: int) -> list[Failure]:
    """Failures at random times, each kind at a rate of its own, in order."""
    random = np.random.default_rng([seed, 1])
    found = []
    for of_machine, a_day in ((False, 24 * replicas_an_hour), (True, machines_a_day)):
        count = int(random.poisson(a_day * days))
        times, victims = random.uniform(0, days * DAY, count), random.random(count)
        found += [
            Failure(float(time), of_machine, float(victim))
            for time, victim in zip(times, victims, strict=True)
        ]
    return sorted(found)


class Ring:
    """Streams on replicas; `owner` has the replica of each stream, -1 while there is none."""

    def __init__(self, streams: int, replicas: int, places: int, seed: int) -> None:
        self._places, self._seed, self._next = places, seed, replicas
        # Streams stand in the order of their hashes: those of an arc lie side by side.
        self._hashes = np.sort(_hashes(streams, seed, 2))
        at = np.concatenate([self._drawn(replica) for replica in range(replicas)])
        order = np.argsort(at)
        self._at, self._of = at[order], np.repeat(np.arange(replicas), places)[order]
        self.owner = np.full(streams, -1)
        self.replicas = list(range(replicas))
        self._deal(np.arange(streams))

    def _drawn(self, replica: int) -> NDArray[np.uint64]:
        return np.sort(_hashes(self._places, self._seed, 3, replica))

    def _deal(self, streams: NDArray[np.int64]) -> None:
        if len(self._at) == 0:
            self.owner[streams] = -1
        else:
            behind = np.searchsorted(self._at, self._hashes[streams], side="right")
            self.owner[streams] = self._of[behind % len(self._at)]

    def remove(self, replica: int) -> NDArray[np.int64]:
        """Take a replica away; return its streams, which are others' now."""
        streams = np.flatnonzero(self.owner == replica)
        kept = self._of != replica
        self._at, self._of = self._at[kept], self._of[kept]
        self.replicas.remove(replica)
        self._deal(streams)
        return streams

    def add(self) -> NDArray[np.int64]:
        """Add a replica; return the streams that are its own now."""
        replica, new = self._next, self._drawn(self._next)
        self._next += 1
        self.replicas.append(replica)
        where = np.searchsorted(self._at, new)
        self._at = np.insert(self._at, where, new)
        self._of = np.insert(self._of, where, replica)
        ends = np.searchsorted(self._at, new)
        starts = self._at[ends - 1]  # of the first the last: that arc goes over the end
        low, high = (np.searchsorted(self._hashes, each) for each in (starts, new))
        arcs = [
            np.arange(a, b) if a <= b and s < e else np.r_[np.arange(a, len(self._hashes)), :b]
            for a, b, s, e in zip(low, high, starts, new, strict=True)
        ]
        streams = np.unique(np.concatenate(arcs)).astype(np.int64)
        self.owner[streams] = replica
        return streams

    def counts(self) -> NDArray[np.int64]:
        """How many streams each replica has that lives."""
        return np.bincount(self.owner[self.owner >= 0], minlength=self._next)[self.replicas]


def _hashes(count: int, *seed: int) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)


def simulate(
    cameras: int,
    rate: float,
    machines: int,
    failures: Sequence[Failure],
    recovery: Recovery,
    *,
    days: float,
    most: int,
    places: int = 100,
    seed: int = 0,
) -> Outcome:
    """Let a fleet run for some days and fail.

    Args:
        rate: images a second of a camera.
        failures: those that come while no replica lives hit nobody.
        most: cameras that a replica carries.
        places: of a replica on the ring.
    """
    ring = Ring(cameras, machines, places, seed)
    end = days * DAY
    # When a stream was left last, when it was or will be answered again, when it is saved.
    left, back = np.zeros(cameras), np.zeros(cameras)
    phase = np.random.default_rng([seed, 4]).uniform(0, recovery.save_interval or 1, cameras)
    delayed = given_up = forgotten = overloaded = worst = before = 0.0
    most_down = hit = 0

    def close(streams: NDArray[np.int64]) -> None:
        """Count outages that are over."""
        nonlocal delayed, given_up, worst
        seconds = np.minimum(back[streams], end) - left[streams]
        delayed += rate * float(seconds.sum())
        given_up += rate * float(np.maximum(seconds - recovery.retry, 0).sum())
        worst = max(worst, float(seconds.max(initial=0)))

    events: list[tuple[float, int, Failure | None]] = [
        (each.time, number, each) for number, each in enumerate(failures)
    ]
    heapq.heapify(events)
    while events and events[0][0] < end:
        time, number, failure = heapq.heappop(events)
        overloaded += (time - before) * rate * _beyond(ring.counts(), most)
        before = time
        if failure is None:  # a replica is there in a dead one's place
            alone = not ring.replicas
            streams = ring.add()
            until = np.maximum(back[streams], time + recovery.move)
            if alone:
                until[:] = time + recovery.load
        elif not ring.replicas:
            continue
        else:
            of_machine, hit = failure.of_machine, hit + 1
            streams = ring.remove(ring.replicas[int(failure.victim * len(ring.replicas))])
            there = time + (recovery.machine if of_machine else recovery.start)
            heapq.heappush(events, (there, len(failures) + number, None))
            most_down = max(most_down, machines - len(ring.replicas))
            silent = recovery.machine_takeover if of_machine else recovery.takeover
            again = time + silent + recovery.load if ring.replicas else math.inf
            until = np.full(len(streams), again)
            learned = streams[back[streams] <= time]
            if recovery.save_interval:
                since = (time - phase[learned]) % recovery.save_interval
                forgotten += rate * float(np.minimum(since, time - back[learned]).sum())
        answered = back[streams] <= time
        close(streams[answered])
        left[streams[answered]] = time
        back[streams] = until
    overloaded += (end - before) * rate * _beyond(ring.counts(), most)
    close(np.arange(cameras))
    images = cameras * rate * end
    return Outcome(hit, images, delayed, given_up, overloaded, forgotten, worst, most_down)


def _beyond(counts: NDArray[np.int64], most: int) -> int:
    """Streams of replicas that have too many."""
    return int(counts[counts > most].sum())
