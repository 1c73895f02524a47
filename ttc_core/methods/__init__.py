"""The methods by name: `create("ttc", model)` makes a stream's adapting classifier."""

import ast
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ttc_core.envelope.clauses import BUILT_IN, UNBOUNDED, Envelope
from ttc_core.methods.contract import (
    Act,
    Adaptation,
    HostPrediction,
    Method,
    Prediction,
    State,
    UnsuitableNetworkError,
)
from ttc_core.methods.eta import Eta
from ttc_core.methods.norm import Norm
from ttc_core.methods.own import wrapped
from ttc_core.methods.settings import CIFAR100_CLASSES, MethodSettings, MovingSettings
from ttc_core.methods.source import Source
from ttc_core.methods.t3a import T3A
from ttc_core.methods.tent import Tent
from ttc_core.methods.tipi import Tipi
from ttc_core.methods.ttc import TTC
from ttc_core.methods.ttc_stream import TTCStream
from ttc_core.model import SourceModel
from ttc_core.plugins import import_attribute

# How a method is made: Class(source_model, **settings).
MethodClass = Callable[..., Method]

# In the order of the paper's tables.
PAPER_METHODS: dict[str, MethodClass] = {
    "source": Source,
    "norm": Norm,
    "t3a": T3A,
    "eta": Eta,
    "tipi": Tipi,
    "tent": Tent,
    "ttc": TTC,
}
METHODS: dict[str, MethodClass] = {**PAPER_METHODS, "ttc_stream": TTCStream}
# What is served where nothing else is asked for.
DEFAULT_METHOD = "ttc_stream"

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "PAPER_METHODS",
    "Act",
    "Adaptation",
    "HostPrediction",
    "Method",
    "Prediction",
    "State",
    "UnsuitableNetworkError",
    "check_settings",
    "create",
    "far_off",
    "method_class",
    "settings_for",
    "usual_envelope",
]


def method_class(name: str) -> MethodClass:
    """Return the class of a method: a name of `METHODS`, or `package.module:Class`.

    Raises:
        ValueError: there is none of that name, or it cannot be imported.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise ValueError(
            f"There is no method {name!r}; there are {', '.join(METHODS)}, or a class of your "
            "own as package.module:Class."
        )
    found: MethodClass = import_attribute(name)
    return found


def create(
    name: str,
    model: SourceModel,
    *,
    guard: str = "off",
    watching: Mapping[str, Any] | None = None,
    on_shift: bool = False,
    envelope: Envelope | None = None,
    **settings: Any,
) -> Method:
    """Make a method on the shared model, at the source.

    Args:
        name: as in `method_class`.
        guard: `on`, `off` or `observe`: whether it is watched, see `ttc_core.guard`.
        watching: settings of what watches it, `frames.NAME` or `guard.NAME` → value.
        on_shift: have it learn only while the stream differs from what it last learned, see
            `ttc_core.guard.on_shift`; nothing else than learning is left out.
        envelope: what it may change; None: it is as its paper has it.
        settings: hyperparameters by name; strings are understood as on the command line.

    Raises:
        ValueError: no such method or setting, a value out of range, or a network it cannot adapt.
    """
    # They know the contract, and so this package.
    from ttc_core.envelope.enveloped import Enveloped
    from ttc_core.guard import OnShift, watched

    made, own = method_class(name), name not in METHODS
    if not (own or model.adaptable or name == "source"):
        raise UnsuitableNetworkError(
            f"{name} cannot adapt a TorchScript or torch.export program: its layers are out of "
            "reach; it is served frozen, by the method source."
        )
    within = envelope or UNBOUNDED
    if own:
        method = wrapped(name, made, model, settings)
        method = method if envelope is None else Enveloped(method, envelope)
    else:
        method = made(model, envelope=within, **settings)
    if on_shift and method.adapts - {"moments"}:
        method = OnShift(method)
    return watched(method, guard, watching, within)


def usual_envelope(name: str, *, paper: bool) -> Envelope | None:
    """What a method may change where nothing else is said; None: it is as its paper has it.

    Args:
        paper: the paper's methods are to be so.
    """
    return None if paper and name in PAPER_METHODS else BUILT_IN


def settings_for(name: str, given: Mapping[str, str], *, statistics: str | None) -> dict[str, Any]:
    """Pick a method's settings out of `METHOD.PARAM` → value pairs.

    Args:
        given: of any methods; `moving.PARAM` belongs to each that takes moving statistics.
        statistics: where BatchNorm layers take their statistics from, unless it is given, in the
            methods that would take the batch's.

    Raises:
        ValueError: a key is not METHOD.PARAM, or names a method that does not exist.
    """
    own = METHODS.get(name)
    settings: dict[str, Any] = {}
    moving: dict[str, Any] = {}
    for key, value in given.items():
        method, dot, parameter = key.rpartition(".")
        if not dot:
            raise ValueError(f"--set takes METHOD.PARAM=VALUE; got {key!r}.")
        if method == "moving" or method == f"{name}.moving":
            _check_moving(key, parameter)
            moving[parameter] = value
        elif method == name:
            settings[parameter] = value if own else _literal(value)
        elif method in METHODS:
            _check_name(method, parameter)
        elif ":" not in method and method.removesuffix(".moving") not in METHODS:
            raise ValueError(
                f"--set {key}: there is no method {method!r}; there are {', '.join(METHODS)}."
            )
    if (choice := _fields(own).get("statistics")) is not None:
        if statistics is not None and choice.default == "batch":
            settings.setdefault("statistics", statistics)
        if moving:
            settings["moving"] = moving
    return settings


def check_settings(name: str, given: Mapping[str, Any]) -> None:
    """Let pass what a method of ours takes, without a model; nothing is known of one's own.

    Raises:
        ValueError: a name is unknown or a value out of range; a sentence names each.
    """
    kind: type[MethodSettings] | None = getattr(METHODS.get(name), "Settings", None)
    if kind is not None:
        kind.create(name, CIFAR100_CLASSES, dict(given))


def far_off(name: str, method: Method) -> Iterator[str]:
    """Say of each setting of a method of ours that is accepted, and so far off that it does harm.

    Args:
        name: the method's; of one's own methods nothing is known.
    """
    kind: type[MethodSettings] | None = getattr(METHODS.get(name), "Settings", None)
    if kind is not None:
        used = {key: value for key, value in method.settings.items() if key in kind.model_fields}
        for what in kind(**used).far_off(method.model.classes):
            yield f"{name}: {what}."


def _fields(method: MethodClass | None) -> Mapping[str, Any]:
    declared: type[MethodSettings] = getattr(method, "Settings", MethodSettings)
    return declared.model_fields


def _check_name(method: str, parameter: str) -> None:
    """A misspelt setting is a mistake also where its method does not run."""
    known = _fields(METHODS[method])
    if parameter not in known:
        raise ValueError(
            f"{method}.{parameter} is not a setting of {method}; its settings are: "
            f"{', '.join(known) or 'none'}."
        )


def _check_moving(key: str, parameter: str) -> None:
    if parameter not in MovingSettings.model_fields:
        raise ValueError(
            f"--set {key}: moving statistics have no such setting; theirs are: "
            f"{', '.join(MovingSettings.model_fields)}."
        )


def _literal(value: str) -> Any:
    """A number, truth value, list or None as JSON or Python writes it; anything else is text."""
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError):
            return read(value)
    return value
