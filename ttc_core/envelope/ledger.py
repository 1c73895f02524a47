"""What of a stream an envelope has to know: its latest step, and what became of those beyond."""

from collections.abc import Mapping, Sized
from typing import Any

from ttc_core.envelope.verdicts import CLAUSES, NO_VERDICTS, Verdicts

SECTION = "envelope"
# Images since a step, of which more are as many.
ENOUGH = 1000
_MOST = 2**53


class Ledger:
    """Of one stream; a part of its method. Replaces what it holds, and writes nothing in place.

    Attributes:
        verdicts: since the start or the last reset.
        since_step: images since the latest step, at most ENOUGH; as many at the start.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.verdicts = NO_VERDICTS
        self.since_step = ENOUGH

    def commit(self, prediction: Sized, *, learned: bool) -> None:
        self.since_step = min(self.since_step + len(prediction), ENOUGH)

    def stepped(self, images: int) -> None:
        """A step was taken with the last of so many images, which `commit` is yet to count."""
        self.since_step = -images

    def cut(self, clause: str) -> None:
        self.verdicts = self.verdicts.with_cut(clause)

    def dropped(self, clause: str) -> None:
        self.verdicts = self.verdicts.with_dropped(clause)

    def state(self) -> dict[str, dict[str, int]]:
        found = {"since_step": self.since_step}
        for kind in ("cut", "dropped"):
            found |= {f"{kind}.{n}": count for n, count in getattr(self.verdicts, kind).items()}
        return {SECTION: found}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave; a state from before there were envelopes has none.

        Raises:
            ValueError: a number cannot be.
        """
        given = state.get(SECTION, {})
        since_step = _count(given.get("since_step", ENOUGH), ENOUGH)
        found: dict[str, dict[str, int]] = {"cut": {}, "dropped": {}}
        for kind, counts in found.items():
            for clause in CLAUSES:
                if f"{kind}.{clause}" in given:
                    counts[clause] = _count(given[f"{kind}.{clause}"], _MOST)
        self.since_step, self.verdicts = since_step, Verdicts(**found)


def _count(value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"one of its counts is {value}")
    return value
