"""Scales and shifts that a loss moves, step by step, and the gradients that wait for a step."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ttc_core.errors import ModelError, told
from ttc_core.flat import NamedTensors
from ttc_core.methods.contract import Adaptation, Prediction, State
from ttc_core.methods.settings import OptimizerSettings
from ttc_core.model import SourceModel
from ttc_core.together import Failed, answered, attempted

# Drift below which what was learned is gone: a thousandth of what a step moves.
NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class Loss:
    """What one batch's gradient is taken on; scalars.

    Attributes:
        total: on which backward is called.
        entropy, similarity: its terms, for the report only; None where there is none.
        selected: the number of images it is over.
    """

    total: Tensor
    entropy: Tensor
    selected: Tensor
    similarity: Tensor | None = None


@dataclass(frozen=True)
class Gradient:
    """The gradient of one batch's loss, and the loss's numbers on the host.

    Attributes:
        flat: (P,) over all adapted parameters.
        skipped: None, or why nothing is to be learned from it.
    """

    flat: Tensor
    total: float
    entropy: float
    similarity: float | None
    selected: int
    skipped: str | None


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
    terms = (loss.total, loss.entropy, similarity, loss.selected, flat.norm())
    # One transfer for all numbers: each would make a GPU wait.
    numbers = torch.stack([term.detach().to(flat.dtype) for term in terms])
    total, entropy_term, similarity_term, count, norm = numbers.tolist()
    skipped = None
    if count == 0:
        skipped = "none_selected"
    elif not (math.isfinite(total) and math.isfinite(norm)):
        skipped = "non_finite"
    return Gradient(
        flat=flat,
        total=total,
        entropy=entropy_term,
        similarity=None if loss.similarity is None else similarity_term,
        selected=int(count) if math.isfinite(count) else 0,
        skipped=skipped,
    )


class AffineLearner:
    """The affine parameters of one stream, their optimizer, and the gradients waiting for a step.

    No tensor of it is ever written in place: a step makes new ones, so that predictions made
    before it keep a valid graph, and what has not moved is the source's own.

    Args:
        learned_from: the part of the layers, in the order of the network, before which scales and
            shifts stay the source's.

    Attributes:
        parameters: (P,) all scales and shifts; what a batch's loss is differentiated by.
        steps: optimizer steps since the start or the last reset.
        pending_batches, pending_images: what waits for the next step.
        drift: ‖θ − θ_source‖₂ / ‖θ_source‖₂.
    """

    def __init__(
        self, model: SourceModel, settings: OptimizerSettings, *, learned_from: float = 0.0
    ) -> None:
        self._model, self._settings = model, settings
        of_layers = [name.rpartition(".")[0] for name in model.affine]
        layers = list(dict.fromkeys(of_layers))
        kept = layers[: round(learned_from * len(layers))]
        # How many of the parameters, the first ones, are kept.
        self._kept = sum(layer in kept for layer in of_layers)
        self.reset()

    def reset(self) -> None:
        """Back to the source's parameters, a fresh optimizer, nothing pending."""
        self._publish(self._model.source_affine)
        # What the optimizer keeps of the parameters, (P,) each, and its count of steps.
        self._optimizer: dict[str, Tensor] = {}
        self._pending: Tensor | None = None
        self.pending_batches = self.pending_images = self.steps = 0
        self.drift = 0.0

    def fade(self, share: float) -> None:
        """Let the parameters go a share, 0 to 1, of their way back to the source's."""
        if self.drift == 0 or share == 0:
            return
        faded = self._faded(share)
        # Measured, so that it is the same where a state is taken up.
        drift = self._measure(faded, ())[0]
        gone = drift < NEGLIGIBLE
        self._publish(self._model.source_affine if gone else faded)
        self.drift = 0.0 if gone else drift

    def _faded(self, share: float) -> Tensor:
        """(P,) the parameters that much nearer to the source's."""
        source, moved = self._model.source_affine, self.parameters.detach()
        if self.drift == 0 or share == 0:
            return moved
        faded = moved + share * (source - moved)
        # What is too short a way for rounding would stay for ever.
        return torch.where(faded == moved, torch.nextafter(moved, source), faded)

    def try_out(self) -> None:
        """Step on nothing, once: torch imports a second's worth of modules for it, which no batch
        should wait for."""
        nothing = torch.zeros(1)
        nothing.grad = torch.zeros(1)
        self._new_optimizer(nothing, 0.0).step()

    def _publish(self, parameters: Tensor) -> None:
        self.parameters = parameters.detach().requires_grad_()

    @property
    def affine(self) -> Mapping[str, Tensor]:
        """Scales and shifts under the network's own names, as a pass takes them."""
        layout = self._model.affine_layout
        return NamedTensors(layout, self.parameters, constants=self._kept)

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        """`learn` has moved everything."""

    def learn(
        self,
        batch: Gradient,
        *,
        images: int,
        step: bool,
        lr: float | None = None,
        fade: float = 0.0,
    ) -> Adaptation:
        """Add a batch's gradient to what waits, and step if it is time to.

        A gradient that is to be skipped leaves everything as it was; so does a step after which
        anything that lasts would not be finite.

        Args:
            images: how many were predicted.
            step: whether the optimizer moves after this batch.
            lr: of this step; None: the settings'.
            fade: the share of their way back to the source's that the parameters go before, 0 to 1.
        """
        if batch.skipped is not None:
            return Adaptation(skipped=batch.skipped, drift=self.drift)
        before = self._pending, self.pending_batches, self.pending_images
        self._pending = batch.flat if self._pending is None else self._pending + batch.flat
        self.pending_batches += 1
        self.pending_images += images
        if not step:
            self.fade(fade)
        elif not self.step(lr, fade=fade):
            self._pending, self.pending_batches, self.pending_images = before
            return Adaptation(skipped="non_finite", drift=self.drift)
        return Adaptation(
            loss=batch.total,
            entropy=batch.entropy,
            similarity=batch.similarity,
            selected=batch.selected,
            stepped=step,
            drift=self.drift,
        )

    def step(self, lr: float | None = None, *, fade: float = 0.0) -> bool:
        """Let the optimizer move the parameters by what waits; return whether it did.

        A step that would leave a number that is not finite is not made, nor do they fade then.
        """
        moved = self._faded(fade).clone()
        # A copy: some optimizers write into it (SGD with Nesterov's momentum on a GPU).
        moved.grad = None if self._pending is None else self._pending.clone()
        optimizer = self._new_optimizer(moved, self._settings.lr if lr is None else lr)
        optimizer.state[moved] = {key: value.clone() for key, value in self._optimizer.items()}
        try:
            optimizer.step()
        except RuntimeError as error:
            # A step too large for the parameters' type raises instead of overflowing.
            if "overflow" not in str(error):
                raise
            return False
        views = self._model.affine_layout.views(moved)
        for name in list(views)[: self._kept]:  # weight decay moves what has no gradient
            views[name].copy_(self._model.affine[name])
        kept = {k: v for k, v in optimizer.state[moved].items() if isinstance(v, Tensor)}
        drift, finite = self._measure(moved, kept.values())
        if not finite:
            return False
        self._publish(moved)
        self._optimizer, self._pending, self.drift = kept, None, drift
        self.pending_batches = self.pending_images = 0
        self.steps += 1
        return True

    def _new_optimizer(self, parameters: Tensor, lr: float) -> torch.optim.Optimizer:
        s = self._settings
        if s.optimizer == "sgd":
            return torch.optim.SGD(
                [parameters],
                lr=lr,
                weight_decay=s.weight_decay,
                momentum=s.optimizer_momentum,
                nesterov=s.nesterov,
            )
        return torch.optim.Adam(
            [parameters], lr=lr, weight_decay=s.weight_decay, betas=s.betas, eps=s.eps
        )

    def _measure(self, parameters: Tensor, others: Iterable[Tensor]) -> tuple[float, bool]:
        """The parameters' drift, and whether all is finite, in the network's precision too.

        One transfer to the host for both.
        """
        source = self._model.source_affine
        norm = source.norm()
        distance = (parameters - source).norm() / torch.where(norm > 0, norm, 1)
        largest = [tensor.abs().max().to(distance) for tensor in (parameters, *others)]
        for dtype in self._model.narrower:
            largest.append(parameters.to(dtype).abs().max().to(distance))
        drift, *numbers = torch.stack([distance, *largest]).tolist()
        return drift, all(map(math.isfinite, (drift, *numbers)))

    def copy(self) -> Self:
        """Another learner that goes on from here, on its own."""
        return copy(self)

    def state(self) -> State:
        """Copies of the parameters, the pending gradients, the optimizer's moments, counters.

        "affine", "gradients" and each moment of "optimizer" are under the network's own names.
        """
        layout = self._model.affine_layout
        pending = self._pending
        return {
            "affine": NamedTensors(layout, self.parameters.detach().clone()),
            "gradients": {} if pending is None else NamedTensors(layout, pending.clone()),
            "optimizer": {
                key: value.clone() if value.ndim == 0 else NamedTensors(layout, value.clone())
                for key, value in self._optimizer.items()
            },
            "counters": {
                "steps": self.steps,
                "pending_batches": self.pending_batches,
                "pending_images": self.pending_images,
            },
        }

    def restore(self, state: State) -> None:
        """Take up what `state` gave.

        Raises:
            KeyError, ValueError: it is of another network or optimizer.
        """
        layout, source = self._model.affine_layout, self._model.source_affine
        affine = layout.flattened(state["affine"]).to(source)
        waiting, counters = state["gradients"], state["counters"]
        # Adam counts its steps on the host, whatever the device of the parameters.
        self._optimizer = {
            key: value.to("cpu", copy=True)
            if isinstance(value, Tensor)
            else layout.flattened(value).to(source)
            for key, value in _by_moment(state["optimizer"]).items()
        }
        kept = {"adam": {"step", "exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}
        if self._optimizer and self._optimizer.keys() != kept[self._settings.optimizer]:
            raise ValueError(f"its optimizer kept {', '.join(self._optimizer)}")
        self._pending = layout.flattened(waiting).to(source) if waiting else None
        self._publish(affine)
        self.steps = int(counters["steps"])
        self.pending_batches = int(counters["pending_batches"])
        self.pending_images = int(counters["pending_images"])
        self.drift = self._measure(affine, ())[0]


def _by_moment(entries: Mapping[str, Any]) -> dict[str, Any]:
    """What an optimizer keeps, by its own names; a file has each moment as MOMENT:PARAMETER."""
    moments: dict[str, Any] = {}
    for key, value in entries.items():
        moment, colon, name = key.partition(":")
        if colon and moment != "step":
            moments.setdefault(moment, {})[name] = value
        elif moment == "step" and value.ndim:
            raise ValueError("its count of steps is no number")
        else:  # the former format has one count of steps for each parameter
            moments[moment] = value
    return moments
