"""HTTP itself: offers of another protocol, HEAD, OPTIONS, Host, heads without end."""

import json

import pytest

from service.connection import MOST_HEAD_BYTES
from tests.fixtures.wire import status_of, talk

OFFER = (
    b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
)
GETS = ("/healthz", "/readyz", "/metrics", "/status", "/docs", "/docs/start.js", "/openapi.json")
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


def length(image):
    return b"Content-Length: %d\r\n\r\n" % len(image)


def chunked(image):
    return b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(image) + image + b"\r\n0\r\n\r\n"


OFFERS = {
    "whole": lambda image: [OFFER + length(image) + image],
    "head and body apart": lambda image: [OFFER + length(image), image],
    "byte by byte": lambda image: [bytes([byte]) for byte in OFFER + length(image)] + [image],
    "chunked": lambda image: [OFFER + chunked(image)],
    "expecting 100": lambda image: [OFFER + b"Expect: 100-continue\r\n" + length(image) + image],
    "websocket": lambda image: [
        OFFER.replace(b"h2c", b"websocket") + b"Sec-WebSocket-Key: a\r\n" + length(image) + image
    ],
    "odd letters and spaces": lambda image: [
        b"POST /predict HTTP/1.1\r\nhost:x\r\nuPGRADE:  foo , h2c \r\ncONNECTION:close,uPgrade\r\n"
        + length(image)
        + image
    ],
    "offered twice": lambda image: [OFFER + b"Upgrade: TLS/1.0\r\n" + length(image) + image],
}


@pytest.mark.parametrize("name", OFFERS)
def test_an_offer_of_another_protocol_is_answered_as_if_there_were_none(
    source_server, pictures, name
):
    """Java's default client and `curl --http2` offer HTTP/2 with every request."""
    answer = talk(source_server.url, *OFFERS[name](pictures[0]), until=b"]}")
    last = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert status_of(last) == 200
    plain = source_server.http.post("/predict", content=pictures[0]).json()
    assert json.loads(last.partition(b"\r\n\r\n")[2]) == plain


def test_a_connection_with_an_offer_goes_on(source_server, pictures):
    """The second request on it, sent at once, has its answer too, large bodies as well."""
    image = pictures[0] + bytes(300_000)
    one = OFFER + length(image) + image
    answer = talk(source_server.url, one + one + HEALTH + b"\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.count(b'"predictions"') == 2


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_a_body(source_server, path):
    """Probes ask so (`wget --spider`); the headers are those of GET."""
    head, get = source_server.http.head(path), source_server.http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    if path not in ("/metrics", "/status"):
        assert head.headers["Content-Length"] == get.headers["Content-Length"]
    assert source_server.http.head("/nowhere").status_code == 404
    assert source_server.http.head("/predict").status_code == 405


@pytest.mark.parametrize(
    ("path", "allowed"),
    [*((path, "GET, HEAD, OPTIONS") for path in GETS), ("/predict", "OPTIONS, POST")],
)
def test_options_and_405_say_what_is_allowed(source_server, path, allowed):
    """204 with Allow; a method that is not allowed is told the same."""
    options = source_server.http.options(path)
    assert (options.status_code, options.headers["Allow"]) == (204, allowed)
    for method in ("DELETE", "TRACE", "PATCH"):
        refused = source_server.http.request(method, path)
        assert (refused.status_code, refused.headers["Allow"]) == (405, allowed)
        assert refused.headers["Content-Type"] == "application/problem+json"
    assert source_server.http.options("/nowhere").status_code == 404


def test_every_answer_is_of_its_moment_and_has_an_id(source_server):
    """No cache may keep one, and each can be found in the log, refusals by the parser too."""
    for method, path in [*(("GET", path) for path in GETS), ("GET", "/no"), ("PUT", "/status")]:
        headers = source_server.http.request(method, path).headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Request-Id"]
    raw = talk(source_server.url, b"NONSENSE\r\n\r\n").lower()
    assert b"cache-control: no-store" in raw
    assert b"x-request-id: " in raw


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(b"GET /healthz HTTP/1.1\r\n\r\n", 400, id="no-host"),
        pytest.param(HEALTH + b"Host: y\r\n\r\n", 400, id="two-hosts"),
        pytest.param(HEALTH + b"Host: x\r\n\r\n", 400, id="one-host-twice"),
        *(
            pytest.param(HEALTH.replace(b"x\r", host + b"\r", 1) + b"\r\n", status, id=str(host))
            for host, status in (
                (b"a b", 400), (b"a/b", 400), (b"a@b", 400), (b"a:b", 400), (b"h\xc3\xa9", 400),
                (b"[::1", 400), (b"[zz]", 400), (b"[1.2.3.4]", 400), (b"a,b", 400),
                (b"[::1]:80", 200), (b"", 200), (b"a_b.c:1", 200),
            )
        ),
        pytest.param(b"GET /healthz HTTP/1.0\r\n\r\n", 200, id="http-1.0"),
        pytest.param(b"OPTIONS * HTTP/1.0\r\n\r\n", 204, id="options-of-all"),
        pytest.param(b"GET http://x/healthz HTTP/1.0\r\n\r\n", 200, id="absolute"),
        pytest.param(b"GET http://x HTTP/1.0\r\n\r\n", 200, id="absolute-without-path"),
        pytest.param(b"GET /%68ealthz HTTP/1.0\r\n\r\n", 200, id="percent"),
        pytest.param(b"GET //healthz HTTP/1.0\r\n\r\n", 404, id="two-slashes"),
        pytest.param(b"GET healthz HTTP/1.0\r\n\r\n", 400, id="no-slash"),
        pytest.param(b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="connect"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", 400, id="tls"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="http-2"),
        pytest.param(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"zz\r\n", 400, id="no-chunk"),
        pytest.param(HEALTH + b"X: " + b"a" * 300_000 + b"\r\n\r\n", 431, id="long-header"),
        pytest.param(HEALTH + b"X: " + b"a" * 3_000_000, 431, id="endless-header"),
        pytest.param(HEALTH + b"X: a\r\n" * 12_000 + b"\r\n", 431, id="many-headers"),
        pytest.param(b"GET /" + b"a" * 99_000 + b" HTTP/1.0\r\n\r\n", 431, id="long-path"),
        pytest.param(HEALTH + b"X: " + b"a" * (MOST_HEAD_BYTES - 99) + b"\r\n\r\n", 200, id="fits"),
        pytest.param(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"1\r\na\r\n0\r\nX: " + b"a" * 300_000, 431, id="endless-trailer"),
    ],
)  # fmt: skip
def test_odd_requests_have_a_defined_answer(source_server, request_, status):
    """A problem document for what is refused, also where no request could be made of it."""
    answer = talk(source_server.url, request_)
    assert status_of(answer) == status
    if status >= 400:
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == status
        assert b"application/problem+json" in answer


def test_what_follows_a_good_request_costs_it_no_answer(source_server):
    """Nonsense behind it ends the connection after the answer, not before."""
    healthy = HEALTH.replace(b"close", b"keep-alive") + b"\r\n"
    answer = talk(source_server.url, healthy + b"NONSENSE\r\n\r\n")
    assert status_of(answer) == 200
    assert b"alive" in answer


def test_a_trailer_is_no_header(source_server, pictures):
    """What comes behind the body cannot name another stream."""
    body = chunked(pictures[0])[:-2] + b"X-Session-Id: smuggled\r\n\r\n"
    answer = talk(source_server.url, b"POST /predict HTTP/1.1\r\nHost: x\r\n" + body, until=b"]}")
    assert b'"stream":"default"' in answer


@pytest.mark.parametrize(
    ("method", "path", "named"),
    [
        ("POST", "/predict?strem=a", "accepted are stream, top_k"),
        ("POST", "/predict?topk=3", "'topk'"),
        ("POST", "/predict?Stream=a", "'Stream'"),
        ("POST", "/predict?top_k=1&top_k=2", "2 times"),
        ("POST", "/predict?stream=a&stream=a", "2 times"),
        ("POST", "/predict?timeout=inf", "timeout"),
        ("POST", "/predict?=a", "''"),
        ("POST", "/predict?stream=", "stream"),
        ("POST", "/reset?steam=*", "'steam'"),
        ("GET", "/status?stream=a", "none is accepted"),
        ("GET", "/metrics?name=a", "none is accepted"),
        ("GET", "/healthz?x", "none is accepted"),
        ("HEAD", "/readyz?x", ""),
        ("GET", "/docs?x", "none is accepted"),
        ("GET", "/openapi.json?x", "none is accepted"),
    ],
)
def test_a_query_has_only_names_that_the_route_takes(source_server, pictures, method, path, named):
    """A slip is told, whatever the route; else the stream `default` would learn instead."""
    refused = source_server.http.request(method, path, content=pictures[0])
    assert refused.status_code == 422
    assert named in refused.text


LAX = {
    "top_k": ["1_0", "3.0", "+3", " 3", "3 ", "03", "٣", "3e0", "0x3", "true", "", "3\n"],
    "timeout": ["1_0", "+1", " 1", ".5", "5.", "٣", "0x1p4", "1e_2", "Infinity", "1,5", "09", "1s"],
    "learn": ["1", "0", "yes", "on", "False", "TRUE", "f", "", " true"],
    "label": ["1_0", "+1", " 1", "01", "٣", "1.0", "1e0", "true", ""],
}
WRITTEN = {
    "top_k": ["1", "10"],
    "timeout": ["1", "1.5", "0.5", "1e2", "1E-1", "86400"],
    "learn": ["true", "false"],
    "label": ["0", "9"],
}


@pytest.mark.parametrize("name", LAX)
def test_numbers_and_switches_of_a_query_are_written_as_in_json(source_server, pictures, name):
    """Python reads 1_0 as ten and yes as true; whoever sends such a thing means something else."""
    for values, status in ((LAX, 422), (WRITTEN, 200)):
        for value in values[name]:
            answer = source_server.http.post("/predict", params={name: value}, content=pictures[0])
            assert answer.status_code == status, (value, answer.text)
            if status == 422:
                assert f"{name} is " in answer.json()["detail"]


def test_two_names_of_a_stream_must_agree(source_server, pictures):
    """The header and the query may both say it, if they say the same."""
    post = source_server.http.post
    for header, status in (("a", 200), ("b", 422)):
        answer = post("/predict?stream=a", content=pictures[0], headers={"X-Session-Id": header})
        assert answer.status_code == status
    twice = [("X-Session-Id", "a"), ("X-Session-Id", "b")]
    assert post("/predict", content=pictures[0], headers=twice).status_code == 422


@pytest.mark.parametrize("query", [b"id=%ff", b"id=\xff", b"stream=a%C3"])
def test_a_query_that_is_not_utf8_is_refused(source_server, pictures, query):
    """Else two names would be read as one."""
    head = (
        b"POST /predict?%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    )
    answer = talk(source_server.url, head % (query, len(pictures[0])) + pictures[0])
    assert status_of(answer) in (400, 422)
    assert b"problem+json" in answer
