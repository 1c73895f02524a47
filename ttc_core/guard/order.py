"""Whether what is served still follows the images, however few answers of anybody's are right.

The source, the restyled source and what is served each put the classes of an image in an order.
Each is asked beyond what it usually says of them, so that neither a prior nor a stream of one class
plays a part: does it prefer the class that another answers to those which that one answers
elsewhere? What follows the images does. What answers the same whatever comes does not: it is
further from both others than these are from each other. Orders do not depend on how sure anybody
is, so that nothing is fitted, and no temperature is asked for.

What is taken for granted: what the two agree on in an image, a good method sees as well. That is
not so where both err alike (pictures upside down) or just after a change, when what is usual is of
before. So an image speaks against a method only while its answers of late are of far fewer classes
than those of the restyled source: whoever answers this class and that has not collapsed.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttc_core.guard.estimate import EVEN, HORIZON
from ttc_core.methods.contract import State
from ttc_core.methods.parts import Numbers, bounded, distributions

# Below this a probability says nothing of the order.
LEAST = 1e-30
# So much more often, of pairs of classes, counts as always: in a collapse it is a tenth to a third.
MUCH = 0.5
# Far fewer classes: this part of the other's, over so many images, once there were so many.
FEWER, RECENT, LEAST_IMAGES = 0.5, 16, 4


@dataclass(frozen=True)
class Usual:
    """What the three say of late; never written in place.

    Attributes:
        answers: (2, K) mean answers of the source and of the restyled source.
        logs: (3, K) mean log probabilities of these and of what is served; they begin even.
        recent: (2, K) how often, of the latest, restyled source and what is served answered each.
        images: how many there were.
    """

    answers: Numbers
    logs: Numbers
    recent: Numbers
    images: int = 0

    @property
    def of_few(self) -> bool:
        """Whether what is served answers far fewer classes than the restyled source."""
        restyled, served = (_classes(each) for each in self.recent)
        return self.images >= LEAST_IMAGES and served < FEWER * restyled


class Order:
    """Compares the orders on one stream.

    Args:
        classes: K, 2 or more.

    Attributes:
        usual: what it has come to.
    """

    usual: Usual

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self.reset()

    def reset(self) -> None:
        even = np.full((2, self._classes), 1 / self._classes)
        self.usual = Usual(even, np.zeros((3, self._classes)), even)

    def after(
        self, source: Numbers, restyled: Numbers, served: Numbers
    ) -> tuple[Usual, list[float | None]]:
        """What is usual once these images are compared, and of each by how much more the served
        answer differs from the other two than these do from each other, −1 to 1. Changes nothing;
        images in one call or in several come to the same. An image to which an answer is no number
        is passed over (None).

        Args:
            source, restyled, served: (n, K) probabilities.
        """
        usual, found = self.usual, list[float | None]()
        for answers in np.stack((source, restyled, served), axis=1):
            if not np.isfinite(answers).all():
                found.append(None)
                continue
            logs = np.log(answers.clip(LEAST, 1))
            beyond = logs - usual.logs
            apart = 0.0
            for other, own in ((0, 1), (1, 0)):
                answer, elsewhere = int(answers[own].argmax()), usual.answers[own]
                theirs, ours = (_prefers(beyond[i], answer, elsewhere) for i in (other, 2))
                apart += (theirs - ours) / 2
            found.append(min(max(apart / MUCH, -1.0), 1.0 if usual.of_few else 0.0))
            weight = 1 / (min(usual.images + 1, HORIZON) + EVEN)
            latest = np.eye(self._classes)[answers[1:].argmax(1)]
            usual = Usual(
                usual.answers + weight * (answers[:2] - usual.answers),
                usual.logs + weight * (logs - usual.logs),
                usual.recent + (latest - usual.recent) / min(usual.images + 1, RECENT),
                usual.images + 1,
            )
        return usual, found

    def state(self) -> State:
        usual = self.usual
        return {
            "order": {
                "answers": torch.from_numpy(usual.answers.copy()),
                "logs": torch.from_numpy(usual.logs.copy()),
                "recent": torch.from_numpy(usual.recent.copy()),
                "images": usual.images,
            }
        }

    def restore(self, state: State) -> None:
        """Go on from a state; one without anything of this begins.

        Raises:
            KeyError, ValueError: what it holds is none.
        """
        if "order" not in state:
            self.reset()
            return
        given, like = state["order"], self.usual
        logs = given["logs"]
        if not isinstance(logs, Tensor) or logs.shape != like.logs.shape:
            raise ValueError("its orders are of another network")
        if not bool(((logs <= 0) & (logs >= 1.01 * math.log(LEAST))).all()):
            raise ValueError("its orders are none")
        self.usual = Usual(
            distributions(given["answers"], like.answers),
            logs.double().cpu().numpy().copy(),
            distributions(given["recent"], like.recent),
            int(bounded(given["images"])),
        )


def _prefers(beyond: Numbers, answer: int, elsewhere: Numbers) -> float:
    """How often, of the classes answered elsewhere, an answer stands above them; itself: never."""
    above = (beyond[answer] > beyond) + 0.5 * (beyond[answer] == beyond)
    return float(elsewhere @ above - elsewhere[answer] / 2)


def _classes(frequencies: Numbers) -> float:
    """How many classes answers are of: the exponential of their entropy."""
    some = frequencies[frequencies > 0]
    return math.exp(-float(some @ np.log(some)))
