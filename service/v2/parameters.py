"""Parameters: what the protocol's own may be, and those that a model reads."""

from collections.abc import Iterable, Mapping
from typing import Any

from service.errors import OutOfRange
from service.v2.sentences import told
from service.v2.signature import Scalar

# Of an id, and of a parameter that is a text.
MOST_CHARACTERS = 1000


def parameters_in(entry: Mapping[str, Any], name: str = "parameters") -> dict[str, Any]:
    """The parameters of a request, an input or an output; {} where there are none.

    Raises:
        OutOfRange: no JSON object, or it has a name that none has: a server's own, or a proxy's.
    """
    parameters = object_in(entry.get("parameters"), name)
    for each in parameters:
        if each.startswith("triton_") or each == "headers":
            raise OutOfRange(f"The parameter {each[:40]!r} is reserved: requests have none so.")
    return parameters


def object_in(value: object, name: str) -> dict[str, Any]:
    """A JSON object; {} where there is none."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise OutOfRange(f"{name} is not a JSON object; got {told(value)}.")
    return value


def id_of(value: object) -> str | None:
    """A request's id."""
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MOST_CHARACTERS:
        raise OutOfRange(
            f"id is not a text of at most {MOST_CHARACTERS:,} characters; got {told(value)}."
        )
    return value


def options_in(parameters: Mapping[str, Any], names: Iterable[str]) -> dict[str, Scalar]:
    """Those that a model reads: texts, numbers, true and false, as the protocol has parameters.

    The others are let go: a request waits with what it keeps, and nobody counts its parameters.

    Raises:
        OutOfRange: one is of another kind, or a text without end.
    """
    found: dict[str, Scalar] = {}
    for name in names:
        value = parameters.get(name)
        if value is None:
            continue
        is_short = not isinstance(value, str) or len(value) <= MOST_CHARACTERS
        if not (isinstance(value, str | int | float) and is_short):
            raise OutOfRange(
                f"The parameter {name} is a text of at most {MOST_CHARACTERS:,} characters, a "
                f"number, true or false; got {told(value)}."
            )
        found[name] = value
    return found


def switch(parameters: Mapping[str, Any], name: str, usual: bool = False) -> bool:
    """The value of a parameter that is true or false; `usual` where there is none."""
    value = parameters.get(name)
    if value is None:
        return usual
    if not isinstance(value, bool):
        raise OutOfRange(f"The parameter {name} is true or false; got {told(value)}.")
    return value


def number(parameters: Mapping[str, Any], name: str, most: int = 2**64 - 1) -> int:
    """The value of a parameter that is a whole number; 0 where there is none."""
    value = parameters.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= most:
        raise OutOfRange(
            f"The parameter {name} is a whole number from 0 to {most}; got {told(value)}."
        )
    return value


def sequence(parameters: Mapping[str, Any]) -> str:
    """The sequence that a request is of; "" for none. Whether it starts or ends is not asked."""
    switch(parameters, "sequence_start")
    switch(parameters, "sequence_end")
    value = parameters.get("sequence_id")
    if isinstance(value, str):
        return value
    return str(number(parameters, "sequence_id") or "")


def timeout(parameters: Mapping[str, Any]) -> float | None:
    """Seconds that a request may wait, which states microseconds; its priority is not asked."""
    number(parameters, "priority")
    return number(parameters, "timeout") / 1e6 or None
