"""How many of a stream's answers are right, without labels: of what is served, and of the source.

Three answer the same images: the source, what is served, and the source with its early layers'
statistics following the stream (`restyled`), which sees through weather and light and is not misled
by a stream of one class. How likely an answer is right, a logistic model says: from how sure each
of the three is of it, and from how they did on the images compared of late. Its nine numbers are
the same for all networks, fitted to labelled streams of some, and to collapses made up, and tried
on networks left out (`benchmarks.estimate`). There it is wrong by 11 to 14 points in the mean where
the network's temperature is known, by 12 to 15 where not: the interval is no formality. All had ten
classes.

An answer that served and source share is right or wrong for both: so a collapse, in which neither
other takes part, is told from a stream of one class, on which all three agree.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ttc_core.methods.contract import State
from ttc_core.methods.parts import Numbers, bounded, distributions

# Compared images that what is known of a stream runs over; classes begin as even ones of so many.
HORIZON, EVEN = 64, 8
# Compared images that the estimate of late runs over.
LATEST = 200
# The uniform answer's part in every answer: how sure one is beyond that tells nothing.
FLOOR = 0.01
# What the moving means are measured from, where a network does well; see `Judged.means`.
USUAL = np.array((0.6, 0.6, 0.2))
# Ends of intervals within so much of 0 and 1 are these: log-odds never come to them.
CERTAIN = 0.01
# Standard deviations that 90 % of a Gaussian are within.
SIGMAS = 1.645
# The estimated chance that the source is right has to be larger by so much before it counts as
# harm: less is within what the model is wrong by on streams on which nothing is worse.
SLACK = 0.25


@dataclass(frozen=True)
class Table:
    """The fitted numbers.

    Attributes:
        weights: (9,) of the features, in the order of `_features`.
        served, source: of a 90 % interval, the error in log-odds.
        differ: of the difference's, the error in parts of the images answered differently.
    """

    weights: Numbers
    served: float
    source: float
    differ: float


# With the network's temperature on held-out images, and for want of it (1).
CALIBRATED = Table(
    np.array((3.116, 1.363, 2.096, -4.490, 2.510, -0.858, 0.606, -0.369, 2.218)),
    served=2.0,
    source=1.6,
    differ=0.6,
)
UNCALIBRATED = Table(
    np.array((2.560, 0.983, 2.153, 0.858, 2.780, -1.117, 3.565, -0.278, 2.252)),
    served=2.6,
    source=2.5,
    differ=0.6,
)


@dataclass(frozen=True)
class Estimate:
    """An estimated accuracy, 0 to 1, or a difference of two, -1 to 1.

    Attributes:
        low, high: the ends of a 90 % interval.
    """

    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimates:
    """Of a stream: what is served, the frozen source, and the first less the second.

    Attributes:
        images: how many were compared.
    """

    images: int
    adapted: Estimate
    source: Estimate
    difference: Estimate


@dataclass(frozen=True)
class Shares:
    """Means over compared images, 0 to 1 each.

    Attributes:
        served, source: the chance that the answer is right.
        differ: how often they are two classes.
    """

    served: float = 0.0
    source: float = 0.0
    differ: float = 0.0

    def after(self, terms: "Shares", weight: float) -> "Shares":
        """Moved towards an image's by this weight."""
        return Shares(
            *(old + weight * (new - old) for old, new in zip(_of(self), _of(terms), strict=True))
        )


@dataclass(frozen=True)
class Judged:
    """What was made of the images compared so far; never written in place.

    Attributes:
        classes: (K,) the restyled source's mean answer of late.
        means: (3,) of late, the mean of what the restyled source gives to the source's class and to
            the served one, and of the source's entropy by ln K.
        latest, whole: over the latest images what the method answered, given out or not; over all
            alike what was given out.
        images: how many there were.
    """

    classes: Numbers
    means: Numbers
    latest: Shares = Shares()
    whole: Shares = Shares()
    images: int = 0


class Judge:
    """Judges the answers of one stream.

    Args:
        classes: K, 2 or more.
        temperature: what the network's logits are divided by to be calibrated on held-out images;
            None where nobody knows.
        served_is_calibrated: what is served was divided by it already.

    Attributes:
        judged: what it has come to.
    """

    judged: Judged

    def __init__(
        self,
        classes: int,
        *,
        temperature: float | None = None,
        served_is_calibrated: bool = False,
    ) -> None:
        self._classes, self._log = classes, math.log(classes)
        self._table = UNCALIBRATED if temperature is None else CALIBRATED
        self._temperature = 1.0 if temperature is None else temperature
        self._served_temperature = 1.0 if served_is_calibrated else self._temperature
        self.reset()

    def reset(self) -> None:
        self.judged = Judged(np.full(self._classes, 1 / self._classes), np.zeros(len(USUAL)))

    @property
    def latest(self) -> Estimates | None:
        """Of late; None before anything was compared."""
        return self._estimates(self.judged.latest, min(self.judged.images, LATEST))

    @property
    def whole(self) -> Estimates | None:
        """Of all that was compared."""
        return self._estimates(self.judged.whole, self.judged.images)

    def after(
        self, source: Numbers, restyled: Numbers, served: Numbers, *, by_source: bool = False
    ) -> tuple[Judged, Numbers]:
        """What is known once these images are compared, and (n, 2) how likely the served answer to
        each is right, and the source's. Changes nothing; images in one call or in several come to
        the same. An image to which an answer is no number is passed over, with chances of 0.5.

        Args:
            source, restyled, served: (n, K) probabilities; of a network without BatchNorm the
                restyled source's are the source's.
            by_source: the source's were given as answers, in the place of those of the method.
        """
        judged, chances = self.judged, np.full((len(source), 2), 0.5)
        theirs = (self._softened(each, self._temperature) for each in (source, restyled))
        rows = zip(*theirs, self._softened(served, self._served_temperature), strict=True)
        for place, answers in enumerate(rows):
            if np.isfinite(answers).all():
                judged, chances[place] = self._after(judged, *answers, by_source=by_source)
        return judged, chances

    def _softened(self, answers: Numbers, temperature: float) -> Numbers:
        soft = answers.astype(np.float64).clip(1e-9, 1) ** (1 / temperature)
        mixed: Numbers = FLOOR / self._classes + (1 - FLOOR) * soft / soft.sum(1, keepdims=True)
        return mixed

    def _after(
        self,
        before: Judged,
        source: Numbers,
        restyled: Numbers,
        served: Numbers,
        *,
        by_source: bool,
    ) -> tuple[Judged, tuple[float, float]]:
        theirs, ours = int(source.argmax()), int(served.argmax())
        count = before.images + 1
        entropy = -float(source @ np.log(source)) / self._log
        now = np.array((restyled[theirs], restyled[ours], entropy))
        means = before.means + (now - before.means) / min(count, HORIZON)
        classes = before.classes + (restyled - before.classes) / (min(count, HORIZON) + EVEN)

        def chance(answer: int) -> float:
            sure = np.log([each[answer] for each in (source, restyled, served, classes)])
            return self._chance(_features(sure / self._log, answer == ours, means - USUAL))

        served_right = chance(ours)
        source_right = served_right if theirs == ours else chance(theirs)
        terms = Shares(served_right, source_right, float(theirs != ours))
        given = Shares(source_right, source_right, 0.0) if by_source else terms
        judged = Judged(
            classes,
            means,
            before.latest.after(terms, 1 / min(count, LATEST)),
            before.whole.after(given, 1 / count),
            count,
        )
        return judged, (served_right, source_right)

    def _chance(self, features: Numbers) -> float:
        """How likely the answer with these (9,) features is right."""
        return 1 / (1 + math.exp(-float(features @ self._table.weights)))

    def _estimates(self, shares: Shares, images: int) -> Estimates | None:
        if images == 0:
            return None
        table, difference = self._table, shares.served - shares.source
        # A few images that agree may yet have differed.
        differ = shares.differ + (1 - shares.differ) / (images + 2)
        half = math.hypot(table.differ * differ, SIGMAS * math.sqrt(differ / images))
        return Estimates(
            self.judged.images,
            _within(shares.served, images, table.served),
            _within(shares.source, images, table.source),
            Estimate(difference, max(difference - half, -1.0), min(difference + half, 1.0)),
        )

    def state(self) -> State:
        judged = self.judged
        return {
            "estimate": {
                "classes": torch.from_numpy(judged.classes.copy()),
                "images": judged.images,
                **{f"mean{place}": float(mean) for place, mean in enumerate(judged.means)},
                **_named("latest", judged.latest),
                **_named("whole", judged.whole),
            }
        }

    def restore(self, state: State) -> None:
        given = state["estimate"]
        means = [bounded(given[f"mean{place}"], most=1.0001) for place in range(len(USUAL))]
        self.judged = Judged(
            distributions(given["classes"], self.judged.classes),
            np.array(means),
            _restored(given, "latest"),
            _restored(given, "whole"),
            int(bounded(given["images"])),
        )


def _features(sure: Numbers, is_served: bool, means: Numbers) -> Numbers:
    """(9,) of one answer to an image.

    Args:
        sure: log probabilities that the source, the restyled source and the served answer give to
            it, and the restyled source usually; by ln K.
        means: how the stream differs from the usual.
    """
    source, restyled, served, usual = sure
    source_restyled, served_restyled, entropy = means
    return np.array(
        (
            1.0,
            restyled,
            usual,
            entropy,
            is_served * served_restyled,
            served * source_restyled,
            restyled * entropy,
            source * served_restyled,
            is_served * entropy,
        )
    )


def _within(accuracy: float, images: int, error: float) -> Estimate:
    """With an interval of this error in log-odds, and that of so many images."""
    kept = min(max(accuracy, CERTAIN / 10), 1 - CERTAIN / 10)
    odds = math.log(kept / (1 - kept))
    half = math.hypot(error, SIGMAS / math.sqrt(images * kept * (1 - kept)))
    low, high = (1 / (1 + math.exp(-each)) for each in (odds - half, odds + half))
    return Estimate(accuracy, low if low > CERTAIN else 0.0, high if high < 1 - CERTAIN else 1.0)


def _of(shares: Shares) -> tuple[float, float, float]:
    return shares.served, shares.source, shares.differ


def _named(name: str, shares: Shares) -> dict[str, float]:
    return {f"{name}.{each}": number for each, number in asdict(shares).items()}


def _restored(given: Mapping[str, Any], name: str) -> Shares:
    return Shares(
        *(bounded(given[f"{name}.{each}"], most=1) for each in ("served", "source", "differ"))
    )
