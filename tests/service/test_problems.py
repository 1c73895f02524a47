"""An error becomes a problem document in one place, whatever raised it."""

import asyncio
import json

import pytest
from fastapi import FastAPI, Query
from prometheus_client import CollectorRegistry

from service import problems
from service.errors import STATUS, TITLE, ClientGone, QueueFull, Unauthorized, Unreadable
from service.intake import DELIVERED
from service.metrics import Metrics
from service.middleware import RequestContext
from service.schemas import Problem


class Small:
    """An application whose one route raises what it is told to, asked without a socket."""

    def __init__(self, error=None):
        app = FastAPI()
        problems.install(app)

        @app.get("/fail/{name}")
        async def fail(name: str, count: int = Query(1, ge=1)) -> None:
            if error is not None:
                raise error

        self.metrics = Metrics(CollectorRegistry(), classes=10, model={})
        app.add_middleware(RequestContext, metrics=self.metrics)
        self.app = app

    def get(self, path, headers=(), method="GET", scope=None):
        """Return (status, headers, body) as an ASGI server would see them."""
        sent = []
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), text.encode()) for name, text in headers],
            "server": ("127.0.0.1", 80),
            "scheme": "http",
            "http_version": "1.1",
            **(scope or {}),
        }

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            sent.append(message)

        asyncio.run(self.app(scope, receive, send))
        start, *bodies = sent
        given = {name.decode(): text.decode() for name, text in start["headers"]}
        return start["status"], given, b"".join(part["body"] for part in bodies)

    def problem(self, path="/fail/x", **options):
        status, headers, body = self.get(path, **options)
        assert headers["content-type"] == "application/problem+json"
        document = json.loads(body)
        Problem.model_validate(document)
        assert document["status"] == status
        assert document["request_id"] == headers["x-request-id"]
        return document, headers


@pytest.mark.parametrize("kind", STATUS, ids=lambda kind: kind.__name__)
def test_every_refusal_becomes_its_problem(kind):
    """Status and title from the table, the detail from whoever raised it."""
    document, _ = Small(kind("What was wrong, and what is accepted.")).problem()
    assert document == {
        "type": "about:blank",
        "title": TITLE[kind],
        "status": STATUS[kind],
        "detail": "What was wrong, and what is accepted.",
        "request_id": document["request_id"],
    }


def test_the_image_at_fault_is_named():
    """index counts from 0; without one the member is absent."""
    assert Small(Unreadable("Broken.", index=0)).problem()[0]["index"] == 0


@pytest.mark.parametrize(("seconds", "header"), [(1.0, "1"), (2.2, "3"), (0.1, "1")])
def test_retry_after_is_whole_seconds_rounded_up(seconds, header):
    """RFC 9110 knows no fractions, and coming early would be refused again."""
    _, headers = Small(QueueFull("Full.", retry_after=seconds)).problem()
    assert headers["retry-after"] == header


def test_unauthorized_says_how_to_authenticate():
    """RFC 9110 asks for it with every 401."""
    assert Small(Unauthorized("No.")).problem()[1]["www-authenticate"] == "Bearer"
    assert "retry-after" not in Small(Unauthorized("No.")).problem()[1]


def test_a_failure_of_our_own_tells_nothing_of_itself(caplog):
    """500 with a sentence; the reason is in the log with the request's id."""
    small = Small(ZeroDivisionError("secret of the house"))
    document, headers = small.problem(headers=[("X-Request-Id", "r-1")])
    assert document["status"] == 500
    assert "secret" not in json.dumps(document)
    assert "r-1" in caplog.text
    assert "secret of the house" in caplog.text
    assert headers["x-request-id"] == "r-1"


def test_a_value_that_does_not_validate_is_named_with_what_came():
    """FastAPI's own 422 becomes ours: the option, the rule, the value."""
    document, _ = Small().problem("/fail/x?count=0")
    assert document["status"] == 422
    assert document["detail"].startswith("count: ")
    assert "'0'" in document["detail"]


def test_unknown_routes_and_methods_are_problems():
    """404 and 405, the latter with what is allowed."""
    assert Small().problem("/nowhere")[0]["status"] == 404
    document, headers = Small().problem(method="POST")
    assert document["status"] == 405
    assert headers["allow"] == "GET, HEAD, OPTIONS"


def test_a_client_that_is_gone_is_counted_under_499():
    """Nobody reads that answer; the metric tells it from a failure."""
    small = Small(ClientGone())
    status, _, body = small.get("/fail/x")
    assert (status, body) == (499, b"")
    labels = {"route": "/fail/{name}", "method": "GET", "code": "499"}
    assert small.metrics.registry.get_sample_value("ttc_http_requests_total", labels) == 1


def test_traffic_is_counted_by_route_not_by_path():
    """Label values are bounded whatever is asked for, paths and methods alike."""
    small = Small()
    for name in ("a", "b", "c"):
        small.get(f"/fail/{name}")
    for path in ("/x", "/y"):
        small.get(path, method="BREW")
    count = small.metrics.registry.get_sample_value
    labels = {"route": "/fail/{name}", "method": "GET", "code": "200"}
    assert count("ttc_http_requests_total", labels) == 3
    labels = {"route": "other", "method": "other", "code": "404"}
    assert count("ttc_http_requests_total", labels) == 2
    assert count("ttc_http_request_duration_seconds_count", {"route": "/fail/{name}"}) == 3
    assert count("ttc_http_requests_in_progress") == 0


@pytest.mark.parametrize("error", [None, QueueFull("Full."), ZeroDivisionError(), ClientGone()])
def test_delivery_is_told_however_the_request_ends(error):
    """The batcher waits for it before it adapts; a failed request must not keep it waiting."""
    told = []
    Small(error).get("/fail/x", scope={DELIVERED: lambda: told.append(True)})
    assert told == [True]


@pytest.mark.parametrize("given", ["abc", "A.b_c:d-9", "x" * 64])
def test_a_well_formed_request_id_is_the_clients(given):
    """Letters, digits and . _ : - up to 64 characters."""
    _, headers, _ = Small().get("/fail/x", headers=[("X-Request-Id", given)])
    assert headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\tb", "é", "<b>", 'a"b'])
def test_any_other_request_id_is_replaced(given):
    """What is logged and echoed holds no surprise."""
    _, headers, _ = Small().get("/fail/x", headers=[("X-Request-Id", given)])
    assert headers["x-request-id"] != given
    assert len(headers["x-request-id"]) == 16
