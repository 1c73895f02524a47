"""An envelope as a TOML file: read with a sentence for whatever is wrong, written with comments."""

import textwrap
from pathlib import Path

from service.settings import Settings
from service.settings_file import read_toml, toml
from ttc_core.envelope.clauses import BUILT_IN, Envelope
from ttc_core.errors import shown

_TITLE = """\
# An envelope: what adaptation may change, determined beforehand. `ttc serve --envelope FILE` (or
# TTC_ENVELOPE) and `ttc evaluate --envelope FILE` keep every stream within. What is left out, or
# commented out, is as built in. docs/envelope.md says which clause speaks of which method.
"""


def read_envelope(path: Path) -> Envelope:
    """The envelope of a file.

    Raises:
        ValueError: it cannot be read, or says what no envelope does; a sentence for each thing that
            is wrong, in a line of its own, with the file's name.
    """
    try:
        given = read_toml(path)
        try:
            return Envelope.of(given)
        except ValueError as error:
            lines = str(error).splitlines()
            raise ValueError("\n".join(f"{shown(path)}: {line}" for line in lines)) from None
    except RecursionError:
        raise ValueError(f"{shown(path)} is nested too deeply.") from None


def in_force(settings: Settings) -> Envelope | None:
    """What holds with these settings; None: they are the paper's.

    Raises:
        ValueError: as `read_envelope`.
    """
    if settings.paper:
        return None
    return BUILT_IN if settings.envelope is None else read_envelope(settings.envelope)


def as_toml(envelope: Envelope) -> str:
    """A file that `read_envelope` makes the same of; clauses as built in are commented out."""
    parts = [_TITLE]
    for name, field in Envelope.model_fields.items():
        value = getattr(envelope, name)
        lines = textwrap.wrap(f"{field.description}.", 98, break_on_hyphens=False)
        line = f"{name} = {toml(value)}\n"
        usual = "#" if value == getattr(BUILT_IN, name) else ""
        parts.append("\n" + "".join(f"# {each}\n" for each in lines) + usual + line)
    return "".join(parts)
