"""Images on their way through the device: asked of their streams' methods, and answered."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.errors import PredictionFailed, Refused
from service.shedding import STEPS, Shed
from service.stream_record import StreamRecord
from ttc_core.evaluate import as_batch
from ttc_core.grain import Grain
from ttc_core.guard import mode_of
from ttc_core.methods import HostPrediction, Method, Prediction
from ttc_core.methods.contract import SETTLED
from ttc_core.together import Done, Failed, together

T = TypeVar("T")
Said = tuple[Prediction, HostPrediction]


@dataclass(frozen=True)
class Image:
    """A decoded image (H, W, 3) uint8, with its true class and its id if the client gave them.

    With `context` off the prior neither weighs in its answer nor follows it; with `learn` off
    nothing comes of it, whatever the batch is answered for. `grain` is what was seen of it before
    it was brought to the model's size.
    """

    pixels: NDArray[np.uint8]
    label: int | None = None
    id: str | None = None
    context: bool = True
    learn: bool = True
    grain: Grain | None = None


@dataclass(frozen=True)
class ImageAnswer:
    """One image's row in the answers of its batch, what it was shed of, and by which weights."""

    answers: HostPrediction
    row: int
    forward_seconds: float
    shed: Shed | None
    digest: str | None = None

    def best(self, count: int) -> list[int]:
        """Its best classes, so many, best first; of equals as `predicted` has it.

        A client's count and the server's must agree.
        """
        answers, row = self.answers, self.row
        if count == 1:
            return [int(answers.predicted[row])]
        order = np.lexsort((-answers.logits[row], -answers.probabilities[row]))
        found: list[int] = order[:count].tolist()
        return found


@dataclass(frozen=True)
class Part:
    """A stream's images of a pass. They may teach it as long as `record` is the stream's."""

    stream: str
    record: StreamRecord
    prediction: Prediction
    answers: HostPrediction
    labels: list[int | None]
    shed: list[Shed | None]

    @cached_property
    def predicted(self) -> list[int]:
        return [int(each) for each in self.answers.predicted]

    @cached_property
    def confidences(self) -> list[float]:
        return [float(each) for each in self.answers.probabilities.max(axis=1)]

    @cached_property
    def is_sound(self) -> bool:
        """Whether all its rows are answers."""
        return bool(self.answers.sound.all())

    def rows(self, seconds: float) -> list[ImageAnswer | Refused]:
        """Its answers, of a pass that took so long."""
        digest = self.record.method.model.digest
        return [
            ImageAnswer(self.answers, row, seconds, self.shed[row], digest)
            if sound
            else PredictionFailed("the model's scores for it are not finite numbers.")
            for row, sound in enumerate(self.answers.sound)
        ]


@dataclass(frozen=True)
class Pass:
    """Images that were answered, in parts by stream, and the seconds that they took.

    `failed` are the streams of the pass that have no part: they failed, and others did not.
    `out_of_memory`: for want of memory one of them did; with fewer images it may not.
    """

    parts: Sequence[Part]
    seconds: float
    failed: Collection[str] = ()
    out_of_memory: bool = False

    @cached_property
    def rows(self) -> Sequence[ImageAnswer | Refused]:
        return [row for part in self.parts for row in part.rows(self.seconds)]


def ask(method: Method, items: Sequence[Image], learn: bool, shed: Shed | None) -> Said:
    """Have a method answer images; what is shed of it is not asked for."""
    images = as_batch([item.pixels for item in items])
    asked: dict[str, Any] = (
        {"context": [item.context for item in items]} if method.contextual else {}
    )
    if mode_of(method) != "off":
        asked["compare"] = any(item.learn for item in items)
        asked["grains"] = [item.grain for item in items]
    if shed == "second_view" and method.looks_twice:
        asked["second_view"] = False
    prediction = method.predict(images, learn=learn, **asked)
    return prediction, prediction.to_host()


def shed_of(method: Method, item: Image, shed: Shed | None) -> Shed | None:
    """What an image goes without of what its stream would have done with it."""
    if shed == "second_view" and method.looks_twice:
        return shed
    learns = item.learn and method.adapts - {"moments"} and method.mode != SETTLED
    return STEPS[0] if shed is not None and learns else None


def hand_in_hand(source: Method, works: Sequence[Callable[[], T]]) -> Sequence[Done[T] | Failed]:
    """Do what is to be done for each stream of a pass; what each came to.

    Args:
        source: streams were forked from it, and share passes of the network where it does.
    """
    if source.shares:
        return together(works)
    return [outcome for work in works for outcome in together([work])]
