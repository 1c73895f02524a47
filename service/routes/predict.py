"""POST /predict: images in, flip-averaged predictions out, adaptation afterwards."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.answering import ImageAnswer
from service.errors import OutOfRange
from service.intake import AnsweredRequest, Submission
from service.routes.context import Service, ServiceNow, problems
from service.routes.guards import MAY_POST, StreamHeader, Timeout, stream_named
from service.schemas import STREAM_PATTERN, EncodedImage, PredictResponse
from service.uploads import content_type, memory_to_parse, parse_upload
from ttc_core.methods import HostPrediction
from ttc_core.methods.contract import ADAPTING

router = APIRouter()

# Classes named in one answer, of all its images together: some 7 MB of text.
MOST_SCORES = 100_000
# After so long, or so many classes, building an answer lets the event loop have its turn.
TURN_SECONDS = 0.001
MOST_IN_A_PIECE = 500


def _form_of(**properties: object) -> dict[str, object]:
    """The schema of an object whose first property is required."""
    required = list(properties)[:1]
    return {"schema": {"type": "object", "required": required, "properties": properties}}


def _several(kind: dict[str, Any], **more: int) -> dict[str, object]:
    return {"type": "array", **more, "items": kind}


_FILE = {"type": "string", "format": "binary"}
_REQUEST_BODY = {
    "required": True,
    "description": "One image as it is, or one and more as a form or as JSON.",
    "content": {
        **{f"image/{kind}": {"schema": _FILE} for kind in ("jpeg", "png", "webp", "gif", "bmp")},
        "multipart/form-data": _form_of(
            image=_several(_FILE),
            id=_several({"type": "string"}),
            label=_several({"type": "integer"}),
        ),
        "application/json": {
            **_form_of(images=_several(EncodedImage.model_json_schema(), minItems=1)),
            "example": {"images": [{"b64": "iVBORw0KGgo…", "id": "frame-1"}]},
        },
    },
}


@dataclass(frozen=True)
class Asked:
    """What a request says of its images, besides them: `predict` tells what each field is."""

    stream: str
    top_k: int = 1
    ids: Sequence[str] = ()
    labels: Sequence[str] = ()
    timeout: float | None = None
    learn: bool = True
    context: bool = True


async def answer(service: Service, http: Request, asked: Asked) -> Response:
    """Answer the images of a request, which may be made.

    Raises:
        Refused: the request is turned away. ClientGone: nobody waits any more.
    """
    top_k, classes = asked.top_k, service.source.model.classes
    if top_k > classes:
        raise OutOfRange(f"top_k must be 1 to {classes}, the number of classes; got {top_k}.")
    async with Submission(
        service.intake, asked.stream, http=http, timeout=asked.timeout, learn=asked.learn
    ) as submission:
        await submission.receive()
        kind = content_type(http.headers)
        images = await submission.decode(
            partial(
                parse_upload,
                content_type=kind,
                ids=asked.ids,
                labels=asked.labels,
                max_images=service.settings.max_images,
            ),
            partial(memory_to_parse, content_type=kind),
            most_images=MOST_SCORES // top_k,
        )
        if not (asked.context and asked.learn):
            images = [replace(each, context=asked.context, learn=asked.learn) for each in images]
        answered = await submission.answer(images)
    started = time.perf_counter()
    content = await _encode(service, asked, answered, [image.id for image in images])
    encode_seconds = time.perf_counter() - started
    service.metrics.spent("encode", encode_seconds)
    stages = answered.seconds | {"encode": encode_seconds}
    timing = server_timing(stages, service.engine.last_adapt_seconds)
    return Response(
        bytes(content), media_type="application/json", headers={"Server-Timing": timing}
    )


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
    x_session_id: StreamHeader = None,
    top_k: Annotated[int, Query(ge=1, description="how many classes to name")] = 1,
    id: Annotated[list[str] | None, Query(description="echoed; one an image")] = None,
    label: Annotated[list[str] | None, Query(description="true class; one an image")] = None,
    timeout: Timeout = None,
    learn: Annotated[bool, Query(description="false: answer only; nothing moves")] = True,
    context: Annotated[
        bool, Query(description="false: leave the images before out; the model adapts all the same")
    ] = True,
) -> Response:
    """Classify one or many images.

    The answer comes before the model learns from the images; what it learned shows in the next.
    A request is all or nothing: if one image is refused, none is processed.
    """
    asked = Asked(
        stream_named(request, stream),
        top_k=top_k,
        ids=id or (),
        labels=label or (),
        timeout=timeout,
        learn=learn,
        context=context,
    )
    return await answer(service, request, asked)


async def _encode(
    service: Service, asked: Asked, answered: AnsweredRequest, ids: Sequence[str | None]
) -> bytearray:
    """Write the answer; a large one takes a while: the event loop has its turns meanwhile."""
    batches = [answer.answers for answer in answered.answers]
    head = {
        "stream": asked.stream,
        "method": service.settings.method,
        "context": asked.context and service.source.contextual,
        "version": _one_or_list(batches, [batch.version for batch in batches]),
        "batch_size": _one_or_list(batches, [len(batch.logits) for batch in batches]),
        "model_digest": answered.answers[0].digest,
    }
    names = service.source.model.class_names
    content = bytearray(_json(head)[:-1] + b',"predictions":[')
    until = time.perf_counter() + TURN_SECONDS
    for number, (answer, identifier) in enumerate(zip(answered.answers, ids, strict=True)):
        content += b"," * bool(number)
        for piece in _prediction(answer, identifier, asked, names, service.told):
            content += piece
            if time.perf_counter() > until:
                await asyncio.sleep(0)
                until = time.perf_counter() + TURN_SECONDS
    content += b"]}"
    return content


_write = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _json(content: object) -> bytes:
    return _write(content).encode()


def _one_or_list(batches: list[HostPrediction], values: list[int]) -> int | list[int]:
    """One value for the request; a list, one an image, if it was cut over several batches."""
    return values[0] if batches[-1] is batches[0] else values


def _prediction(
    answer: ImageAnswer,
    identifier: str | None,
    asked: Asked,
    names: tuple[str, ...],
    told: Callable[[str], str],
) -> Iterator[bytes]:
    """Write the answer to an image, in pieces of at most MOST_IN_A_PIECE classes."""
    answers, row = answer.answers, answer.row
    probabilities = answers.probabilities[row]
    best = answer.best(asked.top_k)

    def scores(indices: list[int]) -> list[dict[str, Any]]:
        return [
            {"class": index, "name": names[index], "confidence": float(probabilities[index])}
            for index in indices
        ]

    yield _json({"id": identifier, **scores(best[:1])[0]})[:-1] + b',"top_k":'
    for start in range(0, asked.top_k, MOST_IN_A_PIECE):
        piece = _json(scores(best[start : start + MOST_IN_A_PIECE]))
        yield (b"," if start else b"[") + piece[1:-1]
    rest = {
        "entropy": float(answers.entropy[row]) + 0.0,  # of one sure class it is -0.0
        "selected": asked.learn and bool(answers.selected[row]),
        "mode": told(answers.modes[row] if answers.modes else ADAPTING),
        "suspect": answers.suspects[row] if answers.suspects else None,
        "shed": answer.shed,
    }
    yield b"]," + _json(rest)[1:]


def server_timing(stages: Mapping[str, float], adapt_seconds: float) -> str:
    """The header's text, in milliseconds; adapt is the last batch's, as this one's is to come."""
    timings = [f"{stage};dur={1000 * seconds:.2f}" for stage, seconds in stages.items()]
    return ", ".join([*timings, f'adapt;desc="previous batch";dur={1000 * adapt_seconds:.2f}'])
