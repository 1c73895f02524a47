"""What a stranger can hold of us has a limit in count and in time."""

import contextlib
import resource
import socket
import time
from pathlib import Path

import pytest

from service import connection as module
from service import server
from tests.fixtures.wire import connect, read, status_of, talk

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSED = 'ttc_connections_closed_total{{reason="{}"}}'


@pytest.fixture(scope="module")
def hasty(serve):
    """A server that waits for a fifth of a second only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "KEEP_ALIVE_SECONDS", 0.4)
        patch.setattr(module, "SEND_SECONDS", 0.4)
        patch.setattr(module, "LINGER_SECONDS", 0.2)
        with serve(method="source", receive_timeout=0.2) as running:
            running.http.headers["Connection"] = "close"  # a kept one would be closed under us
            yield running


@pytest.mark.parametrize(
    ("begun", "reason", "status"),
    [
        pytest.param(b"", "silent", None, id="nothing"),
        pytest.param(b"\r\n", "silent", None, id="empty-lines"),
        pytest.param(b"GET /heal", "slow", 408, id="half-a-line"),
        pytest.param(HEALTH[:-2], "slow", 408, id="half-a-head"),
        pytest.param(HEALTH + b"POST /reset HT", "slow", 200, id="half-a-second-head"),
        pytest.param(
            b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf",
            "slow",
            404,
            id="half-a-body-that-nobody-reads",
        ),
    ],
)
def test_a_connection_that_falls_silent_is_closed(hasty, begun, reason, status):
    """Whatever it has sent before; it is counted, and told why where it began to ask."""
    before = hasty.metric(CLOSED.format(reason))
    answer = talk(hasty.url, begun)
    assert (status_of(answer) if answer else None) == status
    hasty.wait_for(lambda: hasty.metric(CLOSED.format(reason)) == before + 1)
    assert any(each["event"] == "connection_closed" for each in hasty.status()["events"])


@pytest.mark.parametrize(
    "bit", [b"a", b"X: a\r\n", b"\r\n"], ids=["letters", "headers", "empty-lines"]
)
def test_bytes_that_dribble_do_not_keep_a_connection(hasty, bit):
    """The limit is that of the whole request, not of the time between two bytes."""
    with connect(hasty.url) as connection:
        deadline = time.monotonic() + 20
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"" if bit == b"\r\n" else HEALTH[:-2])
            while time.monotonic() < deadline:
                connection.sendall(bit)
                time.sleep(0.05)
        assert time.monotonic() < deadline


def test_an_idle_connection_ends_after_its_answer(hasty):
    """Also if empty lines, which HTTP ignores, keep coming."""
    with connect(hasty.url) as connection:
        connection.sendall(HEALTH)
        assert status_of(read(connection, until=b"alive")) == 200
        deadline = time.monotonic() + 20
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < deadline:
                connection.sendall(b"\r\n")
                time.sleep(0.05)
        assert time.monotonic() < deadline


def test_an_answer_that_nobody_reads_is_given_up(hasty):
    """A client that asks and asks and reads nothing; the answers are more than buffers hold."""
    before = hasty.metric(CLOSED.format("unread"))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = hasty.url.removeprefix("http://").split(":")
        connection.connect((host, int(port)))
        connection.settimeout(0.5)
        answered = 'ttc_http_requests_total{code="200",method="GET",route="/openapi.json"}'
        asked = first = hasty.metric(answered) if answered in hasty.http.get("/metrics").text else 0

        def given_up():
            nonlocal asked
            if asked == first or hasty.metric(answered) == asked:
                with contextlib.suppress(TimeoutError, ConnectionError):
                    connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 8)
                asked += 8
            return hasty.metric(CLOSED.format("unread")) == before + 1

        hasty.wait_for(given_up)


def test_a_slow_upload_within_its_time_is_answered(serve, pictures):
    """The limits meet strangers, not cameras on a poor line."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: "
    with serve(method="source") as running, connect(running.url) as connection:
        for part in (head, b"%d\r\n\r\n" % len(pictures[0]), pictures[0][:9], pictures[0][9:]):
            time.sleep(0.05)
            connection.sendall(part)
        assert status_of(read(connection)) == 200


@pytest.mark.parametrize("count", [module.MOST_WAITING + 1, module.MOST_WAITING + 2, 20_000])
def test_requests_that_wait_for_answers_before_theirs_are_few(source_server, count):
    """Else one connection makes us hold whatever it sends. Those few have their answers."""
    last = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answered = talk(source_server.url, HEALTH * (count - 1) + last).count(b"HTTP/1.1 200")
    assert answered <= module.MOST_WAITING + 1
    if count < 20:  # else the end may overtake them: the client is still sending
        assert answered == module.MOST_WAITING + 1


def test_a_body_behind_requests_that_wait_is_left_to_the_client(serve, held, pictures):
    """No memory is set aside for it before its turn; then it is read and answered."""
    source, gates = held("ttc")
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    with serve(source=source, method="ttc") as running, connect(running.url) as connection:
        gates.adapt.clear()
        for image in pictures[:2]:
            connection.sendall(head % len(image) + image)
        connection.sendall(head % 9000)
        running.wait_for(lambda: running.metric("ttc_queue_images") == 1)  # the first is answered
        running.wait_for(lambda: _unread(connection) == 0)
        connection.sendall(bytes(9000))
        assert running.status()["ready"]
        assert _unread(connection) == 9000
        gates.open()
        assert b"\r\n\r\n" in read(connection, until=b"HTTP/1.1 400")


def _unread(connection):
    """The bytes that the server's system has taken and the server has not (proc(5))."""
    ours, theirs = (
        f":{each()[1]:04X}" for each in (connection.getpeername, connection.getsockname)
    )
    for line in Path("/proc/net/tcp").read_text().splitlines():
        local, remote, _, queues = line.split()[1:5]
        if local.endswith(ours) and remote.endswith(theirs):
            return int(queues.partition(":")[2], 16)
    raise AssertionError


def test_whoever_sends_no_more_still_gets_the_answer(serve, held, pictures):
    """Half-closing, as `nc -N` does, is allowed; whoever has gone altogether takes no place."""
    source, gates = held("source")
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    with serve(source=source, method="source") as running, connect(running.url) as connection:
        gates.predict.clear()
        gates.predicting.clear()
        connection.sendall(head % len(pictures[0]) + pictures[0])
        connection.shutdown(socket.SHUT_WR)
        assert gates.predicting.wait(60)
        with connect(running.url) as gone:
            gone.sendall(head % len(pictures[1]) + pictures[1])
            running.wait_for(lambda: running.metric("ttc_queue_images") == 1)
        running.wait_for(lambda: running.metric("ttc_cancelled_images_total") == 1)
        gates.open()
        interim, answer = read(connection).split(b"\r\n\r\n", 1)  # until the server closes
        assert status_of(interim) == 100
        assert status_of(answer) == 200
        assert running.at_rest()["counters"]["images_total"] == 1


def test_the_oldest_silent_connection_makes_room(serve):
    """One more than --max-connections is taken, and health is answered however many are silent."""
    with serve(method="source", max_connections=8) as running, contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(running.url)) for _ in range(40)]
        for number, each in enumerate(held):
            with contextlib.suppress(ConnectionError):
                if number % 2:
                    each.sendall(HEALTH[:-2])
        assert status_of(talk(running.url, HEALTH, until=b"alive")) == 200
        assert running.metric(CLOSED.format("crowded")) >= 32
        assert read(held[0]) == b""  # the oldest is gone


def test_connections_at_work_stay_and_health_is_answered_beside_them(serve, held, pictures):
    """Where nobody is silent, others are told to come back; none loses its answer."""
    source, gates = held("source")
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    request = head % len(pictures[0]) + pictures[0]
    with (
        serve(source=source, method="source", max_connections=2) as running,
        contextlib.ExitStack() as stack,
    ):
        running.http.close()  # it is a connection too
        gates.predict.clear()
        try:
            working = [stack.enter_context(connect(running.url)) for _ in range(2)]
            for each in working:
                each.sendall(request)
            queue = running.service.batcher
            running.wait_for(lambda: queue.waiting_images + gates.images == 2)
            assert status_of(talk(running.url, HEALTH, until=b"alive")) == 200
            status = HEALTH.replace(b"healthz", b"status")
            refused = talk(running.url, status)
            assert status_of(refused) == 503
            assert b"retry-after: 1" in refused.lower()
        finally:
            gates.open()
        assert [status_of(read(each)) for each in working] == [200, 200]


@pytest.mark.parametrize(
    ("soft", "hard", "kept"), [(4096, 4096, 1000), (200, 4096, 1000), (200, 200, None)]
)
def test_connections_stay_below_the_descriptors(monkeypatch, caplog, soft, hard, kept):
    """The soft limit is raised if it may be; else there are fewer, and the log says so."""
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.append(both))
    most = server.most_connections(1000)
    if kept is None:
        assert 1 <= most < 200 - server.SPARE_DESCRIPTORS
        assert "ulimit -n" in caplog.text
    else:
        assert most == kept
        assert limits[-1][0] > 1000
