"""T3A: answer by the nearest of class prototypes, which confident features of the stream adjust.

No gradient; the network stays, its last layer is replaced by the prototypes. Source: Iwasawa and
Matsuo, "Test-Time Classifier Adjustment Module for Model-Agnostic Domain Generalization",
NeurIPS 2021; METHOD §1.4. The batch's own features count in its answer.
"""

from copy import copy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from ttc_core.methods.contract import (
    Adaptation,
    Pending,
    Prediction,
    State,
    UnsuitableNetworkError,
)
from ttc_core.methods.settings import StatisticsSettings, StatisticsSource
from ttc_core.methods.source import unselected_prediction
from ttc_core.methods.views import stream_statistics
from ttc_core.model import SourceModel
from ttc_core.normalization import wide
from ttc_core.objective import entropy


def _some(count: int) -> int:
    if count == 0:
        raise ValueError("no support would be left; 1 or more are accepted, or -1 for all")
    return count


class T3ASettings(StatisticsSettings):
    """T3A's hyperparameters."""

    statistics: StatisticsSource = Field(
        "source", description="source (its authors), batch, moving"
    )
    filter: Annotated[int, AfterValidator(_some)] = Field(
        100, ge=-1, description="supports a class keeps (M); -1: all"
    )


@dataclass(frozen=True)
class Supports:
    """Features filed under the class they were answered with.

    Attributes:
        features: (S, D), L2-normalised.
        entropy: (S,), nats, of the source head's answer.
        classes: (S,), in 0 … K − 1.
    """

    features: Tensor
    entropy: Tensor
    classes: Tensor

    @classmethod
    def of(cls, features: Tensor, logits: Tensor) -> "Supports":
        """File features (S, D) by the head's answers (S, K) to them."""
        return cls(F.normalize(features, dim=1), entropy(logits), logits.argmax(dim=1))

    def joined(self, others: "Supports", *, at_most: int) -> "Supports":
        """Add others behind these; keep the `at_most` of lowest entropy a class, -1 for all.

        What is dropped could not come back: it will always have as many of lower entropy beside it.
        """
        entropies = torch.cat((self.entropy, others.entropy))
        classes = torch.cat((self.classes, others.classes))
        features = torch.cat((self.features, others.features))
        if at_most < 0:
            return Supports(features, entropies, classes)
        # By class, and within it by entropy; stable, so that the earlier of equals is kept.
        order = entropies.argsort(stable=True)
        order = order[classes[order].argsort(stable=True)]
        first = torch.searchsorted(classes[order], classes[order])
        rank = torch.arange(len(order), device=order.device) - first
        kept = order[rank < at_most].sort().values  # as they came
        return Supports(features[kept], entropies[kept], classes[kept])

    def fit(self, others: "Supports", *, classes: int) -> bool:
        """Whether these could stand beside others: shapes, finite numbers, classes 0 … K − 1."""
        count = len(self.classes)
        return (
            self.features.shape == (count, *others.features.shape[1:])
            and self.entropy.shape == self.classes.shape == (count,)
            and bool(self.features.isfinite().all() and self.entropy.isfinite().all())
            and bool(((self.classes >= 0) & (self.classes < classes)).all())
        )

    def prototypes(self, count: int) -> Tensor:
        """(K, D): each class's summed supports, L2-normalised; zero for a class without any."""
        sums = self.features.new_zeros(count, self.features.shape[1])
        return F.normalize(sums.index_add_(0, self.classes, self.features), dim=1)


@dataclass(frozen=True)
class T3APending(Pending):
    """What the batch adds to the supports."""

    supports: Supports | None = None


class T3A:
    """Prototypes in place of the last layer; adapting files the batch's features."""

    adapts: ClassVar[frozenset[str]] = frozenset({"supports", "moments"})
    Settings: ClassVar[type[T3ASettings]] = T3ASettings
    selects: ClassVar[bool] = False
    version = pending_batches = 0
    drift = 0.0

    def __init__(self, model: SourceModel, **settings: Any) -> None:
        self._settings = self.Settings.create("t3a", model.classes, settings)
        self.model = model
        self._statistics = stream_statistics(model, self._settings)
        self._first_supports = _head_supports(model)
        self._supports = self._first_supports

    @property
    def settings(self) -> dict[str, Any]:
        return self._settings.model_dump()

    @torch.no_grad()
    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        inputs = self.model.normalize(self.model.to_unit(images))
        look = self._statistics.look(len(inputs))
        output = self.model.run(inputs, look=look)
        # A row that is no number must not become the prototype of others.
        sound = output.logits.isfinite().all(dim=1) & output.features.isfinite().all(dim=1)
        own = Supports.of(output.features[sound], output.logits[sound])
        supports = self._supports.joined(own, at_most=self._settings.filter)
        logits = output.features @ supports.prototypes(self.model.classes).T
        pending = T3APending(share=self._statistics.share(look), supports=own)
        return unselected_prediction(logits, pending)

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        if not prediction.can_teach():
            return Adaptation(skipped="non_finite")
        pending = prediction.pending
        assert isinstance(pending, T3APending)
        assert pending.supports is not None
        self._statistics.commit(pending.share)
        if not learn:
            return Adaptation(skipped="shed")
        self._supports = self._supports.joined(pending.supports, at_most=self._settings.filter)
        return Adaptation()

    def reset(self) -> None:
        self._supports = self._first_supports
        self._statistics.reset()

    def state(self) -> State:
        """The supports and the moments."""
        supports = {name: tensor.clone() for name, tensor in vars(self._supports).items()}
        return {"supports": supports, "moments": self._statistics.state()}

    def restore(self, state: State) -> None:
        supports = Supports(
            **{
                name: tensor.to(getattr(self._first_supports, name), copy=True)
                for name, tensor in state["supports"].items()
            }
        )
        if not supports.fit(self._first_supports, classes=self.model.classes):
            raise ValueError("its supports are none of this network's")
        self._supports = supports
        self._statistics.restore(state["moments"])

    def fork(self) -> Self:
        other = copy(self)  # the first supports are shared: they are never written to
        other._statistics = stream_statistics(self.model, self._settings)
        other.reset()
        return other


def _head_supports(model: SourceModel) -> Supports:
    """The first supports: the rows of the head's weight, filed by the head's answer to them."""
    head = model.module.get_submodule(model.split)
    weight = getattr(head, "weight", None)
    if not isinstance(head, nn.Linear | nn.Conv2d) or not isinstance(weight, Tensor):
        raise UnsuitableNetworkError(
            f"t3a needs a linear layer (or a 1×1 convolution) as the network's last; {model.split} "
            f"is {type(head).__name__}."
        )
    rows = weight.detach().flatten(1).to(wide(weight.dtype))
    bias = None if head.bias is None else head.bias.detach().to(rows.dtype)
    return Supports.of(rows, F.linear(rows, rows, bias))
