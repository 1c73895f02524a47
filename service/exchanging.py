"""Other weights exchanged for those that answer: what becomes of the streams of both."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from service.changes.changes import Changes
from service.saving import Saving
from service.schemas import ALL_STREAMS
from service.state_folder import StateFolder, StateFolderError, StateFolders, stream_of
from service.stream_reports import StreamReports
from service.streams import Streams
from service.told_files import tell_removed
from service.truth import Truth
from service.undoing import OnDevice
from ttc_core.methods import Method


@dataclass(frozen=True)
class Former:
    """What is left of weights that answer no more: their saving, and how many streams they had in
    memory."""

    saving: Saving
    streams: int


class Exchanging:
    """Exchanges weights in three steps: `prepare`, `exchange` between two batches, `put_away`.

    Args:
        writer: runs what waits for the disk, one at a time.
        folders: where streams are saved, those of each weights apart; None: nowhere.
        saving_of: makes what is saved of the streams of a method at the source, in a folder.
        save_changed: saves what has changed by now; returns whether files have all of it.
    """

    def __init__(
        self,
        on_device: OnDevice,
        writer: Executor,
        table: Streams,
        truth: Truth,
        reports: StreamReports,
        folders: StateFolders | None,
        saving_of: Callable[[Method, StateFolder | None], Saving],
        save_changed: Callable[[], Awaitable[bool]],
        changes: Changes,
    ) -> None:
        self._on_device, self._writer = on_device, writer
        self._table, self._truth, self._reports = table, truth, reports
        self._folders, self._saving_of = folders, saving_of
        self._save_changed, self._changes = save_changed, changes

    async def prepare(self, source: Method) -> Saving:
        """Save what there is to save, and make ready for streams of other weights to come.

        Args:
            source: the method at the source, of those; `exchange` is to follow, or `give_up`.

        Raises:
            StateFolderError: what streams have learned could not be kept.
        """
        if self._folders is None:
            return await asyncio.to_thread(self._saving_of, source, None)
        await self._save_all()  # before a folder is made for others
        digests = source.model.digest, self._table.saving.source.model.digest
        folder = await asyncio.to_thread(self._folders.beside, *digests)
        try:
            saving = await asyncio.to_thread(self._saving_of, source, folder)
            await asyncio.to_thread(self._reports.tell_what_fails, folder, saving.source)
            # What has changed meanwhile: of that which is left then, all is copied at the switch.
            await self._save_all()
        except BaseException:
            self._folders.leave(folder)
            raise
        return saving

    async def _save_all(self) -> None:
        if not await self._save_changed():
            raise StateFolderError(
                "What streams have learned cannot be saved now, and would be lost; "
                "an event not_saved says why."
            )

    def give_up(self, saving: Saving) -> None:
        """What was prepared is not to be."""
        if self._folders is not None and saving.folder is not None:
            self._folders.leave(saving.folder)

    async def exchange(self, saving: Saving) -> Former:
        """Have other weights answer, to be called between two batches; `put_away` is to follow."""
        return await self._on_device(self._exchange, saving)

    def _exchange(self, saving: Saving) -> Former:
        records, served = self._table.records, self._table.saving
        names = served.to_save(0.0, records)
        while names:
            # A copy each of what changed since `prepare`, until it is written.
            for name in self._table.snapshots(names):
                self._writer.submit(served.write, name)
        saving.answers_from = self._truth.newest
        self._changes.note(
            "weights",
            stream=ALL_STREAMS,
            digest=saving.source.model.digest,
            former_digest=served.source.model.digest,
            envelope=saving.source.envelope.digest_if_bounded,
            former_envelope=served.source.envelope.digest_if_bounded,
        )
        former = self._table.begin_anew(saving)
        self._truth.begin_anew()
        return Former(former, len(records))

    async def put_away(self, former: Former) -> tuple[int, int]:
        """Write what the streams of former weights have learned since `prepare`.

        Returns:
            How many streams of theirs are kept, and how many are not as they were at last.
        """
        saving, loop = former.saving, asyncio.get_running_loop()
        if self._folders is None or saving.folder is None:
            return 0, former.streams
        try:
            for name in saving.leaving():
                await loop.run_in_executor(self._writer, saving.write, name)
            _, kept = await asyncio.to_thread(saving.remove)
            self._reports.not_removed(kept)
            names = set[str]()
            with contextlib.suppress(OSError):
                names = await asyncio.to_thread(saving.names)
            lost = saving.unsaved().keys()
        finally:
            self._folders.leave(saving.folder)
        return len(names - lost), len(lost)

    async def remove_kept_aside(self) -> tuple[int, str | None]:
        """Remove the streams of former weights: how many, and the first reason why not all."""

        def remove() -> tuple[int, str | None]:
            folder = self._table.saving.folder
            if self._folders is None or folder is None:
                return 0, None
            return self._folders.remove_others(folder, tell)

        def tell(files: list[str]) -> None:
            named = [(stream_of(Path(file).name), file) for file in files]
            tell_removed(self._changes, named)

        # By the writer, behind what is still on its way there.
        return await asyncio.get_running_loop().run_in_executor(self._writer, remove)
