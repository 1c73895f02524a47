"""Whether the source should answer in a method's place: suspected, held, released.

Three kinds of evidence lead to the same turns: what is estimated of each compared image, how three
order its classes (`order`), and what its label says where one comes. Labels are exact, so that
little harm is seen by them; the others are there at once. Orders tell a collapse where the source
is poor, too. Who is held for what one kind says is released by that kind alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ttc_core.envelope.clauses import BUILT_IN, Envelope
from ttc_core.guard.estimate import SLACK
from ttc_core.guard.evidence import Evidence
from ttc_core.methods.parts import MOST, bounded
from ttc_core.methods.parts.shadow import EVERY, FIRST

SECTION = "guard"
"""Of a state, where what a guard knows begins."""
# Beyond the shadow's, one image of so many is compared while the evidence is doubtful; but for so
# many, no more than SHARE of all.
EVERY_IN_DOUBT, SHARE, ALLOWED = 4, 0.125, 64
DOUBTFUL = 2.0
# The method answers again once the evidence that it is better has come to so much, times how often
# harm was seen.
RELEASED = 20.0
# An answer says for so many images that its stream was brought back.
TOLD_FOR = 500
# Harm so soon after a stream was brought back: the snapshot was no good.
SOON = 1000
# Held for so long what is adapted in the shadow begins anew; then for twice as long, and so on. And
# for so long the source answers, and there is doubt, for labels that come no more.
RETRIED = 1000
_MOST = 1_000_000

SUSPECT, CLEAR, HARM, GAIN = "suspect", "clear", "harm", "gain"
"""What an image may turn: suspicion begins and ends, harm is seen, or that it is over."""


@dataclass(frozen=True)
class Kind:
    """How evidence of a kind is weighed.

    Attributes:
        name: of the field of a `Watch` that holds it.
        slack: the source has to be better by so much more for it to be harm.
        margin: the method has to be better by so much more for it to be a gain.
        horizon: observations that the bettors' means run over.
    """

    name: str
    slack: float
    margin: float
    horizon: int


ESTIMATED = Kind("estimated", SLACK, margin=0.05, horizon=16)
# Of single answers the mean of sixteen is noise.
LABELLED = Kind("labelled", slack=0.02, margin=0.02, horizon=64)
# What does no harm was at 0.03 at most, mostly below 0; a collapse at 0.1 to 0.6.
ORDERED = Kind("ordered", slack=0.06, margin=0.02, horizon=16)
KINDS = (ESTIMATED, LABELLED, ORDERED)


@dataclass(frozen=True)
class Turn:
    """What an image turned, one of those, and the evidence of harm or of gain that led to it."""

    what: str
    kind: Kind
    evidence: Evidence


@dataclass(frozen=True)
class Bets:
    """Evidence of one kind.

    Attributes:
        harm, gain: that what is adapted is worse, and better, than the source.
        number: which of the stream's beginnings that of harm is; 0: it has not begun.
    """

    harm: Evidence = field(default_factory=Evidence)
    gain: Evidence = field(default_factory=Evidence)
    number: int = 0


@dataclass(frozen=True)
class Watch:
    """What was seen of a stream; never written in place.

    Attributes:
        images: how many came.
        asked: how many of them were compared while the method answered.
        judged: how many compared ones a label came for.
        judged_at: the image with which the latest of those labels came.
        begun: how often evidence of harm has begun, of whatever kind.
        alarms: how often harm was seen.
        waits: how often what was adapted in the shadow began anew, since it was held.
        suspected: whether the source answers for the time being.
        held: whether it answers until the method is seen to be better.
        by: the place in KINDS of the evidence for which it does so.
        since: the image from which on it does.
        brought_back: the image at which the stream last was; -1: it was never.
        estimated, labelled, ordered: the evidence.
    """

    images: int = 0
    asked: int = 0
    judged: int = 0
    judged_at: int = 0
    begun: int = 0
    alarms: int = 0
    waits: int = 0
    suspected: bool = False
    held: bool = False
    by: int = 0
    since: int = 0
    brought_back: int = -1
    estimated: Bets = field(default_factory=Bets)
    labelled: Bets = field(default_factory=Bets)
    ordered: Bets = field(default_factory=Bets)

    @property
    def kind(self) -> Kind:
        """Of the evidence for which the source answers, if it does."""
        return KINDS[self.by]

    def bets(self, kind: Kind) -> Bets:
        found: Bets = getattr(self, kind.name)
        return found

    @property
    def by_source(self) -> bool:
        """Whether the source should answer."""
        return self.held or self.suspected

    @property
    def is_doubtful(self) -> bool:
        """Whether there is some evidence of harm; that of labels fades once they come no more."""
        told = (each for each in KINDS if each is not LABELLED or self.labels_come)
        return any(self.bets(kind).harm.wealth > DOUBTFUL for kind in told)

    @property
    def labels_come(self) -> bool:
        """Whether one has come of late."""
        return self.images - self.judged_at < RETRIED

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

    @property
    def undecided(self) -> bool:
        """Whether labels that raised suspicion have not come on for long."""
        return self.suspected and self.kind is LABELLED and not self.labels_come

    def chosen(self, images: int, *, doubtful: bool = False) -> list[int]:
        """Which of so many images to come the source has to answer.

        Args:
            doubtful: there is a reason to look more often besides what evidence there is.
        """
        if self.by_source:
            return list(range(images))
        every = EVERY_IN_DOUBT if doubtful or self.is_doubtful else EVERY
        found: list[int] = []
        for row in range(images):
            number = self.images + row
            wanted = number < FIRST or number % every == 0
            if wanted and self.asked + len(found) < max(ALLOWED, SHARE * (number + 1)):
                found.append(row)
        return found

    def after(
        self,
        worse: float,
        *,
        at: int,
        false_alarms: float,
        kind: Kind = ESTIMATED,
        envelope: Envelope = BUILT_IN,
    ) -> tuple["Watch", Turn | None]:
        """With what is known of a compared image, and what it turned.

        From the envelope's `worse_than_source` on the source answers, for the time being, and each
        image is compared: until there is enough evidence to call it harm, or the images of late
        speak against it.

        Args:
            worse: by how much likelier the source is right about it; of a label, -1, 0 or 1; by how
                much further what is served is from the others.
            at: the image that this comes with.
            false_alarms: of streams that take no harm, those in which harm may be seen.
        """
        bets, factor = self.bets(kind), envelope.image_in_evidence
        if self.held:
            gain = bets.gain.after(-worse - kind.margin, kind.horizon, factor)
            after = self._with(kind, replace(bets, gain=gain))
            if gain.wealth < RELEASED * self.alarms or kind is not self.kind:
                return after, None
            return replace(self.begun_anew(), held=False, waits=0, since=at), Turn(GAIN, kind, gain)
        # All evidence that a stream ever has shares what is allowed: the k-th has 1 / k (k + 1).
        k = bets.number or self.begun + 1
        harm = bets.harm.after(worse - kind.slack, kind.horizon, factor)
        after = self._with(kind, Bets(harm, number=k), begun=max(self.begun, k))
        if harm.wealth >= k * (k + 1) / false_alarms:
            seen = replace(after, alarms=self.alarms + 1, suspected=False, held=True, since=at)
            return replace(seen, by=KINDS.index(kind)), Turn(HARM, kind, harm)
        leads, most = self.suspected and kind is self.kind, envelope.worse_than_source
        if leads and (harm.wealth < min(DOUBTFUL, most) or harm.mean <= 0):
            clear = self._with(kind, Bets(), begun=after.begun, suspected=False, since=at)
            return clear, Turn(CLEAR, kind, harm)
        # Evidence of before may be left, or another kind's suspicion just over: what speaks for
        # the method raises none.
        speaks = worse > kind.slack and harm.mean > 0
        if not self.suspected and harm.wealth >= most and speaks:
            suspected = replace(after, suspected=True, by=KINDS.index(kind), since=at)
            return suspected, Turn(SUSPECT, kind, harm)
        return after, None

    def _with(self, kind: Kind, bets: Bets, **others: Any) -> "Watch":
        others[kind.name] = bets
        return replace(self, **others)

    def begun_anew(self) -> "Watch":
        """Without what the images before said."""
        return replace(self, estimated=Bets(), labelled=Bets(), ordered=Bets())

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            name: int(value) for name, value in vars(self).items() if isinstance(value, int)
        }
        for kind in (each.name for each in KINDS):
            for name, value in asdict(getattr(self, kind)).items():
                numbers = value.items() if isinstance(value, dict) else [("", value)]
                found |= {f"{kind}.{name}{'.' * bool(k)}{k}": number for k, number in numbers}
        return found

    @classmethod
    def restored(cls, given: Mapping[str, Any]) -> "Watch":
        """What `state` gave.

        Raises:
            KeyError, ValueError: a number is missing, or cannot be.
        """

        def count(name: str, most: float = _MOST, least: float = 0) -> int:
            return int(bounded(given[name], least=least, most=most))

        def bets(kind: str) -> Bets:
            harm, gain = (Evidence.restored(within(f"{kind}.{n}", given)) for n in ("harm", "gain"))
            return Bets(harm, gain, count(f"{kind}.number"))

        return cls(
            images=count("images", MOST),
            asked=count("asked", MOST),
            judged=count("judged", MOST),
            judged_at=count("judged_at", MOST),
            begun=count("begun"),
            alarms=count("alarms"),
            waits=count("waits", 30),
            suspected=bool(count("suspected", 1)),
            held=bool(count("held", 1)),
            # A former version had two kinds.
            by=count("by" if "by" in given else "by_labels", len(KINDS) - 1),
            since=count("since", MOST),
            brought_back=count("brought_back", MOST, -1),
            estimated=bets("estimated"),
            labelled=bets("labelled"),
            ordered=bets("ordered") if "ordered.number" in given else Bets(),
        )


def within(prefix: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of a mapping, what is named behind a prefix and a dot, by what follows."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}
