"""GET / and /events: the live page, and what it is told; its files under /assets.

The page and its files hold no data, so that a browser gets them without a token, which it can send
with no navigation; /events and /status ask for one where reading does.
"""

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.live.assets import Page
from service.live.readers import Live, Reader
from service.live.schemas import LiveEvent
from service.middleware import ENDLESS, HEAD_ALONE
from service.routes.context import ServiceNow, problems
from service.routes.guards import MAY_READ

router = APIRouter()

# All that it may load is ours; curves are drawn by script, which sets styles without writing any.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
NO_GUESSING = {"X-Content-Type-Options": "nosniff"}
PAGE_HEADERS = {
    **NO_GUESSING,
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
FOR_EVER = {**NO_GUESSING, "Cache-Control": "public, max-age=31536000, immutable"}
# nginx would keep frames back until it has a buffer full.
AT_ONCE = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def _page(request: Request) -> Page:
    page: Page = request.app.state.page
    return page


@router.get("/", response_class=HTMLResponse)
async def page(request: Request) -> Response:
    """The live page: whether each camera is alive, adapting helps, and what the guard did."""
    found = _page(request)
    tag = f'"{found.tag}"'
    headers = {**PAGE_HEADERS, "ETag": tag}
    known = request.headers.get("if-none-match", "")
    if tag in (each.strip().removeprefix("W/") for each in known.split(",")):
        return Response(status_code=304, headers=headers)
    return HTMLResponse(found.content, headers=headers)


@router.get("/assets/{name}", include_in_schema=False)
async def asset(request: Request, name: str) -> Response:
    """A file of the page; its name has a hash of what is in it."""
    found = _page(request).assets.get(name)
    if found is None:
        raise HTTPException(404)
    return Response(found.content, headers=FOR_EVER, media_type=found.media_type)


class EventStream(StreamingResponse):
    """Frames for a reader, as long as it stays."""

    media_type = "text/event-stream"

    def __init__(self, live: Live, reader: Reader) -> None:
        super().__init__(aiter(reader), headers=AT_ONCE)
        self._live, self._reader = live, reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._live.leave(self._reader)


@router.get(
    "/events",
    dependencies=MAY_READ,
    status_code=200,
    response_class=EventStream,
    response_model=None,
    responses={
        200: {
            "model": LiveEvent,
            "description": "Server-sent events: `state` first, then `tick` once a second, each "
            "with one object of JSON; `end` when the service shuts down. Who is too slow loses "
            "ticks, and gets a state instead. Without an end.",
        },
        **problems(401, 503),
    },
)
async def events(request: Request, service: ServiceNow) -> Response:
    """What the live page shows, as it happens."""
    if request.scope.get(HEAD_ALONE):
        return Response(headers=AT_ONCE, media_type=EventStream.media_type)
    reader = service.live.join()
    request.scope[ENDLESS] = True
    return EventStream(service.live, reader)
