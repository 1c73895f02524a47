"""An envelope that forbids what the stream would do: served, evaluated, saved, checked."""

import httpx
import numpy as np

from service.client import Client
from service.launch import launch
from tests.e2e.conftest import wait_for
from ttc_core.datasets import Geometry, open_data

# A hundred times the usual learning rate.
WILD = ("--method", "tent", "--set", "tent.lr=0.1", "--threads", "1", "--device", "cpu")
LIMIT, BATCH = 40, 10


def test_the_service_and_evaluate_keep_to_it_alike(ttc, tmp_path):
    """To the last answer; what was cut is told everywhere, and the saved stream is inside."""
    file, folder = tmp_path / "envelope.toml", tmp_path / "states"
    file.write_text('drift = 0.02\nimage_in_step = 0.5\nparameters = ["layer2.*", "layer3.*"]\n')
    stream = open_data("bundled", Geometry(32)).open("fog", 5, limit=LIMIT)
    images = stream.read(stream.positions)
    served = [*WILD, "--envelope", str(file), "--state-dir", str(folder)]
    with launch(*served) as server, Client(server.url) as client:
        answers = [
            each.class_
            for at in range(0, LIMIT, BATCH)
            for each in client.predict(list(images[at : at + BATCH]), stream="gate").predictions
        ]
        status = wait_for(lambda: (found := client.status()).idle and found)
        metrics = httpx.get(f"{server.url}/metrics").text
        assert server.stop() == 0
    assert status.envelope.clauses["drift"] == 0.02
    assert not status.envelope.built_in
    told = status.streams["gate"]
    assert told.envelope.cut == {"parameters": LIMIT // BATCH, "drift": LIMIT // BATCH}
    assert 0 < told.drift <= 0.02
    assert 'ttc_envelope_steps_total{clause="drift",verdict="cut"} 4.0' in metrics
    (event,) = [each for each in status.events if each["event"] == "envelope"]
    assert (event["stream"], event["clause"], event["verdict"]) == ("gate", "drift", "cut")
    assert any("Envelope: " in line and status.envelope.digest in line for line in server.lines)
    kept, rows = tmp_path / "answers.npz", tmp_path / "rows.jsonl"
    evaluated = ("evaluate", "bundled", "--served", "--envelope", file, "--predictions", kept)
    asked = ("--corruptions", "fog", "--limit", LIMIT, "--batch-size", BATCH, "--json", rows)
    wild = ("--methods", "tent", *WILD[2:])
    assert ttc(*evaluated, *asked, *wild)[0] == 0
    assert np.load(kept)["predicted"].tolist() == answers
    assert f'"envelope": "{status.envelope.digest}"' in rows.read_text()
    assert '"envelope_verdicts": {"parameters": 4, "drift": 4}' in rows.read_text()
    check = ("envelope", "check", file, "--state-dir", folder)
    code, said, _ = ttc(*check)
    assert code == 0
    assert "gate is inside: drift 0.02" in said
    file.write_text("drift = 0.01\n")
    code, said, _ = ttc(*check)
    assert code == 1
    assert "is outside of the envelope: its drift is 0.02, and the envelope allows 0.01" in said
