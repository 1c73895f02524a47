"""An envelope that forbids what the stream would do: served, evaluated, saved, checked."""

import json

import numpy as np

from service.cli.serve import load_source
from service.replay import to_png
from service.settings import Settings
from tests.fixtures.requests import ask
from ttc_core.datasets import Geometry, open_data

# A hundred times the usual learning rate.
WILD = {"method": "tent", "set": ("tent.lr=0.1",), "device": "cpu"}
LIMIT, BATCH = 40, 10


def test_the_service_and_evaluate_keep_to_it_alike(serve, ttc, tmp_path):
    """To the last answer; what was cut is told everywhere, and the saved stream is inside."""
    file, folder = tmp_path / "envelope.toml", tmp_path / "states"
    file.write_text('drift = 0.02\nimage_in_step = 0.5\nparameters = ["layer2.*", "layer3.*"]\n')
    stream = open_data("bundled", Geometry(32)).open("fog", 5, limit=LIMIT)
    images = [to_png(each) for each in stream.read(stream.positions)]
    options = {**WILD, "envelope": file, "state_dir": folder}
    with serve(source=load_source(Settings(**options, threads=1)), **options) as running:
        answers = [
            each["class"]
            for at in range(0, LIMIT, BATCH)
            for each in ask(running, images[at : at + BATCH], params={"stream": "gate"})[
                "predictions"
            ]
        ]
        status = running.at_rest()
        cut = running.metric('ttc_envelope_steps_total{clause="drift",verdict="cut"}')
    envelope, told = status["envelope"], status["streams"]["gate"]
    assert envelope["clauses"]["drift"] == 0.02
    assert repr(envelope["clauses"]["steps_per_1000_images"]) == "1000"
    assert not envelope["built_in"]
    assert told["envelope"]["cut"] == {"parameters": LIMIT // BATCH, "drift": LIMIT // BATCH}
    assert cut == LIMIT // BATCH
    assert 0 < told["drift"] <= 0.02
    (event,) = [each for each in status["events"] if each["event"] == "envelope"]
    assert (event["stream"], event["clause"], event["verdict"]) == ("gate", "drift", "cut")
    kept, rows = tmp_path / "answers.npz", tmp_path / "rows.jsonl"
    evaluated = ("evaluate", "bundled", "--served", "--envelope", file, "--predictions", kept)
    asked = ("--corruptions", "fog", "--limit", LIMIT, "--batch-size", BATCH, "--json", rows)
    wild = ("--methods", "tent", "--set", *WILD["set"], "--threads", 1, "--device", "cpu")
    assert ttc(*evaluated, *asked, *wild)[0] == 0
    assert np.load(kept)["predicted"].tolist() == answers
    assert f'"envelope": "{envelope["digest"]}"' in rows.read_text()
    assert '"envelope_verdicts": {"cut": {"parameters": 4, "drift": 4}}' in rows.read_text()
    code, said, _ = ttc("changes", "show", "--state-dir", folder, "--stream", "gate", "--json")
    assert code == 0, said
    first = json.loads(said.splitlines()[0])
    assert (first["event"], first["envelope"]) == ("started", envelope["digest"])
    check = ("envelope", "check", file, "--state-dir", folder, "--device", "cpu")
    code, said, _ = ttc(*check)
    assert code == 0
    assert "gate is inside: drift 0.02" in said
    file.write_text("drift = 0.01\n")
    code, said, _ = ttc(*check)
    assert code == 1
    assert "is outside of the envelope: its drift is 0.02, and the envelope allows 0.01" in said
