"""GET /healthz, /readyz and /metrics: what machines ask."""

from typing import Annotated

from fastapi import APIRouter, Header, Response
from prometheus_client.exposition import choose_encoder

from service.errors import NotReady
from service.routes.context import ServiceNow, problems
from service.routes.guards import MAY_READ
from service.schemas import Health

router = APIRouter()


@router.get("/healthz")
async def healthz() -> Health:
    """The process is alive; the model is not asked."""
    return Health(status="alive")


@router.get("/readyz", responses=problems(503))
async def readyz(service: ServiceNow) -> Health:
    """Ready to answer; 503 while loading, draining, or without a batching loop."""
    if not service.is_ready:
        raise NotReady("The service is starting or shutting down.")
    return Health(status="ready")


@router.get(
    "/metrics",
    dependencies=MAY_READ,
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}},
        **problems(401),
    },
)
async def metrics(service: ServiceNow, accept: Annotated[str, Header()] = "") -> Response:
    """Prometheus text, or OpenMetrics if asked for."""
    service.note_queue()
    encode, content_type = choose_encoder(accept)
    return Response(encode(service.metrics.registry), media_type=content_type)
