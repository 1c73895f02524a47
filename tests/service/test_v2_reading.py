"""Bytes become tensors of the signature, or a Refused with a sentence; never anything else."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import OutOfRange, Refused, TooLarge
from service.v2.datatypes import check_shape
from service.v2.parameters import id_of, number, object_in, options_in, switch
from service.v2.reading import read_request
from service.v2.signature import Input, Output, Signature
from tests.fixtures.v2 import HEADER, Simple, binary, framed, tensor

ONES = np.ones((1, 16), np.int32)
KINDS = ("BOOL", "UINT8", "INT8", "UINT16", "INT32", "UINT64", "INT64", "FP16", "FP32", "FP64")


def of(datatype, shape=(-1, 2), max_batch=0, **more):
    """A model of one input."""
    return Signature(
        "one", "python", [Input("A", datatype, shape, **more)], [Output("B", "FP32", (-1, 2))],
        max_batch=max_batch,
    )  # fmt: skip


def read(document, signature, tail=b"", stated=None):
    text = json.dumps(document).encode()
    if tail and stated is None:
        stated = str(len(text))
    return read_request(text + tail, stated, signature)


def numpy_kind(datatype):
    return np.dtype({"BOOL": "bool"}.get(datatype) or datatype.replace("FP", "float").lower())


@given(
    datatype=st.sampled_from(KINDS),
    rows=st.integers(0, 3),
    data=st.data(),
    nested=st.booleans(),
)
def test_json_and_bytes_are_the_same_tensor(datatype, rows, data, nested):
    """Of every datatype, flat or nested, with the edges of its range."""
    kind = numpy_kind(datatype)
    if datatype == "BOOL":
        values = st.booleans()
    elif datatype.startswith("FP"):
        values = st.floats(width=kind.itemsize * 8, allow_nan=False, allow_infinity=False)
    else:
        values = st.integers(int(np.iinfo(kind).min), int(np.iinfo(kind).max))
    drawn = data.draw(st.lists(values, min_size=2 * rows, max_size=2 * rows))
    expected = np.array(drawn, kind).reshape(rows, 2)
    entry = {"name": "A", "datatype": datatype, "shape": [rows, 2]}
    given_data = expected.tolist() if nested else expected.ravel().tolist()
    if rows or not nested:
        came = read({"inputs": [{**entry, "data": given_data}]}, of(datatype)).inputs["A"]
        assert np.array_equal(came.values, expected)
        assert came.values.dtype == kind
        assert not came.binary
    body, headers = binary(("A", datatype, (rows, 2), expected.tobytes()))
    came = read_request(body, headers[HEADER], of(datatype)).inputs["A"]
    assert np.array_equal(came.values, expected)
    assert came.binary


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_elements_of_bytes_are_as_they_were_sent(elements):
    """Also empty ones, and none at all."""
    body, headers = binary(("A", "BYTES", (len(elements),), framed(*elements)))
    came = read_request(body, headers[HEADER], of("BYTES", (-1,))).inputs["A"]
    assert list(map(bytes, came.values)) == elements


def test_elements_in_binary_form_take_no_memory_beside_the_body_and_those_of_json_are_counted():
    body, headers = binary(("A", "BYTES", (2,), framed(bytes(5000), b"a")))
    request = read_request(bytearray(body), headers[HEADER], of("BYTES", (-1,)))
    assert all(isinstance(each, memoryview) for each in request.inputs["A"].values)
    assert request.memory == 0
    text = read({"inputs": [tensor("A", ["a" * 5000], "BYTES")]}, of("BYTES", (-1,)))
    assert 5000 < text.memory < 5200
    assert read({"inputs": [tensor("A", [[1, 2]], "FP64")]}, of("FP64")).memory == 16


EMPTY = [
    [0, 2**62, 2**62, 3], [1, 2**62, 0, 3], [0, 3, 2**62, 2**62], [0, 2**63 - 1, 2**63 - 1, 3],
    [1, 0, 2**63 - 1, 3],
]  # fmt: skip


@pytest.mark.parametrize("datatype", ["UINT8", "FP32", "FP64", "BYTES"])
@pytest.mark.parametrize("shape", EMPTY)
def test_a_tensor_of_nothing_with_sides_without_end_is_refused(shape, datatype):
    """numpy has no such shape of 2^63 bytes."""
    signature = of(datatype, (-1, -1, -1, -1))
    body, headers = binary(("A", datatype, shape, b""))
    for call in (
        lambda: read(
            {"inputs": [{**entry(shape=shape, data=[]), "datatype": datatype}]}, signature
        ),
        lambda: read_request(body, headers[HEADER], signature),
    ):
        with pytest.raises(Refused, match=r"2\^63 bytes"):
            call()


def test_parameters_outputs_and_order_are_read():
    """What is not known is ignored; what is binary follows in the order of the inputs."""
    body, headers = binary(
        ("INPUT1", "INT32", (1, 16), (2 * ONES).tobytes()),
        ("INPUT0", "INT32", (1, 16), ONES.tobytes()),
        model_name="simple",
        unknown={"deep": [1]},
        id="7",
        parameters={"camera": {"a": 1}, "sequence_id": 2**64 - 1, "sequence_end": False,
                    "priority": 3, "timeout": 1500, "binary_data_output": True},
        outputs=[{"name": "OUTPUT1", "parameters": {"binary_data": False}}, {"name": "OUTPUT0"}],
    )  # fmt: skip
    request = read_request(body, headers[HEADER], Simple.signature)
    assert request.inputs["INPUT0"].values.tolist() == ONES.tolist()
    assert request.inputs["INPUT1"].values.tolist() == (2 * ONES).tolist()
    assert [(each.name, each.binary) for each in request.outputs] == [
        ("OUTPUT1", False), ("OUTPUT0", True),
    ]  # fmt: skip
    assert (request.id, request.sequence, request.timeout) == ("7", str(2**64 - 1), 0.0015)


def test_of_parameters_those_are_kept_that_the_model_reads():
    """Of a request and of its inputs: it waits with what it keeps, which nobody counts."""
    signature = replace(of("INT8", options=("scale",)), options=("mode", "speed"))
    given = {"mode": "x", "speed": None, "scale": 1.5, "of nobody": ["y"], "sequence_id": 7}
    one = tensor("A", [[1, 2]], "INT8", scale=True, mode="z", other={"z": 1})
    request = read({"inputs": [one], "parameters": given}, signature)
    assert request.parameters == {"mode": "x", "scale": 1.5}
    assert request.inputs["A"].parameters == {"scale": True}
    for wrong in ([1], {"a": 1}, "x" * 1001):
        with pytest.raises(OutOfRange, match="The parameter mode is a text of at most 1,000"):
            read({"inputs": [one], "parameters": {"mode": wrong}}, signature)
        wrong_one = tensor("A", [[1, 2]], "INT8", scale=wrong)
        with pytest.raises(OutOfRange, match="'A': The parameter scale"):
            read({"inputs": [wrong_one]}, signature)


class Endless(list):
    """Of a million numbers, say: while it is written no other thread runs."""

    def __repr__(self):
        raise AssertionError("it is written in whole")


@pytest.mark.parametrize(
    "check",
    [
        lambda value: switch({"a": value}, "a"),
        lambda value: number({"a": value}, "a"),
        lambda value: options_in({"a": value}, ["a"]),
        lambda value: object_in(value, "a"),
        id_of,
        check_shape,
        lambda value: check_shape([1, value]),
    ],
)
def test_a_sentence_does_not_write_in_whole_what_it_cuts(check):
    with pytest.raises(OutOfRange, match="a list of 17"):
        check(Endless([1] * 17))


@pytest.mark.parametrize("nothing", [{}, {"sequence_id": 0}, {"sequence_id": ""}, {"timeout": 0}])
def test_0_is_no_sequence_and_no_timeout(nothing):
    request = read({"inputs": [tensor("A", [[1, 2]], "INT8")], "parameters": nothing}, of("INT8"))
    assert (request.sequence, request.timeout) == ("", None)


def test_a_bare_body_is_the_one_input():
    """Of numbers as many as the shape has, of BYTES one element, whatever is in it."""
    one = read_request(b"\x01\x02", "0", of("UINT8")).inputs["A"]
    assert one.values.tolist() == [[1, 2]]
    element = read_request(framed(b"a", b"b"), "0", of("BYTES", (-1,))).inputs["A"]
    assert element.values.tolist() == [framed(b"a", b"b")]
    for body, signature in ((b"\x01", of("UINT8")), (b"\x01", Simple.signature)):
        with pytest.raises(Refused):
            read_request(body, "0", signature)


def entry(**changes):
    return {"name": "A", "datatype": "INT32", "shape": [1, 2], "data": [1, 2]} | changes


def with_size(size, **changes):
    return {k: v for k, v in entry(**changes).items() if k != "data"} | {
        "parameters": {"binary_data_size": size}
    }


def nested(depth):
    data = [1, 2]
    for _ in range(depth):
        data = [data]
    return data


REFUSED = {
    "a list": [],
    "no inputs": {},
    "inputs that are none": {"inputs": {}},
    "an input that is none": {"inputs": [3]},
    "no input": {"inputs": []},
    "an unknown input": {"inputs": [entry(name="B")]},
    "a name that is a list": {"inputs": [entry(name=["A"])]},
    "an input twice": {"inputs": [entry(), entry()]},
    "another datatype": {"inputs": [entry(datatype="FP32")]},
    "no datatype of the protocol": {"inputs": [entry(datatype="BF16")]},
    "a datatype that is a list": {"inputs": [entry(datatype=[])]},
    "another shape": {"inputs": [entry(shape=[2, 1])]},
    "another rank": {"inputs": [entry(shape=[2])]},
    "a shape that overflows": {"inputs": [entry(shape=[2**60 + 2, 2])]},
    "a shape that overflows to what came": {"inputs": [with_size(8, shape=[2**63 - 1, 2])]},
    "a negative shape": {"inputs": [entry(shape=[-1, -2])]},
    "a shape of 70 digits": {"inputs": [entry(shape=[10**70, 2])]},
    "a shape of fractions": {"inputs": [entry(shape=[1.0, 2])]},
    "a shape of truths": {"inputs": [entry(shape=[True, 2])]},
    "no shape": {"inputs": [entry(shape=None)]},
    "a shape of 1,000 sides": {"inputs": [entry(shape=[1] * 1000)]},
    "too few values": {"inputs": [entry(data=[1])]},
    "too many values": {"inputs": [entry(data=[1, 2, 3])]},
    "no data": {"inputs": [entry(data=None)]},
    "data that is no list": {"inputs": [entry(data="12")]},
    "data 120 deep": {"inputs": [entry(data=nested(120))]},
    "ragged data": {"inputs": [entry(data=[[1], 2])]},
    "fractions": {"inputs": [entry(data=[1, 2.5])]},
    "truths": {"inputs": [entry(data=[1, True])]},
    "texts": {"inputs": [entry(data=["1", "2"])]},
    "objects": {"inputs": [entry(data=[{}, {}])]},
    "nulls": {"inputs": [entry(data=[None, 1])]},
    "a value beyond the datatype": {"inputs": [entry(data=[1, 2**31])]},
    "a value far beyond it": {"inputs": [entry(data=[1, 10**400])]},
    "parameters that are none": {"inputs": [entry(parameters=3)]},
    "both forms": {"inputs": [entry(parameters={"binary_data_size": 0})]},
    "a size beyond the body": {"inputs": [with_size(8)]},
    "a negative size": {"inputs": [with_size(-8)]},
    "a size of 70 digits": {"inputs": [with_size(10**70)]},
    "a size that is no number": {"inputs": [with_size("8")]},
    "shared memory": {"inputs": [entry(parameters={"shared_memory_region": "x"})]},
    "an unknown output": {"inputs": [entry()], "outputs": [{"name": "A"}]},
    "an output twice": {"inputs": [entry()], "outputs": [{"name": "B"}, {"name": "B"}]},
    "an output that is none": {"inputs": [entry()], "outputs": ["B"]},
    "outputs that are none": {"inputs": [entry()], "outputs": "B"},
    "-1 classes": {
        "inputs": [entry()],
        "outputs": [{"name": "B", "parameters": {"classification": -1}}],
    },
    "a truth of classes": {
        "inputs": [entry()],
        "outputs": [{"name": "B", "parameters": {"classification": True}}],
    },
    "an id that is no text": {"inputs": [entry()], "id": 7},
    "an id without end": {"inputs": [entry()], "id": "x" * 100_000},
    "a reserved parameter": {"inputs": [entry()], "parameters": {"triton_x": 1}},
    "headers": {"inputs": [entry()], "parameters": {"headers": {}}},
    "a reserved parameter of an input": {"inputs": [entry(parameters={"triton_x": 1})]},
    "headers of an output": {
        "inputs": [entry()],
        "outputs": [{"name": "B", "parameters": {"headers": 1}}],
    },
    "a priority that is none": {"inputs": [entry()], "parameters": {"priority": "high"}},
    "a negative priority": {"inputs": [entry()], "parameters": {"priority": -1}},
    "a negative timeout": {"inputs": [entry()], "parameters": {"timeout": -1}},
    "a sequence that is none": {"inputs": [entry()], "parameters": {"sequence_id": 1.5}},
    "a sequence beyond 64 bits": {"inputs": [entry()], "parameters": {"sequence_id": 2**64}},
    "a start that is none": {"inputs": [entry()], "parameters": {"sequence_start": 1}},
    "binary output that is none": {"inputs": [entry()], "parameters": {"binary_data_output": 1}},
    "parameters as a list": {"inputs": [entry()], "parameters": []},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_with_a_sentence(name):
    with pytest.raises(Refused) as refused:
        read(REFUSED[name], of("INT32"))
    assert str(refused.value).endswith(".")
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 250_000, b"\xff", b'{"inputs": [NaN]}', b"9" * 10_000,
             b'{"inputs": [{"name": "A", "shape": [' + b"9" * 5000 + b"]}]}"],
)  # fmt: skip
def test_what_is_no_json_is_refused(body):
    with pytest.raises(Refused):
        read_request(body, None, of("INT32"))


@pytest.mark.parametrize(
    "stated", ["-1", "", "x", "1e3", " 5", "+5", "99999999999", "9" * 5000, "0x10", "٣"]
)
def test_a_length_is_a_number_of_bytes_that_the_body_has(stated):
    body, _ = binary(("A", "INT32", (1, 2), bytes(8)))
    with pytest.raises(Refused, match=HEADER):
        read_request(body, stated, of("INT32"))


@pytest.mark.parametrize("change", [-1, 1])
def test_the_body_ends_with_the_last_tensor(change):
    body, headers = binary(("A", "INT32", (1, 2), bytes(8)))
    body = body[:change] if change < 0 else body + b"\0"
    with pytest.raises(Refused):
        read_request(body, headers[HEADER], of("INT32"))


@pytest.mark.parametrize(
    "content", [b"", b"\1\0\0\0", b"\1\0\0", framed(b"a") + b"\0", framed(b"a", b"b"), b"\xff" * 8]
)
def test_elements_that_do_not_fit_their_bytes_are_refused(content):
    body, headers = binary(("A", "BYTES", (1,), content))
    with pytest.raises(Refused):
        read_request(body, headers[HEADER], of("BYTES", (-1,)))


def test_limits_hold():
    """Of a batch, of values in JSON, of values that are written as JSON or as classes."""
    long = entry(shape=[9, 2], data=[0] * 18)
    with pytest.raises(TooLarge, match="at most 8"):
        read({"inputs": [long]}, of("INT32", max_batch=8))
    with pytest.raises(TooLarge, match="binary form"):
        read({"inputs": [entry(shape=[1, 2_000_000], data=[0] * 2_000_000)]}, of("INT32"))
    lists = b'{"inputs":[{"name":"A","datatype":"INT32","shape":[1,2],"data":[%s[]]}]}'
    for each in (b"[],", b"[0],", b"[[]],"):
        with pytest.raises(TooLarge, match="flat list"):
            read_request(lists % (each * 70_000), None, of("INT32"))
    names = b",".join(b'"%d":1' % number for number in range(70_000))
    with pytest.raises(TooLarge, match="65,536 colons"):
        read_request(b'{"inputs":[],"parameters":{%s}}' % names, None, of("INT32"))
    image = {"inputs": [tensor("A", np.zeros((1, 224, 224, 3), np.uint8), "UINT8")]}
    assert read(image, of("UINT8", (-1, -1, -1, 3))).inputs["A"].values.shape[1] == 224
    with pytest.raises(Refused, match="binary_data"):
        read(
            {"inputs": [entry(shape=[60_000, 2], data=[0] * 120_000)]},
            of("INT32", max_batch=1 << 20),
        )


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["A", "B", "INT32", "BYTES", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["inputs", "outputs", "name", "shape", "datatype", "data", "parameters",
                         "binary_data_size", "id", "sequence_id", "classification", "timeout"]),
        inner, max_size=6),
    max_leaves=25,
), st.binary(max_size=20), st.none() | st.integers(-2, 200).map(str))  # fmt: skip
def test_whatever_comes_is_read_or_refused(document, tail, stated):
    """Nothing else is raised."""
    with contextlib.suppress(Refused):
        read_request(json.dumps(document).encode() + tail, stated, of("INT32"))


SIDES = st.sampled_from([0, 0, 1, 1, 2, 3, 2**31, 2**32, 2**60, 2**61, 2**62, 2**63 - 1, 2**63])


@given(
    shape=st.lists(SIDES, min_size=2, max_size=2) | st.lists(SIDES, max_size=17),
    datatype=st.sampled_from((*KINDS, "BYTES")),
    data=st.lists(st.integers(0, 1), max_size=6) | st.none() | st.just([[], []]),
    tail=st.binary(max_size=12),
)
def test_whatever_shape_comes_is_read_or_refused(shape, datatype, data, tail):
    """Of two free sides, in JSON and in bytes: what is read has the shape."""
    given_data = {"parameters": {"binary_data_size": len(tail)}} if data is None else {"data": data}
    tail = tail if data is None else b""
    one = {"name": "A", "datatype": datatype, "shape": shape, **given_data}
    text = json.dumps({"inputs": [one]}).encode()
    with contextlib.suppress(Refused):
        request = read_request(text + tail, str(len(text)), of(datatype, (-1, -1)))
        assert list(request.inputs["A"].values.shape) == shape
