"""The command `ttc`: exit statuses, a sentence for every mistake, and verbs that work."""

import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from service.cli import cli
from service.client import Client
from service.launch import launch
from ttc_core.load import BUNDLED_WEIGHTS

ROOT = Path(__file__).parents[2]
VERBS = (
    *("serve", "config", "replay", "evaluate", "report", "corrupt"),
    *("train", "calibrate", "demo", "doctor", "explain", "state"),
    *("envelope", "changes", "completion"),
)


def start(*arguments):
    """Start the command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "service.cli", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


# Help


def paths():
    """The words of each command, those that have others below them included."""
    for verb, command in cli.commands.items():
        yield (verb,)
        yield from ((verb, below) for below in getattr(command, "commands", ()))


@pytest.mark.parametrize("words", list(paths()), ids=" ".join)
def test_every_verb_explains_itself_with_an_example(ttc, words):
    """--help exits 0 and ends with a command line that one can copy."""
    status, out, _ = ttc(*words, "--help")
    assert status == 0
    assert f"Example: ttc {' '.join(words)}" in " ".join(out.split())


def test_the_verbs_are_these(ttc):
    """`ttc --help` lists them all; `--version` tells the version."""
    assert set(cli.commands) == set(VERBS)
    status, out, _ = ttc("--help")
    assert status == 0
    assert all(f"  {verb}" in out for verb in VERBS)
    status, out, _ = ttc("--version")
    assert (status, out.startswith("ttc, version ")) == (0, True)


@pytest.mark.parametrize("words", list(paths()), ids=" ".join)
def test_the_examples_of_the_help_can_be_parsed(words):
    """Each example names options that exist."""
    command = cli
    for word in words:
        command = command.commands[word]
    example = command.epilog.partition(" >")[0].removeprefix("Example: ttc ").split()
    assert tuple(example[: len(words)]) == words
    command.make_context(words[-1], example[len(words) :], resilient_parsing=False).close()


# Wrong usage: 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("", "Usage"),
        ("fly", "fly"),
        ("serve --method tenth", "tenth"),
        ("serve --method no.such.module:Method", "no.such.module"),
        ("serve --max-batch 0", "--max-batch"),
        ("serve --max-batch many", "--max-batch"),
        ("serve --port 70000", "--port"),
        ("serve --adapt sometimes", "--adapt"),
        ("serve --set ttc.lr", "METHOD.PARAM=VALUE"),
        ("serve --set ttc_stream.lr=fast", "ttc_stream.lr"),
        ("serve --set ttc.speed=1", "ttc.speed"),
        ("serve --set lr=1", "METHOD.PARAM=VALUE"),
        ("serve --set tenth.lr=1", "tenth"),
        ("evaluate bundled --methods tenth", "tenth"),
        ("evaluate bundled --methods ,", "at least one"),
        ("evaluate bundled --methods source --corruptions ,", "at least one"),
        ("evaluate bundled --methods source --corruptions=", "at least one"),
        ("replay bundled --corruptions=", "at least one"),
        ("evaluate bundled --methods source --set source.lr=1", "source.lr"),
        ("evaluate bundled --corruptions smoke", "smoke"),
        ("evaluate bundled --corruptions smoke:5", "smoke:5"),
        ("evaluate bundled --corruptions mixed,fog", "two or more"),
        ("evaluate bundled --corruptions mixed,fog,smoke", "smoke"),
        ("evaluate bundled --corruptions fog,mixed:fog", "mixed:fog"),
        ("evaluate bundled --preset table8", "table1, table2"),
        ("evaluate bundled --preset table1 --batch-size 5", "batch sizes of its own"),
        ("evaluate bundled --preset table5 --set ttc.augmentation=rotation", "ttc.augmentation"),
        ("evaluate bundled --severity 6", "--severity"),
        ("evaluate bundled --batch-size 0", "--batch-size"),
        ("evaluate bundled --limit 0", "--limit"),
        ("evaluate bundled --order random", "random"),
        ("evaluate bundled --order dirichlet:0", "dirichlet"),
        ("evaluate bundled --order runs:0", "runs:L with L >= 1"),
        ("evaluate bundled --protocol changing:0", "changing:L"),
        ("evaluate bundled --mix noise:1", "KIND:SHARE"),
        ("evaluate bundled --unknown bundled", "unknown:SHARE"),
        ("evaluate bundled --protocol recurring:2 --predictions x.npz", "one pass"),
        ("evaluate bundled --mean 1,2,x", "R,G,B"),
        ("evaluate bundled --methods ttc --predictions x.npz --corruptions fog,clean", "one"),
        ("evaluate bundled --methods ttc,tent --predictions x.npz --corruptions fog", "one"),
        ("evaluate bundled --predictions x.npz", "one"),
        ("evaluate", "DATA"),
        ("replay bundled --corruptions smoke", "smoke"),
        ("replay bundled --predictions x.npz", "one corruption"),
        ("replay bundled --mode open --corruptions fog", "rate"),
        ("replay bundled --rate 10 --corruptions fog", "rate"),
        ("replay bundled --concurrency 3 --corruptions fog", "concurrency"),
        ("replay bundled --order random --corruptions fog", "random"),
        ("replay bundled --url localhost:8000 --corruptions fog", "localhost:8000"),
        ("corrupt a b --corruption smoke --severity 1", "smoke"),
        ("corrupt a b --corruption fog --severity 0", "--severity"),
        ("corrupt a b --corruption fog", "--severity"),
        ("report rows.jsonl", "--out"),
        ("report", "ROWS"),
    ],
)
def test_wrong_usage_exits_with_2_and_a_sentence(ttc, arguments, named):
    """The sentence on stderr names what is wrong; nothing is computed before it."""
    status, _, err = ttc(*arguments.split())
    assert status == 2, err
    assert named in err
    assert "Traceback" not in err


# What fails: 1


@pytest.fixture
def missing_key(tmp_path):
    weights = load_file(BUNDLED_WEIGHTS)
    weights["stem.weight"] = weights.pop("conv1.weight")
    save_file(weights, tmp_path / "weights.safetensors")
    return f"cifar/resnet20@{tmp_path / 'weights.safetensors'}"


@pytest.fixture
def code_in_pickle(tmp_path):
    """A weight file that would run a command if it were unpickled."""

    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'sprung'}",)

    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"state_dict": Trap()}))
    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    return tmp_path


@pytest.mark.parametrize("verb", [("serve", "--port", "0"), ("evaluate", "bundled")])
def test_weights_with_other_keys_are_refused_by_name(ttc, missing_key, verb):
    """Every missing and left-over key is in the sentence."""
    status, _, err = ttc(*verb, "--model", missing_key)
    assert status == 1
    assert "missing conv1.weight" in err
    assert "left over stem.weight" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["trap.pth", "trap.pt"])
def test_code_in_a_weight_file_is_not_run(ttc, code_in_pickle, name):
    """The file is refused with a sentence, and what it would have done was not done."""
    status, _, err = ttc(
        "evaluate", "bundled", "--model", f"cifar/resnet20@{code_in_pickle / name}"
    )
    assert status == 1
    assert "hold code" in err
    assert not (code_in_pickle / "sprung").exists()
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("evaluate bundled --model nonsense", "nonsense"),
        ("evaluate bundled --model cifar/resnet20@{tmp}/none.pth", "none.pth"),
        ("evaluate bundled --model cifar/resnet21@x", "resnet21"),
        ("evaluate bundled --model no.module:factory", "no.module"),
        ("evaluate bundled --device tpu", "tpu"),
        ("evaluate bundled --mean 1,2", "bundled"),
        ("evaluate folder:{tmp}/none", "none"),
        ("evaluate folder:{tmp}/part", "holds no images"),
        ("evaluate folder:{tmp}", "part is named like none"),
        ("evaluate cifar10c:{tmp} --corruptions fog", "labels.npy"),
        ("evaluate cifar10c:{tmp}/part --corruptions fog", "fog.npy"),
        ("evaluate bundled --order one:hat", "Ankle boot"),
        ("evaluate bundled --corruptions fog --order limited:11", "the data has 10"),
        ("evaluate bundled --mix unknown:0.1 --unknown folder:{tmp}/none", "none"),
        ("evaluate nonsense", "nonsense"),
        ("evaluate no.module:images", "no.module"),
        ("evaluate bundled --json {tmp}/part/labels.npy", "rows"),
        ("report {tmp}/none.jsonl --out {tmp}/report", "none.jsonl"),
        ("report {tmp}/part/labels.npy --out {tmp}/report", "rows"),
        ("state {tmp}/none.safetensors", "none.safetensors"),
        ("state {tmp}", "no saved state"),
        ("state {tmp}/part/labels.npy", "labels.npy"),
        ("corrupt {tmp}/none.png {tmp}/out.png --corruption fog --severity 1", "none.png"),
        ("corrupt {tmp}/part {tmp}/out --corruption fog --severity 1", "part"),
        ("train --data {tmp}/none --out {tmp}/out", "none"),
        ("replay bundled --corruptions fog --url http://127.0.0.1:9", "Nothing answers"),
        ("calibrate bundled nonsense --out {tmp}/part/labels.npy/record", "cannot be written"),
        ("calibrate bundled folder:{tmp}/none", "none"),
        ("calibrate cifar/resnet20@{tmp}/part/labels.npy bundled", "hold code"),
        ("serve --port 0 --state-dir {tmp}/part/labels.npy", "labels.npy cannot be used"),
    ],
)
def test_what_fails_exits_with_1_and_a_sentence(ttc, tmp_path, arguments, named):
    """The sentence names the file, the address or the name at fault."""
    (tmp_path / "part").mkdir()
    np.save(tmp_path / "part" / "labels.npy", np.arange(10))
    status, _, err = ttc(*(word.format(tmp=tmp_path) for word in arguments.split()))
    assert status == 1, err
    assert named in err
    assert "Traceback" not in err
    assert "weights_only" not in err  # torch's way to run what is in a file


def test_a_port_in_use_is_said_before_the_model_is_loaded(ttc):
    """Exit status 1, the address, and the way out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = ttc("serve", "--port", port)
    assert status == 1
    assert f"127.0.0.1:{port}" in err
    assert "--port" in err
    assert "in use" in err


def test_replay_against_something_else_says_so(ttc):
    """A server that is not ours answers, but not as expected."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>It works!</html>")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        url = f"http://127.0.0.1:{server.server_port}"
        status, _, err = ttc("replay", "bundled", "--corruptions", "fog", "--url", url)
        server.shutdown()
    assert status == 1
    assert "is it the service" in err


# Interrupted: 130


@pytest.mark.slow
def test_an_interrupted_evaluation_keeps_its_rows_and_goes_on_later(ttc, tmp_path):
    """SIGINT: 130, a sentence, the finished rows in the file; the next run fills in the rest."""
    rows = tmp_path / "rows.jsonl"
    arguments = ("evaluate", "bundled", "--methods", "norm", "--device", "cpu", "--threads", "1")
    first = ("--limit", "30", "--corruptions", "fog,contrast", "--json", rows)
    endless = ("--json", rows, "--corruptions", "clean,fog,contrast", "--batch-size", "1")
    process = start(*arguments, *endless, "--limit", "400")
    try:
        deadline = time.monotonic() + 120
        while not rows.exists() or not rows.read_text().endswith("\n"):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    kept = [json.loads(line) for line in rows.read_text().splitlines()]
    assert 1 <= len(kept) < 3
    assert kept[0]["corruption"] == "clean"
    for _ in range(2):
        assert ttc(*arguments, *first)[0] == 0
    finished = [json.loads(line) for line in rows.read_text().splitlines()]
    assert finished[: len(kept)] == kept
    assert len(finished) == len(kept) + 2


# Verbs that work


def test_serve_is_set_by_a_file(tmp_path):
    """Beside flags and variables; /status shows what came of it."""
    path = tmp_path / "ttc.toml"
    path.write_text('method = "tent"\nthreads = 1\nmax_batch = 7\n[set]\ntent.lr = 0.0005\n')
    environment = {"TTC_CONFIG": str(path), "TTC_MAX_WAIT": "0.25"}
    with launch("--max-batch", "5", environment=environment) as server, Client(server.url) as http:
        status = http.status()
    assert (status.method, status.settings["method"]["lr"]) == ("tent", 0.0005)
    server_settings = status.settings["server"]
    assert (server_settings["max_batch"], server_settings["max_wait"]) == (5, 0.25)
    assert server_settings["config"] == str(path)


def test_evaluate_writes_rows_that_report_reads(ttc, tmp_path):
    """Rows, their details beside them, predictions, and tables of them."""
    rows, predictions = tmp_path / "rows.jsonl", tmp_path / "out" / "predictions.npz"
    common = ("--corruptions", "fog", "--limit", "40", "--batch-size", "20", "--json", rows)
    status, out, _ = ttc("evaluate", "bundled", "--methods", "source,tent", *common)
    assert status == 0
    assert "fog" in out
    status, _, _ = ttc(
        "evaluate", "bundled", "--methods", "tent", *common, "--predictions", predictions
    )
    assert status == 0
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["method"] for row in written] == ["source", "tent"]
    assert {"data", "model", "corruption", "severity", "order", "protocol", "batch_size"} <= set(
        written[0]
    )
    assert (written[0]["selection_rate"], written[1]["selection_rate"]) == (None, 1.0)
    assert [row["steps"] for row in written] == [0, 2]
    with np.load(rows.parent / written[1]["details"]) as details, np.load(predictions) as kept:
        np.testing.assert_array_equal(details["predicted"], kept["predicted"])
        assert (kept["predicted"] == kept["labels"]).mean() == written[1]["accuracy"]
        assert kept["logits"].shape == (40, 10)
    status, out, _ = ttc("report", rows, "--out", tmp_path / "report")
    assert status == 0
    assert f"{100 * written[1]['accuracy']:.1f}" in out
    assert (tmp_path / "report" / "accuracy.md").read_text().strip() in out
    assert (tmp_path / "report" / "accuracy-1.csv").read_text().count("\n") >= 3


def test_a_setting_that_no_method_of_the_evaluation_has_is_said(ttc):
    """It goes on; a method that runs takes it silently."""
    common = ("evaluate", "bundled", "--methods", "source", "--limit", "20", "--corruptions", "fog")
    told = "ttc.lr sets nothing here: what runs is source."
    assert told in ttc(*common, "--set", "ttc.lr=0.1")[2]
    assert "sets nothing" not in ttc(*common, "--set", "source.flip=true")[2]


def test_a_ruinous_setting_is_said_by_an_evaluation_once(ttc):
    """However many runs have it."""
    common = ("evaluate", "bundled", "--methods", "tent", "--limit", "20", "--corruptions")
    _, _, err = ttc(*common, "fog,contrast", "--set", "tent.lr=1")
    assert err.count("tent: lr=1 makes steps 1,000 times as long as usual") == 1


def test_predictions_are_written_to_the_very_name_that_was_given(ttc, tmp_path, serve):
    """Also without .npz at its end, by evaluate as by replay."""
    common = ("--corruptions", "clean", "--limit", "4", "--predictions")
    assert ttc("evaluate", "bundled", "--methods", "source", *common, tmp_path / "a")[0] == 0
    with serve(method="source") as running:
        assert ttc("replay", "bundled", "--url", running.url, *common, tmp_path / "b")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_replay_asks_with_the_token(ttc, serve, monkeypatch):
    """--token or TTC_TOKEN; without it a sentence and exit status 1."""
    arguments = ("replay", "bundled", "--corruptions", "clean", "--limit", "4", "--url")
    with serve(method="source", token="a long secret") as running:
        status, _, err = ttc(*arguments, running.url)
        assert (status, "token" in err) == (1, True)
        assert ttc(*arguments, running.url, "--token", "a long secret")[0] == 0
        monkeypatch.setenv("TTC_TOKEN", "a long secret")
        assert ttc(*arguments, running.url)[0] == 0


def test_corrupt_takes_an_image_a_folder_and_an_array(ttc, tmp_path):
    """The same pixels give the same result on each way, and the seed decides it."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    folder = tmp_path / "in"
    folder.mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")
    np.save(tmp_path / "in.npy", pixels)
    noise = ("--corruption", "gaussian_noise", "--severity", "3", "--seed", "5")
    assert ttc("corrupt", tmp_path / "in.npy", tmp_path / "out.npy", *noise)[0] == 0
    assert ttc("corrupt", folder, tmp_path / "out", *noise)[0] == 0
    status, out, _ = ttc("corrupt", folder / "0.png", tmp_path / "one.png", *noise)
    assert (status, "1 image with gaussian_noise at severity 3" in out) == (0, True)
    status, _, err = ttc("corrupt", folder / "0.png", tmp_path / "in.npy" / "x.png", *noise)
    assert (status, f"{Path('in.npy', 'x.png')} cannot be written: " in err) == (1, True)
    array = np.load(tmp_path / "out.npy")
    assert not np.array_equal(array, pixels)
    for number in range(2):
        written = np.asarray(Image.open(tmp_path / "out" / f"{number}.png"))
        np.testing.assert_array_equal(written, array[number])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "one.png")), array[0])


def test_doctor_finds_this_installation_well(ttc):
    """Versions, device and the bundled model at work; exit status 0."""
    status, out, _ = ttc("doctor", "--device", "cpu")
    assert status == 0
    assert "PROBLEM" not in out
    assert "torch" in out
    assert "bundled model" in out
    sentence = (
        r"--precision bfloat16 is (faster|slower|hardly faster) than float32 here: (\d+\.\d\d) of"
    )
    found = re.search(sentence, out)
    assert found
    assert (float(found[2]) > 1) == (found[1] == "slower")
    assert (float(found[2]) <= 0.95) == (found[1] == "faster")


def test_doctor_names_a_device_that_is_not_there(ttc):
    """Exit status 1 and the finding."""
    status, out, _ = ttc("doctor", "--device", "cuda:99")
    assert status == 1
    assert "PROBLEM  T103  There is no device cuda:99" in out


def test_doctor_tells_machines_in_one_object(ttc):
    """Progress goes to standard error; the last finding's command is at hand."""
    status, out, err = ttc("doctor", "--device", "cpu", "--std", "0.3,0.3,0.3", "--json")
    found = json.loads(out)
    assert (status, found["problems"]) == (0, 0)
    assert {"code", "title", "verdict", "sentence", "numbers"} == set(found["findings"][0])
    command = "ttc serve --model bundled --device cpu --std 0.3,0.3,0.3 --method ttc_stream"
    assert found["command"].startswith(command)
    assert "Loading bundled" in err


def test_doctor_says_what_is_wrong_with_a_model_and_explain_what_to_do(ttc):
    """Exit status 1 and the code."""
    status, out, err = ttc("doctor", "--model", "tests.fixtures.centroids:without_norm")
    assert status == 1
    assert "PROBLEM  T201" in out
    assert "ttc explain T201" in err
    status, out, _ = ttc("explain", "T201")
    assert status == 0
    assert "torch.jit.save" in out


def test_explain_lists_all_codes_and_names_near_ones(ttc):
    """Without a code all of them; an unknown one is a sentence."""
    status, out, _ = ttc("explain")
    assert status == 0
    assert {"T101", "T303", "T402"} <= {line.split()[0] for line in out.splitlines()}
    status, _, err = ttc("explain", "T399")
    assert status == 1
    assert "T399 is no check's code; near it are T" in err


def test_state_shows_what_was_saved(ttc, serve, pictures, tmp_path):
    """An aligned line a stream, with its camera's fault; and all of it as JSON."""
    with serve("ttc_stream", state_dir=tmp_path) as running:
        for stream, sent in (("gate", pictures[:3]), ("a-much-longer-name", pictures[:1] * 12)):
            for picture in sent:
                answer = running.http.post(f"/predict?stream={stream}&label=1", content=picture)
                assert answer.status_code == 200
    status, out, _ = ttc("state", tmp_path)
    assert status == 0
    title, *lines = [line for line in out.splitlines() if line.strip()]
    assert title.strip() == "ttc_stream on bundled"
    assert len({len(line) for line in lines}) == 1  # all columns are aligned
    assert "last act" not in out  # nobody did anything: no column for it
    (long, gate) = [line for line in lines if "not held" in line]
    assert re.search(
        r"a-much-longer-name  +12 .* frozen since \d{4}-.*, 11 in a row +\d+ of 12", long
    )
    assert re.search(r"gate +3 +0 +not held +\S +\d of 3", gate)
    status, out, _ = ttc("state", tmp_path, "--json")
    long, gate = map(json.loads, out.splitlines())
    assert (status, gate["stream"], gate["images"], gate["labelled"]) == (0, "gate", 3, 3)
    assert (gate["method"], gate["model"], gate["suspect"]) == ("ttc_stream", "bundled", None)
    assert gate["settings"]["lr"] > 0
    assert (long["suspect"], long["suspects"]) == ("frozen", {"frozen": 11})


def test_state_tells_methods_apart_where_there_are_several(ttc, serve, pictures, tmp_path):
    """A column of its own; a file alone is shown, too."""
    for method in ("tent", "norm"):
        with serve(method=method, state_dir=tmp_path) as running:
            sent = running.http.post(f"/predict?stream=of-{method}", content=pictures[0])
            assert sent.status_code == 200
    _, out, _ = ttc("state", tmp_path)
    assert re.search(r"of-norm .* norm on bundled .* 1 ", out)
    assert re.search(r"of-tent .* tent on bundled .* 1 ", out)
    status, out, _ = ttc("state", tmp_path / "of-tent.safetensors")
    assert (status, out.split()[:3]) == (0, ["tent", "on", "bundled"])


def test_a_module_of_ones_own_in_the_working_directory_is_found(ttc, tmp_path, monkeypatch):
    """package.module:factory and :Class work from where the command is run."""
    (tmp_path / "own_parts_of_a_user.py").write_text(
        "import numpy as np\n"
        "from ttc_core.methods.source import Source\n\n\n"
        "class Mine(Source):\n    pass\n\n\n"
        "def images():\n    yield np.zeros((6, 28, 28, 3), np.uint8), np.arange(6)\n"
    )
    monkeypatch.chdir(tmp_path)
    status, _, err = ttc(
        *("evaluate", "own_parts_of_a_user:images", "--corruptions", "clean"),
        *("--methods", "own_parts_of_a_user:Mine", "--json", tmp_path / "rows.jsonl"),
    )
    assert status == 0, err
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert (row["method"], row["images"]) == ("own_parts_of_a_user:Mine", 6)
