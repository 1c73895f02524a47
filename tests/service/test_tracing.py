"""Spans as promised: a trace a request, a trace a batch, the one linked to the other."""

import asyncio
import json
import logging
import sys

import click
import httpx
import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service import logs, tracing
from service.app import build
from service.cli import cli
from service.replay import to_png
from service.settings import Settings
from ttc_core.datasets import Geometry, open_data
from ttc_core.load import load
from ttc_core.methods import create

CALLER = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}


class Spans:
    """What was recorded, by name and by parent."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()

    def all(self):
        return self.exporter.get_finished_spans()

    def named(self, name):
        return [span for span in self.all() if span.name == name]

    def one(self, name):
        (span,) = self.named(name)
        return span

    def children(self, parent):
        spans = [
            span
            for span in self.all()
            if span.parent is not None and span.parent.span_id == parent.context.span_id
        ]
        return sorted(spans, key=lambda span: span.start_time)


@pytest.fixture
def spans(monkeypatch):
    """Record spans, for one test; the process's own provider could be set once only."""
    recorded = Spans()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(recorded.exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    monkeypatch.setattr(tracing.trace, "get_tracer_provider", lambda: provider)
    return recorded


@pytest.fixture(scope="module")
def model():
    return load("bundled", device="cpu")


@pytest.fixture(scope="module")
def pictures():
    stream = open_data("bundled", Geometry(32)).open("fog", 5, limit=4)
    return [to_png(pixels) for pixels in stream.read(stream.positions)]


class Poisoned:
    """A real method that breaks on a batch with a black image."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def predict(self, images, *, learn=True):
        if len(images) > 1 and not all(image.any() for image in images):
            raise RuntimeError("the model broke")
        return self._inner.predict(images)

    def fork(self):
        return Poisoned(self._inner.fork())


def run(source, session, **settings):
    """Run `session(client)` against the application, without a socket, until all is at rest."""

    async def inside():
        app = build(Settings(method="ttc", **settings), source)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            await session(client)
            while not app.state.service.batcher.is_idle:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(inside(), 60))


async def together(client, *pictures):
    """Send each picture as a request of its own, at once."""
    answers = await asyncio.gather(
        *(
            client.post(
                "/predict?stream=gate",
                content=picture,
                headers={"X-Request-Id": f"r{number}", "Content-Type": "image/png"},
            )
            for number, picture in enumerate(pictures)
        )
    )
    return [answer.status_code for answer in answers]


def test_a_batch_is_a_trace_linked_to_its_requests(spans, model, pictures):
    """Each request: its server span with decode and queue. The batch: forward and adapt."""

    async def session(client):
        assert await together(client, *pictures[:3]) == [200] * 3

    run(create("ttc", model), session, max_batch=3, max_wait=30.0)
    requests = spans.named("POST /predict")
    assert len(requests) == 3
    for request in requests:
        assert request.kind is SpanKind.SERVER
        assert request.parent is None
        assert request.status.status_code is StatusCode.UNSET
        decode, queue = spans.children(request)
        assert (decode.name, queue.name) == ("decode", "queue")
        assert request.start_time <= decode.start_time <= decode.end_time
        assert decode.end_time <= queue.end_time <= request.end_time
    assert sorted(request.attributes["ttc.request_id"] for request in requests) == (
        ["r0", "r1", "r2"]
    )
    assert dict(requests[0].attributes) == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "ttc.request_id": requests[0].attributes["ttc.request_id"],
        "ttc.stream": "gate",
        "ttc.images": 1,
    }
    batch = spans.one("batch")
    assert batch.parent is None
    assert {link.context.span_id for link in batch.links} == (
        {request.context.span_id for request in requests}
    )
    assert [span.name for span in spans.children(batch)] == ["forward", "adapt"]
    attributes = dict(batch.attributes)
    assert 0 <= attributes.pop("ttc.selected") <= 3
    assert attributes.pop("ttc.stepped") in (True, False)
    assert attributes.pop("ttc.skipped", "none_selected") == "none_selected"
    assert attributes == {"ttc.stream": "gate", "ttc.images": 3, "ttc.reason": "full"}
    assert len({span.context.trace_id for span in spans.all()}) == 4


def test_a_skipped_adaptation_is_on_the_batchs_span(spans, model, pictures):
    """With its reason."""

    async def session(client):
        assert await together(client, pictures[0]) == [200]

    run(create("ttc", model), session, adapt="never")
    assert spans.one("count").attributes["ttc.skipped"] == "shed"


def test_the_trace_of_the_caller_goes_on(spans, model):
    """W3C traceparent; one that is malformed begins a trace of our own."""

    async def session(client):
        await client.post("/reset", headers=CALLER)
        await client.post("/reset", headers={"traceparent": "00-zz-1-01"})

    run(create("source", model), session)
    theirs, ours = spans.named("POST /reset")
    assert (theirs.context.trace_id, theirs.parent.span_id) == (
        int("ab" * 16, 16),
        int("cd" * 8, 16),
    )
    assert ours.parent is None


def test_what_machines_ask_every_few_seconds_has_no_span(spans, model):
    """Health and metrics; whatever has no route is one name."""

    async def session(client):
        for path in ("/healthz", "/readyz", "/metrics", "/no/such/path"):
            await client.get(path)

    run(create("source", model), session)
    assert [span.name for span in spans.all()] == ["GET other"]


def test_a_failing_forward_pass_marks_its_span_and_the_retries_have_their_own(
    spans, model, pictures
):
    """The failed batch is linked to both requests, each retry to its own."""
    black = to_png(np.zeros((32, 32, 3), np.uint8))

    async def session(client):
        assert await together(client, pictures[0], black) == [200, 200]

    run(Poisoned(create("ttc", model)), session, max_batch=2, max_wait=30.0)
    failed, *retries = sorted(spans.named("batch"), key=lambda span: span.start_time)
    (forward,) = spans.children(failed)
    assert forward.status.status_code is StatusCode.ERROR
    assert "the model broke" in forward.status.description
    assert [len(span.links) for span in (failed, *retries)] == [2, 1, 1]
    assert all(span.parent is None for span in retries)


def test_a_refused_image_ends_its_request_without_a_batch(spans, model):
    """The status is on the span; a client's mistake is no error of ours."""

    async def session(client):
        assert await together(client, b"no image") == [400]

    run(create("source", model), session)
    request = spans.one("POST /predict")
    assert request.attributes["http.response.status_code"] == 400
    assert request.status.status_code is StatusCode.UNSET
    assert not spans.named("batch")


def test_lines_of_the_log_have_the_trace(spans):
    """So that one finds the other."""
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "said", (), None)
    with tracing.request("r1", CALLER):
        said = json.loads(logs.formatter("json").format(record))
    assert (said["request_id"], said["trace_id"]) == ("r1", "ab" * 16)


def test_without_a_provider_nothing_is_recorded_and_nothing_breaks():
    """The default; the caller's trace is not lost for the log."""
    with tracing.request("r1", {}), tracing.span("forward") as span:
        tracing.stage("queue", 0.1)
        tracing.note(selected=1)
        assert not span.is_recording()
        assert tracing.trace_id() is None


def test_traces_without_the_extra_are_refused_with_a_sentence(monkeypatch):
    """The way out is in it."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(click.UsageError, match=r"pip install 'ttc-service\[otel\]'"):
        cli.main(["serve", "--traces"], standalone_mode=False)
