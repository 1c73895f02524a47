"""The Python client: `Client`, and `AsyncClient` for asyncio. Needs neither torch nor the model.

Both send the same `Call`s and read answers by the same function; they differ in waiting only.
docs/client.md shows what they do.
"""

from service.client.async_client import AsyncClient
from service.client.calls import Call, Reply, feedback_call, predict_call
from service.client.client import Client
from service.client.connection import DEFAULT_TIMEOUT, DEFAULT_URL, check_url
from service.client.errors import REFUSED, ServiceError
from service.client.images import ImageLike, to_png
from service.client.retries import DEFAULT_RETRY_BUDGET
from service.live.schemas import LiveEvent, LiveRow, LiveState, LiveTick

__all__ = [
    "DEFAULT_RETRY_BUDGET",
    "DEFAULT_TIMEOUT",
    "DEFAULT_URL",
    "REFUSED",
    "AsyncClient",
    "Call",
    "Client",
    "ImageLike",
    "LiveEvent",
    "LiveRow",
    "LiveState",
    "LiveTick",
    "Reply",
    "ServiceError",
    "check_url",
    "feedback_call",
    "predict_call",
    "to_png",
]
