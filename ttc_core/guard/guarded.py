"""A guard around a method: adaptation must never cost more than it brings.

The frozen source answers some images in the shadow of what is served (`Beside`). What their pairs
say is weighed by evidence that may be looked at at any time (`evidence`). Where it says that what
is served is worse than the source, the guard holds: the source answers, while the method goes on
in its shadow, from the last good snapshot or from the source. Once the evidence says that the
method is better, it answers again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor

from ttc_core.guard.estimate import SLACK, Estimates, Judge, Judged
from ttc_core.guard.evidence import Evidence
from ttc_core.guard.restyled import Restyled, Style
from ttc_core.guard.snapshots import MOST, Snapshot
from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods.contract import (
    ADAPTING,
    HELD,
    ROLLED_BACK,
    Act,
    Adaptation,
    Beside,
    Method,
    Pending,
    Prediction,
    State,
)
from ttc_core.methods.parts import Numbers, bounded
from ttc_core.methods.parts.shadow import answers_to
from ttc_core.methods.settings import MethodSettings

SECTION = "guard"
# Of a stream's images the source answers so many first ones, then one of so many; one of fewer
# while the evidence is doubtful. Never more than SHARE of all, but for so many.
FIRST, EVERY, EVERY_IN_DOUBT, SHARE, ALLOWED = 32, 17, 4, 0.125, 64
DOUBTFUL = 2.0
# From so much evidence on the source answers, for the time being, and each image is compared, until
# there is enough to call it harm, or no more than what is doubtful.
SUSPICIOUS = 5.0
# The method answers again once the evidence that it is better has come to so much, times how often
# it was held.
RELEASED = 20.0
# By so much more an answer has to be likely to be right before it counts as better.
MARGIN = 0.05
# Images between two snapshots, and for which an answer says that the stream was brought back.
SNAPSHOT_EVERY, TOLD_FOR = 500, 500
# Harm so soon after a roll back: the snapshot was no good. Held for so long: what was adapted in
# the shadow is no good, and begins anew.
SOON, RETRIED = 1000, 1000


class GuardSettings(MethodSettings):
    """What the guard may do, and how sure it has to be."""

    false_alarms: float = Field(
        0.01, gt=0, lt=1, description="of streams that take no harm, those ever held"
    )
    hold: bool = Field(True, description="let the source answer while adapting does harm")
    roll_back: bool = Field(True, description="go back to the last good snapshot after harm")
    reset: bool = Field(True, description="go back to the source after harm, without a snapshot")


@dataclass(frozen=True)
class Watch:
    """What the guard has seen of a stream; never written in place.

    Attributes:
        images: how many came.
        asked: how many of them the source answered, too, while it was not held.
        alarms: how often harm was seen.
        suspected: whether the source answers for the time being.
        held: whether it answers until the method is seen to be better.
        since: the image from which on it is so.
        rolled_back: the image up to which answers say that the stream was brought back.
        harm, gain: the evidence that what is adapted is worse, and better, than the source.
    """

    images: int = 0
    asked: int = 0
    alarms: int = 0
    suspected: bool = False
    held: bool = False
    since: int = 0
    rolled_back: int = 0
    harm: Evidence = field(default_factory=Evidence)
    gain: Evidence = field(default_factory=Evidence)

    @property
    def by_source(self) -> bool:
        """Whether the source answers."""
        return self.held or self.suspected

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


@dataclass(frozen=True)
class _Guarded(Pending):
    """The inner method's prediction, and what the guard has seen with it."""

    inner: Prediction | None = None
    watch: Watch = field(default_factory=Watch)
    judged: Judged | None = None
    style: Style | None = None


class Guarded(Wrapper):
    """Watch a method, and keep harm from its answers.

    Args:
        acts: off, what it sees is told, and nothing done about it.
    """

    def __init__(
        self, inner: Method, settings: GuardSettings | None = None, *, acts: bool = True
    ) -> None:
        super().__init__(inner)
        self._settings, self._acts = settings or GuardSettings(), acts
        record = self.model.calibration
        self._restyled = Restyled(self.model)
        self._judge = Judge(
            self.model.classes,
            temperature=None if record is None else record.temperature,
            served_is_calibrated=inner.record_temperature is not None,
        )
        self._begin()

    def _begin(self) -> None:
        self._watch, self._snapshots = Watch(), tuple[Snapshot, ...]()
        for part in (self._restyled, self._judge):
            part.reset()

    @property
    def settings(self) -> Mapping[str, Any]:
        changed = self._settings.model_dump(exclude_defaults=True)
        return {**self.inner.settings, **({SECTION: changed} if changed else {})}

    @property
    def details(self) -> Mapping[str, float]:
        watch = self._watch
        return {
            **self.inner.details,
            "harm": watch.harm.wealth,
            "alarms": watch.alarms,
            "compared": watch.asked,
        }

    @property
    def mode(self) -> str:
        watch = self._watch
        if watch.by_source and self._acts and self._settings.hold:
            return HELD
        return ROLLED_BACK if watch.images < watch.rolled_back else ADAPTING

    @property
    def estimates(self) -> Estimates | None:
        """The accuracy of late, without labels; None before anything was compared."""
        return self._judge.latest

    @property
    def whole(self) -> Estimates | None:
        """The same, since the start."""
        return self._judge.whole

    @property
    def snapshots(self) -> Mapping[int, int]:
        return {each.version: each.images for each in self._snapshots}

    # Answers

    def predict(self, images: Tensor, *, learn: bool = True, **asked: Any) -> Prediction:
        before, count = self._watch, len(images)
        said = self.inner.predict(images, learn=learn, **asked)
        beside = self._beside(images, before.chosen(count), said.beside)
        watch, pending = self._after(images, said, beside)
        held = self._settings.hold and self._acts and (before.by_source or watch.by_source)
        modes = tuple(
            HELD if held else ROLLED_BACK if row < before.rolled_back else ADAPTING
            for row in range(before.images, before.images + count)
        )
        said = replace(said, modes=modes, beside=beside, pending=pending)
        if not held:
            return said
        whole = self._beside(images, range(count), beside)
        answer = Prediction.of(whole.logits)
        return replace(
            said,
            logits=answer.logits,
            probabilities=answer.probabilities,
            entropy=answer.entropy,
            beside=whole,
        )

    def _beside(self, images: Tensor, rows: Sequence[int], known: Beside | None) -> Beside:
        """What the source answers to these images, and to those known already."""
        known = known or Beside([], self.model.source_moments.new_zeros((0, self.model.classes)))
        missing = sorted(set(rows) - set(known.rows))
        if not missing:
            return known
        inputs = self.model.normalize(self.model.to_unit(images[missing]))
        logits = answers_to(self.model, inputs, range(len(missing)))
        if not known.rows:
            return Beside(missing, logits)
        every = [*known.rows, *missing]
        order = sorted(range(len(every)), key=every.__getitem__)
        return Beside([every[i] for i in order], torch.cat((known.logits, logits))[order])

    def _after(self, images: Tensor, said: Prediction, beside: Beside) -> tuple[Watch, _Guarded]:
        """What will be seen once these answers are committed."""
        before, rows = self._watch, list(beside.rows)
        watch = replace(
            before,
            images=before.images + len(said),
            asked=before.asked + (0 if before.by_source else len(rows)),
        )
        judged, style = self._judge.judged, self._restyled.style
        if rows:
            inputs = self.model.normalize(self.model.to_unit(images[rows]))
            restyled, style = self._restyled.answers(inputs)
            judged, chances = self._judge.after(
                _numbers(beside.logits.softmax(dim=1)),
                _numbers(restyled.softmax(dim=1)),
                _numbers(said.probabilities[rows]),
            )
            for row, (served, source) in zip(rows, chances.tolist(), strict=True):
                watch = self._observed(watch, source - served, at=before.images + row)
        return watch, _Guarded(
            share=said.pending.share, inner=said, watch=watch, judged=judged, style=style
        )

    def _observed(self, watch: Watch, worse: float, at: int) -> Watch:
        """With one more image, the `at`th: by how much likelier the source is right there."""
        if watch.held:
            gain = watch.gain.after(-worse - MARGIN)
            if gain.wealth < RELEASED * watch.alarms:
                return replace(watch, gain=gain)
            return replace(watch, held=False, since=at, harm=Evidence(), gain=Evidence())
        harm = watch.harm.after(worse - SLACK)
        # All alarms of a stream share what is allowed: the k-th has 1 / k (k + 1) of it.
        alarm = watch.alarms + 1
        if harm.wealth < alarm * (alarm + 1) / self._settings.false_alarms:
            suspected = harm.wealth >= (DOUBTFUL if watch.suspected else SUSPICIOUS)
            return replace(watch, harm=harm, suspected=suspected)
        return replace(
            watch,
            held=True,
            suspected=False,
            since=at,
            alarms=alarm,
            harm=harm,
            gain=Evidence(),
        )

    # What is done

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        pending, before = prediction.pending, self._watch
        if not isinstance(pending, _Guarded) or pending.inner is None:
            raise ValueError("This prediction is another method's; adapt to what was predicted.")
        inner = pending.inner
        if prediction.selected is not inner.selected:  # somebody chose others
            inner = replace(inner, selected=prediction.selected)
        outcome = self.inner.adapt(inner, learn=learn)
        if outcome.skipped == "non_finite":
            return outcome
        self._watch = pending.watch
        assert pending.judged is not None
        assert pending.style is not None
        self._judge.judged, self._restyled.style = pending.judged, pending.style
        acts = self._act(before)
        return replace(outcome, acts=acts, drift=self.drift) if acts else outcome

    def _act(self, before: Watch) -> tuple[Act, ...]:
        watch, acts = self._watch, list[Act]()
        if watch.held and not before.held:
            reason = "harm"
            if self._settings.hold:
                acts.append(self._told("hold", reason))
            acts += self._bring_back(reason, soon=0 < before.rolled_back > watch.since - SOON)
            if not self._settings.hold:
                self._watch = replace(self._watch, held=False)
        elif before.held and not watch.held:
            acts.append(self._told("release", "gain"))
        elif watch.held and watch.images - watch.since >= RETRIED:
            acts += self._bring_back("no_gain", soon=True)
            self._watch = replace(self._watch, since=watch.images, gain=Evidence())
        elif (
            not watch.held
            and watch.images // SNAPSHOT_EVERY > before.images // SNAPSHOT_EVERY
            and watch.harm.wealth < 1
            and self._settings.roll_back
        ):
            self._take()
        return tuple(acts)

    def _told(self, action: str, reason: str) -> Act:
        watch = self._watch
        evidence = {
            "harm": watch.harm.wealth,
            "gain": watch.gain.wealth,
            "compared": float(watch.harm.observations),
            "worse": watch.harm.mean,
        }
        return Act(action, reason, evidence, observed=not self._acts)

    def _bring_back(self, reason: str, *, soon: bool) -> list[Act]:
        """Go back to the last snapshot, or to the source if there is none, or it was no good."""
        if self._settings.roll_back and self._snapshots and not soon:
            act = self._told("roll_back", reason)
            if not self._acts or self._restored(self._snapshots[-1]):
                return [act]
        if not self._settings.reset:
            return []
        act = self._told("reset", reason)
        if self._acts:
            self.inner.reset()
            self._snapshots = ()
            self._mark_rolled_back()
        return [act]

    def _restored(self, snapshot: Snapshot) -> bool:
        """Take up a snapshot; return whether it could be."""
        present, source = self.inner.state(), self.inner.fork().state()
        try:
            self.inner.restore(snapshot.state(source, present))
        except (KeyError, TypeError, ValueError):  # a state file's, of another make
            self.inner.restore(present)
            return False
        self._mark_rolled_back()
        return True

    def _mark_rolled_back(self) -> None:
        self._watch = replace(self._watch, rolled_back=self._watch.images + TOLD_FOR)

    def _take(self) -> None:
        source = self.inner.fork().state()
        snapshot = Snapshot.of(
            self.inner.state(), source, version=self.version, images=self._watch.images
        )
        self._snapshots = (*self._snapshots, snapshot)[-MOST:]

    def roll_back(self, to: int | None = None) -> int:
        found = [each for each in self._snapshots if to in (None, each.version)]
        if not found or not self._restored(found[-1]):
            raise LookupError("there is no such snapshot of it")
        self._watch = replace(self._watch, held=False, harm=Evidence(), gain=Evidence())
        return found[-1].version

    # Its state

    def reset(self) -> None:
        self.inner.reset()
        self._begin()

    def state(self) -> State:
        watch = self._watch
        numbers = {
            name: int(value) if isinstance(value, bool) else value
            for name, value in vars(watch).items()
            if isinstance(value, int)
        }
        found: dict[str, Mapping[str, Any]] = {
            SECTION: {
                **numbers,
                **_prefixed("harm.", watch.harm.state()),
                **_prefixed("gain.", watch.gain.state()),
                "snapshots": len(self._snapshots),
            },
            **_prefixed("guard.", self._judge.state()),
            **_prefixed("guard.", self._restyled.state()),
        }
        for number, snapshot in enumerate(self._snapshots):
            found[f"snapshot{number}"] = {"version": snapshot.version, "images": snapshot.images}
            for name, section in snapshot.packed.items():
                found[f"snapshot{number}.{name}"] = section
        return {**self.inner.state(), **found}

    def restore(self, state: State) -> None:
        own = (SECTION, "snapshot")
        self.inner.restore({k: v for k, v in state.items() if not k.startswith(own)})
        self._begin()
        if SECTION not in state:
            return  # it is from before the stream was watched
        given = state[SECTION]
        counts = {
            name: int(bounded(given[name])) for name in ("images", "asked", "alarms", "since")
        }
        self._watch = Watch(
            **counts,
            suspected=bool(bounded(given["suspected"], most=1)),
            held=bool(bounded(given["held"], most=1)),
            rolled_back=int(bounded(given["rolled_back"])),
            harm=Evidence.restored(_of("harm", given)),
            gain=Evidence.restored(_of("gain", given)),
        )
        parts = _of("guard", state)
        self._judge.restore(parts)
        self._restyled.restore(parts)
        self._snapshots = tuple(
            _snapshot(state, number)
            for number in range(int(bounded(given["snapshots"], most=MOST)))
        )

    def fork(self) -> Self:
        return type(self)(self.inner.fork(), self._settings, acts=self._acts)


def _numbers(answers: Tensor) -> Numbers:
    found: Numbers = answers.detach().double().cpu().numpy()
    return found


def _prefixed(prefix: str, given: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in given.items()}


def _of(prefix: str, given: Mapping[str, Any]) -> dict[str, Any]:
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}


def _snapshot(state: State, number: int) -> Snapshot:
    """The one that a state holds under a number."""
    about, prefix = state[f"snapshot{number}"], f"snapshot{number}."
    return Snapshot(
        int(bounded(about["version"])),
        int(bounded(about["images"])),
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)},
    )
