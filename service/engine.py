"""The device thread: it alone touches model, optimizer and statistics. Knows nothing of HTTP.

Every stream is a method object forked from the source. Predicting, adapting, resetting, saving
are messages to the one thread; they run in the order in which they were sent.
"""

import asyncio
import contextlib
import contextvars
import inspect
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote, unquote

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service import tracing
from service.errors import PredictionFailed, Refused, TooManyStreams, told
from service.events import Events
from service.metrics import Metrics, sound_rows, versions
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
        self.version = int(_reading(self.method, "version"))
        self.pending_batches = int(_reading(self.method, "pending_batches"))
        self.drift = _reading(self.method, "drift")


def _reading(method: Method, name: str) -> float:
    """A number that a method shows; 0 for one of a user's own that knows of none."""
    try:
        value = float(getattr(method, name, 0.0))
    except Exception:
        return 0.0
    return value if math.isfinite(value) else 0.0


@dataclass(frozen=True)
class _Pass:
    """What a method said to a batch: `sound` (N,) tells which rows are numbers."""

    prediction: Prediction
    answers: Answers
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
        self._predict_takes_learn = _takes_learn(source.predict)
        self._adapt_takes_learn = _takes_learn(source.adapt)
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
        return await loop.run_in_executor(
            self._device, lambda: context.run(lambda: _contained(call, *args, **kwargs))
        )

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
        record = self._streams.get(stream) or StreamRecord(self._source.fork())
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
            if stream not in self._streams:
                raise
        if said is None:
            with contextlib.suppress(Exception):  # a want of memory, say, may be over
                said = _contained(self._run, record.method, images, learn)
        if said is not None and (said.sound.any() or stream not in self._streams):
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
        return _Pass(prediction, answers, sound_rows(answers))

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
        if answered.said.sound.all():
            record = self._streams.setdefault(stream, answered.record)
            record.images += len(answered.labels)
            record.batches += 1
            outcome = self._learn(stream, record, answered.said.prediction, learn)
            record.take_note()
        else:
            outcome = Adaptation(skipped="non_finite")  # it answers nobody, and moves nothing
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
            # What is lost with the stream's place is made anew when its next image comes.
            del self._streams[stream]
            self._put_back(stream, record, self._source.fork())
            self._streams[stream] = record
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
                self._metrics.count_reset("request", name)
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
