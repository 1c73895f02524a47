"""How evenly the classes come of late: what a camera's order does to statistics is told by it."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ttc_core.methods.contract import Prediction, State
from ttc_core.methods.parts import Numbers, bounded, distributions
from ttc_core.model import SourceModel

# Before so many images the answers are too few to be called diverse, or no longer so.
LEAST_IMAGES = 48
# Of the most classes that a window of images can tell, how many have to come before late layers
# begin to follow the stream, and how many before they do so wholly. Of ten: 6.5 and 7.
BEGIN, WHOLLY = 0.7, 0.75
# Of the same beside the first class, counted as if all answers were certain: with fewer they are
# one guess again and again, however many classes it is spread over. Of ten classes: 2.2.
ALIKE = 0.15
# Answers with no more than about this beyond an even one, in Σ p², are taken for the same guess.
LEAST_SURENESS = 0.005
# A rare class's images count for so many in the statistics of late layers, at most.
LARGEST_WEIGHT = 3.0


@dataclass(frozen=True)
class Classes:
    """The classes that came of late; never written in place.

    Attributes:
        frequencies: (K,) the moving mean of the answers; sums to 1.
        sureness: the moving mean of the answers' squares, Σ p²: 1 where all are certain.
        images: how many answers were seen, since the conditions changed.
        openness: in [0, 1], how diverse they are.
        opening: the most that openness ever was: how far late layers may follow the stream.
        weights: (N,) what each image of the last batch counts in the statistics of late layers.
    """

    frequencies: Numbers
    sureness: float
    images: int = 0
    openness: float = 0.0
    opening: float = 0.0
    weights: Numbers = field(default_factory=lambda: np.empty(0))

    @property
    def diverse(self) -> bool:
        """Whether the answers of late leave no doubt of it."""
        return self.openness == 1

    @property
    def importance(self) -> Numbers:
        """(K,) what an image of each class counts: as if all classes were equally frequent."""
        return importance(self.frequencies)

    @property
    def expected_weight(self) -> float:
        """What an image to come will count, on average; 1 where classes are equally frequent."""
        return float(self.frequencies @ self.importance)

    @property
    def narrowed(self) -> bool:
        """Whether the answers were diverse once, and are of few classes of late."""
        return self.opening > 0 and self.openness == 0 and self.images >= LEAST_IMAGES


def importance(frequencies: Numbers) -> Numbers:
    """1 / (K·frequency) of each class, at most LARGEST_WEIGHT."""
    even = len(frequencies) * frequencies
    return 1 / np.maximum(even, 1 / LARGEST_WEIGHT)


class Diversity:
    """Follows the classes of a stream's answers.

    Late layers see classes: their statistics over a run of one class would make that class look
    like all of them. So they stay the source's until the answers have been diverse, and an image
    of a frequent class counts less in them than one of a rare class.

    Args:
        window: images over which the frequencies are taken.
    """

    def __init__(self, model: SourceModel, window: int) -> None:
        self._model, self._window = model, window
        self.reset()

    def reset(self) -> None:
        even = 1 / self._model.classes
        self.classes = Classes(np.broadcast_to(even, self._model.classes), even)

    def after(self, probabilities: Tensor) -> Classes:
        """What the classes will be after these answers (N, K), in their order."""
        before = self.classes
        frequencies, sureness, images = before.frequencies, before.sureness, before.images
        weights = []
        for answer in probabilities.detach().double().cpu().numpy():
            if not np.isfinite(answer).all():
                weights.append(0.0)
                continue
            frequencies = frequencies + (answer - frequencies) / self._window
            sureness += (float(answer @ answer) - sureness) / self._window
            weights.append(answer @ importance(frequencies))
        images += len(probabilities)
        openness = before.openness
        if images >= LEAST_IMAGES:
            openness = self._openness(frequencies, sureness, images)
        opening = max(openness, before.opening)
        return Classes(frequencies, sureness, images, openness, opening, np.array(weights))

    def _openness(self, frequencies: Numbers, sureness: float, images: int) -> float:
        """Where the effective number of classes stands between BEGIN and WHOLLY."""
        even = 1 / len(frequencies)
        # What is left of the even start is no evidence.
        left = (1 - 1 / self._window) ** images
        seen = (frequencies - left * even) / (1 - left)
        apart = (sureness - left * even) / (1 - left) - even
        # A window of w images, each of one class, has a moving mean of 2w effective ones.
        most = 1 / (even + 1 / (2 * self._window))
        together = float(np.square(seen).sum())
        # 1/M or so for M even classes, and 1 for one guess, however sure the answers are.
        alike = (together - even + LEAST_SURENESS) / (apart + LEAST_SURENESS)
        if 1 / (even + (1 - even) * alike) - 1 < ALIKE * (most - 1):
            return 0.0
        return float(np.clip((1 / together / most - BEGIN) / (WHOLLY - BEGIN), 0, 1))

    def restart(self) -> None:
        """Under other conditions: count anew, and take the answers for as diverse as they were
        until enough have come."""
        even = 1 / self._model.classes
        self.classes = replace(
            self.classes,
            frequencies=np.broadcast_to(even, self._model.classes),
            sureness=even,
            images=0,
        )

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        self.classes = prediction.pending.after["classes"]

    def state(self) -> State:
        classes = self.classes
        return {
            "classes": {
                "frequencies": torch.from_numpy(classes.frequencies.copy()),
                "sureness": classes.sureness,
                "images": classes.images,
                "openness": classes.openness,
                "opening": classes.opening,
            }
        }

    def restore(self, state: State) -> None:
        given = state["classes"]
        frequencies = distributions(given["frequencies"], self.classes.frequencies)
        self.classes = Classes(
            frequencies,
            bounded(given["sureness"], most=1),
            int(bounded(given["images"])),
            bounded(given["openness"], most=1),
            bounded(given["opening"], most=1),
        )
