"""The device thread: it alone touches model, optimizer and statistics. Knows nothing of HTTP.

Every stream is a method object forked from the source. Predicting, adapting, resetting, saving
are messages to the one thread; they run in the order in which they were sent.
"""

import asyncio
import contextlib
import contextvars
import inspect
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service import tracing
from service.errors import PredictionFailed, Refused, StateNotRemoved
from service.events import Events
from service.metrics import Metrics, versions
from service.state_folder import StateFolder
from service.streams import StreamRecord, Streams
from ttc_core.errors import told
from ttc_core.evaluate import as_batch, warm_up
from ttc_core.methods import Adaptation, HostPrediction, Method, Prediction

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

    answers: HostPrediction
    row: int
    forward_seconds: float


@dataclass(frozen=True)
class _Pass:
    """What a method said to a batch: `sound` (N,) tells which rows are numbers."""

    prediction: Prediction
    answers: HostPrediction
    sound: NDArray[np.bool_]


@dataclass(frozen=True)
class _Answered:
    """A batch that was answered and waits to be learned from."""

    stream: str
    record: StreamRecord
    said: _Pass
    labels: list[int | None]
    seconds: float


def _contained(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what may be a user's own: whatever it raises is an ordinary error.

    SystemExit would end the event loop, a cancellation be taken for one of ours, and a
    StopIteration is lost on its way: nobody would hear of the end.
    """
    try:
        return call(*args, **kwargs)
    except BaseException as error:
        ordinary = isinstance(error, Exception)
        if ordinary and not isinstance(error, StopIteration | CancelledError):
            raise
        raise RuntimeError(told(error)) from error


def _sound_rows(answers: HostPrediction) -> NDArray[np.bool_]:
    """(N,) which rows are answers: all their numbers are finite."""
    table = (answers.logits, answers.probabilities, answers.entropy[:, None])
    return np.asarray(np.isfinite(np.concatenate(table, axis=1)).all(axis=1))


def _takes_learn(verb: Callable[..., Any]) -> bool:
    """Whether a method's verb has the option `learn`; one of a user's own may not."""
    try:
        parameters = inspect.signature(verb).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == "learn" or p.kind is p.VAR_KEYWORD for p in parameters)


def _checked(outcome: object) -> Adaptation:
    """What a method says that it did, in the types it should have.

    Raises:
        TypeError, ValueError: it says something else.
    """
    if not isinstance(outcome, Adaptation):
        raise TypeError(f"adapt must return an Adaptation; got {type(outcome).__name__}")
    terms = (outcome.loss, outcome.entropy, outcome.similarity)
    loss, entropy, similarity = (None if term is None else float(term) for term in terms)
    return Adaptation(
        loss=loss,
        entropy=entropy,
        similarity=similarity,
        selected=int(outcome.selected),
        stepped=bool(outcome.stepped),
        skipped=None if outcome.skipped is None else str(outcome.skipped),
    )


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
        self._predict_takes_learn = _takes_learn(source.predict)
        self._adapt_takes_learn = _takes_learn(source.adapt)
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
        return await loop.run_in_executor(
            self._device, lambda: context.run(lambda: _contained(call, *args, **kwargs))
        )

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

    async def predict(
        self, stream: str, items: Sequence[Image], *, learn: bool = True
    ) -> Sequence[Answer | Refused]:
        """Answer a batch; what fails, fails alone. Nothing is learned before `adapt`."""
        return await self._on_device(self._predict, stream, items, learn)

    def _predict(
        self, stream: str, items: Sequence[Image], learn: bool
    ) -> Sequence[Answer | Refused]:
        started = time.perf_counter()
        self._answered = None
        # It is kept once it is adapted: nothing that fails takes a stream's place.
        record = self._streams.get(stream)
        images = as_batch([item.pixels for item in items])
        with tracing.span("forward"):
            said = self._ask(stream, record, images, learn)
        seconds = time.perf_counter() - started
        labels = [item.label for item in items]
        self._answered = _Answered(stream, record, said, labels, seconds)
        return [
            Answer(said.answers, row, seconds)
            if said.sound[row]
            else PredictionFailed("the model's scores for it are not finite numbers.")
            for row in range(len(items))
        ]

    def _ask(self, stream: str, record: StreamRecord, images: Tensor, learn: bool) -> _Pass:
        """Have a stream's method answer.

        Where it has no answer at all and the source has, it is not the images: the stream goes
        back to the source, which answers. Else it would fail for ever.
        """
        said = None
        try:
            said = _contained(self._run, record.method, images, learn)
        except (MemoryError, torch.OutOfMemoryError):
            raise  # fewer images may fit: the queue tries that
        except Exception:
            if record.is_new:
                raise
        if said is None:
            with contextlib.suppress(Exception):  # what was the matter may be over
                said = _contained(self._run, record.method, images, learn)
        if said is not None and (said.sound.any() or record.is_new):
            return said
        try:
            source = self._source.fork()
            answer = _contained(self._run, source, images, learn)
        except Exception:
            if said is None:
                raise
            return said
        if answer.sound.any():
            self._put_back(stream, record, source)
        return answer

    def _run(self, method: Method, images: Tensor, learn: bool) -> _Pass:
        options = {"learn": False} if self._predict_takes_learn and not learn else {}
        prediction = method.predict(images, **options)
        answers = prediction.to_host()
        rows, classes = len(images), self._source.model.classes
        shapes = [np.shape(part) for part in (answers.logits, answers.probabilities)]
        shapes += [np.shape(part) for part in (answers.entropy, answers.selected)]
        if shapes != [(rows, classes)] * 2 + [(rows,)] * 2 or not isinstance(answers.version, int):
            raise TypeError(
                f"predict must answer {rows} images of {classes} classes with a version that is an "
                f"int; got logits, probabilities, entropy and selected of shapes {shapes} and a "
                f"version that is {type(answers.version).__name__}"
            )
        return _Pass(prediction, answers, _sound_rows(answers))

    def _put_back(self, stream: str, record: StreamRecord, source: Method) -> None:
        """Give a stream that cannot go on a method at the source."""
        record.method = source
        record.take_note()
        self._metrics.count_reset("failure", stream)
        self._note("reset", stream, level=logging.ERROR, reason="failure")

    async def adapt(self, stream: str, *, learn: bool) -> None:
        """Count the batch just answered and learn from it."""
        await self._on_device(self._adapt, stream, learn)

    def _adapt(self, stream: str, learn: bool) -> None:
        answered, self._answered = self._answered, None
        if answered is None or answered.stream != stream:
            return  # a reset came between: that batch is not to be learned from
        started = time.perf_counter()
        self._count(answered)
        record = answered.record
        if not answered.said.sound.all():
            outcome = Adaptation(skipped="non_finite")  # it answers nobody, and moves nothing
        else:
            record.images += len(answered.labels)
            record.batches += 1
            if self._streams.keep(stream, record):
                outcome = self._learn(stream, record, answered.said.prediction, learn)
                record.take_note()
                self._streams.measure(stream)
            else:
                outcome = Adaptation(skipped="shed")
                self.events.note_repeated("skipped", stream=stream, reason="no memory for it")
        self._metrics.count_adaptation(outcome)
        if outcome.skipped not in (None, "shed", "failed"):  # policy, or told already
            self.events.note_repeated("skipped", stream=stream, reason=outcome.skipped)
        tracing.note(selected=outcome.selected, stepped=outcome.stepped, skipped=outcome.skipped)
        self.last_adapt_seconds = time.perf_counter() - started
        self._metrics.stage_seconds.labels("adapt").observe(self.last_adapt_seconds)

    def _learn(
        self, stream: str, record: StreamRecord, prediction: Prediction, learn: bool
    ) -> Adaptation:
        """Have a stream's method learn; if it fails, the stream is as it was before."""
        if not learn and not self._adapt_takes_learn:
            return Adaptation(skipped="shed")
        method, before = record.method, None
        try:
            with tracing.span("adapt"):
                with contextlib.suppress(Exception):  # then a failure leads back to the source
                    before = _contained(method.state)
                options = {} if learn else {"learn": False}
                return _checked(_contained(method.adapt, prediction, **options))
        except Exception as error:
            self._note(
                "adaptation_failed", stream, level=logging.ERROR, error=error, reason=told(error)
            )
        try:
            if before is None:
                raise LookupError
            _contained(method.restore, before)
        except Exception:
            self._put_back(stream, record, self._source.fork())
        return Adaptation(skipped="failed")

    async def count(self, stream: str) -> None:
        """Count the batch just answered; nothing is learned from it, and nothing moves."""
        await self._on_device(self._count_only, stream)

    def _count_only(self, stream: str) -> None:
        answered, self._answered = self._answered, None
        if answered is not None and answered.stream == stream:
            self._count(answered, learn=False)

    def _count(self, answered: _Answered, *, learn: bool = True) -> None:
        """Count a batch's answers, once the clients have them."""
        said = answered.said
        if not said.sound.all():  # then nobody has an answer
            failed = {"stream": answered.stream, "images": int((~said.sound).sum())}
            log.error("the model's scores are not finite numbers", extra={"fields": failed})
            return
        self._metrics.stage_seconds.labels("forward").observe(answered.seconds)
        selects = learn and getattr(answered.record.method, "selects", True)
        self._metrics.count_answers(
            said.answers, answered.labels, selects=selects, stream=answered.stream
        )

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
        # One that is answered and not yet adapted may stand in no table.
        if self._answered is not None and stream in (None, self._answered.stream):
            self._count(self._answered)
            self._answered = None
        known = [name for name in names if name in self._streams]
        # At the source a stream is as good as none: its place is free for another.
        steps, pending, kept = self._streams.forget(names)
        for name in known:
            self._metrics.count_reset("request", name)
        for name in names:
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
