"""Speed: what the loads tell is read as it is, ratios are of one round, rows are kept."""

import http.server
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import shared
from benchmarks.bare_loop import bare
from benchmarks.bench import curves, ratios
from benchmarks.bench.curves import Curve, curve_table
from benchmarks.bench.drawing import draw
from benchmarks.bench.ratios import against, goal, goals_table, ratios_table
from benchmarks.bench.work import Job, Took
from benchmarks.closed_loop import LoadError, Measured, Request, closed_loop, read_output
from benchmarks.open_loop import open_loop
from benchmarks.passes import Pass, has_both_views, recorded
from benchmarks.peers import compare
from benchmarks.peers.compare import (
    CONNECTIONS,
    OURS,
    PEERS,
    Cells,
    Plan,
    closed,
    saturation,
    tables,
)
from benchmarks.peers.model import Asked
from benchmarks.pictures import photographs
from benchmarks.processes import StartError, peak_mib, processor_seconds, running, tree
from benchmarks.telling import spread
from service.state_folder import StateFolder
from ttc_core.datasets import Geometry, open_data
from ttc_core.evaluate import as_batch
from ttc_core.load import load
from ttc_core.methods import DEFAULT_METHOD, METHODS, create
from ttc_core.presets import Variant

SETTINGS = {"seconds": 1.0, "threads": 1}
ANSWER_SECONDS = 0.01


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each post after a while; /broken with 500, /silent never in time."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(30 if self.path == "/silent" else ANSWER_SECONDS)
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def posts(target: str = "/predict") -> list[Request]:
    return [Request(target, "image/jpeg", bytes([number]) * 50) for number in range(3)]


def told(**changed: object) -> str:
    """As the script writes it, in the midst of what wrk says."""
    line = {"images": 64, "seconds": 2.0, "ticks": 50, "answers": 200, "failed": 0, "whole": True}
    return f"Running 10s test\n\n{json.dumps(line | changed)}\n  200 requests\n"


def test_what_wrk_tells_is_read():
    found = read_output(told())
    assert (found.rate, found.processor) == (32.0, 50 / os.sysconf("SC_CLK_TCK"))


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("unable to connect to 127.0.0.1:1", "wrk did not measure: unable to connect"),
        (told(failed=3), "3 of 200 answers were not 200"),
        (told(whole=False), "Too few answers came in time: 200"),
    ],
)
def test_what_is_no_measurement_is_refused(said: str, sentence: str):
    with pytest.raises(LoadError, match=sentence):
        read_output(said)


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs Debian's wrk")
def test_a_closed_loop_counts_whole_periods(url: str):
    """Each connection waits for its answer, so there are no more a second than that allows."""
    found = closed_loop(url, posts(), 4, 0.3, pids=[os.getpid()], most=20)
    assert found.images % 4 == 0
    assert found.seconds >= 0.3
    assert 0 < found.rate < 4 / ANSWER_SECONDS
    assert 0 <= found.processor < 10 * found.seconds
    with pytest.raises(LoadError, match="not 200"):
        closed_loop(url, posts("/broken"), 2, 0.1, most=20)


def test_without_wrk_a_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LoadError, match="apt-get install wrk"):
        closed_loop("http://127.0.0.1:1", posts(), 1, 1)


def test_an_open_loop_sends_at_its_rate_and_times_from_when_each_was_due(url: str):
    found = open_loop(url, posts(), 50, 1.0)
    assert len(found.latencies) == len(found.lateness) == 50
    assert found.unanswered == 0
    assert (found.latencies >= ANSWER_SECONDS).all()
    assert (found.lateness >= 0).all()
    assert found.latency(50) <= found.latency(99) == sorted(found.latencies)[49]


def test_a_server_that_closes_idle_connections_is_connected_to_anew(url: str, monkeypatch):
    """As servers do after some seconds; nothing is lost by it."""
    monkeypatch.setattr(Handler, "timeout", 0.2)
    found = open_loop(url, posts(), 2, 2.0)
    assert found.unanswered == 0


def test_what_is_not_answered_in_an_open_loop_counts_as_endless(url: str, monkeypatch):
    monkeypatch.setattr("benchmarks.open_loop.LAST_ANSWERS", 0.2)
    for target in ("/broken", "/silent"):
        found = open_loop(url, posts(target), 20, 0.5)
        assert found.unanswered == 10
        assert np.isinf(found.latency(50))


def runs(pid: int) -> bool:
    """Whether there is such a process; one whose parent has not heard of its end is none."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_a_server_is_ended_with_all_it_started(tmp_path: Path, url: str):
    """Its child too, which has left its session and hears of nothing."""
    child = "import time; time.sleep(60)"
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", code]
    with running(command, {}, f"{url}/predict", b"a", "image/jpeg", tmp_path / "log") as pid:
        deadline = time.monotonic() + 20
        while len(pids := tree(pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(pids) == 2
        assert peak_mib(pids) > 1
        assert processor_seconds(pids) >= 0
    assert not any(map(runs, pids))


def test_a_server_that_ends_is_told_with_what_it_said(tmp_path: Path, url: str):
    command = [sys.executable, "-c", "print('no such model')"]
    with (
        pytest.raises(StartError, match="no such model"),
        running(command, {}, f"{url}/broken", b"a", "image/jpeg", tmp_path / "log"),
    ):
        pass


def row(server: str, number: int, rate: float, connections: int = 64) -> dict[str, object]:
    return {
        "model": "resnet20",
        "server": server,
        "round": number,
        "cell": closed(connections),
        "rate": rate,
        "processor": 2.0,
        "peak_mib": 500.0,
    }


def test_measured_cells_are_there_again_whatever_cut_the_file(tmp_path: Path):
    """Those of other settings are another comparison's."""
    path = tmp_path / "folder" / "peers.jsonl"
    cells = Cells(path, SETTINGS)
    cells.add(row("mosec", 0, 10.0))
    with path.open("a") as file:
        file.write('{"model": "resn')
    again = Cells(path, SETTINGS)
    key = {"model": "resnet20", "server": "mosec", "round": 0, "cell": closed(64)}
    assert again.has(**key)
    assert not again.has(**{**key, "round": 1})
    assert not Cells(path, SETTINGS | {"seconds": 2.0}).has(**key)
    again.add(row("mosec", 1, 20.0))
    assert Cells(path, SETTINGS).values("rate", "resnet20", "mosec", closed(64)) == {0: 10, 1: 20}


@pytest.mark.parametrize("connections", [(1, 16, 64), (16,)])
def test_only_what_is_missing_is_measured_closed_loops_first(monkeypatch, connections):
    plan = Plan((OURS, "mosec"), ["resnet20"], connections, 2, 1.0, 32, 0.0, 1, Path("nowhere"))
    cells = Cells(None, plan.settings)
    for count in (1, 16, 64):
        cells.add(row(OURS, 0, 10.0, count))
    visits: list[tuple[str, int, tuple[str, ...]]] = []
    monkeypatch.setattr(
        compare,
        "_visit",
        lambda plan, cells, model, server, number, missing, say: visits.append(
            (server, number, tuple(missing))
        ),
    )
    compare.measure(plan, cells, print)
    closed_loops = tuple(map(closed, connections))
    open_loops = ("open-0.3", "open-0.7")
    assert visits == [
        ("mosec", 0, closed_loops),
        (OURS, 1, closed_loops),
        ("mosec", 1, closed_loops),
        *((server, number, open_loops) for number in (0, 1) for server in (OURS, "mosec")),
    ]


def test_the_table_has_ratios_within_rounds_and_the_rate_of_the_best_peer():
    """Ours does not set the rate: a machine that was slow in one round is so for both."""
    cells = Cells(None, SETTINGS)
    for number, slow in enumerate((1, 10, 2)):
        cells.add(row(OURS, number, 300 / slow))
        cells.add(row("mosec", number, 100 / slow))
        cells.add(row("litserve", number, 200 / slow, connections=16))
    assert saturation(cells, "resnet20") == 100
    lines = tables(cells, "resnet20", [OURS, "mosec", "ray"], CONNECTIONS).splitlines()
    (mosec,) = (line.split(" | ") for line in lines[3:8] if line.startswith("| mosec"))
    assert mosec[5:7] == ["50 (10 to 100)", "3 (3 to 3)"]
    assert "30 %, 30/s" in "\n".join(lines)
    slow = {"p50_ms": 5.0, "p99_ms": None, "unanswered": 2, "lateness_p99_ms": 0.5}
    cells.add({**row("mosec", 0, 0.0), "cell": "open-0.7", **slow})
    *_, told = tables(cells, "resnet20", [OURS, "mosec"], CONNECTIONS).splitlines()
    assert told == "| mosec |  |  |  | 5 | inf | 2 | 0.5 |"
    head, *_ = tables(cells, "resnet20", [OURS], [16]).splitlines()[2:]
    assert head == "| | 16 connections | ours / theirs | processor s / 1,000 | peak MiB |"
    assert saturation(Cells(None, SETTINGS), "resnet20") == 0


def test_each_peer_has_its_packages_pinned_and_a_file():
    folder = Path(compare.__file__).parent
    for name, server in PEERS.items():
        lines = (folder / f"requirements-{name}.txt").read_text().splitlines()
        assert all("==" in line for line in lines)
        assert not any(line.startswith("torch") for line in lines)
        (module,) = (word for word in server.command if word.startswith("benchmarks.peers."))
        assert (folder / f"{module.partition(':')[0].rpartition('.')[2]}.py").exists()


def test_a_body_is_a_file_or_a_form_of_one():
    assert PEERS["mosec"].request(b"JPEG").body == b"JPEG"
    form = PEERS["bentoml"].request(b"JPEG")
    assert b'name="images"' in form.body
    assert b"\r\n\r\nJPEG\r\n--" in form.body
    assert form.content_type.startswith("multipart/form-data; boundary=")


def test_what_is_asked_of_a_peer_goes_through_its_environment(monkeypatch):
    asked = Asked("resnet50", 1234, 8, 0.25, 3)
    for name, value in asked.environment.items():
        monkeypatch.setenv(name, value)
    assert Asked.read() == asked


@pytest.mark.parametrize("method", ["source", "tent", "ttc"])
def test_the_bare_loop_answers_as_the_method_does(method: str):
    """Up to what Adam's first steps make of a gradient's last bits."""
    model = load("bundled")
    stream = open_data("bundled", Geometry(32)).open("gaussian_noise", 5, limit=60)
    batches = [as_batch(images) for images, _ in stream.batches(20)]
    settings = {} if method == "source" else {"statistics": "batch"}
    ours = create(method, model, **settings)
    loop = bare(method, model, 20)
    for batch in batches:
        prediction = ours.predict(batch)
        assert torch.allclose(loop(batch), prediction.logits, atol=0.02)
        ours.adapt(prediction)


def black_among(batch: torch.Tensor, places: list[int]) -> torch.Tensor:
    """As a camera whose picture fails now and then; the guard keeps it out of what is learned."""
    with_black = batch.clone()
    with_black[places] = 0
    return with_black


@pytest.mark.parametrize("black", [[], [3], [0, 1, 49]], ids=["none", "one", "three"])
def test_the_bare_loop_of_the_default_makes_its_passes(black: list[int]):
    """As many, of as many images, with gradients where it had them, and the source's by the source;
    whatever the guard keeps out, each image has an answer."""
    model = load("bundled")
    stream = open_data("bundled", Geometry(32)).open("gaussian_noise", 5, limit=200)
    batches = [black_among(as_batch(images), black) for images, _ in stream.batches(50)]
    method, made = Variant(DEFAULT_METHOD).create(model, {}), []
    for batch in batches:
        with recorded() as passes:
            outcome = method.adapt(method.predict(batch))
        made.append((passes, outcome.stepped))
    assert any(passes.backward for passes, _ in made)
    loop = bare(DEFAULT_METHOD, model, 50, made)
    before = [parameter.clone() for parameter in loop.network.parameters()]
    seen: list[Pass] = []

    def note(network: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        by_source = network is loop.source
        assert network.training != by_source
        both = has_both_views(inputs[0])
        seen.append(Pass(len(inputs[0]), torch.is_grad_enabled(), by_source, both))

    for network in (loop.network, loop.source):
        network.register_forward_pre_hook(note)
    for batch in batches:
        assert loop(batch).shape == (50, 10)
    assert seen == [one for passes, _ in made for one in passes.forward]
    assert {each.by_source for each in seen} == {True, False}
    assert {50 - len(black), len(black) or 50} <= {each.images for each in seen}
    layers = [layer for layer in loop.network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert not layers[0].weight.requires_grad
    pairs = zip(before, loop.network.parameters(), strict=True)
    moved = [not torch.equal(old, new) for old, new in pairs]
    assert any(moved) == any(stepped for _, stepped in made)
    sources = zip(
        model.module.state_dict().values(), loop.source.state_dict().values(), strict=True
    )
    assert all(torch.equal(theirs, its) for theirs, its in sources)


def test_passes_tell_the_sources_from_those_that_follow_a_stream():
    """The first images are asked of the source, too, in a pass of one view."""
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with recorded() as passes:
        METHODS["ttc_stream"](load("bundled")).predict(images)
    assert Pass(4, by_source=True) in passes.forward
    assert Pass(8, both_views=True) in passes.forward
    with recorded() as passes:
        METHODS["source"](load("bundled")).predict(images)
    assert passes.forward == [Pass(4, by_source=True)]
    assert passes.rows == 4


def test_a_ratio_is_of_one_round_and_has_its_goal_beside_it():
    """A machine that was slow in one round was so for all ways."""
    found = {
        "bare loop": [Took(100, 10), Took(10, 10)],
        "evaluate": [Took(98, 10), Took(9.8, 10)],
        "lockstep": [Took(90, 10), Took(9, 10)],
        "64 clients": [Took(80, 11), Took(8, 11)],
    }
    assert against(found, "lockstep") == [0.9, 0.9]
    assert (goal("ttc", "64 clients", 32), goal("ttc", "64 clients", 224)) == (0.65, 0.85)
    assert goal("tent", "evaluate", 32) is None
    table = ratios_table(224, {"ttc": found})
    assert table.splitlines()[2].strip("| ").split(" | ") == [
        "TTC",
        "55 (10 to 100) images/s",
        "0.98 (0.98 to 0.98)",
        "0.9 (0.9 to 0.9)",
        "0.8 (0.8 to 0.8)",
        "1.1 (1.1 to 1.1)",
    ]
    lines = goals_table({224: {"ttc": found}, 32: {"tent": found}}).splitlines()[2:]
    assert [line.strip("| ").split(" | ")[1:] for line in lines] == [
        ["at least 0.98", "0.98 (0.98 to 0.98)", "reached"],
        ["at least 0.95", "0.9 (0.9 to 0.9)", "**missed**"],
        ["at least 0.85", "0.8 (0.8 to 0.8)", "**missed**"],
        ["at most 1.05", "1.1 (1.1 to 1.1)", "**missed**"],
    ]


def test_time_that_grows_faster_than_its_work_is_told():
    """Against what an image of that size, or in a batch of that size, has to cost."""
    in_step = Curve("TTC", {32: [100.0], 64: [25.0, 24.0, 26.0]}, {32: 1.0, 64: 4.0})
    assert in_step.growth() == pytest.approx({64: 1.0})
    faster = Curve("slow", {1: [10.0], 4: [20.0], 16: [5.0]}, dict.fromkeys((1, 4, 16), 1.0))
    assert faster.growth() == pytest.approx({4: 0.5, 16: 4.0})
    later = Curve("new", {16: [2.0]}, {16: 1.0})
    assert curve_table("images", [faster, later]).splitlines()[2:] == [
        "| slow | 10 | 20 | 5 | 4.00, to 16 |",
        "| new |  |  | 2 |  |",
    ]


def test_streams_cost_what_their_smaller_batches_do(monkeypatch):
    """64 clients have 64 images at once, be they of one stream or of as many."""
    by_batch = [
        Curve(name, {1: [10.0], 64: [40.0]}, {1: 1.0, 64: 1.0})
        for name in ("SOURCE", "the default")
    ]
    monkeypatch.setattr(curves, "_grow", lambda *_: None)
    rates = {1: [40.0], 10: [20.0], 100: [10.0], 1000: [10.0]}
    monkeypatch.setattr(
        curves, "_streams", lambda counts, *_, new=False: {c: rates[c] for c in counts}
    )
    source, grown, new = curves.streams(1000, 1, by_batch)
    assert list(new.rates) == [100, 1000]
    assert grown.rates == source.rates == rates
    growth = grown.growth()
    assert growth[100] * growth[10] == pytest.approx(1.0)
    assert growth[1000] == pytest.approx(1.0)


@pytest.mark.slow
def test_streams_are_measured_as_they_have_grown(monkeypatch, tmp_path: Path):
    """From the state of one that has, saved under all their names."""
    monkeypatch.setattr(curves, "GROWN", 16)
    curves._grow(tmp_path, 2, ("--adapt", "always", "--state-dir", str(tmp_path)))
    method = Variant(DEFAULT_METHOD).create(load("bundled"), {})
    folder = StateFolder(tmp_path, method=DEFAULT_METHOD, model="bundled")
    assert folder.load("1", method) is not None
    assert method.state()["shadow"]["seen"] == 16
    folder.close()


def test_ratios_end_in_time_but_have_a_round(monkeypatch):
    """On a slow machine, too, the whole is to take less than ten minutes."""

    @contextmanager
    def no_server(*_: str) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(process=SimpleNamespace(pid=1), url="http://127.0.0.1:1")

    took = Took(1.0, 1.0)
    rounds = {"bare loop": took, "evaluate": took, "lockstep": took}
    monkeypatch.setattr(ratios, "launch", no_server)
    monkeypatch.setattr(ratios, "_round", lambda *_: dict(rounds))
    monkeypatch.setattr(ratios, "closed_loop", lambda *_, **__: Measured(10, 1.0, 1.0))
    job = Job("ttc", "bundled", "bundled", "fog", 20, 10, 1.0)
    for seconds, count in ((0.0, 1), (60.0, 3)):
        found = ratios.ratios(job, [b"a"], 3, None, seconds=seconds)
        assert {way: len(each) for way, each in found.items()} == dict.fromkeys(ratios.WAYS, count)


def test_what_was_found_is_drawn(tmp_path: Path):
    """As PNG and SVG, both small."""
    took = {way: [Took(10, 1), Took(12, 1)] for way in ratios.WAYS}
    group = [Curve("TTC", {1: [5.0, 6.0], 10: [7.0]}, {}), Curve("new", {10: [2.0]}, {})]
    draw(tmp_path, {32: {"ttc": took}}, {"streams": group})
    for kind in ("png", "svg"):
        assert 1000 < (tmp_path / f"bench.{kind}").stat().st_size < 200_000


def test_a_spread_is_a_median_with_the_least_and_the_most():
    assert spread([1.0, 3.0, 2.0]) == "2 (1 to 3)"
    assert spread([0.98765]) == "0.988"
    assert spread([]) == ""


def test_no_two_photographs_are_alike():
    """The service would take the second for a camera's that stands still."""
    files = photographs(16)
    assert len(set(files)) == 16
    assert all(20_000 < len(file) < 300_000 for file in files)


@pytest.mark.parametrize("streams", shared.STREAMS)
def test_streams_that_share_take_turns(streams):
    """Each batch is a hundred images, each stream's equally many, and all have their turn."""
    images = list(range(shared.BATCH))
    batches = [shared.parts_of(images, streams, batch) for batch in range(10)]
    assert all([i for _, part in parts for i in part] == images for parts in batches)
    assert len({len(part) for parts in batches for _, part in parts}) == 1
    assert len({stream for parts in batches for stream, _ in parts}) == streams
