"""What a method's answers tell beside the source's and the restyled source's, image by image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttc_core.guard.estimate import Estimates, Judge, Judged
from ttc_core.guard.order import Order, Usual
from ttc_core.guard.restyled import Restyled, Style
from ttc_core.guard.watch import ESTIMATED, ORDERED, Kind
from ttc_core.methods.contract import Answers, Beside, Prediction, State
from ttc_core.methods.parts import Numbers
from ttc_core.methods.parts.shadow import answers_to
from ttc_core.model import SourceModel


@dataclass(frozen=True)
class Compared:
    """What compared images have told; of all it is told once they are taken.

    Attributes:
        worse: of each compared image its place, a kind of evidence, and what that says of it.
        answers: of each image, compared or not, which class the method and the source answered.
        judged, usual, style: what was made of them.
    """

    worse: Sequence[tuple[int, Kind, float]]
    answers: Sequence[Answers | None]
    judged: Judged
    usual: Usual
    style: Style


class Comparing:
    """Compares the answers on one stream.

    Args:
        served_is_calibrated: what is served was divided by the record's temperature already.

    Attributes:
        parts: what follows the stream, replaced and never written in place.
        order: of them, what is of adapted answers alone: nothing, once those are set back.
    """

    def __init__(self, model: SourceModel, *, served_is_calibrated: bool) -> None:
        record = model.calibration
        self._model, self._restyled = model, Restyled(model)
        self._judge = Judge(
            model.classes,
            temperature=None if record is None else record.temperature,
            served_is_calibrated=served_is_calibrated,
        )
        self.order = Order(model.classes)
        self.parts = (self._restyled, self._judge, self.order)

    @property
    def is_narrow(self) -> bool:
        """Whether answers are of far fewer classes than those of the second opinion, if any."""
        return self.order.usual.of_few and not self._restyled.is_source

    @property
    def latest(self) -> Estimates | None:
        """The accuracy of late, without labels; None before anything was compared."""
        return self._judge.latest

    @property
    def whole(self) -> Estimates | None:
        """The same, since the start."""
        return self._judge.whole

    def beside(self, images: Tensor, rows: Sequence[int], known: Beside | None) -> Beside:
        """What the source answers to these images, and to those known already."""
        known = known or Beside([], self._model.source_moments.new_zeros((0, self._model.classes)))
        missing = sorted(set(rows) - set(known.rows))
        if not missing:
            return known
        inputs = self._model.normalize(self._model.to_unit(images[missing]))
        logits = answers_to(self._model, inputs, range(len(missing)))
        if not known.rows:
            return Beside(missing, logits)
        every = [*known.rows, *missing]
        order = sorted(range(len(every)), key=every.__getitem__)
        return Beside([every[i] for i in order], torch.cat((known.logits, logits))[order])

    def after(
        self, images: Tensor, said: Prediction, beside: Beside, *, by_source: bool
    ) -> Compared:
        """What these answers tell; changes nothing.

        Args:
            by_source: the source answers in the method's place.
        """
        rows = list(beside.rows)
        judged, usual, style = self._judge.judged, self.order.usual, self._restyled.style
        worse: list[tuple[int, Kind, float]] = []
        answers: list[Answers | None] = [None] * len(said)
        if rows:
            inputs = self._model.normalize(self._model.to_unit(images[rows]))
            restyled, style = self._restyled.answers(inputs)
            theirs, second, ours = (
                _numbers(each)
                for each in (
                    beside.logits.softmax(dim=1),
                    restyled.softmax(dim=1),
                    said.probabilities[rows],
                )
            )
            judged, chances = self._judge.after(theirs, second, ours, by_source=by_source)
            usual, apart = self.order.after(theirs, second, ours)
            for row, (served, source), by_order in zip(rows, chances.tolist(), apart, strict=True):
                worse.append((row, ESTIMATED, source - served))
                if by_order is not None and not self._restyled.is_source:
                    worse.append((row, ORDERED, by_order))
            for row, own, source in zip(rows, ours.argmax(1), theirs.argmax(1), strict=True):
                answers[row] = Answers(int(own), int(source))
        return Compared(worse, answers, judged, usual, style)

    def take(self, compared: Compared) -> None:
        """Go on from what was compared."""
        self._judge.judged, self._restyled.style = compared.judged, compared.style
        self.order.usual = compared.usual

    def reset(self) -> None:
        for part in self.parts:
            part.reset()

    def state(self) -> State:
        return {**self._judge.state(), **self._restyled.state(), **self.order.state()}

    def restore(self, state: State) -> None:
        """Go on from a state.

        Raises:
            KeyError, ValueError: what it holds is none.
        """
        self._judge.restore(state)
        self._restyled.restore(state)
        self.order.restore(state)


def _numbers(answers: Tensor) -> Numbers:
    found: Numbers = answers.detach().double().cpu().numpy()
    return found
