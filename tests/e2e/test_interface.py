"""Tokens, status, metrics, documents and web pages: what stands around the answers."""

import hmac
import json
import math
import re

import pytest
import torch

from service.client import Client
from service.routes import guards, predict
from service.schemas import StatusResponse
from service.settings import MOST_TOKEN_BYTES
from tests.fixtures.requests import ask, encoded, problem


def test_what_changes_something_asks_for_the_token(serve, pictures, monkeypatch):
    """401 without it or with another, compared in constant time; reading needs none."""
    compared, compare = [], hmac.compare_digest

    def noting(given, wanted):
        compared.append((given, wanted))
        return compare(given, wanted)

    monkeypatch.setattr(guards.hmac, "compare_digest", noting)
    with serve(method="source", token="open sesame") as running:
        http = running.http
        for headers in (
            {},
            {"Authorization": "Bearer open sesam"},
            {"Authorization": "Bearer"},
            {"Authorization": "Basic open sesame"},
            {"Authorization": "Bearer öpen".encode()},
        ):
            for path in ("/predict", "/feedback", "/reset", "/model"):
                refused = http.post(path, content=pictures[0], headers=headers)
                assert refused.status_code == 401
                assert refused.headers["WWW-Authenticate"] == "Bearer"
                assert refused.headers["Content-Type"] == "application/problem+json"
                assert "sesame" not in refused.text
        right = {"Authorization": "Bearer open sesame"}
        assert http.post("/predict", content=pictures[0], headers=right).status_code == 200
        assert http.post("/reset", headers=right).status_code == 200
        for path in ("/status", "/metrics", "/healthz", "/readyz", "/docs", "/openapi.json"):
            answer = http.get(path)
            assert answer.status_code == 200
            assert "sesame" not in answer.text
    assert len(compared) == 22 + 5  # a wrong one on both ways of /predict


def test_status_tells_all_that_a_person_needs(serve, pictures):
    """Model, method with hyperparameters, settings, streams, counters, events, versions."""
    with serve(method="ttc", max_batch=7) as running:
        ask(running, pictures[:7], labels=[0] * 7, params={"stream": "gate"})
        running.http.post("/reset?stream=other")
        status = StatusResponse.model_validate(running.at_rest())
    assert status.ready
    assert status.model.classes == len(status.model.class_names) == 10
    assert status.model.spec == "bundled"
    assert status.model.adapted_parameters > 0
    assert status.method == "ttc"
    assert status.settings["method"]["statistics"] == "moving"
    assert status.settings["server"]["max_batch"] == 7
    assert "token" not in status.settings["server"]
    assert (status.streams["gate"].images, status.streams["gate"].batches) == (7, 1)
    assert status.truth["gate"].labelled == 7
    assert status.counters["images_total"] == 7
    assert status.counters["labelled_images_total"] == 7
    assert [event["event"] for event in status.events] == ["started", "reset"]
    assert {"service", "python", "torch", "numpy"} <= set(status.versions)


def test_metrics_follow_what_happened(serve, pictures, labels):
    """After a walk of two batches and a refusal, each family has moved as it should."""
    with serve(method="tent", max_batch=8) as running:
        answer = ask(running, pictures[:16], labels=labels[:16])
        ask(running, [b"broken"], expect=400)
        running.at_rest()
        right = sum(
            one["class"] == label for one, label in zip(answer["predictions"], labels, strict=False)
        )
        expected = {
            'ttc_http_requests_total{code="200",method="POST",route="/predict"}': 1,
            'ttc_http_requests_total{code="400",method="POST",route="/predict"}': 1,
            "ttc_images_total": 16,
            'ttc_rejected_images_total{reason="unreadable"}': 1,
            'ttc_batches_total{reason="full"}': 2,
            "ttc_batch_images_count": 2,
            "ttc_entropy_nats_count": 16,
            "ttc_confidence_ratio_count": 16,
            "ttc_selected_images_total": 16,
            "ttc_considered_images_total": 16,
            "ttc_optimizer_steps_total": 2,
            "ttc_labelled_images_total": 16,
            "ttc_correct_images_total": right,
            "ttc_window_accuracy_ratio": right / 16,
            "ttc_streams": 1,
            'ttc_stage_duration_seconds_count{stage="forward"}': 2,
            'ttc_stage_duration_seconds_count{stage="adapt"}': 2,
            'ttc_stage_duration_seconds_count{stage="decode"}': 1,
            'ttc_stage_duration_seconds_count{stage="queue"}': 1,
            'ttc_stage_duration_seconds_count{stage="encode"}': 1,
        }
        assert {name: running.metric(name) for name in expected} == expected
        drift = running.status()["streams"]["default"]["drift"]
        assert running.metric("ttc_parameter_drift_ratio") == pytest.approx(drift)
        assert drift > 0
        assert running.metric("ttc_last_step_timestamp_seconds") > 1.6e9
        open_metrics = running.http.get(
            "/metrics", headers={"Accept": "application/openmetrics-text"}
        )
        assert open_metrics.headers["Content-Type"].startswith("application/openmetrics-text")
        assert open_metrics.text.endswith("# EOF\n")


def test_the_page_of_the_interface_asks_for_nothing_from_elsewhere(source_server):
    """Behind a firewall it is whole: what it names is relative, and served; no other page is."""
    http = source_server.http
    page = http.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    names = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert len(names) == 4
    for name in names:
        assert re.fullmatch(r"docs/[a-z0-9.-]+", name)
        answer = http.get(f"/{name}")
        assert (answer.status_code, len(answer.content) > 100) == (200, True), name
    assert "http" not in page.text + http.get("/docs/start.js").text
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "http" not in policy
    assert http.get("/redoc").status_code == 404
    assert http.get("/docs/main.py").status_code == 404


def test_the_description_of_the_interface_is_complete(source_server):
    """/openapi.json has every route with its errors as problems; /docs shows it."""
    http = source_server.http
    assert http.get("/docs").status_code == 200
    document = http.get("/openapi.json").json()
    own = {path for path in document["paths"] if not path.startswith("/v2")}
    assert own == {
        *("/predict", "/feedback", "/reset", "/rollback", "/model"),
        *("/snapshots", "/status", "/metrics", "/healthz", "/readyz", "/", "/events"),
    }
    predict = document["paths"]["/predict"]["post"]
    assert {"image/png", "image/jpeg", "multipart/form-data", "application/json"} <= set(
        predict["requestBody"]["content"]
    )
    assert {"200", "400", "401", "408", "413", "415", "422", "429", "500", "503", "504"} <= set(
        predict["responses"]
    )
    for status, response in predict["responses"].items():
        if status != "200":
            assert "application/problem+json" in response["content"], status
    names = set(document["components"]["schemas"])
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in names
    assert {one["name"] for one in predict["parameters"]} == {
        "stream",
        "x-session-id",
        "top_k",
        "id",
        "label",
        "context",
        "timeout",
        "learn",
    }


def references(node):
    """Every $ref of a document."""
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_cors_is_off_unless_asked_for(serve, source_server):
    """A web page of another origin may call only if --cors-origin names it."""
    headers = {"Origin": "https://cameras.example"}
    closed = source_server.http.get("/status", headers=headers)
    assert "access-control-allow-origin" not in closed.headers
    with serve(method="source", cors_origin=("https://cameras.example",)) as running:
        opened = running.http.get("/status", headers=headers)
        assert opened.headers["access-control-allow-origin"] == "https://cameras.example"
        other = running.http.get("/status", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_page_of_another_origin_changes_nothing(serve, pictures):
    """A browser sends such a request even where CORS hides the answer: it is refused, 403."""
    with serve(method="source", cors_origin=("https://cameras.example",)) as running:
        label = json.dumps({"labels": [{"id": "a", "label": 1}]})
        for path, content in (("/predict", pictures[0]), ("/reset", None), ("/feedback", label)):
            for origin, status in (
                ("https://evil.example", 403),
                ("null", 403),
                ("https://cameras.example", 200),
                (running.url, 200),
            ):
                headers = {"Origin": origin}
                if path == "/feedback":
                    headers["Content-Type"] = "application/json"
                answer = running.http.post(path, content=content, headers=headers)
                assert answer.status_code == status, origin
        assert running.at_rest()["counters"]["images_total"] == 2


@pytest.mark.parametrize(
    ("headers", "reads", "changes"),
    [
        ({}, 200, 200),
        ({"Host": "ttc:8000"}, 200, 200),  # no browser: a neighbour's name is as good as any
        ({"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}, 403, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403, 403),
        ({"Host": "evil.example", "Sec-Fetch-Site": "same-origin"}, 403, 403),
        ({"Host": "evil.example", "User-Agent": "Mozilla/5.0"}, 403, 403),
        ({"Host": "localhost.evil.example", "Origin": "http://localhost.evil.example"}, 403, 403),
        ({"Host": "127.0.0.1.evil.example", "User-Agent": "Mozilla/5.0"}, 403, 403),
        ({"Host": "cameras.example", "Origin": "https://cameras.example"}, 200, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200, 200),
        ({"Host": "LOCALHOST", "Origin": "http://localhost:80"}, 200, 200),
        ({"Host": "[::1]:8000", "Origin": "http://[::1]:8000"}, 200, 200),
        ({"Host": "10.0.0.7:8000", "Origin": "http://10.0.0.7:8000"}, 200, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 200, 403),
        ({"Host": "localhost", "Origin": "http://evil.example"}, 200, 403),
        ({"Host": "localhost", "Origin": "null"}, 200, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "cross-site"}, 200, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "none"}, 200, 200),
    ],
)
def test_a_browser_is_let_in_by_our_own_names_only(page_server, headers, reads, changes):
    """A name that a stranger has pointed at 127.0.0.1 is none of them (DNS rebinding)."""
    for path in ("/status", "/metrics", "/docs"):
        assert page_server.http.get(path, headers=headers).status_code == reads
    assert page_server.http.post("/reset", headers=headers).status_code == changes


@pytest.fixture(scope="module")
def page_server(serve):
    with serve(method="source", cors_origin=("https://cameras.example",)) as running:
        yield running


def test_a_browser_is_told_which_page_may_send(page_server):
    """The preflight of an allowed page is CORS's; OPTIONS without one is plain HTTP."""
    asked = {"Access-Control-Request-Method": "POST"}
    allowed = page_server.http.options(
        "/predict", headers={"Origin": "https://cameras.example", **asked}
    )
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://cameras.example"
    refused = page_server.http.options("/predict", headers={"Origin": "https://x.example", **asked})
    assert "https://x.example" in problem(refused, 403)["detail"]
    assert "Access-Control-Allow-Origin" not in refused.headers
    assert page_server.http.options("/predict").status_code == 204


@pytest.mark.parametrize("said", ["https://Cams.example:443", "HTTPS://CAMS.EXAMPLE"])
def test_an_origin_is_the_same_however_it_is_written(serve, pictures, said):
    """A browser writes it in small letters without its scheme's port, for both halves of CORS."""
    page = {"Origin": "https://cams.example"}
    with serve(method="source", cors_origin=(said,)) as running:
        asked = {"Access-Control-Request-Method": "POST", **page}
        assert running.http.options("/predict", headers=asked).status_code == 200
        sent = running.http.post("/predict", content=pictures[0], headers=page)
    assert sent.status_code == 200
    assert sent.headers["Access-Control-Allow-Origin"] == page["Origin"]
    assert {"Retry-After", "X-Request-Id"} <= {
        *sent.headers["Access-Control-Expose-Headers"].split(", ")
    }


def statuses(running, token, image):
    headers = {} if token is None else {"Authorization": b"Bearer " + token.encode()}
    post, get = running.http.post, running.http.get
    return (
        post("/predict", content=image, headers=headers).status_code,
        post("/reset", headers=headers).status_code,
        get("/status", headers=headers).status_code,
        get("/metrics", headers=headers).status_code,
        get("/healthz", headers=headers).status_code,
    )


LONGEST = "x" * MOST_TOKEN_BYTES
TOKENS = {"token": "for-images-ü", "admin_token": "for-resets-é"}


@pytest.mark.parametrize(
    ("settings", "token", "expected"),
    [
        (TOKENS, None, (401, 401, 200, 200, 200)),
        (TOKENS, "for-images-ü", (200, 401, 200, 200, 200)),
        (TOKENS, "for-resets-é", (401, 200, 200, 200, 200)),
        (TOKENS | {"token_reads": True}, None, (401, 401, 401, 401, 200)),
        (TOKENS | {"token_reads": True}, "for-images-ü", (200, 401, 200, 200, 200)),
        (TOKENS | {"token_reads": True}, "for-resets-é", (401, 200, 200, 200, 200)),
        ({"token": "for-images-ü"}, "for-images-ü", (200, 200, 200, 200, 200)),
        ({"token": LONGEST}, LONGEST, (200, 200, 200, 200, 200)),
        ({"admin_token": "for-resets-é"}, None, (200, 401, 200, 200, 200)),
    ],
)
def test_who_may_post_need_not_be_able_to_reset(serve, pictures, settings, token, expected):
    """--admin-token for resets, --token for images, either for reading with --token-reads."""
    with serve(method="source", **settings) as running:
        assert statuses(running, token, pictures[0]) == expected
        if token and expected[2] == 200:
            headers = {"Authorization": b"Bearer " + token.encode()}
            shown = running.http.get("/status", headers=headers).text
            assert "for-images" not in shown
            assert "for-resets" not in shown


def test_the_client_carries_both_tokens(serve, pictures):
    """Images go with one, resets with the other, reading with either."""
    with serve(method="source", token_reads=True, **TOKENS) as running:
        with Client(running.url, **TOKENS) as client:
            assert client.predict(pictures[:1]).predictions
            assert client.reset().streams == ["default"]
            assert client.status().ready
        with Client(running.url, admin_token=TOKENS["admin_token"]) as client:
            assert client.status().ready


def test_the_answer_to_one_request_is_bounded(source_server, pictures, monkeypatch):
    """top_k times images: the sentence says how many images go with that top_k."""
    monkeypatch.setattr(predict, "MOST_SCORES", 20)
    refused = ask(source_server, pictures[:3], expect=422, params={"top_k": 10})
    assert "at most 2 images" in refused["detail"]
    assert len(ask(source_server, pictures[:2], params={"top_k": 10})["predictions"]) == 2


def test_a_long_answer_is_written_image_by_image(source_server, pictures, monkeypatch):
    """The encoder lets no other thread run until it is done with what it was given."""
    written, write = [], predict._write
    monkeypatch.setattr(
        predict, "_write", lambda given: written.append(text := write(given)) or text
    )
    answer = source_server.http.post(
        "/predict?top_k=10", **encoded(pictures[:50]), headers={"X-Request-Id": "x"}
    )
    assert len(answer.json()["predictions"]) == 50
    assert max(map(len, written)) < len(answer.content) / 20


def test_every_route_describes_the_statuses_that_any_may_have(source_server):
    """The rules for every route are in /openapi.json too, as problems; /v2 has its own form."""
    document = source_server.http.get("/openapi.json").json()
    for path, routes in document["paths"].items():
        for description in routes.values():
            assert {"400", "403", "408", "422", "431", "501"} <= set(description["responses"]), path
            for status, response in description["responses"].items():
                form = "json" if path.startswith("/v2") else "problem+json"
                if status != "200":
                    assert f"application/{form}" in response["content"], (path, status)


def test_the_status_tells_settings_that_json_has_not(serve, held):
    """Those of a method of one's own may be anything."""
    source, _ = held("source")
    source.settings = {"device": torch.device("cpu"), "of": {1: (math.nan, math.inf)}, "f": max}
    with serve(source=source, method="source") as running:
        told = running.status()["settings"]["method"]
    assert told["device"] == "cpu"
    assert len(told["of"]["1"]) == 2
    assert "max" in told["f"]
