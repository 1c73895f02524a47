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
        ValueError: it cannot be read, or says what no envelope does; the sentence names the file.
    """
    try:
        return Envelope.of(read_toml(path))
    except RecursionError:
        raise ValueError(f"{shown(path)} is nested too deeply.") from None
    except ValueError as error:
        named = str(error).startswith(shown(path))
        raise ValueError(str(error) if named else f"{shown(path)}: {error}") from None


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
