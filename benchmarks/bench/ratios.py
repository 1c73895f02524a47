"""What is reached of a bare loop, way by way, round after round; and the goals."""

import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks import pictures
from benchmarks.bench.work import Job, Processes, Took, run_bare, run_evaluate
from benchmarks.closed_loop import Request, closed_loop
from benchmarks.processes import processor_seconds
from benchmarks.telling import method_name, spread
from service.launch import launch
from service.replay import ReplayPlan, replay
from service.view import View
from ttc_core.methods import DEFAULT_METHOD
from ttc_core.presets import Variant
from ttc_core.rows import Rows

METHODS = ("source", "tent", "ttc", DEFAULT_METHOD)
WAYS = ("bare loop", "evaluate", "lockstep", "64 clients")
CLIENTS = 64
GOALS = {"evaluate": 0.98, "lockstep": 0.95}
CLIENTS_GOAL = {32: 0.65, 224: 0.85}
MOST_PROCESSOR = 1.05
"""At 224 pixels, of the server's processor time an image over that of `evaluate`."""

Ways = Mapping[str, Sequence[Took]]
"""A way -> what it took in each round."""


def jobs(side: int, folder: Path, *, fast: bool) -> list[Job]:
    """What is run at a size: the bundled network at 32 pixels, a ResNet-50 at 224.

    Args:
        folder: where the photographs are written.
        fast: whether there is a GPU, so that a round may have many images.
    """
    if side == 32:
        images, seconds = (2000, 3.0) if fast else (500, 1.5)
        first = Job("source", "bundled", "bundled", pictures.CORRUPTION, images, 100, seconds)
        return [replace(first, method=method) for method in METHODS]
    (folder / "0").mkdir()
    for number, file in enumerate(pictures.photographs()):
        (folder / "0" / f"{number:03}.jpg").write_bytes(file)
    # Batches of eight on a processor, where TTC takes seconds for one.
    images, size, seconds = (64, 32, 3.0) if fast else (24, 8, 3.0)
    first = Job(
        "source",
        "benchmarks.peers.model:resnet50",
        f"folder:{folder}",
        "clean",
        images,
        size,
        seconds,
    )
    return [replace(first, method=name) for name in ("source", "ttc", DEFAULT_METHOD)]


def ratios(
    job: Job, files: Sequence[bytes], rounds: int, processes: Processes, *, seconds: float
) -> dict[str, list[Took]]:
    """All ways of a method, round after round: way -> what each round took.

    Args:
        seconds: of all rounds; the first is made in any case, another where there is time for it.
    """
    found: dict[str, list[Took]] = defaultdict(list)
    # Nothing is shed: what is measured is the whole method.
    arguments = ["--method", job.method, "--model", job.spec, "--adapt", "always"]
    arguments += ["--max-batch", str(max(job.size, 8))]
    if job.method in ("tent", "ttc"):
        arguments.append("--paper")
    requests = [Request("/predict", "image/jpeg", file) for file in files]
    with launch(*arguments) as server:
        pid = server.process.pid
        plan = ReplayPlan(
            job.data,
            server.url,
            (job.corruption,),
            batch_size=job.size,
            limit=job.images,
            reset_between=True,
        )
        _round(replace(job, images=job.size), replace(plan, limit=job.size), processes, pid)
        began = last = time.monotonic()
        for number in range(rounds):
            now = time.monotonic()
            if number and now + (now - last) > began + seconds:
                break
            last = now
            took = _round(job, plan, processes, pid)
            # Where all batches are full, all repeats with each of them.
            period = job.size if job.size < CLIENTS / 2 else CLIENTS
            closed = closed_loop(
                server.url, requests, CLIENTS, job.seconds, period=period, pids=[pid]
            )
            took["64 clients"] = Took(closed.rate, 1000 * closed.processor / closed.images)
            for way in WAYS:
                found[way].append(took[way])
    return found


def _round(job: Job, plan: ReplayPlan, processes: Processes, pid: int) -> dict[str, Took]:
    """The ways in which one client waits for each batch."""
    return {
        "bare loop": processes.bare.submit(run_bare, job).result(),
        "evaluate": processes.evaluate.submit(run_evaluate, job).result(),
        "lockstep": _lockstep(plan, pid),
    }


def _lockstep(plan: ReplayPlan, pid: int) -> Took:
    before = processor_seconds([pid])
    silent = View(Console(quiet=True))
    (row,) = asyncio.run(replay(plan, Rows(None), silent, table=False))
    processor = processor_seconds([pid]) - before
    return Took(row["images_per_second"], 1000 * processor / row["images"])


def against(found: Ways, way: str) -> list[float]:
    """A way's images a second over the bare loop's, of each round."""
    pairs = zip(found[way], found["bare loop"], strict=True)
    return [one.rate / limit.rate for one, limit in pairs]


def processor_against(found: Ways) -> list[float]:
    """The server's processor time an image over that of `evaluate`, of each round."""
    pairs = zip(found["64 clients"], found["evaluate"], strict=True)
    return [one.processor / other.processor for one, other in pairs]


def goal(method: str, way: str, side: int) -> float | None:
    """What a way is to reach of the bare loop; None where nothing was set."""
    if method not in ("ttc", DEFAULT_METHOD):
        return None
    return CLIENTS_GOAL[side] if way == "64 clients" else GOALS.get(way)


def ratios_table(side: int, found: Mapping[str, Ways]) -> str:
    """Markdown: images a second of the bare loop, and the other ways as shares of it."""
    lines = [
        f"| {side} pixels | {' | '.join(WAYS)} | server's processor time / `evaluate`'s |",
        "|---" * (len(WAYS) + 2) + "|",
    ]
    for method, ways in found.items():
        rates = [one.rate for one in ways[WAYS[0]]]
        cells = [method_name(Variant(method)), f"{spread(rates)} images/s"]
        cells += [spread(against(ways, way)) for way in WAYS[1:]]
        lines.append(f"| {' | '.join([*cells, spread(processor_against(ways))])} |")
    return "\n".join(lines)


def goals_table(by_side: Mapping[int, Mapping[str, Ways]]) -> str:
    """Markdown: each goal, what was measured, and whether the median reaches it."""
    lines = ["| | goal | measured | |", "|---|---|---|---|"]
    for side, methods in by_side.items():
        for method, ways in methods.items():
            name = f"{side} pixels, {method_name(Variant(method))}"
            for way in WAYS[1:]:
                if (aim := goal(method, way, side)) is not None:
                    shares = against(ways, way)
                    reached = statistics.median(shares) >= aim
                    lines.append(_goal_line(f"{name}: {way}", f"at least {aim:g}", shares, reached))
            if side == 224:
                costs = processor_against(ways)
                reached = statistics.median(costs) <= MOST_PROCESSOR
                said = f"{name}: server's processor time / `evaluate`'s"
                lines.append(_goal_line(said, f"at most {MOST_PROCESSOR:g}", costs, reached))
    return "\n".join(lines)


def _goal_line(said: str, aim: str, measured: Sequence[float], reached: bool) -> str:
    return f"| {said} | {aim} | {spread(measured)} | {'reached' if reached else '**missed**'} |"
