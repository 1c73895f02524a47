"""One client's connection: a limit in count and time on all that a stranger can hold of us.

uvicorn parses with httptools and runs the application. Here is what it leaves open: heads without
an end, connections that fall silent, answers nobody reads, offers of another protocol, and a
problem document where the bytes are no HTTP.
"""

import logging
import re
import socket
from collections.abc import Callable, Sized
from typing import Any, Protocol
from urllib.parse import urlsplit

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service import problems
from service.errors import HeadTooLarge, ReceiveTimeout, Refused, UnknownCoding, Unreadable
from service.events import Events
from service.live.readers import Live
from service.metrics import Metrics
from service.middleware import CROWDED, ENDLESS, request_id_of
from service.settings import Settings

log = logging.getLogger(__name__)

MOST_HEAD_BYTES = 64 << 10
# Above the idle time of common load balancers, so that they close connections, not we.
KEEP_ALIVE_SECONDS = 75
# For an answer to be taken whole.
SEND_SECONDS = 60.0
# How long a refused client is listened to: closing at once would destroy the answer on its way.
LINGER_SECONDS = 2.0
CHECK_SECONDS = 1.0
# Requests that wait for the answers before theirs: each is held as it was parsed.
MOST_WAITING = 16
# How often a client that sends no more is looked for while its answer is due.
PRESENCE_SECONDS = 0.1
# Beyond the limit, for those that ask for health or metrics.
SPARE_CONNECTIONS = 16
_HOST = re.compile(rb"(\[[0-9A-Za-z:.%]+\]|[0-9A-Za-z._~%!$&'()*+;=-]*)(:[0-9]{0,5})?")
# What a client says when it offers another protocol.
_OFFERS = (b"upgrade", b"http2-settings")


class Served(Protocol):
    """What a server needs to know of what it serves."""

    settings: Settings
    metrics: Metrics
    live: Live

    @property
    def events(self) -> Events: ...


class _OneAtATime(FlowControl):
    """Reads nothing more while requests wait that have been read already."""

    def __init__(self, transport: Any, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """uvicorn's protocol within limits.

    Args:
        service: what runs.
        most: connections at a time. One more has the longest silent one closed; where all are
            being answered it may ask for health and metrics only.
    """

    def __init__(self, *, service: Callable[[], Served], most: int, **given: Any) -> None:
        super().__init__(**given)
        self._service, self._most = service(), most
        self._since = self._all_sent = self.loop.time()
        self._in_message = self._in_head = self._moved = self._refused = False
        self._head_bytes = self._stray_bytes = self._unsent_bytes = 0

    # Limits

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow = _OneAtATime(transport, self.pipeline)
        self._since = self._all_sent = self.loop.time()
        self._make_room()
        self._watch()

    @property
    def _is_answered(self) -> bool:
        """Whether a request that arrived whole has no answer yet: it is our turn."""
        cycle = self.cycle
        return bool(self.pipeline) or not (
            cycle is None or cycle.response_complete or cycle.more_body
        )

    @property
    def _others(self) -> "list[Connection]":
        return [
            each for each in self.connections if isinstance(each, Connection) and each is not self
        ]

    def _make_room(self) -> None:
        if len(self.connections) <= self._most:
            return
        others = self._others
        silent = [each for each in others if not each._is_answered]
        crowd = len(others) + 1 > self._most + SPARE_CONNECTIONS
        if silent and (crowd or len(others) - len(silent) < self._most):
            min(silent, key=lambda each: each._since)._end("crowded")

    def _watch(self) -> None:
        """Look every moment whether the client has kept us waiting for too long."""
        if self.parser is None:
            return  # closed
        receive_timeout = self._service.settings.receive_timeout
        self.loop.call_later(min(CHECK_SECONDS, receive_timeout / 4), self._watch)
        now = self.loop.time()
        endless = self.cycle is not None and self.cycle.scope.get(ENDLESS, False)
        before, self._unsent_bytes = self._unsent_bytes, self.transport.get_write_buffer_size()
        # Of what has no end there may always be more: whoever takes some of it is reading.
        if self._unsent_bytes == 0 or (endless and self._unsent_bytes < before):
            self._all_sent = now
        waited = now - self._since
        is_over = endless and self._service.live.ended
        if now - self._all_sent > (LINGER_SECONDS if is_over else SEND_SECONDS):
            self._end("unread")
        elif self._refused:
            if waited > LINGER_SECONDS and not self._is_answered:
                self.transport.abort()
        elif self.pipeline or not (self.cycle is None or self.cycle.response_complete):
            pass  # the application's limits hold
        elif self._in_message:
            if waited > receive_timeout:
                if self._in_head:
                    self._refuse(
                        ReceiveTimeout(
                            f"The request did not arrive whole in {receive_timeout:g} seconds."
                        )
                    )
                    self._count("slow")
                else:
                    self._end("slow")
        elif self.cycle is None:
            if waited > receive_timeout:
                self._end("silent")
        elif waited > KEEP_ALIVE_SECONDS:
            self.transport.close()

    def _end(self, reason: str) -> None:
        self.transport.abort()  # closing would wait for whatever it has not read
        self._count(reason)

    def _count(self, reason: str) -> None:
        self._service.metrics.connections_closed.labels(reason).inc()
        self._service.events.note_repeated("connection_closed", reason=reason)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks for one
        """Whoever sends no more still gets the answers that are due; then the connection ends."""
        cycle = self.cycle
        if not self._is_answered or cycle.more_body or cycle.scope["http_version"] == "1.0":
            return False
        cycle.keep_alive = False
        if not (self.pipeline or cycle.response_started):
            # Whoever has gone altogether looks the same, until something is sent: its system then
            # resets the connection. This is ignored by all others (RFC 9110 §15.2), but unknown to
            # HTTP/1.0.
            self.transport.write(STATUS_LINE[100] + b"\r\n")
            self._see_whether_gone()
        return True

    def _see_whether_gone(self) -> None:
        if self.parser is None:
            return  # closed
        client = self.transport.get_extra_info("socket")
        if client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(PRESENCE_SECONDS, self._see_whether_gone)

    # Parsing

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._refused:
            return
        self._moved = False
        while data:
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as offer:
                data = self._head_without_offer() + data[offer.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn
            except httptools.HttpParserError as error:
                cause = error.__context__
                self._refuse(
                    cause
                    if isinstance(cause, Refused)
                    else Unreadable("The request is not HTTP/1.1 as RFC 9112 has it.")
                )
                return
        # What brought neither a head's end nor a part of a body, the parser still holds.
        self._stray_bytes = 0 if self._moved else self._stray_bytes + len(data)
        if self._stray_bytes > MOST_HEAD_BYTES:
            self._refuse(_head_too_large())

    def _head_without_offer(self) -> bytes:
        """The head just parsed, as of a client that speaks HTTP/1.1 alone (RFC 9110 §7.8)."""
        version = self.parser.get_http_version().encode()
        lines = [b" ".join((self.parser.get_method(), self.url, b"HTTP/" + version))]
        lines += [
            name + b": " + value
            for name, value in self.headers
            if name not in _OFFERS and name != b"connection"
        ]
        if not self.parser.should_keep_alive():
            lines.append(b"connection: close")
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_message = self._in_head = self._moved = True
        self._head_bytes = 0
        self._since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)  # first: a refusal is told in the form of the path
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + len(b": \r\n"))
        if self._in_head:  # a trailer is no header: the application has read those already
            super().on_header(name, value)

    def _count_head(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > MOST_HEAD_BYTES:
            raise _head_too_large()

    def on_headers_complete(self) -> None:
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise Unreadable("CONNECT is for proxies, and this is none.")
        if self.parser.should_upgrade():
            return  # to be parsed again
        self._in_head, self._moved = False, True
        if len(self.pipeline) >= MOST_WAITING:
            raise Unreadable(f"More than {MOST_WAITING} requests wait for answers before theirs.")
        self._check_protocol()
        self._check_host()
        if self.url == b"*":
            self.url = b"/*"
        elif not self.url.startswith(b"/"):  # the absolute form, which may lack the path
            parsed = httptools.parse_url(self.url)
            self.url = (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b"")
        if len(self.connections) > self._most:
            answered = sum(each._is_answered for each in self._others)
            self.scope["state"][CROWDED] = answered >= self._most
        super().on_headers_complete()

    def _check_protocol(self) -> None:
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise Unreadable(f"The request is HTTP/{version}; HTTP/1.0 and HTTP/1.1 are accepted.")
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if codings and [each.lower() for each in codings] != [b"chunked"]:
            came = b", ".join(codings)[:100].decode("latin-1")
            raise UnknownCoding(f"The transfer coding {came!r} is not known; chunked is accepted.")

    def _check_host(self) -> None:
        """RFC 9112 §3.2: whom the request is for is said once, and it is a host."""
        hosts = [value for name, value in self.headers if name == b"host"]
        if not hosts and self.parser.get_http_version() == "1.0":
            return
        if len(hosts) != 1 or not _is_host(hosts[0]):
            came = b", ".join(hosts)[:100].decode("latin-1")
            raise Unreadable(
                f"A request has one Host header, with a name or an address; got {came!r}."
            )

    def on_body(self, body: bytes) -> None:
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_message, self._moved = False, True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    # Refusing what never becomes a request

    def _refuse(self, error: Refused) -> None:
        """Answer bytes that are no request, and listen no more."""
        cycle = self.cycle
        self._refused = True
        self._since = self.loop.time()
        if self._is_answered:
            # It came behind a request that gets its answer first; then the connection ends.
            cycle.keep_alive = False
            self.transport.resume_reading()  # bytes left unread would destroy answers on their way
            return
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.abort()
                return
        given = dict(self.headers or ()).get(b"x-request-id", b"")
        request_id = request_id_of(given.decode("latin-1"))
        path = _path_of(self.url or b"")
        root_path = self._service.settings.root_path or ""
        ours = problems.path_in({"path": path, "root_path": root_path})
        response = problems.refusal(error, request_id, problems.form_of(ours))
        response.headers["X-Request-Id"] = request_id
        response.headers["Cache-Control"] = "no-store"
        response.headers["Connection"] = "close"
        head = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
        self.transport.write(
            STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body)
        )
        if self.transport.can_write_eof():
            self.transport.write_eof()
        status = str(response.status_code)
        self._service.metrics.requests.labels("other", "other", status).inc()
        fields = {"status": response.status_code, "request_id": request_id, "reason": str(error)}
        log.info("no request", extra={"fields": fields})


def _path_of(url: bytes) -> str:
    """The path of a URL, of what has arrived of it; "" where that is none."""
    if not url.startswith(b"/"):  # the absolute form
        url = b"/" + url.partition(b"://")[2].partition(b"/")[2]
    return url.partition(b"?")[0].decode("latin-1")


def _is_host(text: bytes) -> bool:
    try:
        urlsplit(b"//" + text)  # whoever asks for the request's URL does so, and it may raise
    except ValueError:
        return False
    return bool(_HOST.fullmatch(text))


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(
        f"The request line and headers have more than {MOST_HEAD_BYTES:,} bytes, the most accepted."
    )
