"""A method around another: what a subclass does not change is the inner one's."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor

from ttc_core.envelope.clauses import Envelope
from ttc_core.envelope.verdicts import Verdicts
from ttc_core.guard.estimate import Estimates
from ttc_core.methods.contract import Adaptation, Method, Prediction, Right, State, Weighed
from ttc_core.undo import Undo, undo_of


class Wrapper:
    """The contract of a method, kept by the one inside."""

    # What it is made of besides, that follows the stream: replaced, never written in place.
    _parts: Sequence[object] = ()

    def __init__(self, inner: Method) -> None:
        self.inner = inner
        self.model = inner.model

    @property
    def adapts(self) -> frozenset[str]:
        return self.inner.adapts

    @property
    def selects(self) -> bool:
        return self.inner.selects

    @property
    def contextual(self) -> bool:
        return self.inner.contextual

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.inner.settings

    @property
    def version(self) -> int:
        return self.inner.version

    @property
    def pending_batches(self) -> int:
        return self.inner.pending_batches

    @property
    def drift(self) -> float:
        return self.inner.drift

    @property
    def envelope(self) -> Envelope:
        return self.inner.envelope

    @property
    def verdicts(self) -> Verdicts:
        return self.inner.verdicts

    @property
    def second_view_off(self) -> bool:
        return self.inner.second_view_off

    @property
    def looks_twice(self) -> bool:
        return self.inner.looks_twice

    @property
    def shares(self) -> bool:
        return self.inner.shares

    @property
    def record_temperature(self) -> float | None:
        return self.inner.record_temperature

    @property
    def details(self) -> Mapping[str, float]:
        return self.inner.details

    @property
    def mode(self) -> str:
        return self.inner.mode

    @property
    def estimates(self) -> Estimates | None:
        return self.inner.estimates

    @property
    def snapshots(self) -> Mapping[int, int]:
        return self.inner.snapshots

    def roll_back(self, to: int | None = None) -> int:
        return self.inner.roll_back(to)

    def predict(self, images: Tensor, *, learn: bool = True, **asked: Any) -> Prediction:
        return self.inner.predict(images, learn=learn, **asked)

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        return self.inner.adapt(prediction, learn=learn)

    def weigh(self, right: Sequence[Right]) -> Weighed:
        return self.inner.weigh(right)

    def end(self) -> bool:
        return self.inner.end()

    def reset(self) -> None:
        self.inner.reset()

    def state(self) -> State:
        return self.inner.state()

    def restore(self, state: State) -> None:
        self.inner.restore(state)

    def undo_point(self) -> Undo:
        undo_inner, undo_own = self.inner.undo_point(), undo_of(self, *self._parts)

        def undo() -> None:
            undo_inner()
            undo_own()

        return undo

    def fork(self) -> Self:
        return type(self)(self.inner.fork())
