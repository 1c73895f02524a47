"""Memory that requests use, set aside before they use it. Knows neither HTTP nor images."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from service.errors import QueueFull, TooLarge


class Memory:
    """What all requests have together, in bytes: `held`, and of that `lent` for a while."""

    def __init__(self, limit: int, retry_after: Callable[[], float]) -> None:
        self.limit, self.retry_after = limit, retry_after
        self.held = self.lent = 0
        self.returned = asyncio.Event()

    def has(self, size_bytes: int) -> bool:
        """Whether so much can be had now."""
        return self.held + size_bytes <= self.limit


class Share:
    """What one request has of it.

    What lasts until the answer is had at once or not at all, what a piece of work takes for a
    while as soon as others have given theirs back.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.held = self.lent = 0

    def take(self, size_bytes: int) -> None:
        """Set memory aside until it is given back; below 0: give it back.

        Raises:
            TooLarge: there never is so much. QueueFull: others have it.
        """
        memory, needed = self.memory, self.held - self.lent + size_bytes
        if size_bytes > 0 and needed > memory.limit:
            raise TooLarge(
                f"The request needs {needed:,} bytes of memory to be decoded; there are "
                f"{memory.limit:,} for all requests. Send fewer or smaller images at once."
            )
        if size_bytes > 0 and not memory.has(size_bytes):
            raise QueueFull(
                "The requests being answered fill the memory set aside for them "
                f"({memory.limit:,} bytes).",
                retry_after=memory.retry_after(),
            )
        memory.held += size_bytes
        self.held += size_bytes

    @asynccontextmanager
    async def lend(self, size_bytes: int, turns: asyncio.Lock) -> AsyncIterator[None]:
        """Set memory aside for a piece of work; wait, in turn, for what others give back."""
        memory = self.memory
        async with turns:
            while (
                memory.lent
                and not memory.has(size_bytes)
                and self.held - self.lent + size_bytes <= memory.limit
            ):
                memory.returned.clear()
                await memory.returned.wait()
            self.take(size_bytes)
        with self._lent(size_bytes):
            yield

    @contextmanager
    def lend_now(self, size_bytes: int) -> Iterator[None]:
        """Set memory aside for a piece of work if it can be had; as `take` raises else."""
        self.take(size_bytes)
        with self._lent(size_bytes):
            yield

    @contextmanager
    def _lent(self, size_bytes: int) -> Iterator[None]:
        """Note that what was taken is given back after a piece of work."""
        memory = self.memory
        memory.lent += size_bytes
        self.lent += size_bytes
        try:
            yield
        finally:
            memory.lent -= size_bytes
            self.lent -= size_bytes
            self.take(-size_bytes)
            memory.returned.set()
