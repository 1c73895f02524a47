"""Adaptation that watches itself: evidence, snapshots, and what is done about harm.

`watched` puts it around any method. `on`: frames of a camera that fails are kept out of all
learning, and the source answers where adapting does harm; `observe`: both are told, and nothing is
done; `off`: nothing is looked at.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ttc_core.frames import FrameSettings
from ttc_core.guard.estimate import Estimates
from ttc_core.guard.guarded import Guarded, GuardSettings
from ttc_core.guard.screened import Screened
from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods.contract import Method
from ttc_core.methods.settings import checked

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


def watched(method: Method, mode: str, given: Mapping[str, Any] | None = None) -> Method:
    """Have a method watched.

    Args:
        mode: one of MODES; `off` gives the method itself.
        given: settings, `SECTION.NAME` → value; texts are understood as on the command line.

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
        method = Guarded(method, guard, acts=acts)
    return Screened(method, frames, keeps_out=acts)


def mode_of(method: Method) -> str:
    """How a method is watched, one of MODES."""
    if not isinstance(method, Screened):
        return "off"
    return "on" if method.keeps_out else "observe"


def estimated(method: Method) -> Estimates | None:
    """What is estimated of all answers since the start; None where nothing was compared."""
    while isinstance(method, Wrapper):
        if isinstance(method, Guarded):
            return method.whole
        method = method.inner
    return None


def _settings(given: Mapping[str, Any]) -> dict[str, BaseModel]:
    found: dict[str, dict[str, Any]] = {section: {} for section in SETTINGS}
    for key, value in given.items():
        section, _, name = key.rpartition(".")
        if section not in SETTINGS:
            raise ValueError(f"The guard has no setting {key!r}; all begin with {', '.join(found)}")
        found[section][name] = value
    return {section: checked(section, SETTINGS[section], found[section]) for section in SETTINGS}
