"""Plain ASGI: the request id, the traffic metrics, and an answer when everything else failed.

Not Starlette's BaseHTTPMiddleware, behind which a route cannot see its client go away.
"""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.intake import DELIVERED
from service.metrics import Metrics
from service.problems import REQUEST_ID, problem

log = logging.getLogger(__name__)

METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
_WELL_FORMED = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class RequestContext:
    """Wraps the application; every HTTP request passes through it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _WELL_FORMED.fullmatch(given) else uuid.uuid4().hex[:16]
        scope[REQUEST_ID] = request_id
        status = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        self._metrics.requests_in_progress.inc()
        try:
            await self._app(scope, receive, send_and_note)
        except Exception:
            log.exception("request %s failed", request_id)
            if status:
                raise  # the answer has begun: all that is left is to cut it off
            detail = "The service failed on this request; its log has the reason."
            answer = problem(500, "Internal error", detail, request_id)
            await answer(scope, receive, send_and_note)
        finally:
            # The answer is on its way, or never will be: adaptation need not wait for it.
            scope.get(DELIVERED, lambda: None)()
            self._metrics.requests_in_progress.dec()
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.requests.labels(route, method, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(
                time.perf_counter() - started, exemplar={"request_id": request_id}
            )
