"""What every method is: predict, adapt, reset, state, restore, fork. DESIGN of the contract.

`predict` answers and changes nothing; `adapt` learns from that same prediction and says what
happened. A stream of images is one method object on the shared source model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import get_total_norm

from ttc_core.envelope.clauses import Envelope
from ttc_core.envelope.verdicts import NO_VERDICTS, Verdicts
from ttc_core.errors import UserError
from ttc_core.model import SourceModel
from ttc_core.objective import entropy
from ttc_core.undo import Undo

if TYPE_CHECKING:
    from ttc_core.guard.estimate import Estimates

# How an image was answered: by what adapts, by the source since that is safer, by a state from
# before to which the stream was brought back lately, or by what has adapted and learns no more
# while the stream stays as it is.
MODES = ADAPTING, HELD, ROLLED_BACK, SETTLED = "adapting", "held", "rolled_back", "settled"

# Of settings and of a state's sections, those of what watches over a method; and of all that is
# around it: a saved state fits whatever they are.
WATCHING = ("frames", "guard")
ON_SHIFT = "on_shift"
AROUND = (*WATCHING, ON_SHIFT)

# Tensors, numbers and texts, by section.
State = Mapping[str, Mapping[str, Any]]


class Share(Protocol):
    """What one batch adds to the statistics that its stream follows."""

    def tensors(self) -> Sequence[Tensor]:
        """All its numbers; one that is not finite would spoil every later answer."""


class UnsuitableNetworkError(ValueError):
    """The network lacks what a method needs; the sentence says what."""


class SnapshotError(UserError):
    """A snapshot is there, and the method does not take it up; the text says why."""


@dataclass(frozen=True)
class Pending:
    """What `adapt` needs of a prediction; a method that needs more has a subclass of its own.

    Attributes:
        parameters: those that the batch was answered with; None where no graph was kept.
        entropy, similarity: (N,), the terms of the loss, with their graph.
        share: what the batch adds to the statistics.
        images: (N, 3, H, W) in [0, 1], for a part that learns from them later.
        after: what parts will be once the batch is committed, by the section of their state.
    """

    parameters: Tensor | None = None
    entropy: Tensor | None = None
    similarity: Tensor | None = None
    share: Share | None = None
    images: Tensor | None = None
    after: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Beside:
    """What the frozen source answered to some images of a batch, in the shadow of what is served.

    Attributes:
        rows: which images, n of them in ascending order.
        logits: (n, K), of one view.
    """

    rows: Sequence[int]
    logits: Tensor


class Answers(NamedTuple):
    """The classes that two answer an image with: the method, given out or not, and the source."""

    method: int
    source: int


Right = tuple[bool, bool]
"""Whether the method's answer to an image is right, and whether the source's."""


@dataclass(frozen=True)
class Prediction:
    """The answers to a batch of N images, on the model's device, without gradient.

    Attributes:
        logits: (N, K), the network's.
        probabilities: (N, K), the answers; rows sum to 1. Of a method with a prior they are not the
            logits' alone.
        entropy: (N,), of the probabilities; nats, in [0, ln K].
        selected: (N,) bool, the images that `adapt` will learn from.
        version: optimizer steps the method had taken when it answered.
        pending: private to the method that made it.
        suspects: N, the kind of fault where an image looks like a faulty camera's, else None;
            empty: nobody looked.
        modes: N of MODES; empty: all are the first.
        beside: what the source answered to some of the images; None: it was not asked.
        compared: N, what both answered an image with that a guard compares, else None; empty:
            there is no guard.
    """

    logits: Tensor
    probabilities: Tensor
    entropy: Tensor
    selected: Tensor
    version: int
    pending: Pending = field(default_factory=Pending, repr=False)
    suspects: tuple[str | None, ...] = ()
    modes: tuple[str, ...] = ()
    beside: Beside | None = None
    compared: tuple[Answers | None, ...] = ()

    @classmethod
    def of(
        cls,
        logits: Tensor,
        *,
        entropies: Tensor | None = None,
        selected: Tensor | None = None,
        version: int = 0,
        pending: Pending | None = None,
    ) -> Self:
        """The prediction that logits (N, K) make.

        Args:
            entropies: (N,), where they are known.
            selected: (N,); None: no image is selected to learn from.
        """
        logits = logits.detach()
        return cls(
            logits=logits,
            probabilities=logits.softmax(dim=1),
            entropy=entropy(logits) if entropies is None else entropies.detach(),
            selected=torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
            if selected is None
            else selected,
            version=version,
            pending=pending or Pending(),
        )

    def __len__(self) -> int:
        return len(self.logits)

    def is_finite(self) -> bool:
        """Whether every logit is a number."""
        return bool(self.logits.isfinite().all())

    def can_teach(self) -> bool:
        """Whether every logit is a number, and all that the batch would add to the statistics."""
        share = self.pending.share
        if share is None:
            return self.is_finite()
        # One transfer for both: each would make a GPU wait.
        tensors = [self.logits, *share.tensors()]
        return bool(get_total_norm(tensors, norm_type=math.inf).isfinite())

    def to_host(self) -> "HostPrediction":
        """Copy the answers to the host, in one transfer."""
        packed = torch.cat(
            (
                self.logits,
                self.probabilities,
                self.entropy[:, None],
                self.selected[:, None].to(self.logits.dtype),
            ),
            dim=1,
        )
        # numpy has no bfloat16.
        table = (packed.float() if packed.dtype == torch.bfloat16 else packed).cpu().numpy()
        classes = self.logits.shape[1]
        return HostPrediction(
            logits=table[:, :classes],
            probabilities=table[:, classes : 2 * classes],
            entropy=table[:, -2],
            selected=table[:, -1] > 0.5,
            version=self.version,
            suspects=self.suspects,
            modes=self.modes,
            compared=self.compared,
        )


@dataclass(frozen=True)
class HostPrediction:
    """A `Prediction` on the host: numpy arrays of the same names and shapes."""

    logits: NDArray[np.floating[Any]]
    probabilities: NDArray[np.floating[Any]]
    entropy: NDArray[np.floating[Any]]
    selected: NDArray[np.bool_]
    version: int
    suspects: tuple[str | None, ...] = ()
    modes: tuple[str, ...] = ()
    compared: tuple[Answers | None, ...] = ()

    @cached_property
    def sound(self) -> NDArray[np.bool_]:
        """(N,) which rows are answers: all their numbers are finite."""
        table = (self.logits, self.probabilities, self.entropy[:, None])
        return np.asarray(np.isfinite(np.concatenate(table, axis=1)).all(axis=1))

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """(N,) the most probable class of each image; of several, the one of the highest logit."""
        most = self.probabilities == self.probabilities.max(axis=1, keepdims=True)
        best: NDArray[np.int64] = np.where(most, self.logits, -np.inf).argmax(axis=1)
        return best


@dataclass(frozen=True)
class Act:
    """What a guard did.

    Attributes:
        action: "hold", "release", "roll_back" or "reset".
        reason: "suspicion", "harm", "gain" or "no_gain".
        evidence: numbers that led to it, by name.
        observed: it would have, but is only to observe.
    """

    action: str
    reason: str
    evidence: Mapping[str, float]
    observed: bool = False


@dataclass(frozen=True)
class Adaptation:
    """What `adapt` did.

    Attributes:
        loss: the number on which the gradient was taken; None when none was.
        entropy, similarity: its terms, means over the selected images; None where there is none.
        selected: how many images were learned from.
        stepped: whether the optimizer moved the parameters.
        skipped: None, or why nothing was learned: "none_selected", "non_finite", "shed",
            "suspect" or "settled".
        drift: ‖θ − θ_source‖₂ / ‖θ_source‖₂ over the adapted parameters afterwards.
        acts: what a guard did then.
        verdicts: what an envelope cut or dropped of it.
    """

    loss: float | None = None
    entropy: float | None = None
    similarity: float | None = None
    selected: int = 0
    stepped: bool = False
    skipped: str | None = None
    drift: float = 0.0
    acts: Sequence[Act] = ()
    verdicts: Verdicts = NO_VERDICTS


class Weighed(NamedTuple):
    """What a guard made of labels: how many it weighed, from the first on, and what it did."""

    labels: int = 0
    acts: Sequence[Act] = ()


class Method(Protocol):
    """A way to answer and to adapt. A class of one's own is `Class(source_model, **settings)`.

    Attributes:
        adapts: what `adapt` may move: "affine", "moments", "supports"; empty for nothing.
        selects: whether `Prediction.selected` means anything.
        contextual: whether the images before have a say in an answer; then `predict` takes
            `context`, (N,) truth values: off, the prior neither weighs in an image's answer nor
            follows it; whatever else adapts does.
        model: the shared source model.
        settings: every hyperparameter used, by name.
    """

    model: SourceModel

    @property
    def adapts(self) -> frozenset[str]: ...

    @property
    def selects(self) -> bool: ...

    @property
    def contextual(self) -> bool: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def version(self) -> int:
        """Optimizer steps taken since the start or the last reset."""

    @property
    def pending_batches(self) -> int:
        """Batches whose gradients wait for the next step."""

    @property
    def drift(self) -> float:
        """‖θ − θ_source‖₂ / ‖θ_source‖₂ over the adapted parameters; 0 where none adapt."""

    @property
    def envelope(self) -> Envelope:
        """What it may change."""

    @property
    def verdicts(self) -> Verdicts:
        """What an envelope made of steps since the start or the last reset, by clause."""

    @property
    def second_view_off(self) -> bool:
        """Whether a second view was seen to mean something else, and is left out since."""

    @property
    def looks_twice(self) -> bool:
        """Whether the next images are looked at twice, and may be looked at once: then `predict`
        takes `second_view`: off, there is no second view, and nothing comes of what it would have
        told."""

    @property
    def shares(self) -> bool:
        """Whether its passes may have rows of other streams (`ttc_core.together`)."""

    @property
    def record_temperature(self) -> float | None:
        """That of the calibration record its probabilities are told with; None: without one."""

    @property
    def details(self) -> Mapping[str, float]:
        """What else there is to see of the stream, by name; finite numbers."""

    @property
    def mode(self) -> str:
        """How the next image will be answered, of MODES."""

    @property
    def estimates(self) -> "Estimates | None":
        """The accuracy of late without labels; None: no guard has compared an image yet."""

    @property
    def snapshots(self) -> Mapping[int, int]:
        """The versions that `roll_back` can go back to, and after how many images each was."""

    def roll_back(self, to: int | None = None) -> int:
        """Go back to a snapshot, the last one if none is named; return its version.

        Raises:
            LookupError: there is none.
            SnapshotError: it could not be taken up; the method is as it was.
        """

    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        """Answer images (N, 3, H, W), uint8 or float in [0, 1]. Changes nothing.

        Args:
            learn: off, the answers are the same and no graph is kept: then only
                `adapt(…, learn=False)` may follow. A method that learns by gradients raises
                ValueError at another.

        Raises:
            ModelError: the network failed on them.
        """

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        """Learn from a batch just answered, once. With `learn` off only moving statistics move."""

    def weigh(self, right: Sequence[Right]) -> Weighed:
        """Labels came for images that were compared, each once; say what a guard made of them.

        Args:
            right: of each, in the order of the images, whether the method's answer is, and whether
                the source's. None was answered before the stream was last brought back or reset.
        """

    def end(self) -> bool:
        """The stream is over: return whether a last step was taken."""

    def reset(self) -> None:
        """Back to the source, bit for bit: parameters, statistics, optimizer, counters."""

    def state(self) -> State:
        """Everything that adaptation moved, as a copy; see `ttc_core.state`."""

    def restore(self, state: State) -> None:
        """Take up a state that a method of the same kind and settings gave."""

    def undo_point(self) -> Undo:
        """What puts the method back to how it is now, whatever moves or fails until then. It is
        cheap enough to be asked for before every batch: ours keep what they replace, a user's own
        gives its state."""

    def fork(self) -> Self:
        """Another stream on the same model, at the source, with the same settings."""
