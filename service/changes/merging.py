"""Logs of several writers as one, by their time."""

from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heapreplace
from typing import TypeVar

from service.changes.files import Place, opened
from service.changes.lines import MOST_LINE_BYTES, TIME, decoded

T = TypeVar("T")


def by_time(logs: Iterable[tuple[float, Iterator[T]]], time: Callable[[T], float]) -> Iterator[T]:
    """Merge what several iterators give, each in its own order.

    One is begun when its time has come, and not sooner: so those files alone are open at once that
    were written to at the same time, of however many writers there ever were.

    Args:
        logs: iterators, each with a time no later than that of its first.
    """
    found = [*logs]
    due, first = [(start, number) for number, (start, _) in enumerate(found)], dict[int, T]()
    heapify(due)
    while due:
        number = due[0][1]
        if number in first:
            yield first[number]
        try:
            first[number] = next(found[number][1])
        except StopIteration:
            heappop(due)
        else:
            heapreplace(due, (time(first[number]), number))


def begun(place: Place) -> float:
    """When the first line that is kept of a writer's log was told; 0: that cannot be told."""
    for path in (*place.kept().values(), place.current):
        if (file := opened(path)) is not None:
            with file:
                try:
                    return float(decoded(file.readline(MOST_LINE_BYTES).rstrip(b"\n"))[TIME])
                except ValueError:
                    return 0.0
    return 0.0
