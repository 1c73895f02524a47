"""A method whose camera may fail: faulty frames are answered, and kept out of all it learns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from ttc_core.frames import Frames, FrameSettings, Look
from ttc_core.grain import Grain
from ttc_core.guard.guarded import Guarded
from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods.contract import (
    MODES,
    Adaptation,
    Answers,
    Beside,
    Method,
    Pending,
    Prediction,
    State,
)

SECTION = "frames"


@dataclass(frozen=True)
class _Screening(Pending):
    """What was seen of a batch, and the inner method's answers to what it may learn from.

    Attributes:
        rows: which images of the batch those answers are to.
        selected: (N,), as it was given out.
    """

    look: Look | None = None
    ordinary: Prediction | None = None
    rows: Sequence[int] = ()
    selected: Tensor | None = None


class Screened(Wrapper):
    """Looks at the frames of a stream before its method does.

    Ordinary images of a batch are the method's as if the others were not there. Suspect ones are
    answered by it as it stands, without the images before, and move nothing but what the next
    frames are compared with.

    Args:
        keeps_out: off: suspects are told, and learned from like all others.
    """

    def __init__(
        self, inner: Method, settings: FrameSettings | None = None, *, keeps_out: bool = True
    ) -> None:
        super().__init__(inner)
        self.keeps_out = keeps_out
        self._settings = settings or FrameSettings()
        self._frames = Frames(self._settings)
        self._parts = (self._frames,)

    @property
    def settings(self) -> Mapping[str, Any]:
        changed = self._settings.model_dump(exclude_defaults=True)
        return {**self.inner.settings, **({SECTION: changed} if changed else {})}

    def predict(
        self,
        images: Tensor,
        *,
        learn: bool = True,
        compare: bool = True,
        grains: Sequence[Grain | None] = (),
        **asked: Any,
    ) -> Prediction:
        """As the contract has it.

        Args:
            compare: off, nothing comes of the images: a guard compares none with the source.
            grains: N, what was seen of each image before it was brought to the model's size, else
                None; empty: of none.
        """
        guarded, context = isinstance(self.inner, Guarded), asked.get("context")
        if guarded and not compare:
            asked["compare"] = False
        fits = images.ndim == 4 and images.shape[1] == 3
        if not fits or (context is not None and len(context) != len(images)):
            return self.inner.predict(images, learn=learn, **asked)  # which says what is wrong
        look = self._frames.look(images, grains)
        is_out = [self.keeps_out and kind is not None for kind in look.kinds]
        out = [row for row, each in enumerate(is_out) if each]
        stay = [row for row, each in enumerate(is_out) if not each]
        suspects = None
        if out:
            alone: dict[str, Any] = {"compare": False} if guarded else {}
            if "second_view" in asked:
                alone["second_view"] = asked["second_view"]
            if self.inner.contextual:
                alone["context"] = [False] * len(out)
            suspects = self.inner.predict(images[out] if stay else images, learn=False, **alone)
            suspects = replace(suspects, selected=torch.zeros_like(suspects.selected), beside=None)
            if context is not None:
                asked["context"] = [context[row] for row in stay]
        if not stay and suspects is not None:
            answers, ordinary = suspects, None
        else:
            ordinary = self.inner.predict(images[stay] if out else images, learn=learn, **asked)
            answers = ordinary if suspects is None else _merged(ordinary, suspects, stay + out)
        pending = _Screening(look=look, ordinary=ordinary, rows=stay, selected=answers.selected)
        return replace(answers, suspects=tuple(look.kinds), pending=pending)

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        pending = prediction.pending
        if not isinstance(pending, _Screening) or pending.look is None:
            raise ValueError("This prediction is another method's; adapt to what was predicted.")
        if self.keeps_out and any(pending.look.kinds) and not prediction.is_finite():
            return Adaptation(skipped="non_finite", drift=self.drift)
        ordinary = pending.ordinary
        if ordinary is None:
            outcome = Adaptation(skipped="suspect", drift=self.drift)
        else:
            if prediction.selected is not pending.selected:  # somebody chose others
                ordinary = replace(ordinary, selected=prediction.selected[pending.rows])
            outcome = self.inner.adapt(ordinary, learn=learn)
        if outcome.skipped != "non_finite":
            self._frames.commit(pending.look)
        return outcome

    def reset(self) -> None:
        self._frames.reset()
        self.inner.reset()

    def state(self) -> State:
        return {**self.inner.state(), **self._frames.state()}

    def restore(self, state: State) -> None:
        # A state from before frames were looked at has none.
        self._frames.reset()
        if SECTION in state:
            self._frames.restore(state)
        self.inner.restore({name: state[name] for name in state if name != SECTION})

    def fork(self) -> Self:
        return type(self)(self.inner.fork(), self._settings, keeps_out=self.keeps_out)


def _merged(ordinary: Prediction, suspects: Prediction, rows: Sequence[int]) -> Prediction:
    """One prediction of both; `rows`: the places of the ordinary images, then of the suspects."""
    places = torch.tensor(rows, device=ordinary.logits.device).argsort()

    def both(name: str) -> Tensor:
        return torch.cat([getattr(each, name) for each in (ordinary, suspects)])[places]

    modes: tuple[str, ...] = ()
    if ordinary.modes or suspects.modes:
        joined = [m for each in (ordinary, suspects) for m in each.modes or MODES[:1] * len(each)]
        modes = tuple(joined[place] for place in places.tolist())
    compared: tuple[Answers | None, ...] = ()
    if ordinary.compared:
        whole = (*ordinary.compared, *(None,) * len(suspects))
        compared = tuple(whole[place] for place in places.tolist())
    beside = ordinary.beside
    if beside is not None:
        beside = Beside([rows[row] for row in beside.rows], beside.logits)
    return replace(
        ordinary,
        logits=both("logits"),
        probabilities=both("probabilities"),
        entropy=both("entropy"),
        selected=both("selected"),
        modes=modes,
        beside=beside,
        compared=compared,
    )
