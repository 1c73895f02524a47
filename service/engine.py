"""The device thread: it alone touches model, optimizer and statistics. Knows nothing of HTTP.

Every stream is a method object forked from the source. Predicting, adapting, resetting, saving
are messages to the one thread; they run in the order in which they were sent.
"""

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from service import tracing
from service.errors import PredictionFailed, Refused, StateNotRemoved
from service.events import Events
from service.metrics import Metrics, versions
from service.state_folder import StateFolder
from service.streams import StreamRecord, Streams
from ttc_core.evaluate import as_batch, warm_up
from ttc_core.methods import Adaptation, Answers, Method, Prediction

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Image:
    """A decoded image (H, W, 3) uint8, with its true class if the client knew it."""

    pixels: NDArray[np.uint8]
    label: int | None = None


@dataclass(frozen=True)
class Answer:
    """One image's row in the answers of its batch."""

    answers: Answers
    row: int
    forward_seconds: float


@dataclass(frozen=True)
class _Answered:
    """A batch that was answered and waits to be learned from."""

    stream: str
    prediction: Prediction
    answers: Answers
    labels: list[int | None]


class Engine:
    """Runs the batches of all streams on one thread.

    Args:
        source: a method at the source; streams are forked from it.
        method_name, model_spec: as the user gave them, for saved states.
        threads: torch's CPU threads; 0 leaves torch's choice.
        max_streams, max_stream_bytes: streams in memory at once, and bytes of their states.
        stream_expiry: idle seconds after which a stream that cannot be saved makes room.
        state_dir: where streams are saved, or None. It is held until `close`.

    Raises:
        StateFolderError: the folder cannot be used, or another process holds it.
    """

    def __init__(
        self,
        source: Method,
        metrics: Metrics,
        *,
        method_name: str,
        model_spec: str,
        threads: int = 0,
        max_streams: int = 1000,
        max_stream_bytes: int = 2 << 30,
        stream_expiry: float = 3600.0,
        state_dir: Path | None = None,
    ) -> None:
        self._source, self._metrics = source, metrics
        self._names = {"name": method_name, "model": model_spec}
        self.events = Events()
        self._folder = (
            None
            if state_dir is None
            else StateFolder(state_dir, method=method_name, model=model_spec)
        )
        self._streams = Streams(
            source,
            self._folder,
            self.events,
            metrics,
            most=max_streams,
            most_bytes=max_stream_bytes,
            expiry=stream_expiry,
        )
        self._answered: _Answered | None = None
        self.last_adapt_seconds = 0.0
        self._device = ThreadPoolExecutor(
            1,
            thread_name_prefix="device",
            initializer=lambda: torch.set_num_threads(threads) if threads else None,
        )
        metrics.streams.set_function(lambda: len(self.streams))
        metrics.stream_bytes.set_function(lambda: self._streams.bytes)
        metrics.drift.set_function(
            lambda: max((s.drift for s in self.streams.values()), default=0.0)
        )
        metrics.pending_batches.set_function(
            lambda: sum(s.pending_batches for s in self.streams.values())
        )

    @property
    def streams(self) -> dict[str, StreamRecord]:
        """The streams in memory by name; a copy."""
        return self._streams.records

    async def saved_streams(self) -> int:
        """How many streams are on disk only; 0 if the folder cannot be read."""
        try:
            return await asyncio.to_thread(self._streams.saved)
        except OSError:
            return 0

    async def _on_device(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        return await loop.run_in_executor(self._device, lambda: context.run(call, *args, **kwargs))

    async def start(self) -> None:
        """Run one throw-away batch, so that the first is not slow."""
        await self._on_device(warm_up, self._source)
        self.events.note(
            "started",
            model=self._names["model"],
            method=self._names["name"],
            device=str(self._source.model.device),
            streams=await self.saved_streams(),
            versions=versions(),
        )
        if self._folder is not None and self._folder.problem is not None:
            self.events.note(
                "not_saving",
                message=f"no stream will be saved in {self._folder.path}",
                level=logging.WARNING,
                reason=self._folder.problem,
            )

    def admit(self, stream: str, wait: Callable[[], float] = lambda: 1.0) -> None:
        """Take a place for a request of a stream, until `release`.

        Args:
            wait: tells the seconds in which the requests in flight will have been answered.

        Raises:
            TooManyStreams: there is none, and none makes room.
        """
        self._streams.admit(stream, wait)

    def release(self, stream: str) -> None:
        """Give a request's place back."""
        self._streams.release(stream)

    # Batches

    async def predict(self, stream: str, items: Sequence[Image]) -> Sequence[Answer | Refused]:
        """Answer a batch; what fails, fails alone. Nothing is learned before `adapt`."""
        return await self._on_device(self._answer, stream, items)

    def _answer(self, stream: str, items: Sequence[Image]) -> Sequence[Answer | Refused]:
        try:
            answers = self._predict(stream, items)
        except BaseException:
            self._streams.settle(stream)
            raise
        if any(isinstance(answer, Answer) for answer in answers):
            self._streams.answered(stream)
        return answers

    def _predict(self, stream: str, items: Sequence[Image]) -> Sequence[Answer | Refused]:
        started = time.perf_counter()
        self._answered = None
        record = self._streams.get(stream)
        with tracing.span("forward"):
            prediction = record.method.predict(as_batch([item.pixels for item in items]))
            answers = prediction.to_host()
        seconds = time.perf_counter() - started
        self._metrics.stage_seconds.labels("forward").observe(seconds)
        self._answered = _Answered(stream, prediction, answers, [item.label for item in items])
        finite = np.isfinite(answers.logits).all(axis=1)
        if not finite.all():
            failed = {"stream": stream, "images": int((~finite).sum())}
            log.error("the model's scores are not finite numbers", extra={"fields": failed})
        return [
            Answer(answers, row, seconds)
            if finite[row]
            else PredictionFailed("the model's scores for it are not finite numbers.")
            for row in range(len(items))
        ]

    async def adapt(self, stream: str, *, learn: bool) -> None:
        """Count the batch just answered and learn from it."""
        await self._on_device(self._learn, stream, learn)

    def _learn(self, stream: str, learn: bool) -> None:
        try:
            self._adapt(stream, learn)
        finally:
            self._streams.settle(stream)

    def _adapt(self, stream: str, learn: bool) -> None:
        answered, self._answered = self._answered, None
        if answered is None or answered.stream != stream:
            return  # a reset came between: that batch is not to be learned from
        started = time.perf_counter()
        record = self._streams[stream]
        self._count(answered)
        record.images += len(answered.labels)
        record.batches += 1
        try:
            # A method of a user's own may always learn, and take no such option.
            options = {} if learn else {"learn": False}
            with tracing.span("adapt"):
                outcome = record.method.adapt(answered.prediction, **options)
        except Exception as error:
            # A failure in the middle may have left anything behind: the source is safe.
            self._note(
                "adaptation_failed", stream, level=logging.ERROR, error=error, reason=repr(error)
            )
            record.method.reset()
            outcome = Adaptation()
            self._metrics.count_reset("failure")
            self._note("reset", stream, reason="failure")
        record.take_note()
        self._metrics.count_adaptation(outcome)
        if outcome.skipped not in (None, "shed"):  # shedding is policy, not an event
            self.events.note_repeated("skipped", stream=stream, reason=outcome.skipped)
        tracing.note(selected=outcome.selected, stepped=outcome.stepped, skipped=outcome.skipped)
        self.last_adapt_seconds = time.perf_counter() - started
        self._metrics.stage_seconds.labels("adapt").observe(self.last_adapt_seconds)

    def _count(self, answered: _Answered) -> None:
        """Count a batch's answers, once the clients have them."""
        selects = getattr(self._streams[answered.stream].method, "selects", True)
        self._metrics.count_answers(answered.answers, answered.labels, selects=selects)

    # Control

    async def reset(self, stream: str | None) -> tuple[list[str], int, int]:
        """Put a stream, or with None all, back to the source.

        A stream that has sent nothing yet is there already.

        Returns:
            The streams' names, and the steps and pending batches that were thrown away.

        Raises:
            StateNotRemoved: they are at the source, but would come back after a restart.
        """
        return await self._on_device(self._reset, stream)

    def _reset(self, stream: str | None) -> tuple[list[str], int, int]:
        problem = None
        names = [stream or ""]
        if stream is None:
            try:
                names = self._streams.names()
            except OSError as error:
                names, problem = list(self.streams), f"the state folder: {error.strerror}"
        if self._answered is not None and self._answered.stream in names:
            self._count(self._answered)
            self._answered = None
        # At the source a stream is as good as none: its place is free for another.
        steps, pending, kept = self._streams.forget(names)
        for name in names:
            self._metrics.count_reset("request")
            self._note("reset", name, reason="request")
        for name, reason in kept.items():
            self._note("not_removed", name, level=logging.ERROR, reason=reason)
            problem = problem or f"stream {name}: {reason}"
        if problem is not None:
            raise StateNotRemoved(
                "Reset, but what is saved could not be removed and would come back after a "
                f"restart ({problem})."
            )
        return names, steps, pending

    def _note(self, kind: str, stream: str, **more: Any) -> None:
        self.events.note(kind, stream=stream, **more)

    # Saved state

    async def save(self) -> bool:
        """Write every stream into `state_dir`, if there is one; return whether all went well."""
        return await self._on_device(self._save)

    def _save(self) -> bool:
        if self._folder is None:
            return True
        saved, total = self._streams.save(), len(self.streams)
        self.events.note(
            "saved",
            message=f"{saved} of {total} streams saved in {self._folder.path}",
            saved=saved,
            streams=total,
        )
        return saved == total

    def close(self) -> None:
        """Finish what was sent to the thread, then end it."""
        self._device.shutdown()
        if self._folder is not None:
            self._folder.close()
