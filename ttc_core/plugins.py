"""Things of a user's own, named on the command line as package.module:attribute."""

import importlib
from typing import Any


def import_attribute(spec: str) -> Any:
    """Return what `package.module:attribute` names.

    Raises:
        ValueError: the module cannot be imported, or has no such attribute.
    """
    module_name, _, attribute = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does while it is imported
        kind = type(error).__name__
        raise ValueError(f"{spec} cannot be imported: {kind}: {error}.") from error
    if not hasattr(module, attribute):
        raise ValueError(f"{spec} cannot be imported: {module_name} has no {attribute!r}.")
    return getattr(module, attribute)


def call_factory(spec: str) -> Any:
    """Call what `package.module:attribute` names, without arguments.

    Raises:
        ValueError: it cannot be imported, or fails.
    """
    factory = import_attribute(spec)
    try:
        return factory()
    except Exception as error:  # whatever the user's own code does
        kind = type(error).__name__
        raise ValueError(f"{spec}() failed: {kind}: {error}.") from error
