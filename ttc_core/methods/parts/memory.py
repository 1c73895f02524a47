"""What a method keeps of the answers it gave."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttc_core.methods.contract import Pending, Prediction, State, UnsuitableNetworkError
from ttc_core.model import SourceModel
from ttc_core.normalization import wide
from ttc_core.objective import entropy


class LearnedBatches:
    """How many batches were learned from: what is drawn at random is drawn anew after each.

    Predicting or adapting to the same batch again draws the same.
    """

    def __init__(self) -> None:
        self.reset()

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        self.count += learned

    def reset(self) -> None:
        self.count = 0

    def state(self) -> State:
        return {"draws": {"learned_batches": self.count}}

    def restore(self, state: State) -> None:
        self.count = int(state["draws"]["learned_batches"])


class MeanAnswer:
    """The moving mean of the probabilities learned from (ETA's q).

    Args:
        momentum: share of the mean so far that a batch leaves.

    Attributes:
        value: (K,); None before the first.
    """

    def __init__(self, model: SourceModel, momentum: float) -> None:
        self._model, self._momentum = model, momentum
        self.value: Tensor | None = None

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        if not learned:
            return
        mean = prediction.probabilities[prediction.selected].mean(dim=0)
        if self.value is not None:
            mean = torch.lerp(mean, self.value, self._momentum)
        self.value = mean

    def reset(self) -> None:
        self.value = None

    def state(self) -> State:
        return {"mean_answer": {} if self.value is None else {"probabilities": self.value.clone()}}

    def restore(self, state: State) -> None:
        mean = state["mean_answer"].get("probabilities")
        if mean is not None and not (
            mean.shape == (self._model.classes,)
            and mean.is_floating_point()
            and mean.isfinite().all()
        ):
            raise ValueError("its mean answer is none of this network's")
        self.value = None if mean is None else mean.to(self._model.source_affine, copy=True)


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

    @classmethod
    def of_head(cls, model: SourceModel) -> "Supports":
        """The first supports: the rows of the head's weight, filed by the head's answer to them.

        Raises:
            UnsuitableNetworkError: the head is no linear layer.
        """
        head = model.module.get_submodule(model.split)
        weight = getattr(head, "weight", None)
        if not isinstance(head, nn.Linear | nn.Conv2d) or not isinstance(weight, Tensor):
            raise UnsuitableNetworkError(
                "t3a needs a linear layer (or a 1×1 convolution) as the network's last; "
                f"{model.split} is {type(head).__name__}."
            )
        rows = weight.detach().flatten(1).to(wide(weight.dtype))
        bias = None if head.bias is None else head.bias.detach().to(rows.dtype)
        return cls.of(rows, F.linear(rows, rows, bias))

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
class SupportsPending(Pending):
    """What the batch adds to the supports."""

    supports: Supports | None = None


class SupportMemory:
    """The supports of a stream: the head's own at first, then those of confident answers too.

    Args:
        first: of the source; shared by all streams.
        filter: how many a class keeps; -1: all.

    Attributes:
        kept: never written in place.
    """

    def __init__(self, first: Supports, classes: int, filter: int) -> None:
        self._first, self._classes, self._filter = first, classes, filter
        self.reset()

    @property
    def is_at_source(self) -> bool:
        """Whether what is kept is the head's own."""
        return torch.equal(self.kept.features, self._first.features)

    def with_batch(self, batch: Supports) -> Supports:
        """What is kept once a batch's own are added."""
        return self.kept.joined(batch, at_most=self._filter)

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        pending = prediction.pending
        assert isinstance(pending, SupportsPending)
        assert pending.supports is not None
        if learned:
            self.kept = self.with_batch(pending.supports)

    def reset(self) -> None:
        self.kept = self._first

    def state(self) -> State:
        return {"supports": {name: tensor.clone() for name, tensor in vars(self.kept).items()}}

    def restore(self, state: State) -> None:
        kept = Supports(
            **{
                name: tensor.to(getattr(self._first, name), copy=True)
                for name, tensor in state["supports"].items()
            }
        )
        if not kept.fit(self._first, classes=self._classes):
            raise ValueError("its supports are none of this network's")
        self.kept = kept
