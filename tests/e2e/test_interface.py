"""Tokens, status, metrics, documents and web pages: what stands around the answers."""

import hmac

import pytest

from service.routes import context
from service.schemas import StatusResponse
from tests.fixtures.requests import ask


def test_what_changes_something_asks_for_the_token(serve, pictures, monkeypatch):
    """401 without it or with another, compared in constant time; reading needs none."""
    compared, compare = [], hmac.compare_digest

    def noting(given, wanted):
        compared.append((given, wanted))
        return compare(given, wanted)

    monkeypatch.setattr(context.hmac, "compare_digest", noting)
    with serve(method="source", token="open sesame") as running:
        http = running.http
        for headers in (
            {},
            {"Authorization": "Bearer open sesam"},
            {"Authorization": "Bearer"},
            {"Authorization": "Basic open sesame"},
            {"Authorization": "Bearer öpen".encode()},
        ):
            for path in ("/predict", "/reset"):
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
    assert len(compared) == 12


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


def test_the_description_of_the_interface_is_complete(source_server):
    """/openapi.json has every route with its errors as problems; /docs shows it."""
    http = source_server.http
    assert http.get("/docs").status_code == 200
    document = http.get("/openapi.json").json()
    assert {"/predict", "/reset", "/status", "/metrics", "/healthz", "/readyz"} == set(
        document["paths"]
    )
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
        "timeout",
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
        for path in ("/predict", "/reset"):
            for origin, status in (
                ("https://evil.example", 403),
                ("null", 403),
                ("https://cameras.example", 200),
                (running.url, 200),
            ):
                answer = running.http.post(path, content=pictures[0], headers={"Origin": origin})
                assert answer.status_code == status, origin
        assert running.at_rest()["counters"]["images_total"] == 2
