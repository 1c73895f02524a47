"""Back to how objects were, at the price of a few references."""

from collections.abc import Callable

Undo = Callable[[], None]
"""Puts something back to how it was when this was made, to the last bit."""


def undo_of(*objects: object) -> Undo:
    """What gives objects the attributes back that they have now.

    Nothing of them is copied: their values are to be replaced, never written in place.
    """
    before = [(each, vars(each).copy()) for each in objects]

    def undo() -> None:
        for each, attributes in before:
            vars(each).clear()
            vars(each).update(attributes)

    return undo
