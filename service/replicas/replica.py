"""One replica: the application of a single process, with its engine, its queue and its streams.

Knows nothing of Ray: `deploying` has it run there.
"""

import asyncio
import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any, NamedTuple

from prometheus_client.core import Metric

from service.app import build
from service.errors import Refused
from service.leases import Leases
from service.live.rows import Seen
from service.live.schemas import LiveCounters, LiveGauges, LiveModel
from service.live.sight import OwnSight
from service.problems import form_of, path_in, refusal
from service.replicas.fleet import Fleet
from service.replicas.ownership import Ownership
from service.replicas.passing import Answered, Forwarded, call
from service.routes.context import STUCK_SECONDS, Service, Taken
from service.settings import SECRETS, Settings
from service.settings_reading import Origin
from service.state_folder import StateFolderError
from ttc_core.methods import Method

log = logging.getLogger(__name__)


class Told(NamedTuple):
    """What a replica tells of itself.

    Attributes:
        name: no other replica ever had it; owned: streams that are its own, in memory or saved.
        started: in seconds since 1970.
        files: streams in the folder, whosever they are; None where that was not asked.
        events: those since the time that was asked for.
    """

    name: str
    host: str
    process: int
    started: float
    ready: bool
    owned: int
    files: int | None
    model: LiveModel
    counters: LiveCounters
    gauges: LiveGauges
    events: list[dict[str, Any]]


class Replica:
    """The application and its streams. Its methods are called from other processes.

    Args:
        settings: as the door has them; the address is the door's.
        load: makes the method at the source.
        name: of this replica; no other ever had it.
        others: all replicas, to ask them for their streams.
        fleet: tells the state folder from all others, as `Leases` has it.
        door: the owner of the leases of whoever started it.
    """

    def __init__(
        self,
        settings: Settings,
        origins: Mapping[str, Origin],
        load: Callable[[], Method],
        name: str,
        others: Fleet,
        fleet: str,
        door: str,
    ) -> None:
        self._settings, self._origins, self._load = settings, origins, load
        self._fleet, self._door = fleet, door
        self.name, self._others = name, others
        self._started = time.time()
        self._ending, self._saved = asyncio.Lock(), False
        self._has_ended = True

    async def start(self) -> None:
        """Load the model and answer.

        Raises:
            UserError: the model cannot be loaded, or the folder not be used.
        """
        settings = self._settings
        assert settings.state_dir is not None
        try:
            self._leases = await asyncio.to_thread(
                Leases, settings.state_dir, self.name, fleet=self._fleet
            )
        except OSError as error:
            raise StateFolderError(
                f"--state-dir {settings.state_dir} cannot be used on {socket.gethostname()}: "
                f"{error.strerror}. It has to be mounted there, too."
            ) from error
        source = await asyncio.to_thread(self._load)
        self._app = build(settings, source, None, self._origins, self._leases)
        del source
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()
        service: Service = self._app.state.service
        self._service = service
        self._sight = OwnSight(
            settings, service.metrics, service.engine, service.batcher, told=service.told
        )
        self._ownership = Ownership(self._leases, service.engine.handing_over, self._ask)
        service.take_all = self._take_all
        self._leases.keep_beating()
        self._sweeping = asyncio.create_task(self._ownership.keep_sweeping(), name="sweeping")
        self._has_ended = False

    async def _ask(self, owner: str, stream: str) -> None:
        try:
            await self._others.call("let_go", owner, stream)
        except Refused as error:
            log.info("stream %s of %s: %s", stream, owner, error)

    async def _take_all(self) -> Taken:
        """Have all streams that are nobody's be ours.

        What has a lease counts that no file has yet.
        """
        leased = await asyncio.to_thread(self._leases.names)
        return await self._ownership.take_free(sorted(leased | await self._files()))

    # Called by the door

    async def answer(self, request: Forwarded, stream: str | None) -> Answered:
        """Answer a request as a single process does; of a stream, once it is ours.

        Args:
            stream: None: of none, or of all.
        """
        if stream is None:
            answered = await call(self._app, request, self.name)
            if answered.taken is None:
                return answered
            others, ours = answered.taken  # what was ours all the time was reset
            still = ours.intersection(self._leases.owned())
            return replace(answered, taken=Taken(others, still))
        try:
            async with self._ownership.having(stream):
                return await call(self._app, request, self.name)
        except Refused as error:
            headers = dict(request.headers)
            request_id = headers.get(b"x-request-id", b"").decode("latin-1")
            form = form_of(path_in(dict(request.about)))
            return Answered.of(refusal(error, request_id, form), self.name)

    async def lives(self) -> bool:
        """Say something at all."""
        return True

    async def told(self, since: Mapping[str, float], with_files: bool = False) -> Told:
        """What is shown of this replica.

        Args:
            since: of each replica, the time of the last event that is known.
            with_files: the folder is to be read: it may have thousands.
        """
        counters, gauges = self._sight.numbers()
        last = since.get(self.name, 0.0)
        return Told(
            name=self.name,
            host=socket.gethostname(),
            process=os.getpid(),
            started=self._started,
            ready=self._service.is_ready,
            owned=len(self._leases.owned()),
            files=len(await self._files()) if with_files else None,
            model=self._sight.model(),
            counters=counters,
            gauges=gauges,
            events=[each for each in self._service.events if each["time"] > last],
        )

    async def _files(self) -> set[str]:
        """The streams with a file, whosever they are; none where the folder cannot be read."""
        try:
            return await asyncio.to_thread(self._service.engine.table.saving.names)
        except OSError:
            return set()

    async def streams(self) -> dict[str, Seen]:
        """What is shown of its streams."""
        return dict(self._sight.streams())

    async def samples(self) -> tuple[str, list[Metric]]:
        """Its name and all its metrics."""
        self._service.note_queue()
        return self.name, list(self._service.metrics.registry.collect())

    async def served_by(self) -> tuple[str, str, str]:
        """Tells settings and folder from others; and whose replica this is."""
        return digest_of(self._settings), self._fleet, self._door

    async def have_door(self, door: str) -> None:
        """Be another's from now on: whose it was is gone."""
        self._door = door

    # Called by other replicas

    async def let_go(self, owner: str, stream: str) -> bool:
        """Hand a stream over, if it is this replica's; return whether it is nobody's now."""
        return owner == self.name and await self._ownership.let_go(stream)

    # Called by Ray

    async def check_health(self) -> None:
        """Raise where no request will be answered any more: Ray puts another in its place."""
        batcher = self._service.batcher
        if not self._has_ended and (not batcher.is_running or batcher.batch_age > STUCK_SECONDS):
            raise RuntimeError("the batching loop has ended, or the device hangs")

    async def end(self) -> bool:
        """Answer what was taken, save all, give the streams up; return whether all is saved."""
        async with self._ending:
            if not self._has_ended:
                self._has_ended = True
                self._service.draining = True
                self._service.drain()
                self._sweeping.cancel()
                await self._lifespan.__aexit__(None, None, None)
                await asyncio.to_thread(self._leases.close)
                self._saved = self._service.saved
            return self._saved


def digest_of(settings: Settings) -> str:
    """Tells settings from others, tokens too, but for the address and how it is told."""
    chosen = settings.model_dump(
        mode="json", exclude={"host", "port", "config", "log_format", *SECRETS}
    )
    secrets = [
        value.get_secret_value() if value else None
        for value in (getattr(settings, name) for name in SECRETS)
    ]
    told = repr((sorted(chosen.items()), secrets, version("ttc-service")))
    return hashlib.sha256(told.encode(errors="surrogateescape")).hexdigest()[:32]
