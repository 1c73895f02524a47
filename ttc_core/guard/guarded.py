"""A guard around a method: adaptation must never cost more than it brings.

The frozen source answers some images in the shadow of what is served (`Beside`). How likely both
are right is estimated (`estimate`), and weighed by evidence that may be looked at at any time
(`evidence`, `watch`). As soon as it speaks for harm the source answers, while the method goes on in
its shadow; where it is enough to be sure, from the last good snapshot or from the source. Once the
evidence says that the method is better, it answers again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor

from ttc_core.guard.estimate import Estimates, Judge, Judged
from ttc_core.guard.evidence import Evidence
from ttc_core.guard.restyled import Restyled, Style
from ttc_core.guard.snapshots import MOST, Snapshot
from ttc_core.guard.watch import CLEAR, DOUBTFUL, GAIN, SUSPECT, Turn, Watch
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
from ttc_core.state import size_bytes

SECTION = "guard"
# Images between two snapshots, and what one may take: T3A's features, or what a user's own method
# keeps, are not packed, and may be hundreds of megabytes. Then there is no snapshot to go back to.
SNAPSHOT_EVERY, MOST_BYTES = 500, 500_000


class GuardSettings(MethodSettings):
    """What the guard may do, and how sure it has to be."""

    false_alarms: float = Field(
        0.01, gt=0, lt=1, description="of streams that take no harm, those in which harm is seen"
    )
    hold: bool = Field(True, description="let the source answer while adapting does harm")
    roll_back: bool = Field(True, description="go back to the last good snapshot after harm")
    reset: bool = Field(True, description="go back to the source after harm, without a snapshot")


@dataclass(frozen=True)
class _Guarded(Pending):
    """The inner method's prediction, and what the guard will have seen with it.

    Attributes:
        turns: what images of the batch turned, in their order.
        times_set_back: of the guard, when it answered.
    """

    inner: Prediction | None = None
    watch: Watch = field(default_factory=Watch)
    turns: Sequence[Turn] = ()
    judged: Judged | None = None
    style: Style | None = None
    times_set_back: int = 0


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
        # A batch answered before the stream was set back by hand must not undo that.
        self._times_set_back = 0
        self._begin()

    def _begin(self) -> None:
        self._watch, self._snapshots = Watch(), tuple[Snapshot, ...]()
        for part in (self._restyled, self._judge):
            part.reset()

    @property
    def _holds(self) -> bool:
        return self._acts and self._settings.hold

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
        if watch.by_source and self._holds:
            return HELD
        return ROLLED_BACK if self._acts and watch.images < watch.told_until else ADAPTING

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
        pending = self._after(images, said, beside)
        held = self._holds and (before.by_source or pending.watch.by_source)
        told_until = before.told_until if self._acts else 0
        modes = tuple(
            HELD if held else ROLLED_BACK if number < told_until else ADAPTING
            for number in range(before.images, before.images + count)
        )
        said = replace(said, modes=modes, beside=beside, pending=pending)
        if not held:
            return said
        whole = self._beside(images, range(count), beside)
        # As the method tells its own.
        answer = Prediction.of(whole.logits / (self.inner.record_temperature or 1.0))
        return replace(
            said,
            logits=whole.logits,
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

    def _after(self, images: Tensor, said: Prediction, beside: Beside) -> _Guarded:
        """What will be seen once these answers are committed."""
        before, rows, turns = self._watch, list(beside.rows), list[Turn]()
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
                by_source=self._holds and before.by_source,
            )
            for row, (served, source) in zip(rows, chances.tolist(), strict=True):
                watch, turn = watch.after(
                    source - served,
                    at=before.images + row,
                    false_alarms=self._settings.false_alarms,
                )
                turns += [turn] if turn else []
        return _Guarded(
            share=said.pending.share,
            inner=said,
            watch=watch,
            turns=turns,
            judged=judged,
            style=style,
            times_set_back=self._times_set_back,
        )

    # What is done

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        pending, before = prediction.pending, self._watch
        if not isinstance(pending, _Guarded) or pending.inner is None:
            raise ValueError("This prediction is another method's; adapt to what was predicted.")
        if pending.times_set_back != self._times_set_back:
            return Adaptation(skipped="shed", drift=self.drift)
        inner, had_second_view = pending.inner, not self.second_view_off
        if prediction.selected is not inner.selected:  # somebody chose others
            inner = replace(inner, selected=prediction.selected)
        outcome = self.inner.adapt(inner, learn=learn)
        if outcome.skipped == "non_finite":
            return outcome
        assert pending.judged is not None
        assert pending.style is not None
        self._watch = pending.watch
        self._judge.judged, self._restyled.style = pending.judged, pending.style
        if had_second_view and self.second_view_off:
            self._snapshots = ()  # what mirror images have taught is wrong
        acts = [act for turn in pending.turns for act in self._act(turn)]
        if self._acts and self._watch.overdue:
            acts += self._set_back("no_gain", self._watch.gain, anew=True)
            self._watch = replace(self._watch, waits=self._watch.waits + 1, gain=Evidence())
        self._keep_if_good(before)
        return replace(outcome, acts=tuple(acts), drift=self.drift) if acts else outcome

    def _act(self, turn: Turn) -> list[Act]:
        """Do what is to be done about what an image turned."""
        evidence = turn.evidence
        if turn.kind == GAIN:
            return [self._told("release", "gain", evidence)]
        if turn.kind in (SUSPECT, CLEAR):
            action = "hold" if turn.kind == SUSPECT else "release"
            return [self._told(action, "suspicion", evidence)] if self._settings.hold else []
        acts = [self._told("hold", "harm", evidence)] if self._settings.hold else []
        acts += self._set_back("harm", evidence, anew=self._watch.soon)
        if not self._settings.hold:
            self._watch = replace(self._watch.begun_anew(), held=False)
        return acts

    def _told(self, action: str, reason: str, evidence: Evidence) -> Act:
        numbers = {
            "gain" if reason in ("gain", "no_gain") else "harm": evidence.wealth,
            "compared": float(evidence.observations),
            "mean": evidence.mean,
        }
        return Act(action, reason, numbers, observed=not self._acts)

    def _set_back(self, reason: str, evidence: Evidence, *, anew: bool) -> list[Act]:
        """Go back to the last snapshot; or to the source, if there is none or it has to be anew."""
        act = None
        if self._settings.roll_back and self._snapshots and not anew:
            act = self._told("roll_back", reason, evidence)
            if self._acts and not self._restored(self._snapshots[-1]):
                act = None
        if act is None and self._settings.reset:
            act = self._told("reset", reason, evidence)
            if self._acts:
                self.inner.reset()
                self._snapshots = ()
        if act is None:
            return []
        self._watch = replace(self._watch, brought_back=self._watch.images)
        return [act]

    def _restored(self, snapshot: Snapshot) -> bool:
        """Take up a snapshot; return whether it could be."""
        present, source = self.inner.state(), self.inner.fork().state()
        try:
            self.inner.restore(snapshot.state(source, present))
        except Exception:  # a user's own method may raise anything
            self.inner.restore(present)
            return False
        return True

    def _keep_if_good(self, before: Watch) -> None:
        """Take a snapshot if it is time for one, and nothing speaks for harm."""
        watch = self._watch
        is_time = watch.images // SNAPSHOT_EVERY > before.images // SNAPSHOT_EVERY
        doubtful = watch.by_source or watch.harm.wealth > DOUBTFUL
        if self._settings.roll_back and is_time and not doubtful:
            self._take()

    def _take(self) -> None:
        source = self.inner.fork().state()
        snapshot = Snapshot.of(
            self.inner.state(), source, version=self.version, images=self._watch.images
        )
        if sum(map(size_bytes, snapshot.packed.values())) <= MOST_BYTES:
            self._snapshots = (*self._snapshots, snapshot)[-MOST:]

    def roll_back(self, to: int | None = None) -> int:
        found = [each for each in self._snapshots if to in (None, each.version)]
        if not found or not self._restored(found[-1]):
            raise LookupError("there is no such snapshot of it")
        self._times_set_back += 1
        watch = replace(self._watch.begun_anew(), held=False, suspected=False)
        self._watch = replace(watch, brought_back=watch.images)
        return found[-1].version

    # Its state

    def reset(self) -> None:
        self._times_set_back += 1
        self.inner.reset()
        self._begin()

    def state(self) -> State:
        found: dict[str, Mapping[str, Any]] = {
            SECTION: {**self._watch.state(), "snapshots": len(self._snapshots)}
        }
        for part in (self._judge, self._restyled):
            found |= {f"{SECTION}.{name}": each for name, each in part.state().items()}
        for number, snapshot in enumerate(self._snapshots):
            name = f"{SECTION}.snapshot{number}"
            found[name] = {"version": snapshot.version, "images": snapshot.images}
            found |= {f"{name}.{each}": packed for each, packed in snapshot.packed.items()}
        return {**self.inner.state(), **found}

    def restore(self, state: State) -> None:
        self.inner.restore({k: v for k, v in state.items() if f"{k}.".partition(".")[0] != SECTION})
        self._begin()
        if SECTION not in state:
            return  # it is from before the stream was watched
        given, own = state[SECTION], _of(SECTION, state)
        watch = Watch.restored(given)
        count = int(bounded(given["snapshots"], most=MOST))
        source = self.inner.fork().state()
        self._judge.restore(own)
        self._restyled.restore(own)
        self._snapshots = tuple(_snapshot(own, number, source) for number in range(count))
        self._watch = watch

    def fork(self) -> Self:
        return type(self)(self.inner.fork(), self._settings, acts=self._acts)


def _numbers(answers: Tensor) -> Numbers:
    found: Numbers = answers.detach().double().cpu().numpy()
    return found


def _of(prefix: str, given: Mapping[str, Any]) -> dict[str, Any]:
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}


def _snapshot(own: Mapping[str, Any], number: int, source: State) -> Snapshot:
    """The one that a state holds under a number.

    Raises:
        KeyError, ValueError: it is none of this network's.
    """
    name = f"snapshot{number}"
    about = own[name]
    return Snapshot(
        int(bounded(about["version"])), int(bounded(about["images"])), _of(name, own)
    ).checked(source)
