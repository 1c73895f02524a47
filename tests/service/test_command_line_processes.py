"""`ttc` in odd surroundings: closed streams, deleted folders, full disks, absurd numbers."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from service import launch
from service.cli import cli

TTC = shlex.join([sys.executable, "-m", "service.cli"])


@pytest.fixture
def corrupt(tmp_path) -> str:
    """A command that ends soon, says one line and writes tmp_path/out.npy."""
    np.save(tmp_path / "in.npy", np.zeros((2, 8, 8, 3), np.uint8))
    options = "--corruption fog --severity 1"
    return f"{TTC} corrupt {tmp_path}/in.npy {tmp_path}/out.npy {options}"


def shell(command: str, **options: object) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        **{"env": environment} | options,
    )


@pytest.mark.parametrize(
    "streams", [">&-", "2>&-", "<&-", "<&- >&- 2>&-", ">&- 2>/dev/full"], ids=str
)
def test_closed_streams_do_not_matter(streams, corrupt, tmp_path):
    """The work is done, and nothing that is said gets into a file that takes the stream's place."""
    assert shell(f"{corrupt} {streams}").returncode == 0
    assert np.load(tmp_path / "out.npy").shape == (2, 8, 8, 3)


@pytest.mark.parametrize("sink", ["> /dev/full", "| true", "2>&1 | head -c 1"], ids=str)
def test_output_that_nobody_takes_ends_without_a_trace(sink, corrupt):
    """A full disk, and `| head`."""
    done = shell(f"set -o pipefail; {corrupt} {sink}")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode in (0, 1)  # 0 where all was said before the reader left


def test_a_deleted_working_directory_is_said(corrupt, tmp_path):
    """torch's libraries would end the process without a word of ours."""
    (tmp_path / "gone").mkdir()
    done = shell(f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && {corrupt}")
    assert done.returncode == 1
    assert done.stderr == "ttc: the working directory is not there any more; change to another.\n"


@pytest.mark.parametrize(
    "surroundings",
    [
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii", "TERM": "dumb", "COLUMNS": "1"},
        {"HOME": "", "TERM": "", "COLUMNS": "0"},
    ],
    ids=["c", "ascii", "bare"],
)
def test_every_character_can_be_said_somehow(surroundings, corrupt, tmp_path):
    """A name that the terminal has no characters for is no reason to fail."""
    odd = tmp_path / "é猫"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
    done = shell(
        f"{corrupt} && {TTC} corrupt {odd} x --corruption fog --severity 1",
        env=environment | surroundings,
    )
    assert done.returncode == 1
    assert "There is no file or folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_during_the_imports_is_no_trace(tmp_path):
    """130 and a sentence, as early as that."""
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    done = shell(f"{TTC} --help", env=environment)
    assert (done.returncode, done.stderr) == (130, "ttc: interrupted; finished rows are kept.\n")


def test_ctrl_c_at_any_moment_is_no_trace(corrupt):
    """After the interpreter itself has started."""
    for delay in (0.3, 0.8):
        command = f"exec {corrupt}".replace("fog", "glass_blur")
        with subprocess.Popen(
            ["bash", "-c", command],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as process:
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        assert process.returncode in (0, 130, -signal.SIGINT)
        if process.returncode == 130:
            assert "Traceback" not in err


ABSURD = ("0", "-1", "1" + "0" * 30, "nan", "inf", "1e3", "9" * 5000)


@pytest.mark.parametrize("number", ABSURD, ids=lambda text: text[:5])
@pytest.mark.parametrize(
    "command",
    [
        "evaluate bundled --batch-size",
        "evaluate bundled --limit",
        "replay bundled --mode closed --concurrency",
        "train --epochs",
        "demo --limit",
    ],
)
def test_absurd_counts_are_wrong_usage(command, number):
    """Two, with the range that is accepted."""
    done = CliRunner().invoke(cli, [*command.split(), number])
    assert done.exit_code == 2
    assert re.search(r"not in the range|not a valid integer", done.output)


@pytest.mark.parametrize("number", ["0", "-1", "nan", "inf", "-inf", "fast"])
def test_absurd_rates_are_wrong_usage(number):
    """Above 0, and finite."""
    arguments = ["replay", "bundled", "--mode", "open", "--corruptions", "fog", "--rate", number]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert "rate" in done.output


@pytest.mark.parametrize("number", ["-1", "1" + "0" * 30, "nan", "0.5"], ids=str)
@pytest.mark.parametrize("option", ["evaluate bundled --seed", "evaluate bundled --threads"])
def test_absurd_seeds_and_threads_are_wrong_usage(option, number):
    """As counts."""
    assert CliRunner().invoke(cli, [*option.split(), number]).exit_code == 2


def test_predictions_and_rows_are_two_files(tmp_path):
    """One would be written over the other; links do not hide it."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("")
    (tmp_path / "link.npz").symlink_to(rows)
    common = ["evaluate", "bundled", "--methods", "source", "--corruptions", "fog"]
    for path in (rows, tmp_path / "link.npz", tmp_path / "x" / ".." / "rows.jsonl"):
        done = CliRunner().invoke(cli, [*common, "--json", str(rows), "--predictions", str(path)])
        assert done.exit_code == 2
        assert "two files" in done.output


def test_predictions_that_cannot_be_written_are_refused_at_once(tmp_path):
    """A pipe, a device; and nothing is made of it before there is something to keep."""
    os.mkfifo(tmp_path / "pipe")
    common = ["evaluate", "bundled", "--methods", "source", "--corruptions", "fog"]
    for path in (tmp_path / "pipe", Path("/dev/full"), tmp_path / "pipe" / "x"):
        done = CliRunner().invoke(cli, [*common, "--predictions", str(path)])
        assert done.exit_code == 1
        assert "cannot be written" in done.output


@pytest.mark.parametrize(
    ("verb", "sentence"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("raise SystemExit(3)", "it ended the program"),
    ],
)
def test_a_method_that_fails_at_its_first_batch_is_not_served(verb, sentence, tmp_path):
    """A sentence with its name, before the service says that it listens."""
    (tmp_path / "own.py").write_text(
        "from ttc_core.methods.source import Source\n"
        "class Own(Source):\n"
        f"    def predict(self, images, **_):\n        {verb}\n"
    )
    done = shell(f"cd {tmp_path} && {TTC} serve --port 0 --threads 1 --method own:Own")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Listening on" not in done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("ttc: own:Own fails at its first batch: ")
    assert sentence in said


def test_a_server_that_says_nothing_is_given_up(tmp_path, monkeypatch):
    """A network may take for ever to be made; whoever launched it is told, and it is ended."""
    (tmp_path / "own.py").write_text("import time\nprint('making', flush=True)\ntime.sleep(600)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "START_SECONDS", 5.0)
    started = time.monotonic()
    with (
        pytest.raises(launch.LaunchError, match="did not start"),
        launch.launch("--model", "own:net", "--threads", "1"),
    ):
        pytest.fail("it has no model")
    assert time.monotonic() - started < 300
