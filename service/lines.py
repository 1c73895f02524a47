"""Who waits, stream by stream, and whose turn it is. Knows neither HTTP nor torch.

Nothing here takes longer because more streams wait: images are counted as they come and go, and
the streams that may close a batch stand in a heap, by their turn.
"""

import asyncio
import contextlib
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from time import monotonic
from typing import Generic

from service.errors import QueueFull, TooLarge
from service.places import Batch, Item, Place, Result, Slices

# For how long at most what a stream had of the device counts against it.
LATELY_SECONDS = 60.0


@dataclass(eq=False)
class _Line(Generic[Item, Result]):
    """A stream's places in order of arrival.

    Its `entry` is the one that counts among those whose turn may come, None if it may not. `due`
    is until when it waits for company, as the lines know. Meanwhile others may be its company:
    `early` is its entry among those that wait, with so many images, to be learned from or not.
    """

    places: deque[Place[Item, Result]] = field(default_factory=deque)
    images: int = 0
    entry: tuple[float, float, str] | None = None
    due: float = -math.inf
    early: tuple[float, float, str] | None = None
    early_images: int = 0
    early_learn: bool = True


class Lines(Generic[Item, Result]):
    """A line of places for each stream, and the order in which their batches are next.

    Among the streams that may close a batch, whoever had least of the device lately is next: the
    one whose turn came first. A turn comes with a stream's oldest image; after a batch, however,
    not before each stream that waits could have had as many seconds, from the batch's beginning. So
    what nobody else wanted costs nothing later, and who comes new overtakes only those that had
    more than they left to others, and those for `LATELY_SECONDS` at most: no stream starves.

    Where streams share, those whose turns come next join a batch in this order, as long as each
    fits in whole, with all that its own batch would hold. So no turn is passed over. Those that
    still wait for company join behind them; where they fill a batch by themselves, they are one.

    Args:
        retry_after: tells the seconds in which there should be room again.
        shares: whether a batch may hold images of several streams.

    Attributes:
        images: how many wait, decoded or not; a request not yet counted is one.
        batches: how many batches those make, by size: each stream's its own, or all together where
            they share.
        taken: how many batches were taken out so far.
    """

    def __init__(
        self,
        max_batch: int,
        max_wait: float,
        max_images: int,
        retry_after: Callable[[], float],
        *,
        shares: bool = False,
    ) -> None:
        self._max_batch, self._max_wait, self._max_images = max_batch, max_wait, max_images
        self._retry_after, self._shares = retry_after, shares
        self.images = self.taken = 0
        self.batches: Counter[int] = Counter()
        self._lines: dict[str, _Line[Item, Result]] = {}
        self._places: OrderedDict[Place[Item, Result], None] = OrderedDict()
        # Heaps. What no longer holds of a stream stays in them until it comes up.
        self._ready: list[tuple[float, float, str]] = []  # turn, arrival of the oldest, stream
        self._due: list[tuple[float, str]] = []
        # Of streams that share and still wait for company, by whether they are learned from: as
        # `_ready`, and how many images their batches would hold.
        self._early: dict[bool, list[tuple[float, float, str]]] = {True: [], False: []}
        self._early_images = {True: 0, False: 0}
        # Before when a stream's turn does not come, in the order in which they were served.
        self._turns: OrderedDict[str, float] = OrderedDict()
        self._draining = self._pausing = False
        self._wake = asyncio.Event()
        self._wakes_at = -math.inf  # by itself; -inf while nobody waits for the next batch

    def __len__(self) -> int:
        """How many streams wait."""
        return len(self._lines)

    def __iter__(self) -> Iterator[Place[Item, Result]]:
        """The places in order of arrival, whatever their stream."""
        return iter(self._places)

    def may_run(self, place: Place[Item, Result]) -> bool:
        """Whether it is the next of its stream, whose turn may come."""
        line = self._lines[place.stream]
        return line.entry is not None and line.places[0] is place

    # What requests do

    def make_room(self, images: int, *, instead_of: int = 0) -> None:
        """Raise TooLarge or QueueFull unless so many images may wait, some instead of others."""
        waiting = self.images - instead_of
        if images > self._max_images:
            raise TooLarge(
                f"The request has {images:,} images; at most {self._max_images:,} can wait at once."
            )
        if waiting + images > self._max_images:
            raise QueueFull(
                f"The queue is full: {waiting:,} of at most {self._max_images:,} images wait.",
                retry_after=self._retry_after(),
            )

    def enter(self, stream: str, deadline: float | None, learn: bool) -> Place[Item, Result]:
        """Take a place at the end of a stream's line."""
        place: Place[Item, Result] = Place(self, stream, deadline, learn)
        line = self._lines.setdefault(stream, _Line())
        line.places.append(place)
        self._places[place] = None
        self._recount(line, 1)
        return place

    def count(self, place: Place[Item, Result], images: int) -> None:
        """Let a place have so many images, if there is room for them."""
        before = place.waiting
        self.make_room(images, instead_of=before)
        place.images = images
        if place in self._places:
            self._recount(self._lines[place.stream], place.waiting - before)

    def remove(self, place: Place[Item, Result]) -> None:
        """Take a place out, if it is in."""
        if place in self._places:
            line = self._lines[place.stream]
            line.places.remove(place)
            self._not_early(line)
            self._recount(line, -place.waiting)
            self._strike(line, place)
            self.look(place.stream, anew=True)

    def look(self, stream: str, *, anew: bool = False) -> None:
        """Find out whether a stream's turn may come, if that is not known or no longer holds."""
        line = self._lines.get(stream)
        if line is None or (line.entry is not None and not anew):
            return
        self._not_early(line)
        line.entry, first = None, line.places[0]
        due = first.arrived + self._max_wait
        if first.items is None:
            return
        entry = (max(first.arrived, self._turns.get(stream, first.arrived)), first.arrived, stream)
        waits = not self._draining and due > monotonic()
        slices, is_full = self._compose(line.places) if waits else ([], True)
        if is_full:
            line.entry = entry
            heappush(self._ready, line.entry)
            self._wake.set()
            return
        if self._shares:
            line.early, line.early_learn = entry, first.learn
            line.early_images = sum(stop - start for _, start, stop in slices)
            heappush(self._early[first.learn], entry)
            self._early_images[first.learn] += line.early_images
            if self._early_images[first.learn] >= self._max_batch:
                self._wake.set()
        if due != line.due:
            line.due = due
            heappush(self._due, (due, stream))
            if due < self._wakes_at:
                self._wake.set()

    def _not_early(self, line: _Line[Item, Result]) -> None:
        """Note that a line is not among those that wait for company, or not as it was."""
        if line.early is not None:
            line.early = None
            self._early_images[line.early_learn] -= line.early_images

    # What the loop does

    async def next(self) -> Batch[Item, Result] | None:
        """Wait for the next batch and take it out; `served` is to follow.

        None once drained, and where there is a pause.
        """
        while (batch := self._take()) is None:
            if self._pausing or (self._draining and not self._lines):
                return None
            self._wake.clear()
            self._wakes_at = self._due[0][0] if self._due else math.inf
            rest = self._wakes_at - monotonic() if self._due else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._wake.wait()
            self._wakes_at = -math.inf
        return batch

    def served(self, batch: Batch[Item, Result], began: float) -> None:
        """Note that a batch had the device from `began` until now, each stream by its images."""
        now, streams = monotonic(), batch.streams
        for stream, items in streams.items():
            seconds = (now - began) * len(items) / batch.images
            waiting = len(self._lines) + (stream not in self._lines)
            turn = max(began, self._turns.get(stream, began)) + waiting * seconds
            self._turns[stream] = min(turn, now + LATELY_SECONDS)
            self._turns.move_to_end(stream)
        while self._turns and next(iter(self._turns.values())) <= now:
            self._turns.popitem(last=False)
        for stream in streams:
            self.look(stream, anew=True)

    def drain(self) -> None:
        """Have nobody wait for company any more."""
        self._draining = True
        for stream in self._lines:
            self.look(stream)
        self._wake.set()

    def pause(self) -> None:
        """Have `next` finish the requests that are answered in part, then give None."""
        self._pausing = True
        self._wake.set()

    def resume(self) -> None:
        """Have `next` give out batches again."""
        self._pausing = False

    def _take(self) -> Batch[Item, Result] | None:
        """Take out the batch whose turn it is, if any may close."""
        if self._pausing:
            return self._take_begun()
        now = monotonic()
        while self._due and self._due[0][0] <= now:
            self.look(heappop(self._due)[1])
        batch: list[tuple[Place[Item, Result], int, int]] = []
        room, full = self._max_batch, False
        while room and (found := self._next_line(batch[0][0].learn if batch else None)) is not None:
            line, heap = found
            slices, is_full = self._compose(line.places)
            images = sum(stop - start for _, start, stop in slices)
            # The first that wait for company are a batch where they fill one, if not to the image.
            full |= is_full or images >= room or (not batch and heap is not self._ready)
            if batch and (images > room or slices[0][0].learn != batch[0][0].learn):
                break
            line.entry = heappop(heap)
            self._take_out(line, slices)
            batch += slices
            room -= images
            if not self._shares:
                break
        if not batch:
            return None
        self.taken += 1
        return Batch(batch, "full" if full else "drain" if self._draining else "wait")

    def _take_begun(self) -> Batch[Item, Result] | None:
        """Take out the next batch of a request that is answered in part, if there is one."""
        begun = next((place for place in self._places if place.taken), None)
        if begun is None:
            return None
        line = self._lines[begun.stream]
        slices, _ = self._compose(line.places)
        line.entry = (-math.inf, begun.arrived, begun.stream)  # in no heap
        self._take_out(line, slices)
        self.taken += 1
        return Batch(slices, "full")

    def _take_out(self, line: _Line[Item, Result], slices: Slices[Item, Result]) -> None:
        """Take the first images of a line out."""
        self._not_early(line)
        for place, _, stop in slices:
            place.taken = stop
            if stop == place.images:
                line.places.popleft()
                self._strike(line, place)
        self._recount(line, -sum(stop - start for _, start, stop in slices))

    def _next_line(
        self, learn: bool | None
    ) -> tuple[_Line[Item, Result], list[tuple[float, float, str]]] | None:
        """The line whose turn is next, if there is one; its entry is the first of the heap with it.

        Args:
            learn: whether the batch begun is learned from; None: there is none yet. Who still
                waits for company joins one that is like it, or begins one that will be full.
        """
        while self._ready:
            entry = self._ready[0]
            line = self._lines.get(entry[-1])
            if line is not None and line.entry is entry:
                return line, self._ready
            heappop(self._ready)
        found = []
        for kind, heap in self._early.items():
            while heap:
                line = self._lines.get(heap[0][-1])
                if line is not None and line.early is heap[0]:
                    if kind is learn or (
                        learn is None and self._early_images[kind] >= self._max_batch
                    ):
                        found.append((heap[0], line, heap))
                    break
                heappop(heap)
        if not found:
            return None
        _, line, heap = min(found, key=lambda each: each[0])
        return line, heap

    def _strike(self, line: _Line[Item, Result], place: Place[Item, Result]) -> None:
        del self._places[place]
        if not line.places:
            del self._lines[place.stream]
        if self._draining:  # it may have been the last
            self._wake.set()

    def _recount(self, line: _Line[Item, Result], change: int) -> None:
        """Note that so many more images wait in a line."""
        together = self.images if self._shares else line.images
        for images, sign in ((together, -1), (together + change, 1)):
            full, rest = divmod(images, self._max_batch)
            for size, count in ((self._max_batch, full), (rest, 1 if rest else 0)):
                self.batches[size] += sign * count
                if not self.batches[size]:  # else there would be one for each size ever seen
                    del self.batches[size]
        line.images += change
        self.images += change

    def _compose(self, places: deque[Place[Item, Result]]) -> tuple[Slices[Item, Result], bool]:
        """Return what the next batch of a stream would hold, and whether it can hold no more.

        A request still being decoded ends the batch: those behind it keep the order of arrival.
        So does one that is not to be learned from behind those that are, and the reverse.
        """
        slices: list[tuple[Place[Item, Result], int, int]] = []
        room = self._max_batch
        for place in places:
            if place.items is None:
                return slices, False
            if slices and place.learn != slices[0][0].learn:
                return slices, True
            rest = place.images - place.taken
            if rest >= self._max_batch and not slices:
                return [(place, place.taken, place.taken + self._max_batch)], True
            if rest > room:
                return slices, True
            slices.append((place, place.taken, place.images))
            room -= rest
        return slices, room == 0
