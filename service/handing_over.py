"""Streams that another process goes on with: saved whole and kept here no more."""

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import Executor

from service.events import Events
from service.silence import Silence
from service.streams import Streams
from service.truth import Truth
from service.undoing import OnDevice

# How long a batch of the stream, and what follows it, is waited for.
REST_SECONDS, PAUSE = 20.0, 0.005


class HandingOver:
    """Gives streams away, where processes share a state folder."""

    def __init__(
        self,
        on_device: OnDevice,
        writer: Executor,
        table: Streams,
        truth: Truth,
        silence: Silence,
        events: Events,
    ) -> None:
        self._on_device, self._writer, self._table = on_device, writer, table
        self._truth, self._silence, self._events = truth, silence, events

    async def hand_over(self, stream: str) -> bool:
        """Save a stream that no request is of, and keep nothing of it; return whether that is done.

        One that cannot be saved goes all the same: where it went it begins as it was saved before.
        So does one that was reset and whose file cannot be removed: it comes back there.
        """
        until = time.monotonic() + REST_SECONDS
        while time.monotonic() < until:
            if not await self._on_device(self._table.is_at_rest, stream):
                await asyncio.sleep(PAUSE)  # what was answered is being learned from
                continue
            saved = await self._write(stream)
            if await self._on_device(self._let_go, stream, saved):
                self._events.note_repeated(
                    "handed_over",
                    level=logging.INFO if saved else logging.ERROR,
                    stream=stream,
                    saved=saved,
                )
                return True
        return False

    async def _write(self, stream: str) -> bool:
        """Have a stream's file be as the stream is; return whether it is."""
        loop, saving = asyncio.get_running_loop(), self._table.saving
        if saving.is_unsaved(stream):
            taken = await self._on_device(self._table.snapshots, deque([stream]))
            if stream in taken:
                return await loop.run_in_executor(self._writer, self._table.write, stream)
            if saving.is_unsaved(stream):
                return False  # its state cannot be told
        if saving.is_undead(stream):
            _, kept = await loop.run_in_executor(self._writer, saving.remove, [stream])
            return not kept
        return True

    def _let_go(self, stream: str, saved: bool) -> bool:
        """Forget a stream, unless it has gone on since it was saved."""
        has_gone_on = saved and self._table.saving.is_unsaved(stream)
        if has_gone_on or not self._table.is_at_rest(stream):
            return False
        self._forget(stream)
        return True

    async def drop(self, stream: str) -> bool:
        """Keep nothing of a stream of which there is nothing; return whether that is so."""
        return await self._on_device(self._drop, stream)

    def _drop(self, stream: str) -> bool:
        if self.is_kept(stream) or not self._table.is_at_rest(stream):
            return False
        self._forget(stream)
        return True

    def is_kept(self, stream: str) -> bool:
        """Whether there is something of a stream: in memory, awaited, saved. For any thread."""
        table = self._table
        is_here = table.in_memory(stream) is not None or stream in self._silence
        return is_here or table.saving.is_undead(stream) or stream in table

    def is_saved(self, stream: str) -> bool:
        """Whether a stream has a file."""
        return self._table.saving.size(stream) > 0

    async def forget(self, stream: str) -> None:
        """Keep nothing of a stream that turned out to be another process's."""
        await self._on_device(self._forget, stream)
        self._events.note_repeated("lease_lost", level=logging.WARNING, stream=stream)

    def _forget(self, stream: str) -> None:
        self._table.let_go(stream)
        self._truth.forget([stream])
        self._silence.forget([stream])
