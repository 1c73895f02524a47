"""The device thread: it alone touches model, optimizer and statistics. Knows nothing of HTTP.

Every stream is a method object forked from the source. Predicting, adapting, undoing, saving
are messages to the one thread; they run in the order in which they were sent.
"""

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

import torch

from service.answering import Image, Pass
from service.changes.changes import Changes
from service.changes.lines import digest_of
from service.events import Events
from service.exchanging import Exchanging
from service.handing_over import HandingOver
from service.known_ids import FILE, KnownIds
from service.learning import Learning
from service.leases import Leases
from service.metrics import Metrics, versions
from service.predicting import Predicting
from service.saving import Saving
from service.schemas import DoubtedStatus, SavedUnfit
from service.shedding import Shed
from service.silence import Silence
from service.state_folder import StateFolder, StateFolders
from service.stream_record import StreamRecord
from service.stream_reports import StreamReports
from service.streams import Streams
from service.truth import Truth
from service.undoing import Undoing
from ttc_core.evaluate import warm_up
from ttc_core.guard import holds, watching
from ttc_core.methods import Method
from ttc_core.plugins import source_digest
from ttc_core.rows import plain

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
# Labels of so many streams are weighed before a batch may come between.
WEIGHED_AT_ONCE = 32


class Engine:
    """Runs the batches of all streams on one thread.

    `code` has digests of the method's and the model's code, where it is the user's own; `table` has
    the streams' places: whoever wants an answer that teaches is admitted there first; `undoing`
    takes streams back, `exchanging` exchanges other weights for those that answer, `handing_over`
    gives streams to other processes.

    Args:
        source: a method at the source; streams are forked from it.
        method_name, model_spec: as the user gave them, for saved states.
        threads: torch's CPU threads; 0 leaves torch's choice.
        max_streams, max_stream_bytes: streams in memory at once, and bytes of their states.
        stream_expiry: idle seconds after which a stream that cannot be saved makes room.
        state_dir: where streams and ids are saved, or None. It is held until `close`.
        settings: the server's, without secrets; for the log of changes.
        changes_bytes, changes_files: of that a file's size, and how many are kept.
        changes_writer: whose log it is, where several processes share the folder.
        feedback_ids: answers to images with an id that a label may still come for.
        silent_factor, silent_seconds: as `Silence` has them.
        leases: of the processes that share the state folder; None: it is ours alone. With them the
            ids that labels may come for are known as long as the process lives.

    Raises:
        StateFolderError: the folder cannot be used, or another process holds it.
    """

    def __init__(
        self,
        source: Method,
        metrics: Metrics,
        *,
        method_name: str,
        model_spec: str,
        threads: int = 0,
        max_streams: int = 1000,
        max_stream_bytes: int = 2 << 30,
        stream_expiry: float = 3600.0,
        state_dir: Path | None = None,
        settings: Mapping[str, Any] = MappingProxyType({}),
        changes_bytes: int = 64 << 20,
        changes_files: int = 32,
        changes_writer: str = "",
        feedback_ids: int = 1_000_000,
        silent_factor: float = 3.0,
        silent_seconds: float = 60.0,
        leases: Leases | None = None,
    ) -> None:
        self._metrics = metrics
        self._names = {"name": method_name, "model": model_spec}
        # As it runs: the files may be edited meanwhile.
        specs = {"method": method_name, "model": model_spec}
        digests = {whose: source_digest(spec) for whose, spec in specs.items()}
        self.code = {whose: digest for whose, digest in digests.items() if digest is not None}
        self.events = Events()
        self._folders, folder, ids_file, self._is_shared = None, None, None, leases is not None
        if state_dir is not None:
            self._folders = StateFolders(state_dir, **specs, code=self.code, leases=leases)
            folder = self._folders.of(source.model.digest)
            ids_file = state_dir / FILE if leases is None else None
        self._settings = {"server": dict(settings), "method": plain(source.settings)}
        self.changes = Changes(
            state_dir,
            self.events,
            writer=changes_writer,
            most_bytes=changes_bytes,
            most_files=changes_files,
        )
        metrics.changes.of(self.changes)
        names = source.model.class_names
        ids = KnownIds(feedback_ids, names, ids_file, self.events)
        self.truth = Truth(
            metrics,
            ids,
            most_streams=2 * max_streams,
            lasting=state_dir is not None,
            note_change=lambda stream: self._saving.note_change(stream),
        )
        saving_of = partial(
            Saving,
            events=self.events,
            metrics=metrics,
            truth=self.truth,
            changes=self.changes,
        )
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self.table = Streams(
            saving_of(source, folder),
            self._writer,
            self.events,
            metrics,
            most=max_streams,
            most_bytes=max_stream_bytes,
            expiry=stream_expiry,
            leases=leases,
        )
        self.silence = Silence(
            self.events, factor=silent_factor, least=silent_seconds, most_streams=2 * max_streams
        )
        self._device = ThreadPoolExecutor(
            1,
            thread_name_prefix="device",
            initializer=lambda: torch.set_num_threads(threads) if threads else None,
        )
        self._reports = StreamReports(
            self.events,
            metrics,
            self.table,
            self.silence,
            self.changes,
            watches=self.watches,
            holds=holds(source),
        )
        self.exchanging = Exchanging(
            self._on_device,
            self._writer,
            self.table,
            self.truth,
            self._reports,
            self._folders,
            saving_of,
            self._save_changed,
            self.changes,
        )
        self.undoing = Undoing(
            self._on_device,
            self.table,
            self.truth,
            self.silence,
            self._reports,
            self.exchanging.remove_kept_aside,
        )
        self._predicting = Predicting(self.table, self.truth, self.undoing)
        self._learning = Learning(
            self.table, self.truth, self.silence, self._reports, self.undoing, metrics
        )
        self.handing_over = HandingOver(
            self._on_device, self._writer, self.table, self.truth, self.silence, self.events
        )

    @property
    def source(self) -> Method:
        """The method at the source, of the weights that answer now."""
        return self._saving.source

    @property
    def last_adapt_seconds(self) -> float:
        """What learning from the last pass took; 0 before the first."""
        return self._learning.last_seconds

    @property
    def _saving(self) -> Saving:
        return self.table.saving

    @property
    def _folder(self) -> StateFolder | None:
        return self._saving.folder

    @property
    def watches(self) -> bool:
        """Whether a guard compares the streams with the source, be it to observe."""
        return "guard" in watching(self.source)

    @property
    def streams(self) -> dict[str, StreamRecord]:
        """The streams in memory by name; a copy."""
        return self.table.records

    @property
    def unsaved_streams(self) -> int:
        """How many streams have changed since their file was written; 0 without a folder."""
        return self._saving.unsaved_streams

    async def saved_streams(self) -> int:
        """How many streams are on disk only; 0 if the folder cannot be read."""
        try:
            return await asyncio.to_thread(self.table.saved)
        except OSError:
            return 0

    def saved_doubted(self) -> dict[str, DoubtedStatus]:
        """The streams not in memory that the source answers, or would if the guard did more than
        observe."""
        return self._reports.saved_doubted()

    def saved_unfit(self) -> SavedUnfit:
        """The saved streams that are none of what is served, and will be set aside."""
        return self._reports.saved_unfit()

    async def look_at_saved(self) -> None:
        """Look at the files of streams, one at a time: which are doubted, and which do not fit.

        What cannot be looked at is logged, and the others are. Of a folder that is shared, nothing
        is looked at: other processes change the files.
        """
        if self._is_shared:
            return
        names: set[str] = set()
        with contextlib.suppress(OSError):  # a folder that cannot be read is told of elsewhere
            names = await asyncio.to_thread(self._saving.names)
        for name in names:
            try:
                await asyncio.to_thread(self._saving.look_at, name)
            except Exception as error:  # a user's own method may raise anything
                self._reports.not_looked_at(name, error)
        if self._folder is not None:
            self._reports.looked_at_saved(len(names), self._folder.path)

    async def _on_device(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        return await loop.run_in_executor(self._device, lambda: context.run(call, *args, **kwargs))

    def between_passes(self, call: Callable[[], T]) -> T:
        """Have the device thread call something, and wait for what it returns, in any other."""
        return self._device.submit(call).result()

    async def start(self) -> None:
        """Run one throw-away batch, so that the first is not slow."""
        await self._on_device(warm_up, self.source)
        self.changes.note(
            "started",
            program=version("ttc-service"),
            model=self._names["model"],
            method=self._names["name"],
            digest=self.source.model.digest,
            device=str(self.source.model.device),
            settings=self._settings,
            settings_digest=digest_of(self._settings),
            envelope=self.source.envelope.digest_if_bounded,
        )
        self.events.note(
            "started",
            model=self._names["model"],
            method=self._names["name"],
            device=str(self.source.model.device),
            streams=await self.saved_streams(),
            versions=versions(),
        )
        if self._folder is not None:
            await self._on_device(self._reports.tell_what_fails, self._folder, self.source)

    # Batches

    async def predict(
        self,
        parts: Sequence[tuple[str, Sequence[Image]]],
        *,
        learn: bool = True,
        shed: Shed | None = None,
    ) -> Pass:
        """Answer images of streams. Nothing is learned before `adapt`.

        Those that fail beside others cost them nothing: `failed` names them, and the queue asks
        anew. Where no stream is sound, an image whose scores are not finite has its error as its
        row; where none has a row either, what the first failed with is raised.

        Raises:
            MemoryError: nothing was answered, for want of memory.
        """
        return await self._on_device(self._predicting.predict, parts, learn, shed)

    async def fails(
        self, stream: str, images: Sequence[Image], *, learn: bool, shed: Shed | None
    ) -> bool:
        """Whether images of a stream fail; their answers are nobody's, and nothing follows."""
        return await self._on_device(self._predicting.fails, stream, images, learn, shed)

    async def adapt(self, answered: Pass, *, learn: bool) -> None:
        """Count what was answered and learn from it."""
        await self._on_device(self._learning.adapt, answered, learn)

    async def count(self, answered: Pass) -> None:
        """Count what was answered; nothing is learned from it, and nothing moves."""
        await self._on_device(self._learning.count, answered)

    # Labels

    async def feedback(
        self, labels: Iterable[tuple[str, str, int]]
    ) -> tuple[Mapping[str, list[tuple[str, str]]], int]:
        """Count labels, (stream, id, label) each, that came after the answers, and have the guards
        of streams in memory weigh those of compared images.

        Labels that came along are counted alone: whoever measures changes nothing by that.

        Returns:
            The images, (stream, id) each, by outcome, and how many a guard weighed.
        """
        told = await asyncio.to_thread(self.truth.feedback, labels)
        compared = list(told.compared.items())
        weighed = 0
        for start in range(0, len(compared), WEIGHED_AT_ONCE):
            part = compared[start : start + WEIGHED_AT_ONCE]
            weighed += await self._on_device(self._learning.weigh, part)
        return told.images, weighed

    # Saved state

    async def keep_saving(self, interval: float) -> None:
        """Save each stream before its oldest change is `interval` seconds old, without end."""
        while True:
            await asyncio.sleep(interval / 10)
            try:
                await self._save_changed(older_than=0.8 * interval)
                self.truth.write()
            except Exception:
                log.exception("saving failed")

    async def _save_changed(self, *, older_than: float = 0.0) -> bool:
        """Save the streams that changed so many seconds ago; batches run in between.

        Returns:
            Whether files have all of what they had changed by before.
        """
        loop, began, failed = asyncio.get_running_loop(), time.monotonic(), set[str]()
        names = await asyncio.to_thread(self._saving.to_save, older_than, self.streams)
        while names:
            taken = await self._on_device(self.table.snapshots, names)
            written = [
                await loop.run_in_executor(self._writer, self.table.write, each) for each in taken
            ]
            failed |= {each for each, saved in zip(taken, written, strict=True) if not saved}
            if older_than and written and not any(written):
                break  # it is the folder: another round tries again
        unsaved = self._saving.unsaved()
        limit = began - older_than
        return not any(since <= limit or each in failed for each, since in unsaved.items())

    async def save(self) -> bool:
        """Save all that has changed, if there is a folder for it; return whether all went well."""
        if self._folder is None:
            return True
        await self._save_changed()
        _, kept = await asyncio.to_thread(self._saving.remove)
        self._reports.not_removed(kept)
        unsaved, total = self._saving.unsaved(), len(self.streams)
        saved = total - len(unsaved.keys() & self.streams.keys())
        self.events.note(
            "saved",
            message=f"{saved} of {total} streams saved in {self._folder.path}",
            saved=saved,
            streams=total,
        )
        return not unsaved

    def close(self) -> None:
        """Finish what was sent to the thread, then end it."""
        self._device.shutdown()
        self._writer.shutdown()
        self.changes.note("stopped")
        self.changes.close()
        self.truth.close()
        if self._folders is not None and self._folder is not None:
            self._folders.leave(self._folder)
            self._folders.close()
