"""Scales and shifts that a loss moves, step by step, and the gradients that wait for a step."""

import math
from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor

from ttc_core.envelope.ledger import Ledger
from ttc_core.envelope.limits import Limits, distance
from ttc_core.flat import NamedTensors
from ttc_core.methods.contract import Adaptation, Prediction, State
from ttc_core.methods.parts import bounded
from ttc_core.methods.parts.gradient import Gradient
from ttc_core.methods.settings import OptimizerSettings
from ttc_core.model import SourceModel
from ttc_core.undo import undo_of

# Drift below which what was learned is gone: a thousandth of what a step moves.
NEGLIGIBLE = 1e-6


class AffineLearner:
    """The affine parameters of one stream, their optimizer, and the gradients waiting for a step.

    No tensor of it is ever written in place: a step makes new ones, so that predictions made
    before it keep a valid graph, and what has not moved is the source's own.

    Args:
        learned_from: the part of the layers, in the order of the network, before which scales and
            shifts stay the source's.
        limits: where they may be; None: anywhere.
        ledger: what has to be known of the stream to stay within.

    Attributes:
        parameters: (P,) all scales and shifts; what a batch's loss is differentiated by.
        steps: optimizer steps since the start or the last reset.
        pending_batches, pending_images: what waits for the next step.
        pending_weight, pending_largest: of the images in it, as of `Gradient`.
        drift: ‖θ − θ_source‖₂ / ‖θ_source‖₂.
    """

    def __init__(
        self,
        model: SourceModel,
        settings: OptimizerSettings,
        *,
        learned_from: float = 0.0,
        limits: Limits | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._model, self._settings = model, settings
        self._limits, self._ledger = limits or Limits(model), ledger or Ledger()
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
        self.steps = 0
        self.drift = 0.0
        self._drop()

    def _drop(self) -> None:
        """Let what waits for a step be gone."""
        self._pending: Tensor | None = None
        self.pending_batches = self.pending_images = 0
        self.pending_weight = self.pending_largest = 0.0

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
        answered: int = 0,
        lr: float | None = None,
        fade: float = 0.0,
    ) -> Adaptation:
        """Add a batch's gradient to what waits, and step if it is time to.

        A gradient that is to be skipped leaves everything as it was; so does a step after which
        anything that lasts would not be finite.

        Args:
            images: how many of them count for a step that is due after so many.
            step: whether the optimizer moves after this batch.
            answered: how many were predicted.
            lr: of this step; None: the settings'.
            fade: the share of their way back to the source's that the parameters go before, 0 to 1.
        """
        if batch.skipped is not None:
            return Adaptation(skipped=batch.skipped, drift=self.drift)
        undo = undo_of(self, self._ledger)
        self._pending = batch.flat if self._pending is None else self._pending + batch.flat
        self.pending_batches += 1
        self.pending_images += images
        self.pending_weight += batch.weight
        self.pending_largest = max(self.pending_largest, batch.largest_weight)
        if step and not self._may_step(answered):
            step = False
            self._drop()
        if not step:
            self.fade(fade)
        elif not self.step(lr, fade=fade, answered=answered):
            undo()
            return Adaptation(skipped="non_finite", drift=self.drift)
        return Adaptation(
            loss=batch.total,
            entropy=batch.entropy,
            similarity=batch.similarity,
            selected=batch.selected,
            stepped=step,
            drift=self.drift,
        )

    def _may_step(self, answered: int) -> bool:
        """Whether the limits allow a step after so many images more; if not, that is noted."""
        limits, ledger = self._limits, self._ledger
        if limits.none_may_move:
            ledger.dropped("parameters")
        elif ledger.since_step + answered < limits.images_between_steps:
            ledger.dropped("steps_per_1000_images")
        else:
            return True
        return False

    def end(self) -> bool:
        """Step on what waits, since nothing comes any more; return whether that was done."""
        return self.pending_batches > 0 and self._may_step(0) and self.step()

    def step(self, lr: float | None = None, *, fade: float = 0.0, answered: int = 0) -> bool:
        """Let the optimizer move the parameters by what waits; return whether it did.

        A step that would leave a number that is not finite is not made, nor do they fade then. One
        that goes beyond the limits is cut.
        """
        before = self._faded(fade)
        moved = before.clone()
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
        moved, clauses = self._limits.with_fixed(moved), list[str]()
        if self._limits.fixed is not None:
            clauses.append("parameters")
        most = self._limits.envelope.image_in_step
        if self.pending_largest > most * self.pending_weight:
            clauses.append("image_in_step")
            share = most * self.pending_weight / self.pending_largest
            moved = torch.lerp(before, moved, share)
            # Else the steps behind would make up for what this one lacks. The mean of squares is
            # kept whole: a smaller one would have them go further.
            for name in kept.keys() & {"exp_avg", "momentum_buffer"}:
                old = self._optimizer.get(name, torch.zeros_like(kept[name]))
                kept[name] = torch.lerp(old, kept[name], share)
        drift, largest, finite = self._measure(moved, kept.values())
        if not finite:
            return False
        if self._limits.are_beyond(drift, largest):
            moved, beyond = self._limits.nearest(moved)
            clauses += beyond
            drift = self._measure(moved, ())[0]
        for clause in clauses:
            self._ledger.cut(clause)
        self._ledger.stepped(answered)
        self._publish(moved)
        self._optimizer, self.drift = kept, drift
        self._drop()
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

    def _measure(self, parameters: Tensor, others: Iterable[Tensor]) -> tuple[float, float, bool]:
        """The parameters' drift, the largest change of one, and whether all is finite, in the
        network's precision too.

        One transfer to the host for all.
        """
        source = self._model.source_affine
        drift = distance(parameters, source)
        found = [drift, (parameters - source).abs().max()]
        found += [tensor.abs().max().to(drift) for tensor in (parameters, *others)]
        for dtype in self._model.narrower:
            found.append(parameters.to(dtype).abs().max().to(drift))
        numbers = torch.stack(found).tolist()
        return numbers[0], numbers[1], all(map(math.isfinite, numbers))

    def copy(self) -> Self:
        """Another learner that goes on from here, on its own."""
        other = copy(self)
        other._ledger = copy(self._ledger)
        return other

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
                "pending_weight": self.pending_weight,
                "pending_largest": self.pending_largest,
            },
        }

    def restore(self, state: State) -> None:
        """Take up what `state` gave.

        Raises:
            KeyError, ValueError: it is of another network or optimizer.
            OutsideEnvelopeError: it is outside of the limits.
        """
        layout, source = self._model.affine_layout, self._model.source_affine
        affine = self._limits.taken_up(layout.flattened(state["affine"]).to(source))
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
        # A former version has none: then one image may be all of each batch.
        self.pending_weight = bounded(counters.get("pending_weight", self.pending_batches))
        self.pending_largest = bounded(counters.get("pending_largest", self.pending_batches > 0))
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
