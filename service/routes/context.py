"""What the routes reach: the parts of the running service, and who may change something."""

import hmac
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.batcher import Batcher
from service.engine import Answer, Engine, Image
from service.errors import Forbidden, Unauthorized
from service.intake import Intake
from service.metrics import Metrics
from service.schemas import Problem
from service.settings import Settings
from ttc_core.methods import Method

# A batch that takes longer has probably hung with its device: balancers should look elsewhere.
STUCK_SECONDS = 120.0


@dataclass
class Service:
    """The parts of one running service; made and ended by the application's lifespan."""

    settings: Settings
    source: Method
    metrics: Metrics
    engine: Engine
    batcher: Batcher[Image, Answer]
    intake: Intake
    ready: bool = False
    saved: bool = True
    draining: bool = False
    stop_reason: str = "shutdown"

    @property
    def adapted_parameters(self) -> int:
        """How many numbers the method may move by gradients."""
        if "affine" not in getattr(self.source, "adapts", ()):
            return 0
        return sum(tensor.numel() for tensor in self.source.model.affine.values())

    @property
    def is_ready(self) -> bool:
        """Whether a request would be taken."""
        stuck = self.batcher.batch_age > STUCK_SECONDS
        return self.ready and not self.draining and self.batcher.is_running and not stuck


async def get_service(request: Request) -> Service:
    """The service behind the application that got this request."""
    service: Service = request.app.state.service
    return service


ServiceNow = Annotated[Service, Depends(get_service)]


async def may_change(
    request: Request,
    service: ServiceNow,
    credentials: Annotated[
        HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))
    ],
) -> None:
    """Let a request pass that carries the token, if one is set, and comes from no foreign page.

    Raises:
        Unauthorized, Forbidden: it does not.
    """
    origin = request.headers.get("origin")
    own = f"{request.url.scheme}://{request.headers.get('host')}"
    if origin is not None and origin not in (own, *service.settings.cors_origin):
        # A page in the browser of somebody who can reach us: CORS alone would let it send.
        raise Forbidden(
            f"Pages of {origin[:100]} may not use this service; --cors-origin allows them."
        )
    token = service.settings.token
    if token is None:
        return
    given = credentials.credentials if credentials else ""
    if not hmac.compare_digest(given.encode(), token.encode()):
        raise Unauthorized("This route asks for a token: Authorization: Bearer TOKEN.")


PROBLEMS = {
    status: {"model": Problem, "content": {"application/problem+json": {}}, "description": text}
    for status, text in {
        400: "Cannot be parsed",
        401: "The token is missing or wrong",
        403: "Sent by a web page of another origin",
        408: "Did not arrive whole in time",
        413: "Too many bytes, pixels or images",
        415: "Unknown media type",
        422: "A value out of range",
        429: "The queue is full; Retry-After says when to come back",
        500: "The model failed on this request",
        503: "Starting or shutting down",
        504: "The request's own deadline passed",
    }.items()
}


def problems(*statuses: int) -> dict[int | str, dict[str, object]]:
    """The error answers of a route, for /docs."""
    return {status: dict(PROBLEMS[status]) for status in statuses}
