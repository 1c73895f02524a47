"""Which requests are at work: their ids for the log, their spans for OpenTelemetry.

Both travel in context variables: whoever hands work to another thread or task hands over
`contextvars.copy_context()`, and need not know what is in it.

A request is a trace: its server span with the stages `decode` and `queue`. A batch serves several
requests, so it is a trace of its own, `batch` with `forward` and `adapt`, linked to theirs; where
nothing is learned `count` follows it.
Without a provider of spans (`export`, or one that the process has already) nothing is recorded.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import Context, ContextVar
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

request_ids: ContextVar[tuple[str, ...]] = ContextVar("request_ids", default=())
"""The id of the request at work, or those of a batch's requests, up to MOST_IDS."""
MOST_IDS = 20

_tracer = trace.get_tracer("ttc")
_trace_context = TraceContextTextMapPropagator()


def _is_recorded() -> bool:
    """Whether there is a provider: without one spans come to nothing, and take their time."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


@contextlib.contextmanager
def request(request_id: str, headers: Mapping[str, str], *, traced: bool = True) -> Iterator[None]:
    """Mark what happens inside as a request's, under the trace that its headers name, if any."""
    token = request_ids.set((request_id,))
    try:
        if not traced or not (_is_recorded() or "traceparent" in headers):
            yield
            return
        with _tracer.start_as_current_span(
            "request", context=_trace_context.extract(headers), kind=SpanKind.SERVER
        ):
            yield
    finally:
        request_ids.reset(token)


def answered(
    *, method: str, route: str, status: int, notes: Mapping[str, str | int], request_id: str
) -> None:
    """Tell the request's span how it ended."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    span.update_name(f"{method} {route}")
    span.set_attributes(
        {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "ttc.request_id": request_id,
            **{f"ttc.{name}": value for name, value in notes.items()},
        }
    )
    if status == 0 or status >= 500:  # 0: cut off without an answer
        span.set_status(StatusCode.ERROR)


@contextlib.contextmanager
def batch(
    contexts: Sequence[Context], *, streams: Sequence[str], images: int, reason: str
) -> Iterator[None]:
    """Mark what happens inside as a batch's.

    Args:
        contexts: in which its requests took their places.
        streams: whose it is; where it is one, the span has its name.
    """
    whose = {"ttc.stream": streams[0]} if len(streams) == 1 else {"ttc.streams": len(streams)}
    ids = dict.fromkeys(name for context in contexts for name in context.get(request_ids, ()))
    token = request_ids.set(tuple(ids)[:MOST_IDS])
    try:
        if not _is_recorded():
            yield
            return
        requests = (context.run(trace.get_current_span).get_span_context() for context in contexts)
        with _tracer.start_as_current_span(
            "batch",
            links=[Link(request) for request in requests if request.is_valid],
            attributes={**whose, "ttc.images": images, "ttc.reason": reason},
        ):
            yield
    finally:
        request_ids.reset(token)


def span(name: str) -> AbstractContextManager[Span]:
    """Time what happens inside, as a part of the request or batch at work."""
    if not _is_recorded():
        return contextlib.nullcontext(trace.INVALID_SPAN)
    return _tracer.start_as_current_span(name)


def stage(name: str, seconds: float) -> None:
    """Note a part of the request at work that took `seconds` until now."""
    if not _is_recorded():
        return
    now = time.time_ns()
    _tracer.start_span(name, start_time=now - int(seconds * 1e9)).end(now)


def note(**values: str | int | bool | None) -> None:
    """Add to the span at work what is known by now; None is left out."""
    known = {f"ttc.{name}": value for name, value in values.items() if value is not None}
    trace.get_current_span().set_attributes(known)


def ids() -> dict[str, Any]:
    """What a log line or an event says of the requests at work: `request_id`, or `request_ids`."""
    known = request_ids.get()
    if len(known) == 1:
        return {"request_id": known[0]}
    return {"request_ids": list(known)} if known else {}


def trace_id() -> str | None:
    """The id of the trace at work, None without one."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def exemplar() -> dict[str, str]:
    """What finds the request at work again from a metric: its id, and its trace's."""
    found = {"request_id": request_ids.get()[0]} if request_ids.get() else {}
    known = trace_id()
    return found if known is None else {**found, "trace_id": known}


def export(version: str) -> None:
    """Send spans over OTLP/HTTP; where to and how much is said by the standard OTEL_ variables.

    Raises:
        ImportError: the extra `otel` is not installed.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # A collector that is away must not keep the service from ending: spans are lost sooner.
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TIMEOUT", "3")  # seconds
    ours = Resource.create({"service.name": "ttc", "service.version": version})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
