"""What is given up while the queue stands: learning, then the second view; not answers.

The load is how much of what is allowed the queue takes: from 1 on nothing is learned, from 2 on
images are looked at once besides. One step at a time, so that learning goes first; and back as
slowly, once the load has been low for a while, so that what is answered does not flap.
"""

import logging
import time
from collections.abc import Callable
from typing import Literal

from service.events import Events

Shed = Literal["learning", "second_view"]
# In the order in which they are given up.
STEPS: tuple[Shed, ...] = ("learning", "second_view")
# A load below it for so long takes one step back.
LOW, CALM_SECONDS = 0.5, 5.0
# Between two looks at a queue that no batch leaves.
LOOK_SECONDS = 0.5


class Shedding:
    """What is given up now, by the loads that were seen.

    Attributes:
        level: how many of STEPS are given up.
    """

    def __init__(self, events: Events, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._events, self._clock = events, clock
        self.level = 0
        self._calm_since = clock()

    @property
    def shed(self) -> Shed | None:
        """The last of STEPS that is given up, with those before it; None: nothing is."""
        return STEPS[self.level - 1] if self.level else None

    def look(self, load: float) -> None:
        """See the load, 0 or more, and go at most one step; tell it where one was made."""
        now = self._clock()
        if load >= LOW:
            self._calm_since = now
        if load >= self.level + 1 and self.level < len(STEPS):
            self.level += 1
            self._events.note_repeated("shedding", level=logging.WARNING, what=self.shed)
        elif self.level and now - self._calm_since >= CALM_SECONDS:
            self.level -= 1
            self._calm_since = now
            if self.level:
                self._events.note_repeated("shedding", what=self.shed)
            else:
                self._events.note_repeated("shedding_over")
