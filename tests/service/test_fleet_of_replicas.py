"""Replicas from outside: whose they are, what is shown of them, which routes move streams."""

import asyncio
import signal
import subprocess
import sys

import pytest

from service import ray_cluster
from service.leases import Leases
from service.live.schemas import LiveCounters, LiveGauges
from service.replicas import deploying
from service.replicas.deploying import ReplicasError, check_room
from service.replicas.fleet import Fleet
from service.replicas.replica import Replica, Told, digest_of
from service.replicas.sight import FleetSight, together
from service.routes import feedback
from service.routes.table import OF_ONE_STREAM, ROUTERS, route_of
from service.settings import Settings
from service.state_folder import StateFolderError

# Whose they are


class Handle:
    """Replicas that say whose they are; a replica's `served_by` each."""

    def __init__(self, *told):
        self._told = told

    def broadcast(self, method):
        assert method == "served_by"
        return self

    def results(self, *, timeout_s):
        return list(self._told)


@pytest.fixture
def settings(tmp_path):
    return Settings(state_dir=tmp_path, ray=True, token="token-of-cameras")


@pytest.fixture
def ours(tmp_path):
    leases = Leases(tmp_path, "door-ours", lease_seconds=0.5)
    yield leases
    leases.close()


@pytest.fixture
def killed(tmp_path, ours):
    """A command that was killed: its file is still there."""
    code = (
        "import os, signal, sys; from pathlib import Path; from service.leases import Leases\n"
        "Leases(Path(sys.argv[1]), 'door-killed'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    return "door-killed"


def test_replicas_of_a_command_that_was_killed_are_taken_over(settings, ours, killed):
    """Of the same settings they go on; others end; of neither anybody has to be told by hand."""
    same, other = digest_of(settings), digest_of(Settings(state_dir=settings.state_dir, ray=True))
    handle = Handle((same, ours.member.fleet, killed), (same, ours.member.fleet, killed))
    assert deploying._are_to_be_used(handle, settings, ours)
    assert not deploying._are_somebodys(handle, ours)
    assert not deploying._are_to_be_used(Handle((other, ours.member.fleet, killed)), settings, ours)


def test_replicas_of_a_command_that_lives_are_its_own(settings, ours):
    """Of the same settings we join them; others are refused, tokens being settings; so is another
    folder's."""
    living = Leases(settings.state_dir, "door-living", lease_seconds=0.5)
    living.keep_beating()
    try:
        same = digest_of(settings)
        other = digest_of(settings.model_copy(update={"token": None}))
        assert other != same
        handle = Handle((same, ours.member.fleet, "door-living"))
        assert deploying._are_to_be_used(handle, settings, ours)
        assert deploying._are_somebodys(handle, ours)
        for told in ((other, ours.member.fleet, "door-living"), (same, "another", "door-gone")):
            with pytest.raises(ReplicasError, match="replicas of other settings"):
                deploying._are_to_be_used(Handle(told), settings, ours)
    finally:
        living.close()


def test_replicas_that_say_nothing_are_told_in_a_sentence(settings, ours):
    class Broken(Handle):
        def results(self, *, timeout_s):
            raise TimeoutError("Timed out waiting for broadcast results.")

    with pytest.raises(ReplicasError, match=r"do not say whose they are .*serve shutdown"):
        deploying._are_to_be_used(Broken(), settings, ours)


def test_a_cluster_without_the_room_is_refused(monkeypatch):
    """In a sentence, with the way out; Ray would wait without an end."""
    monkeypatch.setattr(ray_cluster, "places", lambda processors, gpus: 1)
    check_room(1, 4, 1)
    with pytest.raises(ReplicasError, match=r"room for 1 of 2 replicas: .* 4 processors and 1 GPU"):
        check_room(2, 4, 1)


def test_one_gpu_of_several_is_not_named(tmp_path):
    """Each replica sees the one that it was given, by the number 0."""
    with pytest.raises(ReplicasError, match="--device cuda, or auto"):
        deploying._check_device(Settings(state_dir=tmp_path, ray=True, device="cuda:1"))


def test_a_replica_does_not_start_where_the_folder_is_not_mounted(settings, ours):
    """It makes none of its own, and says on which machine."""

    async def start():
        replica = Replica(settings, {}, lambda: None, "a", Fleet(None), "another", "door")
        await replica.start()

    with pytest.raises(StateFolderError, match=r"not the folder of this fleet.*mounted there"):
        asyncio.run(start())
    assert not (settings.state_dir / ".leases" / "owners" / "a").exists()


# What is shown


def told(name="a", labelled=0, events=(), **gauges):
    counters = {field: 0 for field in LiveCounters.model_fields}
    counters |= {"labelled": labelled, "request_seconds_buckets": [0]}
    empty = {field: 0 for field in LiveGauges.model_fields}
    return Told(
        name=name,
        host="h",
        process=1,
        started=0.0,
        ready=True,
        owned=0,
        files=None,
        model=None,
        counters=LiveCounters(**counters),
        gauges=LiveGauges(**empty | gauges),
        events=list(events),
    )


def test_an_accuracy_counts_as_much_as_what_it_is_of():
    """A thousand labels weigh more than one, twenty streams more than two."""
    many = told(labelled=1000, window_accuracy=0.9, streams=20, estimated_adapted=0.8)
    few = told(labelled=1, window_accuracy=0.0, streams=3, held=1, estimated_adapted=0.25)
    found = together([many, few])
    assert found.window_accuracy == pytest.approx(0.9 * 500 / 501)
    assert found.estimated_adapted == pytest.approx((20 * 0.8 + 2 * 0.25) / 22)
    assert together([told(window_accuracy=None, estimated_adapted=None)]).window_accuracy is None


def test_two_looks_at_a_time_tell_an_event_once():
    class Asked:
        async def call(self, method, since, with_files, seconds):
            await asyncio.sleep(0.01)
            new = since.get("a", 0.0) < 5.0
            return [told(events=[{"event": "reset", "time": 5.0}] if new else [])]

    async def look():
        sight = FleetSight(Asked())
        await asyncio.gather(sight.look(), sight.look())
        return list(sight.new_events)

    assert [each["event"] for each in asyncio.run(look())] == ["reset"]


# Routes


def routes():
    return [route for router in ROUTERS for route in router.routes if hasattr(route, "dependant")]


def test_each_route_that_a_stream_is_named_to_is_of_that_stream():
    """A new one has to say so: its requests would go to any replica. Labels go to all."""
    named = {
        route.endpoint
        for route in routes()
        if {each.alias for each in route.dependant.query_params} & {"stream"}
        or {each.alias for each in route.dependant.header_params} & {"x-session-id"}
    }
    assert named <= OF_ONE_STREAM | {feedback.feedback}
    assert len(OF_ONE_STREAM) == 5


def test_the_table_finds_routes_as_the_application_does():
    """By path and method, below a proxy's prefix too."""

    def found(method, path, root=""):
        scope = {"type": "http", "method": method, "path": root + path, "root_path": root}
        route, is_taken = route_of({**scope, "headers": [], "query_string": b""})
        return route and route.path, is_taken

    assert found("POST", "/predict") == found("POST", "/predict", "/ttc") == ("/predict", True)
    assert found("GET", "/predict") == ("/predict", False)
    assert found("GET", "/nothing") == (None, False)
    infer = "/v2/models/{model}/versions/{version}/infer"
    assert found("POST", "/v2/models/a/versions/1/infer") == (infer, True)
