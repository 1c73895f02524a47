"""What an envelope made of steps: how many were cut, and how many dropped, by clause."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

CLAUSES = (
    "parameters",
    "drift",
    "largest_change",
    "image_in_statistics",
    "image_in_step",
    "steps_per_1000_images",
    "worse_than_source",
)
"""Those that a step may go beyond, in the order of an envelope's file."""


@dataclass(frozen=True)
class Verdicts:
    """Steps that would have gone beyond an envelope, by the clause; never written in place.

    Attributes:
        cut: how many were made smaller; a clause without any is missing.
        dropped: how many were not made.
    """

    cut: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, dict[str, int]]:
        """How many by clause, under `cut` and under `dropped`; what has none is missing."""
        found = {}
        for verdict, counts in (("cut", self.cut), ("dropped", self.dropped)):
            if of := {name: counts[name] for name in CLAUSES if counts.get(name)}:
                found[verdict] = of
        return found

    def with_cut(self, clause: str) -> "Verdicts":
        return replace(self, cut={**self.cut, clause: self.cut.get(clause, 0) + 1})

    def with_dropped(self, clause: str) -> "Verdicts":
        return replace(self, dropped={**self.dropped, clause: self.dropped.get(clause, 0) + 1})

    def since(self, before: "Verdicts") -> "Verdicts":
        """Those that came since there were these `before`."""
        return Verdicts(_rest(self.cut, before.cut), _rest(self.dropped, before.dropped))

    def __add__(self, other: "Verdicts") -> "Verdicts":
        return Verdicts(_sum(self.cut, other.cut), _sum(self.dropped, other.dropped))


NO_VERDICTS = Verdicts()
"""None; one for all."""


def _sum(some: Mapping[str, int], others: Mapping[str, int]) -> dict[str, int]:
    return {name: some.get(name, 0) + others.get(name, 0) for name in {**some, **others}}


def _rest(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    found = {name: count - before.get(name, 0) for name, count in now.items()}
    return {name: count for name, count in found.items() if count}
