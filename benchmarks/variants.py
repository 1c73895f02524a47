"""The default method with a part of it out, or set otherwise: the lines of `benchmarks.study`.

Where a setting leaves a part out, the setting does. The classes are for the others; each is a
method by its name: `ttc evaluate bundled --methods benchmarks.variants:OpenLateLayers`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ttc_core.methods import DEFAULT_METHOD
from ttc_core.methods.contract import Prediction
from ttc_core.methods.parts import Numbers, Part
from ttc_core.methods.parts.conditions import Conditions
from ttc_core.methods.parts.diversity import Classes, Diversity
from ttc_core.methods.parts.prior import TemporalPrior
from ttc_core.methods.parts.shadow import Compared, Shadow
from ttc_core.methods.ttc_stream import TTCStream, TTCStreamSettings
from ttc_core.presets import Variant


class WithOtherParts(TTCStream):
    """The default, some of whose parts are of classes derived from theirs."""

    others: ClassVar[Sequence[type[Part]]] = ()

    def _compose(self) -> Sequence[Part]:
        parts = super()._compose()
        for other in self.others:
            for part in parts:
                if issubclass(other, type(part)):
                    # However it was made: this does not repeat what the default gives its parts.
                    part.__class__ = other
                    part.reset()
        return parts


class _AlwaysDiverse(Diversity):
    """Late layers follow from the first image on; learning waits as it does."""

    def reset(self) -> None:
        super().reset()
        self.classes = replace(self.classes, opening=1.0)  # as it never falls


class _EvenlyWeighted(Classes):
    @property
    def expected_weight(self) -> float:
        return 1.0


class _Undoubting(Shadow):
    def doubt_of(self, compared: Compared) -> float:
        return 0.0


class _NeverNarrowed(Classes):
    @property
    def narrowed(self) -> bool:
        return False


class _OtherClasses(Diversity):
    """What follows from the classes is another kind's."""

    kind: type[Classes]

    def reset(self) -> None:
        super().reset()
        self.classes = self.kind(**vars(self.classes))

    def after(self, probabilities: Tensor) -> Classes:
        return self.kind(**vars(super().after(probabilities)))


class _Unweighted(_OtherClasses):
    kind = _EvenlyWeighted

    def after(self, probabilities: Tensor) -> Classes:
        finite = torch.isfinite(probabilities).all(dim=1).double().cpu().numpy()
        return replace(super().after(probabilities), weights=finite)


class _Unfrozen(_OtherClasses):
    kind = _NeverNarrowed


class _AgainstEven(TemporalPrior):
    """An expert's evidence is how well it fits an answer, over how well an even one does."""

    def _tempered(self, usual: Numbers) -> Numbers:
        return np.full_like(usual, 1 / usual.shape[1])


class _OneCondition(Conditions):
    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        """Light and weather are always those of before."""


class OneCondition(WithOtherParts):
    """Conditions that change are followed, but not told apart."""

    others = (_OneCondition,)


class OpenLateLayers(WithOtherParts):
    """Late layers follow the stream from the first image on."""

    others = (_AlwaysDiverse,)


class UnweightedLateLayers(WithOtherParts):
    """Every image counts alike in late layers, whatever its class."""

    others = (_Unweighted,)


class Undoubted(WithOtherParts):
    """Statistics follow the stream as much where the source is surer of the same images."""

    others = (_Undoubting,)


class UnfrozenLateLayers(WithOtherParts):
    """Late layers that have opened follow answers of few classes, too."""

    others = (_Unfrozen,)


class EvidenceAgainstEven(WithOtherParts):
    """The prior's evidence knows nothing of the stream's usual answer."""

    others = (_AgainstEven,)


class OneLook(TTCStream):
    """A batch in which late layers open is not answered again."""

    def _look_at(self, images: Tensor, opening: float, *more: Any) -> Any:
        if opening == self._diversity.classes.opening:
            self._first = super()._look_at(images, opening, *more)
        return self._first


LINE = "the default"
Lines = dict[str, Variant]


def _own(kind: type) -> Variant:
    return Variant(f"{__name__}:{kind.__name__}")


def _set(**settings: Any) -> Variant:
    return Variant(DEFAULT_METHOD, settings)


def ablation(classes: int) -> Lines:
    """The default, and every part of it out once, for a network of so many classes."""
    usual = _usual(classes)
    return {
        LINE: _set(),
        "no prior": _set(prior=False),
        "prior: evidence against an even answer": _own(EvidenceAgainstEven),
        "late layers open at once": _own(OpenLateLayers),
        "late layers without class weights": _own(UnweightedLateLayers),
        "late layers follow few classes, too": _own(UnfrozenLateLayers),
        "no doubt where the source is surer": _own(Undoubted),
        "late layers open without a second look": _own(OneLook),
        "conditions are not told apart": _own(OneCondition),
        "early layers as slow as late ones": _set(early_horizon=usual.late_horizon),
        "late layers as fast as early ones": _set(late_horizon=usual.early_horizon),
        "wholly the stream's statistics": _set(blend=1.0),
        "no second view": _set(second_view="off"),
        "second view forced": _set(second_view="on"),
        "no learning": _set(learn="never"),
        "learning whatever the answers": _set(learn="always"),
    }


def sensitivity(classes: int) -> Lines:
    """The default, and one setting of it at a time far from its usual value."""
    usual = _usual(classes)
    lines = {LINE: _set()}
    for factor in (0.1, 0.3, 3, 10):
        lines[f"lr × {factor}"] = _set(lr=usual.lr * factor)
    for blend in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        if blend != usual.blend:
            lines[f"blend {blend}"] = _set(blend=blend)
    for name in ("early_horizon", "late_horizon", "window", "samples_per_step"):
        for factor in (0.5, 2, 4):
            lines[f"{name} × {factor}"] = _set(**{name: round(getattr(usual, name) * factor)})
    return lines


def _usual(classes: int) -> TTCStreamSettings:
    return TTCStreamSettings.create(DEFAULT_METHOD, classes, {})
