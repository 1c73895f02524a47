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

from pydantic import Field
from torch import Tensor

from ttc_core.envelope.clauses import BUILT_IN, Envelope
from ttc_core.envelope.verdicts import Verdicts
from ttc_core.errors import told
from ttc_core.guard.comparing import Compared, Comparing
from ttc_core.guard.estimate import Estimates
from ttc_core.guard.snapshots import MOST, Snapshot, snapshots_of, state_of
from ttc_core.guard.watch import (
    CLEAR,
    ESTIMATED,
    GAIN,
    LABELLED,
    ORDERED,
    SECTION,
    SUSPECT,
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
    Beside,
    Method,
    Pending,
    Prediction,
    Right,
    SnapshotError,
    State,
    Weighed,
)
from ttc_core.methods.parts import bounded
from ttc_core.methods.settings import MethodSettings
from ttc_core.state import size_bytes

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
        compared: what they tell; None: nothing was to be compared.
        times_set_back: of the guard, when it answered.
    """

    inner: Prediction | None = None
    asked: int = 0
    compared: Compared | None = None
    times_set_back: int = 0


class Guarded(Wrapper):
    """Watch a method, and keep harm from its answers.

    Args:
        acts: off, what it sees is told, and nothing done about it.
        envelope: how much evidence of harm there may be while the method answers, and what an
            image may weigh in it.
    """

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
        served_is_calibrated = inner.record_temperature is not None
        self._comparing = Comparing(self.model, served_is_calibrated=served_is_calibrated)
        self._parts = self._comparing.parts
        # A batch answered before the stream was set back by hand must not undo that.
        self._times_set_back = 0
        self._begin()

    def _begin(self) -> None:
        self._watch, self._snapshots = Watch(), tuple[Snapshot, ...]()
        # Batches not learned from, since the evidence was more than the envelope allows.
        self._dropped = 0
        self._comparing.reset()

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
        return self._comparing.latest

    @property
    def whole(self) -> Estimates | None:
        """The same, since the start."""
        return self._comparing.whole

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
        doubtful = self._comparing.is_narrow
        rows = before.chosen(count, doubtful=doubtful) if compare else ()
        beside = self._comparing.beside(images, rows, said.beside)
        pending = self._pending(images, said, beside) if compare else _Guarded()
        held = self.holds and (before.by_source or self._seen(pending, count)[0].by_source)
        told_until = before.told_until if self._acts else 0
        modes = tuple(
            HELD if held else ROLLED_BACK if number < told_until else self.inner.mode
            for number in range(before.images, before.images + count)
        )
        compared = () if pending.compared is None else tuple(pending.compared.answers)
        said = replace(said, modes=modes, beside=beside, compared=compared, pending=pending)
        if not held:
            return said
        whole = self._comparing.beside(images, range(count), beside)
        # As the method tells its own.
        answer = Prediction.of(whole.logits / (self.inner.record_temperature or 1.0))
        return replace(
            said,
            logits=whole.logits,
            probabilities=answer.probabilities,
            entropy=answer.entropy,
            beside=whole,
        )

    def _pending(self, images: Tensor, said: Prediction, beside: Beside) -> _Guarded:
        """What these answers tell, once they are committed."""
        by_source = self._watch.by_source
        return _Guarded(
            share=said.pending.share,
            inner=said,
            asked=0 if by_source else len(beside.rows),
            compared=self._comparing.after(
                images, said, beside, by_source=self.holds and by_source
            ),
            times_set_back=self._times_set_back,
        )

    def _seen(self, pending: _Guarded, images: int) -> tuple[Watch, list[Turn]]:
        """What is seen with so many images, and what they turn, in their order."""
        at, turns = self._watch.images, list[Turn]()
        watch = replace(self._watch, images=at + images, asked=self._watch.asked + pending.asked)
        for row, kind, worse in () if pending.compared is None else pending.compared.worse:
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
        assert pending.compared is not None
        # Anew: labels may have come since it was answered.
        self._watch, turns = self._seen(pending, len(prediction))
        self._comparing.take(pending.compared)
        if had_second_view and self.second_view_off:
            # What mirror images have taught is wrong, and the method is back at the source.
            self._snapshots, self._watch = (), self._watch.begun_anew()
            self._comparing.order.reset()
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
            self._comparing.order.reset()  # of what was adapted before
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
        self._comparing.order.reset()
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
        own = {**self._comparing.state(), **state_of(self._snapshots)}
        return {
            **self.inner.state(),
            **found,
            **{f"{SECTION}.{name}": each for name, each in own.items()},
        }

    def restore(self, state: State) -> None:
        self.inner.restore({k: v for k, v in state.items() if f"{k}.".partition(".")[0] != SECTION})
        self._begin()
        if SECTION not in state:
            return  # it is from before the stream was watched
        given, own = state[SECTION], within(SECTION, state)
        watch = Watch.restored(given)
        count = int(bounded(given["snapshots"], most=MOST))
        source = self.inner.fork().state()
        self._comparing.restore(own)
        self._snapshots = snapshots_of(own, count, source)
        self._watch = watch
        self._dropped = int(bounded(given.get("dropped", 0)))

    def fork(self) -> Self:
        return type(self)(
            self.inner.fork(), self._settings, acts=self._acts, envelope=self._envelope
        )
