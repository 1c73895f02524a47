"""The rows of an evaluation spread over a Ray cluster; `service.ray_cluster` reaches it.

A worker is sent the words of the command and builds the same evaluation of them, on as many
threads, so that a row is the one that a single process makes. How far it is and what it made come
back as it works, and are entered here: one process writes the rows.
"""

import contextlib
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import click
import torch

from service import ray_cluster
from service.spread_view import Flight, SpreadView
from ttc_core.errors import UserError
from ttc_core.evaluate import EvaluationError
from ttc_core.evaluation import Book, Evaluation, Made, Step
from ttc_core.rows import Row, Rows, differing, plain, setting
from ttc_core.tally import Tally

TRIES = 3
"""A row is given up once so many processes that made it have died."""
SECONDS_BETWEEN_TALLIES, SECONDS_BETWEEN_COUNTS = 0.5, 2.0
OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)

Words = TypeVar("Words", bound=Hashable)
Build = Callable[[Words], Evaluation]


class Begun(NamedTuple):
    """A worker has built the evaluation; where, and for which processor torch computes there."""

    host: str
    capability: str


class Failed(NamedTuple):
    """What a person has to mend, as on a worker's machine; a sentence."""

    sentence: str


def spread(
    evaluation: Evaluation,
    build: Build[Words],
    words: Words,
    rows: Rows,
    view: SpreadView,
    *,
    anew: bool = False,
) -> list[Row]:
    """Fill in the rows that are missing; return all of them, both as `Evaluation.run` does.

    Args:
        build: makes the evaluation anew on a worker, from `words`; found by name there.
        words: which hold the evaluation's device and number of threads, too.

    Raises:
        UserError: a worker cannot do as we do, or rows are missing as their processes died again
            and again; finished rows are kept.
    """
    return _Spreading(evaluation, build, words, rows, view).run(anew=anew)


class _Spreading:
    def __init__(
        self,
        evaluation: Evaluation,
        build: Build[Any],
        words: Hashable,
        rows: Rows,
        view: SpreadView,
    ) -> None:
        import ray

        self._evaluation, self._rows, self._view = evaluation, rows, view
        self._told = build, words, os.getcwd()
        self._book = Book(rows)
        self._threads = torch.get_num_threads()
        self._gpus = int(evaluation.fields["device"] != "cpu")
        self._work = ray.remote(
            max_retries=0,  # tried again here, where it can be told
            num_cpus=self._threads,
            num_gpus=self._gpus,
            num_returns="streaming",
            scheduling_strategy="SPREAD",
        )(_work)
        self._flights: dict[Any, Flight] = {}  # by what comes back of them
        self._entered: dict[tuple[int, int], Row] = {}
        self._missing: list[str] = []
        self._missing_keys: set[str] = set()
        self._differing: set[str] = set()
        self._places_at, self._places = -math.inf, 0

    def run(self, *, anew: bool) -> list[Row]:
        import ray

        steps = enumerate(self._evaluation.steps(self._rows, anew=anew))
        waiting = next(steps, None)
        try:
            while waiting is not None or self._flights:
                while waiting is not None and self._begin(*waiting):
                    waiting = next(steps, None)
                if self._flights:
                    heard, _ = ray.wait([*self._flights], timeout=1.0)
                    for coming in heard:
                        self._hear(coming)
                    self._view.tick(self._flights.values(), self._count_places())
        finally:
            for coming in self._flights:
                with contextlib.suppress(Exception):  # it has come to an end, or Ray has
                    ray.cancel(coming, force=True)
        if self._missing:
            raise EvaluationError(
                f"{len(self._missing)} rows are missing ({', '.join(self._missing)}); the others "
                "are kept, and the same command makes those that are missing."
            )
        return [self._entered[key] for key in sorted(self._entered)]

    def _begin(self, order: int, step: Step) -> bool:
        """Begin a step, or have done with it; whether that was possible by now."""
        if step.found is not None:
            self._entered[order, 0] = step.found
            self._view.found(order, step.run, step.found)
            return True
        flight = Flight(order, step)
        if not step.run.is_reference:
            if flight.keys & self._missing_keys:
                self._miss(flight, "was not begun: SOURCE's row, which it is held against, is")
                return True
            sources = [one for one in self._flights.values() if one.step.run.is_reference]
            if any(flight.keys & one.keys for one in sources):
                return False
        places = self._count_places()
        if places == 0:
            gpu = " and a GPU" if self._gpus else ""
            raise UserError(
                f"No machine of the cluster has {self._threads} processor cores{gpu} for a row; "
                "name fewer with --threads."
            )
        if len(self._flights) >= places:
            return False
        self._view.started(flight)
        self._send(flight)
        return True

    def _send(self, flight: Flight) -> None:
        numbers = [one.number for one in flight.step.asked]
        flight.made, flight.tally, flight.host = 0, None, None
        self._flights[self._work.remote(*self._told, flight.step.place, numbers)] = flight

    def _hear(self, coming: Any) -> None:
        """Take the next that comes from a worker."""
        import ray

        flight = self._flights[coming]
        try:
            told = ray.get(next(coming))
        except StopIteration:
            del self._flights[coming]
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, OUT_OF_MEMORY):
                raise
            self._again(coming, "was too large for the memory")
        except ray.exceptions.OutOfMemoryError:
            self._again(coming, "was ended as the memory ran out")
        except ray.exceptions.RayError:
            self._again(coming, "was cut short: its process or machine died")
        else:
            if isinstance(told, Begun):
                flight.host = told.host
                self._compare(told)
            elif isinstance(told, Failed):
                raise EvaluationError(told.sentence)
            elif isinstance(told, Tally):
                flight.tally = told
                self._view.progressed(flight)
            else:
                self._take(flight, told)

    def _compare(self, begun: Begun) -> None:
        """Say it where another processor computes: torch adds up in another order there."""
        ours = _capability()
        if begun.capability != ours and begun.host not in self._differing:
            self._differing.add(begun.host)
            self._view.say(
                f"{begun.host} computes with {begun.capability}, this machine with {ours}: rows "
                "that are made there may differ from ours in the last digits."
            )

    def _take(self, flight: Flight, made: Made) -> None:
        asked = flight.step.asked[flight.made]
        ours, theirs = setting(plain(asked.row)), setting(plain(made.row))
        if ours != theirs:
            names = ", ".join(differing([ours, theirs])).replace("_", " ")
            raise EvaluationError(
                f"{flight.title} is another on {flight.host} than here ({names}); all machines "
                "have to have the same model, data and code."
            )
        row = self._book.enter(flight.step.run, made)
        self._entered[flight.order, flight.made] = row
        self._view.finished(flight, row, made.columns)
        flight.made, flight.tally = flight.made + 1, None

    def _again(self, coming: Any, what: str) -> None:
        """A worker came to its end before its time: another takes its step, if not too often."""
        flight = self._flights.pop(coming)
        where = "" if flight.host is None else f" on {flight.host}"
        if flight.tries == TRIES:
            self._miss(flight, f"{what}{where} {TRIES} times; its row is")
        else:
            self._view.say(f"{flight.title} {what}{where}; it is tried again.")
            flight.tries += 1
            self._send(flight)

    def _miss(self, flight: Flight, what: str) -> None:
        self._view.missed(flight, f"{flight.title} {what} missing.")
        run, asked = flight.step.run, flight.step.asked[flight.made :]
        self._missing += [f"{run.name} {one.stream.corruption}" for one in asked]
        if run.is_reference:
            self._missing_keys |= flight.keys

    def _count_places(self) -> int:
        """How many rows the cluster has place for at a time; machines come and go."""
        if time.monotonic() > self._places_at + SECONDS_BETWEEN_COUNTS:
            self._places_at = time.monotonic()
            self._places = ray_cluster.places(self._threads, self._gpus)
        return self._places


def _work(
    build: Build[Any], words: Hashable, folder: str, place: int, numbers: Sequence[int]
) -> Iterator[Begun | Failed | Tally | Made]:
    """What a worker does: make passes of one run, and tell."""
    host, where = socket.gethostname(), ""
    try:
        os.chdir(folder)
    except OSError:  # it does for what is named by its whole path
        where = f" ({host} has no folder {folder}, in which the command was given)"
    sys.path += [] if folder in sys.path else [folder]
    try:
        evaluation = _built(build, words)
        run = evaluation.runs[place]
        asked = [*evaluation.asked(run, frozenset(numbers))]
        yield Begun(host, _capability())
        told_at = time.monotonic()
        for told in evaluation.answered(run, asked):
            if isinstance(told, Made):
                yield told
            elif isinstance(told, Tally) and time.monotonic() > told_at + SECONDS_BETWEEN_TALLIES:
                yield replace(told, columns={})
                told_at = time.monotonic()
    except (UserError, click.ClickException) as error:
        yield Failed(f"On {host}: {str(error).rstrip('.')}{where}.")


def _capability() -> str:
    """The instructions that torch uses of this machine's processor."""
    return str(torch.backends.cpu.get_cpu_capability())


@lru_cache(maxsize=1)
def _built(build: Build[Any], words: Hashable) -> Evaluation:
    """Kept by the process: others of its rows have the same model and data."""
    return build(words)
