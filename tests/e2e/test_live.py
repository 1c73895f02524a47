"""The live page and its events over HTTP, from a real server."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from service import connection as connection_module
from service.client import Client
from service.live import readers as readers_module
from service.live.readers import MOST_READERS, MOST_WAITING
from service.live.schemas import LiveState, LiveTick
from service.replay import to_png
from service.server import bind
from service.stream_record import StreamRecord
from tests.e2e.conftest import wait_for
from tests.fixtures.forked import launch
from tests.fixtures.mounting import mounted
from tests.fixtures.requests import ask, problem
from tests.fixtures.wire import connect, read

TOKENS = {"token": "for-images-ü", "admin_token": "for-resets-é"}


@pytest.fixture(scope="module")
def server(serve):
    """What most tests here share; streams are added to it."""
    with serve(method="ttc_stream") as running:
        yield running


@contextlib.contextmanager
def listening(running, path="/events", **headers):
    """The frames of a reader, (event, object) each, until the block ends."""
    with running.http.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200, response.read()

        def frames():
            for line in response.iter_lines():
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield kind, json.loads(line.removeprefix("data: "))

        yield frames()


def nobody_reads(running):
    """Wait until those have gone that have: it is seen with the next frame."""
    running.wait_for(lambda: running.metric("ttc_live_readers") == 0)


# Frames


def test_a_state_comes_first_and_then_ticks_with_what_has_changed(server, pictures):
    """Each as the schema has it; counters move by what was asked."""
    with listening(server) as frames:
        kind, state = next(frames)
        assert kind == "state"
        LiveState.model_validate(state)
        assert state["model"]["name"] == "bundled"
        assert state["model"]["digest"] == server.status()["model"]["digest"]
        assert state["asks"] == {"predict": False, "control": False}
        assert state["events"][0]["event"] == "started"
        ask(server, pictures[:3], labels=[0, 1, 2], params={"stream": "gate"})
        server.http.post("/reset?stream=other")
        rows, events, counters = [], [], state["counters"]
        while not events or not rows or rows[-1]["images"] < 3:
            kind, tick = next(frames)
            assert kind == "tick"
            LiveTick.model_validate(tick)
            rows += [row for row in tick["streams"] if row["name"] == "gate"]
            events += tick["events"]
            assert tick["counters"]["images"] >= counters["images"]
            counters = tick["counters"]
        assert counters["images"] - state["counters"]["images"] == 3
        assert counters["request_seconds_buckets"][-1] >= 1
        assert rows[-1]["truth"]["labelled"] == 3
        assert abs(rows[-1]["last_image"] - time.time()) < 60
        assert [event["event"] for event in events] == ["reset"]


def test_a_reader_is_no_request_in_progress(server):
    """It is counted, timed and logged as it begins: hours are no latency."""
    name = 'ttc_http_requests_total{code="200",method="GET",route="/events"}'
    nobody_reads(server)
    with listening(server) as frames:
        next(frames)
        text = server.http.get("/metrics").text
        assert name in text
        counted = server.metric(name)
        assert server.metric("ttc_http_requests_in_progress") == 0
        assert server.metric("ttc_live_readers") == 1
        next(frames)
    nobody_reads(server)
    assert server.metric(name) == counted
    times = 'ttc_http_request_duration_seconds_sum{route="/events"}'
    assert server.metric(times) < 0.5 * counted
    assert server.status()["idle"]


def test_asked_for_its_head_alone_it_ends(server):
    """As of every route that GET has."""
    nobody_reads(server)
    head = server.http.head("/events", timeout=20)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"].startswith("text/event-stream")
    assert server.metric("ttc_live_readers") == 0


def test_a_hundred_readers_get_the_same_frames_and_one_more_is_refused(server):
    """Who leaves makes room."""

    async def walk():
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as http,
            contextlib.AsyncExitStack() as stack,
        ):

            async def begin():
                response = await stack.enter_async_context(http.stream("GET", "/events"))
                return response, response.aiter_lines()

            began = await asyncio.gather(*(begin() for _ in range(MOST_READERS)))
            assert {response.status_code for response, _ in began} == {200}

            async def ticks(lines, count):
                found = []
                async for line in lines:
                    if line.startswith("data: ") and '"history"' not in line:
                        found.append(line)
                        if len(found) == count:
                            return found

            found = await asyncio.gather(*(ticks(lines, 3) for _, lines in began))
            assert len({each for ticks in found for each in ticks}) <= 5
            refused = await http.get("/events")
            assert "read /events already" in problem(refused, 503)["detail"]
            assert int(refused.headers["Retry-After"]) >= 1
            assert (await http.get("/readyz")).status_code == 200

    nobody_reads(server)
    asyncio.run(walk())
    nobody_reads(server)
    with listening(server) as frames:
        assert next(frames)[0] == "state"


def test_a_thousand_streams_are_sent_once_and_then_those_that_changed(serve, pictures):
    """And all of them are told, those in trouble first."""
    with serve(method="source", max_streams=2000) as running:
        table, source = running.service.engine.table, running.service.source
        for number in range(1000):
            table.keep(f"camera-{number}", StreamRecord(source, images=1))
        table.records["camera-700"].suspect = "black"
        table.records["camera-700"].suspect_in_a_row = 50
        with listening(running) as frames:
            _, state = next(frames)
            assert len(state["streams"]) == 1000
            assert state["left_out"] == 0
            assert (state["streams"][0]["name"], state["streams"][0]["trouble"]) == (
                "camera-700",
                3,
            )
            ask(running, pictures[:1], params={"stream": "camera-7"})
            seen = [name for _ in range(3) for name in names(next(frames)[1])]
            assert set(seen) == {"camera-7"}


def names(tick):
    return [row["name"] for row in tick["streams"]]


def test_who_takes_nothing_loses_frames_and_then_the_connection(serve, monkeypatch):
    """What waits for it stays within bounds, and it does not hold the service up."""
    monkeypatch.setattr(readers_module, "FRAME_SECONDS", 0.02)
    with serve(method="source", max_streams=2000) as running:
        table, source = running.service.engine.table, running.service.source
        records = [StreamRecord(source) for _ in range(1000)]
        for number, record in enumerate(records):
            table.keep(f"camera-{number}", record)
        with connect(running.url) as stuck:
            stuck.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")

            def has(name, value):
                for record in records:
                    record.images += 1  # so that every tick is large
                return running.metric(name) >= value

            wait_for(lambda: has("ttc_live_dropped_frames_total", 2 * MOST_WAITING))
            monkeypatch.setattr(connection_module, "SEND_SECONDS", 1.0)
            wait_for(lambda: has('ttc_connections_closed_total{reason="unread"}', 1))
            nobody_reads(running)
            assert b"event: state" in read(stuck)


# Who may read


def test_the_page_needs_no_token_and_its_events_do(serve):
    """With --token-reads; a browser can send none with a navigation, and a page holds no data."""
    with serve(method="source", token_reads=True, **TOKENS) as running:
        page = running.http.get("/")
        assert page.status_code == 200
        for name in assets_of(page):
            assert running.http.get(f"/{name}").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            problem(running.http.get("/events", headers=headers), 401)
        for token in TOKENS.values():
            headers = {"Authorization": b"Bearer " + token.encode()}
            with listening(running, **headers) as frames:
                _, state = next(frames)
            assert state["asks"] == {"predict": True, "control": True}
            assert not any(
                token in json.dumps(state, ensure_ascii=False) for token in TOKENS.values()
            )
        assert running.http.get("/events?token=for-images", headers=headers).status_code == 422


# The page


def assets_of(page):
    return re.findall(r"=\s*[\"'](assets/[^\"']+)", page.text)


def test_the_page_is_asked_for_again_and_its_files_never(server):
    """`no-cache` with a tag, and immutable files; what it may load is held to a policy."""
    page = server.http.get("/")
    assert page.headers["Content-Type"].startswith("text/html")
    assert page.headers["Cache-Control"] == "no-cache"
    policy = dict(
        each.strip().split(" ", 1) for each in page.headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    known = server.http.get("/", headers={"If-None-Match": page.headers["ETag"]})
    assert (known.status_code, known.content) == (304, b"")
    other = server.http.get("/", headers={"If-None-Match": '"other"'})
    assert (other.status_code, other.text) == (200, page.text)
    for name in assets_of(page):
        answer = server.http.get(f"/{name}")
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    for name in ("app.js", "index.html", "..%2Findex.html", "%2e%2e/app.py"):
        assert server.http.get(f"/assets/{name}").status_code == 404


# Where it is served


def reached_at(running, prefix, picture):
    """All kinds of routes work there, and what they name does."""
    http = running.http
    page = http.get(f"{prefix}/")
    assert page.status_code == 200
    assert not re.search(r"(src|href)=[\"']/", page.text)
    for name in assets_of(page):
        assert http.get(f"{prefix}/{name}").status_code == 200
    with listening(running, f"{prefix}/events") as frames:
        assert next(frames)[0] == "state"
    assert http.post(f"{prefix}/predict?stream=a", content=picture).status_code == 200
    assert http.get(f"{prefix}/docs/start.js").status_code == 200
    document = http.get(f"{prefix}/openapi.json").json()
    assert document["servers"] == [{"url": "."}]
    assert http.get(f"{prefix}/v2/models/bundled/ready").status_code == 200
    assert "error" in http.get(f"{prefix}/v2/nowhere").json()
    problem(http.get(f"{prefix}/nowhere"), 404)
    with Client(f"{running.url}{prefix}") as client:
        assert client.ready()
        assert isinstance(next(client.events()), LiveState)


def test_behind_a_proxy_it_works_whether_the_path_is_stripped_or_not(serve, pictures):
    """`--root-path` is where the proxy has it; without the slash one is sent to the page."""
    with serve(method="source", root_path="/cameras/") as running:
        reached_at(running, "/cameras", pictures[0])
        reached_at(running, "", pictures[0])
        moved = running.http.get("/cameras")
        assert (moved.status_code, moved.headers["Location"]) == (307, "/cameras/")
        assert "/cameras/docs" in problem(running.http.get("/cameras/nowhere"), 404)["detail"]
        problem(running.http.get("/camerasx/status"), 404)
        assert running.http.get("/cameras/healthz").status_code == 200
        assert running.metric('ttc_http_request_duration_seconds_count{route="/predict"}') == 2


PROXIES = {
    "nginx": (
        ("nginx", "-c"),
        """daemon off; user root; pid {folder}/pid; error_log {folder}/errors; events {{}}
        http {{
          access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
          fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
          server {{ listen 127.0.0.1:{port}; {lines} }}
        }}""",
    ),
    "caddy": (
        ("caddy", "run", "--adapter", "caddyfile", "--config"),
        "{{\nadmin off\nauto_https off\n}}\nhttp://127.0.0.1:{port} {{\n{lines}\n}}\n",
    ),
}


def test_the_proxies_of_the_documents_have_it_whole(serve, pictures, tmp_path):
    """docs/settings.md: all routes, events as they come, large images, a browser's own origin."""
    installed = [name for name in PROXIES if os.environ.get("CI") or shutil.which(name)]
    if not installed:
        pytest.skip("neither nginx nor caddy is installed")
    with serve(method="source", root_path="/cameras") as running:
        for name in installed:
            with proxied(name, running.url, tmp_path / name) as url:
                transport = httpx.HTTPTransport(retries=8)  # until it listens
                with httpx.Client(base_url=url, timeout=60, transport=transport) as http:
                    through_proxy(replace(running, url=url, http=http), pictures[0])


@contextlib.contextmanager
def proxied(name, server, folder):
    """Run a proxy with the documents' lines; its address."""
    text = Path("docs/settings.md").read_text()
    lines = re.search(rf"^```{name}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[1]
    lines = lines.replace("127.0.0.1:8000", server.removeprefix("http://"))
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    command, whole = PROXIES[name]
    folder.mkdir()
    settings = folder / "settings"
    settings.write_text(whole.format(folder=folder, port=port, lines=lines))
    with subprocess.Popen([*command, str(settings)], cwd=folder) as proxy:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            proxy.terminate()


def through_proxy(running, picture):
    reached_at(running, "/cameras", picture)
    assert running.http.get("/cameras").headers["Location"].endswith("/cameras/")
    began = time.monotonic()
    with listening(running, "/cameras/events") as frames:
        assert [next(frames)[0] for _ in range(3)] == ["state", "tick", "tick"]
    assert time.monotonic() - began < 20  # in a buffer they would wait for many others
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    large = to_png(noise)
    assert len(large) > 1 << 20
    browser = {"Origin": running.url, "User-Agent": "Mozilla/5.0"}
    answer = running.http.post("/cameras/predict", content=large, headers=browser)
    assert answer.status_code == 200, answer.text


def test_mounted_in_an_application_it_is_at_its_path(serve, pictures):
    """Beside the other's own routes."""

    with serve(method="source", wrap=mounted) as running:
        reached_at(running, "/ttc", pictures[0])
        assert running.http.get("/ttc").headers["Location"].endswith("/ttc/")
        assert running.http.get("/events").status_code == 404


# The end


def test_sigterm_ends_readers_at_once():
    """Tabs left open hold nothing up; the last frame says that it was meant."""
    with launch("--method", "source", "--device", "cpu", "--drain-timeout", "60") as server:
        with contextlib.ExitStack() as stack:
            http = stack.enter_context(httpx.Client(base_url=server.url, timeout=60))
            streams = [stack.enter_context(http.stream("GET", "/events")) for _ in range(3)]
            lines = [each.iter_lines() for each in streams]
            for each in lines:
                assert any(line == "event: tick" for line in each)
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            for each in lines:
                assert [line for line in each if line.startswith("event: ")][-1] == "event: end"
            assert time.monotonic() - began < 5  # of a busy machine's
        assert server.process.wait(30) == 0
