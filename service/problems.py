"""Errors as HTTP answers: RFC 9457 problem documents, unless the protocol has a form of its own.

Whose paths begin as one of FORMS is answered in that form, whatever refuses it: a route, a limit of
a connection, or nobody who knows the path.
"""

import math
from collections.abc import Callable, Mapping

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import Scope

from service.errors import CLIENT_CLOSED_REQUEST, STATUS, TITLE, ClientGone, Refused
from service.schemas import in_words
from service.settings_reading import MOST_CHARACTERS

REQUEST_ID = "ttc.request_id"
MOST_PATH_CHARACTERS = 200

# Makes an error's answer, and is called as `problem` is.
ErrorForm = Callable[..., Response]


def problem(
    status: int,
    title: str,
    detail: str,
    request_id: str,
    *,
    index: int | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Make a problem document; `index` is the image at fault, counted from 0."""
    content: dict[str, object] = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "request_id": request_id,
    }
    if index is not None:
        content["index"] = index
    return JSONResponse(content, status, headers=headers, media_type="application/problem+json")


def v2_error(
    status: int,
    title: str,
    detail: str,
    request_id: str,
    *,
    index: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Make an error as the Open Inference Protocol has it, which knows no 422."""
    return JSONResponse({"error": detail}, 400 if status == 422 else status, headers)


FORMS: dict[str, ErrorForm] = {"/v2": v2_error}
"""The form of errors by the first part of a path; all others are problems."""


def path_in(scope: Scope) -> str:
    """A request's path as our routes have it: without where the application is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    rest = path.removeprefix(root)
    return rest if rest[:1] in ("", "/") else path


def form_of(path: str) -> ErrorForm:
    """The form of errors below a path."""
    first = path.split("/", 2)[1:2]
    return FORMS.get(f"/{first[0]}", problem) if first else problem


def refusal(error: Refused, request_id: str, form: ErrorForm = problem) -> Response:
    """Make the answer to a request that is turned away."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    kind = type(error)
    if STATUS[kind] == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return form(
        STATUS[kind], TITLE[kind], str(error), request_id, index=error.index, headers=headers
    )


def install(app: FastAPI) -> None:
    """Have every error of the application answered as a problem."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return refusal(error, request.scope[REQUEST_ID], form_of(path_in(request.scope)))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = first["loc"][-1]
        got = repr(first.get("input"))[:MOST_CHARACTERS]
        detail = f"{name}: {in_words(first)}; got {got}."
        form = form_of(path_in(request.scope))
        return form(422, "Value out of range", detail, request.scope[REQUEST_ID])

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        ours, root_path = path_in(request.scope), request.scope.get("root_path", "")
        if ours == "" and request.method == "GET":  # else what the page names would be beside it
            return RedirectResponse(f"{root_path}/")
        if request.method == "OPTIONS" and ours == "/*":  # OPTIONS *
            return Response(status_code=204, headers={"Allow": "GET, HEAD, OPTIONS, POST"})
        if error.status_code == 405:
            allowed = set(headers["Allow"].split(", ")) | {"OPTIONS"}
            if "GET" in allowed:
                allowed.add("HEAD")
            headers["Allow"] = ", ".join(sorted(allowed))
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
        path = request.url.path[:MOST_PATH_CHARACTERS]
        detail = f"{request.method} {path}: {error.detail}. See {root_path}/docs."
        form = form_of(ours)
        return form(
            error.status_code, str(error.detail), detail, request.scope[REQUEST_ID], headers=headers
        )

    @app.exception_handler(ClientGone)
    async def gone(_request: Request, _error: ClientGone) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
