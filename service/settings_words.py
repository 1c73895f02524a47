"""What is said of a setting: its flag and its variable, what it takes, what holds without it."""

from typing import Any, Literal, get_args, get_origin

from service.settings import SWITCHES, Accepted, Settings
from ttc_core.accepted import bounds

# The first setting of each subject.
_SECTIONS = {
    "config": "Settings file",
    "model": "Model and method",
    "max_batch": "Batches and learning",
    "host": "Address",
    "device": "Device",
    "token": "Who may ask",
    "state_dir": "What is kept",
    "silent_factor": "Streams",
    "max_connections": "Requests",
    "drain_delay": "Operation",
    "ray": "Replicas",
}


def accepted(name: str) -> str:
    """The values that a setting takes, in words."""
    field = Settings.model_fields[name]
    for each in field.metadata:
        if isinstance(each, Accepted):
            return each.words
    if name in SWITCHES:
        return "on, off"
    if get_origin(field.annotation) is Literal:
        return ", ".join(get_args(field.annotation))
    found = bounds(field.metadata)
    lowest = f"{found['ge']:.15g}" if "ge" in found else f"above {found['gt']:.15g}"
    return f"{lowest} to {found['le']:.15g}"


def accepted_in_file(name: str) -> str:
    """The values that a setting takes in a file, in words: TOML has words of its own for two."""
    return accepted(name).replace("on, off", "true, false") if name in SWITCHES else accepted(name)


def takes(name: str, *, in_file: bool) -> str:
    """The values that a setting takes, with their kind, in words."""
    annotation = Settings.model_fields[name].annotation
    kinds = {annotation, *get_args(annotation)}
    if int in kinds:
        return f"a whole number, {accepted(name)}"
    if float in kinds and get_origin(annotation) is not tuple:
        return f"a number, {accepted(name)}"
    if name in SWITCHES or not in_file:
        return accepted_in_file(name) if in_file else accepted(name)
    is_list = any(get_origin(each) is tuple for each in kinds)
    return f"{'a list' if is_list else 'a text in quotes'} ({accepted(name)})"


def default(name: str) -> Any:
    """What holds where nothing else is said."""
    return Settings.model_fields[name].get_default(call_default_factory=True, validated_data={})


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return f"--{name.replace('_', '-')}"


def no_flag(name: str) -> str:
    """The flag that unsets a setting, or turns it off."""
    return f"--no-{name.replace('_', '-')}"


def variable(name: str) -> str:
    """The variable of a setting."""
    return f"TTC_{name.upper()}"


def sections() -> dict[str, list[str]]:
    """The settings' names by subject, in their order."""
    found: dict[str, list[str]] = {}
    title = ""
    for name in Settings.model_fields:
        title = _SECTIONS.get(name, title)
        found.setdefault(title, []).append(name)
    return found
