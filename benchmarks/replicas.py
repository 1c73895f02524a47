"""Replicas on Ray under fire: killed, added and taken away while cameras send; times and losses.

Starts one process, then `ttc serve --ray` on this machine, has cameras send images one after
another through the project's client to each, and kills a replica's process (SIGKILL) again and
again. Checks that every request was answered, that each stream went on from its last save with at
most one save interval lost, and that no file ever went back, as it would if two wrote it. Ends with
1 where one of these fails. What was measured is printed as benchmarks/fleet.toml takes it.

    python -m benchmarks.replicas [--kills 10] [--streams 50] [--scale]

Ten kills take six minutes or so on two cores.
"""

import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import httpx

from service import launch as launching
from service.client import Client
from service.launch import launch
from service.replay import to_png
from ttc_core.datasets import Geometry, open_data
from ttc_core.state_description import describe
from ttc_core.state_file import StateError

# Of a start on a machine that has other work.
PATIENCE = 600.0
SAVE_INTERVAL = 2.0
# A save is due at 0.8 of the interval and looked for every tenth of it: within the interval its
# writing begins. Beyond it: for fifty files to be written, with all processors at work, and for an
# answer that was under way when its replica was killed.
SLACK_SECONDS = 1.0
CLIENT_SECONDS = 60.0
# For which images are counted, and after which a replica that has come has taken its streams.
COUNTED_SECONDS, MOVED_SECONDS = 10.0, 5.0
# An answer that took longer has waited for its stream.
WAITED_SECONDS = 0.5
LEARNING = ("--method", "ttc", "--set", "ttc.samples_per_step=1", "--device", "cpu")


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


def ready(url: str) -> int:
    """How many are ready."""
    return sum(bool(each["ready"]) for each in replicas(url))


def wait_for(url: str, count: int, pause: float = 0.1) -> float:
    """Wait until so many replicas are ready, looking every so often; return how long that took.

    Each look is a request to each replica, too: it counts as load.
    """
    began = time.monotonic()
    while ready(url) != count:
        if time.monotonic() - began > PATIENCE:
            raise click.ClickException(f"There are not {count} replicas after {PATIENCE:g} s.")
        time.sleep(pause)
    return time.monotonic() - began


def kill_one(url: str, chance: random.Random) -> float:
    """Kill a replica's process; return when."""
    while not (alive := replicas(url)):
        time.sleep(0.1)
    moment = time.monotonic()
    os.kill(int(str(chance.choice(alive)["process"])), signal.SIGKILL)
    return moment


def pauses(streams: dict[str, Stream], moment: float, until: float) -> list[float]:
    """For each stream, how long after a moment its first answer came, of those that waited."""
    found = []
    for stream in streams.values():
        later = [(when, took) for when, _, took in stream.answers if moment < when <= until]
        if later and later[0][1] > WAITED_SECONDS:
            found.append(later[0][0] - moment)
    return found


def lost(stream: Stream, kills: Sequence[float] = ()) -> tuple[int, float]:
    """The most steps that an answer was behind the newest before it, and how old, in seconds, the
    oldest of them was when it was lost.

    A step is taken behind the answer to its image, so at the latest answer that does not have it
    yet; lost it is at the latest kill before the answer that is behind, where there was one.
    """
    behind, age = 0, 0.0
    newest: list[tuple[float, int]] = []  # answers, each with more steps than those before it
    for when, version, _ in stream.answers:
        if newest and version < newest[-1][1]:
            behind = max(behind, newest[-1][1] - version)
            moment = max((each for each in kills if each <= when), default=when)
            while newest and newest[-1][1] > version:
                newest.pop()
            # Of a stream whose first answers had more: they were its first.
            learned = newest[-1][0] if newest else stream.answers[0][0]
            age = max(age, moment - learned)
        if not newest or version > newest[-1][1]:
            newest.append((when, version))
        elif version == newest[-1][1]:
            newest[-1] = (when, version)
    return behind, age


def images_a_second(streams: dict[str, Stream], seconds: float) -> float:
    """Wait for so long, and count the answers."""
    began = time.monotonic()
    time.sleep(seconds)
    ended = time.monotonic()
    count = sum(began < when <= ended for each in streams.values() for when, _, _ in each.answers)
    return count / (ended - began)


def memory_of(process: int) -> int:
    """Bytes of a process's memory; of what it shares with others its part."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def descendants(process: int) -> list[int]:
    """A process, and all that it has started, or that those have."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found = [process]
    for each in found:
        found += children.get(each, [])
    return found


@contextmanager
def sending(
    url: str, images: list[bytes], count: int, senders: int, folder: Path, failures: list[str]
) -> Iterator[dict[str, Stream]]:
    """Have cameras send in the block; what was not answered is noted as a failure."""
    streams = {f"s{number}": Stream() for number in range(count)}
    cameras, names = Cameras(url, images, streams), list(streams)
    with ThreadPoolExecutor(senders + 1) as pool:
        watching = pool.submit(cameras.watch, folder)
        at_work = [pool.submit(cameras.send, names[place::senders]) for place in range(senders)]
        try:
            yield streams
        finally:
            cameras.ended.set()
        for each in at_work:
            if (error := each.exception()) is not None:
                failures.append(f"a request was not answered: {error}")
        watching.result()


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
    chance, failures, found = random.Random(seed), list[str](), dict[str, float]()
    by_load = ("--ray-replicas", "1:3", "--ray-queue", "2", "--ray-patience", "0.5")
    shown = (count, senders)
    alone = 0.0 if scale else images_of_one_process(images, *shown, wanted, failures)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = (
            *("--threads", "1", "--ray", "--state-dir", name, *LEARNING),
            *("--save-interval", str(SAVE_INTERVAL)),
            *(by_load if scale else ("--ray-replicas", str(wanted))),
        )
        began, moments = time.monotonic(), list[float]()
        with launch(*options) as server:
            click.echo(f"started in {time.monotonic() - began:.1f} s")
            with sending(server.url, images, *shown, folder, failures) as streams:
                if scale:
                    click.echo(f"three replicas after {wait_for(server.url, 3):.1f} s of load")
                    time.sleep(pause)
                else:
                    reached = images_a_second(streams, COUNTED_SECONDS)
                    found["door_images_per_second"] = reached
                    found["replica_share"] = reached / alone
                    found["machine_bytes"] = bytes_of_one(server.process.pid, server.url)
                    moments = kill_all(server.url, kills, wanted, pause, chance, streams, found)
            if scale:
                gone = wait_for(server.url, 1, pause=3.0)
                click.echo(f"one replica after {gone:.0f} s without load")
            told = httpx.get(f"{server.url}/status", timeout=30).json()
            click.echo(f"{len(told['streams'])} streams in memory, {told['saved_streams']} saved")
        report(streams, moments, failures)
    for each, value in found.items():
        click.echo(
            f"\n[{each}]\nvalue = {value:_.0f}"
            if value > 1000
            else f"\n[{each}]\nvalue = {value:.2f}"
        )
    for failure in failures:
        click.echo(f"FAILED: {failure}")
    sys.exit(bool(failures))


def images_of_one_process(
    images: list[bytes], count: int, senders: int, threads: int, failures: list[str]
) -> float:
    """Images a second of a single process with as many threads as all replicas have together."""
    with tempfile.TemporaryDirectory() as folder:
        options = ("--threads", str(threads), "--state-dir", folder, *LEARNING)
        with (
            launch(*options, "--save-interval", str(SAVE_INTERVAL)) as server,
            sending(server.url, images, count, senders, Path(folder), failures) as streams,
        ):
            time.sleep(2)
            reached = images_a_second(streams, COUNTED_SECONDS)
    click.echo(f"one process, {threads} threads: {reached:.1f} images a second")
    return reached


def bytes_of_one(process: int, url: str) -> float:
    """Memory of all processes of a machine with one replica: door, Ray's, and that one's."""
    of_replicas = [memory_of(int(str(each["process"]))) for each in replicas(url)]
    total = sum(map(memory_of, descendants(process)))
    return total - sum(of_replicas) + statistics.fmean(of_replicas)


def kill_all(
    url: str,
    kills: int,
    wanted: int,
    pause: float,
    chance: random.Random,
    streams: dict[str, Stream],
    found: dict[str, float],
) -> list[float]:
    """Kill so many replicas, each when all are there; return when.

    Args:
        found: is told the longest of the three recovery times: until others answer the streams,
            until another replica is there, and for which a stream waits that it takes.
    """
    moments, taken_over, started, moved = list[float](), [0.0], [0.0], [0.0]
    for number in range(1, kills + 1):
        wait_for(url, wanted)
        time.sleep(chance.uniform(0.3, 1) * pause)
        moments.append(moment := kill_one(url, chance))
        while ready(url) == wanted:
            time.sleep(0.05)  # it dies
        wait_for(url, wanted)
        there = time.monotonic()
        time.sleep(MOVED_SECONDS)
        waited, moves = (
            pauses(streams, moment, there),
            pauses(streams, there, there + MOVED_SECONDS),
        )
        taken_over += waited
        started.append(there - moment)
        moved += moves
        told = f"median {statistics.median(waited):.2f}, most {max(waited):.2f} s" if waited else ""
        click.echo(
            f"kill {number}: {len(waited)} streams waited {told}; a new replica after "
            f"{there - moment:.1f} s, for which {len(moves)} streams waited"
            f"{f' at most {max(moves):.2f} s' if moves else ''}"
        )
    found["takeover_seconds"] = max(taken_over)
    found["start_seconds"] = max(started)
    found["move_seconds"] = max(moved)
    return moments


def report(streams: dict[str, Stream], kills: Sequence[float], failures: list[str]) -> None:
    """Tell what was answered and lost, and note what may not be."""
    answers = sum(len(each.answers) for each in streams.values())
    first = min(each.answers[0][0] for each in streams.values())
    last = max(each.answers[-1][0] for each in streams.values())
    click.echo(f"{answers:,} images answered, {answers / (last - first):.1f} a second")
    behind = [lost(each, kills) for each in streams.values()]
    steps, age = (max(each[at] for each in behind) for at in (0, 1))
    click.echo(f"a stream lost at most {steps} steps, the oldest {age:.2f} s old")
    if not kills and steps:
        failures.append(f"{steps} steps were lost, and no replica was killed")
    if age > SAVE_INTERVAL + SLACK_SECONDS:
        failures.append(f"more than an interval of {SAVE_INTERVAL:g} s was lost: {age:.2f} s")
    for name, each in streams.items():
        if each.steps != sorted(each.steps):
            failures.append(f"the file of {name} went back: {each.steps}")


if __name__ == "__main__":
    main()
