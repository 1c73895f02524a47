"""The door: HTTP on our address, as a single process has it; what is asked goes to the replicas.

It reads a request whole, within the same limits, and hands it to the replica of its stream. What
concerns all of them is asked of each, and their answers are made one. Whatever is refused there is
refused in the replica's words; the door itself says only that a request did not arrive, or that no
replica has answered.
"""

import asyncio
import contextlib
import hmac
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
from service.replicas.naming import (
    header_length,
    is_inference,
    is_of_a_stream,
    memory_for_names,
    names_in,
    stream_of,
)
from service.replicas.passing import Answered, Forwarded
from service.replicas.sight import FleetSight
from service.routes.live import EventStream
from service.routes.v2 import MOST_INDEX_BYTES
from service.schemas import ALL_STREAMS
from service.settings import Settings
from ttc_core.pictures import Buffer

T = TypeVar("T")

Merge = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]

_INDEX, _INFER = "/v2/repository/index", "/v2/models/{model}/infer"


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
        alive = any(each.ready for each in self._sight.told)
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
        method, path = request.method, path_in(request.scope)
        request.scope["route"] = _Route(_INFER if is_inference(path) else path)
        if method == "GET" and path == "/healthz":
            return JSONResponse({"status": "alive"})
        share = Share(self._arrivals.memory)
        try:
            body = await self._body(request, share, path)
            if self.draining and path in _READY:
                raise NotReady("The service is starting or shutting down.")
            self._check_open()
            forwarded = Forwarded.of(request.scope, bytes(body))
            stream = await self._stream(request, body, share, path)
            return await self._hand_on(request, forwarded, path, stream)
        finally:
            share.take(-share.held)

    async def _hand_on(
        self, request: Request, forwarded: Forwarded, path: str, stream: str | None
    ) -> Response:
        method = request.method
        if method == "GET" and path == "/events":
            return await self._events(request, forwarded)
        if method == "GET" and path == "/metrics":
            return await self._samples(request, forwarded)
        if method == "GET" and path == "/status":
            return await self._status(forwarded)
        if path in _READY or (path.startswith("/v2/models/") and path.endswith("/ready")):
            answered = await self._fleet.ask_all(forwarded)
            return min(answered, key=lambda each: each.status != 200).response()
        if method == "POST" and path == "/reset" and _names_all(request):
            return await self._of_all(forwarded, merging.reset, ALL_STREAMS, complete=True)
        if method == "POST" and path == "/feedback":
            return await self._of_all(forwarded, merging.feedback)
        if method == "GET" and path.startswith("/v2/models/") and path.endswith("/stats"):
            return await self._of_all(forwarded, merging.statistics)
        answer = await _while_there(request, self._fleet.ask(forwarded, stream))
        request.scope[NOTES] = {**answer.notes, "replica": answer.replica}
        return answer.response()

    async def _body(self, request: Request, share: Share, path: str) -> Buffer:
        """A request's body, unpacked. Of whoever has no token it is not read: a replica says so."""
        if self._is_stranger(request, path):
            if path != _INDEX:
                return b""
            return await Reception(self._arrivals, request, share, MOST_INDEX_BYTES).receive()
        return await Reception(self._arrivals, request, share).receive()

    def _is_stranger(self, request: Request, path: str) -> bool:
        """Whether a request has not the token that its route asks for, if it has a body at all."""
        asked = self.settings.token
        if path in _FOR_ADMINISTRATORS:
            asked = self.settings.admin_token or asked
        if asked is None:
            return False
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        token = given.encode("latin-1") if scheme.lower() == "bearer" else b""
        return not hmac.compare_digest(
            token, asked.get_secret_value().encode(errors="surrogateescape")
        )

    async def _stream(self, request: Request, body: Buffer, share: Share, path: str) -> str | None:
        """The stream whose replica is to answer; None: any may."""
        if not is_of_a_stream(request):
            return None
        in_body: frozenset[str] | None = frozenset()
        if is_inference(path) and request.method == "POST":
            stated = header_length(request)
            in_body = await self._arrivals.threads.run(
                partial(names_in, body, stated),
                share,
                memory_for_names(body, stated),
                small=len(body) <= SMALL_BYTES,
            )
        return stream_of(request, in_body)

    # What concerns all replicas

    async def _of_all(
        self,
        forwarded: Forwarded,
        merge: Merge,
        stream: str | None = None,
        *,
        complete: bool = False,
    ) -> Response:
        """All replicas' answers made one, unless one refused.

        Args:
            complete: what was asked is not done where a replica did not answer.
        """
        answered = await self._fleet.ask_all(forwarded, stream, complete=complete)
        refused = next((each for each in answered if each.status != 200), None)
        if refused is not None:
            return refused.response()
        return _merged(answered, merge([json.loads(each.body) for each in answered]))

    async def _status(self, forwarded: Forwarded) -> Response:
        told = await self._sight.look()
        answered = await self._fleet.ask_all(forwarded)
        refused = next((each for each in answered if each.status != 200), None)
        if refused is not None:
            return refused.response()
        documents = {each.replica: json.loads(each.body) for each in answered}
        merged = merging.status(documents, max((each.files for each in told), default=0))
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
            }
            for each in told
        ]
        return _merged(answered, merged)

    async def _samples(self, request: Request, forwarded: Forwarded) -> Response:
        answered = await self._fleet.ask(forwarded, None)
        if answered.status != 200:
            return answered.response()
        found = await self._fleet.call("samples")
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


class _Route:
    """Names a path as the metrics have it: labels are bounded, whatever is asked for."""

    def __init__(self, path: str) -> None:
        self.path = path if path in _KNOWN else "other"


_FOR_ADMINISTRATORS = frozenset({"/reset", "/rollback", "/model"})
_READY = frozenset({"/readyz", "/v2/health/ready", _INDEX})
_KNOWN = frozenset(
    {
        *("/predict", "/feedback", "/reset", "/rollback", "/snapshots", "/status", "/model"),
        *("/healthz", "/readyz", "/metrics", "/events", "/", "/docs"),
        *("/v2/health/live", "/v2/health/ready", _INFER),
    }
)


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
