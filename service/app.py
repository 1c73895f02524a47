"""Build the application: the only file that knows all the others."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from importlib.metadata import version
from types import MappingProxyType

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from service.answering import Image, ImageAnswer
from service.batcher import Batcher
from service.engine import Engine
from service.errors import Forbidden
from service.intake import Intake
from service.leases import Leases
from service.live.assets import Page
from service.live.frames import Frames
from service.live.readers import MOST_READERS, Live
from service.live.sight import OwnSight
from service.metrics import Metrics
from service.middleware import RequestContext
from service.problems import REQUEST_ID, form_of, install, path_in, refusal
from service.reloading import Reloading, model_labels
from service.routes.context import Service, problems
from service.routes.direct import DirectPredict
from service.routes.guards import EVERY_ROUTE
from service.routes.table import ROUTERS
from service.server import foreign_server_is_ending
from service.settings import SECRETS, Settings
from service.settings_reading import Origin
from service.shedding import STEPS, Shedding
from service.v2.classifier import Classifier
from service.v2.model import Model
from service.v2.reading import HEADER_LENGTH
from ttc_core.methods import Method

log = logging.getLogger(__name__)

LAG_INTERVAL = 0.25


class _Cors(CORSMiddleware):
    """What a browser asks beforehand and may not do is refused as everything else is."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        asks = "origin" in headers and "access-control-request-method" in headers
        if not asks or scope["method"] != "OPTIONS":
            await super().__call__(scope, receive, send)
            return
        answer = self.preflight_response(headers)
        if answer.status_code != 200:
            page, why = headers["origin"][:100], bytes(answer.body).decode()
            error = Forbidden(f"Pages of {page} may not do this: {why}.")
            answer = refusal(error, scope[REQUEST_ID], form_of(path_in(scope)))
        await answer(scope, receive, send)


def build(
    settings: Settings,
    source: Method,
    load: Callable[[], Method] | None = None,
    origins: Mapping[str, Origin] = MappingProxyType({}),
    leases: Leases | None = None,
) -> FastAPI:
    """Connect the parts around a method at the source; the lifespan starts and drains them.

    The application's `state.service` is the running `Service`.

    Args:
        load: makes such a method on the model as it is read anew; see `Reloading`.
        origins: where settings come from, by their names; told in /status.
        leases: of the processes that share --state-dir; None: it is ours alone.
    """
    metrics = Metrics(
        CollectorRegistry(),
        classes=source.model.classes,
        model=model_labels(settings, source),
        max_queue=settings.max_queue,
    )
    engine = Engine(
        source,
        metrics,
        method_name=settings.method,
        model_spec=settings.model,
        threads=settings.threads,
        max_streams=settings.max_streams,
        max_stream_bytes=settings.max_stream_bytes,
        stream_expiry=settings.stream_expiry,
        state_dir=settings.state_dir,
        settings=settings.model_dump(mode="json", exclude=set(SECRETS)),
        changes_bytes=settings.changes_bytes,
        changes_files=settings.changes_files,
        # By its place: a successor goes on with a dead one's log, and there are no more of them.
        changes_writer="" if leases is None else f"replica-{leases.member.slot()}",
        feedback_ids=settings.feedback_ids,
        silent_factor=settings.silent_factor,
        silent_seconds=settings.silent_seconds,
        leases=leases,
    )

    # It names no `source`: that is nobody's any more once other weights have taken over.
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # What a stream that has not changed need not learn, its method knows.
        asked = "auto" if settings.adapt == "on-shift" else settings.adapt
        adapt = asked if engine.source.adapts else "never"
        shedding = Shedding(engine.events) if adapt == "auto" else None
        batcher: Batcher[Image, ImageAnswer] = Batcher(
            engine,
            metrics,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait,
            max_images=settings.max_queue,
            adapt=adapt,
            shedding=shedding,
            shed_after=settings.shed_after,
            shares=engine.source.shares,
        )
        intake = Intake(settings, engine.source.model, engine, batcher, metrics)
        reloading = Reloading(settings, engine, batcher, intake, metrics, load)
        reading = Live(
            Frames(
                settings,
                OwnSight(settings, metrics, engine, batcher, told=lambda mode: service.told(mode)),
                page=app.state.page.tag,
            ),
            metrics,
            engine.events,
            # The others' connections are for images.
            most=min(MOST_READERS, max(1, settings.max_connections // 2)),
            is_ending=foreign_server_is_ending,
        )
        service = Service(settings, metrics, engine, batcher, intake, reloading, reading, origins)
        app.state.service = service
        classifier = Classifier(service)
        app.state.models[classifier.signature.name] = classifier
        metrics.ready.set_function(lambda: service.is_ready)
        if shedding is not None:
            for place, what in enumerate(STEPS):
                metrics.shedding.labels(what).set_function(
                    partial(lambda place: shedding.level > place, place)
                )
        await engine.start()
        loop = asyncio.create_task(batcher.run(), name="batcher")
        looking = asyncio.create_task(batcher.keep_looking(), name="looking")
        lag = asyncio.create_task(_measure_lag(metrics), name="lag")
        saving = asyncio.create_task(engine.keep_saving(settings.save_interval), name="saving")
        silence = asyncio.create_task(engine.silence.watch(), name="silence")
        saved = asyncio.create_task(engine.look_at_saved(), name="saved")
        making = asyncio.create_task(reading.keep_making(), name="live")
        await asyncio.sleep(0)  # the tasks begin: the first request finds the queue open
        service.ready = True
        try:
            yield
        finally:
            # By now every request was answered; what is left is the adaptation in hand.
            service.ready = False
            reading.end()
            reloading.drain()
            batcher.drain()
            await loop
            await reloading.settle()
            await making
            looking.cancel()
            lag.cancel()
            saving.cancel()
            silence.cancel()
            saved.cancel()
            intake.close()
            service.saved = False
            try:
                service.saved = await engine.save()
            finally:
                await asyncio.to_thread(reloading.close)
                engine.close()
            engine.events.note("stopped", reason=service.stop_reason)

    app = FastAPI(
        title="Test-Time Clustering",
        version=version("ttc-service"),
        description="Image classification that keeps adapting to the images it is asked about.",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would be followed by few clients, and hide the mistake
        # Routes of ours, to which the rules for every route apply.
        openapi_url=None,
        # Where the description is, so that it is true under a proxy's prefix, too.
        servers=[{"url": "."}],
        dependencies=EVERY_ROUTE,
        responses=problems(400, 403, 408, 422, 431, 501),
        # Its own spans hold whole queries and cover health too; `tracing` has ours.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    # By name, as /v2 serves them.
    app.state.models = dict[str, Model]()
    app.state.page = Page()
    for router in ROUTERS:
        app.include_router(router)
    install(app)
    app.add_middleware(DirectPredict)
    if settings.cors_origin:
        app.add_middleware(
            _Cors,
            allow_origins=list(settings.cors_origin),
            allow_methods=["GET", "POST"],
            allow_headers=[
                *("Authorization", "Content-Type", "Content-Encoding", HEADER_LENGTH),
                *("X-Session-Id", "X-Request-Id"),
                *("traceparent", "tracestate"),
            ],
            expose_headers=["Retry-After", "X-Request-Id", HEADER_LENGTH],
        )
    app.add_middleware(RequestContext, metrics=metrics, root_path=settings.root_path)
    return app


async def _measure_lag(metrics: Metrics) -> None:
    """Keep telling how late the event loop comes to a timer."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL
        await asyncio.sleep(LAG_INTERVAL)
        metrics.lagged(max(0.0, loop.time() - due))
