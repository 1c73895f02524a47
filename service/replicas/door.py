"""The door: HTTP on our address, as a single process has it; what is asked goes to the replicas.

It reads a request whole, within the same limits, and hands it to the replica of its stream. What
concerns all of them is asked of each, and their answers are made one. Whatever is refused there is
refused in the replica's words; the door itself says only that a request did not arrive, or that no
replica has answered.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from service.decoding import SMALL_BYTES, Threads
from service.errors import CLIENT_CLOSED_REQUEST, ClientGone, NotReady, Refused
from service.events import Events
from service.intake import NOTES
from service.live.assets import Page
from service.live.frames import Frames
from service.live.readers import MOST_READERS, Live
from service.memory import Memory, Share
from service.metrics import Metrics
from service.middleware import ENDLESS, HEAD_ALONE, RequestContext
from service.problems import REQUEST_ID, form_of, path_in, refusal
from service.receiving import Arrivals, Reception
from service.replicas import merging
from service.replicas.fleet import Fleet
from service.replicas.naming import header_length, memory_for_names, names_in, stream_of
from service.replicas.passing import Answered, Forwarded
from service.replicas.sight import FleetSight
from service.routes import control, feedback, health, live, v2, v2_infer
from service.routes.guards import has_token
from service.routes.live import EventStream
from service.routes.table import OF_ONE_STREAM, Found, route_of
from service.routes.v2 import MOST_INDEX_BYTES
from service.schemas import ALL_STREAMS
from service.settings import Settings
from ttc_core.pictures import Buffer

T = TypeVar("T")

Merge = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]

# How long a probe waits, which asks again soon; and a reset, with thousands of files to remove.
READY_SECONDS, RESET_SECONDS = 2.0, 30.0
# A lease is to run out, or a replica to save what it has: as long as neither, nothing has changed.
RESET_AGAIN_SECONDS = 5.0
MOST_NAMED = 10


class Door:
    """What our server serves instead of the application, where replicas answer.

    Args:
        end: has the replicas answer, save and end, where they are to end with us; returns whether
            all was saved.
    """

    def __init__(
        self, settings: Settings, fleet: Fleet, end: Callable[[], Coroutine[Any, Any, bool]]
    ) -> None:
        self.settings, self._fleet, self._end = settings, fleet, end
        self.events = Events()
        # Its numbers of images stay at 0, and are not shown: the replicas have theirs.
        self.metrics = Metrics(CollectorRegistry(), classes=2, model={})
        self.ready = self.draining = self.has_begun = False
        self.saved, self.stop_reason = True, "shutdown"
        self._is_open = True
        self._counted: dict[str, Mapping[str, float]] = {}
        self.app: ASGIApp = RequestContext(
            Router(default=self._answer, lifespan=self._lifespan, redirect_slashes=False),
            metrics=self.metrics,
            root_path=settings.root_path,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: object) -> AsyncIterator[None]:
        settings = self.settings
        self._arrivals = Arrivals(
            settings,
            Memory(settings.max_queue_bytes, lambda: 1.0),
            Threads(settings.decode_threads),
            self._check_open,
        )
        self._sight = FleetSight(self._fleet)
        await self._sight.look()
        frames = Frames(settings, self._sight, page=Page().tag)
        frames.new_events = self._sight.new_events
        most = min(MOST_READERS, max(1, settings.max_connections // 2))
        self.live = Live(frames, self.metrics, self.events, most=most)
        self.metrics.ready.set_function(lambda: self.is_ready)
        making = asyncio.create_task(self.live.keep_making(), name="live")
        self.ready = self.has_begun = True
        try:
            yield
        finally:
            self.ready = False
            self.drain()
            await making
            self._arrivals.threads.close()
            self.saved = await self._end()
            self.events.note("stopped", reason=self.stop_reason, saved=self.saved)

    # As our server sees it

    @property
    def is_ready(self) -> bool:
        """Whether a request would be taken, and a replica would when it was last asked."""
        alive = any(each.ready for each in self._sight.told)  # /metrics looks before it is told
        return self.ready and not self.draining and alive

    @property
    def waiting_images(self) -> int:
        """Images that wait for their batch, when last looked."""
        return sum(each.gauges.queue_images for each in self._sight.told)

    @property
    def unsaved_streams(self) -> int:
        """Not known here: each replica saves its own."""
        return 0

    def drain(self) -> None:
        """Take nothing more; what was handed on is answered."""
        self._is_open = False
        self._arrivals.drain()
        self.live.end()

    def reload_soon(self) -> None:
        """Say that nothing is loaded anew."""
        self.events.note("reload_refused", reason="replicas load the model when they start")

    def _check_open(self) -> None:
        if not self._is_open:
            raise NotReady("The service is shutting down.")

    # Requests

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._respond(request)
        except Refused as error:
            if error.reason is not None:
                self.metrics.rejected.labels(error.reason).inc()
            response = refusal(error, scope[REQUEST_ID], form_of(path_in(scope)))
        except (ClientGone, ClientDisconnect):
            response = Response(status_code=CLIENT_CLOSED_REQUEST)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        found = route_of(request.scope)
        request.scope["route"] = _OTHER if found.route is None else found.route
        if found.is_for(health.healthz):
            return JSONResponse({"status": "alive"})
        share = Share(self._arrivals.memory)
        try:
            passes = found.is_taken and self._has_token(request, found)
            # What is refused has no body that is read, no stream that is moved, and no look at all
            # replicas: any of them says why.
            body = await self._body(request, share, found) if passes else b""
            if self.draining and found.is_for(*_READINESS):
                raise NotReady("The service is starting or shutting down.")
            self._check_open()
            forwarded = Forwarded.of(request.scope, bytes(body))
            del body  # it is not held twice
            stream = await self._stream(request, forwarded.body, share, found) if passes else None
            share.take(len(forwarded.body))  # Ray's, on its way
            if passes and (answer := self._of_all(request, forwarded, found)) is not None:
                return await answer
            answered = await _while_there(request, self._fleet.ask(forwarded, stream))
            request.scope[NOTES] = {**answered.notes, "replica": answered.replica}
            return answered.response()
        finally:
            share.take(-share.held)

    def _has_token(self, request: Request, found: Found) -> bool:
        authorization = request.headers.get("authorization", "")
        return found.route is None or has_token(found.route, self.settings, authorization)

    async def _body(self, request: Request, share: Share, found: Found) -> Buffer:
        """A request's body, unpacked."""
        most = MOST_INDEX_BYTES if found.is_for(v2.index) else None
        return await Reception(self._arrivals, request, share, most).receive()

    async def _stream(
        self, request: Request, body: bytes, share: Share, found: Found
    ) -> str | None:
        """The stream whose replica is to answer; None: any may."""
        if not found.is_for(*OF_ONE_STREAM):
            return None
        in_body: frozenset[str] | None = frozenset()
        if found.is_for(v2_infer.infer):
            stated = header_length(request)
            in_body = await self._arrivals.threads.run(
                partial(names_in, body, stated),
                share,
                memory_for_names(body, stated),
                small=len(body) <= SMALL_BYTES,
            )
        return stream_of(request, in_body)

    # What concerns all replicas

    def _of_all(
        self, request: Request, forwarded: Forwarded, found: Found
    ) -> Coroutine[Any, Any, Response] | None:
        """What answers a request that concerns all replicas; None: it concerns one."""
        if found.is_for(live.events):
            return self._events(request, forwarded)
        if found.is_for(health.metrics):
            return self._samples(request, forwarded)
        if found.is_for(control.status):
            return self._status(forwarded)
        if found.is_for(*_READINESS):
            return self._ready(forwarded)
        if found.is_for(control.reset) and _names_all(request):
            return self._reset(forwarded)
        if found.is_for(feedback.feedback):
            return self._together(forwarded, merging.feedback)
        if found.is_for(v2.statistics, v2.all_statistics):
            return self._together(forwarded, merging.statistics)
        return None

    async def _ready(self, forwarded: Forwarded) -> Response:
        """Ready as long as one replica is, be the others as they may."""
        answered = await self._fleet.ask_all(forwarded, seconds=READY_SECONDS)
        return min(answered, key=lambda each: each.status != 200).response()

    async def _together(self, forwarded: Forwarded, merge: Merge) -> Response:
        """The answers made one of all replicas that answer, unless all refuse."""
        answered = await self._fleet.ask_all(forwarded)
        well = [each for each in answered if each.status == 200]
        if not well:
            return answered[0].response()
        return _merged(well, merge([json.loads(each.body) for each in well]))

    async def _reset(self, forwarded: Forwarded) -> Response:
        """All streams reset; what a replica has that did not do so is told.

        That is one that ends and is not asked any more, that hangs, or is dead and may not be.
        """
        answered = await self._fleet.ask_all(forwarded, seconds=RESET_SECONDS)
        refused = next((each for each in answered if each.status != 200), None)
        if refused is not None:
            return refused.response()
        documents = [json.loads(each.body) for each in answered]
        taken = [each.taken for each in answered if each.taken is not None]
        done = {name for each in documents for name in each["streams"]}.union(
            *(each.ours for each in taken)
        )
        left = sorted(set[str]().union(*(each.others for each in taken)) - done)
        if left:
            named = ", ".join(left[:MOST_NAMED]) + (" …" if len(left) > MOST_NAMED else "")
            raise NotReady(
                f"All streams were reset but for {len(left)}, of replicas that end or do not "
                f"answer ({named}); ask again.",
                retry_after=RESET_AGAIN_SECONDS,
            )
        return _merged(answered, merging.reset(documents))

    async def _status(self, forwarded: Forwarded) -> Response:
        answered: list[Answered]
        told, answered = await asyncio.gather(
            self._sight.look(with_files=True), self._fleet.ask_all(forwarded)
        )
        well = [each for each in answered if each.status == 200]
        if not well:
            return answered[0].response()
        documents = {each.replica: json.loads(each.body) for each in well}
        merged = merging.status(documents, max((each.files or 0 for each in told), default=0))
        # What a replica that is gone had counted when it was last asked stays in the sums.
        self._counted |= {name: each["counters"] for name, each in documents.items()}
        merged["counters"] = merging.added(self._counted.values())
        merged["ready"] = merged["ready"] and not self.draining
        merged["replicas"] = [
            {
                "name": each.name,
                "host": each.host,
                "process": each.process,
                "started": each.started,
                "ready": each.ready,
                "streams": each.gauges.streams,
                "owned": each.owned,
                "queue_images": each.gauges.queue_images,
                "changes": documents.get(each.name, {}).get("changes"),
                "shedding": documents.get(each.name, {}).get("shedding"),
            }
            for each in told
        ]
        merged["late"] = self._sight.late
        return _merged(well, merged)

    async def _samples(self, request: Request, forwarded: Forwarded) -> Response:
        answered = await self._fleet.ask(forwarded, None)
        if answered.status != 200:
            return answered.response()
        found, _ = await asyncio.gather(self._fleet.call("samples"), self._sight.look())
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        collected = merging.Collected(
            self.metrics.registry.collect(), [each for each in found if isinstance(each, tuple)]
        )
        return Response(encode(collected), media_type=content_type)

    async def _events(self, request: Request, forwarded: Forwarded) -> Response:
        """The live page's frames, of all; a replica says whether they may be read."""
        head = Forwarded({**forwarded.about, "method": "HEAD"}, forwarded.headers)
        answered = await self._fleet.ask(head, None)
        if answered.status != 200:
            get = await self._fleet.ask(forwarded, None)
            return get.response()
        if request.scope.get(HEAD_ALONE):
            return answered.response()
        reader = self.live.join()
        request.scope[ENDLESS] = True
        return EventStream(self.live, reader)


class _Other:
    """What is no route, as the metrics have it: labels are bounded, whatever is asked for."""

    path = "other"


_OTHER = _Other()
_READINESS = (health.readyz, v2.ready, v2.index, v2.model_ready)


def _names_all(request: Request) -> bool:
    return request.query_params.getlist("stream") == [ALL_STREAMS]


def _merged(answered: Sequence[Answered], document: dict[str, Any]) -> Response:
    """A document with the headers that one replica sent with its own."""
    response = JSONResponse(document)
    length = dict(response.raw_headers)[b"content-length"]
    kept = [
        each for each in answered[0].headers if each[0] not in (b"content-length", b"x-request-id")
    ]
    response.raw_headers = [*kept, (b"content-length", length)]
    return response


async def _while_there(request: Request, asking: Coroutine[Any, Any, T]) -> T:
    """Wait for an answer as long as the client does."""

    async def wait_until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, gone = asyncio.create_task(asking), asyncio.create_task(wait_until_gone())
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ClientGone
    finally:
        answer.cancel()
        gone.cancel()
