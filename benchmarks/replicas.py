"""Replicas on Ray under fire: killed, added and taken away while cameras send; times and losses.

Starts `ttc serve --ray` on this machine, has cameras send images one after another through the
project's client, and kills a replica's process (SIGKILL) again and again. Checks that every request
was answered, that each stream went on from its last save with at most one save interval lost, and
that no file ever went back, as it would if two wrote it. Ends with 1 where one of these fails.

    python -m benchmarks.replicas [--kills 10] [--streams 50] [--scale]
"""

import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click
import httpx

from service import launch as launching
from service.client import Client
from service.launch import launch
from service.replay import to_png
from ttc_core.datasets import Geometry, open_data
from ttc_core.state import StateError, describe

# Of a start on a machine that has other work.
PATIENCE = 600.0
SAVE_INTERVAL = 2.0
CLIENT_SECONDS = 60.0


@dataclass
class Stream:
    """What was seen of a stream.

    Attributes:
        answers: when each came, its version, and how long it took.
        steps: of its file, as they changed.
    """

    answers: list[tuple[float, int, float]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)


@dataclass
class Cameras:
    """Cameras that send without a pause, each a few streams in turn, until told to stop."""

    url: str
    images: list[bytes]
    streams: dict[str, Stream]
    ended: threading.Event = field(default_factory=threading.Event)

    def send(self, names: list[str]) -> None:
        """Send of these streams; whatever the client does not get answered is raised."""
        with Client(self.url, timeout=CLIENT_SECONDS, retry_budget=CLIENT_SECONDS) as client:
            turn = 0
            while not self.ended.is_set():
                for name in names:
                    began = time.monotonic()
                    answer = client.predict([self.images[turn % len(self.images)]], stream=name)
                    now = time.monotonic()
                    self.streams[name].answers.append((now, answer.version, now - began))
                turn += 1

    def watch(self, folder: Path) -> None:
        """Note the steps that files have, as they change."""
        while not self.ended.wait(0.05):
            for path in folder.glob("*.safetensors"):
                try:
                    steps = describe(path).steps
                except (OSError, StateError):
                    continue
                seen = self.streams[path.stem].steps
                if not seen or seen[-1] != steps:
                    seen.append(steps)


def replicas(url: str) -> list[dict[str, object]]:
    """The replicas that live."""
    try:
        answer = httpx.get(f"{url}/status", timeout=10)
    except httpx.HTTPError:
        return []
    return answer.json()["replicas"] if answer.status_code == 200 else []


def wait_for(url: str, count: int, seconds: float = PATIENCE) -> float:
    """Wait until so many replicas are ready; return how long that took."""
    began = time.monotonic()
    while sum(bool(each["ready"]) for each in replicas(url)) != count:
        if time.monotonic() - began > seconds:
            raise click.ClickException(f"There are not {count} replicas after {seconds:g} s.")
        time.sleep(0.1)
    return time.monotonic() - began


def kill_one(url: str, chance: random.Random) -> float:
    """Kill a replica's process; return when."""
    while not (alive := replicas(url)):
        time.sleep(0.1)
    moment = time.monotonic()
    os.kill(int(str(chance.choice(alive)["process"])), signal.SIGKILL)
    return moment


def pauses(streams: dict[str, Stream], moment: float) -> list[float]:
    """For each stream, how long after a moment its first answer came, of those that waited."""
    found = []
    for stream in streams.values():
        later = [(when, took) for when, _, took in stream.answers if when > moment]
        if later and later[0][1] > 0.5:
            found.append(later[0][0] - moment)
    return found


def lost(stream: Stream) -> tuple[int, float]:
    """The most steps that an answer was behind the newest before it, and the seconds since that
    step was first seen."""
    newest, behind, age = 0, 0, 0.0
    reached: dict[int, float] = {}
    for when, version, _ in stream.answers:
        if version < newest:
            behind = max(behind, newest - version)
            age = max(age, when - reached.get(version + 1, when))
            newest = version
            reached = {each: at for each, at in reached.items() if each <= version}
        newest = max(newest, version)
        reached.setdefault(version, when)
    return behind, age


@click.command()
@click.option("--kills", default=10, help="replicas killed, one after another")
@click.option("--streams", "count", default=50, help="streams that send")
@click.option("--senders", default=8, help="connections that they share")
@click.option("--replicas", "wanted", default=2, help="replicas")
@click.option("--pause", default=8.0, help="seconds between kills, at most")
@click.option("--scale", is_flag=True, help="from one replica to three and back, by the load")
@click.option("--seed", default=0)
def main(
    kills: int, count: int, senders: int, wanted: int, pause: float, scale: bool, seed: int
) -> None:
    """Kill replicas under load, and say what it cost."""
    launching.START_SECONDS = PATIENCE
    data = open_data("bundled", Geometry(32)).open("fog", 5, limit=200)
    images = [to_png(pixels) for pixels in data.read(data.positions)]
    chance, failures = random.Random(seed), list[str]()
    by_load = ("--ray-replicas", "1:3", "--ray-queue", "2", "--ray-patience", "0.5")
    with tempfile.TemporaryDirectory() as folder:
        options = (
            *("--device", "cpu", "--threads", "1", "--ray", "--state-dir", folder),
            *("--save-interval", str(SAVE_INTERVAL), "--method", "ttc"),
            *("--set", "ttc.samples_per_step=1"),
            *(by_load if scale else ("--ray-replicas", str(wanted))),
        )
        began = time.monotonic()
        with launch(*options) as server:
            click.echo(f"started in {time.monotonic() - began:.1f} s")
            streams = {f"s{number}": Stream() for number in range(count)}
            cameras = Cameras(server.url, images, streams)
            names = list(streams)
            with ThreadPoolExecutor(senders + 1) as pool:
                watching = pool.submit(cameras.watch, Path(folder))
                sending = [
                    pool.submit(cameras.send, names[number::senders]) for number in range(senders)
                ]
                try:
                    if scale:
                        click.echo(f"three replicas after {wait_for(server.url, 3):.1f} s of load")
                        time.sleep(pause)
                    else:
                        kill_all(server.url, kills, wanted, pause, chance, streams)
                finally:
                    cameras.ended.set()
                for each in sending:
                    if (error := each.exception()) is not None:
                        failures.append(f"a request was not answered: {error}")
                watching.result()
            if scale:
                click.echo(f"one replica after {wait_for(server.url, 1):.1f} s without load")
            told = httpx.get(f"{server.url}/status", timeout=30).json()
            click.echo(f"{len(told['streams'])} streams in memory, {told['saved_streams']} saved")
        report(streams, failures)
    for each in failures:
        click.echo(f"FAILED: {each}")
    sys.exit(bool(failures))


def kill_all(
    url: str,
    kills: int,
    wanted: int,
    pause: float,
    chance: random.Random,
    streams: dict[str, Stream],
) -> None:
    """Kill so many replicas, each when all are there; tell how long their streams waited."""
    for number in range(1, kills + 1):
        wait_for(url, wanted)
        time.sleep(chance.uniform(0.3, 1) * pause)
        moment = kill_one(url, chance)
        back = wait_for(url, wanted)
        waited = pauses(streams, moment)
        told = f"median {statistics.median(waited):.2f}, most {max(waited):.2f} s" if waited else ""
        click.echo(
            f"kill {number}: {len(waited)} streams waited {told}; a new replica after {back:.1f} s"
        )
    time.sleep(pause)


def report(streams: dict[str, Stream], failures: list[str]) -> None:
    """Tell what was answered and lost, and note what may not be."""
    answers = sum(len(each.answers) for each in streams.values())
    first = min(each.answers[0][0] for each in streams.values())
    last = max(each.answers[-1][0] for each in streams.values())
    click.echo(f"{answers:,} images answered, {answers / (last - first):.1f} a second")
    behind = {name: lost(each) for name, each in streams.items()}
    steps, age = (max(each[at] for each in behind.values()) for at in (0, 1))
    click.echo(f"a stream lost at most {steps} steps, the oldest {age:.2f} s old")
    # A save is due at 0.8 of the interval, looked for every tenth; then it is written, and the
    # answers behind it were on their way.
    if age > 2 * SAVE_INTERVAL:
        failures.append(f"more than an interval of {SAVE_INTERVAL:g} s was lost: {age:.2f} s")
    for name, each in streams.items():
        if each.steps != sorted(each.steps):
            failures.append(f"the file of {name} went back: {each.steps}")


if __name__ == "__main__":
    main()
