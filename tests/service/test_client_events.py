"""Both clients read /events: typed, over connections that are lost, within their budget."""

import asyncio
import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.client import AsyncClient, Client, LiveState, LiveTick, ServiceError
from service.client.events import Frames

COUNTERS = {
    **dict.fromkeys(("images", "rejected", "cancelled", "labelled", "correct", "selected"), 1),
    **dict.fromkeys(("considered", "steps", "suspects", "entropy_sum", "entropy_count"), 1),
    **dict.fromkeys(("guard_actions", "resets", "rollbacks"), 1),
    "request_seconds_buckets": [1, 2],
}
GAUGES = {
    **dict.fromkeys(("queue_images", "drift", "streams", "learning", "held", "doubted"), 0),
    **dict.fromkeys(("estimated_adapted", "estimated_source", "window_accuracy"), None),
    **{"silent": 0, "ready": True},
}
BOTH = {"counters": COUNTERS, "gauges": GAUGES, "events": [], "streams": [], "left_out": 0}
STATE = {
    **BOTH,
    **{"started": 1.0, "version": "1", "method": "ttc", "adapt": "auto", "guard": "on"},
    "model": {"name": "bündled", "digest": None, "classes": 10},
    "asks": {"predict": False, "control": False},
    "latency_bounds": [0.1],
    "interval": 5.0,
    "history": {"time": []},
}
PROBLEM = {"title": "Not ready", "status": 503, "detail": "Too many.", "request_id": "r1"}
END = b"event: end\ndata: {}\n\n"
KINDS = {"state": LiveState, "tick": LiveTick}


def frame(kind, number):
    fields = STATE if kind == "state" else BOTH | {"gone": []}
    content = json.dumps(fields | {"time": number}, ensure_ascii=False)
    return f"event: {kind}\ndata: {content}\n\n".encode()


SENT = b"retry: 2000\n\n" + frame("state", 1) + b": \n\n" + frame("tick", 2) + frame("tick", 3)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Authorization"), time.monotonic()))
        status, kind, content, is_whole = server.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Retry-After", "0")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))
        if is_whole:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def log_message(self, *_):
        """Keep the test's output clean."""


@pytest.fixture
def service():
    """Gives the answers of a list, a connection each."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answers = [], []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def stream(content, *, is_whole=False):
    return 200, "text/event-stream; charset=utf-8", content, is_whole


def take_sync(url, count, **options):
    with Client(url, **options) as client, contextlib.closing(client.events()) as events:
        return [event for _, event in zip(range(count), events, strict=False)]


def take_async(url, count, **options):
    async def take():
        found = []
        async with (
            AsyncClient(url, **options) as client,
            contextlib.aclosing(client.events()) as events,
        ):
            async for event in events:
                found.append(event)
                if len(found) == count:
                    break
        return found

    return asyncio.run(take())


both = pytest.mark.parametrize("take", [take_sync, take_async], ids=["sync", "async"])


@given(st.lists(st.integers(0, len(SENT)), max_size=20).map(sorted))
def test_frames_are_read_however_they_are_cut(places):
    """In the middle of a character, too; comments are nothing."""
    frames, bounds = Frames("http://x"), [0, *places, len(SENT)]
    pieces = [SENT[a:b] for a, b in pairwise(bounds)]
    found = [event for piece in pieces for event in frames.feed(piece)]
    assert [(event.event, event.time) for event in found] == [
        ("state", 1),
        ("tick", 2),
        ("tick", 3),
    ]
    assert isinstance(found[0], LiveState)
    assert found[0].model.name == "bündled"


@both
def test_where_the_connection_is_lost_another_begins_with_a_state(service, take):
    """Broken off, ended, or taken leave of: the iteration goes on."""
    service.answers = [
        stream(SENT),
        stream(frame("state", 4) + b"event: ti"),
        stream(frame("state", 5) + END, is_whole=True),
        stream(SENT),
    ]
    found = take(service.url, 7, token="secret", retry_budget=20)
    assert [type(event) for event in found] == [
        *(LiveState, LiveTick, LiveTick, LiveState, LiveState, LiveState, LiveTick)
    ]
    assert [event.time for event in found[:5]] == [1, 2, 3, 4, 5]
    assert [(path, token) for path, token, _ in service.asked] == [("/events", "Bearer secret")] * 4
    times = [at for *_, at in service.asked]
    assert all(b - a >= 0.4 for a, b in pairwise(times))  # no storm


@both
def test_without_a_budget_the_iteration_ends_with_the_service(service, take):
    """After its last frame; a connection that breaks is told."""
    service.answers = [stream(SENT + END, is_whole=True), stream(SENT)]
    assert len(take(service.url, 10, retry_budget=0)) == 3
    with pytest.raises(ServiceError, match="broke"):
        take(service.url, 10, retry_budget=0)


@both
def test_what_is_refused_is_told_or_asked_again(service, take):
    """A wrong token at once; too many readers, or nobody there yet, within the budget."""
    refused = (503, "application/problem+json", json.dumps(PROBLEM).encode(), True)
    service.answers = [refused, stream(b"", is_whole=True), stream(SENT)]
    assert len(take(service.url, 3, retry_budget=20)) == 3
    service.answers = [(401, "application/problem+json", b'{"detail": "Which token?"}', True)]
    with pytest.raises(ServiceError, match="Which token") as found:
        take(service.url, 1, retry_budget=20)
    assert found.value.status == 401
    service.answers = [refused]
    with pytest.raises(ServiceError, match="Too many"):
        take(service.url, 1, retry_budget=0)


@both
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("text/html", b"<p>\n\n</p>"),
        ("text/event-stream", b'event: tick\ndata: {"other": 1}\n\n'),
        ("text/event-stream", b"event: state\n\n"),
    ],
)
def test_another_service_is_told_to_be_one(service, take, kind, content):
    """Not asked again: it will not become ours."""
    service.answers = [(200, kind, content, True)]
    with pytest.raises(ServiceError, match="something else than expected"):
        take(service.url, 1, retry_budget=20)


@both
def test_where_nothing_listens_it_says_so(take):
    """Within its budget."""
    with pytest.raises(ServiceError, match="Nothing answers"):
        take("http://127.0.0.1:1", 1, retry_budget=0.1)
