"""`ttc calibrate` makes a record that evaluating and serving take up and tell of."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fixtures.networks import make_network
from ttc_core.calibration_record import SUFFIX

MODEL = "tests.fixtures.networks:small_source_model@weights.pt"
DATA = """
import numpy as np
def load():
    draw = np.random.default_rng(0)
    yield draw.integers(0, 256, (150, 8, 8, 3), dtype=np.uint8), draw.integers(0, 5, 150)
"""


@pytest.fixture
def ttc(ttc, monkeypatch, tmp_path):
    """Run the command in a folder with weights and data: (exit status, output, errors)."""
    torch.save(make_network("batch-norm").state_dict(), tmp_path / "weights.pt")
    (tmp_path / "held_out_images.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    return ttc


def row_of(ttc, *arguments):
    """The row of the default on the data, and its columns."""
    asked = ("held_out_images:load", "--model", MODEL, "--methods", "ttc_stream")
    status, _, said = ttc("evaluate", *asked, *arguments, "--corruptions", "clean")
    assert status == 0, said
    path = Path(arguments[arguments.index("--json") + 1])
    row = json.loads(path.read_text().splitlines()[-1])
    with np.load(row["details"]) as columns:
        return row, dict(columns)


def test_a_record_is_written_beside_the_weights_and_used(ttc, tmp_path):
    """The row tells, and another record is another measurement; the classes are the same."""
    without, before = row_of(ttc, "--json", "rows.jsonl")
    assert (without["calibrated"], without["record_temperature"]) == ("none", None)
    status, out, _ = ttc("calibrate", MODEL, "held_out_images:load")
    assert status == 0
    assert "150 images: " in out
    assert f"weights.pt{SUFFIX}, where the model finds it" in out
    record = json.loads((tmp_path / f"weights.pt{SUFFIX}").read_text())
    row, after = row_of(ttc, "--json", "rows.jsonl")
    assert row["calibrated"] == "record"
    assert row["record_temperature"] == record["temperature"]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
    np.testing.assert_array_equal(before["predicted"], after["predicted"])
    assert not np.allclose(before["confidence"], after["confidence"])


def test_a_record_that_is_named_is_used_or_refused(ttc, tmp_path):
    """Written elsewhere, it is found by --calibration; a damaged one is a sentence."""
    status, out, _ = ttc("calibrate", MODEL, "held_out_images:load", "--out", "other.json")
    assert status == 0
    assert "name it with --calibration other.json" in out
    assert not (tmp_path / f"weights.pt{SUFFIX}").exists()
    row, _ = row_of(ttc, "--calibration", "other.json", "--json", "rows.jsonl")
    assert row["calibrated"] == "record"
    (tmp_path / "other.json").write_text("{}")
    for verb in (("evaluate", "held_out_images:load"), ("serve",)):
        status, _, said = ttc(*verb, "--model", MODEL, "--calibration", "other.json")
        assert status == 1
        assert "other.json is no calibration record" in said
        assert "Traceback" not in said


def test_few_images_make_no_record(ttc, tmp_path):
    """Nothing is written."""
    (tmp_path / "few_images.py").write_text(DATA.replace("150", "20"))
    status, _, said = ttc("calibrate", MODEL, "few_images:load")
    assert status == 1
    assert "takes 100 labelled images or more" in said
    assert not (tmp_path / f"weights.pt{SUFFIX}").exists()
