"""The examples of docs/extending.md run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ttc_core import corruptions
from ttc_core.load import load
from ttc_core.methods import create

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()


def part(title):
    return re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:][
        ["A method", "A metric", "A corruption"].index(title)
    ]


def blocks(title, language):
    return re.findall(rf"^```{language}\n(.*?)^```", part(title), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the reader saved the method."""
    made = tmp_path_factory.mktemp("reader")
    (code,) = blocks("A method", "python")
    (made / "balance.py").write_text(code)
    return made


def run(command, cwd, **more):
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=cwd,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **more},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_method_is_evaluated_and_made_as_for_serving(folder, monkeypatch):
    """By the first of its commands, where the file lies; the second makes the same method."""
    evaluate, serve = blocks("A method", "sh")[0].splitlines()
    assert "balance:Balance" in run(evaluate, folder)
    assert serve == "ttc serve --method balance:Balance"
    monkeypatch.syspath_prepend(folder)
    assert create("balance:Balance", load("bundled")).settings == {"strength": 0.5}


@pytest.mark.slow
@pytest.mark.timeout(600)  # a whole file of tests is collected in a process of its own
@pytest.mark.parametrize("command", blocks("A method", "sh")[1].splitlines())
def test_the_contract_runs_on_the_method(folder, command):
    """Each of its tests passes, and some are run."""
    told = run(command, ROOT, PYTHONPATH=str(folder))
    passed = re.search(r"(\d+) passed", told)
    assert passed, told
    assert int(passed[1]) > 3
    assert "failed" not in told


def test_the_metric_is_there_from_the_start(capsys):
    """With all its labels, and counts."""
    (code,) = blocks("A metric", "python")
    exec(compile(code, "extending.md", "exec"), {"__name__": "example"})
    told = capsys.readouterr().out
    assert 'ttc_doors_total{door="front"} 1.0' in told
    assert 'ttc_doors_total{door="back"} 0.0' in told


def test_the_corruption_is_one_once_it_is_in_the_table(monkeypatch):
    """The two lines that the page names are all that is missing."""
    (code,) = blocks("A corruption", "python")
    names = {"__name__": "example"}
    exec(compile(code, "extending.md", "exec"), names)
    monkeypatch.setitem(corruptions._FIXED, "glare", (names["glare"], names["GLARE"]))
    monkeypatch.setattr(corruptions, "CORRUPTIONS", (*corruptions.CORRUPTIONS, "glare"))
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 32, 3), np.uint8)
    found = corruptions.corrupt(images, "glare", 3)
    assert found.shape == images.shape
    assert found[:, 0].mean() > images[:, 0].mean() + 20
    assert np.array_equal(found[:, -1], images[:, -1])
