"""Adaptation that watches itself: evidence, snapshots, and what is done about harm.

`watched` puts it around any method. `on`: frames of a camera that fails are kept out of all
learning, and the source answers where adapting does harm; `observe`: both are told, and nothing is
done; `off`: nothing is looked at. `OnShift` has a method learn only while its stream changes.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel

from ttc_core.envelope.clauses import BUILT_IN, Envelope
from ttc_core.frames import FrameSettings
from ttc_core.guard.estimate import Estimates
from ttc_core.guard.guarded import Guarded, GuardSettings
from ttc_core.guard.on_shift import OnShift
from ttc_core.guard.screened import Screened
from ttc_core.guard.snapshots import saved_snapshots
from ttc_core.guard.unwatched import Unwatched
from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods.contract import Method
from ttc_core.methods.settings import checked

__all__ = [
    "MODES",
    "SETTINGS",
    "WATCHED_METHODS",
    "OnShift",
    "Unwatched",
    "calibrated",
    "default_mode",
    "divided",
    "doubted",
    "estimated",
    "holds",
    "kept_snapshots",
    "mode_of",
    "saved_snapshots",
    "watched",
    "watching",
]

MODES = ("on", "off", "observe")
# Of the methods, those that are watched unless something else is asked for.
WATCHED_METHODS = ("ttc_stream",)
SETTINGS: dict[str, type[BaseModel]] = {"frames": FrameSettings, "guard": GuardSettings}
"""What can be set of it, by section: `frames.NAME`, `guard.NAME`."""


def default_mode(method: str, *, paper: bool = False) -> str:
    """What holds for a method where nothing else is asked for."""
    return "on" if method in WATCHED_METHODS and not paper else "off"


def divided(pairs: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Part what sets the guard, `SECTION.NAME` → value, from what sets methods.

    Raises:
        ValueError: it has no such setting, or the value is not accepted.
    """
    own = {key: value for key, value in pairs.items() if key.rpartition(".")[0] in SETTINGS}
    _settings(own)
    return own, {key: value for key, value in pairs.items() if key not in own}


def watched(
    method: Method,
    mode: str,
    given: Mapping[str, Any] | None = None,
    envelope: Envelope = BUILT_IN,
) -> Method:
    """Have a method watched.

    Args:
        mode: one of MODES; `off` gives the method itself.
        given: settings, `SECTION.NAME` → value; texts are understood as on the command line.
        envelope: its bounds on evidence of harm.

    Raises:
        ValueError: another mode, an unknown setting, or a value that is not accepted.
    """
    if mode not in MODES:
        raise ValueError(f"The guard is one of {', '.join(MODES)}; got {mode!r}.")
    settings = _settings(given or {})
    if mode == "off":
        return method
    frames, guard = settings["frames"], settings["guard"]
    assert isinstance(frames, FrameSettings)
    assert isinstance(guard, GuardSettings)
    acts = mode == "on"
    if method.adapts:  # else it is the source, or as good
        method = Guarded(method, guard, acts=acts, envelope=envelope)
    return Screened(method, frames, keeps_out=acts)


def mode_of(method: Method) -> str:
    """How a method is watched, one of MODES."""
    if not isinstance(method, Screened):
        return "off"
    return "on" if method.keeps_out else "observe"


def watching(method: Method) -> frozenset[str]:
    """The sections of SETTINGS that set something of what watches a method."""
    kinds = {Screened: "frames", Guarded: "guard"}
    return frozenset(kinds[type(each)] for each in _layers(method) if type(each) in kinds)


def holds(method: Method) -> bool:
    """Whether the source may come to answer in its place."""
    guard = _guard(method)
    return guard is not None and guard.holds


def kept_snapshots(method: Method) -> Mapping[int, int]:
    """The versions that are kept of a stream, and after how many images each was, whether or not
    there is a guard that can go back to them."""
    return method.kept_snapshots if isinstance(method, Unwatched) else method.snapshots


def doubted(method: Method) -> bool:
    """Whether the source answers in its place, or would if it may."""
    found = (each for each in _layers(method) if isinstance(each, Guarded | Unwatched))
    return any(each.doubted for each in found)


def estimated(method: Method) -> Estimates | None:
    """What is estimated of all answers since the start; None where nothing was compared."""
    guard = _guard(method)
    return None if guard is None else guard.whole


def calibrated(method: Method) -> tuple[Literal["record", "guard", "none"], float | None]:
    """Who goes by the model's calibration record, and that record's temperature.

    Returns:
        `record`: the probabilities that are told do, and a guard if there is one; `guard`: its
        estimates alone do; `none`: nobody does.
    """
    if method.record_temperature is not None:
        return "record", method.record_temperature
    record = method.model.calibration
    if record is None or _guard(method) is None:
        return "none", None
    return "guard", record.temperature


def _layers(method: Method) -> Iterator[Method]:
    yield method
    while isinstance(method, Wrapper):
        method = method.inner
        yield method


def _guard(method: Method) -> Guarded | None:
    return next((each for each in _layers(method) if isinstance(each, Guarded)), None)


def _settings(given: Mapping[str, Any]) -> dict[str, BaseModel]:
    found: dict[str, dict[str, Any]] = {section: {} for section in SETTINGS}
    for key, value in given.items():
        section, _, name = key.rpartition(".")
        if section not in SETTINGS:
            raise ValueError(f"The guard has no setting {key!r}; all begin with {', '.join(found)}")
        found[section][name] = value
    return {section: checked(section, SETTINGS[section], found[section]) for section in SETTINGS}
