"""Log lines are one line each, in either form, whatever strangers send; events are never lost."""

import asyncio
import contextvars
import json
import logging
import subprocess
import sys
import warnings

import pytest
from prometheus_client import CollectorRegistry

from service import events, logs, tracing
from service.intake import NOTES
from service.metrics import Metrics
from service.middleware import MOST_PATH_CHARACTERS, RequestContext

FORMS = ("text", "json")
# Each ends a line, moves the cursor, colours, or turns the reading direction in some program.
NASTY = "a\nINFO forged\r\x1b[31m\x00\x7f\x85\x9b2J\u2028\u202eb\udc80"


def line(log_format, message="said", *arguments, level=logging.INFO, error=None, **fields):
    """One record as a line."""
    given = error and (type(error), error, error.__traceback__)
    record = logging.LogRecord("service.x", level, __file__, 1, message, arguments, given)
    if fields:
        record.fields = fields
    return logs.formatter(log_format).format(record)


def raised(text):
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


# The form of a line


def test_a_json_line_has_time_level_logger_message_and_fields():
    """Time is ISO 8601 in UTC."""
    said = json.loads(line("json", "%d of %d", 1, 2, level=logging.WARNING, stream="gate", n=3))
    assert said.pop("time").endswith("Z")
    assert said == {
        "level": "warning",
        "logger": "service.x",
        "message": "1 of 2",
        "stream": "gate",
        "n": 3,
    }


def test_a_text_line_reads_time_level_message_then_fields():
    """What holds blanks is quoted; the kind of an event is not said twice."""
    said = line("text", "reset", event="reset", stream="gate", why='a "b"', versions={"a": 1})
    assert said.split(" ", 1)[1] == r'INFO reset stream=gate why="a \"b\"" versions={"a": 1}'


@pytest.mark.parametrize("log_format", FORMS)
def test_nobody_forges_a_line(log_format):
    """In a message, a field, an error: whatever ends a line is escaped, or set in below it."""
    said = line(log_format, "got %s", NASTY, error=raised(NASTY), path=NASTY)
    assert all(character.isprintable() or character == "\n" for character in said)
    first, *more = said.split("\n")
    assert first.startswith("{" if log_format == "json" else "2")
    assert all(text.startswith("    ") for text in more)
    assert (log_format == "text") == bool(more)


def test_an_error_in_json_stays_on_its_line():
    """The traceback is a field."""
    said = json.loads(line("json", error=raised("two\nlines")))
    assert said["exception"].startswith("Traceback (most recent call last)")
    assert said["exception"].endswith("ValueError: two\nlines")


@pytest.mark.parametrize("log_format", FORMS)
def test_lines_do_not_grow_without_bound(log_format):
    """Message, fields and tracebacks are cut in the middle; both their ends tell."""
    said = line(log_format, "a" * 10**6, error=raised("x" * 10**6 + "end"), field="b" * 10**6)
    assert len(said) < 2 * logs.MOST_CHARACTERS + logs.MOST_TRACE_CHARACTERS + 500
    assert "end" in said


@pytest.mark.parametrize(
    "value", [float("nan"), {"x": float("inf")}, {1, 2}, object(), b"x", {(1, 2): 3}]
)
def test_any_value_makes_a_line_that_strict_json_reads(value):
    """NaN is no JSON; what JSON cannot hold is told as text."""

    def refuse(name):
        raise ValueError(name)

    assert "value" in json.loads(line("json", value=value), parse_constant=refuse)
    assert "value=" in line("text", value=value)


def test_a_line_names_the_request_or_those_of_the_batch():
    """One id is `request_id`, several are a list of at most MOST_IDS."""
    assert "request_id" not in line("json")
    contexts = []
    for number in range(tracing.MOST_IDS + 5):
        with tracing.request(f"r{number}", {}):
            contexts.append(contextvars.copy_context())
            assert json.loads(line("json"))["request_id"] == f"r{number}"
    with tracing.batch(contexts[:1], streams=["s"], images=1, reason="full"):
        assert json.loads(line("json"))["request_id"] == "r0"
        assert "request_id=r0" in line("text")
    with tracing.batch(contexts, streams=["s"], images=25, reason="full"):
        said = json.loads(line("json"))
        assert said["request_ids"] == [f"r{number}" for number in range(tracing.MOST_IDS)]
        assert "request_id" not in said
    assert "request" not in line("text")


MISHAPS = """
import logging, sys, threading, warnings
from service import logs
logs.configure(sys.argv[1])
warnings.warn("odd\\nvalue")
logging.getLogger("uvicorn.error").info("Started", extra={"color_message": "\\x1b[1m"})
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise KeyError("last")
"""


@pytest.mark.parametrize("log_format", FORMS)
def test_warnings_other_loggers_and_mistakes_come_in_the_same_form(log_format):
    """All on standard output, nothing beside it; the exit status is Python's."""
    done = subprocess.run(
        [sys.executable, "-c", MISHAPS, log_format], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, "")
    lines = [text for text in done.stdout.splitlines() if not text.startswith("    ")]
    assert len(lines) == 4
    if log_format == "json":
        said = [json.loads(text) for text in lines]
        assert [entry["logger"] for entry in said] == [
            *("py.warnings", "uvicorn.error", "service.logs", "service.logs"),
        ]
        assert "color_message" not in said[1]
        assert [
            "ZeroDivisionError" in said[2]["exception"],
            "KeyError" in said[3]["exception"],
        ] == ([True, True])


LINES = """
import asyncio, logging, os, sys
from service import logs
class Written(type(sys.stdout)):
    def write(self, text):
        os.write(2, b"%d " % text.count("\\n"))
        return super().write(text)
sys.stdout = Written(open(1, "wb", closefd=False))
logs.configure("text")
log, access = logging.getLogger("service"), logging.getLogger("service.access")
async def turns():
    for number in range(3):
        access.info("a"), access.info("b")
        await asyncio.sleep(0)
    access.info("c")
    log.{last}("d")
    {end}
access.info("before")
asyncio.run(turns())
"""


@pytest.mark.parametrize("last", ["info", "warning"])
@pytest.mark.parametrize("end", ["pass", "os._exit(0)"])
def test_lines_of_a_turn_are_written_together_and_none_is_lost(last, end):
    """Requests' lines; any other at once, and in order, though the process dies in that turn."""
    code = LINES.replace("{last}", last).replace("{end}", end)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stderr.split() == [*"12222"]
    said = [line.split()[2] for line in ended.stdout.splitlines()]
    assert said == ["before", *"ababab", "c", "d"]


def test_a_process_that_logs_already_keeps_its_own_form():
    """Here pytest's handlers are there: nothing is replaced."""
    before = logging.getLogger().handlers[:]
    hook = sys.excepthook
    logs.configure("json")
    assert logging.getLogger().handlers == before
    assert sys.excepthook is hook
    assert warnings.showwarning.__module__ != "logging"


# The line of a request


class Asked:
    """Requests through the middleware to an application of a few lines, and their log lines."""

    def __init__(self, caplog, status=200, notes=None, error=None):
        async def app(scope, receive, send):
            if notes:
                scope[NOTES] = notes
            if error:
                raise error
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        self._caplog = caplog
        self._app = RequestContext(app, Metrics(CollectorRegistry(), classes=10, model={}))

    def lines(self, path="/predict", headers=(), method="POST"):
        """The access lines of one request, as JSON objects."""
        formatter = logs.formatter("json")
        written = []

        class Writer(logging.Handler):
            def emit(self, record):  # in the request's context, as a real one
                written.append(json.loads(formatter.format(record)))

        async def nothing(message=None):
            return {"type": "http.request", "body": b"", "more_body": False}

        raw = [(name.encode(), text.encode("latin-1")) for name, text in headers]
        scope = {"type": "http", "method": method, "path": path, "headers": raw}
        logger, writer = logging.getLogger("service"), Writer()
        logger.addHandler(writer)
        try:
            with self._caplog.at_level(logging.INFO):
                asyncio.run(self._app(scope, nothing, nothing))
        finally:
            logger.removeHandler(writer)
        return [entry for entry in written if entry["logger"] == "service.access"]


def test_a_request_is_one_line_with_all_that_is_known_of_it(caplog):
    """Method, path, status, seconds, id, and the stream and images if it got that far."""
    asked = Asked(caplog, notes={"stream": "gate", "images": 3})
    (said,) = asked.lines(headers=[("x-request-id", "camera-7.frame:19")])
    assert 0 <= said.pop("seconds") < 5
    assert (said.pop("level"), bool(said.pop("time"))) == ("info", True)
    assert said == {
        "logger": "service.access",
        "message": "request",
        "method": "POST",
        "path": "/predict",
        "status": 200,
        "stream": "gate",
        "images": 3,
        "request_id": "camera-7.frame:19",
    }


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_what_machines_ask_every_few_seconds_is_left_out(caplog, path):
    """They have their metrics."""
    assert Asked(caplog).lines(path, method="GET") == []


def test_a_request_that_failed_has_its_line_too(caplog):
    """With 500 beside the traceback's line, which has the same id."""
    (said,) = Asked(caplog, error=RuntimeError("broken")).lines()
    assert said["status"] == 500


@pytest.mark.parametrize("path", [f"/{NASTY}", "/a b=c"])
def test_a_path_is_logged_as_it_came_over_the_wire(caplog, path):
    """Percent-encoded: it can neither end a line nor pass for a field."""
    (said,) = Asked(caplog).lines(path)
    assert said["path"].isascii()
    assert said["path"].isprintable()
    assert not set(said["path"]) & set(' "=\\')


def test_a_path_and_a_method_have_a_longest_length(caplog):
    """Whoever sends a megabyte fills no disk."""
    (said,) = Asked(caplog).lines("/é" * 10**5, method="BREW" * 1000)
    assert len(said["path"]) <= 6 * MOST_PATH_CHARACTERS
    assert said["method"] == "other"


@pytest.mark.parametrize("given", ["x" * 65, "a b", 'a"b', "a\tb", "é", "a\\nb"])
def test_a_malformed_request_id_is_never_logged(caplog, given):
    """Letters, digits and . _ : - up to 64 characters; anything else is replaced."""
    (said,) = Asked(caplog).lines(headers=[("x-request-id", given)])
    assert len(said["request_id"]) == 16
    assert said["request_id"].isalnum()


# Events


@pytest.fixture
def noted(caplog):
    """Events, and the fields of the lines they wrote."""
    caplog.set_level(logging.INFO)
    kept = events.Events()
    return kept, lambda: [record.fields for record in caplog.records]


def test_an_event_is_kept_and_logged_once(noted):
    """The same fields in both; the request's id is in the entry, as it is in the line."""
    kept, lines = noted
    with tracing.request("r1", {}):
        kept.note("reset", stream="gate", reason="request")
    (entry,) = kept
    assert entry.pop("time") > 0
    assert entry == {
        "event": "reset",
        "stream": "gate",
        "reason": "request",
        "request_id": "r1",
    }
    assert lines() == [{"event": "reset", "stream": "gate", "reason": "request"}]


def test_an_error_comes_with_its_trace(noted, caplog):
    """On the event's own line, at its level."""
    noted[0].note("adaptation_failed", level=logging.ERROR, error=raised("x"), reason="x")
    (record,) = caplog.records
    assert (record.levelname, record.exc_info[0]) == ("ERROR", ValueError)


def test_only_the_latest_events_are_kept(noted):
    """Memory is bounded."""
    kept, _ = noted
    for number in range(events.EVENTS_KEPT + 10):
        kept.note("reset", number=number)
    assert [entry["number"] for entry in kept] == list(range(10, events.EVENTS_KEPT + 10))


def test_what_repeats_is_counted_and_logged_once_a_minute(noted, monkeypatch):
    """The counts of the entries and those of the lines both add up to what happened."""
    kept, lines = noted
    now = 1000.0
    monkeypatch.setattr(events.time, "monotonic", lambda: now)

    def skip(times, stream="gate", reason="none_selected"):
        for _ in range(times):
            kept.note_repeated("skipped", stream=stream, reason=reason)

    skip(40)
    skip(3, stream="yard")
    skip(2, reason="non_finite")
    assert [entry["count"] for entry in kept] == [40, 3, 2]
    assert [fields["count"] for fields in lines()] == [1, 1, 1]
    now += events.REPEAT_SECONDS
    skip(5)
    assert [entry["count"] for entry in kept] == [40, 3, 2, 5]
    assert [fields["count"] for fields in lines()] == [1, 1, 1, 40]
    now += events.REPEAT_SECONDS
    skip(1)
    assert lines()[-1]["count"] == 5


def test_streams_that_come_and_go_leave_nothing_behind(noted, monkeypatch):
    """What has not repeated for a minute is forgotten."""
    kept, _ = noted
    now = 0.0
    monkeypatch.setattr(events.time, "monotonic", lambda: now)
    for number in range(10 * events.MOST_REPEATED):
        now += 1.0
        kept.note_repeated("skipped", stream=str(number), reason="none_selected")
    assert len(kept._repeated) <= events.MOST_REPEATED
