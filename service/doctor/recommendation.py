"""T402: the method to begin with, why, and the command that starts it."""

import shlex
from collections.abc import Mapping

from service.doctor.asked import Asked
from service.doctor.checks import Finding, Verdict
from service.doctor.data import Seen
from service.doctor.trial import Tried, own_settings
from ttc_core.methods import DEFAULT_METHOD
from ttc_core.model import SourceModel

# Standard errors within which a difference is noise.
NOISE = 2.0


def without_data(asked: Asked, model: SourceModel) -> Finding:
    """What to start with where nothing was measured."""
    method = DEFAULT_METHOD if model.adaptable else "source"
    command = _command(asked, method, {}, {})
    why = "not measured; --data folder:DIR finds the method that suits"
    return _finding("ok", method, why if model.adaptable else "it answers frozen", command)


def mend_first(asked: Asked, seen: Seen) -> Finding:
    """What to start with where the model is not used as it was trained; nothing was measured."""
    method = DEFAULT_METHOD if seen.model.adaptable else "source"
    command = _command(asked, method, seen.changed, own_settings(method, seen))
    why = f"mend {', '.join(seen.unsolved)} first and look again; until then no method is tried"
    return _finding("note", method, why, command)


def start_command(asked: Asked, seen: Seen, tried: Tried) -> Finding:
    """What to start with after all that was found."""
    if "source" not in tried.right:
        return Finding("T402", "problem", "none: the model fails on these images, see T401")
    method, why = chosen(tried)
    command = _command(asked, method, seen.changed, own_settings(method, seen))
    return _finding("ok", method, why, command)


def chosen(tried: Tried) -> tuple[str, str]:
    """The method, and why; `source` must be among those that ran."""
    others = [name for name in tried.right if name != "source"]
    if not others:
        return "source", "nothing else runs on this network"
    safe = [name for name in others if _never_below(tried, name)]
    if not safe:
        return "source", "each method is below source in one of the streams by more than noise"
    best = max(safe, key=lambda name: tried.mean_above(name)[0])
    how = "the best mean of those that are nowhere below source"
    if best != DEFAULT_METHOD and DEFAULT_METHOD in safe:
        lead, error = tried.mean_above(best, DEFAULT_METHOD)
        if lead <= NOISE * error:
            how = f"nowhere below source; {best} has {100 * lead:.1f} ± {100 * error:.1f} more"
            how += ", which is noise, so that the default stays"
            best = DEFAULT_METHOD
    difference, error = tried.mean_above(best)
    said = f"{100 * difference:+.1f} ± {100 * error:.1f} points over the streams of T401"
    if difference <= NOISE * error:
        return "source", f"adapting brings nothing here: the best, {best}, {said}"
    left = ", ".join(name for name in others if name not in safe)
    rule = f"; below source in one by more than {NOISE:g} standard errors: {left}" if left else ""
    return best, f"{said}, {how}{rule}"


def _never_below(tried: Tried, method: str) -> bool:
    each = (tried.above_source(method, stream) for stream in tried.right[method])
    return all(difference >= -NOISE * error for difference, error in each)


def _command(
    asked: Asked, method: str, changed: Mapping[str, str], settings: Mapping[str, str]
) -> list[str]:
    words = ["ttc", "serve"]
    given = {"--model": asked.model, **asked.options, **changed}
    if changed:
        given.pop("--calibration", None)  # its record is of the other normalisation
    for flag, value in given.items():
        words += [flag] if value is None else [flag, value]
    words += ["--method", method]
    if method != "source":
        words += ["--guard", "on"]
    for name, value in settings.items():
        words += ["--set", f"{name}={value}"]
    return words


def _finding(verdict: Verdict, method: str, why: str, command: list[str]) -> Finding:
    line = shlex.join(command)
    return Finding(
        "T402",
        verdict,
        f"method {method}: {why}\n{line}",
        {"method": method, "command": line},
    )
