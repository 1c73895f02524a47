"""/v2: what the Open Inference Protocol tells of the application's models; `v2_infer` asks them."""

from collections.abc import Callable, Mapping
from importlib.metadata import version as version_of
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from service.errors import NoModel, NotReady, OutOfRange
from service.routes.context import PROBLEMS, ServiceNow
from service.routes.guards import MAY_READ
from service.v2.model import Model
from service.v2.reading import object_of
from service.v2.sentences import told
from service.v2.signature import VERSION

NAME = "ttc-service"
# What a client may rely on; of model_repository there is the index alone.
EXTENSIONS = [
    *("binary_tensor_data", "classification", "model_configuration", "parameters"),
    *("schedule_policy", "sequence", "statistics"),
]
# Of a body that is asked for without a token.
MOST_INDEX_BYTES = 1 << 12


class V2Error(BaseModel):
    """What was wrong with a request to /v2."""

    error: str = Field(description="a sentence: what was wrong, what is accepted")


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for /docs."""
    return {
        status: {"model": V2Error, "description": PROBLEMS[status]["description"]}
        for status in statuses
    }


# Values out of range are 400 here; 422 is listed since all routes of the application have it.
OF_EVERY_ROUTE = errors(400, 403, 404, 408, 422, 431, 501, 503)
router = APIRouter(responses=OF_EVERY_ROUTE)

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


def of_model(
    router: APIRouter,
    method: str,
    path: str,
    *,
    openapi_extra: Mapping[str, Any] = MappingProxyType({}),
    **given: Any,
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
    responses=errors(413, 415, 429),
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
    async with service.intake.received(request, most=MOST_INDEX_BYTES) as (body, _):
        asked = object_of(body).get("ready", False) if body.strip() else False
    if not isinstance(asked, bool):
        raise OutOfRange(f"ready is true or false; got {told(asked)}.")
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


@router.get("/v2/models/stats", dependencies=MAY_READ, responses=errors(401))
async def all_statistics(request: Request) -> Document:
    """What the requests to all models spent their time in."""
    return {"model_stats": [each.statistics.told(name) for name, each in _models(request).items()]}


@of_model(router, "GET", "/stats", dependencies=MAY_READ, responses=errors(401))
async def statistics(served: Served) -> Document:
    """What the requests to a model spent their time in, those of this protocol."""
    return {"model_stats": [served.statistics.told(served.signature.name)]}


@of_model(router, "GET", "")
async def metadata(served: Served) -> Document:
    """A model's tensors."""
    return served.signature.metadata()


@of_model(router, "GET", "/ready")
async def model_ready(served: Served) -> Document:
    """Whether a model answers; 503 where it does not."""
    if not served.is_ready:
        raise NotReady("The model is starting or shutting down.")
    return {"name": served.signature.name, "ready": True}


@of_model(router, "GET", "/config")
async def config(served: Served) -> Document:
    """A model as Triton's configuration would have it."""
    return served.signature.config()
