"""The form of every log line: text to read, or one JSON object.

Modules call `logging` as ever; with `extra={"fields": {…}}` a line has fields of its own. A line
stays one line whatever a stranger sent: control characters are escaped, texts are cut.
"""

import asyncio
import contextlib
import io
import json
import logging
import os
import sys
import threading
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from service import tracing

LogFormat = Literal["text", "json"]

MOST_CHARACTERS = 2000
MOST_TRACE_CHARACTERS = 20_000

log = logging.getLogger(__name__)
# Whose lines are one a request.
ACCESS = "service.access"


def configure(log_format: LogFormat) -> None:
    """Have every line of this process, whoever writes it, come in one form on standard output."""
    if logging.getLogger().handlers:
        return  # somebody who runs the command in a process of theirs has chosen already
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = _Lines(sys.stdout)
    handler.setFormatter(formatter(log_format))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sys.excepthook = lambda *error: log.critical("ended by a mistake of ours", exc_info=error)
    threading.excepthook = lambda ended: log.error(
        "a thread ended by a mistake of ours",
        exc_info=(ended.exc_type, ended.exc_value or ended.exc_type(), ended.exc_traceback),
    )


class _Lines(logging.StreamHandler[TextIO]):
    """Lines for a reader who may go away: the service goes on without one.

    Those of the requests that one turn of an event loop answers are written together, at its end:
    with every write it lets other threads run, and waits for them. Any other line is written at
    once, and what waits before it.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._waiting: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._waiting.append(self.format(record) + self.terminator)
            if record.name == ACCESS and record.levelno < logging.WARNING:
                with contextlib.suppress(RuntimeError):  # no loop runs in this thread
                    loop = asyncio.get_running_loop()
                    if len(self._waiting) == 1:
                        loop.call_soon(self.flush)
                    return
            self.flush()
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        self.acquire()
        try:
            lines, self._waiting = self._waiting, []
            if lines:
                self.stream.write("".join(lines))
            super().flush()
        except BrokenPipeError:
            self._let_go()
        finally:
            self.release()

    def handleError(self, record: logging.LogRecord) -> None:
        """A line that cannot be written is lost."""

    def _let_go(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def formatter(log_format: LogFormat) -> logging.Formatter:
    """What turns records into lines."""
    return _JsonLines() if log_format == "json" else _TextLines()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        try:
            return json.dumps(fields, default=str, allow_nan=False)
        except (TypeError, ValueError):  # NaN, which JSON has not, or a key that is no text
            return json.dumps({name: str(value) for name, value in fields.items()})


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        time, level, message, trace = (
            fields.pop(name, "") for name in ("time", "level", "message", "exception")
        )
        del fields["logger"]
        if fields.get("event") == message:
            del fields["event"]
        shown = [f"{name}={_quoted(value)}" for name, value in fields.items()]
        first, *more = map(_visible, message.splitlines() or [""])
        line = " ".join([time, level.upper(), first, *shown])
        # Set in, so that no text of an error can pass for a line of its own.
        return "\n    ".join([line, *more, *map(_visible, trace.splitlines())])


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    fields: dict[str, Any] = {
        "time": time.replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": _cut(record.getMessage()),
    }
    for name, value in getattr(record, "fields", {}).items():
        fields[name] = _cut(value) if isinstance(value, str) else value
    fields |= tracing.ids()
    trace_id = tracing.trace_id()
    if trace_id is not None:
        fields["trace_id"] = trace_id
    if record.exc_info and record.exc_info[0]:
        trace = logging.Formatter().formatException(record.exc_info)
        fields["exception"] = _cut(trace, MOST_TRACE_CHARACTERS)
    return fields


def _cut(text: str, most: int = MOST_CHARACTERS) -> str:
    # Both ends tell: how a sentence begins, and where a trace ends.
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def _quoted(value: object) -> str:
    """Write a field's value so that where it ends is plain."""
    if isinstance(value, str) and value and not any(character in value for character in ' "='):
        return _visible(value)
    try:
        return _visible(json.dumps(value, default=str, ensure_ascii=False))
    except (TypeError, ValueError):
        return _visible(json.dumps(str(value), ensure_ascii=False))


def _visible(text: str) -> str:
    """Escape what a terminal would obey, and whatever else could end or turn a line."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
