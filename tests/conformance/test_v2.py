"""`python -m conformance.v2` says of a right server that all is there, and finds single defects."""

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from conformance.v2.__main__ import CHECKS, main
from conformance.v2.tensors import from_json, sizes
from tests.conformance.stub import Stub

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "conformance" / "README.md").read_text()


@contextlib.contextmanager
def serving(stub: Stub) -> Iterator[str]:
    """The stub on a port of its own."""
    config = uvicorn.Config(stub, port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def right() -> Iterator[str]:
    with serving(Stub()) as url:
        yield url


def asked(capsys, url: str, model: str, *options: str) -> tuple[int, dict[str, dict]]:
    """The exit status, and the rows by name."""
    status = main([url, "--model", model, "--json", *options])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == [check.name for check in CHECKS]
    return status, {row["name"]: row for row in rows}


def lacking(rows: dict[str, dict]) -> set[str]:
    return {name for name, row in rows.items() if row["outcome"] in ("no", "not asked")}


@pytest.mark.parametrize(
    ("model", "options", "inapplicable"),
    [
        ("simple", [], {"raw", "nan-binary", "binary-bytes"}),
        ("length", [], {"binary-mixed", "nested-data", "versions", "nan-binary"}),
        (
            "identity",
            [],
            {"binary-mixed", "nested-data", "versions", "classification", "nan-binary"},
        ),
        ("floats", ["--tolerance", "0"], {"binary-mixed", "versions", "binary-bytes"}),
        ("pictures", [], {"binary-mixed", "versions", "binary-bytes", "raw"}),
    ],
)
def test_a_right_server_has_everything(capsys, right, model, options, inapplicable):
    """What has no meaning for a model is said to have none."""
    status, rows = asked(capsys, right, model, *options)
    assert {name: row["why"] for name, row in rows.items() if row["outcome"] == "no"} == {}
    assert status == 0
    told = {name for name, row in rows.items() if row["outcome"] == "not applicable"}
    assert told == inapplicable
    assert all(row["why"] for row in rows.values() if row["outcome"] != "yes")


REFUSALS = {
    *("refusal", "unknown-model", "unknown-path", "method", "wrong-body", "deep-data"),
    *("deep-json", "broken-gzip", "unknown-encoding", "wrong-inputs", "wrong-outputs"),
    *("wrong-datatype", "wrong-shape", "shape-overflow", "shape-and-data", "wrong-data"),
    *("header-negative", "header-no-number", "header-huge", "header-beyond", "header-short"),
    *("binary-sizes", "binary-and-shape"),
}
DEFECTS = {
    # What is due wherever a line says so.
    "refuses nothing": REFUSALS,
    "500 for a refusal": {*REFUSALS, "shape-zero", "nan", "wrong-parameters"},
    "infers alone": {
        *("live", "ready", "model-ready", "server-metadata", "versions", "health-json"),
        *("model-list", "config", "statistics", "statistics-of-all", "repository-index"),
        *("slash", "method", "still-there"),
    },
    # What the protocol requires.
    "not ready": {"ready", "health-json"},
    "redirect": {"server-metadata"},
    "datatype of its own": {"model-metadata", "outputs"},
    "other outputs": {"outputs"},
    "no model name": {"model-name"},
    "answers all": {"output-asked", "classification"},
    "refuses nested data": {"nested-data"},
    "no id": {"id"},
    "no versions": {"versions"},
    "detail": {"error-object", "unknown-path"},
    # Extensions.
    "empty health": {"health-json"},
    "big-endian in": {"binary-input", "binary-mixed", "gzip-binary"},
    "big-endian out": {"binary-output", "binary-outputs", "binary-one-not"},
    "ignores binary_data": {"binary-output", "binary-one-not"},
    "lowest first": {"classification"},
    "sequences by number": {"sequence-text"},
    "counts nothing": {"statistics"},
    "no gzip": {"gzip-request", "gzip-binary"},
    "no deflate": {"deflate-request"},
    "no scheduler": {"sequence", "sequence-text", "schedule"},
    "no raw body": {"raw"},
    "packs nothing": {"gzip-answer", "deflate-answer"},
    # Robustness.
    "no slash": {"slash"},
    "refuses keys": {"unknown-keys"},
    "refuses parameters": {"unknown-parameters"},
    "wants a type": {"no-content-type"},
    "no chunks": {"chunked"},
    "plain text": {"json-type"},
    "charset": {"error-type"},
    "400 for 404": {"unknown-model"},
    "404 for 405": {"method"},
    "500 at deep JSON": {"deep-json"},
    "500 at parameters": {"wrong-parameters"},
    "ignores encodings": {"unknown-encoding"},
    "answers twice": {"wrong-outputs"},
    "takes -1": {"wrong-shape"},
    "overflows": {"shape-overflow"},
    "overflows in bytes": {"shape-overflow"},
    "500 at huge sizes": {"shape-zero"},
    "500 at a negative header": {"header-negative"},
    "leaves bytes": {"binary-sizes"},
    "reads beyond": {"binary-bytes"},
    "answers NaN": {"nan", "nan-binary"},
}
# That show in a model of floats alone, of several sizes that may be any, or of one element.
MODELS = {
    **{"answers NaN": "floats", "500 at huge sizes": "pictures"},
    **dict.fromkeys(("no raw body", "reads beyond"), "length"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_fails_its_own_lines_alone(capsys, defect):
    """Each says what came, and with which request."""
    with serving(Stub(defect)) as url:
        status, rows = asked(capsys, url, MODELS.get(defect, "simple"))
    found = lacking(rows)
    assert found == DEFECTS[defect]
    required = {row["group"] for name, row in rows.items() if name in found}
    assert status == ("required by the protocol" in required)
    for name in found:
        assert rows[name]["why"]
        assert rows[name]["request"].startswith("curl ")
        assert url in rows[name]["request"]


def test_each_line_fails_by_a_defect():
    """Else it would say nothing; `infer` does where inputs are missing."""
    assert set().union(*DEFECTS.values()) | {"infer"} == {check.name for check in CHECKS}


@pytest.mark.parametrize("defect", ["takes -1", "overflows", "overflows in bytes"])
@pytest.mark.parametrize("model", ["floats", "pictures"])
def test_shapes_are_wrong_in_the_rank_and_sizes_that_a_model_has(capsys, model, defect):
    """An image model refuses others before it multiplies, and the defect would not be seen."""
    with serving(Stub(defect)) as url:
        _, rows = asked(capsys, url, model)
    assert lacking(rows) == DEFECTS[defect]


def test_a_listed_extension_that_is_not_there_is_told(capsys):
    with serving(Stub("lowest first")) as url:
        _, rows = asked(capsys, url, "simple")
    assert "(the server lists classification)" in rows["classification"]["why"]


def test_answers_that_move_are_held_against_each_other_by_shape_alone(capsys):
    """With --tolerance inf: what comes of bytes read the wrong way round is then no defect."""
    with serving(Stub("big-endian in")) as url:
        status, rows = asked(capsys, url, "simple", "--tolerance", "inf")
    assert (status, lacking(rows)) == (0, set())


def test_a_model_that_has_moved_meanwhile_is_held_against_what_it_says_now(capsys):
    with serving(Stub("moves once")) as url:
        status, rows = asked(capsys, url, "simple")
    assert (status, lacking(rows)) == (0, set())


def test_an_element_that_json_cannot_carry_goes_as_bytes(capsys, right, tmp_path):
    image = tmp_path / "image.jpg"
    image.write_bytes(b"\xff\xd8\xff\xe0 no UTF-8")
    status, rows = asked(capsys, right, "length", "--bytes", str(image))
    assert status == 0
    assert rows["infer"]["outcome"] == "yes"
    assert "Inference-Header-Content-Length" in rows["infer"]["request"]
    assert rows["raw"]["outcome"] == "yes"
    assert rows["wrong-data"]["outcome"] == "not applicable"


def test_what_the_metadata_does_not_say_can_be_given(capsys):
    """Without inputs nothing can be asked of the model, and the server does not conform."""
    with serving(Stub("metadata without inputs")) as url:
        status, rows = asked(capsys, url, "simple")
        assert status == 1
        assert rows["infer"]["outcome"] == "not asked"
        assert "--input" in rows["infer"]["why"]
        given = [f"--input=INPUT{number}:INT32:2,16" for number in (0, 1)]
        status, rows = asked(capsys, url, "simple", *given)
    assert (status, lacking(rows)) == (0, set())
    assert '"shape":[2,16]' in rows["infer"]["request"]


def test_a_model_that_refuses_what_was_made_up_is_told_with_the_way_out(capsys, right):
    status, rows = asked(capsys, right, "simple", "--input=INPUT0:INT32:1,16")
    assert status == 1
    assert rows["infer"]["outcome"] == "no"
    assert "an input is missing" in rows["infer"]["why"]
    assert "--bytes" in rows["infer"]["why"]
    assert rows["binary-input"]["outcome"] == "not asked"


def test_the_report_has_a_line_a_feature_and_its_request(capsys, right):
    assert main([right, "--model", "simple"]) == 0
    text = capsys.readouterr().out
    headings = ["required by the protocol", "optional extensions", "robustness"]
    assert [line for line in text.splitlines() if line in headings] == headings
    for check in CHECKS:
        assert re.search(rf"^  (yes |-   ) {check.name} +{re.escape(check.feature)}$", text, re.M)
    assert f"curl -s {right}/v2/health/live" in text
    assert """--data-binary '{"inputs":[{"name":"INPUT0","shape":[1,16]""" in text
    assert '"datatype":"INT32","data":[0,3,6,9,…]' in text
    assert '{"binary_data_size":64}}]}<128 bytes>' in text
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("datatype", "number"), [("INT32", 2**31), ("UINT8", 256), ("FP32", 10**400), ("FP32", 1e39)]
)
def test_a_number_beyond_its_datatype_is_no_answer(datatype, number):
    with pytest.raises(ValueError, match=f"beyond {datatype}"):
        from_json(datatype, [number], 1)


def test_a_server_that_nests_its_answers_without_end_is_told(capsys):
    with serving(Stub("nests")) as url:
        _, rows = asked(capsys, url, "simple")
    assert lacking(rows) == {"config"}
    assert "JSON is due" in rows["config"]["why"]


def test_what_a_server_sends_is_told_in_a_line(capsys):
    """None of it moves a terminal's cursor, or fills its screen."""
    with serving(Stub("tracebacks")) as url:
        _, rows = asked(capsys, url, "simple")
    assert lacking(rows) == {"error-object", "unknown-path"}
    for name in ("error-object", "unknown-path"):
        assert "Traceback: \N{REPLACEMENT CHARACTER}[31m" in rows[name]["why"]
        assert rows[name]["why"].isprintable()
        assert len(rows[name]["why"]) < 250


@pytest.mark.parametrize("token", ["secret", "geh\u00e9im"])
def test_a_token_is_sent_and_never_shown(capsys, token):
    """Be it no ASCII, which goes as UTF-8."""
    with serving(Stub(token=token)) as url:
        assert main([url, "--model", "simple"]) == 2
        assert "--token" in capsys.readouterr().err
        status, rows = asked(capsys, url, "simple", "--token", token)
    assert (status, lacking(rows)) == (0, set())
    assert token not in json.dumps(rows, ensure_ascii=False)


@pytest.mark.parametrize(
    ("url", "model", "sentence"),
    [
        ("http://127.0.0.1:1", "simple", "There is no answer"),
        ("RIGHT", "other", "no model 'other'"),
        ("RIGHT/elsewhere", "simple", "no server of the Open Inference Protocol V2"),
        ("ftp://127.0.0.1", "simple", "no http:// or https:// URL"),
        ("http://127.0.0.1:port", "simple", "is no URL"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(capsys, right, url, model, sentence):
    assert main([url.replace("RIGHT", right), "--model", model]) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert out == ""
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--dim", "0"],
        ["--timeout", "0"],
        ["--tolerance", "nan"],
        ["--parameters", "[]"],
        ["--input", "IN:FP99:1"],
        ["--header", "x"],
    ],
)
def test_options_that_are_none_are_refused(capsys, options):
    with pytest.raises(SystemExit) as ended:
        main(["http://127.0.0.1:1", "--model", "simple", *options])
    assert ended.value.code == 2
    assert options[1] in capsys.readouterr().err


def test_it_runs_as_a_module(right):
    """As its page says, from the folder that it lies in, and without the packages of ours."""
    command = [sys.executable, "-m", "conformance.v2", right, "--model", "simple"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("shape", "side", "expected"),
    [
        ((-1, 3, -1, -1), None, (1, 3, 32, 32)),
        ((-1, -1, -1, 3), None, (1, 32, 32, 3)),
        ((-1, -1, -1, 3), 64, (1, 64, 64, 3)),
        ((-1, -1), None, (1, 1)),
        ((-1,), None, (1,)),
        ((-1,), 5, (5,)),
        ((2, 16), 5, (2, 16)),
        ((), None, ()),
    ],
)
def test_sizes_that_may_be_any_are_plausible(shape, side, expected):
    assert sizes(shape, side) == expected


def test_names_are_told_apart_and_each_is_on_the_page():
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert [name for name in re.findall(r"^\| `([a-z][a-z-]*)` \|", PAGE, re.M)] == names
