"""Offline evaluation: method × stream × batch size -> rows. The walk of the service, no HTTP."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ttc_core.datasets import DataSet, Stream, changing, day_night, mixed_in
from ttc_core.envelope.clauses import BUILT_IN, UNBOUNDED
from ttc_core.errors import UserError
from ttc_core.features import FeatureRecorder
from ttc_core.frames import KINDS
from ttc_core.guard import calibrated, estimated, mode_of
from ttc_core.methods import Method, Prediction
from ttc_core.methods.contract import HELD, MODES
from ttc_core.order import is_count
from ttc_core.poison import poisoned
from ttc_core.rows import Rows, same_images
from ttc_core.supervised import Supervised
from ttc_core.tally import Tally

PROTOCOLS = "episodic, continual, changing:L, recurring:V (L and V from 1 on) or day-night"


class EvaluationError(UserError):
    """A method or network of a user's own failed; the text says at what."""


def as_batch(images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> Tensor:
    """Stack images (H, W, 3) uint8 into a batch (N, 3, H, W), without copying twice."""
    return torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2)


def parse_protocol(text: str) -> tuple[str, int]:
    """The kind of a protocol, and the number behind its colon, 0 where it has none.

    Raises:
        ValueError: it is none of PROTOCOLS.
    """
    kind, _, number = text.partition(":")
    if text in ("episodic", "continual", "day-night"):
        return text, 0
    if kind not in ("changing", "recurring") or not is_count(number):
        raise ValueError(f"The protocol must be {PROTOCOLS}; got {text!r}.")
    return kind, int(number)


def warm_up(method: Method, side: int | None = None, *, images: int = 1) -> None:
    """Run a throw-away batch on a fork, so that one-time costs fall on no image that counts.

    The images differ, and none looks like a faulty camera's: what is made of those is another way.

    Args:
        side: of the images, in pixels; None: one that the network is known to run on.
    """
    side = side or method.model.trial_side
    trial = method.fork()
    ramp = torch.linspace(0, 127, side)
    shade = (ramp + ramp[:, None]).to(torch.uint8).expand(3, -1, -1)
    both = 255 - shade, shade
    batch = torch.stack([both[number % 2].roll(number // 2, dims=2) for number in range(images)])
    trial.adapt(trial.predict(batch))


class Run(NamedTuple):
    """A method, at the source, that answers in batches of one size: a line of a table.

    `code` is the digest of a method's of one's own.
    """

    name: str
    method: Method
    batch_size: int
    code: str | None = None

    @property
    def guard(self) -> str:
        """How it is watched: on, off or observe."""
        return mode_of(self.method)

    @property
    def envelope(self) -> str | None:
        """The digest of what it may change; None: the built-in envelope, or none, or nothing."""
        found = self.method.envelope
        usual = found in (BUILT_IN, UNBOUNDED) or not self.method.adapts
        return None if usual else found.digest

    @property
    def is_reference(self) -> bool:
        """Whether it is what the others are held against."""
        return is_reference(self.name, self.method.settings)


def is_reference(method: str, settings: Mapping[str, Any]) -> bool:
    """Whether that is SOURCE, the frozen network with one view."""
    return method == "source" and not settings.get("flip")


class Watcher(Protocol):
    """What wants to see an evaluation while it runs."""

    def found(self, run: Run, row: dict[str, Any]) -> None:
        """A row is there already; its pass is not run again."""

    def started(self, run: Run, stream: Stream) -> None:
        """A pass over a corruption begins."""

    def progressed(self, tally: Tally, batch_seconds: float) -> None:
        """A batch was answered and adapted to."""

    def finished(self, run: Run, row: dict[str, Any], columns: dict[str, NDArray[Any]]) -> None:
        """A pass is over; columns as in `run_stream`."""


def run_stream(
    method: Method,
    stream: Stream,
    batch_size: int,
    watcher: Watcher | None = None,
    *,
    logits: bool = False,
    recorder: FeatureRecorder | None = None,
) -> Tally:
    """Answer a stream batch by batch, adapting after each, and count what came of it.

    Loading and corrupting the images is not part of the seconds.

    Args:
        logits: keep them, too: K numbers an image.
        recorder: keeps some channels of each image's features.

    Returns:
        The tally; its columns are predicted, labels, entropy, confidence and true_probability
        (nan where there is no label), selected and version, the stream's own, and what else was
        asked for; suspect, 0 or the place of its kind in KINDS from 1 on, where frames are watched,
        and mode, its place in MODES, where adaptation is.
    """
    tally = Tally(len(stream))
    for images, labels in stream.batches(batch_size):
        asked: dict[str, Any] = {}
        if mode_of(method) != "off":
            asked["grains"] = stream.grains(slice(tally.images, tally.images + len(labels)))
        started = time.perf_counter()
        prediction: Prediction = method.predict(as_batch(images), **asked)
        answers = prediction.to_host()
        if not answers.sound.all():
            first = tally.images + int(answers.sound.argmin()) + 1
            raise EvaluationError(
                f"the scores for image {first} are not finite numbers, so that it has no answer"
            )
        outcome = method.adapt(prediction)
        del prediction  # and its graph, which lasts where nothing was learned
        seconds = time.perf_counter() - started
        columns = {
            "predicted": answers.predicted,
            "labels": labels,
            "entropy": answers.entropy,
            "confidence": answers.probabilities.max(axis=1).astype(np.float32),
            "true_probability": _given_to(labels, answers.probabilities),
            "selected": answers.selected,
            "version": np.full(len(labels), answers.version),
            **{
                name: values[tally.images : tally.images + len(labels)]
                for name, values in stream.columns.items()
            },
        }
        if answers.suspects:
            columns["suspect"] = np.array([_code(kind) for kind in answers.suspects], np.int8)
        if answers.modes:
            columns["mode"] = np.array([MODES.index(mode) for mode in answers.modes], np.int8)
        if logits:
            columns["logits"] = answers.logits
        if recorder is not None:
            columns["features"] = recorder.take(len(labels))
        tally.add(columns)
        tally.seconds += seconds
        tally.steps += outcome.stepped
        if outcome.skipped is None and method.adapts - {"moments"}:
            tally.learned += len(labels)
        tally.held += answers.modes.count(HELD)
        tally.acts += [
            {"images": tally.images, "action": act.action, "reason": act.reason}
            for act in outcome.acts
        ]
        if watcher is not None:
            watcher.progressed(tally, seconds)
    started = time.perf_counter()
    tally.steps += method.end()
    tally.seconds += time.perf_counter() - started
    return tally


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate: runs × corruptions of one data set.

    Attributes:
        protocol: episodic resets before each corruption, continual never; `recurring:V` is
            continual over the corruptions, V times; `changing:L` and `day-night` are of a stream
            whose conditions change within (`ttc_core.datasets.conditions`), reset before it.
        fields: what is the same in every row (data, model, versions).
        logits: keep them among each pass's columns.
        channels: of the features, kept beside each row; a figure needs them.
        mix: which share of the images is replaced, by kind.
        unknown: where the unknown ones among them are from; None: drawn shapes.
    """

    runs: Sequence[Run]
    data: DataSet
    corruptions: Sequence[str]
    severity: int
    limit: int | None
    order: str
    protocol: str
    seed: int
    fields: dict[str, Any]
    logits: bool = False
    channels: Sequence[int] = ()
    mix: Mapping[str, float] = field(default_factory=dict)
    unknown: DataSet | None = None

    @cached_property
    def passes(self) -> list[tuple[str, int | None]]:
        """What each run passes over: a corruption, and which visit it is where they recur."""
        kind, number = parse_protocol(self.protocol)
        if kind == "recurring":
            return [(name, visit + 1) for visit in range(number) for name in self.corruptions]
        names = ["+".join(self.corruptions)] if kind == "changing" else self.corruptions
        return [(name, None) for name in names]

    @property
    def goes_on(self) -> bool:
        """Whether a method is never reset between the passes."""
        return parse_protocol(self.protocol)[0] in ("continual", "recurring")

    def run(
        self, rows: Rows, watcher: Watcher | None = None, *, anew: bool = False
    ) -> list[dict[str, Any]]:
        """Fill in the rows that are missing; return all of them, SOURCE's first.

        Args:
            anew: run every pass, also those whose row is there.

        Raises:
            EvaluationError: code of a user's own failed; finished rows are kept.
        """
        all_rows = []
        # Opened and hashed once for all methods: with files it takes a while.
        streams: dict[str, Stream] = {}
        references: dict[str, NDArray[np.float64]] = {}
        for run in sorted(self.runs, key=lambda one: not one.is_reference):
            warmed_up, needed = False, 0
            with self._sentences(run, "at the start"):
                run.method.reset()
            asked: Iterable[tuple[str, Stream, dict[str, Any]]] = self._asked(run, streams)
            if self.goes_on:
                # A row depends on those before it: all up to the last that is missing are run.
                asked = list(asked)
                missing = [n for n, (*_, row) in enumerate(asked, 1) if rows.find(row) is None]
                needed = max(missing, default=0)
            for number, (corruption, stream, row) in enumerate(asked):
                existing = rows.find(row)
                if existing is not None and number >= needed and not anew:
                    all_rows.append(existing)
                    if watcher is not None:
                        watcher.found(run, existing)
                    continue
                with self._sentences(run, f"on {corruption}"):
                    if not warmed_up:
                        side = stream.read(stream.positions[:1]).shape[1]
                        warm_up(run.method, side, images=min(run.batch_size, len(stream)))
                        warmed_up = True
                    if not self.goes_on:
                        run.method.reset()
                    if watcher is not None:
                        watcher.started(run, stream)
                    tally = self._pass(run, stream, watcher)
                columns = tally.columns
                key, right = same_images(row), _right(columns)
                if run.is_reference:
                    references[key] = right
                elif key not in references:
                    references |= _earlier_reference(rows, key)
                row |= tally.results(selects=run.method.selects) | tally.windows()
                row |= tally.calibration()
                if run.method.adapts - {"moments"}:
                    row["learned_images"] = tally.learned
                if not self.goes_on:  # else it would be of the passes before as well
                    row |= _estimated(run.method)
                if run.guard != "off":
                    row |= {"held": tally.held, "guard_acts": tally.acts}
                if verdicts := run.method.verdicts.by_clause:
                    row["envelope_verdicts"] = verdicts
                row |= tally.suspects(KINDS)
                row |= _differences(right, None if run.is_reference else references.get(key))
                if existing is None:
                    row = rows.append(row, {k: v for k, v in columns.items() if k != "logits"})
                if watcher is not None:
                    watcher.finished(run, row, columns)
                all_rows.append(row)
        return all_rows

    def _asked(
        self, run: Run, streams: dict[str, Stream]
    ) -> Iterator[tuple[str, Stream, dict[str, Any]]]:
        """Each pass of a run: what it is over, as named, its stream, and its row so far."""
        for number, (corruption, visit) in enumerate(self.passes):
            if corruption not in streams:
                streams[corruption] = self._open(corruption)
            stream = streams[corruption]
            row = self._row(run, stream) | {"data_digest": stream.digest}
            if self.goes_on:
                # "clean" itself has no severity, but comes after corruptions of one.
                earlier = [name for name, _ in self.passes[:number]]
                row |= {"after": earlier, "after_severity": self.severity}
            if visit is not None:
                row["visit"] = visit
            yield corruption, stream, row

    @contextlib.contextmanager
    def _sentences(self, run: Run, where: str) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            raise EvaluationError(
                f"{run.name} with {self.fields.get('model')} failed {where}: {error}"
            ) from error

    def _pass(self, run: Run, stream: Stream, watcher: Watcher | None) -> Tally:
        if isinstance(run.method, Supervised):
            run.method.fit(stream, run.batch_size)
        if not self.channels:
            return run_stream(run.method, stream, run.batch_size, watcher, logits=self.logits)
        with FeatureRecorder(run.method.model, self.channels) as recorder:
            return run_stream(
                run.method,
                stream,
                run.batch_size,
                watcher,
                logits=self.logits,
                recorder=recorder,
            )

    def _open(self, name: str) -> Stream:
        kind, number = parse_protocol(self.protocol)
        asked: dict[str, Any] = {"limit": self.limit, "order": self.order, "seed": self.seed}
        if kind == "changing":
            stream = changing(self.data, self.corruptions, self.severity, number, **asked)
        else:
            stream = self.data.open(name, self.severity, **asked)
        if self.mix:
            stream = mixed_in(
                stream,
                self.mix,
                severity=self.severity,
                seed=self.seed,
                unknown=self.unknown,
                poison=partial(poisoned, self.runs[0].method.model),
            )
        return day_night(stream, self.seed) if kind == "day-night" else stream

    def _row(self, run: Run, stream: Stream) -> dict[str, Any]:
        # Among the settings, so that a table still has it beside other methods.
        code = {} if run.code is None else {"code_digest": run.code}
        calibrated_by, record_temperature = calibrated(run.method)
        row = {
            "method": run.name,
            "corruption": stream.corruption,
            "severity": stream.severity,
            "order": self.order,
            "protocol": self.protocol,
            "batch_size": run.batch_size,
            "limit": self.limit,
            "seed": self.seed,
            "settings": dict(run.method.settings) | code,
            "calibrated": calibrated_by,
            "record_temperature": record_temperature,
            "guard": run.guard,
            **self.fields,
        }
        if run.envelope is not None:
            row["envelope"] = run.envelope
        if self.mix:
            row["mix"] = ",".join(f"{kind}:{share:g}" for kind, share in self.mix.items())
        if self.channels:
            row["channels"] = list(self.channels)
        return row


def _code(kind: str | None) -> int:
    return 0 if kind is None else 1 + KINDS.index(kind)


def _estimated(method: Method) -> dict[str, float]:
    """What a guard estimates of the accuracy, the source's and the difference, without labels."""
    found = estimated(method)
    if found is None:
        return {}
    named = {
        "estimated_accuracy": found.adapted,
        "estimated_source_accuracy": found.source,
        "estimated_difference": found.difference,
    }
    return {
        f"{name}{end}": value
        for name, each in named.items()
        for end, value in (("", each.accuracy), ("_low", each.low), ("_high", each.high))
    } | {"compared": found.images}


def _given_to(
    labels: NDArray[np.int64], probabilities: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    """(N,) the probability of each label, of (N, K); nan without one, 0 of a class beyond K."""
    classes = probabilities.shape[1]
    place = labels.clip(0, classes - 1)
    found = np.take_along_axis(probabilities, place[:, None], axis=1)[:, 0]
    given: NDArray[np.float32] = np.select([labels < 0, labels < classes], [np.nan, found], 0)
    return given.astype(np.float32)


def _right(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Of each judged image whether the answer was right, 1 or 0."""
    judged = columns["labels"] >= 0
    return np.asarray((columns["predicted"] == columns["labels"])[judged], np.float64)


def _earlier_reference(rows: Rows, key: str) -> dict[str, NDArray[np.float64]]:
    """SOURCE's answers to the same images, by key, if they lie beside an earlier row."""
    for row in rows:
        if is_reference(row["method"], row["settings"]) and same_images(row) == key:
            columns = rows.arrays(row) or {}
            if {"predicted", "labels"} <= columns.keys():
                return {key: _right(columns)}
    return {}


def _differences(
    right: NDArray[np.float64], reference: NDArray[np.float64] | None
) -> dict[str, float | None]:
    """Accuracy less SOURCE's, and the standard error of the mean over the images, paired."""
    if reference is None or reference.shape != right.shape or len(right) < 2:
        return {"source_difference": None, "source_difference_error": None}
    paired = right - reference
    error = float(paired.std(ddof=1)) / len(paired) ** 0.5
    return {"source_difference": float(paired.mean()), "source_difference_error": error}
