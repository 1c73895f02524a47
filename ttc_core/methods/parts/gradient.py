"""The gradient of a batch's loss, and how those of several streams are taken in one."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor

from ttc_core.errors import ModelError, told
from ttc_core.together import Failed, answered, attempted


@dataclass(frozen=True)
class Loss:
    """What one batch's gradient is taken on; scalars.

    Attributes:
        total: on which backward is called.
        entropy, similarity: its terms, for the report only; None where there is none.
        selected: the number of images it is over.
        weights: (N,), what each image's own loss weighs in it; None: each selected one as much,
            and all of them 1.
    """

    total: Tensor
    entropy: Tensor
    selected: Tensor
    similarity: Tensor | None = None
    weights: Tensor | None = None


@dataclass(frozen=True)
class Gradient:
    """The gradient of one batch's loss, and the loss's numbers on the host.

    Attributes:
        flat: (P,) over all adapted parameters.
        skipped: None, or why nothing is to be learned from it.
        weight: of all its images in the loss; largest_weight: of the one that weighs most.
    """

    flat: Tensor
    total: float
    entropy: float
    similarity: float | None
    selected: int
    skipped: str | None
    weight: float = 1.0
    largest_weight: float = 1.0


def differentiated(loss: Tensor, given: Tensor, called: str) -> Tensor:
    """The gradient of a loss with respect to `given`; zeros where it does not depend on it.

    Of streams whose passes were one, the gradients are to be taken together: the graph is one, too.

    Raises:
        ModelError: the network lets no gradient through to what is `called` so.
    """
    found: Tensor = answered(_Slope(loss, given, called))
    return found


@dataclass(frozen=True, eq=False)
class _Slope:
    """A gradient that is wanted; see `differentiated`."""

    loss: Tensor
    given: Tensor
    called: str

    # Behind all passes: a graph of several streams is gone once it was used.
    turn: ClassVar[int] = 3

    @property
    def group(self) -> Hashable:
        return self.called if self.loss.requires_grad else None

    def alone(self) -> Tensor:
        (found,) = self._joined([self], again=False)
        return found

    @classmethod
    def at_once(cls, wanted: Sequence[Self]) -> Sequence[Tensor | Failed]:
        """All in one; where that fails, one for each, so that it is its own failure."""
        try:
            return cls._joined(wanted, again=True)
        except torch.OutOfMemoryError:
            raise  # one of a shared graph takes as much
        except Exception:  # a backward of somebody's own may raise anything
            found = [attempted(partial(cls._joined, [each], again=True)) for each in wanted]
            return [each if isinstance(each, Failed) else each[0] for each in found]

    @classmethod
    def _joined(cls, wanted: Sequence[Self], *, again: bool) -> Sequence[Tensor]:
        """The gradients of the losses' sum, of which each has its own part.

        Args:
            again: whether their graph may be asked once more.
        """
        losses, given = [each.loss for each in wanted], [each.given for each in wanted]
        try:
            slopes = torch.autograd.grad(losses, given, retain_graph=again, allow_unused=True)
        except torch.OutOfMemoryError:
            raise  # fewer images may fit
        except RuntimeError as error:
            raise ModelError(
                f"The network lets no gradient through to {wanted[0].called} ({told(error)}); its "
                "forward must not run under no_grad or inference_mode, nor detach what it computes."
            ) from error
        return [
            torch.zeros_like(each) if slope is None else slope
            for each, slope in zip(given, slopes, strict=True)
        ]


def gradient(loss: Loss, parameters: Tensor) -> Gradient:
    """Differentiate a loss with respect to the parameters (P,) a batch was predicted with.

    A loss over nothing, and one that is not finite or has such a gradient, is marked to be skipped.

    Raises:
        ModelError: the network lets no gradient through.
    """
    flat = differentiated(loss.total, parameters, "its scales and shifts")
    similarity = loss.entropy if loss.similarity is None else loss.similarity
    terms = [loss.total, loss.entropy, similarity, loss.selected, flat.norm()]
    if loss.weights is not None:
        terms += [loss.weights.sum(), loss.weights.max()]
    # One transfer for all numbers: each would make a GPU wait.
    numbers = torch.stack([term.detach().to(flat.dtype) for term in terms])
    total, entropy_term, similarity_term, count, norm, *weights = numbers.tolist()
    skipped = None
    if count == 0:
        skipped = "none_selected"
    elif not (math.isfinite(total) and math.isfinite(norm)):
        skipped = "non_finite"
    weight, largest = weights or (1.0, 1 / max(1.0, count))
    return Gradient(
        flat=flat,
        total=total,
        entropy=entropy_term,
        similarity=None if loss.similarity is None else similarity_term,
        selected=int(count) if math.isfinite(count) else 0,
        skipped=skipped,
        weight=weight,
        largest_weight=largest,
    )
