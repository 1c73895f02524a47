"""A line of the log of changes: JSON in one form only, bound to the line before by that one's hash.

Knows no files, and imports the standard library alone.
"""

import contextlib
import json
import math
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

FORMAT = "ttc-changes-1"
MOST_LINE_BYTES = 64 << 10
"""A longer line is neither written nor read."""
# Of a line's own hash, in it: for the last line, which no other vouches for yet.
CHECK_DIGITS = 16
# Beyond, no clock of ours has been: a year near 5100; and no log has so many lines.
LATEST, MOST_LINES = 1e11, 1 << 53
# What each line has beside what it tells.
LINE, BEFORE, CHECK, TIME, EVENT = "line", "before", "check", "time", "event"


def digest(line: bytes) -> str:
    """The hash by which the next line knows a line: SHA-256 of its bytes without the line's end."""
    return sha256(line).hexdigest()


def digest_of(value: object) -> str:
    """A short name for what JSON can hold: the same for the same, 16 hex digits."""
    return sha256(_canonical(_plain(value)).encode()).hexdigest()[:16]


def encoded(number: int, before: str | None, told: Mapping[str, Any]) -> bytes:
    """The bytes of a line, without its end; the same for the same fields, whatever their order.

    Args:
        number: 1 for the first line of a chain.
        before: the hash of the line before; None: there is none.
        told: `event`, `time` and whatever else there is to tell, as JSON has it. Numbers that are
            not finite become null. What would be too long a line, or none, tells its `event` and
            `stream` alone, and how many bytes were `cut`; 0: it could not be told.
    """
    fields = {**told, LINE: number, BEFORE: before}
    line = _whole(fields)
    if line is None or len(line) > MOST_LINE_BYTES:
        kept = (TIME, EVENT, "stream", LINE, BEFORE)
        short = {name: _plain(fields[name]) for name in kept if name in fields}
        line = _with_check({**short, "cut": 0 if line is None else len(line)})
    return line


def _whole(fields: Mapping[str, Any]) -> bytes | None:
    """All that a line is told; None: a user's own method told what no line can."""
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        return _with_check(fields)
    with contextlib.suppress(Exception):  # what cannot be told would stop all behind it
        return _with_check({name: _plain(value) for name, value in fields.items()})
    return None


def decoded(line: bytes) -> dict[str, Any]:
    """What a line tells, with its `line`, `before` and `check`.

    Raises:
        ValueError: these are not the bytes that `encoded` gave.
    """
    if len(line) > MOST_LINE_BYTES:
        raise ValueError("it is too long")
    try:
        fields: dict[str, Any] = json.loads(line)
        check = fields.pop(CHECK)
        again = _with_check(fields)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise ValueError("it is no line of this log") from None
    number, before, when = fields.get(LINE), fields.get(BEFORE), fields.get(TIME, -1)
    is_whole = (
        again == line
        and type(number) is int
        and 0 < number < MOST_LINES
        and (before is None or isinstance(before, str))
        and isinstance(fields.get(EVENT), str)
        and type(when) in (int, float)
        and 0 <= when <= LATEST
    )
    if not is_whole:
        raise ValueError("it is not as it was written")
    return {**fields, CHECK: check}


def _with_check(fields: Mapping[str, Any]) -> bytes:
    """All fields in the order of their names, with a check of the others among them."""
    first = _canonical({name: value for name, value in fields.items() if name < CHECK})
    last = _canonical({name: value for name, value in fields.items() if name > CHECK})
    check = sha256(f"{first[:-1]},{last[1:]}".encode()).hexdigest()[:CHECK_DIGITS]
    # `before` is always among the first, `line` among the last.
    return f'{first[:-1]},"{CHECK}":"{check}",{last[1:]}'.encode()


def _canonical(fields: object) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: object) -> Any:
    """A value as JSON may have it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)
