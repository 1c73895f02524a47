"""What is said of a setting: its flag and its variable, what it takes, what holds without it."""

from typing import Any, Literal, get_args, get_origin

from service.settings import SWITCHES, Accepted, Settings

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
    bounds: dict[str, Any] = {
        sign: getattr(each, sign)
        for each in field.metadata
        for sign in ("ge", "gt", "le")
        if hasattr(each, sign)
    }
    lowest = f"{bounds['ge']:.15g}" if "ge" in bounds else f"above {bounds['gt']:.15g}"
    return f"{lowest} to {bounds['le']:.15g}"


def accepted_in_file(name: str) -> str:
    """The values that a setting takes in a file, in words: TOML has words of its own for two."""
    return accepted(name).replace("on, off", "true, false") if name in SWITCHES else accepted(name)


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
