"""curl, Node and Java: image files one after another, each learned from once."""

import os
import shutil
import socket
import subprocess
import threading
import time

import pytest

from service.client import Client
from tests.examples.conftest import EXAMPLES, PATIENCE, finish, terminate
from tests.fixtures.requests import at_rest
from tests.fixtures.scripted_service import scripted_service


def compiles():
    """Whether there is a Java that runs a source file: one with a compiler, from 17 on."""
    if not (shutil.which("java") and shutil.which("javac")):
        return False
    told = subprocess.run(["javac", "-version"], capture_output=True, text=True).stdout
    return int(told.split()[-1].partition(".")[0]) >= 17


# CI has the first two, and Java where its machine does.
IN_CI = ("curl", "node")
COMMANDS = {
    "curl": ("sh", EXAMPLES / "curl.sh"),
    "node": ("node", EXAMPLES / "node.mjs"),
    "java": ("java", EXAMPLES / "Client.java"),
}


@pytest.fixture(params=COMMANDS)
def command(request):
    """How the example is started."""
    name = request.param
    is_there = compiles() if name == "java" else shutil.which(name)
    if not is_there and not (os.environ.get("CI") and name in IN_CI):
        pytest.skip("no JDK from 17 on is here" if name == "java" else f"no {name} is here")
    return COMMANDS[name]


def test_pictures_are_answered_in_order(server, photos, start, command, request):
    """By a real service, which has learned from each of them."""
    name = request.node.callspec.params["command"]
    with Client(server.url) as client:
        expected = [client.predict(path, stream=f"beside-{name}") for path in photos]
        before = images_of(client)
        status, out, err = finish(start(*command, *photos, url=server.url))
        assert (status, err) == (0, "")
        lines = out.splitlines()
        assert len(lines) == len(photos)
        for line, answer in zip(lines, expected, strict=True):
            assert answer.predictions[0].name in line
        assert images_of(client) == before + len(photos)


def images_of(client):
    streams = at_rest(client).streams
    return streams["example"].images if "example" in streams else 0


@pytest.mark.parametrize("refusal", [429, 503])
def test_what_is_refused_is_sent_again_no_sooner_than_it_was_told(
    scripted, photos, start, command, refusal
):
    scripted.before = [(refusal, {"Retry-After": "1"})]
    status, out, err = finish(start(*command, photos[0], url=scripted.url))
    assert (status, err) == (0, "")
    assert "seven" in out
    first, second = scripted.times
    assert 1 <= second - first < 5
    assert [body for *_, body in scripted.asked] == [photos[0].read_bytes()] * 2


def test_what_was_lost_on_its_way_back_is_not_sent_again(scripted, photos, start, command):
    """Neither it nor what comes after it; and it is said."""
    scripted.before = [None]
    status, out, err = finish(start(*command, *photos[:2], url=scripted.url))
    assert status == 1
    assert (out, len(scripted.asked)) == ("", 1)
    assert err.strip()


@pytest.mark.parametrize("refusal", [429, 503])
def test_what_a_proxy_refused_is_not_sent_again(scripted, photos, start, command, refusal):
    """It may have forwarded the request before: Envoy says so in plain text."""
    scripted.before = [(refusal, {"Content-Type": "text/plain", "Retry-After": "0"})]
    status, out, err = finish(start(*command, *photos[:2], url=scripted.url))
    assert (status, out, len(scripted.asked)) == (1, "", 1)
    assert err.strip()


@pytest.mark.parametrize("refusal", [400, 500])
def test_what_is_wrong_is_told_by_the_services_sentence(scripted, photos, start, command, refusal):
    """Once, however often it would be asked."""
    scripted.before = [(refusal, {})]
    status, out, err = finish(start(*command, photos[0], url=scripted.url))
    assert (status, out, len(scripted.asked)) == (1, "", 1)
    assert "Not now." in err


def test_a_service_that_starts_a_moment_later_is_found(photos, start, command):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    process = start(*command, photos[0], url=f"http://127.0.0.1:{port}")
    time.sleep(0.7)
    with scripted_service(port):
        status, out, _ = finish(process)
    assert status == 0
    assert "seven" in out


def test_a_signal_ends_the_wait_and_nothing_more_is_sent(scripted, photos, start, command):
    scripted.before = [(429, {"Retry-After": "20"})]
    process = start(*command, *photos, url=scripted.url)
    wait_for_requests(scripted, 1)
    time.sleep(0.3)
    began = time.monotonic()
    _, out, _ = terminate(process)
    assert time.monotonic() - began < 10
    assert (out, len(scripted.asked)) == ("", 1)


def test_a_signal_leaves_the_request_in_hand_its_answer(scripted, photos, start, command):
    """It was accepted: its answer is told before the example ends."""
    scripted.seconds = 1.0
    process = start(*command, *photos, url=scripted.url)
    wait_for_requests(scripted, 1)
    threading.Timer(0.2, process.terminate).start()
    _, out, _ = finish(process)
    assert len(scripted.asked) == 1
    assert ("seven" in out) or command[0] == "sh"  # sh ends before it tells


def wait_for_requests(scripted, count):
    deadline = time.monotonic() + PATIENCE
    while len(scripted.asked) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
