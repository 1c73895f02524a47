"""A method of a user's own, wrapped once: what it lacks is filled in, what it does is contained."""

import contextlib
import inspect
import math
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ttc_core.envelope.clauses import UNBOUNDED
from ttc_core.envelope.ledger import SECTION
from ttc_core.envelope.verdicts import Verdicts
from ttc_core.errors import PluginError, UserError, told
from ttc_core.flat import NamedTensors
from ttc_core.methods.contract import (
    ADAPTING,
    AROUND,
    ON_SHIFT,
    Adaptation,
    Method,
    Prediction,
    Right,
    State,
    Weighed,
)
from ttc_core.model import SourceModel
from ttc_core.undo import Undo

# What a class of a user's own must have.
VERBS = ("predict", "adapt", "reset", "state", "restore", "fork")
# Sections of a state named as those of what is around a method stand behind one "own." more.
_OURS = re.compile(rf"(own\.)*({'|'.join((*AROUND, SECTION))})(\..*)?", re.DOTALL)


class OwnMethod:
    """The contract of a method, kept by an object of a user's own class.

    Whatever that raises ends in a PluginError, whose text is a sentence; it prints to standard
    error. Its settings are read once: they tell states and rows apart. Answers that cannot be
    probabilities are none; rows that are not finite are the caller's to refuse.

    Args:
        name: as the user gave it, `package.module:Class`.
        inner: an object of that class.

    Raises:
        PluginError: it has not all of VERBS, or its settings cannot be read.
    """

    contextual = False
    second_view_off = False
    looks_twice = False
    # What it sets of a thread or of the process around a pass (inference_mode, autocast, where it
    # prints to) would hold for the streams beside it, too, and might never be undone.
    shares = False
    mode = ADAPTING
    estimates = None
    envelope = UNBOUNDED
    verdicts = Verdicts()
    record_temperature = None

    def __init__(self, name: str, model: SourceModel, inner: Any) -> None:
        self._name, self._inner = name, inner
        self.model = model
        with self._contained("description"):
            self.settings: Mapping[str, Any] = dict(getattr(inner, "settings", {}))
            self.adapts = frozenset(getattr(inner, "adapts", ()))
            self.selects = bool(getattr(inner, "selects", True))
            missing = [verb for verb in VERBS if not callable(getattr(inner, verb, None))]
            if missing:
                raise PluginError(
                    f"{name} is no method: it has no {', '.join(missing)}; expected are "
                    f"{', '.join(VERBS)}."
                )
            self._predict_takes_learn = _takes_learn(inner.predict)
            self._adapt_takes_learn = _takes_learn(inner.adapt)

    @contextlib.contextmanager
    def _contained(self, verb: str) -> Iterator[None]:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except (MemoryError, torch.OutOfMemoryError, UserError):
            raise  # fewer images may fit; a sentence is one already
        except BaseException as error:  # whatever the user's own code does
            interrupted = isinstance(error, KeyboardInterrupt)
            if interrupted and threading.current_thread() is threading.main_thread():
                raise
            raise PluginError(f"its {verb} failed: {told(error)}.") from error

    def _reading(self, name: str) -> float:
        """A number that the method shows; 0 if it knows of none."""
        try:
            with self._contained(name):
                value = float(getattr(self._inner, name, 0))
        except PluginError:
            return 0.0
        return value if math.isfinite(value) else 0.0

    @property
    def version(self) -> int:
        return int(self._reading("version"))

    @property
    def pending_batches(self) -> int:
        return int(self._reading("pending_batches"))

    @property
    def drift(self) -> float:
        return self._reading("drift")

    @property
    def details(self) -> Mapping[str, float]:
        return {}

    @property
    def snapshots(self) -> Mapping[int, int]:
        return {}

    def roll_back(self, to: int | None = None) -> int:
        raise LookupError("no guard keeps snapshots of it")

    def weigh(self, right: Sequence[Right]) -> Weighed:
        return Weighed()

    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        options = {} if learn or not self._predict_takes_learn else {"learn": False}
        with self._contained("predict"):
            prediction = self._inner.predict(images, **options)
            if wrong := _wrong(prediction, len(images), self.model.classes):
                raise PluginError(f"it answered with {wrong}.")
        return prediction  # type: ignore[no-any-return]

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        if not learn and not self._adapt_takes_learn:
            return Adaptation(skipped="shed")
        options = {} if learn else {"learn": False}
        with self._contained("adapt"):
            return _checked(self._inner.adapt(prediction, **options))

    def end(self) -> bool:
        with self._contained("end"):
            return bool(getattr(self._inner, "end", bool)())

    def reset(self) -> None:
        with self._contained("reset"):
            self._inner.reset()

    def state(self) -> State:
        with self._contained("state"):
            state = self._inner.state()
            return {_outside(section): _copied(entries) for section, entries in state.items()}

    def restore(self, state: State) -> None:
        with self._contained("restore"):
            # Saved of a stream that learned on shifts only, or within an envelope, and taken up by
            # one that does not.
            others = (ON_SHIFT, SECTION)
            own = {name: each for name, each in state.items() if name not in others}
            self._inner.restore({_inside(name): each for name, each in own.items()})

    def undo_point(self) -> Undo:
        before = self.state()
        return lambda: self.restore(before)

    def fork(self) -> Self:
        with self._contained("fork"):
            return type(self)(self._name, self.model, self._inner.fork())


def _outside(section: Any) -> Any:
    """A section's name in the state of the whole; what is no text is told by who saves it."""
    is_ours = isinstance(section, str) and _OURS.fullmatch(section)
    return f"own.{section}" if is_ours else section


def _inside(section: str) -> str:
    return section.removeprefix("own.") if _OURS.fullmatch(section) else section


def _copied(entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a state holds, apart from what the method goes on to change in place."""
    if isinstance(entries, NamedTensors):
        return entries  # of a part of ours, which gives copies
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in entries.items()}


def _takes_learn(verb: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(verb).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == "learn" or p.kind is p.VAR_KEYWORD for p in parameters)


def _wrong(prediction: object, images: int, classes: int) -> str | None:
    """Say what is wrong with an answer to so many images, if anything is."""
    if not isinstance(prediction, Prediction):
        return f"{type(prediction).__name__}, not a Prediction"
    expected: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("logits", "probabilities"), (images, classes)),
        **dict.fromkeys(("entropy", "selected"), (images,)),
    }
    for part, shape in expected.items():
        value = getattr(prediction, part)
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if got != shape:
            return f"{part} {got} in place of {shape}, for {images} images of {classes} classes"
        if part != "selected" and not value.is_floating_point():
            return f"{part} of type {value.dtype}, no floating-point numbers"
    if type(prediction.version) is not int:
        return f"a version that is {type(prediction.version).__name__}, not an int"
    finite = prediction.probabilities.isfinite().all(dim=1) & prediction.entropy.isfinite()
    probabilities, entropy = prediction.probabilities[finite], prediction.entropy[finite]
    sums = probabilities.sum(dim=1)
    if bool((probabilities < 0).any() or ((sums - 1).abs() > 0.01).any()):
        return "probabilities that are below 0, or whose sum is not 1"
    if bool((entropy < -0.01).any() or (entropy > math.log(classes) + 0.01).any()):
        return f"an entropy outside of 0 to ln {classes}"
    return None


def _checked(outcome: object) -> Adaptation:
    """What a method says that it did, in the types it should have."""
    if not isinstance(outcome, Adaptation):
        raise TypeError(f"adapt must return an Adaptation; got {type(outcome).__name__}")
    terms = (outcome.loss, outcome.entropy, outcome.similarity)
    loss, entropy, similarity = (None if term is None else float(term) for term in terms)
    return Adaptation(
        loss=loss,
        entropy=entropy,
        similarity=similarity,
        selected=int(outcome.selected),
        stepped=bool(outcome.stepped),
        skipped=None if outcome.skipped is None else str(outcome.skipped),
    )


def wrapped(name: str, made: Any, model: SourceModel, settings: Mapping[str, Any]) -> Method:
    """Make a method of a user's own class.

    Raises:
        PluginError: it is no class, could not be made, or is no method.
    """
    if not callable(made):
        raise PluginError(f"{name} is no class but an object ({type(made).__name__}).")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            inner = made(model, **settings)
    except (KeyboardInterrupt, UserError):
        raise
    except BaseException as error:  # whatever the user's own code does
        raise PluginError(f"{name} could not be made: {told(error)}.") from error
    return OwnMethod(name, model, inner)
