"""What the routes reach: the parts of the running service, and who may change something."""

import hmac
import ipaddress
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, get_args, get_origin
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from service.batcher import Batcher
from service.engine import Answer, Engine, Image
from service.errors import Forbidden, OutOfRange, Unauthorized
from service.intake import Intake
from service.metrics import Metrics
from service.schemas import DEFAULT_STREAM, Problem
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


Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


async def known_names(request: Request) -> None:
    """Let a request pass whose query has only names that the route takes, each once.

    Raises:
        OutOfRange: it has another name, or one twice that is no list.
    """
    takes = dict(_query_names(request.scope["route"].dependant))
    accepted = f"accepted are {', '.join(takes)}" if takes else "none is accepted"
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in takes:
            raise OutOfRange(f"The query has {name[:100]!r}; {accepted}.")
        if count > 1 and not takes[name]:
            raise OutOfRange(f"The query has {name} {count} times; it is accepted once.")


def _query_names(dependant: Dependant) -> Iterator[tuple[str, bool]]:
    """The names that a route takes in its query, and whether more than once."""
    for field in dependant.query_params:
        kind = field.field_info.annotation
        yield field.alias, any(get_origin(each) is list for each in (kind, *get_args(kind)))
    for inner in dependant.dependencies:
        yield from _query_names(inner)


def stream_named(request: Request, stream: str | None) -> str:
    """The one stream that a request names, in its query or its header.

    Raises:
        OutOfRange: it names several.
    """
    named = {*request.headers.getlist("x-session-id"), *([stream] if stream else [])}
    if len(named) > 1:
        raise OutOfRange(f"The request names {len(named)} streams; at most one is accepted.")
    return named.pop() if named else DEFAULT_STREAM


async def without_body(request: Request) -> None:
    """Let a request pass that has no body: a name in it would go unread.

    Raises:
        OutOfRange: it has one.
    """
    headers = request.headers
    if headers.get("content-length", "0").strip("0") or "transfer-encoding" in headers:
        raise OutOfRange("The request has a body; none is accepted: stream goes in the query.")


async def known_host(request: Request, service: ServiceNow) -> None:
    """Let a browser pass only if it knows us by a name that no stranger can point at us.

    Else a page of evil.example, whose name comes to mean 127.0.0.1 once the page is loaded, would
    count as ours (DNS rebinding). Other clients do not load pages: they may use any name.

    Raises:
        Forbidden: it asked for another host.
    """
    headers, host = request.headers, request.headers.get("host", "")
    browser = (
        "origin" in headers
        or "sec-fetch-site" in headers
        or headers.get("user-agent", "").startswith("Mozilla/")
    )
    if browser and not _is_ours(_name_of(host), service.settings):
        raise Forbidden(
            f"Browsers may not use this service as {host[:100]}; "
            f"--cors-origin {request.url.scheme}://{host[:100]} allows it."
        )


def _name_of(host: str) -> str:
    return (urlsplit(f"//{host}").hostname or "").removesuffix(".")


def _is_ours(name: str, settings: Settings) -> bool:
    """Whether a host is an address, this machine, or one that the operator allowed."""
    if name == "localhost" or name.endswith(".localhost") or name == socket.gethostname().lower():
        return True
    if name in (urlsplit(origin).hostname for origin in settings.cors_origin):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def of_our_page(request: Request, service: ServiceNow) -> None:
    """Let a request pass that no web page of another origin sent; `known_host` let it pass.

    Raises:
        Forbidden: a page in the browser of somebody who can reach us did; CORS lets it send.
    """
    origin = request.headers.get("origin")
    if origin is None:
        site = request.headers.get("sec-fetch-site", "none")
        foreign = site not in ("none", "same-origin")
    else:
        own = f"{request.url.scheme}://{request.headers.get('host')}"
        foreign = _plain(origin) not in map(_plain, (own, *service.settings.cors_origin))
    if foreign:
        raise Forbidden(
            f"Pages of {(origin or 'another origin')[:100]} may not use this service; "
            "--cors-origin allows them."
        )


def _plain(origin: str) -> str:
    """An origin as a browser writes it: in small letters, without the port of its scheme."""
    origin = origin.lower()
    port = {"http": ":80", "https": ":443"}.get(origin.partition(":")[0], "")
    return origin.removesuffix(port) if port else origin


async def may_post(service: ServiceNow, credentials: Credentials) -> None:
    """Ask for --token, if it is set.

    Raises:
        Unauthorized: the request does not carry it.
    """
    _demand(credentials, service.settings.token)


async def may_administer(service: ServiceNow, credentials: Credentials) -> None:
    """Ask for --admin-token if it is set, else as `may_post`."""
    settings = service.settings
    _demand(credentials, settings.admin_token or settings.token)


async def may_read(service: ServiceNow, credentials: Credentials) -> None:
    """Ask for one of the tokens with --token-reads."""
    settings = service.settings
    if settings.token_reads:
        _demand(credentials, settings.token, settings.admin_token)


def _demand(credentials: HTTPAuthorizationCredentials | None, *tokens: SecretStr | None) -> None:
    accepted = [
        token.get_secret_value().encode(errors="surrogateescape") for token in tokens if token
    ]
    # As they came over the wire.
    given = credentials.credentials.encode("latin-1") if credentials else b""
    matches = [hmac.compare_digest(given, token) for token in accepted]
    if accepted and not any(matches):
        raise Unauthorized("This route asks for a token: Authorization: Bearer TOKEN.")


# What a route depends on; each has what is checked first in front.
MAY_POST = [Depends(of_our_page), Depends(may_post)]
MAY_ADMINISTER = [Depends(of_our_page), Depends(may_administer)]
MAY_READ = [Depends(may_read)]
EVERY_ROUTE = [Depends(known_host), Depends(known_names)]


PROBLEMS = {
    status: {"model": Problem, "content": {"application/problem+json": {}}, "description": text}
    for status, text in {
        400: "Cannot be parsed",
        401: "The token is missing or wrong",
        403: "Sent by a web page of another origin, or to a name that is not ours",
        408: "Did not arrive whole in time",
        413: "Too many bytes, pixels or images",
        415: "Unknown media type",
        422: "A value out of range, or a name that the route does not take",
        429: "The queue or the table of streams is full; Retry-After says when to come back",
        431: "The request line and headers are too long",
        500: "The model failed on this request, or a saved state could not be removed",
        503: "Starting or shutting down, or the device hangs",
        504: "The request's own deadline passed",
    }.items()
}


def problems(*statuses: int) -> dict[int | str, dict[str, object]]:
    """The error answers of a route, for /docs."""
    return {status: dict(PROBLEMS[status]) for status in statuses}
