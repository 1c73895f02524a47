"""What the routes reach, the parts of the running service, and how their errors are described."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from fastapi import Depends, Request

from service.answering import Image, ImageAnswer
from service.batcher import Batcher
from service.engine import Engine
from service.events import Events
from service.intake import Intake
from service.live.readers import Live
from service.metrics import Metrics
from service.reloading import Reloading
from service.schemas import Problem
from service.settings import Settings
from service.settings_reading import Origin
from ttc_core.methods import Method
from ttc_core.methods.contract import ADAPTING

# A batch that takes longer has probably hung with its device: balancers should look elsewhere.
STUCK_SECONDS = 120.0


class Taken(NamedTuple):
    """Streams, where processes share them: the others', or on their way there, and ours."""

    others: frozenset[str]
    ours: frozenset[str]


async def _all_are_ours() -> None:
    return None


@dataclass
class Service:
    """The parts of one running service; made and ended by the application's lifespan."""

    settings: Settings
    metrics: Metrics
    engine: Engine
    batcher: Batcher[Image, ImageAnswer]
    intake: Intake
    reloading: Reloading
    live: Live
    origins: Mapping[str, Origin]
    ready: bool = False
    saved: bool = True
    draining: bool = False
    stop_reason: str = "shutdown"
    take_all: Callable[[], Awaitable[Taken | None]] = _all_are_ours
    """Takes all streams that are nobody's, where processes share them."""

    @property
    def events(self) -> Events:
        """What happened of late."""
        return self.engine.events

    @property
    def waiting_images(self) -> int:
        """Images that wait for their batch."""
        return self.batcher.waiting_images

    @property
    def unsaved_streams(self) -> int:
        """Streams that have changed since their file was written."""
        return self.engine.unsaved_streams

    def note_queue(self) -> None:
        """Publish how the queue is, for metrics that are about to be read."""
        self.metrics.queue_images.set(self.batcher.waiting_images)
        self.metrics.queue_oldest_age.set(self.batcher.oldest_age)
        self.metrics.batch_age.set(self.batcher.batch_age)

    def drain(self) -> None:
        """Take nothing more, and answer what was taken."""
        self.batcher.drain()
        self.intake.arrivals.drain()
        self.reloading.drain()
        self.live.end()

    def reload_soon(self) -> None:
        """Load the model anew; the log says what came of it."""
        self.reloading.reload_soon()

    @property
    def source(self) -> Method:
        """The method at the source, of the weights that answer now."""
        return self.engine.source

    @property
    def adapted_parameters(self) -> int:
        """How many numbers the method may move by gradients."""
        if "affine" not in self.source.adapts:
            return 0
        return sum(tensor.numel() for tensor in self.source.model.affine.values())

    def told(self, mode: str) -> str:
        """A method's mode as people are told it: it adapts only where it may."""
        adapts = self.settings.adapt != "never" and bool(self.source.adapts)
        return "source" if mode == ADAPTING and not adapts else mode

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


PROBLEMS = {
    status: {"model": Problem, "content": {"application/problem+json": {}}, "description": text}
    for status, text in {
        400: "Cannot be parsed",
        401: "The token is missing or wrong",
        403: "Sent by a web page of another origin, or to a name that is not ours",
        404: "There is no such snapshot",
        409: "The model was not exchanged; the former answers as before",
        408: "Did not arrive whole in time",
        413: "Too many bytes, pixels or images",
        415: "Unknown media type",
        422: "A value out of range, or a name that the route does not take",
        429: "The queue or the table of streams is full; Retry-After says when to come back",
        431: "The request line and headers are too long",
        500: "The model failed on this request, or a saved state could not be removed",
        501: "A transfer coding that is not known",
        503: "Starting or shutting down, or the device hangs",
        504: "The request's own deadline passed",
    }.items()
}


def problems(*statuses: int) -> dict[int | str, dict[str, object]]:
    """The error answers of a route, for /docs."""
    return {status: dict(PROBLEMS[status]) for status in statuses}
