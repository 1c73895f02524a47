"""Answers: JSON and bytes, classes in order, packed; what clients then read is what was written."""

import gzip
import json
import zlib

import numpy as np
import pytest

from service.errors import OutOfRange
from service.v2.reading import InferenceRequest, Wanted
from service.v2.signature import Output, Signature
from service.v2.writing import Answer, coding_for, pack, write
from tests.fixtures.v2 import unframed

NAMES = ("cat", "dog:brown", "bird")
SIGNATURE = Signature(
    "m", "python", [], [Output("P", "FP32", (-1, 3), NAMES)],
    more=[Output("N", "INT64", (-1,)), Output("T", "BYTES", (-1,))], max_batch=4,
)  # fmt: skip
P = np.array([[0.2, 0.5, 0.3], [0.25, 0.25, 0.5]], np.float32)


def written(outputs, *wanted, id=None, **more):
    answer, request = Answer(), InferenceRequest(id, {}, {}, list(wanted))
    for _ in write(answer, SIGNATURE, request, outputs, **more):
        pass
    return json.loads(answer.text), bytes(answer.tensors)


def test_an_answer_is_what_the_protocol_says():
    """The id is echoed; tensors as JSON are flat."""
    outputs = {"P": P, "N": np.array([7, 8]), "T": np.array([b"a", "ü".encode()], object)}
    document, tail = written(outputs, *(Wanted(name, False) for name in outputs), id="x")
    assert (document["model_name"], document["model_version"], document["id"]) == ("m", "1", "x")
    probabilities, numbers, texts = document["outputs"]
    assert probabilities["shape"] == [2, 3]
    assert np.array_equal(np.float32(probabilities["data"]), P.ravel())
    assert numbers == {"name": "N", "datatype": "INT64", "shape": [2], "data": [7, 8]}
    assert texts["data"] == ["a", "ü"]
    assert tail == b""


def test_bytes_follow_in_the_order_of_the_outputs():
    outputs = {"P": P, "T": np.array([b"a", b""], object)}
    document, tail = written(outputs, Wanted("T", True), Wanted("P", True))
    sizes = [each["parameters"]["binary_data_size"] for each in document["outputs"]]
    assert list(unframed(tail[: sizes[0]])) == [b"a", b""]
    assert tail[sizes[0] :] == P.tobytes()
    assert len(tail) == sum(sizes)
    assert "id" not in document


def test_of_equals_the_model_says_which_is_best():
    best = {"P": lambda row, count: [2 - row, 1, 0][:count]}
    document, _ = written({"P": P}, Wanted("P", False, classes=1), best=best)
    assert document["outputs"][0]["data"] == ["0.300000:2:bird", "0.250000:1:dog:brown"]


@pytest.mark.parametrize("binary", [False, True])
def test_classes_come_best_first_with_their_names(binary):
    """More than there are is all; of equals the first."""
    document, tail = written({"P": P}, Wanted("P", binary, classes=5))
    (output,) = document["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 3])
    found = [each.decode() for each in unframed(tail)] if binary else output["data"]
    assert found[0] == "0.500000:1:dog:brown"
    assert [each.split(":")[1] for each in found] == ["1", "2", "0", "2", "0", "1"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_json_has_no_number_for_is_told(value):
    """In bytes it goes."""
    outputs = {"P": np.full((1, 3), value, np.float32)}
    with pytest.raises(OutOfRange, match="binary_data"):
        written(outputs, Wanted("P", False))
    assert written(outputs, Wanted("P", True))[1] == outputs["P"].tobytes()


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("GZIP;q=0.5", "gzip"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip; q=0.000", None),
        ("br, identity", None),
        ("gzip;q=nothing", "gzip"),
    ],
)
def test_an_answer_is_packed_as_the_client_takes_it(accepted, coding):
    assert coding_for([accepted]) == coding
    assert coding_for([accepted, "," * 3000]) is None


@pytest.mark.parametrize(
    ("coding", "unpack"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)]
)
def test_what_is_packed_is_what_was_written(coding, unpack):
    for content in (b"", b"x" * 1_000_000):
        assert unpack(b"".join(pack(content, coding))) == content
