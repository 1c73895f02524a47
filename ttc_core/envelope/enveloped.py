"""A method of one's own, kept inside an envelope from outside: its code need not know of any."""

import contextlib
from copy import copy
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from ttc_core.envelope.clauses import Envelope
from ttc_core.envelope.ledger import SECTION, Ledger
from ttc_core.envelope.limits import Limits, distance
from ttc_core.envelope.verdicts import Verdicts
from ttc_core.errors import UserError
from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods.contract import Adaptation, Method, Prediction, State


class Enveloped(Wrapper):
    """Holds what a method's state says of scales and shifts, its section "affine", inside.

    After each batch it is looked at; what is beyond is cut, and the method takes that up as it
    would a saved state. One that does not is reset. While no step may come the method learns from
    no batch. What its state does not have is not known.
    """

    def __init__(self, inner: Method, envelope: Envelope) -> None:
        super().__init__(inner)
        self._limits = Limits(inner.model, envelope)
        self._begin()

    def _begin(self) -> None:
        self._ledger = Ledger()
        self._parts = (self._ledger,)
        # (P,) as they were last seen; None: its state has none.
        self._known = self._seen()

    @property
    def envelope(self) -> Envelope:
        return self._limits.envelope

    @property
    def verdicts(self) -> Verdicts:
        return self._ledger.verdicts

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        answered, before = len(prediction), self._ledger.verdicts
        barred = self._barred(answered)
        if barred is not None and learn:
            self._ledger.dropped(barred)
        outcome = self.inner.adapt(prediction, learn=learn and barred is None)
        self._keep_within(outcome, answered)
        if outcome.skipped != "non_finite":
            self._ledger.commit(prediction, learned=outcome.skipped is None)
        return replace(outcome, verdicts=self._ledger.verdicts.since(before))

    def end(self) -> bool:
        barred = self._barred(0)
        if barred is not None and self.inner.pending_batches:
            self._ledger.dropped(barred)
        stepped = barred is None and self.inner.end()
        self._keep_within(Adaptation(stepped=stepped), 0)
        return stepped

    def _barred(self, answered: int) -> str | None:
        """The clause by which no step may come after so many images more; None: one may.

        A method that says what it adapts, and no scales and shifts among that, takes no steps.
        """
        if self.adapts and "affine" not in self.adapts:
            return None
        limits = self._limits
        if limits.none_may_move:
            return "parameters"
        if self._ledger.since_step + answered < limits.images_between_steps:
            return "steps_per_1000_images"
        return None

    def _keep_within(self, outcome: Adaptation, answered: int) -> None:
        """Cut what the method has moved too far."""
        # Looked at after each batch: a state may have some once they differ from the source's.
        moved = self._seen()
        has_moved = moved is not None and not torch.equal(moved, self._known_or_source)
        if has_moved or outcome.stepped:
            self._ledger.stepped(answered)
        if moved is None or not has_moved:
            self._known = moved
            return
        within, clauses = self._cut(moved, 1 / max(1, outcome.selected))
        for clause in clauses:
            self._ledger.cut(clause)
        self._known = self._imposed(within) if clauses else within

    def _cut(self, moved: Tensor, share: float) -> tuple[Tensor, list[str]]:
        """Parameters inside, and the clauses that they had gone beyond.

        Args:
            share: of the step, for the sake of one image.
        """
        limits, before, clauses = self._limits, self._known_or_source, list[str]()
        if not bool(moved.isfinite().all()):
            return before, ["drift"]
        within = limits.with_fixed(moved)
        if not torch.equal(within, moved):
            clauses.append("parameters")
        most = limits.envelope.image_in_step
        if share > most:
            clauses.append("image_in_step")
            within = torch.lerp(before, within, most / share)
        if limits.are_beyond(*self._measured(within)):
            within, beyond = limits.nearest(within)
            clauses += beyond
        return within, clauses

    def _imposed(self, parameters: Tensor) -> Tensor | None:
        """Have the method take parameters (P,) up; return those that it then has."""
        state = self.inner.state()
        named = self.model.affine_layout.views(parameters.clone())
        affine = {name: named.get(name, value) for name, value in state["affine"].items()}
        with contextlib.suppress(UserError):  # then it is as it was, or somewhere between
            self.inner.restore({**state, "affine": affine})
        taken = self._seen()
        if taken is not None and torch.equal(self._limits.with_fixed(taken), taken):
            drift, largest = self._measured(taken)
            if not self._limits.are_beyond(drift, largest):
                return taken
        self.inner.reset()
        return self._seen()

    def _seen(self) -> Tensor | None:
        """(P,) as they are; None where its state has none, or cannot be told."""
        try:
            return self._affine(self.inner.state())
        except UserError:
            return None

    @property
    def _known_or_source(self) -> Tensor:
        return self.model.source_affine if self._known is None else self._known

    def _measured(self, parameters: Tensor) -> tuple[float, float]:
        """Drift and largest change."""
        source = self.model.source_affine
        return float(distance(parameters, source)), float((parameters - source).abs().max())

    def _affine(self, state: State) -> Tensor | None:
        """(P,) what a state has in the place of the network's; None: nothing that fits."""
        layout, source = self.model.affine_layout, self.model.source_affine
        named: dict[str, Any] = layout.views(source)
        given = state.get("affine", {})
        if not given.keys() & named.keys():
            return None
        try:
            found = layout.flattened({**named, **{k: v for k, v in given.items() if k in named}})
        except (AttributeError, TypeError, ValueError):
            return None
        return found.to(source)

    def reset(self) -> None:
        self.inner.reset()
        self._ledger.reset()
        self._known = self._seen()

    def state(self) -> State:
        return {**self.inner.state(), **self._ledger.state()}

    def restore(self, state: State) -> None:
        """Go on from a state.

        Raises:
            OutsideEnvelopeError: it is outside; or what the method raises.
        """
        own = {name: each for name, each in state.items() if name != SECTION}
        affine = self._affine(own)
        if affine is not None:
            within = self.model.affine_layout.views(self._limits.taken_up(affine))
            own["affine"] = {name: within.get(name, each) for name, each in own["affine"].items()}
        self.inner.restore(own)
        self._ledger.restore(state)
        self._known = self._seen()

    def fork(self) -> Self:
        other = copy(self)
        other.inner = self.inner.fork()
        other._begin()
        return other
