"""The rows of an evaluation over a real Ray: those of one process, whatever dies meanwhile."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from service.cli import cli
from service.cli.evaluate import MethodOptions, Words, evaluation_of
from service.cli.options import DataOptions, ModelOptions
from service.ray_cluster import connect
from service.spread_view import SpreadView
from service.spreading import TRIES, spread
from service.view import View
from ttc_core.errors import UserError
from ttc_core.rows import Rows

# Not imported before `connect`: what that sets in the environment counts no more then.
NO_RAY = find_spec("ray") is None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NO_RAY, reason="the extra ray is not installed"),
]

ROOT = Path(__file__).parents[2]
TIMES = ("seconds", "images_per_second")
ASKED = ("--corruptions", "fog,contrast", "--limit", "120", "--batch-size", "20", "--threads", "1")
# The process that runs it dies at its second batch, as often as there is a file that says so.
DYING = """
import os
import signal
from pathlib import Path
from ttc_core.methods.source import Source

class Dying(Source):
    def predict(self, images, *, learn=True):
        self.batches = getattr(self, "batches", 0) + 1
        left = sorted(Path.cwd().glob("die-*"))
        if self.batches > 1 and left and len(images) == 20:
            left[0].unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(images, learn=learn)
"""
SLOW = """
import time
from ttc_core.methods.source import Source

class Slow(Source):
    def predict(self, images, *, learn=True):
        time.sleep(0.3)
        return super().predict(images, learn=learn)
"""


@pytest.fixture(scope="module")
def cluster():
    """A cluster on this machine, as the command starts one; others find it by RAY_ADDRESS."""
    threads = torch.get_num_threads()
    connect()
    import ray

    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A working directory with methods of one's own."""
    (tmp_path / "dying.py").write_text(DYING)
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("dying", "slow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def evaluate(*arguments: object):
    return CliRunner().invoke(cli, ["evaluate", "bundled", *map(str, (*ASKED, *arguments))])


def results(path: Path) -> list[dict]:
    """All that is in the rows and beside them, but for times; in an order of their own."""
    found = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        with np.load(path.parent / row["details"]) as arrays:
            row["arrays"] = {name: array.tobytes() for name, array in arrays.items()}
        row["details"] = Path(row["details"]).name
        found.append({name: value for name, value in row.items() if name not in TIMES})
    return sorted(found, key=lambda row: json.dumps(row, default=repr, sort_keys=True))


@pytest.mark.parametrize("protocol", ["episodic", "continual"])
def test_the_rows_are_those_of_one_process(protocol, cluster, tmp_path):
    """To the bit, with the differences to SOURCE; what is there is not made again."""
    alone, many = tmp_path / "alone.jsonl", tmp_path / "many.jsonl"
    asked = ("--methods", "source,ttc,ttc_stream", "--protocol", protocol)
    told = evaluate(*asked, "--json", alone)
    assert told.exit_code == 0, told.output
    spread_out = evaluate(*asked, "--ray", "--json", many)
    assert spread_out.exit_code == 0, spread_out.output
    assert results(many) == results(alone)
    assert len(results(many)) == 6
    table = told.output[told.output.index("method") :].split("\n")
    again = spread_out.output[spread_out.output.index("method") :].split("\n")
    assert [line.split()[:3] for line in again] == [line.split()[:3] for line in table]
    before = many.read_bytes()
    assert evaluate(*asked, "--ray", "--json", many).exit_code == 0
    assert many.read_bytes() == before


def test_one_row_and_its_predictions(cluster, tmp_path):
    """What cannot be spread is run all the same."""
    asked = ("--methods", "tent", "--corruptions", "fog")
    for more in ((), ("--ray",)):
        path = tmp_path / f"{len(more)}.npz"
        assert evaluate(*asked, "--predictions", path, *more).exit_code == 0
    with np.load(tmp_path / "0.npz") as alone, np.load(tmp_path / "1.npz") as many:
        assert {*alone} == {*many} > {"logits", "predicted"}
        for name in alone:
            np.testing.assert_array_equal(many[name], alone[name])


def test_a_process_that_dies_in_mid_row_costs_nothing(cluster, own):
    """The row is made by another, and told of; it is the row of one process."""
    asked = ("--methods", "source,dying:Dying")
    assert evaluate(*asked, "--json", own / "alone.jsonl").exit_code == 0
    (own / "die-0").touch()
    told = evaluate(*asked, "--ray", "--json", own / "many.jsonl")
    assert told.exit_code == 0, told.output
    assert "dying:Dying fog" in told.output
    assert "was cut short: its process or machine died" in told.output
    assert "; it is tried again." in told.output
    assert results(own / "many.jsonl") == results(own / "alone.jsonl")


def test_a_row_whose_processes_always_die_is_missing(cluster, own):
    """The others are there, a sentence tells which is not, and later it is made."""
    asked = ("--methods", "source,dying:Dying", "--corruptions", "fog", "--ray")
    for number in range(TRIES):
        (own / f"die-{number}").touch()
    told = evaluate(*asked, "--json", own / "rows.jsonl")
    assert isinstance(told.exception, UserError)
    assert "1 rows are missing (dying:Dying fog)" in str(told.exception)
    assert f"{TRIES} times; its row is missing." in told.output
    assert [row["method"] for row in results(own / "rows.jsonl")] == ["source"]
    assert evaluate(*asked, "--json", own / "rows.jsonl").exit_code == 0
    assert len(results(own / "rows.jsonl")) == 2


@pytest.mark.timeout(600)
def test_it_goes_on_where_it_was_ended(cluster, own):
    """By kill -9 first, by Ctrl-C then; each time the finished rows are kept."""
    asked = ("--methods", "source,slow:Slow", "--corruptions", "fog,contrast,snow")
    rows = own / "many.jsonl"
    for number, way in enumerate((signal.SIGKILL, signal.SIGINT), 1):
        command = [sys.executable, "-m", "service.cli", "evaluate", "bundled", *ASKED, *asked]
        process = subprocess.Popen(
            [*command, "--ray", "--json", str(rows)],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAY_ADDRESS": cluster, "PYTHONPATH": str(ROOT)},
        )
        end = time.monotonic() + 200
        while not rows.exists() or len(rows.read_text().splitlines()) < 2 * number:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(way)
        _, errors = process.communicate(timeout=100)
        assert process.returncode == (-9 if way == signal.SIGKILL else 130), errors
    assert "interrupted; finished rows are kept" in errors
    assert 4 <= len(rows.read_text().splitlines()) < 6
    assert evaluate(*asked, "--ray", "--json", rows).exit_code == 0
    assert evaluate(*asked, "--json", own / "alone.jsonl").exit_code == 0
    assert results(rows) == results(own / "alone.jsonl")


def words(*arguments: str) -> Words:
    """What the command makes of these."""
    asked = [*arguments, "--methods", "source", "--corruptions", "fog", "--threads", "1"]
    given = cli.commands["evaluate"].make_context("evaluate", asked).params
    kinds = DataOptions, MethodOptions, ModelOptions
    return Words(
        *(kind(**{each.name: given[each.name] for each in fields(kind)}) for kind in kinds)
    )


@pytest.mark.parametrize(
    ("theirs", "sentence"),
    [
        (("folder:/nowhere/at/all",), r"On \S+: .*/nowhere/at/all.*"),
        (("bundled", "--limit", "21"), r"source fog is another on \S+ than here \(.*limit\)"),
    ],
    ids=["data that is not there", "something else"],
)
def test_a_machine_that_has_something_else_is_named(theirs, sentence, cluster):
    """No row is made of it."""
    evaluation, rows = evaluation_of(words("bundled", "--limit", "20")), Rows(None)
    view = SpreadView(View(Console(file=io.StringIO())), [("source", 100)], None, "file")
    with pytest.raises(UserError, match=sentence):
        spread(evaluation, evaluation_of, words(*theirs), rows, view)
    assert len(rows) == 0


def test_more_threads_than_any_machine_has(cluster, monkeypatch):
    """It would wait for ever."""
    evaluation = evaluation_of(words("bundled", "--limit", "20"))
    view = SpreadView(View(Console(file=io.StringIO())), [("source", 100)], None, "file")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 100_000)
    with pytest.raises(UserError, match="No machine of the cluster has 100000 processor cores"):
        spread(evaluation, evaluation_of, words("bundled"), Rows(None), view)
