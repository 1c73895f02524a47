"""`ttc serve --log-format json --traces`: all that it writes, and what a collector gets."""

import gzip
import json
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service.launch import launch

FORGED = "/x%0A%7B%22event%22%3A%20%22forged%22%7D%0D%1B%5B2J"


class Collector(BaseHTTPRequestHandler):
    """Takes spans as an OpenTelemetry collector does."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.received.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    """What a server said, answered and sent in a short life of requests good and bad."""
    states = tmp_path_factory.mktemp("states")
    (states / "broken.safetensors").write_bytes(b"no state")
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        collector.received = []
        threading.Thread(target=collector.serve_forever, args=(0.01,), daemon=True).start()
        options = ("--log-format", "json", "--traces", "--device", "cpu", "--threads", "1")
        address = f"http://127.0.0.1:{collector.server_port}"
        with (
            launch(
                *(*options, "--method", "tent", "--state-dir", str(states)),
                environment={"OTEL_EXPORTER_OTLP_ENDPOINT": address},
            ) as server,
            httpx.Client(base_url=server.url, timeout=60) as http,
        ):
            ids = {}

            def ask(name, method, path, **options):
                answer = http.request(method, path, **options)
                ids[name] = answer.headers["X-Request-Id"]

            picture = {"content": pictures[0], "params": {"stream": "gate"}}
            ask("good", "POST", "/predict", **picture, headers={"X-Request-Id": "frame:1"})
            ask("replaced", "POST", "/predict", **picture, headers={"X-Request-Id": "a b" * 50})
            ask("unsaved", "POST", "/predict?stream=broken", content=pictures[0])
            ask("refused", "POST", "/predict", content=b"no image")
            ask("forged", "GET", FORGED)
            ask("reset", "POST", "/reset?stream=gate", headers={"X-Request-Id": "reset-1"})
            for path in ("/healthz", "/readyz", "/metrics"):
                ask(path, "GET", path)
            host, port = server.url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                connection.sendall(b"\x00\x1b[31mrubbish\r\n\r\n")
                connection.recv(1000)
            assert server.stop() == 0
        collector.shutdown()
    return server, ids, collector.received


@pytest.fixture(scope="module")
def lines(run):
    """Every line of the process, its introduction and its end too."""
    return [json.loads(line) for line in run[0].lines]


def events(lines, name):
    return [line for line in lines if line.get("event") == name]


def test_every_line_is_an_object_with_time_level_logger_and_message(lines):
    """Ours and uvicorn's, from the introduction to the end."""
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    said = [line["message"] for line in lines]
    assert said[0].startswith("Loading bundled")  # before what takes seconds
    assert any(text.startswith("Model bundled on cpu") for text in said)
    assert any(text.startswith("Listening on http://127.0.0.1:") for text in said)
    assert "no request" in said  # bytes that were none
    assert "Finished server process" in " ".join(said)
    assert lines == sorted(lines, key=lambda line: line["time"])


def test_each_request_is_one_line_but_for_health_and_metrics(run, lines):
    """With its id as it was returned; the client's own if it is well formed."""
    _, ids, _ = run
    seen = [
        (line["request_id"], line["method"], line["status"], line.get("stream"), line.get("images"))
        for line in lines
        if line["logger"] == "service.access" and line["path"] != "/healthz"
    ]
    assert seen == [
        ("frame:1", "POST", 200, "gate", 1),
        (ids["replaced"], "POST", 200, "gate", 1),
        (ids["unsaved"], "POST", 200, "broken", 1),
        (ids["refused"], "POST", 400, "default", 1),
        (ids["forged"], "GET", 404, None, None),
        ("reset-1", "POST", 200, None, None),
    ]
    assert len(ids["replaced"]) == 16
    assert not {ids[path] for path in ("/healthz", "/readyz", "/metrics")} & (
        {line.get("request_id") for line in lines}
    )


def test_a_strangers_path_forges_no_line(run, lines):
    """It is one line's path, percent-encoded; no line is what it tried to write."""
    assert not events(lines, "forged")
    (line,) = [line for line in lines if line.get("request_id") == run[1]["forged"]]
    assert line["path"] == FORGED
    assert not any("\x1b" in text or "rubbish" in text for text in run[0].lines)


def test_start_reset_and_stop_are_events_with_their_reasons(lines):
    """A state that does not fit, the start with versions, the reset's request, the signal."""
    (rejected,) = events(lines, "rejected")
    assert (rejected["stream"], rejected["level"]) == ("broken", "warning")
    assert rejected["reason"]
    (started,) = events(lines, "started")
    assert (started["model"], started["method"], started["streams"]) == ("bundled", "tent", 1)
    assert {"service", "torch", "python"} <= set(started["versions"])
    (reset,) = events(lines, "reset")
    assert (reset["stream"], reset["reason"], reset["request_id"]) == ("gate", "request", "reset-1")
    assert events(lines, "draining")[0]["reason"] == "SIGTERM"
    assert events(lines, "saved")[0]["saved"] == 1
    assert events(lines, "stopped")[0]["reason"] == "SIGTERM"


def test_a_collector_gets_the_spans_and_the_log_names_their_traces(run, lines):
    """Those of the last moments too; a batch is linked to its request."""
    assert {path for path, _ in run[2]} == {"/v1/traces"}
    resources = [resource for _, message in run[2] for resource in message.resource_spans]
    named = {(a.key, a.value.string_value) for r in resources for a in r.resource.attributes}
    assert ("service.name", "ttc") in named
    spans = [span for r in resources for scope in r.scope_spans for span in scope.spans]
    (request,) = [
        span for span in spans if any(a.value.string_value == "frame:1" for a in span.attributes)
    ]
    assert request.name == "POST /predict"
    assert request.span_id in {
        link.span_id for span in spans if span.name == "batch" for link in span.links
    }
    assert {line.get("trace_id") for line in lines if line.get("request_id") == "frame:1"} >= (
        {request.trace_id.hex()}
    )
    assert Counter(span.name for span in spans) == {
        **{"POST /predict": 4, "GET other": 1, "POST /reset": 1},
        **{"decode": 3, "queue": 3, "batch": 3, "forward": 3, "adapt": 3},
    }


@pytest.mark.slow
def test_a_server_that_cannot_start_says_so_in_the_same_form():
    """A mistake in the settings that shows once they are read: one object, status 2."""
    with (
        pytest.raises(RuntimeError) as failed,
        launch("--log-format", "json", "--method", "tenth"),
    ):
        pass
    _, *said = str(failed.value).splitlines()
    loading, line = map(json.loads, said)
    assert (loading["level"], line["level"]) == ("info", "critical")
    assert "tenth" in line["message"]
