"""Unmodified clients of the Open Inference Protocol against a real server on a real port."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.fixtures.requests import ask, classes
from tests.fixtures.v2 import Simple

ROOT = Path(__file__).parents[2]
SCHEMATHESIS = ROOT / "tests" / "fixtures" / "schemathesis.toml"
KSERVE = ROOT / ".venv-kserve" / "bin" / "python"


@pytest.fixture(scope="module")
def running(serve):
    def add(app):
        app.state.models["simple"] = Simple()
        return app

    with serve(method="source", max_batch=8, wrap=add) as running:
        yield running
        assert running.service.intake.memory.held == 0


@pytest.fixture(scope="module")
def address(running):
    return running.url.removeprefix("http://")


@pytest.fixture
def client(address):
    client = triton.InferenceServerClient(address)
    yield client
    client.close()


@pytest.fixture(scope="module")
def expected(running, pictures):
    return classes(ask(running, pictures[:8]))


def images_of(module, values, datatype, *, as_bytes=True):
    given = module.InferInput("images", list(values.shape), datatype)
    given.set_data_from_numpy(values, binary_data=as_bytes)
    return [given]


def test_triton_s_client_asks_all_that_there_is(client):
    """As its own examples do."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("bundled")
    assert client.is_model_ready("bundled", "1")
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("bundled", "2")
    assert "classification" in client.get_server_metadata()["extensions"]
    assert len(client.get_model_metadata("bundled")["outputs"]) == 1
    assert client.get_model_config("bundled", "1")["max_batch_size"] == 1000
    assert {each["name"] for each in client.get_model_repository_index()} == {"bundled", "simple"}
    assert len(client.get_inference_statistics()["model_stats"]) == 2
    assert client.get_inference_statistics("bundled", "1")["model_stats"][0]["name"] == "bundled"
    with pytest.raises(InferenceServerException, match="unknown model: 'other'"):
        client.get_model_metadata("other")


@pytest.mark.parametrize("as_bytes", [True, False])
@pytest.mark.parametrize("packing", [None, "gzip", "deflate"])
def test_triton_s_client_has_images_answered(client, pictures, arrays, expected, packing, as_bytes):
    """Pixels in both datatypes and files, bytes and JSON, packed both ways."""
    packed = {
        "request_compression_algorithm": packing,
        "response_compression_algorithm": packing,
    }
    some, unit = arrays[:8], arrays[:8].astype(np.float32) / 255
    wanted = [triton.InferRequestedOutput("probabilities", binary_data=as_bytes)]
    for values, datatype in ((some, "UINT8"), (unit, "FP32")):
        given = images_of(triton, values, datatype, as_bytes=as_bytes)
        answer = client.infer("bundled", given, outputs=wanted, request_id="r-1", **packed)
        assert answer.as_numpy("probabilities").argmax(axis=1).tolist() == expected
        assert answer.get_response()["id"] == "r-1"
    if as_bytes:
        given = images_of(triton, np.array(pictures[:8], object), "BYTES")
        answer = client.infer("bundled", given, **packed)
        assert answer.as_numpy("probabilities").argmax(axis=1).tolist() == expected


def test_triton_s_client_has_classes_and_parameters(running, client, arrays, expected):
    """Sequences, priorities, timeouts and parameters of one's own; outputs by name."""
    given = images_of(triton, arrays[:8], "UINT8")
    outputs = [
        triton.InferRequestedOutput("probabilities", class_count=3),
        triton.InferRequestedOutput("label"),
        triton.InferRequestedOutput("version", binary_data=False),
    ]
    answer = client.infer(
        "bundled", given, outputs=outputs, sequence_id=42, sequence_start=True, priority=1,
        timeout=60_000_000, parameters={"camera": "c1"}, model_version="1",
    )  # fmt: skip
    best = answer.as_numpy("probabilities")
    assert best.shape == (8, 3)
    assert [int(each.split(b":")[1]) for each in best[:, 0]] == expected
    labels = answer.as_numpy("label")
    assert [each.split(b":")[2] for each in best[:, 0]] == labels.tolist()
    assert answer.as_numpy("version").tolist() == [0] * 8
    assert "42" in running.at_rest()["streams"]
    with pytest.raises(InferenceServerException, match="boxes"):
        client.infer("bundled", given, outputs=[triton.InferRequestedOutput("boxes")])


def test_triton_s_client_sends_many_at_once(address, arrays, expected):
    """`async_infer`, over several connections."""
    with triton.InferenceServerClient(address, concurrency=4) as client:
        waiting = [
            client.async_infer("bundled", images_of(triton, arrays[n : n + 1], "UINT8"))
            for n in range(8)
        ]
        found = [each.get_result().as_numpy("probabilities").argmax() for each in waiting]
    assert found == expected


def test_triton_s_asynchronous_client(address, pictures, arrays, expected):
    """It sends other headers than the other."""

    async def run():
        async with triton_aio.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            assert await client.is_model_ready("bundled")
            assert (await client.get_model_config("bundled"))["max_batch_size"] == 1000
            found = []
            for values, datatype in (
                (arrays[:8], "UINT8"),
                (np.array(pictures[:8], object), "BYTES"),
            ):
                answer = await client.infer("bundled", images_of(triton_aio, values, datatype))
                found.append(answer.as_numpy("probabilities").argmax(axis=1).tolist())
            with pytest.raises(InferenceServerException, match="Request for unknown model"):
                await client.infer("other", images_of(triton_aio, arrays[:1], "UINT8"))
            return found

    assert asyncio.run(run()) == [expected, expected]


def test_triton_s_client_and_two_tensors(client):
    """What its example simple_http_infer_client.py does, with a model that is not ours."""
    first, second = np.arange(16, dtype=np.int32)[None], np.full((1, 16), 2, np.int32)
    inputs = [triton.InferInput(f"INPUT{n}", [1, 16], "INT32") for n in range(2)]
    inputs[0].set_data_from_numpy(first, binary_data=False)
    inputs[1].set_data_from_numpy(second, binary_data=True)
    outputs = [
        triton.InferRequestedOutput("OUTPUT0", binary_data=True),
        triton.InferRequestedOutput("OUTPUT1", binary_data=False),
    ]
    for asked in (outputs, None):
        answer = client.infer("simple", inputs, outputs=asked)
        assert np.array_equal(answer.as_numpy("OUTPUT0"), first + second)
        assert np.array_equal(answer.as_numpy("OUTPUT1"), first - second)


def test_the_page_s_example_runs_as_it_stands(address, capsys):
    """docs/v2.md."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "v2.md").read_text(), re.DOTALL)
    exec(code.replace("127.0.0.1:8000", address), {})
    assert len(re.findall(r"b'0\.\d+:\d:[^']+'", capsys.readouterr().out)) == 3


@pytest.mark.slow
def test_kserve_s_client_has_images_answered(running, pictures, expected, tmp_path):
    """Its packages do not go beside ours: it runs in an environment of its own."""
    if not KSERVE.exists() and not os.environ.get("CI"):
        pytest.skip("no .venv-kserve here: `make test` makes it")
    for number, picture in enumerate(pictures[:8]):
        (tmp_path / f"{number}.png").write_bytes(picture)
    script = ROOT / "tests" / "fixtures" / "kserve_client.py"
    done = subprocess.run(
        [KSERVE, "-P", script, running.url, tmp_path, ",".join(map(str, expected))],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("answered\n")


@pytest.mark.slow
def test_whatever_the_description_allows_is_answered_as_described(running, tmp_path):
    """By schemathesis, which draws from /openapi.json: no 5xx, no status that it does not have."""
    done = subprocess.run(
        [
            *(Path(sys.executable).parent / "schemathesis", "--config-file", SCHEMATHESIS),
            *(
                "run",
                f"{running.url}/openapi.json",
                "--seed",
                "1",
                "--no-color",
                "--max-time",
                "20",
            ),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "10"),
            *("--checks", "not_a_server_error,status_code_conformance"),
            *("--generation-database", "none", "--suppress-health-check", "all"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
