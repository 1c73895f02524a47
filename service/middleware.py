"""Plain ASGI: request id, log line, span, traffic metrics, and an answer when all else failed.

Not Starlette's BaseHTTPMiddleware, behind which a route cannot see its client go away.
"""

import logging
import random
import re
import time
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import tracing
from service.errors import NotReady
from service.intake import DELIVERED, NOTES
from service.logs import ACCESS
from service.metrics import Metrics
from service.problems import MOST_PATH_CHARACTERS, REQUEST_ID, form_of, path_in, refusal

log = logging.getLogger(__name__)
access_log = logging.getLogger(ACCESS)

METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
# Asked every few seconds by machines: their requests have metrics, but no log lines and no spans.
QUIET = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
# A span of hours tells nobody anything.
UNTRACED = QUIET | {"/events"}
# In the request's state: there are more connections than are kept, and all of them are at work.
CROWDED = "ttc.crowded"
# In the request's scope: its answer goes on for as long as its reader stays. It is counted and
# logged as it begins, since how long it lasts says nothing of us.
ENDLESS = "ttc.endless"
# In the request's scope: it asks for the head alone of what GET would answer.
HEAD_ALONE = "ttc.head_alone"
# Its own: a user's code may seed the module's. Drawn without a call of the system.
_drawn = random.Random()
_WELL_FORMED = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def request_id_of(given: str) -> str:
    """The client's name for its request if it is well-formed, or one of ours."""
    return given if _WELL_FORMED.fullmatch(given) else f"{_drawn.getrandbits(64):016x}"


class RequestContext:
    """Wraps the application; every HTTP request passes through it.

    Args:
        root_path: where a proxy has the service, whether it takes that off or not; in an
            application that mounts us it is that one's to say.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, root_path: str | None = None) -> None:
        self._app, self._metrics, self._root_path = app, metrics, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._root_path and not scope.get("root_path"):
            scope["root_path"] = self._root_path
        started = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = request_id_of(headers.get("x-request-id", ""))
        scope[REQUEST_ID] = request_id
        with tracing.request(request_id, headers, traced=path_in(scope) not in UNTRACED):
            await self._answer(scope, receive, send, started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, started: float) -> None:
        request_id = scope[REQUEST_ID]
        status = 0
        asked, path = scope["method"], path_in(scope)
        quiet = path in QUIET
        if asked == "HEAD":  # GET without its body; a copy, as the server goes by its own scope
            scope = {**scope, "method": "GET", HEAD_ALONE: True}

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = list(message.get("headers", ()))
                given.append((b"x-request-id", request_id.encode()))
                if not any(name == b"cache-control" for name, _ in given):
                    given.append((b"cache-control", b"no-store"))  # an answer is of its moment
                message = {**message, "headers": given}
                if scope.get(ENDLESS):
                    account()
            elif asked == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        is_accounted_for = False

        def account() -> None:
            """Count the answer and write its line, once."""
            nonlocal is_accounted_for
            if is_accounted_for:
                return
            is_accounted_for = True
            if counted:
                counted.dec()
            route = getattr(scope.get("route"), "path", "other")
            method = asked if asked in METHODS else "other"
            self._metrics.requests.labels(route, method, str(status)).inc()
            seconds = time.perf_counter() - started
            self._metrics.request_seconds.labels(route).observe(seconds, tracing.exemplar())
            if not quiet:
                _tell(scope, method, route, status, seconds)

        # The scrape would find itself.
        counted = None if quiet else self._metrics.requests_in_progress
        if counted:
            counted.inc()
        answer: ASGIApp = self._app
        if scope.get("state", {}).get(CROWDED) and not quiet:
            refused = NotReady("All connections that are kept are at work.", retry_after=1)
            answer = refusal(refused, request_id, form_of(path))
        try:
            await answer(scope, receive, send_and_note)
        except Exception:
            log.exception("request %s failed", request_id)
            if status:
                raise  # the answer has begun: all that is left is to cut it off
            detail = "The service failed on this request; its log has the reason."
            answer = form_of(path)(500, "Internal error", detail, request_id)
            await answer(scope, receive, send_and_note)
        finally:
            # The answer is on its way, or never will be: adaptation need not wait for it.
            scope.get(DELIVERED, lambda: None)()
            account()


def _tell(scope: Scope, method: str, route: str, status: int, seconds: float) -> None:
    """Write the request's log line, and on its span how it ended."""
    notes = scope.get(NOTES, {})
    tracing.answered(
        method=method, route=route, status=status, request_id=scope[REQUEST_ID], notes=notes
    )
    # As it came over the wire: nothing in it can end a line or pass for a field.
    path = quote(scope["path"][:MOST_PATH_CHARACTERS], errors="replace")
    fields = {"method": method, "path": path, "status": status, "seconds": round(seconds, 6)}
    access_log.info("request", extra={"fields": fields | notes})
