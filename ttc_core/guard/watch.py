"""Whether the source should answer in a method's place: suspected, held, released."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ttc_core.guard.estimate import SLACK
from ttc_core.guard.evidence import Evidence
from ttc_core.methods.parts import bounded
from ttc_core.methods.parts.shadow import EVERY, FIRST

# Beyond the shadow's, one image of so many is compared while the evidence is doubtful; but for so
# many, no more than SHARE of all.
EVERY_IN_DOUBT, SHARE, ALLOWED = 4, 0.125, 64
DOUBTFUL = 2.0
# From so much evidence on the source answers, for the time being, and each image is compared: until
# it is enough to call it harm, or the images of late speak against it.
SUSPICIOUS = 5.0
# The method answers again once the evidence that it is better has come to so much, times how often
# harm was seen; better is by so much more.
RELEASED, MARGIN = 20.0, 0.05
# An answer says for so many images that its stream was brought back.
TOLD_FOR = 500
# Harm so soon after a stream was brought back: the snapshot was no good.
SOON = 1000
# Held for so long what is adapted in the shadow begins anew; then for twice as long, and so on.
RETRIED = 1000
_MOST = 1_000_000

SUSPECT, CLEAR, HARM, GAIN = "suspect", "clear", "harm", "gain"
"""What an image may turn: suspicion begins and ends, harm is seen, or that it is over."""


@dataclass(frozen=True)
class Turn:
    """What an image turned, one of those, and the evidence of harm or of gain that led to it."""

    kind: str
    evidence: Evidence


@dataclass(frozen=True)
class Watch:
    """What was seen of a stream; never written in place.

    Attributes:
        images: how many came.
        asked: how many of them were compared while the method answered.
        tries: how often evidence of harm has begun anew.
        alarms: how often harm was seen.
        waits: how often what was adapted in the shadow began anew, since it was held.
        suspected: whether the source answers for the time being.
        held: whether it answers until the method is seen to be better.
        since: the image from which on it does.
        brought_back: the image at which the stream last was; -1: it was never.
        harm, gain: the evidence that what is adapted is worse, and better, than the source.
    """

    images: int = 0
    asked: int = 0
    tries: int = 0
    alarms: int = 0
    waits: int = 0
    suspected: bool = False
    held: bool = False
    since: int = 0
    brought_back: int = -1
    harm: Evidence = field(default_factory=Evidence)
    gain: Evidence = field(default_factory=Evidence)

    @property
    def by_source(self) -> bool:
        """Whether the source should answer."""
        return self.held or self.suspected

    @property
    def told_until(self) -> int:
        """The image up to which answers say that the stream was brought back."""
        return self.brought_back + TOLD_FOR if self.brought_back >= 0 else 0

    @property
    def soon(self) -> bool:
        """Whether harm came too soon after the stream was brought back."""
        return self.brought_back >= 0 and self.since - self.brought_back < SOON

    @property
    def overdue(self) -> bool:
        """Whether the method has had its time in the shadow."""
        began = max(self.since, self.brought_back)
        return self.held and self.images - began >= RETRIED * 2**self.waits

    def chosen(self, images: int) -> list[int]:
        """Which of so many images to come the source has to answer."""
        if self.by_source:
            return list(range(images))
        every = EVERY_IN_DOUBT if self.harm.wealth > DOUBTFUL else EVERY
        found: list[int] = []
        for row in range(images):
            number = self.images + row
            wanted = number < FIRST or number % every == 0
            if wanted and self.asked + len(found) < max(ALLOWED, SHARE * (number + 1)):
                found.append(row)
        return found

    def after(self, worse: float, *, at: int, false_alarms: float) -> tuple["Watch", Turn | None]:
        """With a compared image, the `at`th, and what it turned.

        Args:
            worse: by how much likelier the source is right about it.
            false_alarms: of streams that take no harm, those in which harm may be seen.
        """
        if self.held:
            gain = self.gain.after(-worse - MARGIN)
            if gain.wealth < RELEASED * self.alarms:
                return replace(self, gain=gain), None
            return replace(self.begun_anew(), held=False, waits=0, since=at), Turn(GAIN, gain)
        harm = self.harm.after(worse - SLACK)
        # All evidence that a stream ever has shares what is allowed: the k-th has 1 / k (k + 1).
        k = self.tries + 1
        if harm.wealth >= k * (k + 1) / false_alarms:
            seen = replace(self, harm=harm, tries=k, alarms=self.alarms + 1, gain=Evidence())
            return replace(seen, held=True, suspected=False, since=at), Turn(HARM, harm)
        if self.suspected and (harm.wealth < DOUBTFUL or harm.mean <= 0):
            clear = replace(self.begun_anew(), tries=k, suspected=False, since=at)
            return clear, Turn(CLEAR, harm)
        if not self.suspected and harm.wealth >= SUSPICIOUS:
            return replace(self, harm=harm, suspected=True, since=at), Turn(SUSPECT, harm)
        return replace(self, harm=harm), None

    def begun_anew(self) -> "Watch":
        """Without what the images before said."""
        return replace(self, harm=Evidence(), gain=Evidence())

    def state(self) -> dict[str, Any]:
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        evidence = {
            f"{name}.{key}": value
            for name in ("harm", "gain")
            for key, value in asdict(getattr(self, name)).items()
        }
        return {name: int(value) for name, value in numbers.items()} | evidence

    @classmethod
    def restored(cls, given: Mapping[str, Any]) -> "Watch":
        """What `state` gave.

        Raises:
            KeyError, ValueError: a number is missing, or cannot be.
        """

        def evidence(name: str) -> Evidence:
            start = f"{name}."
            own = {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}
            return Evidence.restored(own)

        return cls(
            images=int(bounded(given["images"])),
            asked=int(bounded(given["asked"])),
            tries=int(bounded(given["tries"], most=_MOST)),
            alarms=int(bounded(given["alarms"], most=_MOST)),
            waits=int(bounded(given["waits"], most=30)),
            suspected=bool(bounded(given["suspected"], most=1)),
            held=bool(bounded(given["held"], most=1)),
            since=int(bounded(given["since"])),
            brought_back=int(bounded(given["brought_back"], least=-1)),
            harm=evidence("harm"),
            gain=evidence("gain"),
        )
