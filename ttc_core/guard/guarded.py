"""A guard around a method: adaptation must never cost more than it brings.

The frozen source answers some images in the shadow of what is served (`Beside`). How likely both
are right is estimated (`estimate`), and weighed by evidence that may be looked at at any time
(`evidence`, `watch`), and so is whether what is served follows the images (`order`), and what
labels say of them, where some come. As soon as it speaks for harm the source answers, while the
method goes on in its shadow; where it is enough to be sure, from the last good snapshot or from the
source. Once the evidence says that the method is better, it answers again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor

from ttc_core.envelope.clauses import BUILT_IN, Envelope
from ttc_core.envelope.verdicts import Verdicts
from ttc_core.errors import told
from ttc_core.guard.estimate import Estimates, Judge, Judged
from ttc_core.guard.order import Order, Usual
from ttc_core.guard.restyled import Restyled, Style
from ttc_core.guard.snapshots import MOST, Snapshot
from ttc_core.guard.watch import (
    CLEAR,
    ESTIMATED,
    GAIN,
    LABELLED,
    ORDERED,
    SUSPECT,
    Kind,
    Turn,
    Watch,
    within,
)
from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods.contract import (
    HELD,
    ROLLED_BACK,
    Act,
    Adaptation,
    Answers,
    Beside,
    Method,
    Pending,
    Prediction,
    Right,
    SnapshotError,
    State,
    Weighed,
)
from ttc_core.methods.parts import Numbers, bounded
from ttc_core.methods.parts.shadow import answers_to
from ttc_core.methods.settings import MethodSettings
from ttc_core.state import size_bytes

SECTION = "guard"
# Images between two snapshots, and what one may take: T3A's features, or what a user's own method
# keeps, are not packed, and may be hundreds of megabytes. Then there is no snapshot to go back to.
SNAPSHOT_EVERY, MOST_BYTES = 500, 500_000
# What an act's evidence calls the images that were bet on.
BETS_ON = {
    ESTIMATED: "bets_on_compared",
    LABELLED: "bets_on_labelled",
    ORDERED: "bets_on_order",
}


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
        asked: how many were compared while the method answered.
        worse: of each compared image its place, a kind of evidence, and what that says of it.
        times_set_back: of the guard, when it answered.
    """

    inner: Prediction | None = None
    asked: int = 0
    worse: Sequence[tuple[int, Kind, float]] = ()
    compared: Sequence[Answers | None] = ()
    judged: Judged | None = None
    usual: Usual | None = None
    style: Style | None = None
    times_set_back: int = 0


class Guarded(Wrapper):
    """Watch a method, and keep harm from its answers.

    Args:
        acts: off, what it sees is told, and nothing done about it.
        envelope: how much evidence of harm there may be while the method answers, and what an
            image may weigh in it.
    """

    _parts: tuple[Restyled, Judge, Order]

    def __init__(
        self,
        inner: Method,
        settings: GuardSettings | None = None,
        *,
        acts: bool = True,
        envelope: Envelope = BUILT_IN,
    ) -> None:
        super().__init__(inner)
        self._envelope = envelope
        self._settings, self._acts = settings or GuardSettings(), acts
        record = self.model.calibration
        self._restyled = Restyled(self.model)
        self._judge = Judge(
            self.model.classes,
            temperature=None if record is None else record.temperature,
            served_is_calibrated=inner.record_temperature is not None,
        )
        self._order = Order(self.model.classes)
        self._parts = (self._restyled, self._judge, self._order)
        # A batch answered before the stream was set back by hand must not undo that.
        self._times_set_back = 0
        self._begin()

    def _begin(self) -> None:
        self._watch, self._snapshots = Watch(), tuple[Snapshot, ...]()
        # Batches not learned from, since the evidence was more than the envelope allows.
        self._dropped = 0
        for part in self._parts:
            part.reset()

    @property
    def holds(self) -> bool:
        """Whether it has the source answer where that is safer."""
        return self._acts and self._settings.hold

    @property
    def doubted(self) -> bool:
        """Whether the source should answer, by what was seen."""
        return self._watch.by_source

    @property
    def settings(self) -> Mapping[str, Any]:
        changed = self._settings.model_dump(exclude_defaults=True)
        return {**self.inner.settings, **({SECTION: changed} if changed else {})}

    @property
    def verdicts(self) -> Verdicts:
        own = {"worse_than_source": self._dropped} if self._dropped else {}
        return self.inner.verdicts + Verdicts(dropped=own)

    @property
    def details(self) -> Mapping[str, float]:
        watch = self._watch
        return {
            **self.inner.details,
            "harm": watch.estimated.harm.wealth,
            "harm_by_labels": watch.labelled.harm.wealth,
            "gain_by_labels": watch.labelled.gain.wealth,
            "harm_by_order": watch.ordered.harm.wealth,
            "alarms": watch.alarms,
            "compared_while_adapting": watch.asked,
            "labelled_of_compared": watch.judged,
        }

    @property
    def mode(self) -> str:
        watch = self._watch
        if watch.by_source and self.holds:
            return HELD
        return ROLLED_BACK if self._acts and watch.images < watch.told_until else self.inner.mode

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

    def predict(
        self, images: Tensor, *, learn: bool = True, compare: bool = True, **asked: Any
    ) -> Prediction:
        """As the contract has it.

        Args:
            compare: off, the images are answered as things stand, and tell nothing of the stream.
        """
        before, count = self._watch, len(images)
        said = self.inner.predict(images, learn=learn, **asked)
        # A collapse and one class alone look alike until more of it is compared.
        of_few = self._order.usual.of_few and not self._restyled.is_source
        rows = before.chosen(count, doubtful=of_few) if compare else ()
        beside = self._beside(images, rows, said.beside)
        pending = self._after(images, said, beside) if compare else _Guarded()
        held = self.holds and (before.by_source or self._seen(pending, count)[0].by_source)
        told_until = before.told_until if self._acts else 0
        modes = tuple(
            HELD if held else ROLLED_BACK if number < told_until else self.inner.mode
            for number in range(before.images, before.images + count)
        )
        said = replace(
            said, modes=modes, beside=beside, compared=tuple(pending.compared), pending=pending
        )
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
        """What these answers tell, once they are committed."""
        before, rows = self._watch, list(beside.rows)
        judged, usual, style = self._judge.judged, self._order.usual, self._restyled.style
        worse: list[tuple[int, Kind, float]] = []
        compared: list[Answers | None] = [None] * len(said)
        if rows:
            inputs = self.model.normalize(self.model.to_unit(images[rows]))
            restyled, style = self._restyled.answers(inputs)
            theirs, second, ours = (
                _numbers(each)
                for each in (
                    beside.logits.softmax(dim=1),
                    restyled.softmax(dim=1),
                    said.probabilities[rows],
                )
            )
            judged, chances = self._judge.after(
                theirs, second, ours, by_source=self.holds and before.by_source
            )
            usual, apart = self._order.after(theirs, second, ours)
            for row, (served, source), by_order in zip(rows, chances.tolist(), apart, strict=True):
                worse.append((row, ESTIMATED, source - served))
                if by_order is not None and not self._restyled.is_source:
                    worse.append((row, ORDERED, by_order))
            for row, own, source in zip(rows, ours.argmax(1), theirs.argmax(1), strict=True):
                compared[row] = Answers(int(own), int(source))
        return _Guarded(
            share=said.pending.share,
            inner=said,
            asked=0 if before.by_source else len(rows),
            worse=worse,
            compared=compared,
            judged=judged,
            usual=usual,
            style=style,
            times_set_back=self._times_set_back,
        )

    def _seen(self, pending: _Guarded, images: int) -> tuple[Watch, list[Turn]]:
        """What is seen with so many images, and what they turn, in their order."""
        at, turns = self._watch.images, list[Turn]()
        watch = replace(self._watch, images=at + images, asked=self._watch.asked + pending.asked)
        for row, kind, worse in pending.worse:
            watch, turn = watch.after(
                worse,
                at=at + row,
                false_alarms=self._settings.false_alarms,
                kind=kind,
                envelope=self._envelope,
            )
            turns += [turn] if turn else []
        return watch, turns

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
        # The source answers beyond what the envelope allows; where it must not, nothing is learned.
        dropped = learn and self._acts and self._watch.by_source and not self._settings.hold
        outcome = self.inner.adapt(inner, learn=learn and not dropped)
        if dropped:
            self._dropped += 1
            own = outcome.verdicts.with_dropped("worse_than_source")
            outcome = replace(outcome, verdicts=own)
        if outcome.skipped == "non_finite":
            return outcome
        assert pending.judged is not None
        assert pending.usual is not None
        assert pending.style is not None
        # Anew: labels may have come since it was answered.
        self._watch, turns = self._seen(pending, len(prediction))
        self._judge.judged, self._restyled.style = pending.judged, pending.style
        self._order.usual = pending.usual
        if had_second_view and self.second_view_off:
            # What mirror images have taught is wrong, and the method is back at the source.
            self._snapshots, self._watch = (), self._watch.begun_anew()
            self._order.reset()
        acts = [act for turn in turns for act in self._act(turn)]
        watch = self._watch
        if self._acts and watch.overdue:
            bets = watch.bets(watch.kind)
            acts += self._set_back("no_gain", Turn(GAIN, watch.kind, bets.gain), anew=True)
            self._watch = replace(self._watch.begun_anew(), waits=watch.waits + 1)
        elif watch.undecided:
            acts += self._act(Turn(CLEAR, watch.kind, watch.bets(watch.kind).harm))
            self._watch = replace(watch, suspected=False, since=watch.images)
        self._keep_if_good(before)
        return replace(outcome, acts=tuple(acts), drift=self.drift) if acts else outcome

    def weigh(self, right: Sequence[Right]) -> Weighed:
        acts, times_set_back = list[Act](), self._times_set_back
        judged_before = self._watch.judged
        for ours, theirs in right:
            watch = self._watch
            judged = replace(watch, judged=watch.judged + 1, judged_at=watch.images)
            self._watch, turn = judged.after(
                float(theirs) - float(ours),
                at=watch.images,
                false_alarms=self._settings.false_alarms,
                kind=LABELLED,
                envelope=self._envelope,
            )
            acts += self._act(turn) if turn else []
            if self._times_set_back > times_set_back:
                break  # the others are of answers before that
        return Weighed(self._watch.judged - judged_before, acts)

    def _act(self, turn: Turn) -> list[Act]:
        """Do what is to be done about what an image turned."""
        if turn.what == GAIN:
            return [self._told("release", "gain", turn)]
        if turn.what in (SUSPECT, CLEAR):
            action = "hold" if turn.what == SUSPECT else "release"
            return [self._told(action, "suspicion", turn)] if self._settings.hold else []
        acts = [self._told("hold", "harm", turn)] if self._settings.hold else []
        acts += self._set_back("harm", turn, anew=self._watch.soon)
        if not self._settings.hold:
            self._watch = replace(self._watch.begun_anew(), held=False)
        return acts

    def _told(self, action: str, reason: str, turn: Turn) -> Act:
        evidence = turn.evidence
        numbers = {
            "gain" if turn.what == GAIN else "harm": evidence.wealth,
            BETS_ON[turn.kind]: evidence.observations,
            "mean": evidence.mean,
        }
        return Act(action, reason, numbers, observed=not self._acts)

    def _set_back(self, reason: str, turn: Turn, *, anew: bool) -> list[Act]:
        """Go back to the last snapshot; or to the source, if there is none or it has to be anew."""
        act = None
        if self._settings.roll_back and self._snapshots and not anew:
            act = self._told("roll_back", reason, turn)
            if self._acts:
                try:
                    self._restore(self._snapshots[-1])
                except SnapshotError:
                    act = None
        if act is None and self._settings.reset:
            act = self._told("reset", reason, turn)
            if self._acts:
                self.inner.reset()
                self._snapshots = ()
        if act is None:
            return []
        if self._acts:
            self._times_set_back += 1
            self._order.reset()  # of what was adapted before
        self._watch = replace(self._watch, brought_back=self._watch.images)
        return [act]

    def _restore(self, snapshot: Snapshot) -> None:
        """Take up a snapshot.

        Raises:
            SnapshotError: it could not be; all is as it was.
        """
        present, source = self.inner.state(), self.inner.fork().state()
        try:
            self.inner.restore(snapshot.state(source, present))
        except Exception as error:  # a user's own method may raise anything
            self.inner.restore(present)
            raise SnapshotError(f"it does not take it up: {told(error)}") from error

    def _keep_if_good(self, before: Watch) -> None:
        """Take a snapshot if it is time for one, and nothing speaks for harm."""
        watch = self._watch
        is_time = watch.images // SNAPSHOT_EVERY > before.images // SNAPSHOT_EVERY
        doubtful = watch.by_source or watch.is_doubtful
        if self._settings.roll_back and is_time and not doubtful:
            self._take()

    def _take(self) -> None:
        source = self.inner.fork().state()
        snapshot = Snapshot.of(
            self.inner.state(), source, version=self.version, images=self._watch.images
        )
        if sum(map(size_bytes, snapshot.packed.values())) <= MOST_BYTES:
            # Of one version, which comes again where nothing was learned or after a roll back, the
            # latest: a version names one.
            others = [each for each in self._snapshots if each.version != snapshot.version]
            self._snapshots = (*others, snapshot)[-MOST:]

    def roll_back(self, to: int | None = None) -> int:
        found = [each for each in self._snapshots if to in (None, each.version)]
        if not found:
            raise LookupError("there is no such snapshot of it")
        self._restore(found[-1])
        self._times_set_back += 1
        self._order.reset()
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
            SECTION: {
                **self._watch.state(),
                "snapshots": len(self._snapshots),
                "dropped": self._dropped,
            }
        }
        for part in (self._judge, self._restyled, self._order):
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
        given, own = state[SECTION], within(SECTION, state)
        watch = Watch.restored(given)
        count = int(bounded(given["snapshots"], most=MOST))
        source = self.inner.fork().state()
        self._judge.restore(own)
        self._restyled.restore(own)
        self._order.restore(own)
        self._snapshots = tuple(_snapshot(own, number, source) for number in range(count))
        self._watch = watch
        self._dropped = int(bounded(given.get("dropped", 0)))

    def fork(self) -> Self:
        return type(self)(
            self.inner.fork(), self._settings, acts=self._acts, envelope=self._envelope
        )


def saved_snapshots(state: State) -> dict[int, int]:
    """The versions that a stream's saved state, or its numbers alone, has snapshots of, the oldest
    first, and after how many images each was.

    Raises:
        KeyError, ValueError: a number is missing, or cannot be.
    """
    count = int(bounded(state[SECTION]["snapshots"], most=MOST)) if SECTION in state else 0
    about = [state[f"{SECTION}.snapshot{number}"] for number in range(count)]
    return {int(bounded(each["version"])): int(bounded(each["images"])) for each in about}


def _numbers(answers: Tensor) -> Numbers:
    found: Numbers = answers.detach().double().cpu().numpy()
    return found


def _snapshot(own: Mapping[str, Any], number: int, source: State) -> Snapshot:
    """The one that a state holds under a number.

    Raises:
        KeyError, ValueError: it is none of this network's.
    """
    name = f"snapshot{number}"
    about = own[name]
    return Snapshot(
        int(bounded(about["version"])), int(bounded(about["images"])), within(name, own)
    ).checked(source)
