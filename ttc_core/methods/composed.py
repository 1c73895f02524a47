"""What the methods share: each is composed of parts, and its state is theirs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ttc_core.envelope.clauses import UNBOUNDED, Envelope
from ttc_core.envelope.ledger import Ledger
from ttc_core.envelope.limits import Limits
from ttc_core.envelope.verdicts import Verdicts
from ttc_core.methods.contract import (
    ADAPTING,
    Adaptation,
    Pending,
    Prediction,
    Right,
    State,
    Weighed,
)
from ttc_core.methods.parts import Part
from ttc_core.methods.parts.gradient import Gradient, Loss, gradient
from ttc_core.methods.parts.learner import AffineLearner
from ttc_core.methods.parts.statistics import STATISTICS, MovingStatistics
from ttc_core.methods.settings import (
    AffineSettings,
    MethodSettings,
    OptimizerSettings,
    StatisticsSettings,
)
from ttc_core.model import SourceModel
from ttc_core.normalization import Look
from ttc_core.undo import Undo, undo_of


class ComposedMethod(ABC):
    """A method made of parts. A subclass composes them and predicts.

    It and its parts replace what they hold and write nothing of it in place, so that whatever they
    did is undone by what they held before. Batches whose answers, or whose share in the statistics,
    are not finite move no part.

    Args:
        envelope: what it may change; the streams that are forked share its limits.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[MethodSettings]]
    adapts: frozenset[str] = frozenset()
    selects: ClassVar[bool] = False

    def __init__(
        self, model: SourceModel, *, envelope: Envelope = UNBOUNDED, **settings: Any
    ) -> None:
        self._settings = self.Settings.create(self.name, model.classes, settings)
        self.model = model
        self._limits = Limits(model, envelope)
        self._begin()

    def _begin(self) -> None:
        self._ledger = Ledger()
        # What adapts nothing has nothing to keep account of.
        own: Sequence[Part] = (self._ledger,) if self.adapts else ()
        self._parts: Sequence[Part] = (*own, *self._compose())

    def _compose(self) -> Sequence[Part]:
        """Make the parts, at the source."""
        return ()

    @property
    def settings(self) -> dict[str, Any]:
        return self._settings.model_dump()

    @property
    def contextual(self) -> bool:
        return False

    @property
    def version(self) -> int:
        return 0

    @property
    def pending_batches(self) -> int:
        return 0

    @property
    def drift(self) -> float:
        return 0.0

    @property
    def envelope(self) -> Envelope:
        return self._limits.envelope

    @property
    def verdicts(self) -> Verdicts:
        return self._ledger.verdicts

    @property
    def second_view_off(self) -> bool:
        return False

    @property
    def looks_twice(self) -> bool:
        return False

    @property
    def shares(self) -> bool:
        return self.model.shares

    @property
    def record_temperature(self) -> float | None:
        return None

    @property
    def details(self) -> Mapping[str, float]:
        return {}

    @property
    def mode(self) -> str:
        return ADAPTING

    @property
    def estimates(self) -> None:
        return None

    @property
    def snapshots(self) -> Mapping[int, int]:
        return {}

    def roll_back(self, to: int | None = None) -> int:
        raise LookupError("no guard keeps snapshots of it")

    def weigh(self, right: Sequence[Right]) -> Weighed:
        return Weighed()

    @abstractmethod
    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction: ...

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        if not prediction.can_teach():
            return Adaptation(skipped="non_finite", drift=self.drift)
        before = self._ledger.verdicts
        # Where only statistics follow the stream there is nothing to be left out.
        if learn or not self.adapts - {"moments"}:
            outcome = self._learn(prediction)
        else:
            outcome = Adaptation(skipped="shed", drift=self.drift)
        if outcome.skipped != "non_finite":
            for part in self._parts:
                part.commit(prediction, learned=outcome.skipped is None)
        if self._ledger.verdicts is before:
            return outcome
        return replace(outcome, verdicts=self._ledger.verdicts.since(before))

    def _learn(self, prediction: Prediction) -> Adaptation:
        """Learn from a batch by other means than a part's `commit`."""
        return Adaptation()

    def end(self) -> bool:
        """The stream is over: return whether a last step was taken."""
        return False

    def reset(self) -> None:
        for part in self._parts:
            part.reset()

    def state(self) -> State:
        return {
            section: entries for part in self._parts for section, entries in part.state().items()
        }

    def restore(self, state: State) -> None:
        for part in self._parts:
            part.restore(state)

    def undo_point(self) -> Undo:
        return undo_of(self, *self._parts)

    def fork(self) -> Self:
        if not type(self).__module__.startswith("ttc_core."):
            # A class of a user's own may keep what is a stream's outside of parts.
            return type(self)(self.model, **self.settings)
        other = copy(self)
        other._begin()
        return other


class StatisticsMethod(ComposedMethod):
    """One whose BatchNorm layers take their statistics from where the settings say."""

    adapts = frozenset({"moments"})
    _settings: StatisticsSettings

    @property
    def shares(self) -> bool:
        of_the_batch = self._settings.statistics == "batch" and self.model.batch_norms
        return super().shares and not of_the_batch

    def _compose(self) -> Sequence[Part]:
        self._statistics = STATISTICS[self._settings.statistics](self.model, self._settings)
        if isinstance(self._statistics, MovingStatistics):
            self._statistics.keep_within(self._limits, self._ledger)
        return (self._statistics,)


class LearningMethod(ComposedMethod):
    """One that moves scales and shifts by the gradient of a loss on what it just answered."""

    adapts = frozenset({"affine", "moments"})
    selects = True
    # The part of the layers before which scales and shifts stay the source's.
    learned_from: ClassVar[float] = 0.0
    _settings: OptimizerSettings

    def __init__(
        self, model: SourceModel, *, envelope: Envelope = UNBOUNDED, **settings: Any
    ) -> None:
        super().__init__(model, envelope=envelope, **settings)
        self._learner.try_out()

    def _compose(self) -> Sequence[Part]:
        self._learner = AffineLearner(
            self.model,
            self._settings,
            learned_from=self.learned_from,
            limits=self._limits,
            ledger=self._ledger,
        )
        return (self._learner, *super()._compose())

    @property
    def version(self) -> int:
        return self._learner.steps

    @property
    def pending_batches(self) -> int:
        return self._learner.pending_batches

    @property
    def drift(self) -> float:
        return self._learner.drift

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        if learn and prediction.pending.parameters is None:
            raise ValueError(
                "This prediction was made with learn=False and has no graph to learn by; adapt to "
                "it with learn=False."
            )
        return super().adapt(prediction, learn=learn)

    def _gradient(self, prediction: Prediction) -> Gradient:
        assert prediction.pending.parameters is not None
        with torch.enable_grad():
            loss = self._loss(prediction)
        return gradient(loss, prediction.pending.parameters)

    @abstractmethod
    def _loss(self, prediction: Prediction) -> Loss: ...


class AffineMethod(LearningMethod, StatisticsMethod):
    """One that learns from each batch alone, over statistics of one's choice.

    A subclass predicts, keeping in `Prediction.pending` what its loss needs, and says what that
    loss is and when the optimizer steps.
    """

    _settings: AffineSettings

    def _answered(
        self,
        logits: Tensor,
        entropies: Tensor,
        selected: Tensor | None,
        look: Look,
        *,
        learn: bool,
        answer: Tensor | None = None,
        similarity: Tensor | None = None,
    ) -> Prediction:
        """The prediction of a pass.

        Args:
            logits: (N, K), which `entropies` (N,) are of, with their graph.
            selected: (N,); None: all images.
            learn: off, only the share in the statistics is kept.
            answer: (N, K), what is given out where it is not the logits.
        """
        pending = Pending(share=self._statistics.share(look))
        if learn:
            pending = Pending(self._learner.parameters, entropies, similarity, pending.share)
        if selected is None:
            selected = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        return Prediction.of(
            logits if answer is None else answer,
            entropies=entropies if answer is None else None,
            selected=selected,
            version=self.version,
            pending=pending,
        )

    def _learn(self, prediction: Prediction) -> Adaptation:
        images = len(prediction)
        return self._learner.learn(
            self._gradient(prediction),
            images=images,
            step=self._step_is_due(images),
            answered=images,
            lr=self._rate(images),
        )

    def _step_is_due(self, images: int) -> bool:
        """Whether the optimizer moves after the batch at hand, of that many images."""
        return True

    def _rate(self, images: int) -> float | None:
        """The learning rate of a step on that many images; None: the settings'."""
        return None
