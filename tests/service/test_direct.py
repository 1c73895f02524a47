"""The short way of POST /predict answers and refuses to the letter as the framework's does."""

import asyncio
import re

import httpx
import pytest
from pydantic import SecretStr

from service.app import build
from service.replay import to_png
from service.routes import direct
from service.settings import Settings
from ttc_core.datasets import Geometry, open_data
from ttc_core.load import load
from ttc_core.methods import create

TOKEN = {"Authorization": "Bearer secret-token"}
PLAIN_QUERIES = [
    "",
    "stream=gate",
    "id=frame-1&label=3&stream=gate",
    "top_k=10",
    "learn=false&context=false",
    "learn=true&context=true",
    # Refused behind the fork.
    "top_k=11",
    "id=a&id=b",
    "label=10",
    "label=-1",
    "label=x",
    "label=01",
    f"label={'9' * 40}",
    f"id={'a' * 129}",
]
OTHER_QUERIES = [
    "stream=",
    "stream=a&stream=a",
    f"stream={'a' * 65}",
    "stream=a%20b",
    "stream=a%62",
    "id=a+b",
    "id=%C3%A9",
    "id=%ff",
    "id=",
    "label=",
    "top_k=0",
    "top_k=01",
    "top_k=1.5",
    "top_k=1&top_k=2",
    f"top_k={'9' * 30}",
    "learn=True",
    "learn=1",
    "learn=",
    "context=no",
    "timeout=30",
    "timeout=0",
    "timeout=nan",
    "lern=false",
    "&stream=gate",
    "stream=gate&",
    "stream",
    "=",
    "a=b=c",
    "stream=gate=1",
    "stream=gate;learn=false",
]
PLAIN_HEADERS = [
    [],
    [("X-Session-Id", "gate")],
    [("User-Agent", "curl/8")],
    [("Content-Type", "image/png")],
    [("Content-Type", "text/html")],
    [("X-Request-Id", "r1")],
]
OTHER_HEADERS = [
    [("X-Session-Id", "a b")],
    [("X-Session-Id", "")],
    [("X-Session-Id", "a"), ("X-Session-Id", "b")],
    [("X-Session-Id", "a"), ("X-Session-Id", "a")],
    [("Content-Type", "image/png"), ("Content-Type", "image/png")],
    [("Origin", "https://evil.example")],
    [("Origin", "http://localhost")],
    [("Sec-Fetch-Site", "cross-site")],
    [("User-Agent", "Mozilla/5.0"), ("Host", "evil.example")],
]
# RFC 9110 §11.1: the scheme's case does not matter.
WRITTEN_ODDLY = [{"Authorization": "bearer secret-token"}]
WITHOUT_TOKEN = [
    {},
    {"Authorization": "Bearer wrong"},
    {"Authorization": "Basic secret-token"},
    {"Authorization": "Bearer s\u00e9cret".encode("latin-1")},
]


@pytest.fixture(scope="module")
def model():
    return load("bundled", device="cpu")


@pytest.fixture(scope="module")
def picture():
    stream = open_data("bundled", Geometry(32)).open("fog", 5, limit=1)
    return to_png(stream.read(stream.positions)[0])


class Ways:
    """The application with the short way and without it; what each answers, and which was gone."""

    def __init__(self, monkeypatch, model, **settings):
        self._patch, self._model, self._settings = monkeypatch, model, settings
        self._asked_plainly = direct._asked_plainly

    def ask(self, *requests, root_path="", prefix=""):
        """Answers of both ways to (query, headers, body) each; whether the short one took it."""
        asked = []

        def noted(*arguments):
            asked.append(self._asked_plainly(*arguments))
            return asked[-1]

        self._patch.setattr(direct, "_asked_plainly", noted)
        short = asyncio.run(self._answers(requests, root_path, prefix))
        self._patch.setattr(direct, "_asked_plainly", lambda *_: None)
        long = asyncio.run(self._answers(requests, root_path, prefix))
        return short, long, [each is not None for each in asked]

    async def _answers(self, requests, root_path, prefix):
        app = build(
            Settings(method="source", threads=1, **self._settings), create("source", self._model)
        )
        transport = httpx.ASGITransport(app, root_path=root_path)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            answers = []
            for query, headers, body in requests:
                prefix = prefix or (root_path if root_path != "/predict" else "")
                url = f"{prefix}/predict?{query}"
                answer = await client.post(url, headers=headers, content=body)
                answers.append(without_chance(answer))
            return answers


def without_chance(answer):
    """An answer but for its times and the request's id."""
    headers = dict(answer.headers)
    headers["server-timing"] = re.sub(r"dur=[0-9.]+", "", headers.get("server-timing", ""))
    own = headers.pop("x-request-id")
    headers.pop("content-length")
    return answer.status_code, answer.text.replace(own, ""), headers


@pytest.fixture
def ways(monkeypatch, model):
    return lambda **settings: Ways(monkeypatch, model, **settings)


@pytest.mark.parametrize(
    ("queries", "headers", "plain"),
    [
        (PLAIN_QUERIES, [[]], True),
        (OTHER_QUERIES, [[]], False),
        ([""], PLAIN_HEADERS, True),
        ([""], OTHER_HEADERS, False),
        (["stream=a"], [[("X-Session-Id", "a")], [("X-Session-Id", "b")]], False),
    ],
)
def test_both_ways_say_the_same(ways, picture, queries, headers, plain):
    """Status, body and headers of answers and refusals; only what is plain goes the short way."""
    requests = [(query, header, picture) for query in queries for header in headers]
    short, long, taken = ways().ask(*requests)
    for request, one, other in zip(requests, short, long, strict=True):
        assert one == other, request[:2]
        assert one[0] in (200, 400, 401, 403, 415, 422), one
    assert taken == [plain] * len(requests)


def test_an_application_mounted_at_a_path_is_no_other(ways, picture):
    """Under a root path of the route's own name there is no such route; under another there is."""
    for root_path, status in (("/predict", 404), ("/api", 200)):
        short, long, taken = ways().ask(("", [], picture), root_path=root_path)
        assert short == long
        assert [answered for answered, *_ in short] == [status]
        assert not any(taken)


@pytest.mark.parametrize("prefix", ["", "/cameras"])
def test_behind_a_proxy_s_path_it_is_the_same_way(ways, picture, prefix):
    """Whether the proxy takes the path off or not."""
    short, long, taken = ways(root_path="/cameras").ask(("", [], picture), prefix=prefix)
    assert short == long
    assert short[0][0] == 200
    assert all(taken)


def test_bodies_that_are_refused_are_refused_alike(ways, picture):
    """Too large, empty, damaged, of a coding that is not known."""
    bodies = [(b"", []), (b"no image", []), (picture[:-40], []), (bytes(3000), [])]
    bodies += [(picture, [("Content-Encoding", "br")]), (picture, [("Content-Encoding", "gzip")])]
    bodies += [(picture, [("Content-Type", 'image/png; a="' + ";" * 60_000)])]
    short, long, taken = ways(max_body=2900).ask(*(("", head, body) for body, head in bodies))
    assert short == long
    assert all(taken)
    assert {status for status, *_ in short} == {400, 413, 415}


def test_without_the_token_nothing_goes_the_short_way(ways, picture):
    """Whoever has it does, and both ways refuse whoever has not."""
    given = [TOKEN, *WRITTEN_ODDLY, *WITHOUT_TOKEN]
    requests = [("", headers, picture) for headers in given]
    short, long, taken = ways(token=SecretStr("secret-token")).ask(*requests)
    assert short == long
    assert [headers for headers, short in zip(given, taken, strict=True) if short] == [TOKEN]
    expected = [200] * (len(given) - len(WITHOUT_TOKEN)) + [401] * len(WITHOUT_TOKEN)
    assert [status for status, *_ in short] == expected
