"""A real Prometheus and Alertmanager watch a real server under a replay; alerts fire for real."""

import asyncio
import re
import time
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
import yaml
from rich.console import Console

from monitoring.alerts import ALERTS, RECORDS
from monitoring.generate import DOCKER, RULES
from monitoring.panels import ANNOTATIONS, SECTIONS
from monitoring.prometheus import (
    Prometheus,
    free_port,
    missing,
    run_alertmanager,
    run_prometheus,
)
from service.client import Client, ServiceError
from service.replay import ReplayPlan, replay, to_png
from service.view import View
from tests.fixtures.forked import launch
from ttc_core.datasets import Geometry, open_data
from ttc_core.rows import Rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(420),
    pytest.mark.skipif(
        bool(missing()), reason=f"not installed here: {', '.join(missing())} (Debian packages)"
    ),
]

PATIENCE = 60.0
EXPRESSIONS = {
    f"{panel.title}: {query.expression}": query.expression
    for section in SECTIONS
    for panel in section.panels
    for query in panel.queries
}
EXPRESSIONS |= {f"{each.name}: {each.expression}": each.expression for each in ANNOTATIONS}
# What depends on how busy this machine is.
TIMES = {"TTCLatency", "TTCQueueAge", "TTCLoopLag"}
QUEUE = 100


def sent(url, corruption, limit, **options):
    """Replay a corruption of the bundled stream, with its labels."""
    plan = ReplayPlan("bundled", url, (corruption,), limit=limit, **options)
    asyncio.run(replay(plan, Rows(None), View(Console(quiet=True)), table=False))


def eventually(condition):
    """Ask until the answer is true; return it."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.5)
    return answer


@dataclass(frozen=True)
class Stack:
    """A running service, and what watches it and two more that tests may start."""

    url: str
    prometheus: Prometheus
    alertmanager: str
    collapsing_port: int
    narrow_port: int

    def seen(self, url):
        """Wait for the first scrape, so that what is counted after it is an increase."""
        instance = url.removeprefix("http://")
        eventually(lambda: self.prometheus.query(f'ttc_ready{{instance="{instance}"}}'))

    def alert(self, name, url):
        """The alert about a service as Alertmanager has it, or None."""
        for each in httpx.get(f"http://{self.alertmanager}/api/v2/alerts").json():
            labels = each["labels"]
            if labels["alertname"] == name and labels["instance"] == url.removeprefix("http://"):
                return each
        return None


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """Prometheus has the committed rules, Alertmanager the committed configuration.

    The rules wait for seconds in place of minutes; expressions and thresholds are as committed.
    """
    folder = tmp_path_factory.mktemp("monitoring")
    rules = folder / "rules.yml"
    rules.write_text(re.sub(r"(?m)^(\s+for:) \w+$", r"\1 2s", RULES.read_text()))
    ports = [free_port() for _ in range(3)]
    with (
        launch("--port", str(ports[0]), "--max-queue", str(QUEUE)) as server,
        run_alertmanager(folder, DOCKER / "alertmanager" / "alertmanager.yml") as alertmanager,
        run_prometheus(
            folder,
            [f"127.0.0.1:{port}" for port in ports],
            rules=[rules],
            alertmanager=alertmanager,
        ) as prometheus,
    ):
        yield Stack(server.url, prometheus, alertmanager, *ports[1:])


@pytest.fixture(scope="module")
def healthy(stack):
    """Prometheus after an ordinary replay, with a reset and an image that is refused."""
    # The first scrape must see the counters before they count.
    eventually(lambda: stack.prometheus.query("ttc_ready"))
    sent(stack.url, "fog", 300, batch_size=50)
    time.sleep(2)
    with Client(stack.url) as client:
        client.reset()
        with pytest.raises(ServiceError):
            client.predict([b"no image"])
    sent(stack.url, "clean", 500, batch_size=50)
    time.sleep(3)  # two scrapes more, so that rates have both ends
    return stack.prometheus


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_panel_has_data_on_a_healthy_run(healthy, name):
    """By its own query; annotations count as panels."""
    expression = EXPRESSIONS[name].replace("$__rate_interval", "1m")
    expression = expression.replace("$job", ".*").replace("$instance", ".*")
    lines = healthy.query(expression)
    assert lines
    assert any(np.isfinite(line.values).all() for line in lines)


def test_prometheus_reads_the_service_and_every_rule(healthy):
    """The target is up; no rule fails, records have data, nothing rings."""
    assert [target["health"] for target in healthy.targets()].count("up") == 1
    rules = eventually(
        lambda: (found := healthy.rules()) and all(r["health"] == "ok" for r in found) and found
    )
    assert {rule["name"] for rule in rules} == {each.name for each in (*ALERTS, *RECORDS)}
    for record in RECORDS:
        assert eventually(lambda name=record.name: healthy.query(name))
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    assert firing <= TIMES


def test_a_slow_request_can_be_found_by_its_id(healthy):
    """Latency has exemplars: the id of a request, as its log line has it."""
    selector = 'ttc_http_request_duration_seconds_bucket{route="/predict"}'
    found = healthy.exemplars(selector, time.time() - 600, time.time())
    assert found
    assert all(re.fullmatch(r"[\w.:-]{1,64}", each["labels"]["request_id"]) for each in found)


def pictures_of(label, count):
    """Clean images of one class, as PNG files."""
    images, labels = next(iter(open_data("bundled", Geometry()).open("clean", 5).batches(2000)))
    return [to_png(image) for image in images[labels == label][:count]]


def test_a_collapse_rings(stack):
    """TENT on single images with batch statistics ends in one class, certain of it."""
    images = [*pictures_of(0, 60), *pictures_of(1, 60)]
    port = ("--port", str(stack.collapsing_port))
    with launch(*port, "--method", "tent", "--paper", "--set", "tent.lr=0.03") as server:
        stack.seen(server.url)
        with Client(server.url) as client:
            for number in range(560):
                client.predict([images[number % len(images)]])
        for name, severity in (("TTCClassCollapse", "warning"), ("TTCEntropyCollapse", "critical")):
            found = eventually(lambda name=name: stack.alert(name, server.url))
            assert found["labels"]["severity"] == severity
            assert found["annotations"]["runbook_url"].endswith(f"{name}.md")
    assert re.search(r"[\d.]+ nats", found["annotations"]["description"])


def test_a_camera_that_sees_one_class_only_rings(stack):
    """Statistics that follow the images lose what tells the class; answers come near guesses."""
    images = pictures_of(5, 200)
    with launch("--method", "ttc", "--port", str(stack.narrow_port)) as server:
        stack.seen(server.url)
        with Client(server.url) as client:
            for start in range(0, len(images), 20):
                client.predict(images[start : start + 20])
        found = eventually(lambda: stack.alert("TTCUncertain", server.url))
    assert found["labels"]["severity"] == "warning"


def test_a_full_queue_rings(stack):
    """Clients that ask for more than can be answered are refused, and somebody hears of it."""
    stack.seen(stack.url)
    sent(stack.url, "clean", 1500, mode="closed", concurrency=12, batch_size=50)
    found = eventually(lambda: stack.alert("TTCRefusing", stack.url))
    assert "%" in found["annotations"]["description"]


def test_a_service_that_has_gone_rings(stack):
    """The two that ended before: Prometheus had seen them, and they do not answer any more."""
    for port in (stack.collapsing_port, stack.narrow_port):
        found = eventually(lambda port=port: stack.alert("TTCDown", f"127.0.0.1:{port}"))
        assert found["labels"]["severity"] == "critical"


def test_alertmanager_runs_with_the_committed_configuration(stack):
    """It groups and inhibits as docker/alertmanager says."""
    running = httpx.get(f"http://{stack.alertmanager}/api/v2/status").json()["config"]["original"]
    committed = yaml.safe_load((DOCKER / "alertmanager" / "alertmanager.yml").read_text())
    assert yaml.safe_load(running)["inhibit_rules"][0]["equal"] == ["instance"]
    assert yaml.safe_load(running)["route"]["receiver"] == committed["route"]["receiver"]
