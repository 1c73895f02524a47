"""POST /model and SIGHUP: the weight file replaced, and loaded anew while answers go on."""

import signal
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest
import torch

from service.cli.serve import load_source
from service.client import Client, ServiceError
from service.errors import NotReady
from service.launch import launch
from service.settings import Settings
from tests.fixtures.requests import ask, problem
from ttc_core.zoo import ARCHITECTURES

OPTIONS = {"method": "ttc_stream", "guard": "on", "max_batch": 4}


def write(path, seed, classes=10):
    """A weight file as training scripts leave them, put in the place of the one before at once."""
    torch.manual_seed(seed)
    unfinished = path.with_name("unfinished")
    torch.save(ARCHITECTURES["resnet20"].build(classes).state_dict(), unfinished)
    unfinished.replace(path)


@pytest.fixture
def hangups_are_heard():
    """Under nohup what is started ignores them."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "network.pth"
    write(path, seed=1)
    return path


@pytest.fixture
def reloadable(serve, weights):
    """Serve a weight file as `ttc serve` does."""

    def running(**options):
        options = {**OPTIONS, "model": f"cifar/resnet20@{weights}", "device": "cpu", **options}
        load = partial(load_source, Settings(**options))
        return serve(source=load(), load=load, **options)

    return running


def told(running, kind):
    return [event for event in running.status()["events"] if event["event"] == kind]


def loads(running, outcome):
    return running.metric(f'ttc_model_loads_total{{outcome="{outcome}"}}')


def answers_of(running, images):
    """What they are answered without a stream of their own, nothing moving."""
    found = ask(running, images, params={"learn": "false", "stream": "nobody"})
    return [(one["class"], one["confidence"]) for one in found["predictions"]]


def test_under_load_each_request_is_answered_whole_by_one_of_both(reloadable, weights, pictures):
    """Streams that learn, long requests, and such that move nothing: none fails, none is mixed."""
    with reloadable() as running:
        before = answers_of(running, pictures[:8])
        first = running.status()["model"]
        answered, stop = [], threading.Event()

        def camera(stream, size):
            with Client(running.url, timeout=60) as client:
                while not stop.is_set():
                    learn = stream != "nobody"
                    reply = client.predict(pictures[:size], stream=stream, learn=learn)
                    found = [(one.class_, one.confidence) for one in reply.predictions]
                    answered.append((stream, reply.model_digest, reply.version, found))

        with ThreadPoolExecutor(4) as pool:
            sizes = {"a": 1, "b": 10, "c": 3, "nobody": 8}
            cameras = [pool.submit(camera, *each) for each in sizes.items()]
            running.wait_for(lambda: len(answered) > 20)
            write(weights, seed=2)
            told_of = running.http.post("/model").json()
            count = len(answered)
            running.wait_for(lambda: len(answered) > count + 20)
            stop.set()
            for each in cameras:
                each.result()
        after = answers_of(running, pictures[:8])
        second = running.status()["model"]
        assert told_of["changed"]
        digests = (told_of["former_digest"], told_of["digest"])
        assert digests == (first["digest"], second["digest"])
        assert second["loaded"] > first["loaded"]
        assert told_of["streams_dropped"] == 3  # who learned nothing has none
        for stream in sizes:
            seen = [digest for name, digest, _, _ in answered if name == stream]
            assert seen == sorted(seen, key=digests.index)  # first all of the one, then the other
            assert set(seen) == set(digests)
        expected = {digests[0]: before, digests[1]: after}
        for stream, digest, _, found in answered:
            if stream == "nobody":
                assert [one for one, _ in found] == [one for one, _ in expected[digest]]
                confidences = [confidence for _, confidence in expected[digest]]
                assert [sure for _, sure in found] == pytest.approx(confidences, abs=1e-3)
        assert [one for one, _ in before] != [one for one, _ in after]
        assert (loads(running, "loaded"), loads(running, "refused")) == (1, 0)
        info = running.http.get("/metrics").text
        assert f'digest="{second["digest"]}"' in info
        assert f'digest="{first["digest"]}"' not in info
        (event,) = told(running, "model_loaded")
        assert (event["former_digest"], event["digest"]) == digests


def test_whatever_else_is_asked_meanwhile_goes_on(reloadable, weights, pictures, tmp_path):
    """Answers, labels, resets, roll backs and saving while weights are exchanged twice."""
    folder = tmp_path / "states"
    with reloadable(state_dir=folder, save_interval=0.1, max_streams=3) as running:
        stop, statuses = threading.Event(), Counter()

        def keep_asking(http, path, statuses_meant, **given):
            while not stop.is_set():
                status = http.post(path, **given).status_code
                assert status in statuses_meant, (path, status)
                statuses[path] += 1

        label = {"labels": [{"id": "one", "label": 1, "stream": "a"}]}
        asked = [
            *(
                (f"/predict?stream={name}&id=one", {200}, {"content": pictures[0]})
                for name in "abcd"
            ),
            ("/predict?learn=false", {200}, {"content": pictures[1]}),
            ("/feedback", {200}, {"json": label}),
            ("/reset?stream=b", {200}, {}),
            ("/rollback?stream=a", {200, 404}, {}),
        ]
        # Of four cameras in three places one may have to come back.
        asked = [
            (path, meant | ({429} if "stream=" in path else set()), given)
            for path, meant, given in asked
        ]
        with (
            ThreadPoolExecutor(len(asked)) as pool,
            httpx.Client(base_url=running.url, timeout=60) as http,
        ):
            tasks = [
                pool.submit(keep_asking, http, path, meant, **given) for path, meant, given in asked
            ]
            try:
                for seed in (2, 1):
                    reached = {path: statuses[path] + 3 for path, _, _ in asked}
                    running.wait_for(
                        lambda reached=reached: (
                            all(statuses[p] >= n for p, n in reached.items())
                            or any(task.done() for task in tasks)
                        )
                    )
                    write(weights, seed)
                    told_of = running.http.post("/model").json()
                    assert told_of["changed"]
                    assert told_of["streams_dropped"] == 0
            finally:
                stop.set()
            for task in tasks:
                task.result()
        kinds = {event["event"] for event in running.at_rest()["events"]}
        assert kinds.isdisjoint({"rejected", "not_saved", "adaptation_failed", "set_aside"})
        assert "model_loaded" in kinds


def test_the_same_file_moves_nothing(reloadable, weights, pictures):
    """The digest is the same: streams go on, and the answer says that nothing changed."""
    with reloadable() as running:
        ask(running, pictures[:4])
        before = running.at_rest()
        write(weights, seed=1)  # another file of the same weights
        told_of = running.http.post("/model").json()
        assert not told_of["changed"]
        assert told_of["digest"] == told_of["former_digest"] == before["model"]["digest"]
        after = running.status()
        assert after["streams"] == before["streams"]
        assert after["model"] == before["model"]
        assert loads(running, "unchanged") == 1


def test_streams_are_kept_aside_and_go_on_with_their_weights(
    reloadable, weights, pictures, tmp_path
):
    """Told in the answer; the guard's doubts, counters and labels are those of before."""
    with reloadable(state_dir=tmp_path / "states") as running:
        for stream in ("a", "b"):
            ask(running, pictures[:8], labels=[0] * 8, params={"stream": stream})
        before = running.at_rest()
        write(weights, seed=2)
        told_of = running.http.post("/model").json()
        assert (told_of["streams_kept_aside"], told_of["streams_dropped"]) == (2, 0)
        between = running.status()
        assert (between["streams"], between["truth"], between["saved_streams"]) == ({}, {}, 0)
        assert between["counters"]["images_total"] == before["counters"]["images_total"]
        ask(running, pictures[:4], params={"stream": "a"})
        write(weights, seed=1)
        told_of = running.http.post("/model").json()
        assert (told_of["streams_kept_aside"], told_of["streams_brought_back"]) == (1, 2)
        for stream in ("a", "b"):
            ask(running, pictures[8:16], params={"stream": stream})
        after = running.at_rest()
        assert after["truth"] == before["truth"]
        for stream in ("a", "b"):
            assert after["streams"][stream]["images"] == 16
        assert not told(running, "rejected")


def test_the_memory_of_the_former_network_is_free_again(reloadable, weights, pictures):
    """Once the answer is there, also of its copy in fewer operations."""
    with reloadable() as running:
        write(weights, seed=2)
        assert running.http.post("/model").json()["changed"]  # the first is the fixture's, too
        ask(running, pictures[:8])
        running.at_rest()
        model = running.service.source.model
        gone = [weakref.ref(each) for each in (model, model.module, model._runner.fused)]
        del model
        write(weights, seed=3)
        assert running.http.post("/model").json()["changed"]
        ask(running, pictures[:8])
        running.at_rest()
        assert [each() is None for each in gone] == [True] * 3


def test_what_is_found_out_of_a_network_is_known_before_it_answers(reloadable, weights):
    """It takes several passes, which whoever came first would wait for."""
    with reloadable() as running:
        write(weights, seed=2)
        assert running.http.post("/model").json()["changed"]
        assert {"digest", "takes_one", "shares"} <= vars(running.service.source.model).keys()


def test_what_cannot_be_served_leaves_the_former_at_work(reloadable, weights, pictures, tmp_path):
    """409 with a sentence, an event, a count; streams stay, and the next try succeeds."""
    other = ARCHITECTURES["resnet32"].build(10).state_dict()
    spoilt = {
        "is not there": (weights.unlink, "network.pth"),
        "is damaged": (partial(weights.write_bytes, b"no weights"), "network.pth"),
        "has other classes": (partial(write, weights, 2, classes=7), "7 classes"),
        "does not fit": (partial(torch.save, other, weights), "network.pth"),
    }
    with reloadable(state_dir=tmp_path / "states") as running:
        ask(running, pictures[:4])
        for seed, (case, (spoil, sentence)) in enumerate(spoilt.items(), start=2):
            before = running.at_rest()
            spoil()
            document = problem(running.http.post("/model"), 409)
            assert sentence in document["detail"], case
            after = running.at_rest()
            assert (after["model"], after["streams"]) == (before["model"], before["streams"]), case
            assert told(running, "model_refused")[-1]["reason"] == document["detail"], case
            assert loads(running, "refused") == seed - 1, case
            assert ask(running, pictures[4:8])["model_digest"] == before["model"]["digest"], case
            running.at_rest()
            write(weights, seed=seed)
            assert running.http.post("/model").json()["changed"], case


def test_other_pixels_than_those_on_their_way_are_refused(serve, weights):
    """Also where only the way they are resized is another."""
    options = {**OPTIONS, "model": f"cifar/resnet20@{weights}", "device": "cpu"}
    source = load_source(Settings(**options))
    write(weights, seed=2)
    load = partial(load_source, Settings(**options, interpolation="bicubic"))
    with serve(source=source, load=load, **options) as running:
        detail = problem(running.http.post("/model"), 409)["detail"]
        assert "(bicubic)" in detail
        assert "(bilinear)" in detail


def test_what_fails_once_the_others_answer_refuses_nothing(
    reloadable, weights, pictures, monkeypatch
):
    """The answer says that they do, and what is not known of the streams."""
    with reloadable() as running:
        former = ask(running, pictures[:4])["model_digest"]
        write(weights, seed=2)

        async def fail(_):
            raise RuntimeError("odd")

        monkeypatch.setattr(running.service.engine.exchanging, "put_away", fail)
        told_of = running.http.post("/model").json()
        assert told_of["changed"]
        assert told_of["streams_kept_aside"] is told_of["streams_dropped"] is None
        assert ask(running, pictures[:4])["model_digest"] == told_of["digest"] != former
        assert (loads(running, "loaded"), loads(running, "refused")) == (1, 0)
        assert len(told(running, "model_loaded")) == 1


def test_the_number_of_threads_stays_what_it_is_in_this_process(reloadable, weights):
    """torch gives every thread that begins later the number that any thread set last."""
    with ThreadPoolExecutor(1) as apart:
        before = apart.submit(torch.get_num_threads).result()
        try:
            with reloadable() as running:
                apart.submit(torch.set_num_threads, 3).result()
                write(weights, seed=2)
                assert running.http.post("/model").json()["changed"]
                with ThreadPoolExecutor(1) as later:
                    assert later.submit(torch.get_num_threads).result() == 3
        finally:
            apart.submit(torch.set_num_threads, before).result()


def test_one_at_a_time_and_none_while_it_ends(serve, make_method, pictures):
    """Meanwhile answers go on; a second request is told so; a drain gives up what is being read."""
    may_go, reading = threading.Event(), threading.Event()

    def load():
        reading.set()
        may_go.wait(60)
        return make_method("ttc")

    with ThreadPoolExecutor(1) as pool, serve(load=load) as running:
        first = pool.submit(running.http.post, "/model")
        assert reading.wait(60)
        with Client(running.url) as other:
            with pytest.raises(ServiceError, match="already") as refused:
                other.reload()
            assert refused.value.status == 409
            other.predict(pictures[:2])
        running.service.reloading.drain()
        problem(first.result(60), 503)
        problem(running.http.post("/model"), 503)
        ask(running, pictures[:2])
        may_go.set()


def test_a_queue_that_stops_before_the_exchange_is_told(reloadable, weights, pictures, monkeypatch):
    """Also to whoever asked by a signal, and waits for no answer."""
    with reloadable() as running:
        former = ask(running, pictures[:2])["model_digest"]
        write(weights, seed=2)

        async def stopped(call):
            raise NotReady("The queue stopped.")

        monkeypatch.setattr(running.service.batcher, "between_batches", stopped)
        problem(running.http.post("/model"), 503)
        assert [event["reason"] for event in told(running, "model_refused")] == [
            "The queue stopped."
        ]
        assert ask(running, pictures[:2])["model_digest"] == former
        monkeypatch.undo()
        assert running.http.post("/model").json()["changed"]


@pytest.mark.parametrize("error", [MemoryError("no more"), RuntimeError("odd"), SystemExit(3)])
def test_whatever_loading_raises_is_a_sentence(serve, pictures, error):
    """Also what ends a program: the one that serves goes on."""

    def load():
        raise error

    with serve(load=load) as running:
        document = problem(running.http.post("/model"), 409)
        assert "loaded anew" in document["detail"]
        ask(running, pictures[:2])


def test_a_server_that_was_handed_its_model_says_so(source_server):
    """There is no spec to read again; which goes before what else is wrong with a request."""
    for body in (b"", b"x"):
        document = problem(source_server.http.post("/model", content=body), 409)
        assert "handed" in document["detail"]


def test_a_factory_that_returns_the_network_at_work_is_refused(
    serve, pictures, weights, tmp_path, monkeypatch
):
    """Filling the file into it would exchange the weights under the answers."""
    (tmp_path / "shop.py").write_text(
        "from ttc_core.zoo import ARCHITECTURES\n"
        "ONLY = ARCHITECTURES['resnet20'].build(10)\n"
        "def make():\n    return ONLY\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = {**OPTIONS, "model": f"shop:make@{weights}", "device": "cpu"}
    load = partial(load_source, Settings(**options))
    with serve(source=load(), load=load, **options) as running:
        before = answers_of(running, pictures[:4])
        write(weights, seed=2)
        assert problem(running.http.post("/model", content=b"x"), 422)
        document = problem(running.http.post("/model"), 409)
        assert "anew each time" in document["detail"]
        assert answers_of(running, pictures[:4]) == before


@pytest.mark.slow
@pytest.mark.usefixtures("hangups_are_heard")
def test_a_hangup_loads_the_file_and_a_drain_in_mid_load_ends_well(weights, pictures, tmp_path):
    """On the real process: the log tells what became of it, and SIGTERM still drains."""
    options = ("--model", f"cifar/resnet20@{weights}", "--device", "cpu", "--threads", "1")
    with (
        launch(*options, "--state-dir", str(tmp_path / "states")) as server,
        Client(server.url, timeout=60) as client,
    ):

        def hang_up(kind, count):
            server.process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 60
            while len(found := [e for e in client.status().events if e["event"] == kind]) < count:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            return found[-1]

        former = client.predict(pictures[:4]).model_digest
        weights.rename(tmp_path / "away")
        assert "network.pth" in hang_up("model_refused", 1)["reason"]
        assert client.predict(pictures[:4]).model_digest == former
        write(weights, seed=2)
        assert hang_up("model_loaded", 1)["streams_kept_aside"] == 1
        assert client.predict(pictures[:4]).model_digest != former
        assert hang_up("model_unchanged", 1)
        assert not client.reload().changed
        write(weights, seed=3)
        server.process.send_signal(signal.SIGHUP)
        assert server.stop() == 0
        assert any("model_refused" in line and "network.pth" in line for line in server.lines)
    apart = [path.name for path in (tmp_path / "states").glob("weights-*")]
    assert apart  # of the second weights; the third's if they took over in time
    assert f"weights-{former}" not in apart


@pytest.mark.slow
def test_a_hangup_is_ignored_where_it_was(weights):
    """Under nohup a terminal that closes is nothing to the server."""
    options = ("--model", f"cifar/resnet20@{weights}", "--device", "cpu", "--threads", "1")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with launch(*options) as server:
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            (ignored,) = (line for line in status.splitlines() if line.startswith("SigIgn"))
            assert int(ignored.split()[1], 16) & 1 << (signal.SIGHUP - 1)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.usefixtures("hangups_are_heard")
def test_a_drain_does_not_wait_for_a_factory_that_is_stuck(pictures, tmp_path):
    """All is answered and saved: the end is a good one, long before --drain-timeout."""
    (tmp_path / "stuck.py").write_text(
        "import pathlib, time\n"
        "from ttc_core.zoo import ARCHITECTURES\n"
        f"FILE = pathlib.Path({str(tmp_path / 'reading')!r})\n"
        "calls = 0\n"
        "def make():\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls > 1:\n"
        "        FILE.touch()\n"
        "        time.sleep(600)\n"
        "    return ARCHITECTURES['resnet20'].build(10)\n"
    )
    options = ("--model", "stuck:make", "--size", "32", "--device", "cpu", "--threads", "1")
    options += ("--drain-timeout", "20", "--state-dir", str(tmp_path / "states"))
    with (
        launch(*options, environment={"PYTHONPATH": str(tmp_path)}) as server,
        Client(server.url, timeout=60) as client,
    ):
        client.predict(pictures[:4])
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 120  # it steps back, and the machine may be busy
        while not (tmp_path / "reading").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert server.stop() == 0
    assert (tmp_path / "states" / "default.safetensors").exists()
