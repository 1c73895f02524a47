"""What is given up while the queue stands: learning, then the second view; not answers.

The load is how much of what is allowed the queue takes: from 1 on nothing is learned, from 2 on
images are looked at once besides. One step at a time, so that learning goes first; and back as
slowly, once the load has been low for a while, so that what is answered does not flap.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from service.events import Events

Shed = Literal["learning", "second_view"]
# In the order in which they are given up.
STEPS: tuple[Shed, ...] = ("learning", "second_view")
# A load below it for so long takes one step back.
LOW, CALM_SECONDS = 0.5, 5.0
# Between two looks at a queue that no batch leaves.
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Load:
    """How the queue stands, and what is allowed.

    Attributes:
        waited: seconds that somebody has waited who let batches pass; 0 where nobody has.
        most_waited: those at which the load is 1.
        more: images that wait beyond the fewest within a moment; 0 where nobody let batches pass.
        most_more: those at which the load is 1.
        waiting: images in the queue.
    """

    waited: float
    most_waited: float
    more: int
    most_more: float
    waiting: int

    @property
    def value(self) -> float:
        """The worse of the two by what is allowed, 0 or more."""
        return max(0.0, self.waited / self.most_waited, self.more / self.most_more)

    @property
    def evidence(self) -> dict[str, float]:
        """Its numbers as an operator is told them."""
        return {
            "load": round(self.value, 3),
            "waited_seconds": round(self.waited, 3),
            "waited_seconds_allowed": self.most_waited,
            "images_more": self.more,
            "images_more_allowed": self.most_more,
            "images_waiting": self.waiting,
        }


@dataclass(frozen=True)
class GivenUp:
    """What is given up now.

    Attributes:
        what: the last of STEPS that is, with those before it.
        since: when the first was, in seconds since 1970.
        evidence: what led to the last step, up or back, by name.
    """

    what: Shed
    since: float
    evidence: dict[str, float]


class Shedding:
    """What is given up now, by the loads that were seen.

    Attributes:
        level: how many of STEPS are given up.
        given_up: the same, since when and why; None: nothing is.
    """

    def __init__(self, events: Events, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._events, self._clock = events, clock
        self.level = 0
        self.given_up: GivenUp | None = None
        self._calm_since = clock()

    @property
    def shed(self) -> Shed | None:
        """The last of STEPS that is given up, with those before it; None: nothing is."""
        return STEPS[self.level - 1] if self.level else None

    def look(self, load: Load) -> None:
        """See the load, and go at most one step; tell it where one was made."""
        now = self._clock()
        if load.value >= LOW:
            self._calm_since = now
        if load.value >= self.level + 1 and self.level < len(STEPS):
            self._go(1, load)
        elif self.level and now - self._calm_since >= CALM_SECONDS:
            self._calm_since = now
            self._go(-1, load)

    def _go(self, steps: int, load: Load) -> None:
        self.level += steps
        since = time.time() if self.given_up is None else self.given_up.since
        why, shed = load.evidence, self.shed
        if shed is None:
            self.given_up = None
            self._events.note_repeated("shedding_over", varying={"evidence": why})
            return
        self.given_up = GivenUp(shed, since, why)
        if steps > 0:
            self._events.note_repeated(
                "shedding", level=logging.WARNING, what=shed, varying={"evidence": why}
            )
        else:
            self._events.note_repeated("shedding_less", what=shed, varying={"evidence": why})
