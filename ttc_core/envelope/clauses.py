"""An envelope: what adaptation may change, clause by clause. Knows neither torch nor a network."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ttc_core.accepted import accepted, what_is, written
from ttc_core.errors import shown

# Of patterns that say which parameters may move.
MOST_PATTERNS, LONGEST_PATTERN = 1000, 500
# Of names that are no clauses, those that are told at once.
MOST_UNKNOWN = 10


class Envelope(BaseModel):
    """What adaptation may change; the built-in one unless a field says otherwise.

    Each field is a clause, by its name in a file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    parameters: tuple[str, ...] = Field(
        ("*",),
        max_length=MOST_PATTERNS,
        description="which scales and shifts may move, by patterns of the network's own names; the "
        "head's weight stands for T3A's prototypes. The others stay the source's bit for bit",
    )
    drift: float = Field(
        1.0,
        ge=0,
        description="how far all of them together may be from the source's: the metric "
        "ttc_parameter_drift_ratio, a share of the source's norm",
    )
    largest_change: float = Field(
        2.0, ge=0, description="how far any one of them may be from the source's"
    )
    image_in_statistics: float = Field(
        0.2,
        ge=0,
        le=1,
        description="how much one image may weigh, beside all before, in statistics that follow "
        "the stream",
    )
    image_in_step: float = Field(
        1.0,
        gt=0,
        le=1,
        description="how much of a whole step may be for one image's sake, by its part of the loss",
    )
    steps_per_1000_images: int = Field(
        1000,
        ge=0,
        le=1000,
        description="steps of the optimizer in any 1,000 images of a stream; so many images apart "
        "that there are never more: 501 to 999 allow 500, 334 to 499 allow 334",
    )
    worse_than_source: float = Field(
        5.0,
        ge=1,
        le=1e6,
        description="the guard's evidence that a stream is worse than the source, as a bettor's "
        "wealth that began with 1, from which on the source answers",
    )
    image_in_evidence: float = Field(
        1.75,
        ge=1.01,
        le=1.95,
        description="by what factor one image may raise that evidence; one that speaks for what "
        "adapts may lower it to 2 less this factor of what it was",
    )

    @field_validator("parameters", mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("parameters")
    @classmethod
    def _are_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if not all(0 < len(each) <= LONGEST_PATTERN for each in patterns):
            raise ValueError(f"a pattern has 1 to {LONGEST_PATTERN} characters")
        # What holds the same is the same, and has one digest.
        return ("*",) if "*" in patterns else tuple(sorted(set(patterns)))

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Envelope":
        """The envelope of some clauses; the others are the built-in one's.

        Raises:
            ValueError: names are no clauses, or values are not accepted; a sentence for each, in a
                line of its own.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            raise ValueError("\n".join(_sentences(error, given))) from None

    @property
    def digest(self) -> str:
        """12 hex digits that tell it from others."""
        text = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def digest_if_bounded(self) -> str | None:
        """The digest; None: it is no envelope, but a method as its paper has it."""
        return None if self == UNBOUNDED else self.digest

    @property
    def images_between_steps(self) -> float:
        """From one step to the next, at least so many images; infinite: no step is taken."""
        steps = self.steps_per_1000_images
        return math.ceil(1000 / steps) if steps else math.inf

    @property
    def steps_allowed(self) -> int:
        """In any 1,000 images, since steps are a whole number of images apart."""
        between = self.images_between_steps
        return 0 if math.isinf(between) else 999 // int(between) + 1

    @property
    def moves_all(self) -> bool:
        """Whether every parameter may move, whatever the network calls it."""
        return "*" in self.parameters

    def lets_move(self, parameter: str) -> bool:
        """Whether a parameter may move, by its name."""
        return any(fnmatchcase(parameter, each) for each in self.parameters)

    def unmatched(self, names: Mapping[str, Any]) -> Iterator[str]:
        """The patterns that none of these names fits; `*` means all, be there any or none."""
        for pattern in self.parameters:
            if pattern != "*" and not any(fnmatchcase(each, pattern) for each in names):
                yield pattern


BUILT_IN = Envelope()
"""What holds where nothing else is said."""
UNBOUNDED = Envelope.model_construct(
    drift=float("inf"), largest_change=float("inf"), image_in_statistics=1.0
)
"""None: a method as its paper has it. A guard's bounds are the built-in ones."""


def accepted_of(clause: str) -> str:
    """The values that a clause takes, in words."""
    if clause == "parameters":
        return f"a list of at most {MOST_PATTERNS} patterns of 1 to {LONGEST_PATTERN} characters"
    return accepted(Envelope.model_fields[clause])


def _sentences(error: ValidationError, given: Mapping[str, Any]) -> Iterator[str]:
    """Say of each clause what is wrong with it, and of names that are none that they are not."""
    found: dict[str, Mapping[str, Any]] = {}
    for each in error.errors():
        found.setdefault(str(each["loc"][0]), each)
    unknown = [name for name, each in found.items() if each["type"] == "extra_forbidden"]
    for name in (name for name in found if name not in unknown):
        said = what_is(found[name], accepted_of(name))
        yield f"{name} = {written(given[name])} is not accepted: {said}."
    if unknown:
        some = ", ".join(repr(shown(each)) for each in unknown[:MOST_UNKNOWN])
        known = ", ".join(Envelope.model_fields)
        are = "is no clause" if len(unknown) == 1 else "are no clauses"
        yield f"{some} {are} of an envelope; the clauses are: {known}."
