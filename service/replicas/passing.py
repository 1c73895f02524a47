"""A request on its way from the door to a replica, and its answer back: whole, as plain values."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Scope

from service.intake import NOTES
from service.problems import REQUEST_ID
from service.routes.context import Taken

# Of the body as it came: it goes on unpacked, with its length.
_OF_THE_BODY = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
_KEPT = ("method", "path", "raw_path", "query_string", "root_path", "scheme", "client", "server")


@dataclass(frozen=True)
class Forwarded:
    """A request that has arrived whole.

    Attributes:
        about: of its ASGI scope what is plain; headers: in lower case, as they came.
    """

    about: Mapping[str, Any]
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""

    @classmethod
    def of(cls, scope: Scope, body: bytes) -> "Forwarded":
        """A request with its body, unpacked."""
        headers = [each for each in scope["headers"] if each[0] not in _OF_THE_BODY]
        headers = [each for each in headers if each[0] != b"x-request-id"]
        headers.append((b"x-request-id", scope[REQUEST_ID].encode()))
        if body:
            headers.append((b"content-length", str(len(body)).encode()))
        return cls({name: scope[name] for name in _KEPT if name in scope}, headers, body)


@dataclass(frozen=True)
class Answered:
    """What a replica answered.

    Attributes:
        replica: its name; notes: what the log line tells besides.
        taken: of a reset of all streams, whose they were.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    replica: str = ""
    notes: Mapping[str, str | int] = field(default_factory=dict)
    taken: Taken | None = None

    @classmethod
    def of(cls, response: Response, replica: str) -> "Answered":
        """A response that is made already."""
        return cls(response.status_code, list(response.raw_headers), bytes(response.body), replica)

    def response(self) -> Response:
        """As our server sends it; the request's id is set by whoever answers."""
        response = Response(self.body, self.status)
        response.raw_headers = [each for each in self.headers if each[0] != b"x-request-id"]
        return response


async def call(app: ASGIApp, request: Forwarded, replica: str) -> Answered:
    """Have an application answer a request in this process, all of it at once."""
    scope: dict[str, Any] = {
        **request.about,
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "headers": request.headers,
        "state": {},
    }
    waiting: list[Message] = [
        {"type": "http.request", "body": request.body, "more_body": False},
    ]
    status, headers, body = 500, list[tuple[bytes, bytes]](), bytearray()

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await asyncio.Event().wait()  # whoever waits is cancelled where the client goes away
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            headers.extend(message.get("headers", ()))
        else:
            body.extend(message.get("body", b""))

    await app(scope, receive, send)
    notes, taken = dict(scope.get(NOTES, {})), scope["state"].get("taken")
    return Answered(status, headers, bytes(body), replica, notes, taken)
