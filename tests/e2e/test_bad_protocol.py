"""Whatever bytes reach the port of a real server process, HTTP or not: answered or hung up on."""

import contextlib
import socket

import pytest

from tests.fixtures.forked import launch
from tests.fixtures.requests import problem


@pytest.fixture(scope="module")
def server():
    """One process for the whole file: what one test does to it, the others would see."""
    with launch("--method", "source", "--device", "cpu", "--threads", "1") as launched:
        yield launched


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/predict/", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%00", 404),
        ("GET", "/predict", 405),
        ("DELETE", "/predict", 405),
        ("POST", "/status", 405),
        ("PUT", "/reset", 405),
    ],
)
def test_unknown_routes_and_methods_are_problems_too(http, method, path, status):
    """Not only what a route refuses: the client reads one kind of document."""
    response = http.request(method, path)
    document = problem(response, status)
    assert document["title"] in ("Not Found", "Method Not Allowed")
    if status == 405:
        assert response.headers["Allow"]


def test_the_request_id_of_the_client_is_in_the_problem(http):
    """So that both sides speak of the same request."""
    headers = {"X-Request-Id": "camera-7.frame:19"}
    assert (
        problem(http.get("/nowhere", headers=headers), 404)["request_id"] == headers["X-Request-Id"]
    )


def send_raw(server, text):
    """Send bytes as they are; return what comes back until the server closes or is silent."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            while part := connection.recv(65536):
                received += part
        return received


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", (b"400", b""), id="tls"),
        pytest.param(b"NONSENSE\r\n\r\n", (b"400",), id="no-http"),
        pytest.param(b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", (b"400", b"404", b"505"), id="version"),
        pytest.param(
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 300_000 + b"\r\n\r\n",
            (b"200", b"400", b"431"),
            id="long-header",
        ),
        pytest.param(
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
            + b"".join(b"X-%d: 1\r\n" % n for n in range(5000))
            + b"Connection: close\r\n\r\n",
            (b"200", b"400", b"431"),
            id="many-headers",
        ),
        pytest.param(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
            (b"400",),
            id="negative-length",
        ),
        pytest.param(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            (b"400",),
            id="two-lengths",
        ),
        pytest.param(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            (b"400", b""),
            id="bad-chunk",
        ),
        pytest.param(
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: \xff\xfe\r\n"
            b"Connection: close\r\n\r\n",
            (b"200",),
            id="bytes-in-a-header",
        ),
        pytest.param(b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n", (b"400",), id="http-2"),
        pytest.param(b"GET /healthz HTTP/0.9\r\nHost: x\r\n\r\n", (b"400",), id="http-0.9"),
        pytest.param(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
            b"0\r\n\r\n",
            (b"501",),
            id="unknown-coding",
        ),
        pytest.param(
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n"
            b"Connection: close\r\n\r\n0\r\n\r\n",
            (b"200",),
            id="known-coding",
        ),
    ],
)
def test_abuse_of_the_protocol_is_answered_or_hung_up_on(server, http, text, answers):
    """Never a 500, never a hang, and the next client is served."""
    received = send_raw(server, text)
    status = received.split(b" ")[1] if received else b""
    assert status in answers, received[:200]
    assert http.get("/healthz").status_code == 200
