"""A method on a stream of images, offline: the walk of the service, batch by batch, counted."""

import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ttc_core.datasets import Stream
from ttc_core.envelope.clauses import BUILT_IN, UNBOUNDED
from ttc_core.errors import UserError
from ttc_core.features import FeatureRecorder
from ttc_core.frames import KINDS
from ttc_core.guard import mode_of
from ttc_core.methods import Method, Prediction
from ttc_core.methods.contract import HELD, MODES
from ttc_core.tally import Tally


class EvaluationError(UserError):
    """A method or network of a user's own failed; the text says at what."""


def as_batch(images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> Tensor:
    """Stack images (H, W, 3) uint8 into a batch (N, 3, H, W), without copying twice."""
    return torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2)


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


def run_stream(
    method: Method,
    stream: Stream,
    batch_size: int,
    *,
    logits: bool = False,
    recorder: FeatureRecorder | None = None,
) -> Tally:
    """Answer a stream to its end; see `answered`."""
    walk = answered(method, stream, batch_size, logits=logits, recorder=recorder)
    while True:
        try:
            next(walk)
        except StopIteration as end:
            tally: Tally = end.value
            return tally


def answered(
    method: Method,
    stream: Stream,
    batch_size: int,
    *,
    logits: bool = False,
    recorder: FeatureRecorder | None = None,
) -> Generator[Tally, None, Tally]:
    """Answer a stream batch by batch, adapting after each, and count what came of it.

    Loading and corrupting the images is not part of the seconds.

    Args:
        logits: keep them, too: K numbers an image.
        recorder: keeps some channels of each image's features.

    Yields:
        The tally, after each batch the same one.

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
        yield tally
    started = time.perf_counter()
    tally.steps += method.end()
    tally.seconds += time.perf_counter() - started
    return tally


def _code(kind: str | None) -> int:
    return 0 if kind is None else 1 + KINDS.index(kind)


def _given_to(
    labels: NDArray[np.int64], probabilities: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    """(N,) the probability of each label, of (N, K); nan without one, 0 of a class beyond K."""
    classes = probabilities.shape[1]
    place = labels.clip(0, classes - 1)
    found = np.take_along_axis(probabilities, place[:, None], axis=1)[:, 0]
    given: NDArray[np.float32] = np.select([labels < 0, labels < classes], [np.nan, found], 0)
    return given.astype(np.float32)
