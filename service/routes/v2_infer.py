"""POST /v2/models/NAME/infer: a model of the application is asked, and answers tensors."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.bounds import count_values
from service.errors import OutOfRange, Unreadable
from service.intake import Submission
from service.routes.context import ServiceNow
from service.routes.guards import MAY_POST, StreamHeader, Timeout, stream_asked
from service.routes.predict import TURN_SECONDS, server_timing
from service.routes.v2 import OF_EVERY_ROUTE, Served, errors, of_model
from service.schemas import STREAM_PATTERN
from service.uploads import memory_to_parse
from service.v2.datatypes import MOST_DIMENSIONS, MOST_SIDE, NAMES, Buffer
from service.v2.model import Model
from service.v2.parameters import switch
from service.v2.reading import HEADER_LENGTH, InferenceRequest, json_length, json_of, read_request
from service.v2.writing import Answer, coding_for, pack, write

# Read where it came in; what is larger, or has more of JSON, in a thread.
AT_ONCE_BYTES, AT_ONCE_JSON = 1 << 18, 1 << 12

router = APIRouter(responses=OF_EVERY_ROUTE)

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


@of_model(
    router,
    "POST",
    "/infer",
    dependencies=MAY_POST,
    responses=errors(401, 413, 415, 429, 500, 504),
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
