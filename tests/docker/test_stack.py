"""The compose file as it is, brought up by podman: service, Prometheus, Alertmanager; one story.

Debian's packages stand in for the images of a registry (`python -m stack`); rules, times and
configurations are those of the repository, so that an alert takes its two minutes. It wants the
file's ports to itself: `make stack` runs it, `make test` does not.

Not exercised: the images that the file names, Grafana, a GPU, Docker's own engine; and what podman
leaves to systemd, which need not be here: the timer of health checks.
"""

import json
import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from monitoring.prometheus import Prometheus
from service.client import Client
from service.replay import to_png
from stack.__main__ import ROOT, configured
from stack.engine import Engine, missing
from stack.stand_ins import MONITORS, make_base, make_monitors
from ttc_core.datasets import Geometry, open_data

PROJECT = "stack-test"
"""Not the file's own name: whoever has that one's volumes here keeps them."""
SERVICE, PROMETHEUS, ALERTMANAGER = (f"http://127.0.0.1:{port}" for port in (8000, 9090, 9093))
SERVICES = ("ttc", *MONITORS)
USERS = {"ttc": 10001, "prometheus": 65534, "alertmanager": 65534}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        bool(missing()), reason=f"not installed here: {', '.join(missing())} (Debian packages)"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="the stand-ins are made by root"),
    pytest.mark.skipif(
        sys.version_info[:2] != (3, 11), reason="torch is bound into a base with Python 3.11"
    ),
]


def eventually(condition, patience=60.0):
    """Ask until the answer is true; return it."""
    deadline = time.monotonic() + patience
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.2)
    return answer


@dataclass(frozen=True)
class Stack:
    """The containers of the compose file.

    Attributes:
        client: of the service.
        prometheus: the one in the container.
        pictures, labels: images of fog, as PNG files, and their classes.
    """

    engine: Engine
    client: Client
    prometheus: Prometheus
    pictures: list[bytes]
    labels: list[int]

    def compose(self, *arguments):
        """podman-compose, on the file as it is."""
        command = Path(sys.executable).parent / "podman-compose"
        file = ROOT / "docker-compose.yml"
        return self.engine.run(command, "--project-name", PROJECT, "--file", file, *arguments)

    def podman(self, *arguments):
        return self.engine.run("podman", *arguments)

    def inspect(self, service, what):
        return self.podman("inspect", "--format", f"{{{{{what}}}}}", f"{PROJECT}_{service}_1")

    def inside(self, service, *command):
        """What a command says in a running container, and its exit status."""
        done = self.engine.attempt("podman", "exec", f"{PROJECT}_{service}_1", *command)
        return done.stdout.strip(), done.returncode

    def healthy(self, service):
        """Whether the container's own health check passes."""
        check = ("podman", "healthcheck", "run", f"{PROJECT}_{service}_1")
        return self.engine.attempt(*check).returncode == 0

    def rings(self, name):
        """Whether Alertmanager has the alert."""
        alerts = httpx.get(f"{ALERTMANAGER}/api/v2/alerts").json()
        return any(each["labels"]["alertname"] == name for each in alerts)

    def target_is_up(self):
        """Whether Prometheus reads the service, by its name."""
        return [
            target["health"] == "up"
            for target in self.prometheus.targets()
            if target["labels"]["instance"] == "ttc"
        ] == [True]

    def wait_for_service(self):
        """By HTTP first: a health check costs more than an answer."""
        eventually(self.client.ready, 600)
        eventually(lambda: self.healthy("ttc"))

    def post(self, positions, stream="gate"):
        """Images with their labels; return the version of the stream that answered."""
        pictures = [self.pictures[at] for at in positions]
        labels = [self.labels[at] for at in positions]
        return self.client.predict(pictures, labels=labels, stream=stream).version

    def accepted(self):
        """Images that were answered or wait."""
        lines = httpx.get(f"{SERVICE}/metrics", timeout=60).text.splitlines()
        samples = dict(line.split(" ", 1) for line in lines if line.startswith("ttc_"))
        return float(samples["ttc_images_total"]) + float(samples["ttc_queue_images"])

    def learned(self):
        """Images and version of the stream `gate`, once nothing is going on."""
        eventually(lambda: self.client.status().idle)
        gate = self.client.status().streams["gate"]
        return gate.images, gate.version


@pytest.fixture(scope="module")
def stack():
    """Prometheus and Alertmanager are healthy; the service's image is made while they miss it."""
    for url in (SERVICE, PROMETHEUS, ALERTMANAGER):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", int(url.rpartition(":")[2])))  # else something has it
    engine = configured()
    make_monitors(engine)
    stream = open_data("bundled", Geometry(32)).open("fog", 5, limit=600)
    pictures = [to_png(pixels) for pixels in stream.read(stream.positions)]
    with Client(SERVICE, timeout=60) as client:
        running = Stack(engine, client, Prometheus(PROMETHEUS), pictures, stream.labels.tolist())
        try:
            running.compose("up", "--detach", *MONITORS)
            for service in MONITORS:
                eventually(lambda service=service: running.healthy(service))
            make_base(engine)
            running.compose("build", "ttc")
            yield running
        finally:
            running.compose("down", "--volumes")


def test_an_alert_rings_while_there_is_no_service(stack):
    """By the repository's own rules: two minutes after Prometheus misses it."""
    eventually(lambda: stack.rings("TTCDown"), 240)


def test_the_service_comes_up_and_the_alert_ends(stack):
    """The health check fails before it listens; then Prometheus finds it by its name."""
    stack.compose("up", "--detach", "ttc")
    assert not stack.healthy("ttc")
    stack.wait_for_service()
    eventually(stack.target_is_up)
    eventually(lambda: not stack.rings("TTCDown"), 120)


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_no_rights_and_a_bound(stack, service):
    """Not root, no capability, none to be had, a read-only root, the file's limit of memory."""
    status, _ = stack.inside(service, "cat", "/proc/self/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert fields["Uid"].split() == [str(USERS[service])] * 4
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    _, refused = stack.inside(service, "sh", "-c", "echo > /written")
    assert refused != 0
    kept = "state" if service == "ttc" else service
    for folder in ("/tmp", f"/{kept}"):
        assert stack.inside(service, "sh", "-c", f"echo > {folder}/written") == ("", 0)
    assert int(stack.inspect(service, ".HostConfig.Memory")) > 0
    assert stack.inspect(service, ".HostConfig.RestartPolicy.Name") == "unless-stopped"


def test_stopping_answers_what_was_accepted(stack):
    """SIGTERM goes through the container's first process; it ends with status 0 in its time."""
    with ThreadPoolExecutor(9) as pool:
        answers = [pool.submit(stack.post, range(100), f"yard-{at}") for at in range(9)]
        eventually(lambda: stack.accepted() == 900)
        stack.compose("stop", "ttc")
        assert len([answer.result() for answer in answers]) == 9
    assert stack.inspect("ttc", ".State.ExitCode") == "0"


def test_what_was_learned_is_there_after_down_and_up(stack):
    """Containers and network are made anew; the volumes stay, Prometheus' as well."""
    stack.compose("up", "--detach", *SERVICES)
    stack.wait_for_service()
    for at in range(0, 600, 50):
        stack.post(range(at, at + 50))
    images, version = stack.learned()
    assert version > 0
    before = time.time()
    first = stack.inspect("ttc", ".Id")
    stack.compose("down")
    stack.compose("up", "--detach", *SERVICES)
    assert stack.inspect("ttc", ".Id") != first
    stack.wait_for_service()
    assert stack.post([0]) == version
    assert stack.learned()[0] == images + 1
    assert eventually(lambda: stack.prometheus.query('up{instance="ttc"}', at=before))
    eventually(stack.target_is_up)


def test_a_service_that_was_killed_goes_on_from_its_last_save(stack):
    """Its first process dies; the policy starts it again, and the stream is not at the source."""
    said, _ = stack.inside("ttc", "ttc", "state", "/state", "--json")
    streams = {each["stream"]: each for each in map(json.loads, said.splitlines())}
    saved = streams["gate"]["counters"]["counters"]["steps"]
    os.kill(int(stack.inspect("ttc", ".State.Pid")), signal.SIGKILL)
    eventually(lambda: stack.inspect("ttc", ".RestartCount") == "1")
    stack.wait_for_service()
    assert stack.post([1]) == saved > 0
