"""Who may use a route, under which name of ours, and which names its query may have."""

import hmac
import ipaddress
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, get_args, get_origin
from urllib.parse import unquote_to_bytes, urlsplit

from fastapi import Depends, Header, Query, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from service.errors import Forbidden, OutOfRange, Unauthorized
from service.problems import path_in
from service.routes.context import ServiceNow
from service.schemas import DEFAULT_STREAM, STREAM_PATTERN, check_written
from service.settings import DAY, Settings, plain_origin

Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]

Timeout = Annotated[
    float | None,
    Query(
        gt=0,
        le=DAY,
        allow_inf_nan=False,
        description="seconds after which not to run the request",
    ),
]
# Read by `stream_named`, which sees every header of the name; declared for /docs.
StreamHeader = Annotated[
    str | None, Header(pattern=STREAM_PATTERN, description="the stream, as a header")
]


async def known_query(request: Request) -> None:
    """Let a request pass whose query has only names that the route takes, each once.

    Its numbers and switches are written as in JSON. /v2 ignores what it does not know, as its
    protocol asks.

    Raises:
        OutOfRange: it has another name, one twice that is no list, or another spelling.
    """
    try:
        unquote_to_bytes(request.scope["query_string"]).decode()
    except UnicodeDecodeError:  # two names would be read as one
        raise OutOfRange("The query is not UTF-8.") from None
    takes = dict(_query_names(request.scope["route"].dependant))
    accepted = f"accepted are {', '.join(takes)}" if takes else "none is accepted"
    given = request.query_params.multi_items()
    for name, count in Counter(name for name, _ in given).items():
        if name not in takes:
            if path_in(request.scope).startswith("/v2"):
                continue
            raise OutOfRange(f"The query has {name[:100]!r}; {accepted}.")
        if count > 1 and list not in map(get_origin, takes[name]):
            raise OutOfRange(f"The query has {name} {count} times; it is accepted once.")
    for name, value in given:
        check_written(name, value, *takes.get(name, ()))


def _query_names(dependant: Dependant) -> Iterator[tuple[str, list[object]]]:
    """The names that a route takes in its query, and all types in what it takes of each."""
    for field in dependant.query_params:
        yield field.alias, list(_types(field.field_info.annotation))
    for inner in dependant.dependencies:
        yield from _query_names(inner)


def _types(annotation: object) -> Iterator[object]:
    yield annotation
    for inner in get_args(annotation):
        yield from _types(inner)


def stream_named(request: Request, stream: str | None) -> str:
    """The one stream that a request names, in its query or its header, or the default one.

    Raises:
        OutOfRange: it names several.
    """
    named = stream_asked(request, stream)
    return DEFAULT_STREAM if named is None else named


def stream_asked(request: Request, stream: str | None) -> str | None:
    """As `stream_named`; None where it names none."""
    named = {*request.headers.getlist("x-session-id"), *([stream] if stream else [])}
    if len(named) > 1:
        raise OutOfRange(f"The request names {len(named)} streams; at most one is accepted.")
    return named.pop() if named else None


async def without_body(request: Request) -> None:
    """Let a request pass that has no body: a name in it would go unread.

    Raises:
        OutOfRange: it has one.
    """
    headers = request.headers
    if headers.get("content-length", "0").strip("0") or "transfer-encoding" in headers:
        raise OutOfRange("The request has a body; none is accepted: names go in the query.")


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
        foreign = plain_origin(origin) not in (plain_origin(own), *service.settings.cors_origin)
    if foreign:
        raise Forbidden(
            f"Pages of {(origin or 'another origin')[:100]} may not use this service; "
            "--cors-origin allows them."
        )


async def may_post(service: ServiceNow, credentials: Credentials) -> None:
    """Ask for --token, if it is set.

    Raises:
        Unauthorized: the request does not carry it.
    """
    _demand(credentials, *_of_cameras(service.settings))


async def may_administer(service: ServiceNow, credentials: Credentials) -> None:
    """Ask for --admin-token if it is set, else as `may_post`."""
    whose = "the administrator's" if service.settings.admin_token else "a"
    _demand(credentials, *_of_administrators(service.settings), whose=whose)


async def may_read(service: ServiceNow, credentials: Credentials) -> None:
    """Ask for one of the tokens with --token-reads."""
    _demand(credentials, *_of_readers(service.settings))


def _of_cameras(settings: Settings) -> list[SecretStr | None]:
    return [settings.token]


def _of_administrators(settings: Settings) -> list[SecretStr | None]:
    return [settings.admin_token or settings.token]


def _of_readers(settings: Settings) -> list[SecretStr | None]:
    return [settings.token, settings.admin_token] if settings.token_reads else []


_TOKENS = {may_post: _of_cameras, may_administer: _of_administrators, may_read: _of_readers}


def has_token(route: APIRoute, settings: Settings, authorization: str) -> bool:
    """Whether a request's header has the token that its route asks for, if it asks for one."""
    scheme, _, given = authorization.partition(" ")
    token = given.encode("latin-1") if scheme.lower() == "bearer" else b""
    asked = [_TOKENS[each.dependency] for each in route.dependencies if each.dependency in _TOKENS]
    return all(_is_one(token, tokens(settings)) for tokens in asked)


def _demand(
    credentials: HTTPAuthorizationCredentials | None, *tokens: SecretStr | None, whose: str = "a"
) -> None:
    # As they came over the wire.
    given = credentials.credentials.encode("latin-1") if credentials else b""
    if not _is_one(given, tokens):
        came = "the one sent is another" if given else "none was sent"
        raise Unauthorized(
            f"This route asks for {whose} token, and {came}: Authorization: Bearer TOKEN."
        )


def _is_one(given: bytes, tokens: Iterable[SecretStr | None]) -> bool:
    """Whether a token is one of those asked for, if any is."""
    accepted = [
        token.get_secret_value().encode(errors="surrogateescape") for token in tokens if token
    ]
    matches = [hmac.compare_digest(given, token) for token in accepted]
    return not accepted or any(matches)


def plainly_let_through(headers: Mapping[bytes, bytes], settings: Settings) -> bool:
    """Whether a request passes MAY_POST and `known_host` as most do: no browser sent it.

    Args:
        headers: by their names in lower case, those that came once.
    """
    if b"origin" in headers or b"sec-fetch-site" in headers:
        return False
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    token = given if scheme == b"Bearer" else b""
    is_browser = headers.get(b"user-agent", b"").startswith(b"Mozilla/")
    return not is_browser and _is_one(token, [settings.token])


# What a route depends on; each has what is checked first in front.
MAY_POST = [Depends(of_our_page), Depends(may_post)]
MAY_ADMINISTER = [Depends(of_our_page), Depends(may_administer)]
MAY_READ = [Depends(may_read)]
EVERY_ROUTE = [Depends(known_host), Depends(known_query)]
