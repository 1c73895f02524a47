"""Back to the source, or to a snapshot: by hand, or because a stream cannot go on."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import ParamSpec, Protocol, TypeVar

from service.errors import NoSnapshot, NotBroughtBack, SavedDoesNotFit, StateNotRemoved
from service.saving import Saving
from service.schemas import Discarded, ResetResponse, StreamTruth
from service.seen_files import unfit_reason
from service.silence import Silence
from service.stream_record import StreamRecord
from service.stream_reports import StreamReports
from service.streams import Streams
from service.truth import Truth
from ttc_core.guard import kept_snapshots, mode_of
from ttc_core.methods import Method
from ttc_core.methods.contract import SnapshotError
from ttc_core.state_file import StateError

P = ParamSpec("P")
T = TypeVar("T")


class OnDevice(Protocol):
    """Has the device thread call something, behind what it was sent before."""

    async def __call__(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...


class Undoing:
    """Takes streams back, and tells what that threw away.

    Args:
        remove_kept_aside: removes the saved streams of former weights; returns how many, and why
            one could not be.
    """

    def __init__(
        self,
        on_device: OnDevice,
        table: Streams,
        truth: Truth,
        silence: Silence,
        reports: StreamReports,
        remove_kept_aside: Callable[[], Awaitable[tuple[int, str | None]]],
    ) -> None:
        self._on_device, self._table, self._truth = on_device, table, truth
        self._silence, self._reports = silence, reports
        self._remove_kept_aside = remove_kept_aside

    def put_back(self, stream: str, record: StreamRecord, source: Method) -> None:
        """Give a stream that cannot go on a method at the source, on the device thread."""
        record.method, record.truth = source, StreamTruth()
        record.answers_from = self._truth.newest
        said, _ = self._truth.forget([stream])
        self._table.saving.note_change(stream)
        self._reports.put_back(stream, record, said.get(stream, StreamTruth()))
        record.take_note()

    async def reset(self, stream: str | None) -> ResetResponse:
        """Put a stream, or with None all, back to the source, and tell what that threw away.

        With all go those of former weights that are kept aside: nothing learned is to come back.
        A stream of which nothing is known is there already, and that is told.

        Raises:
            StateNotRemoved: they are at the source, but would come back after a restart.
        """
        names, problem, served = [stream or ""], None, self._table.saving
        if stream is None:
            try:
                names = await asyncio.to_thread(self._table.names)
            except OSError as error:
                names, problem = [], f"the state folder: {error.strerror}"
        forgotten = await self._on_device(self._forget, names, stream is None)
        saving, known, in_memory, said, whole = forgotten
        # Thousands of files: whoever asks for an answer does not wait for them.
        saved, kept = await asyncio.to_thread(saving.remove, known or names)
        known = list(dict.fromkeys([*known, *saved]))  # a file that could not be removed before
        found = {
            name: _discarded(
                in_memory.get(name), saved.get(name), said.get(name), is_whole=name in whole
            )
            for name in known
        }
        await asyncio.to_thread(self._reports.reset, names if stream else known, found, kept)
        for name, reason in kept.items():
            problem = problem or f"stream {name}: {reason}"
        kept_aside = 0
        if stream is None:
            kept_aside, why_not = await self._remove_kept_aside()
            problem = problem or why_not
            if self._table.saving is not served:  # others answer since, and have streams of theirs
                return await self.reset(None)
        if problem is not None:
            raise StateNotRemoved(
                "Reset, but what is saved could not be removed and would come back after a "
                f"restart ({problem})."
            )
        return ResetResponse(
            streams=[stream] if stream else known,
            known=bool(known),
            discarded=_sum(found.values()),
            kept_aside=kept_aside,
        )

    def _forget(
        self, names: list[str], all_streams: bool
    ) -> tuple[Saving, list[str], dict[str, Discarded], dict[str, StreamTruth], set[str]]:
        """Put streams back to the source; return whose files are to go, of which streams something
        was known, and what."""
        # Labels may have come for streams that are neither in memory nor saved.
        labelled = self._truth.streams
        if all_streams:
            names = list(dict.fromkeys([*self._table.names(saved=False), *names, *labelled]))
            known = names
        else:
            places = (self._table, labelled, self._silence)
            known = [
                name
                for name in names
                if self._table.in_memory(name) or any(name in place for place in places)
            ]
        # At the source a stream is as good as none: its place is free for another.
        in_memory = self._table.forget(names)
        said, whole = self._truth.forget(names)
        self._silence.forget(None if all_streams else names)
        steps = {name: each.steps for name, each in in_memory.items()}
        self._reports.forgotten(known, steps, all_streams=all_streams)
        return self._table.saving, known, in_memory, said, whole

    @property
    def no_roll_back(self) -> str | None:
        """Why no stream can be brought back, whatever is kept of it; None: they can."""
        if mode_of(self._table.saving.source) != "off":
            return None
        return "No guard is on; saved ones come back with it."

    async def snapshots(self, stream: str) -> Mapping[int, int]:
        """What is kept of a stream to bring it back to: versions, and after how many images each
        was. One that is on disk stays there.

        Raises:
            NoSnapshot: it is neither in memory nor saved.
            SavedDoesNotFit: what is saved is none of its.
        """
        kept = await self._on_device(self._kept_in_memory, stream)
        if kept is None:
            try:
                kept = await asyncio.to_thread(self._table.saving.snapshots, stream)
            except StateError as error:
                raise SavedDoesNotFit(
                    f"What is saved of stream {stream} does not fit: {unfit_reason(error)}."
                ) from error
        if kept is None:
            raise NoSnapshot(f"Stream {stream} has had no images; it is at the source.")
        return kept

    def _kept_in_memory(self, stream: str) -> Mapping[int, int] | None:
        record = self._table.in_memory(stream) or self._table.at_hand(stream)
        return None if record is None or record.is_new else kept_snapshots(record.method)

    async def roll_back(self, stream: str, to: int | None) -> int:
        """Bring a stream back to a snapshot, the last one if none is named; return its version.

        Raises:
            NoSnapshot: there is none.
            NotBroughtBack: its method does not take it up, and is as it was.
            TooManyStreams: it is on disk, and nobody makes room for it.
        """
        kept = await self.snapshots(stream)
        # Nobody makes room for what is not there.
        if self.no_roll_back or not kept or to not in (None, *kept):
            raise self._no_snapshot(stream, kept)
        return await self._on_device(self._roll_back, stream, to)

    def _no_snapshot(self, stream: str, kept: Mapping[int, int]) -> NoSnapshot:
        listed = ", ".join(map(str, kept)) or "none"
        if self.no_roll_back is not None:
            return NoSnapshot(
                f"Stream {stream} can be brought back to none of its versions: {listed}. "
                f"{self.no_roll_back}"
            )
        return NoSnapshot(f"Stream {stream} has no such snapshot; its versions are: {listed}.")

    def _roll_back(self, stream: str, to: int | None) -> int:
        self._table.admit(stream)  # it may be on disk only, and has to stay in memory
        try:
            record = self._table.get(stream)
            before = record.version
            version = record.method.roll_back(to)
            self._table.keep(stream, record)
        except LookupError:  # a reset came between, or what is saved was none
            raise self._no_snapshot(stream, record.method.snapshots) from None
        except SnapshotError as error:
            raise NotBroughtBack(
                f"Stream {stream} has the snapshot and stays as it is: {error}."
            ) from error
        finally:
            self._table.release(stream)
        record.answers_from = self._truth.newest
        record.take_note()
        self._reports.rolled_back(stream, record, before, version)
        self._table.saving.note_change(stream)
        return version


def _discarded(
    in_memory: Discarded | None,
    saved: Discarded | None,
    said: StreamTruth | None,
    *,
    is_whole: bool,
) -> Discarded:
    """What a reset threw away of a stream.

    Args:
        in_memory, saved: what there was of it; the first has gone on from the second.
        said: what labels said of it; is_whole: with what its file says of that.
    """
    saved, said = saved or Discarded(), said or StreamTruth()
    counts = in_memory or saved
    of_file = Discarded() if is_whole else saved
    return Discarded(
        steps=counts.steps,
        pending_batches=counts.pending_batches,
        labelled=said.labelled + of_file.labelled,
        correct=said.correct + of_file.correct,
    )


def _sum(parts: Iterable[Discarded]) -> Discarded:
    totals = Counter[str]()
    for part in parts:
        totals.update(part.model_dump())
    return Discarded(**totals)
