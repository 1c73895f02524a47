"""POST /predict: images in, flip-averaged predictions out, adaptation afterwards."""

import json
import time
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Query, Request, Response

from service.engine import Answer
from service.errors import OutOfRange
from service.intake import Answered
from service.routes.context import Service, ServiceNow, problems
from service.routes.guards import MAY_POST, stream_named
from service.schemas import STREAM_PATTERN, EncodedImage, PredictResponse
from service.settings import DAY
from ttc_core.methods import HostPrediction

router = APIRouter()

# Classes named in one answer, of all its images together: some 7 MB of text.
MOST_SCORES = 100_000
_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_REQUEST_BODY = {
    "required": True,
    "description": "One image as it is, or one and more as a form or as JSON.",
    "content": {
        **{f"image/{kind}": _IMAGE for kind in ("jpeg", "png", "webp", "gif", "bmp")},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {
                    "image": {"type": "array", "items": _IMAGE["schema"]},
                    "id": {"type": "array", "items": {"type": "string"}},
                    "label": {"type": "array", "items": {"type": "integer"}},
                },
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {
                    "images": {
                        "type": "array",
                        "minItems": 1,
                        "items": EncodedImage.model_json_schema(),
                    }
                },
            },
            "example": {"images": [{"b64": "iVBORw0KGgo…", "id": "frame-1"}]},
        },
    },
}


@router.post(
    "/predict",
    dependencies=MAY_POST,
    responses={
        200: {
            "model": PredictResponse,
            "headers": {
                "Server-Timing": {
                    "description": "milliseconds in each stage",
                    "schema": {"type": "string"},
                }
            },
        },
        **problems(401, 413, 415, 429, 500, 503, 504),
    },
    openapi_extra={"requestBody": _REQUEST_BODY},
)
async def predict(
    request: Request,
    service: ServiceNow,
    stream: Annotated[
        str | None, Query(pattern=STREAM_PATTERN, description="the camera; adapts apart")
    ] = None,
    x_session_id: Annotated[
        str | None, Header(pattern=STREAM_PATTERN, description="the stream, as a header")
    ] = None,
    top_k: Annotated[int, Query(ge=1, description="how many classes to name")] = 1,
    id: Annotated[list[str] | None, Query(description="echoed; one an image")] = None,
    label: Annotated[list[str] | None, Query(description="true class; one an image")] = None,
    timeout: Annotated[
        float | None,
        Query(
            gt=0,
            le=DAY,
            allow_inf_nan=False,
            description="seconds after which not to run the request",
        ),
    ] = None,
    learn: Annotated[bool, Query(description="false: answer only; nothing moves")] = True,
) -> Response:
    """Classify one or many images.

    The answer comes before the model learns from the images; what it learned shows in the next.
    A request is all or nothing: if one image is refused, none is processed.
    """
    classes = service.source.model.classes
    if top_k > classes:
        raise OutOfRange(f"top_k must be 1 to {classes}, the number of classes; got {top_k}.")
    name = stream_named(request, stream)
    answered = await service.intake.predict(
        request,
        stream=name,
        ids=id or [],
        labels=label or [],
        timeout=timeout,
        most_images=MOST_SCORES // top_k,
        learn=learn,
    )
    # A large answer takes a while to build: not on the event loop.
    return await service.intake.in_pool(partial(_response, service, name, answered, top_k, learn))


def _response(
    service: Service, stream: str, answered: Answered, top_k: int, learn: bool
) -> Response:
    started = time.perf_counter()
    batches = [answer.answers for answer in answered.answers]
    head = {
        "stream": stream,
        "method": service.settings.method,
        "version": _one_or_list(batches, [batch.version for batch in batches]),
        "batch_size": _one_or_list(batches, [len(batch.logits) for batch in batches]),
    }
    # The encoder lets no other thread run until it is done: it gets one image at a time.
    predictions = b",".join(
        _json(
            _prediction(answer, identifier, top_k, service.source.model.class_names)
            | ({} if learn else {"selected": False})
        )
        for answer, identifier in zip(answered.answers, answered.upload.ids, strict=True)
    )
    content = _json(head)[:-1] + b',"predictions":[' + predictions + b"]}"
    response = Response(content, media_type="application/json")
    encode_seconds = time.perf_counter() - started
    service.metrics.stage_seconds.labels("encode").observe(encode_seconds)
    response.headers["Server-Timing"] = _server_timing(
        answered, encode_seconds, service.engine.last_adapt_seconds
    )
    return response


def _json(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _one_or_list(batches: list[HostPrediction], values: list[int]) -> int | list[int]:
    """One value for the request; a list, one an image, if it was cut over several batches."""
    return values[0] if batches[-1] is batches[0] else values


def _prediction(
    answer: Answer, identifier: str | None, top_k: int, names: tuple[str, ...]
) -> dict[str, Any]:
    probabilities = answer.answers.probabilities[answer.row]
    # The first of equals, as argmax has it: the client's and the server's count must agree.
    best = np.argsort(-answer.answers.logits[answer.row], kind="stable")[:top_k].tolist()
    scores = [
        {"class": index, "name": names[index], "confidence": float(probabilities[index])}
        for index in best
    ]
    return {
        "id": identifier,
        **scores[0],
        "top_k": scores,
        "entropy": float(answer.answers.entropy[answer.row]),
        "selected": bool(answer.answers.selected[answer.row]),
    }


def _server_timing(answered: Answered, encode_seconds: float, adapt_seconds: float) -> str:
    """The header's text, in milliseconds; adapt is the last batch's, as this one's is to come."""
    stages = {
        "decode": answered.decode_seconds,
        "queue": answered.queue_seconds,
        "forward": answered.forward_seconds,
        "encode": encode_seconds,
    }
    timings = [f"{stage};dur={1000 * seconds:.2f}" for stage, seconds in stages.items()]
    return ", ".join([*timings, f'adapt;desc="previous batch";dur={1000 * adapt_seconds:.2f}'])
