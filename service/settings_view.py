"""Settings and where they come from: as a table, as JSON, as a file that `--config` reads."""

import json
import textwrap
from typing import Any

from service.settings import SECRETS, SWITCHES, Settings
from service.settings_file import toml
from service.settings_reading import Reading
from service.settings_words import accepted_in_file, sections
from ttc_core.errors import printable

# A longer value moves what stands behind it in its own line alone.
WIDEST = 40
_TITLE = """\
# Settings of `ttc serve`, which reads them by --config FILE or TTC_CONFIG=FILE. A flag goes before
# its TTC_ variable, that before this file. What is commented out is the default, or an example
# where there is none. Hyperparameters may also stand in a table at the end of the file:
#   [set]
#   ttc_stream.lr = 0.0005
"""
# Of what has no default.
_EXAMPLES: dict[str, Any] = {
    "set": ("ttc_stream.lr=0.0005",),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "token": "at least 8 characters",
    "admin_token": "at least 8 characters",
    "calibration": "weights.calibration.json",
    "class_names": "classes.txt",
    "envelope": "envelope.toml",
    "size": 256,
    "crop": 224,
    "interpolation": "bicubic",
    "root_path": "/cameras",
    "state_dir": "/var/lib/ttc",
    "cors_origin": ("https://cameras.example",),
}


def as_table(reading: Reading) -> str:
    """A line a setting: its name, its value, where that comes from; by subject."""
    values = {name: _told(name, value) for name, value in reading.settings}
    name_width = max(map(len, values))
    width = min(max(map(len, values.values())), WIDEST)
    origins = {name: printable(str(origin)) for name, origin in reading.origins.items()}
    blocks = []
    for title, names in sections().items():
        lines = [
            f"  {name:{name_width}}  {values[name]:{width}}  {origins[name]}" for name in names
        ]
        blocks.append("\n".join([title, *lines]))
    return "\n\n".join(blocks)


def as_json(reading: Reading) -> str:
    """One object: by a setting's name its value, the kind of its source, and that one's name."""
    values = reading.settings.model_dump(mode="json")
    found = {
        name: {
            "value": _told(name, values[name]) if name in SECRETS else values[name],
            "source": origin.kind,
            "name": origin.name,
        }
        for name, origin in reading.origins.items()
    }
    return json.dumps(found, indent=1)


def as_toml(reading: Reading) -> str:
    """A file with which `ttc serve --config` has the same settings, save for the tokens.

    Raises:
        ValueError: a value has bytes that are no characters; the sentence names the setting.
    """
    parts = [_TITLE]
    for title, names in sections().items():
        written = [_entry(reading, name) for name in names if name != "config"]
        if written:
            parts.append(f"\n## {title}\n\n" + "\n".join(written))
    return "".join(parts)


def _entry(reading: Reading, name: str) -> str:
    """A setting's lines: what it means, what it takes, its value; commented out if by default."""
    value, origin = getattr(reading.settings, name), reading.origins[name]
    said = f"{Settings.model_fields[name].description} [{accepted_in_file(name)}]"
    lines = textwrap.wrap(said, 98, break_on_hyphens=False)
    is_default = origin.kind == "default"
    if name in SECRETS and value is not None:
        lines.append(f"It is set by {printable(str(origin))}, and not written here.")
        value, is_default = None, True
    if value is None or value == ():
        # A file cannot unset what a variable sets, nor need it say that there is none.
        value, is_default = _EXAMPLES.get(name, ""), True
    try:
        line = f"{name} = {toml(value)}\n"
    except ValueError as error:
        raise ValueError(f"{name} cannot be written: {error}") from None
    return "".join(f"# {each}\n" for each in lines) + ("#" if is_default else "") + line


def _told(name: str, value: object) -> str:
    if name in SECRETS:
        return "unset" if value is None else "set"
    if name in SWITCHES:
        return "on" if value else "off"
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return printable(" ".join(map(str, value)))
    return printable(f"{value:.15g}" if isinstance(value, float) else str(value))
