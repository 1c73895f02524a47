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

from service.bounds import count_values
from service.errors import NoModel, NotReady, OutOfRange, Unreadable
from service.intake import Submission
from service.routes.context import PROBLEMS, ServiceNow
from service.routes.guards import MAY_POST, MAY_READ, StreamHeader, Timeout, stream_asked
from service.routes.predict import TURN_SECONDS, server_timing
from service.schemas import STREAM_PATTERN
from service.uploads import memory_to_parse
from service.v2.datatypes import MOST_DIMENSIONS, MOST_SIDE, NAMES, Buffer
from service.v2.model import Model
from service.v2.parameters import switch
from service.v2.reading import (
    HEADER_LENGTH,
    InferenceRequest,
    json_length,
    json_of,
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
    async with service.intake.received(request, most=AT_ONCE_JSON) as (body, _):
        asked = object_of(body).get("ready", False) if body.strip() else False
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
        "shape": {
            "type": "array",
            "minItems": 1,
            "maxItems": MOST_DIMENSIONS,
            "items": {"type": "integer", "minimum": 0, "maximum": MOST_SIDE},
        },
        "datatype": {"type": "string", "enum": list(NAMES)},
        "parameters": {
            "type": "object",
            "properties": {
                "binary_data_size": {"type": "integer", "minimum": 0, "maximum": MOST_SIDE},
                "scale": {"enum": [1, 255, "1", "255"]},
                "format": {"enum": ["NHWC", "NCHW"]},
            },
        },
        "data": {
            "type": "array",
            "items": {},
            "description": "flat or nested; or binary_data_size",
        },
    },
}


def _example(shape: list[int], datatype: str = "UINT8", **more: Any) -> dict[str, Any]:
    tensor = {"name": "images", "shape": shape, "datatype": datatype, **more}
    return {"value": {"inputs": [tensor]}}


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
            "examples": {
                "one pixel": _example([1, 1, 1, 3], data=[255, 0, 0]),
                "a brightest value": _example(
                    [1, 1, 1, 3], "FP32", data=[255.0, 0.5, 0], parameters={"scale": 255}
                ),
                "no image, refused": _example([0, MOST_SIDE, MOST_SIDE, 3], data=[]),
                "no pixels, refused": _example([1, MOST_SIDE // 2, 0, 3], "FP32", data=[]),
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
    timeout: Timeout = None,
    learn: Annotated[bool | None, Query(description="as the parameter learn")] = None,
    context: Annotated[bool | None, Query(description="as the parameter context")] = None,
) -> Response:
    """Answer tensors.

    The stream is the parameter `sequence_id` or `stream`, or stands in X-Session-Id. The query is
    for bare bodies, which have no parameters; where both are given they say the same.
    """
    began = time.perf_counter()
    named = stream_asked(request, stream)
    signature = served.signature
    try:
        async with Submission(service.intake, None, http=request) as submission:
            asked = await _read(request, submission, served)
            asked = _with_query(asked, named, timeout, learn=learn, context=context)
            inference = await served.infer(asked, submission)
        writing = time.perf_counter()
        answer = Answer()
        await _in_turns(write(answer, signature, asked, inference.outputs, inference.best))
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


def _with_query(
    asked: InferenceRequest, stream: str | None, timeout: float | None, **switches: bool | None
) -> InferenceRequest:
    """A request with what its query and headers say besides.

    Raises:
        OutOfRange: its parameters say something else.
    """
    if stream is not None:
        if asked.sequence not in ("", stream):
            raise OutOfRange("sequence_id names another stream than the query or X-Session-Id.")
        asked = replace(asked, sequence=stream)
    if timeout is not None:
        if asked.timeout not in (None, timeout):
            raise OutOfRange(
                f"The parameter timeout is {asked.timeout} seconds and the query's {timeout}; "
                "give one of them."
            )
        asked = replace(asked, timeout=timeout)
    given = {name: value for name, value in switches.items() if value is not None}
    for name, value in given.items():
        if switch(asked.parameters, name, usual=value) != value:
            written = str(value).lower()
            raise OutOfRange(
                f"The query has {name}={written}, the parameters the opposite; give one of them."
            )
    return replace(asked, parameters={**asked.parameters, **given})


async def _read(request: Request, submission: Submission, served: Model) -> InferenceRequest:
    """Receive a request and take it apart; what it was read from is kept by its tensors alone."""
    stated = request.headers.getlist(HEADER_LENGTH)
    if len(stated) > 1:
        raise Unreadable(f"The request has {HEADER_LENGTH} {len(stated)} times; send one.")
    length = stated[0] if stated else None
    body = await submission.receive()
    read = partial(read_request, body, length, served.signature)
    json_bytes = json_length(body, length)
    if json_bytes <= AT_ONCE_JSON and len(body) <= AT_ONCE_BYTES:
        asked = read()
    else:
        needed = await submission.work(partial(_memory_to_read, body, json_bytes), json_bytes)
        asked = await submission.work(read, needed)
    submission.keep(asked.memory)
    return asked


def _memory_to_read(body: Buffer, json_bytes: int) -> int:
    """What JSON takes while it is read, and its tensors of numbers."""
    text = json_of(body, json_bytes)
    return memory_to_parse(text, "application/json") + 8 * count_values(text)


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
    coding = coding_for(request.headers.getlist("accept-encoding"))
    if coding is not None:
        headers["Content-Encoding"] = coding
        content = await _in_turns(pack(content, coding))
    return Response(content, headers=headers, media_type=media_type)
