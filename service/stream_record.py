"""A stream as this process has it: its method object, and what others may read of it."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from service.schemas import StreamAct, StreamTruth
from service.state_folder import Identity
from ttc_core.envelope.verdicts import Verdicts
from ttc_core.guard import doubted
from ttc_core.guard.estimate import Estimates
from ttc_core.methods import Method
from ttc_core.methods.contract import ADAPTING, HELD
from ttc_core.state import size_bytes


@dataclass
class StreamRecord:
    """A stream: its method object, and what others may read of it from any thread."""

    method: Method
    images: int = 0
    batches: int = 0
    version: int = 0
    pending_batches: int = 0
    drift: float = 0.0
    verdicts: Verdicts = field(default_factory=Verdicts)
    second_view_off: bool = False
    details: Mapping[str, float] = field(default_factory=dict)
    mode: str = ADAPTING
    # Since when the guard says that the source should answer, and since when it does, of the clock
    # on the wall: never where a guard only observes.
    doubted_since: float | None = None
    held_since: float | None = None
    # The number of the latest answer before it was last brought back or reset: what labels say of
    # those up to it is nothing to its guard.
    answers_from: int = 0
    estimates: Estimates | None = None
    # What a guard did of late, or somebody had done, the oldest first.
    acts: tuple[StreamAct, ...] = ()
    # Images that looked like a faulty camera's, by kind; of which kind the latest was, while there
    # is a fault; since when there is one, whatever its kind; how many of them came last, and how
    # many ordinary ones have come since.
    suspects: Counter[str] = field(default_factory=Counter)
    suspect: str | None = None
    suspect_since: float | None = None
    suspect_in_a_row: int = 0
    ordinary: int = 0
    restored: bool = False
    # Bytes of its state when it was last measured, and the batches at which it will be again.
    bytes: int = 0
    measure_at: int = 0
    used: float = field(default_factory=time.monotonic)
    # Its last writing failed: it keeps its place until one has not.
    failed: bool = False
    # The file that it was read from or written to; another in its place is not written over.
    file: Identity | None = None
    # What labels say, as the file has it.
    truth: StreamTruth = field(default_factory=StreamTruth)

    @property
    def is_new(self) -> bool:
        """Whether it is at the source because nothing has moved it yet."""
        return not self.restored and self.batches == 0

    def take_note(self) -> None:
        """Publish where the method stands."""
        self.version = self.method.version
        self.pending_batches = self.method.pending_batches
        self.drift = self.method.drift
        self.verdicts = self.method.verdicts
        self.second_view_off = self.method.second_view_off
        self.details = self.method.details
        self.estimates = self.method.estimates
        self.mode, is_doubted = self.method.mode, doubted(self.method)
        now = time.time() if is_doubted else 0.0  # who is held is doubted
        self.doubted_since = (self.doubted_since or now) if is_doubted else None
        self.held_since = (self.held_since or now) if self.mode == HELD else None


def state_bytes(method: Method) -> int:
    """The size of a method's tensors; 0 where it cannot tell, as saving it will."""
    try:
        return size_bytes(method.state())
    except Exception:  # a user's own method may raise anything
        return 0
