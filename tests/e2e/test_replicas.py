"""Replicas behind one door: a stream is one replica's, moves whole, and is written by nobody else.

Here they are in one process, and share the state folder alone; `test_replicas_on_ray` has the same
door with processes of Ray's.
"""

import asyncio
import json
import threading
import time

import httpx
import pytest
from click.testing import CliRunner

from service.changes.files import writers
from service.cli import cli
from service.client import Client
from service.member import FOLDER
from service.replicas import door, sight
from service.replicas import fleet as fleet_module
from service.replicas.fleet import Fleet
from service.replicas.passing import Forwarded
from tests.e2e.conftest import ServerInThread, sample, wait_for
from tests.fixtures.local_fleet import local_fleet
from ttc_core.state_description import describe
from ttc_core.state_file import StateError

PNG = {"content-type": "image/png"}
LEARNING = {"samples_per_step": 1}


@pytest.fixture
def start(make_method, tmp_path):
    """Serve with replicas of TTC that steps with every batch."""

    def fleet(count=2, **settings):
        def source():
            return make_method("ttc", guard="on", **LEARNING)

        chosen = {"method": "ttc", "save_interval": 0.2, "max_batch": 8, **settings}
        return local_fleet(ServerInThread, source, tmp_path, count, **chosen)

    return fleet


def post(http, image, stream="gate", **more):
    answer = http.post("/predict", params={"stream": stream}, content=image, headers=PNG, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_answers_are_those_of_one_process_also_where_the_stream_moves(
    start, serve, make_method, pictures
):
    """Bit for bit, over a move to a replica that comes, one from a replica that goes, and back."""
    with serve(source=make_method("ttc", guard="on", **LEARNING), max_batch=8) as alone:
        streams = [f"s{number}" for number in range(4)]
        expected = {
            stream: [post(alone.http, pictures[8 * number + turn], stream) for turn in range(8)]
            for number, stream in enumerate(streams)
        }
    owners = {stream: [] for stream in streams}
    with start(1) as fleet:
        for turn in range(8):
            if turn == 2:
                second = fleet.add()
            if turn == 4:
                third = fleet.add()
            if turn == 6:
                fleet.status()  # what they have counted stays in the sum
                assert fleet.drain(second)
                assert fleet.drain(third)
            for number, stream in enumerate(streams):
                answer = post(fleet.http, pictures[8 * number + turn], stream)
                assert answer == expected[stream][turn], (stream, turn)
                owners[stream].append(fleet.owner(stream).name)
        assert max(len(set(found)) for found in owners.values()) > 1  # some have moved
        status = wait_for(lambda: (found := fleet.status())["idle"] and found)
        assert {name: each["images"] for name, each in status["streams"].items()} == dict.fromkeys(
            streams, 8
        )
        assert status["counters"]["images_total"] == 32
        told = {event["event"] for event in status["events"]}
        assert {"handed_over", "restored"} <= told
    assert fleet.door.saved


def test_with_paper_each_stream_is_the_papers(serve, make_method, pictures, tmp_path):
    """Batches' own statistics, no guard, no envelope: bit for bit as one process has it."""
    settings = {"method": "ttc", "paper": True, "max_batch": 8}

    def source():
        return make_method("ttc", paper=True, samples_per_step=8)

    def follow(url):
        with Client(url) as client:
            for at in range(0, 32, 8):
                for stream in ("gate", "dock"):
                    answers = client.predict(pictures[at : at + 8], stream=stream)
                    yield [each.confidence for each in answers.predictions]

    with serve(source=source(), **settings) as alone:
        expected = list(follow(alone.url))
    with local_fleet(ServerInThread, source, tmp_path, **settings) as fleet:
        assert list(follow(fleet.url)) == expected
        status, owners = fleet.status(), {fleet.owner("gate"), fleet.owner("dock")}
    assert len(owners) == 2
    assert status["envelope"] is None
    assert status["settings"]["method"]["statistics"] == "batch"
    assert all(each["version"] for each in status["streams"].values())


def test_the_name_is_read_wherever_it_stands(start, pictures):
    """Five ways to name a stream lead to one replica; two names at once to none."""
    tensor = {"name": "images", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": [7] * 3072}
    path = "/v2/models/bundled/infer"
    with start(3) as fleet:
        http = fleet.http
        post(http, pictures[0], "gate")
        answers = [
            http.post("/predict", content=pictures[1], headers=PNG | {"x-session-id": "gate"}),
            http.post(path, json={"inputs": [tensor], "parameters": {"sequence_id": "gate"}}),
            http.post(path, json={"inputs": [tensor], "parameters": {"stream": "gate"}}),
            http.post(path, json={"inputs": [tensor]}, headers={"x-session-id": "gate"}),
            http.post(
                path,
                params={"stream": "gate"},
                content=pictures[2],
                headers={"inference-header-content-length": "0"},
            ),
        ]
        assert [each.status_code for each in answers] == [200] * 5, [each.text for each in answers]
        status = fleet.status()
        assert {name: each["images"] for name, each in status["streams"].items()} == {"gate": 6}
        assert sum(each["owned"] for each in status["replicas"]) == 1
        two = {"inputs": [tensor], "parameters": {"sequence_id": "gate", "stream": "yard"}}
        refused = http.post(path, json=two)
        assert (refused.status_code, "two streams" in refused.text) == (400, True)
        stats = http.get("/v2/models/stats").json()["model_stats"]
        assert [each["inference_stats"]["success"]["count"] for each in stats] == [4]
        assert stats[0]["inference_count"] == 4


REQUESTS = [
    pytest.param("POST", "/predict", {}, b"", id="empty"),
    pytest.param("POST", "/predict", PNG, b"no image", id="no-image"),
    pytest.param("POST", "/predict?top_k=0", PNG, b"x", id="top-k"),
    pytest.param("POST", "/predict?steam=a", PNG, b"x", id="unknown-name"),
    pytest.param("POST", "/predict?stream=a", PNG | {"x-session-id": "b"}, b"x", id="two-names"),
    pytest.param("POST", "/predict?stream=a%20b", PNG, b"x", id="no-name"),
    pytest.param("POST", "/predict", {"content-type": "text/html"}, b"x", id="media-type"),
    pytest.param("POST", "/predict", PNG | {"content-encoding": "br"}, b"x", id="coding"),
    pytest.param("POST", "/predict", PNG | {"content-encoding": "gzip"}, b"x", id="no-gzip"),
    pytest.param("POST", "/predict", PNG, b"x" * 70_000, id="too-large"),
    pytest.param("POST", "/predict", PNG | {"origin": "http://evil.example"}, b"x", id="foreign"),
    pytest.param("POST", "/v2/models/bundled/infer", {}, b"{", id="no-json"),
    pytest.param("POST", "/v2/models/other/infer", {}, b"{}", id="no-model"),
    pytest.param("POST", "/feedback", {}, b'{"labels": []}', id="no-labels"),
    pytest.param("POST", "/rollback?stream=nobody", {}, b"", id="no-snapshot"),
    pytest.param("POST", "/reset?stream=nobody", {}, b"", id="reset-nobody"),
    pytest.param("GET", "/predict", {}, b"", id="method"),
    pytest.param("GET", "/nothing", {}, b"", id="no-path"),
    pytest.param("OPTIONS", "/status", {}, b"", id="options"),
    pytest.param("GET", "/healthz", {}, b"", id="healthz"),
    pytest.param("GET", "/readyz", {}, b"", id="readyz"),
    pytest.param("HEAD", "/events", {}, b"", id="events-head"),
    pytest.param("GET", "/v2/health/ready", {}, b"", id="v2-ready"),
    pytest.param("GET", "/v2/models/bundled/ready", {}, b"", id="model-ready"),
    pytest.param("POST", "/v2/repository/index", {}, b"", id="index"),
    pytest.param("GET", "/", {}, b"", id="page"),
]


@pytest.fixture(scope="module")
def both(serve, make_method, tmp_path_factory):
    """One process and replicas that ask for the same tokens."""
    tokens = {"token": "token-of-cameras", "admin_token": "token-of-people", "max_body": 65_536}

    def source():
        return make_method("source")

    folder = tmp_path_factory.mktemp("both")
    with (
        serve("source", **tokens) as alone,
        local_fleet(ServerInThread, source, folder, method="source", **tokens) as fleet,
    ):
        yield alone.http, fleet.http


@pytest.mark.parametrize("body", [b"", b'{"model": "other"}'])
def test_the_model_is_not_loaded_anew_whatever_else_is_wrong(both, body):
    """That it never is here goes before what a request for it may have."""
    headers = {"authorization": "Bearer token-of-people"}
    answer = both[1].post("/model", content=body, headers=headers)
    assert answer.status_code == 409
    assert answer.json()["detail"].startswith("Replicas load the model when they start")


@pytest.mark.parametrize("token", [None, "wrong-token", "token-of-cameras", "token-of-people"])
@pytest.mark.parametrize(("method", "path", "headers", "body"), REQUESTS)
def test_what_is_refused_is_refused_as_by_one_process(both, method, path, headers, body, token):
    """The same status, headers and sentence, with every token."""
    headers = {**headers, "x-request-id": "same"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    alone, fleet = (
        http.request(method, path, headers=headers, content=body or None) for http in both
    )
    assert (fleet.status_code, fleet.content) == (alone.status_code, alone.content)
    differing = {"date", "server-timing"}
    assert {k: v for k, v in fleet.headers.items() if k not in differing} == {
        k: v for k, v in alone.headers.items() if k not in differing
    }


def test_all_replicas_are_told_of_and_act(start, pictures):
    """/status, /metrics, labels, the live page; /reset of one stream and of all."""
    with start(3) as fleet:
        http, streams = fleet.http, [f"s{number}" for number in range(9)]
        for number, stream in enumerate(streams):
            answer = http.post(
                "/predict",
                params={"stream": stream, "id": "first"},
                content=pictures[number],
                headers=PNG,
            )
            assert answer.status_code == 200
        status = fleet.status()
        assert status["streams"].keys() == set(streams)
        assert [each["ready"] for each in status["replicas"]] == [True] * 3
        assert min(each["owned"] for each in status["replicas"]) > 0  # else nothing is told of two
        assert status["counters"]["images_total"] == 9
        text = http.get("/metrics").text
        of_replicas = [
            sample(text, f'ttc_images_total{{replica="{each["name"]}"}}')
            for each in status["replicas"]
        ]
        assert sum(of_replicas) == 9
        assert text.count("# TYPE ttc_images_total counter") == 1
        assert sample(text, "ttc_ready") == 1
        predicted = 'ttc_http_requests_total{code="200",method="POST",route="/predict"}'
        assert sample(text, predicted) == 9
        labels = [{"stream": each, "id": "first", "label": 1} for each in streams]
        labels.append({"stream": "s0", "id": "unheard", "label": 1})
        told = http.post("/feedback", json={"labels": labels}).json()
        assert (told["taken"], told["unknown"]["count"]) == (9, 1)
        assert told["unknown"]["images"] == [{"stream": "s0", "id": "unheard"}]
        assert fleet.status()["truth"].keys() == set(streams)
        with http.stream("GET", "/events") as frames:
            lines = frames.iter_lines()
            state = next(json.loads(each[6:]) for each in lines if each.startswith("data: "))
        assert {row["name"] for row in state["streams"]} == set(streams)
        assert state["counters"]["images"] == 9
        wait_for(lambda: len(list(fleet.door.settings.state_dir.glob("*.safetensors"))) == 9)
        one = http.post("/reset", params={"stream": "s0"}).json()
        assert (one["streams"], one["known"]) == (["s0"], True)
        everything = http.post("/reset", params={"stream": "*"}).json()
        assert set(everything["streams"]) >= set(streams[1:])
        assert not list(fleet.door.settings.state_dir.glob("*.safetensors"))
        assert fleet.status()["streams"] == {}


def test_saved_streams_that_are_nobodys_are_counted_and_reset(start, pictures, tmp_path):
    """After a start no replica has any; with * they go all the same."""
    with start(2) as fleet:
        for number in range(6):
            post(fleet.http, pictures[number], f"s{number}")
    assert len(list(tmp_path.glob("*.safetensors"))) == 6
    with start(2) as fleet:
        assert fleet.status()["saved_streams"] == 6
        post(fleet.http, pictures[0], "s3")
        wait_for(lambda: fleet.status()["saved_streams"] == 5)
        assert len(fleet.http.post("/reset", params={"stream": "*"}).json()["streams"]) == 6
        assert fleet.status()["saved_streams"] == 0
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_replica_that_is_gone_costs_a_save_interval_and_cannot_write(start, pictures, tmp_path):
    """Its streams go on elsewhere from their last save; what it saves afterwards is refused."""
    with start(2, save_interval=0.3) as fleet:
        streams = [f"s{number}" for number in range(6)]
        for turn in range(5):
            for stream in streams:
                post(fleet.http, pictures[turn], stream)
        wait_for(lambda: len(list(tmp_path.glob("*.safetensors"))) == 6)
        saved = {path.stem: describe(path).steps for path in tmp_path.glob("*.safetensors")}
        fleet.status()
        gone = fleet.kill(fleet.owner("s0"))
        lost = gone._leases.owned()
        # It learns on without anybody, as a process that others take for dead.
        for stream in lost:
            gone._service.engine.table.saving.note_change(stream)
        for stream in streams:
            answer = post(fleet.http, pictures[9], stream)
            assert saved[stream] <= answer["version"] <= 5
            assert fleet.owner(stream) is not gone
        wait_for(lambda: not gone._leases.owned())  # it has found out, at its next save
        wait_for(lambda: not gone._service.engine.streams.keys() & set(lost))
        status = fleet.status()
        assert len(status["replicas"]) == 1
        # What the replica that is gone had counted stays in the sum.
        assert status["counters"]["images_total"] == 36
    after = {path.stem: describe(path).steps for path in tmp_path.glob("*.safetensors")}
    assert all(after[stream] >= saved[stream] for stream in streams)
    assert not list(tmp_path.glob("*.rejected*"))
    assert (tmp_path / FOLDER).is_dir()


def test_clients_that_try_again_see_no_move(start, pictures, tmp_path):
    """Under load, replicas come and go: all is answered, and no file ever goes back."""
    written, ended = {}, threading.Event()

    def watch():
        """Files' counts of steps, as they are read: whoever wrote over a successor lowers one."""
        while not ended.wait(0.01):
            for path in tmp_path.glob("*.safetensors"):
                try:
                    steps = describe(path).steps
                except (OSError, StateError):
                    continue
                written.setdefault(path.stem, [0])
                if steps != written[path.stem][-1]:
                    written[path.stem].append(steps)

    def camera(url, stream, turns):
        with Client(url, timeout=60) as client:
            return [client.predict([pictures[turn]], stream=stream).version for turn in turns]

    with start(1, save_interval=0.1) as fleet:
        found, watching = {}, threading.Thread(target=watch)
        cameras = [
            threading.Thread(
                target=lambda stream=f"s{number}": found.__setitem__(
                    stream, camera(fleet.url, stream, range(40))
                )
            )
            for number in range(6)
        ]
        for each in (watching, *cameras):
            each.start()
        for _ in range(3):
            fleet.add()
            time.sleep(0.3)
            fleet.drain(fleet.handle.replicas[0])
        for each in cameras:
            each.join(120)
        ended.set()
        watching.join()
    assert [len(each) for each in found.values()] == [40] * 6
    # Drained replicas have saved: no step is lost, and each image's answer is newer.
    assert all(versions == sorted(versions) for versions in found.values())
    assert all(steps == sorted(steps) for steps in written.values())


def leases(folder):
    return {path.name for path in (folder / FOLDER / "streams").iterdir()}


def test_who_is_refused_leaves_nothing_and_moves_nothing(start, pictures, tmp_path):
    """No token, another method, a foreign page, no image: no lease, no stream taken, no reset."""
    with start(2, token="token-of-cameras") as fleet:
        known = {"authorization": "Bearer token-of-cameras"}
        fleet.http.headers.update(known)
        post(fleet.http, pictures[0], "gate")
        owner = fleet.owner("gate")
        wait_for((tmp_path / "gate.safetensors").exists)
        fleet.handle.replicas.reverse()  # its next request moves it
        refused = fleet.http.post("/predict?stream=gate", headers={"authorization": "Bearer no"})
        assert (refused.status_code, fleet.owner("gate")) == (401, owner)
        fleet.handle.replicas.reverse()
        assert fleet.drain(owner)  # nobody has it now
        for number in range(20):
            for method, more, status in [
                ("POST", {"headers": {"authorization": "Bearer no"}}, 401),
                ("DELETE", {}, 405),
                ("POST", {"headers": {"origin": "http://evil.example"}}, 403),
                ("POST", {"content": b"no image", "headers": PNG}, 400),
            ]:
                query = {"stream": f"evil-{status}-{number}"}
                found = fleet.http.request(method, "/predict", params=query, **more)
                assert found.status_code == status, found.text
        stranger = {"authorization": "Bearer no"}
        assert fleet.http.post("/reset?stream=*", headers=stranger).status_code == 401
        foreign = {"origin": "http://evil.example"}
        assert fleet.http.post("/reset?stream=*", headers=foreign).status_code == 403
        (other,) = fleet.handle.replicas
        wait_for(lambda: leases(tmp_path) == {"gate.lease"})
        assert not other._leases.owned()
        # Of a stream that is reset nothing is left either, once it is swept.
        assert fleet.http.post("/reset?stream=*").json()["streams"] == ["gate"]
        fleet.run(other._ownership.sweep())
        assert not leases(tmp_path)
        post(fleet.http, pictures[0], "gate")


def test_a_replica_that_hangs_costs_the_others_nothing(start, pictures, monkeypatch):
    """Readiness, metrics, status and moves between the others go on; its name is told."""
    for call in (Fleet.call, Fleet.ask_all):
        monkeypatch.setitem(call.__kwdefaults__, "seconds", 0.5)
    monkeypatch.setattr(door, "READY_SECONDS", 0.3)
    monkeypatch.setattr(door, "RESET_SECONDS", 0.5)
    monkeypatch.setattr(sight, "ASKED_SECONDS", 0.4)
    monkeypatch.setattr(fleet_module, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(fleet_module, "LIVES_SECONDS", 0.3)
    with start(3) as fleet:
        streams = [f"s{number}" for number in range(12)]
        for number, stream in enumerate(streams):
            post(fleet.http, pictures[number], stream)
        fleet.status()
        hung = fleet.owner("s0")
        fleet.hang(hung)
        assert fleet.http.get("/readyz").status_code == 200
        status = fleet.status()
        assert status["late"] == [hung.name]
        assert len(status["replicas"]) == 2
        text = fleet.http.get("/metrics").text
        assert sample(text, "ttc_ready") == 1
        assert hung.name not in text
        assert text.count("ttc_images_total{") == 2
        answer = fleet.http.post("/predict?stream=s0", content=pictures[0], headers=PNG)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        refused = fleet.http.post("/reset?stream=*")
        assert refused.status_code == 503
        assert "s0" in refused.json()["detail"]
        # Between the others streams move as before.
        other = next(each for each in streams if not hung._leases.owns(each))
        post(fleet.http, pictures[0], other)
        (new,) = [each for each in fleet.handle.replicas if each not in (hung, fleet.owner(other))]
        began = time.monotonic()
        assert fleet.run(new.lives())
        fleet.run(new._ownership._take(other))
        assert time.monotonic() - began < 0.45  # it did not wait for the one that hangs
        assert fleet.owner(other) is new


def test_a_reset_of_all_says_what_is_left(start, pictures, tmp_path):
    """A replica that ends and is not asked has its streams; once it has ended all are reset."""
    with start(2) as fleet:
        streams = [f"s{number}" for number in range(8)]
        for number, stream in enumerate(streams):
            post(fleet.http, pictures[number], stream)
        ending = fleet.owner("s0")
        left = set(ending._leases.owned())
        fleet.handle.replicas.remove(ending)  # as Ray, which asks it nothing more
        refused = fleet.http.post("/reset?stream=*")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert f"but for {len(left)}" in refused.json()["detail"]
        assert fleet.run(ending.end())
        done = fleet.http.post("/reset?stream=*")
        assert done.status_code == 200
        assert left <= set(done.json()["streams"])
        assert not list(tmp_path.glob("*.safetensors"))
        assert fleet.http.post("/reset?stream=*").status_code == 200


def test_a_reset_whose_file_could_not_be_removed_throws_nothing_else_away(
    start, pictures, tmp_path, monkeypatch
):
    """It goes when the stream moves, which learns on, and comes back with what it has learned."""
    with start(2) as fleet:
        for turn in range(3):
            post(fleet.http, pictures[turn], "gate")
        first = fleet.owner("gate")
        wait_for(lambda: (tmp_path / "gate.safetensors").exists())
        saving = first._service.engine.table.saving
        with monkeypatch.context() as patch:

            def fail(*args):
                raise OSError(5, "Input/output error")

            patch.setattr(saving.folder, "remove", fail)
            assert fleet.http.post("/reset?stream=gate").status_code == 500
        fleet.handle.replicas.reverse()  # the other has its place from now on
        versions = [post(fleet.http, pictures[turn], "gate")["version"] for turn in range(4)]
        assert versions == [0, 1, 2, 3]  # what could not be removed then was when it moved
        assert fleet.owner("gate") is not first
        fleet.handle.replicas.reverse()
        assert post(fleet.http, pictures[4], "gate")["version"] == versions[-1] + 1
    assert describe(tmp_path / "gate.safetensors").steps == versions[-1] + 2


def test_a_stream_whose_state_cannot_be_told_moves_all_the_same(start, pictures, monkeypatch):
    """It begins as it was saved before, at once, and the event says so."""
    with start(2) as fleet:
        post(fleet.http, pictures[0], "gate")
        first = fleet.owner("gate")
        method = wait_for(lambda: first._service.engine.table.in_memory("gate")).method

        def fail():
            raise RuntimeError("it cannot be told")

        monkeypatch.setattr(method, "state", fail)
        fleet.handle.replicas.reverse()  # the other has its place from now on
        began = time.monotonic()
        post(fleet.http, pictures[1], "gate")
        assert time.monotonic() - began < 5
        told = [each for each in first._service.events if each["event"] == "handed_over"]
        assert [each["saved"] for each in told] == [False]


def test_requests_of_a_stream_on_its_way_wait(start, pictures):
    """Also where it comes from: a door with the former ring is answered, by whoever has it then."""
    request = Forwarded(
        {"method": "POST", "path": "/predict", "query_string": b"stream=gate", "root_path": ""},
        [(b"host", b"localhost"), (b"content-type", b"image/png"), (b"x-request-id", b"1")],
        pictures[1],
    )
    with start(2) as fleet:
        post(fleet.http, pictures[0], "gate")
        first = fleet.owner("gate")

        async def ask():
            leaving = asyncio.create_task(first.let_go(first.name, "gate"))
            await asyncio.sleep(0)
            assert "gate" in first._ownership._leaving
            return await asyncio.gather(leaving, *(first.answer(request, "gate") for _ in "ab"))

        was_let_go, *answered = fleet.run(ask())
        assert was_let_go
        assert [each.status for each in answered] == [200, 200]


def test_successors_go_on_with_the_logs_of_those_that_are_gone(start, pictures, tmp_path):
    """Replicas come and go; there are as many logs as there were replicas at a time, all whole."""
    with start(2) as fleet:
        for turn in range(3):
            for number in range(4):
                post(fleet.http, pictures[turn], f"s{number}")
            fleet.drain(fleet.handle.replicas[0])
            fleet.add()
    assert writers(tmp_path) == ["replica-0", "replica-1"]
    done = CliRunner().invoke(cli, ["changes", "verify", "--state-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output


def test_a_folder_of_replicas_is_no_single_process_and_the_other_way_round(start, serve, tmp_path):
    """Each names the other."""
    from service.state_folder import StateFolder, StateFolderError

    names = {"method": "ttc", "model": "bundled"}
    with start(1), pytest.raises(StateFolderError, match="the replicas of ttc serve --ray"):
        StateFolder(tmp_path, **names)
    alone = StateFolder(tmp_path, **names)
    from service.leases import Leases

    leases = Leases(tmp_path, "one")
    with pytest.raises(StateFolderError, match=r"is held by process \d+"):
        StateFolder(tmp_path, **names, leases=leases)
    leases.close()
    alone.close()


def test_no_replica_is_no_hang(start, pictures):
    """Without any the door says so at once, and when to come back."""
    with start(1) as fleet:
        replica = fleet.handle.replicas[0]
        fleet.drain(replica)
        fleet.handle.replicas.clear()
        answer = fleet.http.post("/predict", content=pictures[0], headers=PNG)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert httpx.get(f"{fleet.url}/readyz").status_code == 503
        assert httpx.get(f"{fleet.url}/healthz").status_code == 200
