"""POST /feedback: the true classes of images that were answered before."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from service.routes.context import ServiceNow, problems
from service.routes.guards import MAY_POST, StreamHeader, stream_named
from service.schemas import STREAM_PATTERN, FeedbackResponse, LateLabel, NamedImage, NotTaken
from service.uploads import MOST_LABELS

router = APIRouter()

# Of each kind that did not count, in the answer.
MOST_NAMED = 100


@router.post(
    "/feedback",
    dependencies=MAY_POST,
    responses=problems(401, 413, 415, 429, 503),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["labels"],
                        "properties": {
                            "labels": {
                                "type": "array",
                                "minItems": 1,
                                "maxItems": MOST_LABELS,
                                "items": LateLabel.model_json_schema(),
                            }
                        },
                    },
                    "example": {"labels": [{"stream": "gate-4", "id": "frame-1", "label": 7}]},
                }
            },
        }
    },
)
async def feedback(
    request: Request,
    service: ServiceNow,
    stream: Annotated[
        str | None, Query(pattern=STREAM_PATTERN, description="of the labels that name none")
    ] = None,
    x_session_id: StreamHeader = None,
) -> FeedbackResponse:
    """Count labels that came minutes or hours after the answers, and have the guard weigh them.

    A label names its image by its stream and by the id that it came with. The last --feedback-ids
    ids of all streams are known, over restarts with --state-dir; of an id used again the latest
    answer counts, of two labels for an answer the first. If one label is refused, none is taken.
    """
    named = stream_named(request, stream)
    labels = [
        (each.stream or named, each.id, each.label) for each in await service.intake.labels(request)
    ]
    images, weighed = await service.engine.feedback(labels)
    others = {
        outcome: NotTaken(
            count=len(found),
            images=[NamedImage(stream=whose, id=name) for whose, name in found[:MOST_NAMED]],
        )
        for outcome, found in images.items()
        if outcome != "taken"
    }
    return FeedbackResponse(taken=len(images["taken"]), weighed=weighed, **others)
