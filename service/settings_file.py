"""TOML as a person writes it: a file read with a sentence for whatever is wrong, a value written.

Knows none of the settings.
"""

import json
import math
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from ttc_core.errors import printable, shown

# A file of every setting with its description has ten thousand bytes.
MOST_BYTES = 1 << 20
_LINE = re.compile(r" *\(at (?:line (\d+), column \d+|end of document)\)$")
_NAMES = re.compile(r"\s*[\w\"'.-]+\s*=|\s*\[[\w\"'. -]+\]\s*(#|$)")
# As tomllib words it where one name is given twice.
_TWICE = re.compile(r"Cannot (overwrite|declare|mutate|redefine)|Duplicate")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of at most a mebibyte.

    Raises:
        ValueError: it cannot be read, or is no TOML; the sentence names the file and the line.
        RecursionError: its values are nested thousands deep.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{shown(path)} cannot be read: {error.strerror}.") from None
    if len(data) > MOST_BYTES:
        raise ValueError(f"{shown(path)} has more than {MOST_BYTES:,} bytes: no file of settings.")
    try:
        text = data.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{shown(path)}, line {line}: TOML is UTF-8, this is not.") from None
    try:
        return tomllib.loads(text + "\n")  # else the end of the last line has no line's number
    except ValueError as error:  # a number of thousands of digits is one without a line
        raise ValueError(_sentence(path, text, str(error))) from None


def _sentence(path: Path, text: str, said: str) -> str:
    """Say what tomllib said, with the line, and nothing of a value: it may be a secret."""
    found = _LINE.search(said)
    what = printable(said[: found.start()] if found else said.partition(":")[0])
    if found is None:
        return f"{shown(path)} is no TOML: {what}."
    if found[1] is None:
        return f"{shown(path)} is no TOML: {what} at its end."
    where = f"{shown(path)}, line {found[1]}"
    if _TWICE.match(what):
        # The line in which the second value ends; it may have begun in one before.
        before = text.replace("\r\n", "\n").split("\n")[: int(found[1])]
        name = next((each for each in reversed(before) if _NAMES.match(each)), "a name")
        return f"{where}: {shown(name.partition('=')[0].strip())} is there twice."
    return f"{where}, is no TOML: {what}; NAME = VALUE is accepted, text in quotes."


def everyone_may_read(path: Path) -> bool:
    """Whether any user of this machine may read a file; False where that cannot be known."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)


def toml(value: object) -> str:
    """Write a value: a truth value, a number, a text, a path, or a sequence of these.

    Raises:
        ValueError: a text has bytes that are no characters, which TOML has no way to write.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        assert math.isfinite(value)
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml, value))}]"
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{shown(text)} has bytes that are no characters.") from None
    # JSON's escapes are TOML's; only this control character JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
