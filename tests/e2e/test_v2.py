"""/v2: what is served of the Open Inference Protocol, and that it is the walk of /predict."""

import gzip
import io
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from service.problems import path_in
from tests.fixtures.mounting import mounted
from tests.fixtures.requests import ask, classes, problem
from tests.fixtures.v2 import (
    HEADER,
    Simple,
    binary,
    error,
    files,
    outputs_of,
    pixels,
    tensor,
)

INFER = "/v2/models/bundled/infer"


@pytest.fixture(scope="module")
def with_simple(serve):
    """Serve with a second model, of two tensors, beside the classifier."""

    def add(app):
        app.state.models["simple"] = Simple()
        return app

    def running(**settings):
        return serve(**{"method": "source", "wrap": add} | settings)

    return running


@pytest.fixture(scope="module")
def running(with_simple):
    with with_simple(max_batch=8) as running:
        yield running
        assert running.service.intake.memory.held == 0


def post(running, request, headers=(), **more):
    body, own = request
    return running.http.post(INFER, content=body, headers=own | dict(headers), **more)


def predicted(response):
    return outputs_of(response)["probabilities"].argmax(axis=1).tolist()


# What it tells of itself


def test_the_server_and_its_model_tell_what_they_are(running):
    """Metadata, configuration, index and health, as clients and their checks read them."""
    get = running.http.get
    for path in ("/v2", "/v2/"):
        told = get(path)
        assert told.status_code == 200
        assert {"name", "version", "extensions"} == set(told.json())
        assert {"binary_tensor_data", "classification"} <= set(told.json()["extensions"])
    assert get("/v2/health/live").json() == {"live": True}
    assert get("/v2/health/ready").json() == {"ready": True}
    assert get("/v2/models").json() == {"models": ["simple", "bundled"]}
    for path in ("/v2/models/bundled", "/v2/models/bundled/versions/1"):
        metadata = get(path).json()
        assert metadata["versions"] == ["1"]
        (images,) = metadata["inputs"]
        assert (images["name"], images["datatype"]) == ("images", "UINT8")
        assert images["shape"] == [-1, 32, 32, 3]
        assert "[0, 1]" in images["parameters"]["scale"]
        # Triton's image_client refuses a model of several.
        (output,) = metadata["outputs"]
        assert output == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}
        assert get(f"{path}/ready").json() == {"name": "bundled", "ready": True}
        config = get(f"{path}/config").json()
        assert config["max_batch_size"] == 1000
        assert config["input"][0]["format"] == "FORMAT_NHWC"
        assert config["input"][0]["dims"] == [32, 32, 3]
        assert config["output"][0]["dims"] == [10]
    index = running.http.post("/v2/repository/index")
    assert {each["name"]: each["state"] for each in index.json()} == {
        "simple": "READY", "bundled": "READY",
    }  # fmt: skip
    assert len(running.http.post("/v2/repository/index", json={"ready": True}).json()) == 2


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/bundled/versions/2", 404),
        ("GET", "/v2/models/bundled/versions/one/ready", 404),
        ("GET", "/v2/models/other/config", 404),
        ("GET", "/v2/models/other/stats", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", "/v2/nowhere", 404),
        ("GET", "/v2/models/bundled/nothing", 404),
        ("GET", INFER, 405),
        ("DELETE", "/v2/models/other", 405),
        ("PUT", "/v2/models/other/infer", 405),
        ("POST", "/v2", 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/v2/repository/index", 405),
    ],
)
def test_whatever_is_not_there_is_told_in_the_form_of_the_protocol(running, method, path, status):
    """A method that is not declared goes before a model that is not there."""
    refused = running.http.request(method, path)
    error(refused, status)
    if status == 405:
        assert refused.headers["Allow"]


def test_names_of_the_query_that_are_not_known_are_ignored(running):
    """Triton's examples send some; what is known is held to its form."""
    assert running.http.get("/v2/health/live?test_1=1&test_2=2").status_code == 200
    assert running.http.get("/v2/models/bundled?version=2").status_code == 200
    error(running.http.post(f"{INFER}?stream=a%20b"), 400)


# Images as tensors and as files


def test_all_forms_of_images_are_answered_as_predict_answers(running, pictures, arrays):
    """UINT8 and FP32, either layout, files as BYTES, in bytes and in JSON, and a bare body."""
    expected = classes(ask(running, pictures[:12]))
    some = arrays[:12]
    unit = some.astype(np.float32) / 255
    turned = [np.ascontiguousarray(each.transpose(0, 3, 1, 2)) for each in (some, unit)]
    for request in (
        pixels(some),
        pixels(turned[0]),
        pixels(unit),
        pixels(turned[1]),
        pixels(some.astype(np.float32), more={"scale": 255}),
        pixels(some.astype(np.float32), parameters={"scale": "255"}),
        pixels(some, more={"format": "NHWC"}),
        files(*pictures[:12]),
        files(*pictures[:12], shape=[12, 1]),
    ):
        assert predicted(post(running, request)) == expected
    as_json = {"inputs": [tensor("images", some[:2], "UINT8")]}
    assert predicted(running.http.post(INFER, json=as_json)) == expected[:2]
    as_json = {"inputs": [tensor("images", unit[:2], "FP32")], "outputs": []}
    assert predicted(running.http.post(INFER, json=as_json)) == expected[:2]
    bare = running.http.post(INFER, content=pictures[0], headers={HEADER: "0"})
    assert bare.headers["Content-Type"] == "application/octet-stream"
    assert predicted(bare) == expected[:1]


def test_files_in_json_are_base64(running, pictures):
    import base64

    text = [base64.b64encode(each).decode() for each in pictures[:2]]
    document = {"inputs": [{"name": "images", "datatype": "BYTES", "shape": [2], "data": text}]}
    assert predicted(running.http.post(INFER, json=document)) == classes(ask(running, pictures[:2]))
    document["inputs"][0]["data"][1] = "%%"
    assert "Image 2 of 2" in error(running.http.post(INFER, json=document), 400)


def test_pixels_of_another_size_are_resized_as_files_are(running):
    """The same pixels as a tensor and as a file have the same probabilities to the last bit."""
    wide = np.random.default_rng(0).integers(0, 256, (2, 48, 100, 3), np.uint8)
    pngs = []
    for each in wide:
        file = io.BytesIO()
        Image.fromarray(each).save(file, "PNG")
        pngs.append(file.getvalue())
    whole = {"parameters": {"binary_data_output": True}}
    found = [
        outputs_of(post(running, request))["probabilities"]
        for request in (pixels(wide, **whole), files(*pngs, **whole))
    ]
    assert np.array_equal(*found)


def test_outputs_come_when_asked_for_by_name(running, pictures):
    """All agree with /predict; without a wish there is one."""
    told = ask(running, pictures[:3])["predictions"]
    names = ("label", "entropy", "logits", "version", "probabilities")
    for as_bytes in (True, False):
        wanted = [{"name": each, "parameters": {"binary_data": as_bytes}} for each in names]
        found = outputs_of(post(running, files(*pictures[:3], outputs=wanted)))
        assert tuple(found) == names
        labels = [x.decode() if as_bytes else x for x in found["label"]]
        assert labels == [each["name"] for each in told]
        assert np.allclose(found["entropy"], [each["entropy"] for each in told])
        assert found["version"].tolist() == [0, 0, 0]
        assert found["logits"].shape == (3, 10)
        confidences = [each["confidence"] for each in told]
        assert np.allclose(found["probabilities"].max(axis=1), confidences)
    assert list(outputs_of(post(running, files(pictures[0])))) == ["probabilities"]


def test_the_classification_extension_names_classes(running, pictures):
    """As `top_k` of /predict does."""
    wanted = [{"name": "probabilities", "parameters": {"classification": 3}}]
    found = outputs_of(post(running, files(*pictures[:2], outputs=wanted)))["probabilities"]
    told = ask(running, pictures[:2], params={"top_k": 3})["predictions"]
    expected = [f"{one['confidence']:f}:{one['class']}:{one['name']}" for image in told
                for one in image["top_k"]]  # fmt: skip
    assert [x.decode() if isinstance(x, bytes) else x for x in found] == expected
    wanted[0]["parameters"]["classification"] = 1
    best = outputs_of(post(running, files(*pictures[:20], outputs=wanted)))["probabilities"]
    found = [int((x.decode() if isinstance(x, bytes) else x).split(":")[1]) for x in best]
    assert found == classes(ask(running, pictures[:20]))
    wanted = [{"name": "label", "parameters": {"classification": 3}}]
    assert "no classes" in error(post(running, files(pictures[0], outputs=wanted)), 400)


def test_a_request_is_the_image_s_id_for_later_labels(running, pictures):
    """Of several images each has its place behind it."""
    answer = post(running, files(pictures[0], id="frame-1"))
    assert answer.json()["id"] == "frame-1"
    post(running, files(*pictures[:2], id="frames"))
    given = [{"id": name, "label": 1} for name in ("frame-1", "frames/0", "frames/1")]
    late = running.http.post("/feedback", json={"labels": given})
    assert late.json()["taken"] == 3


@pytest.mark.parametrize("name", ["x" * 128, "caf\u00a0é 7", "x" * 120])
def test_whatever_id_is_accepted_names_its_image(running, pictures, name):
    """As of /predict."""
    assert post(running, files(pictures[0], id=name)).json()["id"] == name
    late = running.http.post("/feedback", json={"labels": [{"id": name, "label": 1}]})
    assert late.json()["taken"] == 1


# Streams, learning, time


def test_streams_learn_apart_as_with_predict(serve, pictures, arrays):
    """`sequence_id`, `stream`, or the header; `learn` off moves nothing."""
    with serve(method="tent") as running:
        some = pictures[:100]
        post(running, files(*some, parameters={"sequence_id": 7}))
        post(running, files(*some, parameters={"stream": "gate"}))
        post(running, pixels(arrays[:100], parameters={"sequence_id": "door", "learn": False}))
        post(running, files(*some), {"X-Session-Id": "header"})
        ask(running, some, params={"stream": "as predict"}, expect=422)
        ask(running, some, params={"stream": "as-predict"})
        streams = running.at_rest()["streams"]
        versions = {name: stream["version"] for name, stream in streams.items()}
        assert versions["7"] == versions["gate"] == versions["header"] == versions["as-predict"] > 0
        assert versions.get("door", 0) == 0
        drifts = {streams[name]["drift"] for name in ("7", "gate", "header", "as-predict")}
        assert len(drifts) == 1
        body, headers = files(pictures[0], parameters={"sequence_id": 7, "stream": "gate"})
        two = running.http.post(INFER, content=body, headers=headers)
        assert "two streams" in error(two, 400)
        assert "a stream's name is 1 to 64 of" in error(
            post(running, files(pictures[0], parameters={"stream": "a b"})), 400
        )
        assert "a stream's name is 1 to 64 of" in error(
            post(running, files(pictures[0], parameters={"sequence_id": "a b"})), 400
        )


def test_the_query_says_what_a_bare_body_cannot(serve, pictures):
    """`learn`, `context` and `timeout` as /predict has them; never otherwise than a parameter."""
    bare = {"content": pictures[0], "headers": {HEADER: "0"}}
    with serve(method="tent") as running:
        ask(running, pictures[:50], params={"stream": "gate"})
        before = running.at_rest()["streams"]["gate"]
        query = "stream=gate&learn=false&context=false&timeout=20"
        assert running.http.post(f"{INFER}?{query}", **bare).status_code == 200
        assert running.at_rest()["streams"]["gate"]["version"] == before["version"]
        late = running.http.post(f"{INFER}?timeout=0.000001", **bare)
        assert "deadline" in error(late, 504)
        for query in ("learn=no", "learn=1", "context=", "timeout=0", "timeout=soon"):
            error(running.http.post(f"{INFER}?{query}", **bare), 400)
        for name, said, meant in (
            ("learn", "false", False), ("context", "true", True), ("timeout", "2.5", 2_500_000),
        ):  # fmt: skip
            body, headers = files(pictures[0], parameters={"stream": "x", name: meant})
            same = running.http.post(f"{INFER}?{name}={said}", content=body, headers=headers)
            assert same.status_code == 200
            other = not meant if isinstance(meant, bool) else 1_000_000
            body, headers = files(pictures[0], parameters={"stream": "x", name: other})
            differs = running.http.post(f"{INFER}?{name}={said}", content=body, headers=headers)
            assert "give one of them" in error(differs, 400)


@pytest.mark.parametrize("way", ["header", "query"])
def test_a_stream_that_is_named_default_is_named(running, pictures, way):
    """Not the sequence's, which names another."""
    body, headers = files(pictures[0], parameters={"sequence_id": "cam"})
    headers |= {"X-Session-Id": "default"} if way == "header" else {}
    url = INFER if way == "header" else f"{INFER}?stream=default"
    assert "another stream" in error(running.http.post(url, content=body, headers=headers), 400)


@pytest.mark.parametrize("form", ["files", "pixels"])
def test_a_timeout_in_microseconds_that_passes_is_told(with_simple, held, pictures, arrays, form):
    """504, while the device is busy with another image; priorities are taken."""
    source, gates = held("source")
    request = {"parameters": {"timeout": 50_000, "priority": 1}}
    with with_simple(source=source) as running, ThreadPoolExecutor(1) as pool:
        gates.predict.clear()
        gates.predicting.clear()
        try:
            first = pool.submit(ask, running, pictures[:1])
            assert gates.predicting.wait(30)
            late = (
                files(pictures[0], **request) if form == "files" else pixels(arrays[:1], **request)
            )
            assert "deadline" in error(post(running, late), 504)
        finally:
            gates.open()
        assert len(first.result(60)["predictions"]) == 1


def test_statistics_count_what_was_answered(running, pictures):
    """By all requests of the protocol; /metrics has them by their route."""
    before = running.http.get("/v2/models/bundled/stats").json()["model_stats"][0]
    post(running, files(*pictures[:3]))
    post(running, files(b"no image"))
    for path in ("/v2/models/stats", "/v2/models/bundled/versions/1/stats"):
        told = running.http.get(path).json()["model_stats"]
        (after,) = [each for each in told if each["name"] == "bundled"]
        assert after["inference_count"] == before["inference_count"] + 3
        assert after["execution_count"] == before["execution_count"] + 1
        counts = {
            name: each["count"] - before["inference_stats"][name]["count"]
            for name, each in after["inference_stats"].items()
        }
        assert (counts["success"], counts["fail"], counts["queue"]) == (1, 1, 1)
        assert after["inference_stats"]["compute_infer"]["ns"] > 0
        assert after["last_inference"] > 1.7e12
    name = f'ttc_http_requests_total{{code="400",method="POST",route="{INFER}"}}'
    assert running.metric(name.replace("bundled", "{model}")) >= 1


# Packing


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_bodies_are_unpacked_and_answers_packed(running, pictures, coding, pack):
    """The header counts the JSON unpacked; /predict unpacks the same."""
    body, headers = files(*pictures[:4])
    headers |= {"Content-Encoding": coding, "Accept-Encoding": coding}
    answer = running.http.post(INFER, content=pack(body), headers=headers)
    assert answer.headers["Content-Encoding"] == coding
    expected = ask(running, pictures[:4])
    assert predicted(answer) == classes(expected)
    as_it_is = running.http.post(INFER, content=body, headers=headers | {
        "Content-Encoding": "identity", "Accept-Encoding": "identity"})  # fmt: skip
    assert "Content-Encoding" not in as_it_is.headers
    packed = running.http.post(
        "/predict", content=pack(pictures[0]), headers={"Content-Encoding": coding}
    )
    assert packed.json()["predictions"][0]["class"] == classes(expected)[0]


# Within another application


def test_mounted_in_an_application_it_is_the_same_protocol(serve, pictures):
    """Its errors have its form, unknown names in the query are ignored, health makes no noise."""

    with serve(method="source", wrap=mounted) as running:
        http = running.http
        body, headers = files(pictures[0])
        answer = http.post(f"/ttc{INFER}", content=body, headers=headers)
        assert predicted(answer) == classes(http.post("/ttc/predict", content=pictures[0]).json())
        assert http.get("/ttc/v2?test_1=1").status_code == 200
        error(http.get("/ttc/v2/models/other"), 404)
        error(http.get("/ttc/v2/nowhere"), 404)
        error(http.delete(f"/ttc{INFER}"), 405)
        error(http.post(f"/ttc{INFER}", content=b"[]"), 400)
        error(http.post(f"/ttc{INFER}?stream=a%20b", content=body, headers=headers), 400)
        problem(http.get("/ttc/nowhere"), 404)
        problem(http.get("/ttc/status?x=1"), 422)


@pytest.mark.parametrize(
    ("path", "root", "ours"),
    [
        ("/v2/models", "", "/v2/models"),
        ("/ttc/v2/models", "/ttc", "/v2/models"),
        ("/ttc/v2", "/ttc/", "/v2"),
        ("/v2/models", "/ttc", "/v2/models"),
        ("/v2", "/v", "/v2"),
        ("/v2/v2/models", "/v2", "/v2/models"),
    ],
)
def test_a_path_is_ours_without_where_we_are_mounted(path, root, ours):
    """Some servers and proxies take the prefix off themselves."""
    assert path_in({"path": path, "root_path": root}) == ours


# A model of other tensors


def test_a_model_of_two_tensors_is_served_by_the_same_layer(running):
    """INT32 in, INT32 out, in JSON and in bytes; versions, statistics, batches as for any."""
    first = np.arange(16, dtype=np.int32)[None]
    second = np.full((1, 16), 3, np.int32)
    url = "/v2/models/simple/versions/1/infer"
    inputs = [tensor("INPUT0", first, "INT32"), tensor("INPUT1", second, "INT32")]
    found = outputs_of(running.http.post(url, json={"inputs": inputs}))
    assert np.array_equal(found["OUTPUT0"], first + second)
    assert np.array_equal(found["OUTPUT1"], first - second)
    body, headers = binary(
        ("INPUT0", "INT32", (1, 16), first.tobytes()),
        ("INPUT1", "INT32", (1, 16), second.tobytes()),
        outputs=[{"name": "OUTPUT1", "parameters": {"binary_data": True}}],
    )
    found = outputs_of(running.http.post(url, content=body, headers=headers))
    assert list(found) == ["OUTPUT1"]
    assert np.array_equal(found["OUTPUT1"], first - second)
    metadata = running.http.get("/v2/models/simple").json()
    assert [each["name"] for each in metadata["inputs"]] == ["INPUT0", "INPUT1"]
    assert running.http.get("/v2/models/simple/config").json()["input"][0] == {
        "name": "INPUT0", "data_type": "TYPE_INT32", "dims": [16], "format": "FORMAT_NONE",
    }  # fmt: skip
    alone = running.http.post(url, json={"inputs": inputs[:1]})
    assert "'INPUT1'" in error(alone, 400)
    assert "2" in error(running.http.post(url, content=b"x", headers={HEADER: "0"}), 400)
