"""POST /reset, /rollback, /model and GET /status: what a person does and sees."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from service.metrics import versions
from service.routes.context import Service, ServiceNow, problems
from service.routes.guards import MAY_ADMINISTER, MAY_READ, StreamHeader, stream_named, without_body
from service.schemas import (
    ALL_STREAMS,
    STREAM_PATTERN,
    EnvelopeStatus,
    EstimatedAccuracy,
    EstimateStatus,
    ModelStatus,
    ReloadResponse,
    ResetResponse,
    RollbackResponse,
    SheddingStatus,
    SnapshotsResponse,
    SnapshotStatus,
    StatusResponse,
    StreamEnvelope,
    StreamStatus,
)
from service.settings import SECRETS
from ttc_core.envelope.clauses import BUILT_IN, UNBOUNDED
from ttc_core.guard import calibrated
from ttc_core.guard.estimate import Estimate, Estimates
from ttc_core.rows import plain

router = APIRouter()

StreamQuery = Annotated[
    str | None, Query(pattern=STREAM_PATTERN, description="which stream, default if none is named")
]


@router.post(
    "/reset",
    dependencies=[*MAY_ADMINISTER, Depends(without_body)],
    responses=problems(401, 500, 503),
)
async def reset(
    request: Request,
    service: ServiceNow,
    stream: Annotated[
        str | None,
        Query(
            description="which stream, default if none is named; * for all",
            pattern=rf"{STREAM_PATTERN}|^\*$",
        ),
    ] = None,
    x_session_id: StreamHeader = None,
) -> ResetResponse:
    """Restore source weights, optimizer, counters and statistics of a stream, a saved one too.

    What labels said of it counts no more in `truth`; ids stay known, and metrics go on. Of a stream
    of which nothing is known nothing is done, and `known` says so. With `*`, streams that are kept
    aside for former weights go as well (`kept_aside` says how many); one by its name leaves them.
    """
    name = stream_named(request, stream)
    if name != ALL_STREAMS:
        return await service.engine.undoing.reset(name)
    request.state.taken = await service.take_all()  # whoever asked all processes looks at it
    return await service.engine.undoing.reset(None)


@router.get("/snapshots", dependencies=MAY_READ, responses=problems(401, 404, 503))
async def snapshots(
    request: Request,
    service: ServiceNow,
    stream: StreamQuery = None,
    x_session_id: StreamHeader = None,
) -> SnapshotsResponse:
    """List the good states that the guard has kept of a stream; one on disk stays there."""
    name = stream_named(request, stream)
    kept = await service.engine.undoing.snapshots(name)
    return SnapshotsResponse(
        stream=name,
        snapshots=[SnapshotStatus(version=each, images=images) for each, images in kept.items()],
        unavailable=service.engine.undoing.no_roll_back,
    )


@router.post(
    "/rollback",
    dependencies=[*MAY_ADMINISTER, Depends(without_body)],
    responses=problems(401, 404, 429, 500, 503),
)
async def rollback(
    request: Request,
    service: ServiceNow,
    stream: StreamQuery = None,
    to: Annotated[
        int | None, Query(ge=0, description="the snapshot's version; the last one if none is named")
    ] = None,
    x_session_id: StreamHeader = None,
) -> RollbackResponse:
    """Bring a stream back to a good state of its own."""
    name = stream_named(request, stream)
    return RollbackResponse(stream=name, version=await service.engine.undoing.roll_back(name, to))


async def may_load(service: ServiceNow) -> None:
    """Let a request pass where the model is ever loaded anew: else nothing else is wrong with it.

    Raises:
        ModelRefused: it is not.
    """
    service.reloading.check()


@router.post(
    "/model",
    dependencies=[*MAY_ADMINISTER, Depends(may_load), Depends(without_body)],
    responses=problems(401, 409, 503),
)
async def reload(service: ServiceNow) -> ReloadResponse:
    """Load the model anew, from the same spec, and have its weights answer if they are others.

    The former answer until the new ones are read, tried out and take over between two batches.
    Streams begin anew; those of the former weights are kept in the state folder, if there is one,
    and go on when those weights come back. A failure leaves everything as it was.
    """
    return await service.reloading.reload()


@router.get("/status", dependencies=MAY_READ, responses=problems(401, 503))
async def status(service: ServiceNow) -> StatusResponse:
    """Tell the model, the method with its hyperparameters, the streams, counters and events."""
    model, settings = service.source.model, service.settings
    code, silent_since = service.engine.code, service.engine.silence.silent_since
    calibrated_by, record_temperature = calibrated(service.source)
    of_method = {"code_digest": code["method"]} if "method" in code else {}
    shown = settings.model_dump(mode="json", exclude=set(SECRETS))
    sources = {
        name: {"source": origin.kind, "name": origin.name}
        for name, origin in service.origins.items()
        if name not in SECRETS
    }
    return StatusResponse(
        ready=service.is_ready,
        idle=service.batcher.is_idle,
        shedding=_shedding(service),
        model=ModelStatus(
            spec=settings.model,
            digest=model.digest,
            loaded=service.reloading.since,
            code=code.get("model"),
            classes=model.classes,
            class_names=list(model.class_names),
            size=model.size,
            crop=model.crop,
            interpolation=model.interpolation,
            precision=model.precision,
            split=model.split,
            adapted_parameters=service.adapted_parameters,
            accuracy=model.accuracy,
        ),
        method=settings.method,
        settings={
            "method": plain(service.source.settings) | of_method,
            "server": shown,
            "sources": sources,
        },
        calibrated=calibrated_by,
        record_temperature=record_temperature,
        envelope=_envelope(service),
        device=str(model.device),
        streams={
            name: StreamStatus(
                version=record.version,
                images=record.images,
                batches=record.batches,
                pending_batches=record.pending_batches,
                drift=record.drift,
                second_view_off=record.second_view_off,
                mode=service.told(record.mode),
                doubted_since=record.doubted_since if service.engine.watches else None,
                held_since=record.held_since,
                estimated_accuracy=_estimated(record.estimates),
                guard=list(record.acts),
                envelope=StreamEnvelope(
                    cut=dict(record.verdicts.cut), dropped=dict(record.verdicts.dropped)
                ),
                details=dict(record.details),
                suspect=record.suspect,
                suspect_since=record.suspect_since,
                suspect_in_a_row=record.suspect_in_a_row,
                suspects=dict(record.suspects),
                silent=name in silent_since,
                silent_since=silent_since.get(name),
            )
            for name, record in service.engine.streams.items()
        },
        saved_streams=await service.engine.saved_streams(),
        saved_doubted=service.engine.saved_doubted(),
        saved_unfit=service.engine.saved_unfit(),
        changes=service.engine.changes.head,
        truth=service.engine.truth.streams,
        counters=service.metrics.counters(),
        events=list(service.engine.events),
        versions=versions(),
    )


def _envelope(service: Service) -> EnvelopeStatus | None:
    found = service.source.envelope
    if found == UNBOUNDED or not service.source.adapts:
        return None
    return EnvelopeStatus(
        digest=found.digest, built_in=found == BUILT_IN, clauses=found.model_dump(mode="json")
    )


def _shedding(service: Service) -> SheddingStatus | None:
    found = service.batcher.given_up
    if found is None:
        return None
    return SheddingStatus(**vars(found), now=service.batcher.load.evidence)


def _estimated(found: Estimates | None) -> EstimatedAccuracy | None:
    if found is None:
        return None

    def shown(each: Estimate) -> EstimateStatus:
        return EstimateStatus(**{name: round(part, 4) for name, part in vars(each).items()})

    return EstimatedAccuracy(
        adapted=shown(found.adapted),
        source=shown(found.source),
        difference=shown(found.difference),
        images_compared=found.images,
    )
