"""The short way of a plain POST /predict: past the framework, which takes as long as a small image.

Plain is what cameras send: no browser's request, nothing in the query that has to be unquoted, and
nothing to refuse. All else goes the framework's way, so that what is refused is refused in one
place; from `predict.answer` on both ways are one.
"""

import re
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import CLIENT_CLOSED_REQUEST, ClientGone, Refused
from service.problems import REQUEST_ID, path_in, refusal
from service.routes import predict
from service.routes.guards import plainly_let_through
from service.schemas import DEFAULT_STREAM, STREAM_NAME
from service.settings import Settings

(_ROUTE,) = (route for route in predict.router.routes if getattr(route, "path", "") == "/predict")
_QUERY = re.compile(rb"[A-Za-z0-9._:~=&-]*")
# What a query may have once: how it is written, and read.
_ONCE: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "stream": (STREAM_NAME, str),
    "top_k": (re.compile(r"[1-9][0-9]{0,8}"), int),
    "learn": (re.compile(r"true|false"), lambda text: text == "true"),
    "context": (re.compile(r"true|false"), lambda text: text == "true"),
}
_ONE_AN_IMAGE = {"id": "ids", "label": "labels"}


class DirectPredict:
    """Answers what is plain; hands everything else to `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = None
        if scope["type"] == "http" and scope["method"] == "POST" and path_in(scope) == "/predict":
            service = scope["app"].state.service
            # Mounted in an application, it is that one's to say what the path is.
            if scope.get("root_path", "") == (service.settings.root_path or ""):
                asked = _asked_plainly(scope, service.settings)
        if asked is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = _ROUTE
        try:
            response = await predict.answer(service, Request(scope, receive), asked)
        except Refused as error:
            response = refusal(error, scope[REQUEST_ID])
        except ClientGone:
            response = Response(status_code=CLIENT_CLOSED_REQUEST)
        await response(scope, receive, send)


def _asked_plainly(scope: Scope, settings: Settings) -> predict.Asked | None:
    """What a request asks for, None unless it is plain."""
    query: bytes = scope["query_string"]
    headers = dict(scope["headers"])
    if not (
        len(headers) == len(scope["headers"])
        and plainly_let_through(headers, settings)
        and _QUERY.fullmatch(query)
    ):
        return None
    fields: dict[str, Any] = {"ids": [], "labels": []}
    named = headers.get(b"x-session-id")
    pairs = [] if named is None else [("stream", named.decode("latin-1"))]
    pairs += [
        (name, value)
        for name, _, value in (pair.partition("=") for pair in query.decode().split("&") if query)
    ]
    for name, value in pairs:
        if name in _ONE_AN_IMAGE and value:
            fields[_ONE_AN_IMAGE[name]].append(value)
            continue
        if name not in _ONCE or name in fields:
            return None
        form, read = _ONCE[name]
        if not form.fullmatch(value):
            return None
        fields[name] = read(value)
    return predict.Asked(fields.pop("stream", DEFAULT_STREAM), **fields)
