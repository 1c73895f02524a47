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
from urllib.parse import quote, unquote

import numpy as np
import torch
from numpy.typing import NDArray

from service import tracing
from service.errors import PredictionFailed, Refused, TooManyStreams
from service.events import Events
from service.metrics import Metrics, versions
from ttc_core.evaluate import as_batch, warm_up
from ttc_core.methods import Adaptation, Answers, Method, Prediction
from ttc_core.state import StateError, load_state, save_state

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


@dataclass
class StreamRecord:
    """A stream: its method object, and what others may read of it from any thread."""

    method: Method
    images: int = 0
    batches: int = 0
    version: int = 0
    pending_batches: int = 0
    drift: float = 0.0

    def take_note(self) -> None:
        """Publish where the method stands."""
        # A method of a user's own may know of none of these.
        self.version = getattr(self.method, "version", 0)
        self.pending_batches = getattr(self.method, "pending_batches", 0)
        self.drift = getattr(self.method, "drift", 0.0)


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
        max_streams: streams that may exist at once.
        state_dir: where streams are saved, or None.
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
        state_dir: Path | None = None,
    ) -> None:
        self._source, self._metrics = source, metrics
        self._names = {"name": method_name, "model": model_spec}
        self._max_streams, self._state_dir = max_streams, state_dir
        self._streams: dict[str, StreamRecord] = {}
        self._answered: _Answered | None = None
        self.events = Events()
        self.last_adapt_seconds = 0.0
        self._device = ThreadPoolExecutor(
            1,
            thread_name_prefix="device",
            initializer=lambda: torch.set_num_threads(threads) if threads else None,
        )
        metrics.streams.set_function(lambda: len(self._streams))
        metrics.drift.set_function(lambda: max((s.drift for s in self._records()), default=0.0))
        metrics.pending_batches.set_function(
            lambda: sum(s.pending_batches for s in self._records())
        )

    def _records(self) -> list[StreamRecord]:
        return list(self._streams.values())

    @property
    def streams(self) -> dict[str, StreamRecord]:
        """The streams by name; a copy."""
        return dict(self._streams)

    async def _on_device(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        return await loop.run_in_executor(self._device, lambda: context.run(call, *args, **kwargs))

    async def start(self) -> None:
        """Restore saved streams and run one throw-away batch, so that the first is not slow."""
        await self._on_device(self._restore_saved)
        await self._on_device(warm_up, self._source)
        self.events.note(
            "started",
            model=self._names["model"],
            method=self._names["name"],
            device=str(self._source.model.device),
            streams=len(self._streams),
            versions=versions(),
        )

    def admit(self, stream: str) -> None:
        """Raise unless the stream exists or may be made.

        Raises:
            TooManyStreams: there are as many as may be.
        """
        if stream not in self._streams and len(self._streams) >= self._max_streams:
            raise TooManyStreams(
                f"There are {self._max_streams:,} streams already, the most that are kept; use or "
                "reset one of them.",
                retry_after=60,
            )

    # Batches

    async def predict(self, stream: str, items: Sequence[Image]) -> Sequence[Answer | Refused]:
        """Answer a batch; what fails, fails alone. Nothing is learned before `adapt`."""
        return await self._on_device(self._predict, stream, items)

    def _predict(self, stream: str, items: Sequence[Image]) -> Sequence[Answer | Refused]:
        started = time.perf_counter()
        self._answered = None
        record = self._streams.get(stream)
        if record is None:
            record = self._streams[stream] = StreamRecord(self._source.fork())
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
        await self._on_device(self._adapt, stream, learn)

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
        """
        return await self._on_device(self._reset, stream)

    def _reset(self, stream: str | None) -> tuple[list[str], int, int]:
        names = list(self._streams) if stream is None else [stream]
        steps = pending = 0
        for name in names:
            if self._answered is not None and self._answered.stream == name:
                self._count(self._answered)
                self._answered = None
            # At the source a stream is as good as none: its place is free for another.
            record = self._streams.pop(name, None)
            if record is not None:
                steps += record.version
                pending += record.pending_batches
            self._metrics.count_reset("request")
            self._note("reset", name, reason="request")
        return names, steps, pending

    def _note(self, kind: str, stream: str, **more: Any) -> None:
        self.events.note(kind, stream=stream, **more)

    # Saved state

    async def save(self) -> bool:
        """Write every stream into `state_dir`, if there is one; return whether all went well."""
        return await self._on_device(self._save)

    def _save(self) -> bool:
        if self._state_dir is None:
            return True
        saved = 0
        for name, record in self._streams.items():
            try:
                save_state(self._state_file(self._state_dir, name), record.method, **self._names)
                saved += 1
            except (OSError, TypeError) as error:
                self._note("not_saved", name, level=logging.ERROR, reason=str(error))
        total = len(self._streams)
        self.events.note(
            "saved",
            message=f"{saved} of {total} streams saved in {self._state_dir}",
            saved=saved,
            streams=total,
        )
        return saved == len(self._streams)

    @staticmethod
    def _state_file(directory: Path, stream: str) -> Path:
        return directory / f"{quote(stream, safe='')}.safetensors"

    def _restore_saved(self) -> None:
        if self._state_dir is None or not self._state_dir.is_dir():
            return
        for path in sorted(self._state_dir.glob("*.safetensors"))[: self._max_streams]:
            name, record = unquote(path.stem), StreamRecord(self._source.fork())
            try:
                load_state(path, record.method, **self._names)
            except StateError as error:
                kept = path.rename(path.with_suffix(".rejected"))
                self._note(
                    "rejected",
                    name,
                    message=f"stream {name} starts at the source; its saved state is now {kept}",
                    level=logging.WARNING,
                    reason=str(error),
                )
                continue
            record.take_note()
            self._streams[name] = record
            self._note("restored", name, version=record.version)

    def close(self) -> None:
        """Finish what was sent to the thread, then end it."""
        self._device.shutdown()
