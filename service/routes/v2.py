"""/v2: the Open Inference Protocol over HTTP, for the models of the application."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version as version_of
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from service.errors import NoModel, NotReady, OutOfRange, Unreadable
from service.intake import Submission
from service.routes.context import PROBLEMS, ServiceNow
from service.routes.guards import MAY_POST, MAY_READ, StreamHeader, stream_named
from service.routes.predict import TURN_SECONDS, server_timing
from service.schemas import DEFAULT_STREAM, STREAM_PATTERN
from service.uploads import memory_to_parse
from service.v2.datatypes import NAMES, Buffer
from service.v2.model import Model
from service.v2.reading import (
    HEADER_LENGTH,
    InferenceRequest,
    json_length,
    object_of,
    read_request,
)
from service.v2.signature import VERSION
from service.v2.writing import Answer, coding_for, pack, write

NAME = "ttc-service"
# What a client may rely on; of model_repository there is the index alone.
EXTENSIONS = [
    *("binary_tensor_data", "classification", "model_configuration", "parameters"),
    *("schedule_policy", "sequence", "statistics"),
]
# Read where it came in; what is larger, or has more of JSON, in a thread.
AT_ONCE_BYTES, AT_ONCE_JSON = 1 << 18, 1 << 12


class V2Error(BaseModel):
    """What was wrong with a request to /v2."""

    error: str = Field(description="a sentence: what was wrong, what is accepted")


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": V2Error, "description": PROBLEMS[status]["description"]}
        for status in statuses
    }


# Values out of range are 400 here; 422 is listed since all routes of the application have it.
router = APIRouter(responses=_errors(400, 403, 404, 408, 422, 431, 501, 503))

Document = dict[str, Any]
Route = TypeVar("Route", bound=Callable[..., Any])


def _models(request: Request) -> dict[str, Model]:
    models: dict[str, Model] = request.app.state.models
    return models


async def _served(request: Request, model: str) -> Model:
    """The model of a path, which may name its version.

    Raises:
        NoModel: there is none of that name, or it has no such version.
    """
    models, version = _models(request), request.path_params.get("version", VERSION)
    if model not in models:
        # As Triton's sentence begins: its examples look for that.
        raise NoModel(f"Request for unknown model: {model[:80]!r}; served is {', '.join(models)}.")
    if version != VERSION:
        raise NoModel(f"{model} has no version {version[:40]!r}; it has {VERSION}.")
    return models[model]


Served = Annotated[Model, Depends(_served)]


_VERSION = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}


def _of_model(
    method: str, path: str, *, openapi_extra: Mapping[str, Any] = MappingProxyType({}), **given: Any
) -> Callable[[Route], Route]:
    """Have a route of a model answer with its version in the path, too."""

    def add(route: Route) -> Route:
        with_version = {**openapi_extra, "parameters": [_VERSION]}
        for between, extra in (("", dict(openapi_extra)), ("/versions/{version}", with_version)):
            router.add_api_route(
                f"/v2/models/{{model}}{between}{path}",
                route,
                methods=[method],
                openapi_extra=extra,
                **given,
            )
        return route

    return add


# The server


@router.get("/v2")
@router.get("/v2/", include_in_schema=False)
async def server() -> Document:
    """What this server is, and which extensions of the protocol it has."""
    return {"name": NAME, "version": version_of("ttc-service"), "extensions": EXTENSIONS}


@router.get("/v2/health/live")
async def live() -> Document:
    """The process is alive; the model is not asked."""
    return {"live": True}


@router.get("/v2/health/ready")
async def ready(service: ServiceNow) -> Document:
    """All models answer; 503 while loading, draining, or without a batching loop."""
    if not service.is_ready:
        raise NotReady("The service is starting or shutting down.")
    return {"ready": True}


@router.get("/v2/models")
async def models(request: Request) -> Document:
    """The names of the models."""
    return {"models": list(_models(request))}


@router.post(
    "/v2/repository/index",
    responses=_errors(413, 415, 429),
    openapi_extra={
        "requestBody": {
            "content": {
                "application/json": {
                    "schema": {"type": "object", "properties": {"ready": {"type": "boolean"}}}
                }
            }
        }
    },
)
async def index(request: Request, service: ServiceNow) -> list[Document]:
    """The models with their states; with {"ready": true} those that are ready."""
    async with service.intake.received(request) as (body, _):
        if len(body) > AT_ONCE_JSON:
            raise Unreadable(f"The body has {len(body):,} bytes; accepted is {{}}.")
        asked = object_of(bytes(body)).get("ready", False) if body.strip() else False
    if not isinstance(asked, bool):
        raise OutOfRange(f"ready is true or false; got {repr(asked)[:40]}.")
    states = {True: "READY", False: "UNAVAILABLE"}
    return [
        {
            "name": name,
            "version": VERSION,
            "state": states[model.is_ready],
            "reason": "" if model.is_ready else "starting or shutting down",
        }
        for name, model in _models(request).items()
        if model.is_ready or not asked
    ]


# A model; its statistics first, as `stats` could be a name


@router.get("/v2/models/stats", dependencies=MAY_READ, responses=_errors(401))
async def all_statistics(request: Request) -> Document:
    """What the requests to all models spent their time in."""
    return {"model_stats": [each.statistics.told(name) for name, each in _models(request).items()]}


@_of_model("GET", "/stats", dependencies=MAY_READ, responses=_errors(401))
async def statistics(served: Served) -> Document:
    """What the requests to a model spent their time in, those of this protocol."""
    return {"model_stats": [served.statistics.told(served.signature.name)]}


@_of_model("GET", "")
async def metadata(served: Served) -> Document:
    """A model's tensors."""
    return served.signature.metadata()


@_of_model("GET", "/ready")
async def model_ready(served: Served) -> Document:
    """Whether a model answers; 503 where it does not."""
    if not served.is_ready:
        raise NotReady("The model is starting or shutting down.")
    return {"name": served.signature.name, "ready": True}


@_of_model("GET", "/config")
async def config(served: Served) -> Document:
    """A model as Triton's configuration would have it."""
    return served.signature.config()


# Inference

_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "enum": list(NAMES)},
        "parameters": {"type": "object"},
        "data": {
            "type": "array",
            "items": {},
            "description": "flat or nested; or binary_data_size",
        },
    },
}
_REQUEST_BODY = {
    "required": True,
    "description": f"JSON; behind it, with {HEADER_LENGTH} its length, tensors as bytes; with 0 "
    "nothing but one image file.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "id": {"type": "string"},
                    "parameters": {"type": "object"},
                    "inputs": {"type": "array", "items": _TENSOR},
                    "outputs": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {
                                "name": {"type": "string"},
                                "parameters": {"type": "object"},
                            },
                        },
                    },
                },
            },
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


@_of_model(
    "POST",
    "/infer",
    dependencies=MAY_POST,
    responses=_errors(401, 413, 415, 429, 500, 504),
    openapi_extra={"requestBody": _REQUEST_BODY},
)
async def infer(
    request: Request,
    service: ServiceNow,
    served: Served,
    stream: Annotated[
        str | None, Query(pattern=STREAM_PATTERN, description="as the parameter stream")
    ] = None,
    x_session_id: StreamHeader = None,
) -> Response:
    """Answer tensors.

    The stream is the parameter `sequence_id` or `stream`; a bare body has it in the query or in
    X-Session-Id.
    """
    began = time.perf_counter()
    named = stream_named(request, stream)
    signature = served.signature
    try:
        async with Submission(service.intake, None, http=request) as submission:
            asked = await _read(request, submission, served)
            if named != DEFAULT_STREAM:
                if asked.sequence not in ("", named):
                    raise OutOfRange("sequence_id names another stream than the request.")
                asked = replace(asked, sequence=named)
            inference = await served.infer(asked, submission)
        writing = time.perf_counter()
        answer = Answer()
        await _in_turns(write(answer, signature, asked, inference.outputs))
        response = await _response(request, answer)
    except BaseException:
        served.statistics.failed(time.perf_counter() - began)
        raise
    ended = time.perf_counter()
    served.statistics.answered(inference, asked.batch, ended - began, ended - writing)
    if inference.seconds:
        service.metrics.spent("encode", ended - writing)
        stages = {**inference.seconds, "encode": ended - writing}
        timing = server_timing(stages, service.engine.last_adapt_seconds)
        response.headers["Server-Timing"] = timing
    return response


async def _read(request: Request, submission: Submission, served: Model) -> InferenceRequest:
    """Receive a request and take it apart; what it was read from is kept by its tensors alone."""
    stated = request.headers.getlist(HEADER_LENGTH)
    if len(stated) > 1:
        raise Unreadable(f"The request has {HEADER_LENGTH} {len(stated)} times; send one.")
    length = stated[0] if stated else None
    body = await submission.receive()
    read = partial(read_request, body, length, served.signature)
    if json_length(body, length) <= AT_ONCE_JSON and len(body) <= AT_ONCE_BYTES:
        return read()
    needed = await submission.work(partial(_memory_to_read, body, length), 0)
    return await submission.work(read, needed)


def _memory_to_read(body: Buffer, stated: str | None) -> int:
    length = json_length(body, stated)
    # JSON as it is parsed, and elements of BYTES beside the body.
    return memory_to_parse(body[:length], "application/json") + len(body)


async def _in_turns(steps: Iterator[bytes | None]) -> bytes:
    """Go through what takes a while; the event loop has its turns meanwhile."""
    content = bytearray()
    until = time.perf_counter() + TURN_SECONDS
    for piece in steps:
        content += piece or b""
        if time.perf_counter() > until:
            await asyncio.sleep(0)
            until = time.perf_counter() + TURN_SECONDS
    return bytes(content)


async def _response(request: Request, answer: Answer) -> Response:
    content, headers = bytes(answer.text), {"Vary": "Accept-Encoding"}
    media_type = "application/json"
    if answer.tensors:
        headers[HEADER_LENGTH] = str(len(content))
        content, media_type = content + answer.tensors, "application/octet-stream"
    coding = coding_for(",".join(request.headers.getlist("accept-encoding")))
    if coding is not None:
        headers["Content-Encoding"] = coding
        content = await _in_turns(pack(content, coding))
    return Response(content, headers=headers, media_type=media_type)
