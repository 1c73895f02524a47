"""Values of a request as a sentence can hold them, however large they came."""

from collections.abc import Sequence

_MOST_CHARACTERS = 40


def told(value: object) -> str:
    """A value out of JSON, cut short.

    Of lists and objects it is their length: written in whole, a million numbers would keep every
    thread waiting for half a second.
    """
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, dict):
        return f"an object of {len(value):,}"
    return repr(value[:_MOST_CHARACTERS] if isinstance(value, str) else value)[:_MOST_CHARACTERS]


def shown(shape: Sequence[int]) -> str:
    """A shape."""
    return f"[{', '.join(map(shown_count, shape))}]"


def shown_count(count: int) -> str:
    """A number."""
    return f"{count}" if count < 2**63 else "more than 2^63"
